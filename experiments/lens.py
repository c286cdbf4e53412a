"""What has a run learned? Measures it, tests it by changing the model, and says each finding beside its control.

python experiments/lens.py runs/calculator             # writes figures, findings.json and findings.md
python experiments/lens.py runs/calculator --step 0    # the same of the untrained model: nothing is there
python experiments/lens.py runs/calculator runs/seed_1 runs/seed_2   # and what of it is the same in all of them
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lens_figures  # this and the next beside this script
import numpy as np
import tyro
from lens_findings import as_text, claims, stable

import jaxcalc
from jaxcalc import landscape, lens, runs
from jaxcalc.blame import take_step
from jaxcalc.errors import InputError
from jaxcalc.runs import report
from jaxcalc.tasks.table import Calculator
from jaxcalc.tasks.tokenizer import PAD
from jaxcalc.trees import named_leaves

N_CONTROLS = 3
"""Untrained models, and shufflings of the labels, that stand beside each measure."""
N_PROBED = 2_000
"""Problems on which the answer's probes are fitted and tested."""
BATCH = 512
"""Problems on which the landscape is measured."""
ALIKE = {
    "right ones": lambda x, y: x % 10 == y % 10,
    "right tens": lambda x, y: x // 10 == y // 10,
    "off by one": lambda x, y: abs(x - y) == 1,
    "off by ten": lambda x, y: abs(x - y) == 10,
}
"""In what a wrong answer may still be like the right one."""


@dataclasses.dataclass(frozen=True)
class LensOptions:
    """Show what a run has learned, with figures, and a control for every claim. The first run is the one shown."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, as train.py leaves them; those after the first tell what is the same with other seeds."""
    out: Path | None = None
    """Folder for figures, findings.json and findings.md; the first run's folder lens if left out."""
    step: int | None = None
    """Which snapshot of the first run; its trained model if left out."""
    question: str | None = None
    """Such as "seven times eight", whose attention patterns are drawn; the middle problem of the table if left out."""
    json: bool = False
    """Print the findings as one JSON object instead of text."""


def main(options: LensOptions) -> int:
    started = time.perf_counter()
    if not options.runs:
        raise InputError("name at least one run folder, such as runs/calculator")
    loaded = [jaxcalc.load_run(path) for path in options.runs]
    task, *other_tasks = map(runs.calculator_of, loaded)
    for run in loaded[1:]:
        if run.task.tokenizer != task.tokenizer or run.config["model"] != loaded[0].config["model"]:
            raise InputError(
                f"{run.path} has other operations, numbers or sizes than {loaded[0].path}; compare like runs"
            )
    if len(loaded) > 1 and options.step is not None:
        raise InputError("--step looks at one run's snapshot; leave out the other runs")
    shown = loaded[0]
    params = shown.params if options.step is None else runs.load_snapshot(shown, options.step).params
    example = one_question(params, task, options.question)
    default = "lens" if options.step is None else f"lens_step_{options.step}"
    folder = shown.path / default if options.out is None else options.out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error

    controls = [jaxcalc.init(jax.random.key(10_000 + index), jaxcalc.config_of(params)) for index in range(N_CONTROLS)]
    blank = [measure(control, task) for control in controls]
    found = measure(params, task)
    history = while_it_learns(shown, step=options.step)
    surroundings = around(shown, params, options.step)
    findings = claims(found, blank)
    others = [claims(measure(run.params, its), blank) for run, its in zip(loaded[1:], other_tasks, strict=True)]

    result = {
        "run": str(shown.path),
        "seed": shown.summary["seed"],
        "step": options.step,
        "other_runs": [{"run": str(run.path), "seed": run.summary["seed"]} for run in loaded[1:]],
        "findings": findings,
        "stable": stable(findings, others),
        "question": example,
        "measures": found,
        "while_it_learns": history,
        "landscape": surroundings,
        "versions": runs.versions(),
        "device": jax.devices()[0].device_kind,
    }
    runs.write_json(folder / "findings.json", result)
    figures = lens_figures.draw(folder, example, found, blank[0], history, surroundings)
    text = as_text(result, figures, N_CONTROLS)
    (folder / "findings.md").write_text(text, encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False) if options.json else text)
    seconds = time.perf_counter() - started
    print(f"Saved {len(figures)} figures, findings.json and findings.md in {folder}, {seconds:.0f} s.", file=sys.stderr)
    return 0


# Measuring: everything about one model's parameters, as plain numbers.


def measure(params: jaxcalc.Params, task: Calculator) -> dict[str, Any]:
    """Return all measures of one model on the whole table."""
    rows = np.arange(len(task.tokens))
    return {
        **attention(params, task, rows),
        **numbers(params, task, rows),
        **operations(params, task),
        **outputs(params, task, rows),
    }


def one_question(params: jaxcalc.Params, task: Calculator, question: str | None) -> dict[str, Any]:
    """Return the words of one question with its right answer, and every head's attention over them, `[T, S]`."""
    problem = task.problem(len(task.tokens) // 2) if question is None else task.parse(question)
    row = task.row(problem)
    if row is None:
        raise InputError(f"{question!r} has no answer from 0 to {task.tokenizer.max_number}, so no row of the table")
    tokens, _ = lens.read(task, np.array([row]))
    blocks = jaxcalc.trace(params, tokens)[1]["blocks"]
    words = [task.tokenizer.token(index) for index in np.asarray(tokens)[0].tolist()]
    seen = [index for index, word in enumerate(words) if word != PAD or index < task.prompt_length]
    patterns = {name: np.asarray(blocks[block]["attention"]["pattern"])[0, head][np.ix_(seen, seen)].tolist()
                for block, head, name in heads(params)}  # fmt: skip
    return {"words": [words[index] for index in seen], "attention": patterns}


def by_operation(task: Calculator, rows: np.ndarray, values: jax.Array) -> dict[str, float]:
    """Return the mean of a value `[B]` over the rows of each operation."""
    operation = np.asarray(task.problems)[rows, 1]
    return {name: float(np.asarray(values)[operation == index].mean())
            for index, name in enumerate(task.tokenizer.operations)}  # fmt: skip


def heads(params: jaxcalc.Params) -> Iterator[tuple[int, int, str]]:
    """Yield block, head and the name of each head, such as "1.2"."""
    for block, weights in enumerate(params["blocks"]):
        for head in range(weights["attention"]["query"].shape[1]):
            yield block, head, f"{block}.{head}"


def attention(params: jaxcalc.Params, task: Calculator, rows: np.ndarray) -> dict[str, Any]:
    """Return where each head looks, by role, and what each operation loses without it."""
    looks = np.asarray(lens.attention_by_role(params, task, rows))
    tokens, batch = lens.read(task, rows)
    whole = by_operation(task, rows, lens.answers_right(jaxcalc.apply(params, tokens), batch))
    lost: dict[str, dict[str, dict[str, float]]] = {"zero": {}, "mean": {}}
    for block, head, name in heads(params):
        for kind, table in lost.items():
            logits = lens.ablate_head(params, tokens, block, head, mean=kind == "mean")
            left = by_operation(task, rows, lens.answers_right(logits, batch))
            table[name] = {operation: whole[operation] - left[operation] for operation in whole}
    shares = {name: looks[block, head].tolist() for block, head, name in heads(params)}
    return {"exact_match": whole, "attention": shares, "lost_without_head": lost}


def attributes(values: np.ndarray) -> dict[str, tuple[np.ndarray, int | None]]:
    """Return what can be read of numbers: of each attribute the labels and how many classes (None: a magnitude)."""
    return {
        "magnitude": (values, None),
        "ones digit": (values % 10, 10),
        "tens digit": (values // 10, int(values.max()) // 10 + 1),
        "parity": (values % 2, 2),
    }


def probes(states: jax.Array, values: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return how well each attribute is read off each stage's states `[stages, M, D]`, and off shuffled labels."""
    found = {}
    for name, (labels, n_classes) in attributes(values).items():
        key = jax.random.key(0)
        shuffled = [np.random.default_rng(index).permutation(labels) for index in range(N_CONTROLS)]
        scores = [[float(lens.probe(key, stage, jnp.asarray(given), n_classes)) for stage in states]
                  for given in (labels, *shuffled)]  # fmt: skip
        found[name] = {"n": len(values), "score": scores[0], "shuffled": np.max(scores[1:], axis=0).tolist()}
    return found


def numbers(params: jaxcalc.Params, task: Calculator, rows: np.ndarray) -> dict[str, Any]:
    """Return what the stream knows of a number at its last word, and of the answer at "equals"."""
    states = lens.number_states(params, task)
    some = np.random.default_rng(0).choice(rows, min(N_PROBED, len(rows)), replace=False)
    power = [np.asarray(lens.fourier_power(stage)) for stage in states]
    order = np.random.default_rng(0).permutation(states.shape[1])
    unordered = [float(lens.fourier_power(stage[order]).max()) for stage in states]
    return {
        "stages": lens.residual_sites(params),
        "number_probes": probes(states, np.arange(states.shape[1])),
        "answer_probes": probes(lens.answer_states(params, task, some), np.asarray(task.problems)[some, 3]),
        "fourier": [stage.tolist() for stage in power],
        "fourier_shuffled": unordered,
        "pca": [np.asarray(lens.pca(stage)[0]).tolist() for stage in states],
        "pca_variance": [np.asarray(lens.pca(stage)[1]).tolist() for stage in states],
        "distances": np.asarray(jnp.linalg.norm(states[-1][:, None] - states[-1], axis=-1)).round(3).tolist(),
    }


def operations(params: jaxcalc.Params, task: Calculator) -> dict[str, Any]:
    """Return where the first operation is told from the second: what patching changes, and what a direction does."""
    first, second = task.tokenizer.operations[:2] if len(task.tokenizer.operations) > 1 else (None, None)
    if first is None or second is None:
        return {"swap": None}
    here, there = lens.twins(task, first, second)
    (tokens, batch), (others, other_batch) = lens.read(task, here), lens.read(task, there)
    role = lens.roles(task, here)
    before = lens.answer_log_prob(jaxcalc.apply(params, tokens), batch)
    asked = range(lens.ROLES.index("answer"))
    patched = [[float((lens.answer_log_prob(lens.patch(params, tokens, others, site, jnp.asarray(role == r)), batch)
                       - before).mean()) for r in asked] for site in lens.residual_sites(params)]  # fmt: skip

    wanted = jnp.concatenate([tokens[:, : task.prompt_length], others[:, task.prompt_length :]], axis=1)
    states = [named_leaves(jax.jit(jaxcalc.trace)(params, each)[1]) for each in (tokens, others)]
    turned: dict[str, dict[str, list[float]]] = {}
    for place in ("operation", "equals"):
        where = jnp.asarray(role == lens.ROLES.index(place))
        turned[place] = {"mean difference": [], "random": []}
        for site in lens.residual_sites(params):
            direction = ((states[1][site] - states[0][site]) * where[..., None]).sum(axis=(0, 1)) / where.sum()
            noise = jax.random.normal(jax.random.key(0), direction.shape)
            noise = noise * jnp.linalg.norm(direction) / jnp.linalg.norm(noise)
            for shares, added in zip(turned[place].values(), (direction, noise), strict=True):
                logits = lens.steer(params, wanted, added, site, where)
                shares.append(float(lens.answers_right(logits, other_batch).mean()))
    return {"swap": {"from": first, "to": second, "n": len(here), "change_in_log_prob": patched, "turned": turned}}


def outputs(params: jaxcalc.Params, task: Calculator, rows: np.ndarray) -> dict[str, Any]:
    """Return what would be said after each stage, and which part adds how much to the right word's logit."""
    batch = lens.read(task, rows)[1]
    counts = batch.mask.sum(axis=0)
    by_stage = jnp.exp(lens.logit_lens(params, batch)) * batch.mask
    parts = lens.direct_contributions(params, batch)
    return {
        "p_right_by_stage": np.asarray(by_stage.sum(axis=1) / counts).tolist(),
        "contributions": {name: np.asarray((part * batch.mask).sum(axis=0) / counts).tolist()
                          for name, part in parts.items()},
    }  # fmt: skip


# Over the run: the same measures at its snapshots, and the loss around its end.


def while_it_learns(run: jaxcalc.Run, step: int | None) -> dict[str, Any] | None:
    """Return exact match, surprise, probes and sharpness at each snapshot up to `step`; None where there is none."""
    steps = [s for s in runs.snapshot_steps(run.path) if step is None or s <= step]
    if not steps:
        return None
    task = runs.calculator_of(run)
    rows = np.arange(len(task.tokens))
    tokens, batch = lens.read(task, rows)
    some = np.random.default_rng(0).choice(rows, min(N_PROBED, len(rows)), replace=False)
    small = lens.read(task, some[:BATCH])[1]
    answers = np.asarray(task.problems)[some, 3]
    table = []
    for at in steps:
        params = runs.load_snapshot(run, at).params
        logits = jaxcalc.apply(params, tokens)
        states = lens.answer_states(params, task, some)[-1]
        scores = {name: float(lens.probe(jax.random.key(0), states, jnp.asarray(labels), n_classes))
                  for name, (labels, n_classes) in attributes(answers).items()}  # fmt: skip
        sharpest, error = landscape.sharpness(jax.random.key(0), params, small)
        table.append({
            "step": at,
            "loss": float(jaxcalc.loss(params, batch)),
            "exact_match_all": float(lens.answers_right(logits, batch).mean()),
            "exact_match": by_operation(task, rows, lens.answers_right(logits, batch)),
            "answer_probes": scores,
            "sharpness": float(sharpest),
            "sharpness_error": float(error),
        })  # fmt: skip
    half = min(table, key=lambda row: abs(row["exact_match_all"] - 0.5))["step"]
    mistakes = confusions(runs.load_snapshot(run, half).params, task, rows)
    return {"n_problems": len(small.tokens), "snapshots": table, "mistakes_step": half, "mistakes": mistakes}


def confusions(params: jaxcalc.Params, task: Calculator, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Return of each operation's wrong answers how many share digits with the right one, and how many would by chance
    (the same wrong answers, dealt out to other problems of the operation)."""
    evaluation = jaxcalc.evaluate(params, task, rows)
    problems = np.asarray(task.problems)[rows]
    spelled = {tuple(answer): number for number, answer in enumerate(np.asarray(task.answers).tolist())}
    said = np.array([spelled.get(tuple(answer), -1) for answer in evaluation.generated.tolist()])
    table = {}
    for index, name in enumerate(task.tokenizer.operations):
        wrong = (problems[:, 1] == index) & ~evaluation.correct
        got, right = said[wrong & (said >= 0)], problems[wrong & (said >= 0), 3]
        dealt = np.random.default_rng(0).permutation(got)
        table[name] = {"problems": int((problems[:, 1] == index).sum()), "wrong": int(wrong.sum()),
                       "no number": int((wrong & (said < 0)).sum())}  # fmt: skip
        for kind, same in ALIKE.items():
            table[name][kind] = float(same(got, right).mean()) if got.size else None
            table[name][f"{kind}, by chance"] = float(same(dealt, right).mean()) if got.size else None
    return table


def around(run: jaxcalc.Run, params: jaxcalc.Params, step: int | None) -> dict[str, Any] | None:
    """Return the loss along the direction of the run's next step and along two random ones, all of one length."""
    steps = runs.snapshot_steps(run.path)
    if not steps:
        return None
    state = runs.load_snapshot(run, steps[-1] if step is None else step)
    task = runs.calculator_of(run)
    n_problems = len(task.tokens)
    some = np.random.default_rng(0).choice(n_problems, min(BATCH, n_problems), replace=False)
    batch = lens.read(task, some)[1]
    grads = jax.jit(jax.grad(jaxcalc.loss))(params, batch)
    update = take_step(runs.optimizer_of(run.config), grads, state.opt_state,
                       params).update  # fmt: skip
    directions = {f"random {i + 1}": landscape.random_direction(jax.random.key(i), params) for i in range(2)}
    norm = jaxcalc.summary(directions["random 1"]).rows["total"]["norm"]
    longer = norm / jaxcalc.summary(update).rows["total"]["norm"]
    directions = {"the next step": jax.tree.map(lambda leaf: leaf * longer, update), **directions}
    distances = jnp.linspace(-1, 1, 41)
    lines = {name: np.asarray(landscape.loss_along(params, direction, distances, batch)).tolist()
             for name, direction in directions.items()}  # fmt: skip
    return {"distances": distances.tolist(), "losses": lines, "step_lengths": longer}


if __name__ == "__main__":
    sys.exit(report.run_script(main, LensOptions))
