"""Write the model of a run as one program, which JAX runs without jaxcalc, and beside it what its token ids mean.

python experiments/export.py runs/calculator
→ runs/calculator/model.stablehlo: 0.44 MB, a program for cpu, cuda, tpu. It takes 2 seconds.

python experiments/export.py runs/calculator --out calculator.stablehlo
python experiments/export.py runs/calculator --table
→ also runs/calculator/model.table.jsonl and model.table.csv: every problem, its answer, and its side of the split.
"""

import csv
import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import jax
import numpy as np
import tyro

import jaxcalc
from jaxcalc.batch import PAD_ID
from jaxcalc.evaluation import answer_text, prompt_text
from jaxcalc.runs import cli
from jaxcalc.runs.files import write_whole
from jaxcalc.runs.stablehlo import export_answerer
from jaxcalc.tasks.drawn import Arithmetic
from jaxcalc.tasks.tokenizer import END_ID, EQUALS

PROGRAM = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
SPELLED = {
    "words": "in words, one token per word",
    "digits": "in digits, one token per digit, the highest digit first",
    "digits-reversed": "in digits, one token per digit, the lowest digit first",
}
"""How the tokens write a number, by notation."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write the model of a run as a StableHLO program that answers without jaxcalc, on CPU, CUDA and TPU."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    out: Path | None = None
    """The file to write; model.stablehlo in the run folder if left out. A second file beside it, such as
    model.vocabulary.json, says what the tokens mean."""
    table: bool = False
    """Write also all problems that the run's task lists, with their answers and whether they were held out, as
    model.table.jsonl and model.table.csv beside the program."""
    json: bool = False
    """Print one JSON object."""


def main(options: ExportOptions) -> int:
    run = jaxcalc.load_run(options.run)
    path = options.out or options.run / PROGRAM
    vocabulary_path = path.with_suffix(".vocabulary.json")
    program = export_answerer(run.params, run.task, PLATFORMS)
    vocabulary = json.dumps(vocabulary_of(run.task), indent=1, ensure_ascii=False).encode()
    write_whole(path, [program])
    write_whole(vocabulary_path, [vocabulary])
    tables = write_table(run.task, path) if options.table else []
    if options.json:
        result = {"path": str(path), "bytes": len(program), "vocabulary": str(vocabulary_path), "platforms": PLATFORMS}
        result |= {"table": list(map(str, tables))} if tables else {}
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(f"{path}: {len(program) / 1e6:.2f} MB, a program for {', '.join(PLATFORMS)}")
        print(f"{vocabulary_path}: what its tokens mean")
        for table in tables:
            print(f"{table}: {len(run.task.tokens):,} problems")
    return 0


class TableRow(TypedDict):
    """A problem of a task."""

    question: str
    answer: str
    kind: str
    """Its operations."""
    membership: str
    """On which side of the split it is: "training" or "held out"."""


def table_of(task: jaxcalc.Task) -> Iterator[TableRow]:
    """Yield the problems that a task lists, in its order."""
    answers = np.asarray(task.tokens)[:, task.prompt_length :]
    held_out = np.isin(np.arange(len(answers)), np.asarray(task.held_out_rows))
    for row, kind in enumerate(task.kind_ids.tolist()):
        yield {
            "question": prompt_text(task, row),
            "answer": answer_text(task, answers[row]),
            "kind": task.kind_names[kind],
            "membership": "held out" if held_out[row] else "training",
        }


def write_table(task: jaxcalc.Task, beside: Path) -> list[Path]:
    """Write the problems of a task as JSON lines and as CSV, and return the two files."""
    rows = list(table_of(task))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(TableRow.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = {".table.jsonl": lines, ".table.csv": text.getvalue()}
    for suffix, content in files.items():
        write_whole(beside.with_suffix(suffix), [content.encode()])
    return [beside.with_suffix(suffix) for suffix in files]


def vocabulary_of(task: jaxcalc.Task) -> dict[str, object]:
    """Return all that a user of the program needs to know: the tokens, and the shapes of prompts and answers."""
    ids = task.tokenizer.ids
    return {
        "tokens": list(task.tokenizer.vocabulary),
        "pad_id": PAD_ID,
        "end_id": END_ID,
        "equals_id": ids[EQUALS],
        "prompt_length": task.prompt_length,
        "answer_length": task.answer_length,
        "input": f"int32 [batch, prompt_length]: {prompt_layout(task)}",
        "outputs": [
            f"int32 [batch, answer_length]: the answer {SPELLED[task.tokenizer.output]}, then end_id; padded on the "
            "right with pad_id",
            "float32 [batch]: the probability of the whole answer",
        ],
        "jax": jax.__version__,
    }


def prompt_layout(task: jaxcalc.Task) -> str:
    """Return where numbers, operations and padding stand in a prompt."""
    notation = task.tokenizer.notation
    numbers = f"numbers {SPELLED[notation]}"
    if not isinstance(task, Arithmetic):
        return f"number, operation, number, equals_id; {numbers}; padded on the left with pad_id"
    order = ", operation, ".join(["number"] * task.terms)
    side = "right" if notation == "digits-reversed" else "left"
    return f"{order}, equals_id; {numbers}; each number padded on the {side} with pad_id to {task.slot} tokens"


if __name__ == "__main__":
    sys.exit(cli.run_script(main, ExportOptions))
