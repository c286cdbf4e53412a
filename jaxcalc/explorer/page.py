"""The explorer (host): one HTML file in which a run's model runs live, forwards and backwards.

The page is the files of `explorer/` put together, with the run's snapshots, learning curve and answers packed into it.
It needs no server and no network, and its content security policy allows it neither.
"""

import base64
import dataclasses
import hashlib
import html
import json
import re
import string
import zlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.evaluation import evaluate, prompt_text
from jaxcalc.optimizers import ADAM_BETAS
from jaxcalc.params import Params
from jaxcalc.runs import folder
from jaxcalc.runs.folder import Run, calculator_of, load_run
from jaxcalc.runs.text import percent
from jaxcalc.tasks.table import Calculator
from jaxcalc.trees import count, named_leaves

MOST_BYTES = 6_000_000
"""The largest page: what a mail still carries."""
MODULES = ("trees", "model", "backprop", "learning", "tokenizer", "data", "dom", "forward_views",
           "backward_views", "run_views", "main")  # fmt: skip
"""The JavaScript modules of the page, each above those that import it."""
LARGEST_TABLE = 100_000
"""Cells; a task with more has no table on its page."""


@dataclasses.dataclass(frozen=True)
class Explorer:
    """A page; in a notebook it shows itself, in a frame that can neither reach the notebook nor the network."""

    html: str
    """The whole page."""
    steps: tuple[int, ...]
    """The training steps whose snapshots it carries."""
    left_out: tuple[int, ...]
    """The snapshots for which there was no room."""

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{html.escape(self.html)}" title="jaxcalc explorer" '
            'width="100%" height="900" style="border: 0"></iframe>'
        )


def explore(run: Run | Path | str) -> Explorer:
    """Return the explorer of a run (or of its folder): one page with every snapshot that fits into 6 MB.

    Of snapshots that do not fit, the first and the last stay, and of the others as many as there is room for.

    Raises `InputError` as `load_run` and `load_snapshot` do, and for a model too large for a page.
    """
    run = run if isinstance(run, Run) else load_run(Path(run))
    task = calculator_of(run)
    table = _has_table(task)
    snapshots = [
        {"step": step, "weights": _pack_weights(params), "table": _pack(_verdicts(params, task)) if table else None}
        for step, params in _states(run).items()
    ]
    data = _about(run) | {"membership": _pack(_membership(task)) if table else None}
    kept = _fitting(snapshots, MOST_BYTES - len(_page(run, data | {"snapshots": []}).encode()))
    if not kept:
        raise InputError(f"{run.path} has {count(run.params):,} parameters, too many for a page of "
                         f"{MOST_BYTES:,} bytes; explore a smaller model")  # fmt: skip
    steps = tuple(snapshot["step"] for snapshot in kept)
    left_out = tuple(snapshot["step"] for snapshot in snapshots if snapshot["step"] not in steps)
    return Explorer(_page(run, data | {"snapshots": kept}), steps, left_out)


def _states(run: Run) -> dict[int, Params]:
    """Return the parameters of a run by step: of its snapshots, and those that it ended with."""
    states = {step: folder.load_snapshot(run, step).params for step in folder.snapshot_steps(run.path)}
    return states | {run.summary["steps"]: run.params}


def _fitting(snapshots: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """Return the last snapshot, the first, and as many between as fit, evenly chosen; none where not even one fits."""
    sizes = [len(json.dumps(snapshot)) + 2 for snapshot in snapshots]
    for n in range(len(snapshots), 1, -1):
        chosen = np.linspace(0, len(snapshots) - 1, n).round().astype(int)
        if sum(sizes[index] for index in chosen) <= room:
            return [snapshots[index] for index in chosen]
    return snapshots[-1:] if sizes[-1] <= room else []


def _about(run: Run) -> dict[str, Any]:
    """Return what the page says of a run, but for its weights."""
    task, tokenizer = run.task, run.task.tokenizer
    lines = [json.loads(line) for line in (run.path / folder.METRICS).read_text(encoding="utf-8").splitlines()]
    checks = [line for line in lines if "by_operation" in line]
    held_out = run.summary["held_out_exact_match"]
    right = f"{percent(held_out)} of held-out problems right" if held_out is not None else "nothing held out"
    examples = task.held_out_rows if task.held_out_rows.size else task.train_rows
    return {
        "about": f"{run.path.name}: {count(run.params):,} weights, {run.summary['steps']:,} steps, {right}",
        "made": f"Made by jaxcalc {run.summary['versions']['jaxcalc']} from a run of seed {run.config['seed']}, "
        f"{run.config['optimizer']}, batches of {run.config['batch_size']}. Everything on this page is computed in it, "
        "in double precision; nothing is sent anywhere. In the console, jaxcalc.app holds the parameters.",
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
    """Return a byte for each row of the table, in its place on a grid [operation, a, b]; 0 where no problem is."""
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
    """Return a grid of what a model answers: bit 7 where it is right, and 1 + 126 · the probability of its answer."""
    evaluation = evaluate(params, task, np.arange(len(task.problems)))
    return _on_grid(task, 128 * evaluation.correct + 1 + np.round(126 * evaluation.probability).astype(int))


def _pack_weights(params: Params) -> str:
    """Return all weights, float32 leaf by leaf, as planes of first, second, third and fourth bytes, to deflate well."""
    flat = np.concatenate([np.asarray(leaf, "<f4").ravel() for leaf in named_leaves(params).values()])
    return _pack(flat.view(np.uint8).reshape(-1, 4).T)


def _pack(array: np.ndarray) -> str:
    deflate = zlib.compressobj(9, wbits=-15)
    return base64.b64encode(deflate.compress(array.tobytes()) + deflate.flush()).decode()


def _page(run: Run, data: dict[str, Any]) -> str:
    sources = files("jaxcalc") / "explorer"
    style, script = (sources / "style.css").read_text(encoding="utf-8"), _script()
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    policy = "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"
    return string.Template((sources / "page.html").read_text(encoding="utf-8")).substitute(
        csp=policy.format(*hashes),
        title=html.escape(run.path.name),
        style=style,
        script=script,
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _script() -> str:
    """Return the page's modules as one: what they import from each other is simply there."""
    sources = files("jaxcalc") / "explorer"
    parts = []
    for name in MODULES:
        source = (sources / f"{name}.mjs").read_text(encoding="utf-8")
        source = re.sub(r'^import [^;]*? from "\./\w+\.mjs";\n', "", source, flags=re.MULTILINE)
        parts.append(f"// {name}.mjs\n{re.sub(r'^export ', '', source, flags=re.MULTILINE)}")
    return "\n".join(parts)
