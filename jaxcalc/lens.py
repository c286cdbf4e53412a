"""What a model has learned, read from its activations: attention patterns, linear probes, the logit lens.

Reading shows what is there; only changing an activation (`jaxcalc.interventions`) shows what the model uses. Each
measure has a control: another head, shuffled labels, the untrained model.

Rows are rows of a task's table. The model reads each row with its right answer ("teacher forcing"): greedy decoding
gives the right answer exactly if each of its tokens is the likeliest after those before it. A *site* is an activation
of `jaxcalc.trace` under its dotted name, such as "blocks.0.mlp.residual".
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import PAD_ID, Batch, batch_of, targets
from jaxcalc.errors import InputError
from jaxcalc.losses import example_cross_entropy, token_cross_entropy
from jaxcalc.model import NORM_EPSILON, output, project, trace
from jaxcalc.params import Params, check_params
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.words import number_to_words, words_to_number
from jaxcalc.trees import named_leaves

ROLES = ("start", "first tens", "first ones", "operation", "second tens", "second ones", "equals", "answer")
"""What a position holds. "start" is the padding before the question, "ones" the last word of a number unless that is a
word such as "twenty", "tens" every other word of a number."""


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def read(task: Calculator, rows: jax.Array | np.ndarray) -> tuple[jax.Array, Batch]:
    """Return the tokens that the model reads of these rows, int `[B, T]`, and the batch with the right answers.

    >>> from jaxcalc import calculator
    >>> tokens, batch = read(calculator(), np.arange(3))
    >>> tokens.shape, batch.mask.shape
    ((3, 8), (3, 3))
    """
    batch = batch_of(task, task.tokens[np.asarray(rows)])
    return batch.tokens[:, :-1], batch


def roles(task: Calculator, rows: jax.Array | np.ndarray) -> np.ndarray:
    """Return the role of every position that the model reads: indices into `ROLES`, int `[B, T]`.

    >>> from jaxcalc import calculator
    >>> task = calculator()
    >>> [ROLES[role] for role in roles(task, [task.row(task.parse("20 + 34"))])[0]]
    ['start', 'first tens', 'operation', 'second tens', 'second ones', 'equals', 'answer', 'answer']
    """
    tokens = np.asarray(read(task, rows)[0])
    is_operation = np.isin(tokens, [task.tokenizer.ids[name] for name in task.tokenizer.operations])
    place = np.arange(tokens.shape[1])
    operation = is_operation.argmax(axis=1)[:, None]
    equals = task.prompt_length - 1
    tens = [index for word, index in task.tokenizer.ids.items() if _is_tens(word)]
    is_leading = np.isin(tokens, tens) | ((place != operation - 1) & (place != equals - 1))
    number = np.where(place < operation, 1, 4) + ~is_leading  # first or second; tens, then ones
    return np.select([place > equals, place == equals, tokens == PAD_ID, is_operation], [7, 6, 0, 3], number)


def _is_tens(word: str) -> bool:
    try:
        value = words_to_number(word)
    except InputError:
        return False
    return value >= 20 and value % 10 == 0


def residual_sites(params: Params) -> list[str]:
    """Return the sites of the residual stream after each stage, embeddings first.

    >>> import jaxcalc
    >>> residual_sites(jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35, n_layers=1)))
    ['embed.residual', 'blocks.0.attention.residual', 'blocks.0.mlp.residual']
    """
    check_params(params)
    parts = [
        f"blocks.{index}.{part}.residual" for index in range(len(params["blocks"])) for part in ("attention", "mlp")
    ]
    return ["embed.residual", *parts]


def answers_right(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return whether greedy decoding gives each right answer and its end, bool `[B]`, from logits `[B, T, V]`."""
    likeliest = logits[:, -batch.mask.shape[1] :].argmax(axis=-1)
    return ((likeliest == targets(batch)) | (batch.mask == 0)).all(axis=1)


def answer_log_prob(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return ln p of each whole right answer, `[B]` in nats, from logits `[B, T, V]`."""
    return -example_cross_entropy(logits[:, -batch.mask.shape[1] :], batch)


# Attention: where heads look.


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def attention_by_role(params: Params, task: Calculator, rows: jax.Array | np.ndarray) -> jax.Array:
    """Return where each head looks, `[N, H, R, R]`: the mean share of attention from a query of one role to all keys
    of another.

    Each row sums to 1, or to 0 if no position has the query's role. All blocks must have the same number of heads.
    """
    role_BTR = jax.nn.one_hot(roles(task, rows), len(ROLES))
    return _attention_by_role(params, read(task, rows)[0], role_BTR)


@jax.jit
def _attention_by_role(params: Params, tokens: jax.Array, role_BTR: jax.Array) -> jax.Array:
    blocks = trace(params, tokens)[1]["blocks"]
    pattern = jnp.stack([block["attention"]["pattern"] for block in blocks])
    total = jnp.einsum("NBHTS,BTQ,BSR->NHQR", pattern, role_BTR, role_BTR)
    return total / jnp.maximum(role_BTR.sum(axis=(0, 1)), 1)[None, None, :, None]


# Numbers: what the residual stream holds after a number's last word, and where the answer is due.


@functools.partial(jax.jit, static_argnames="position")
def _streams(params: Params, tokens: jax.Array, position: int) -> jax.Array:
    leaves = named_leaves(trace(params, tokens)[1])
    return jnp.stack([leaves[name][:, position] for name in residual_sites(params)])


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def number_states(params: Params, task: Calculator) -> jax.Array:
    """Return the residual stream at the last word of each number 0 … max_number, `[sites, n, D]`.

    The number is at its place as the first operand of a question whose second operand has one word.
    """
    ids, width = task.tokenizer.ids, task.prompt_length - 3
    rows = [[ids[word] for word in number_to_words(n).split()] for n in range(task.tokenizer.max_number + 1)]
    tokens = jnp.array([[PAD_ID] * (width - len(row)) + row for row in rows])
    return _streams(params, tokens, width - 1)


def answer_states(params: Params, task: Calculator, rows: jax.Array | np.ndarray) -> jax.Array:
    """Return the residual stream at "equals", where the answer is due, `[sites, B, D]`."""
    return _streams(params, read(task, rows)[0], task.prompt_length - 1)


def pca(states: jax.Array, n: int = 2) -> tuple[jax.Array, jax.Array]:
    """Return the first n principal components of points `[M, D]`: coordinates `[M, n]`, shares of variance `[n]`."""
    u, s, _ = jnp.linalg.svd(states - states.mean(axis=0, keepdims=True), full_matrices=False)
    return u[:, :n] * s[None, :n], s[:n] ** 2 / (s**2).sum()


def fourier_power(states: jax.Array) -> jax.Array:
    """Return the share of variance of each period on the number line, `[n // 2]`, from states of 0 … n − 1 `[n, D]`.

    Entry k − 1 is for the period n / k: |Σₓ state(x) e^(−2πikx/n)|² summed over D, divided by the sum of this over all
    k ≥ 1. For points in random order each share is about 2 / n.
    """
    power = (jnp.abs(jnp.fft.rfft(states - states.mean(axis=0, keepdims=True), axis=0)) ** 2).sum(axis=-1)[1:]
    return power / power.sum()


@functools.partial(jax.jit, static_argnames="n_classes")
def probe(
    key: jax.Array, states: jax.Array, labels: jax.Array, n_classes: int | None = None, ridge: float = 0.1
) -> jax.Array:
    """Return how well a linear probe reads labels `[M]` from states `[M, D]` that it was not fitted on, a scalar.

    The probe is a ridge regression on standardised states, in ten folds drawn with `key`. With `n_classes`, labels are
    classes, regressed as one-hot vectors, and the score is the share of right ones. Without, labels are numbers and the
    score is R², which is 0 or less if the states say nothing.

    Args:
      ridge: the penalty, as a share of M.
    """
    n_folds = 10
    fold = jax.random.permutation(key, jnp.arange(len(labels)) % n_folds)
    x = (states - states.mean(axis=0, keepdims=True)) / (states.std(axis=0, keepdims=True) + 1e-6)
    y = jax.nn.one_hot(labels, n_classes) if n_classes else labels[:, None].astype(states.dtype)

    def predict(held_out: jax.Array) -> jax.Array:
        seen = (fold != held_out)[:, None].astype(x.dtype)
        centre = (y * seen).sum(axis=0, keepdims=True) / seen.sum()
        offset = (x * seen).sum(axis=0, keepdims=True) / seen.sum()
        inputs = (x - offset) * seen
        gram = inputs.T @ inputs + ridge * len(labels) * jnp.eye(x.shape[1])
        weights = jnp.linalg.solve(gram, inputs.T @ ((y - centre) * seen))
        return (x - offset) @ weights + centre

    predicted = jax.vmap(predict)(jnp.arange(n_folds))[fold, jnp.arange(len(labels))]
    if n_classes:
        return (predicted.argmax(axis=-1) == labels).mean()
    return 1 - ((predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()


# Output: what the model would say after each stage, and which part contributes what.


@jax.jit
def logit_lens(params: Params, batch: Batch) -> jax.Array:
    """Return ln p of each right token if the output stage followed each stage directly, `[sites, B, A]` in nats
    (nostalgebraist 2020). Jitted.

    Tokens that do not count have 0. The last site gives the model's own probabilities.
    """
    leaves = named_leaves(trace(params, batch.tokens[:, :-1])[1])
    n = batch.mask.shape[1]
    read_out = (output(params["output"], leaves[name][:, -n:])[0] for name in residual_sites(params))
    return jnp.stack([-token_cross_entropy(logits, batch) for logits in read_out])


@jax.jit
def direct_contributions(params: Params, batch: Batch) -> dict[str, jax.Array]:
    """Return what each part of the model adds directly to the logit of each right token, each `[B, A]`. Jitted.

    The final stream is the sum of what the embeddings, every head and every feed-forward layer wrote into it, and the
    output stage divides it by one number, its root mean square. So the contributions sum exactly to the logit less the
    mean logit of the vocabulary. (A constant added to all logits changes no probability.)
    """
    n = batch.mask.shape[1]
    activations = trace(params, batch.tokens[:, :-1])[1]
    written = {"embed": activations["embed"]["residual"]}
    for index, (block, weights) in enumerate(zip(activations["blocks"], params["blocks"], strict=True)):
        attended = block["attention"]["mixed"]
        for head in range(attended.shape[2]):
            written[f"block {index} head {head}"] = project(attended[:, :, head], weights["attention"]["out"][head])
        written[f"block {index} mlp"] = block["mlp"]["out"]
    last = activations["blocks"][-1]["mlp"]["residual"][:, -n:]
    scale = jax.lax.rsqrt((last * last).mean(axis=-1, keepdims=True) + NORM_EPSILON)
    scale = scale * params["output"]["norm"][None, None]
    unembed = params["output"]["unembed"] - params["output"]["unembed"].mean(axis=1, keepdims=True)
    reader = unembed.T[targets(batch)]  # [B, A, D]
    return {name: (value[:, -n:] * scale * reader).sum(axis=-1) for name, value in written.items()}
