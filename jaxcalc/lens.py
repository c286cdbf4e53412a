"""What a model has learned, read from its activations and tested by changing them.

Reading (where attention goes, what a linear probe finds, what the output would say after each stage) shows
what is there. Only changing (ablating a head, patching an activation with another prompt's, adding a
direction) shows what is used. Each measure has a control: another head, shuffled labels, the untrained model.

A *site* is an activation of `jaxcalc.trace` under its dotted name, such as "blocks.0.attention.mixed". Rows are
rows of a task's table, and the model reads each with its right answer ("teacher forcing"): greedy decoding gives
the right answer exactly where every token of it is the likeliest after those before it.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import PAD_ID, Batch, batch_of, targets
from jaxcalc.errors import InputError
from jaxcalc.losses import example_cross_entropy, token_cross_entropy
from jaxcalc.model import Activations, output, project, trace
from jaxcalc.params import Params
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.words import number_to_words, words_to_number
from jaxcalc.trees import named_leaves

ROLES = ("start", "first tens", "first ones", "operation", "second tens", "second ones", "equals", "answer")
"""What a position holds: "tens" is a word such as "twenty" and all before a number's last word, "ones" a last word
from "zero" to "nineteen", "start" the padding before the question."""

Edit = Callable[[jax.Array], jax.Array]
"""What takes the place of an activation, as a function of it."""


def read(task: Calculator, rows: jax.Array | np.ndarray) -> tuple[jax.Array, Batch]:
    """Return what the model reads of these rows, int `[B, T]`, and the batch that says what it should answer.

    >>> from jaxcalc import calculator
    >>> tokens, batch = read(calculator(), np.arange(3))
    >>> tokens.shape, batch.mask.shape
    ((3, 8), (3, 3))
    """
    batch = batch_of(task, task.tokens[np.asarray(rows)])
    return batch.tokens[:, :-1], batch


def roles(task: Calculator, rows: jax.Array | np.ndarray) -> np.ndarray:
    """Return the role of every position that the model reads, an index into `ROLES`, int `[B, T]`.

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


def stages(params: Params) -> list[str]:
    """Return the sites of the residual stream as it leaves each stage, embeddings first.

    >>> import jaxcalc
    >>> stages(jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35, n_layers=1)))
    ['embed.residual', 'blocks.0.attention.residual', 'blocks.0.mlp.residual']
    """
    parts = [
        f"blocks.{index}.{part}.residual" for index in range(len(params["blocks"])) for part in ("attention", "mlp")
    ]
    return ["embed.residual", *parts]


def intervene(params: Params, tokens: jax.Array, edits: Mapping[str, Edit]) -> tuple[jax.Array, Activations]:
    """Return what `trace` returns, logits `[B, T, V]` and activations, when some activations are replaced on the way.

    Args:
      tokens: int `[B, T]`.
      edits: for each site, what it becomes, as a function of what it would have been (after the edits before it).

    Raises `InputError` for a site that is no activation, and as `trace` does.

    >>> import jaxcalc
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35))
    >>> silence = {"blocks.0.attention.mixed": lambda mixed_BTHK: mixed_BTHK.at[:, :, 2].set(0)}  # ablates a head
    >>> logits, _ = intervene(params, jnp.zeros((1, 8), int), silence)
    """
    logits, activations = trace(params, tokens)
    sites = list(_in_order(activations))
    for name in edits:
        if name not in sites:
            raise InputError(f"{name!r} is no activation; there are {', '.join(sites)}")
    taps: dict[str, jax.Array] = {}
    for name in filter(edits.__contains__, sites):
        value = named_leaves(activations)[name]
        taps[name] = edits[name](value) - value
        logits, activations = trace(params, tokens, _nested(taps, len(params["blocks"])))
    return logits, activations


def _in_order(activations: Activations) -> dict[str, Any]:
    """Return the activations by name in the order in which the network computes them."""
    order = ("key", "value", "query", "pattern", "mixed", "hidden", "out", "residual")
    parts = [("embed", activations["embed"])]
    for index, block in enumerate(activations["blocks"]):
        parts += [(f"blocks.{index}.{part}", block[part]) for part in ("attention", "mlp")]
    parts.append(("output", activations["output"]))
    return {f"{part}.{name}": values[name] for part, values in parts for name in (*order, "normed") if name in values}


def _nested(taps: Mapping[str, jax.Array], n_layers: int) -> Activations:
    tree: Activations = {"embed": {}, "blocks": [{"attention": {}, "mlp": {}} for _ in range(n_layers)], "output": {}}
    for name, value in taps.items():
        *path, last = name.split(".")
        node: Any = tree
        for key in path:
            node = node[int(key) if key.isdigit() else key]
        node[last] = value
    return tree


def answers_right(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return whether each whole answer, its end included, would be decoded, bool `[B]`, from logits `[B, T, V]`."""
    said = logits[:, -batch.mask.shape[1] :].argmax(axis=-1)
    return ((said == targets(batch)) | (batch.mask == 0)).all(axis=1)


def answer_log_prob(logits: jax.Array, batch: Batch) -> jax.Array:
    """Return ln p of each whole right answer, `[B]` in nats, from logits `[B, T, V]`."""
    return -example_cross_entropy(logits[:, -batch.mask.shape[1] :], batch)


# Attention: where heads look, and what is lost without them.


def attention_by_role(params: Params, task: Calculator, rows: jax.Array | np.ndarray) -> jax.Array:
    """Return where each head looks, `[N, H, R, R]`: the mean share of its attention that a query of one role gives to
    all keys of another. A row of it sums to 1, or is 0 where no position of these rows has the role.

    The blocks must have equally many heads.
    """
    role_BTR = jax.nn.one_hot(roles(task, rows), len(ROLES))
    return _attention_by_role(params, read(task, rows)[0], role_BTR)


@jax.jit
def _attention_by_role(params: Params, tokens: jax.Array, role_BTR: jax.Array) -> jax.Array:
    blocks = trace(params, tokens)[1]["blocks"]
    pattern = jnp.stack([block["attention"]["pattern"] for block in blocks])
    total = jnp.einsum("NBHTS,BTQ,BSR->NHQR", pattern, role_BTR, role_BTR)
    return total / jnp.maximum(role_BTR.sum(axis=(0, 1)), 1)[:, None]


@functools.partial(jax.jit, static_argnames=("block", "mean"))
def ablate_head(params: Params, tokens: jax.Array, block: int, head: int | jax.Array, mean: bool = False) -> jax.Array:
    """Return the logits `[B, T, V]` without what one head mixes: with 0 in its place, or with its mean over these rows
    at the same position, which leaves what it says to every question alike. Jitted; `head` counts from 0."""

    def edit(mixed_BTHK: jax.Array) -> jax.Array:
        instead = mixed_BTHK.mean(axis=0, keepdims=True) if mean else 0.0
        chosen_H1 = (jnp.arange(mixed_BTHK.shape[2]) == head)[:, None]
        return jnp.where(chosen_H1, instead, mixed_BTHK)

    return intervene(params, tokens, {f"blocks.{block}.attention.mixed": edit})[0]


# Numbers: what the stream holds when a number has been read, and when the answer is due.


@functools.partial(jax.jit, static_argnames="position")
def _streams(params: Params, tokens: jax.Array, position: int) -> jax.Array:
    leaves = named_leaves(trace(params, tokens)[1])
    return jnp.stack([leaves[name][:, position] for name in stages(params)])


def number_states(params: Params, task: Calculator) -> jax.Array:
    """Return the residual stream behind each number 0 … max_number, at its last word, by stage, `[stages, n, D]`.

    The number stands where it stands as the first operand of a question whose second operand has one word.
    """
    ids, width = task.tokenizer.ids, task.prompt_length - 3
    rows = [[ids[word] for word in number_to_words(n).split()] for n in range(task.tokenizer.max_number + 1)]
    tokens = jnp.array([[PAD_ID] * (width - len(row)) + row for row in rows])
    return _streams(params, tokens, width - 1)


def answer_states(params: Params, task: Calculator, rows: jax.Array | np.ndarray) -> jax.Array:
    """Return the residual stream at "equals", where the answer is due, by stage, `[stages, B, D]`."""
    return _streams(params, read(task, rows)[0], task.prompt_length - 1)


def pca(states: jax.Array, n: int = 2) -> tuple[jax.Array, jax.Array]:
    """Return the first n principal components of points `[M, D]`: coordinates `[M, n]` and shares of variance `[n]`."""
    u, s, _ = jnp.linalg.svd(states - states.mean(axis=0), full_matrices=False)
    return u[:, :n] * s[:n], s[:n] ** 2 / (s**2).sum()


def fourier_power(states: jax.Array) -> jax.Array:
    """Return how variance spreads over periods of the number line, `[n // 2]`, from states of 0 … n − 1 `[n, D]`.

    Entry k − 1 is the share of the period n / k: |Σₓ state(x) e^(−2πikx/n)|² summed over D, over the same of all k ≥ 1.
    Points in no order spread evenly, about 2 / n each.
    """
    power = (jnp.abs(jnp.fft.rfft(states - states.mean(axis=0), axis=0)) ** 2).sum(axis=-1)[1:]
    return power / power.sum()


@functools.partial(jax.jit, static_argnames="n_classes")
def probe(
    key: jax.Array, states: jax.Array, labels: jax.Array, n_classes: int | None = None, ridge: float = 0.1
) -> jax.Array:
    """Return how well a linear probe reads labels `[M]` off states `[M, D]` that it was not fitted on, a scalar.

    Ridge regression in ten folds, drawn with `key`; states are standardised, and `ridge` is a share of M. With
    `n_classes` labels are classes, regressed as one-hot vectors, and the score is the share that
    is right (chance is that of the commonest class); without, it is R², 0 or less where nothing is read.
    """
    n_folds = 10
    fold = jax.random.permutation(key, jnp.arange(len(labels)) % n_folds)
    x = (states - states.mean(axis=0)) / (states.std(axis=0) + 1e-6)
    y = jax.nn.one_hot(labels, n_classes) if n_classes else labels[:, None].astype(states.dtype)

    def predict(held_out: jax.Array) -> jax.Array:
        seen = (fold != held_out)[:, None]
        centre = (y * seen).sum(axis=0) / seen.sum()
        offset = (x * seen).sum(axis=0) / seen.sum()
        inputs = (x - offset) * seen
        gram = inputs.T @ inputs + ridge * len(labels) * jnp.eye(x.shape[1])
        weights = jnp.linalg.solve(gram, inputs.T @ ((y - centre) * seen))
        return (x - offset) @ weights + centre

    predicted = jax.vmap(predict)(jnp.arange(n_folds))[fold, jnp.arange(len(labels))]
    if n_classes:
        return (predicted.argmax(axis=-1) == labels).mean()
    return 1 - ((predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()


# Operations: where the operation is decided, and its direction.


def twins(task: Calculator, operation: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows "a operation b" whose "a other b" is in the table too with another answer, and those rows `[M]`.

    Raises `InputError` where the task lacks one of the operations.
    """
    for name in (operation, other):
        if name not in task.tokenizer.operations:
            raise InputError(f"the task has no operation {name!r}; it has {', '.join(task.tokenizer.operations)}")
    problems = np.asarray(task.problems)
    here, there = ({(a, b): (row, c) for row, (a, op, b, c) in enumerate(problems.tolist())
                    if op == task.tokenizer.operations.index(name)} for name in (operation, other))  # fmt: skip
    pairs = [(row, there[ab][0]) for ab, (row, c) in here.items() if ab in there and there[ab][1] != c]
    found = np.array(pairs, int).reshape(-1, 2)
    return found[:, 0], found[:, 1]


@functools.partial(jax.jit, static_argnames="site")
def patch(params: Params, tokens: jax.Array, other_tokens: jax.Array, site: str, where: jax.Array) -> jax.Array:
    """Return the logits `[B, T, V]` with a site taken from other tokens `[B, T]` where `where` `[B, T]` says.
    Jitted; the site's first axes must be [B, T]."""
    other = named_leaves(trace(params, other_tokens)[1])[site]

    def edit(value: jax.Array) -> jax.Array:
        return jnp.where(where.reshape(*where.shape, *[1] * (value.ndim - 2)), other, value)

    return intervene(params, tokens, {site: edit})[0]


@functools.partial(jax.jit, static_argnames="site")
def steer(params: Params, tokens: jax.Array, direction: jax.Array, site: str, where: jax.Array) -> jax.Array:
    """Return the logits `[B, T, V]` with a direction `[D]` added to a site of the stream where `where` `[B, T]` says.
    Jitted."""
    return intervene(params, tokens, {site: lambda x_BTD: x_BTD + where[..., None] * direction})[0]


# Output: what would be said after each stage, and who contributes what to it.


@jax.jit
def logit_lens(params: Params, batch: Batch) -> jax.Array:
    """Return ln p of each right token if the output stage came after each stage, `[stages, B, A]` in nats, 0 where
    none counts (nostalgebraist 2020). The last stage's are the model's own. Jitted."""
    leaves = named_leaves(trace(params, batch.tokens[:, :-1])[1])
    n = batch.mask.shape[1]
    read_out = (output(params["output"], leaves[name][:, -n:])[0] for name in stages(params))
    return jnp.stack([-token_cross_entropy(logits, batch) for logits in read_out])


@jax.jit
def direct_contributions(params: Params, batch: Batch) -> dict[str, jax.Array]:
    """Return what each part of the model adds directly to the logit of each right token, each `[B, A]`. Jitted.

    The stream at the end is the sum of what the embeddings, every head and every feed-forward layer wrote into it,
    and the output stage divides all by one number, its root mean square, so the logit is the sum of
    their contributions, exactly. A contribution is relative to the mean over the vocabulary, since a
    constant added to all logits changes no probability; with it the sum is the logit less the mean logit.
    """
    n = batch.mask.shape[1]
    activations = trace(params, batch.tokens[:, :-1])[1]
    written = {"embed": activations["embed"]["residual"]}
    for index, (block, weights) in enumerate(zip(activations["blocks"], params["blocks"], strict=True)):
        attended = block["attention"]["mixed"]
        for head in range(attended.shape[2]):
            written[f"head {index}.{head}"] = project(attended[:, :, head], weights["attention"]["out"][head])
        written[f"mlp {index}"] = block["mlp"]["out"]
    last = activations["blocks"][-1]["mlp"]["residual"][:, -n:]
    scale = jax.lax.rsqrt((last * last).mean(axis=-1, keepdims=True) + 1e-6) * params["output"]["norm"]
    unembed = params["output"]["unembed"] - params["output"]["unembed"].mean(axis=1, keepdims=True)
    reader = unembed.T[targets(batch)]  # [B, A, D]
    return {name: (value[:, -n:] * scale * reader).sum(axis=-1) for name, value in written.items()}
