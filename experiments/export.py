"""Write the model of a run as one program, which JAX runs without jaxcalc, and beside it what its token ids mean.

python experiments/export.py runs/calculator
→ runs/calculator/model.stablehlo: 0.44 MB, a program for cpu, cuda, tpu. It takes 2 seconds.

python experiments/export.py runs/calculator --out calculator.stablehlo
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import tyro

import jaxcalc
from jaxcalc.batch import PAD_ID
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
