"""The measures of lens.py: everything about the parameters of one model, as plain numbers."""

from collections.abc import Iterator
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

import jaxcalc
from jaxcalc import interventions, lens
from jaxcalc.tasks.table import Calculator
from jaxcalc.trees import named_leaves

N_CONTROLS = 3
"""Untrained models, and shufflings of the labels, beside each measure."""
N_PROBED = 2_000
"""Problems on which the answer's probes are fitted and tested."""
ALIKE = {
    "right ones": lambda x, y: x % 10 == y % 10,
    "right tens": lambda x, y: x // 10 == y // 10,
    "off by one": lambda x, y: abs(x - y) == 1,
    "off by ten": lambda x, y: abs(x - y) == 10,
}
"""What a wrong answer may still share with the right one."""

Matrix = list[list[float]]


class Probe(TypedDict):
    """How well one attribute of n numbers is read after each stage, and at most with shuffled labels."""

    n: int
    score: list[float]
    shuffled: list[float]


Swap = TypedDict(
    "Swap",
    {
        "from": str,
        "to": str,
        "n": int,
        "change_in_log_prob": Matrix,  # nats, by stage and role: what patching costs or gains the right answer
        "turned": dict[str, dict[str, list[float]]],  # role → direction → share of answers turned, by stage
    },
)
"""What changes when one operation takes the place of another."""


class Measures(TypedDict):
    exact_match: dict[str, float]
    attention: dict[str, Matrix]
    lost_without_head: dict[str, dict[str, dict[str, float]]]
    stages: list[str]
    number_probes: dict[str, Probe]
    answer_probes: dict[str, Probe]
    fourier: Matrix
    fourier_shuffled: list[float]
    pca: list[Matrix]
    pca_variance: Matrix
    distances: Matrix
    swaps: list[Swap]
    p_right_by_stage: Matrix
    contributions: dict[str, list[float]]


class NumberMap(TypedDict):
    """Where the numbers 0 … max_number lie after each stage, and how far apart after the last one."""

    name: str
    pca: list[Matrix]
    pca_variance: Matrix
    distances: Matrix


class Example(TypedDict):
    """The words of one question with its answer, and every head's attention over them, `[T, S]`."""

    words: list[str]
    attention: dict[str, Matrix]
    untrained: float  # the most that a head of an untrained model gives one word when the answer is due


class Snapshot(TypedDict):
    step: int
    loss: float
    exact_match_all: float
    exact_match: dict[str, float]
    answer_probes: dict[str, float]
    sharpness: float
    sharpness_error: float


class History(TypedDict):
    """Measures of a run's snapshots, and the mistakes of the one that is right on about half of the table."""

    n_problems: int
    batch_size: int
    snapshots: list[Snapshot]
    mistakes_step: int
    mistakes: dict[str, dict[str, float | None]]


class Surroundings(TypedDict):
    """The loss along some directions; their length is `step_lengths` of the run's next step."""

    distances: list[float]
    losses: dict[str, list[float]]
    step_lengths: float


def stage_name(name: str) -> str:
    """Return what people call a stage: "blocks.0.mlp.residual" and "block 0 mlp" are "block 0 feed-forward"."""
    name = name.removesuffix(".residual").replace("blocks.", "block ").replace(".", " ")
    return {"embed": "embeddings"}.get(name, name.replace("mlp", "feed-forward"))


def measure(params: jaxcalc.Params, task: Calculator, only_first: bool = False) -> Measures:
    """Return all measures of one model on the whole table; with `only_first`, the first swap of operations only."""
    rows = np.arange(len(task.tokens))
    tokens, batch = lens.read(task, rows)
    exact_match = by_operation(task, rows, lens.answers_right(jaxcalc.apply(params, tokens), batch))
    looks = np.asarray(lens.attention_by_role(params, task, rows))
    states = lens.number_states(params, task)
    numbers = number_map(params, task, "")
    some = np.random.default_rng(0).choice(rows, min(N_PROBED, len(rows)), replace=False)
    shuffled = states[:, np.random.default_rng(0).permutation(states.shape[1])]
    counts = batch.mask.sum(axis=0)
    p_right = (jnp.exp(lens.logit_lens(params, batch)) * batch.mask).sum(axis=1) / counts
    parts = lens.direct_contributions(params, batch)
    return {
        "exact_match": exact_match,
        "attention": {name: looks[block, head].tolist() for block, head, name in heads(params)},
        "lost_without_head": lost_without_head(params, task, exact_match),
        "stages": lens.residual_sites(params),
        "number_probes": probes(states, np.arange(states.shape[1])),
        "answer_probes": probes(lens.answer_states(params, task, some), np.asarray(task.problems)[some, 3]),
        "fourier": [np.asarray(lens.fourier_power(stage)).tolist() for stage in states],
        "fourier_shuffled": [float(lens.fourier_power(stage).max()) for stage in shuffled],
        "pca": numbers["pca"],
        "pca_variance": numbers["pca_variance"],
        "distances": numbers["distances"],
        "swaps": swap_operations(params, task, only_first=only_first),
        "p_right_by_stage": np.asarray(p_right).tolist(),
        "contributions": {
            name: np.asarray((part * batch.mask).sum(axis=0) / counts).tolist() for name, part in parts.items()
        },
    }


def number_map(params: jaxcalc.Params, task: Calculator, name: str) -> NumberMap:
    """Return where one model, called `name` in figures, puts the numbers."""
    states = lens.number_states(params, task)
    components = [lens.pca(stage) for stage in states]
    return {
        "name": name,
        "pca": [np.asarray(coordinates).tolist() for coordinates, _ in components],
        "pca_variance": [np.asarray(variance).tolist() for _, variance in components],
        "distances": np.asarray(jnp.linalg.norm(states[-1][:, None] - states[-1], axis=-1)).round(3).tolist(),
    }


def by_operation(task: Calculator, rows: np.ndarray, values: jax.Array) -> dict[str, float]:
    """Return the mean of a value `[B]` over the rows of each operation."""
    operation = np.asarray(task.problems)[rows, 1]
    return {
        name: float(np.asarray(values)[operation == index].mean())
        for index, name in enumerate(task.tokenizer.operations)
    }


def heads(params: jaxcalc.Params) -> Iterator[tuple[int, int, str]]:
    """Yield block, head and the name of each head, such as "block 0 head 3"."""
    for block, weights in enumerate(params["blocks"]):
        for head in range(weights["attention"]["query"].shape[1]):
            yield block, head, f"block {block} head {head}"


def lost_without_head(
    params: jaxcalc.Params, task: Calculator, exact_match: dict[str, float]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the exact match that each operation loses without each head: "zero" or "mean" → head → operation."""
    rows = np.arange(len(task.tokens))
    tokens, batch = lens.read(task, rows)
    lost: dict[str, dict[str, dict[str, float]]] = {"zero": {}, "mean": {}}
    for block, head, name in heads(params):
        for kind, table in lost.items():
            logits = interventions.ablate_head(params, tokens, block, head, mean=kind == "mean")
            left = by_operation(task, rows, lens.answers_right(logits, batch))
            table[name] = {operation: match - left[operation] for operation, match in exact_match.items()}
    return lost


def attributes(values: np.ndarray) -> dict[str, tuple[np.ndarray, int | None]]:
    """Return the attributes of numbers: labels, and the number of classes (None for a magnitude)."""
    return {
        "magnitude": (values, None),
        "ones digit": (values % 10, 10),
        "tens digit": (values // 10, int(values.max()) // 10 + 1),
        "parity": (values % 2, 2),
    }


def probes(states: jax.Array, values: np.ndarray) -> dict[str, Probe]:
    """Return how well each attribute of `values` `[M]` is read from the states of each stage, `[stages, M, D]`."""
    found: dict[str, Probe] = {}
    for name, (labels, n_classes) in attributes(values).items():
        shuffled = [np.random.default_rng(index).permutation(labels) for index in range(N_CONTROLS)]
        score, *others = (
            [float(lens.probe(jax.random.key(0), stage, jnp.asarray(given), n_classes)) for stage in states]
            for given in (labels, *shuffled)
        )
        found[name] = {"n": len(values), "score": score, "shuffled": np.max(others, axis=0).tolist()}
    return found


def swap_operations(params: jaxcalc.Params, task: Calculator, only_first: bool = False) -> list[Swap]:
    """Return where the model tells each operation from its neighbour: plus from minus, minus from plus, and so on.

    Empty for a task of one operation. Operations whose questions have no numbers in common are left out.
    """
    names = task.tokenizer.operations
    pairs = [pair for two in zip(names[::2], names[1::2], strict=False) for pair in (two, two[::-1])]
    if len(names) > 1 and len(names) % 2:  # the last one has no neighbour after it
        pairs.append((names[-1], names[-2]))
    pairs = [pair for pair in pairs if len(interventions.twins(task, *pair)[0])]
    return [swap_operation(params, task, *pair) for pair in (pairs[:1] if only_first else pairs)]


def swap_operation(params: jaxcalc.Params, task: Calculator, first: str, second: str) -> Swap:
    """Return where the model tells one operation from another: what patching changes, what a direction turns."""
    here, there = interventions.twins(task, first, second)
    (tokens, batch), (others, other_batch) = lens.read(task, here), lens.read(task, there)
    role = lens.roles(task, here)
    before = lens.answer_log_prob(jaxcalc.apply(params, tokens), batch)

    def change(site: str, index: int) -> float:
        logits = interventions.patch(params, tokens, others, site, jnp.asarray(role == index))
        return float((lens.answer_log_prob(logits, batch) - before).mean())

    sites, asked = lens.residual_sites(params), range(lens.ROLES.index("answer"))
    wanted = jnp.concatenate([tokens[:, : task.prompt_length], others[:, task.prompt_length :]], axis=1)
    states = [named_leaves(jax.jit(jaxcalc.trace)(params, each)[1]) for each in (tokens, others)]
    turned: dict[str, dict[str, list[float]]] = {}
    for place in ("operation", "equals"):
        where = jnp.asarray(role == lens.ROLES.index(place))
        turned[place] = {"mean difference": [], "random": []}
        for site in sites:
            direction = ((states[1][site] - states[0][site]) * where[..., None]).sum(axis=(0, 1)) / where.sum()
            noise = jax.random.normal(jax.random.key(0), direction.shape)
            noise = noise * jnp.linalg.norm(direction) / jnp.linalg.norm(noise)
            for shares, added in zip(turned[place].values(), (direction, noise), strict=True):
                logits = interventions.steer(params, wanted, added, site, where)
                shares.append(float(lens.answers_right(logits, other_batch).mean()))
    return {
        "from": first,
        "to": second,
        "n": len(here),
        "change_in_log_prob": [[change(site, index) for index in asked] for site in sites],
        "turned": turned,
    }


def confusions(params: jaxcalc.Params, task: Calculator, rows: np.ndarray) -> dict[str, dict[str, float | None]]:
    """Return how many of each operation's wrong answers share digits with the right one, and how many would by chance.

    By chance means: with the same wrong answers, dealt to other problems of the operation.
    """
    evaluation = jaxcalc.evaluate(params, task, rows)
    problems = np.asarray(task.problems)[rows]
    spelled = {tuple(answer): number for number, answer in enumerate(np.asarray(task.answers).tolist())}
    given = np.array([spelled.get(tuple(answer), -1) for answer in evaluation.generated.tolist()])
    table: dict[str, dict[str, float | None]] = {}
    for index, name in enumerate(task.tokenizer.operations):
        wrong = (problems[:, 1] == index) & ~evaluation.correct
        got, right = given[wrong & (given >= 0)], problems[wrong & (given >= 0), 3]
        dealt = np.random.default_rng(0).permutation(got)
        row: dict[str, float | None] = {
            "problems": int((problems[:, 1] == index).sum()),
            "wrong": int(wrong.sum()),
            "no number": int((wrong & (given < 0)).sum()),
        }
        for kind, same in ALIKE.items():
            row[kind] = float(same(got, right).mean()) if got.size else None
            row[f"{kind}, by chance"] = float(same(dealt, right).mean()) if got.size else None
        table[name] = row
    return table
