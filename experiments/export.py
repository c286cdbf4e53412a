"""Write a run's model as one program, which JAX runs without jaxcalc, and beside it what its token ids mean.

python experiments/export.py runs/calculator
python experiments/export.py runs/calculator --out calculator.stablehlo
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import tyro

import jaxcalc
from jaxcalc.batch import PAD_ID
from jaxcalc.runs import report
from jaxcalc.runs.files import write_whole
from jaxcalc.runs.stablehlo import export_answerer
from jaxcalc.tasks.tokenizer import END_ID, EQUALS

PROGRAM = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
ANSWERS = {
    "words": "the number in words",
    "digits": "the digits of the number, the highest first",
    "digits-reversed": "the digits of the number, the lowest first",
}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a run's model as a StableHLO program that answers without jaxcalc, on CPU, CUDA and TPU."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    out: Path | None = None
    """The file to write; model.stablehlo in the run folder if left out. What its tokens mean is written beside it,
    into model.vocabulary.json."""
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
    if options.json:
        result = {"path": str(path), "bytes": len(program), "vocabulary": str(vocabulary_path), "platforms": PLATFORMS}
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(f"{path}: {len(program) / 1e6:.2f} MB, a program for {', '.join(PLATFORMS)}")
        print(f"{vocabulary_path}: what its tokens mean")
    return 0


def vocabulary_of(task: jaxcalc.Task) -> dict[str, Any]:
    """Return all that one needs to know to ask the program of a task's model."""
    ids = task.tokenizer.ids
    return {
        "tokens": list(task.tokenizer.vocabulary),
        "pad_id": PAD_ID,
        "end_id": END_ID,
        "equals_id": ids[EQUALS],
        "prompt_length": task.prompt_length,
        "answer_length": task.answer_length,
        "input": "int32 [batch, prompt_length]: number, operation, number and equals_id, numbers in words of one token "
        "each; padded on the left with pad_id",
        "outputs": [
            f"int32 [batch, answer_length]: {ANSWERS[task.tokenizer.output]}, then end_id; padded on the right with "
            "pad_id",
            "float32 [batch]: the probability of the whole answer",
        ],
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    sys.exit(report.run_script(main, ExportOptions))
