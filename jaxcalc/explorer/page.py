"""The explorer (host): one HTML file in which the model of a run runs live, and in which a small one is trained.

The page is put together from the web files in this folder, with the snapshots, the learning curve and the answers of
the run packed into it. It needs neither a server nor a network, and its content security policy forbids both.
"""

import base64
import dataclasses
import hashlib
import html
import json
import os
import re
import string
import zlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.evaluation import evaluate, prompt_text
from jaxcalc.explorer.live import live_data
from jaxcalc.explorer.timeline import timeline_data
from jaxcalc.optimizers import ADAM_BETAS
from jaxcalc.params import Params
from jaxcalc.runs import folder
from jaxcalc.runs.account import Ledger
from jaxcalc.runs.configfile import versions
from jaxcalc.runs.folder import Run, calculator_of, load_run
from jaxcalc.runs.metrics import read_metrics
from jaxcalc.runs.text import percent
from jaxcalc.tasks.table import Calculator
from jaxcalc.trees import count, named_leaves

MOST_BYTES = 6_000_000
"""The size of the largest page, which still fits into a mail."""
IMPORT = re.compile(r'^import (?:[^;]*? from )?"\./(\w+)\.mjs";\n', re.MULTILINE)
"""The imports that the modules use: of names, and of a module that a worker needs."""
STYLES = ("style", "parts", "stage", "arithmetic", "live", "map", "interventions", "tour", "media")
"""The style sheets of the page: the page as a whole, what its parts draw, and what differs on other media."""
FIT_FRAME = """
addEventListener("message", ({ source, data }) => {
  for (const frame of document.querySelectorAll("iframe.jaxcalc"))
    if (frame.contentWindow === source && data.jaxcalcHeight > 0) frame.style.height = `${data.jaxcalcHeight}px`;
});
"""
"""What a notebook runs beside the page's frame, which cannot reach it: the page says its height, and the frame gets it.
Where a notebook runs no scripts, the frame keeps its height."""
LARGEST_TABLE = 100_000
"""Cells; the page of a larger task has no table."""


@dataclasses.dataclass(frozen=True)
class Explorer:
    """A page. A notebook shows it in a frame that can reach neither the notebook nor the network."""

    html: str
    """The whole page."""
    steps: tuple[int, ...]
    """The training steps of the snapshots in the page."""
    left_out: tuple[int, ...]
    """The training steps of the snapshots that did not fit."""

    def __repr__(self) -> str:
        return f"Explorer({len(self.html.encode()) / 1e6:.2f} MB, {len(self.steps)} snapshots)"

    def _repr_html_(self) -> str:
        frame = (
            f'<iframe class="jaxcalc" sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" '
            'title="jaxcalc explorer" width="100%" height="900" style="border: 0"></iframe>'
        )
        return f"{frame}<script>{FIT_FRAME}</script>"


class Snapshot(TypedDict):
    """What the page knows of one snapshot."""

    step: int
    weights: str
    """All weights, packed."""
    table: str | None
    """The answer to every problem, packed; None on a page without a table."""


def explore(run: Run | str | os.PathLike[str], *, ledgers: Sequence[Ledger] = ()) -> Explorer:
    """Return the explorer of a run, given the run or its folder: one page of at most 6 MB.

    If not all snapshots fit, the page has the first, the last, and as many between as there is room for.

    Args:
      ledgers: those of a few questions, such as `run.ledger("seven times eight")`, over the whole run. The page shows
        them along the snapshots.

    Raises `InputError` for a folder without a finished run, for a run without a table of problems, for a damaged
    snapshot, for a model that is too large for a page, and for a ledger that lacks the step of a snapshot.
    """
    run = run if isinstance(run, Run) else load_run(Path(run))
    task = calculator_of(run)
    table, states = _has_table(task), _states(run)
    snapshots: list[Snapshot] = [
        {"step": step, "weights": _pack_weights(params), "table": _pack(_verdicts(params, task)) if table else None}
        for step, params in states.items()
    ]
    data = _about(run) | {
        "ledgers": [timeline_data(ledger, states) for ledger in ledgers],
        "membership": _pack(_membership(task)) if table else None,
        "live": live_data(),
    }
    kept = _fitting(snapshots, MOST_BYTES - len(_page(run.path.name, data | {"snapshots": []}).encode()))
    if not kept:
        raise InputError(
            f"{run.path} has {count(run.params):,} parameters, too many for a page of "
            f"{MOST_BYTES:,} bytes; explore a smaller model"
        )
    steps = tuple(snapshot["step"] for snapshot in kept)
    left_out = tuple(snapshot["step"] for snapshot in snapshots if snapshot["step"] not in steps)
    return Explorer(_page(run.path.name, data | {"snapshots": kept}), steps, left_out)


def explore_live() -> Explorer:
    """Return the page that trains a small model from nothing. It needs no run."""
    made = f"Made by jaxcalc {versions()['jaxcalc']}. Your browser computes everything, and sends nothing anywhere."
    return Explorer(_page("train from nothing", {"made": made, "live": live_data()}, "main_live"), (), ())


def _states(run: Run) -> dict[int, Params]:
    """Return the parameters of a run by step: those of its snapshots and its last ones."""
    states = {step: folder.load_snapshot(run, step).params for step in folder.checkpoint_steps(run.path)}
    return states | {run.summary["steps"]: run.params}


def _fitting(snapshots: list[Snapshot], room: int) -> list[Snapshot]:
    """Return the first and the last snapshot and as many between as fit, evenly chosen; none if not even one fits."""
    sizes = [len(json.dumps(snapshot)) + 2 for snapshot in snapshots]
    for n in range(len(snapshots), 1, -1):
        chosen = np.linspace(0, len(snapshots) - 1, n).round().astype(int)
        if sum(sizes[index] for index in chosen) <= room:
            return [snapshots[index] for index in chosen]
    return snapshots[-1:] if sizes[-1] <= room else []


def _about(run: Run) -> dict[str, object]:
    """Return all that the page shows of a run, except its snapshots and which problems it held out."""
    task, tokenizer, schedule = run.task, run.task.tokenizer, run.config.schedule
    lines = read_metrics(run.path)
    checks = [line for line in lines if "by_operation" in line]
    held_out = run.summary["held_out_exact_match"]
    right = f"{percent(held_out)} of held-out problems right" if held_out is not None else "nothing held out"
    examples = task.held_out_rows if task.held_out_rows.size else task.train_rows
    return {
        "about": f"{run.path.name}: {count(run.params):,} weights, {run.summary['steps']:,} steps, {right}",
        "made": f"Made by jaxcalc {run.summary['versions']['jaxcalc']} from a run with seed {schedule.seed}, "
        f"optimizer {run.config.optimizer.optimizer} and batches of {schedule.batch_size}. The learning curve and the "
        "table come from the run. Your browser computes everything else, in double precision, and sends nothing "
        "anywhere. In the console, jaxcalc.app.params holds the parameters.",
        "prompt": prompt_text(task, int(np.asarray(examples)[len(examples) // 3])),
        "adam_betas": ADAM_BETAS,
        "task": {
            "vocabulary": tokenizer.vocabulary,
            "operations": tokenizer.operations,
            "max_number": tokenizer.max_number,
            "output": tokenizer.output,
            "prompt_length": task.prompt_length,
            "answer_length": task.answer_length,
        },
        "leaves": [[name, list(leaf.shape)] for name, leaf in named_leaves(run.params).items()],
        "curve": {
            "loss": [[line["step"], float(f"{line['loss']:.4g}")] for line in lines if "loss" in line],
            "checks": [{"step": check["step"], "by_operation": check["by_operation"]} for check in checks],
            "watched": "held-out" if task.held_out_rows.size else "training",
        },
    }


def _has_table(task: Calculator) -> bool:
    return len(task.tokenizer.operations) * (task.tokenizer.max_number + 1) ** 2 <= LARGEST_TABLE


def _on_grid(task: Calculator, values: np.ndarray) -> np.ndarray:
    """Return a grid [operation, a, b] with a byte for each row of the table, and 0 where there is no problem."""
    n = task.tokenizer.max_number + 1
    a, operation, b, _ = np.asarray(task.problems).T
    grid = np.zeros((len(task.tokenizer.operations), n, n), np.uint8)
    grid[operation, a, b] = values
    return grid


def _membership(task: Calculator) -> np.ndarray:
    """Return a grid that is 1 for training and 2 for held-out problems."""
    values = np.ones(len(task.problems), np.uint8)
    values[np.asarray(task.held_out_rows)] = 2
    return _on_grid(task, values)


def _verdicts(params: Params, task: Calculator) -> np.ndarray:
    """Return a grid of a model's answers: bit 7 if the answer is right, and 1 + 126 · its probability."""
    evaluation = evaluate(params, task, np.arange(len(task.problems)))
    return _on_grid(task, 128 * evaluation.correct + 1 + np.round(126 * evaluation.probability).astype(int))


def _pack_weights(params: Params) -> str:
    """Return all weights as float32, packed: first all first bytes, then all second bytes, …, which compresses best."""
    flat = np.concatenate([np.asarray(leaf, "<f4").ravel() for leaf in named_leaves(params).values()])
    return _pack(flat.view(np.uint8).reshape(-1, 4).T)


def _pack(array: np.ndarray) -> str:
    """Return the bytes of an array, deflated, in base 85: five characters for four bytes, a comma in place of "<"."""
    deflate = zlib.compressobj(9, wbits=-15)
    return base64.b85encode(deflate.compress(array.tobytes()) + deflate.flush()).decode().replace("<", ",")


def _page(title: str, data: dict[str, object], entry: str = "main") -> str:
    """Return the HTML of a page that carries these data and runs the module `entry`."""
    style, script = "".join(_source(f"{name}.css") for name in STYLES), _script(entry)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    # blob: names only what the page itself has made: its worker, and the drawing that it saves as a PNG.
    policy = (
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; worker-src blob:; img-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return string.Template(_source("page.html")).substitute(
        csp=policy.format(*hashes),
        title=html.escape(title),
        style=style,
        script=script,
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _modules(entry: str) -> list[str]:
    """Return the JavaScript modules that a page needs to run `entry`, each after those that it imports."""
    needed: list[str] = []

    def add(name: str) -> None:
        if name not in needed:
            for imported in IMPORT.findall(_source(f"{name}.mjs")):
                add(imported)
            needed.append(name)

    add(entry)
    return needed


def _script(entry: str) -> str:
    """Return all JavaScript modules as one, without their imports, exports and comments, which fill a fifth of it."""
    parts = []
    for name in _modules(entry):
        source = IMPORT.sub("", _source(f"{name}.mjs"))
        source = re.sub(r"^ *(?://.*|/\*\*(?:(?!\*/)[\s\S])*\*/)\n", "", source, flags=re.MULTILINE)
        parts.append(f"// {name}.mjs\n{re.sub(r'^export ', '', source, flags=re.MULTILINE)}")
    return "\n".join(parts)


def _source(name: str) -> str:
    """Return the text of a web file in this folder."""
    return (files("jaxcalc.explorer") / name).read_text(encoding="utf-8")
