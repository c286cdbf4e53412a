"""Draw a run as it learns: an animated GIF with one frame per snapshot.

python experiments/train.py --snapshots 40 --run-dir runs/animated
python experiments/animate.py runs/animated
→ runs/animated/learning.gif: 31 frames, 201 kB, with seed 0. It takes a minute on two CPU cores.
"""

import dataclasses
import io
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image

import jaxcalc
from jaxcalc import runs
from jaxcalc.errors import InputError
from jaxcalc.runs import cli, style
from jaxcalc.runs.text import percent
from jaxcalc.tasks.words import NUMBER_WORDS

DARK, GREY, PALE, GREEN = style.INK, style.CONTROL, style.PALE, "#2a9d4a"
PALETTE = ("#ffffff", DARK, GREY, PALE, GREEN, *style.COLOURS.values(), "#595959", "#b3b3b3", "#d4d4d4", "#94cea4")
FRAME_MS, LAST_MS = 220, 5_000


@dataclasses.dataclass(frozen=True)
class AnimateOptions:
    """Draw what a run answers at each of its snapshots: one question in detail, and the whole table."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    question: tyro.conf.Positional[str] = "two plus three"
    """The question whose next word is drawn."""
    output: Path | None = None
    """The file to write; learning.gif in the run folder if left out."""
    json: bool = False
    """Print one JSON object."""


def main(options: AnimateOptions) -> int:
    run = jaxcalc.load_run(options.run)
    task = run.task
    if not isinstance(task, jaxcalc.Calculator):
        raise InputError(f"{run.path} draws its problems; only a run with a table of problems can be animated")
    steps = runs.checkpoint_steps(run.path)
    prompt = jnp.asarray(task.encode(options.question))[None]
    target = int(task.tokens[task.row(task.parse(options.question)), task.prompt_length])
    next_word = jax.jit(lambda params: jax.nn.softmax(jaxcalc.apply(params, prompt, last=1)[0, 0]))
    everything = np.arange(len(task.tokens))
    frames, surprises = [], {}
    for step in steps:
        params = runs.load_snapshot(run, step).params
        probabilities = np.asarray(next_word(params))
        surprises[step] = -float(np.log(probabilities[target]))
        correct = jaxcalc.evaluate(params, task, everything).correct
        frames.append(draw(task, options.question, target, probabilities, surprises, correct, last_step=steps[-1]))
    path = options.output or run.path / "learning.gif"
    write(path, frames)
    size = path.stat().st_size
    if options.json:
        print(json.dumps({"path": str(path), "bytes": size, "steps": steps}, ensure_ascii=False))
    else:
        print(f"{path}: {len(frames)} frames, {size / 1e3:.0f} kB")
    return 0


def draw(
    task: jaxcalc.Calculator,
    question: str,
    target: int,
    probabilities: np.ndarray,
    surprises: dict[int, float],
    correct: np.ndarray,
    last_step: int,
) -> Image.Image:
    """Return one frame: the next word and the surprise at the right one on the left, the whole table on the right."""
    step = max(surprises)
    figure = Figure(figsize=(8.3, 4.1), dpi=120)
    figure.text(0.03, 0.925, f"step {step:,}", fontsize=15, weight="bold", color=DARK)
    left = figure.add_gridspec(2, 1, left=0.03, right=0.49, top=0.82, bottom=0.115, hspace=0.7)
    words(figure.add_subplot(left[0]), task, question, target, probabilities)
    surprise(figure.add_subplot(left[1]), task.tokenizer.token(target), surprises, last_step)
    right = figure.add_gridspec(2, 2, left=0.55, right=0.99, top=0.8, bottom=0.03, wspace=0.1, hspace=0.22)
    held_out = np.isin(np.arange(len(correct)), np.asarray(task.held_out_rows))
    for index, operation in enumerate(task.tokenizer.operations[:4]):
        rows = np.asarray(task.problems)[:, 1] == index
        share = percent(float(correct[rows & held_out].mean()))
        axes = figure.add_subplot(right[index // 2, index % 2])
        table(axes, np.asarray(task.problems)[rows], correct[rows], style.COLOURS[operation])
        axes.set_title(f"{operation}: {share}", fontsize=9, color=DARK, loc="left", pad=3)
    figure.text(0.55, 0.94, f"All {len(correct):,} problems: first number →, second ↑", fontsize=9, color=DARK)
    figure.text(0.55, 0.89, "Coloured where the answer is right; %: of the held-out", fontsize=9, color=DARK)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file).convert("RGB")


def words(axes: Axes, task: jaxcalc.Calculator, question: str, target: int, probabilities: np.ndarray) -> None:
    """Draw the probability of each number word as the next one."""
    ids = [index for index, word in enumerate(task.tokenizer.vocabulary) if word in NUMBER_WORDS]
    colours = [GREEN if index == target else GREY for index in ids]
    axes.bar(range(len(ids)), probabilities[ids], color=colours, width=0.75)
    axes.set_xticks(range(len(ids)), [task.tokenizer.token(index) for index in ids], rotation=90, fontsize=6.5)
    for label, colour in zip(axes.get_xticklabels(), colours, strict=True):
        label.set_color(GREEN if colour == GREEN else DARK)
    axes.set(ylim=(0, 1), xlim=(-0.6, len(ids) - 0.4), yticks=[])
    likeliest = int(probabilities.argmax())
    axes.set_title(
        f"{question} equals → {task.tokenizer.token(likeliest)}  {percent(probabilities.max())}",
        fontsize=10,
        color=GREEN if likeliest == target else DARK,
        loc="left",
        pad=4,
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=2)


def surprise(axes: Axes, word: str, surprises: dict[int, float], last_step: int) -> None:
    """Draw the surprise at the right word over the steps so far."""
    axes.plot(list(surprises), list(surprises.values()), color=DARK, linewidth=1.2)
    axes.plot(*list(surprises.items())[-1], "o", color=GREEN, markersize=4.5)
    axes.set_xscale("symlog", linthresh=10, linscale=0.4)
    ticks = [tick for tick in (0, 10, 100, 1_000, 10_000) if tick <= last_step]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set(xlim=(-1, 1.2 * last_step), ylim=(-0.15, 5.8), yticks=(0, 2, 4))
    axes.set_title(
        f"surprise at “{word}”: {list(surprises.values())[-1]:.3g} nats", fontsize=9, color=DARK, loc="left", pad=3
    )
    axes.set_xlabel("training step", fontsize=7, color=DARK, labelpad=1)
    axes.tick_params(labelsize=6.5, color=GREY, labelcolor=DARK)
    axes.spines[["top", "right"]].set_visible(False)


def table(axes: Axes, problems: np.ndarray, correct: np.ndarray, colour: str) -> None:
    """Draw one operation's problems, the first number to the right and the second upwards."""
    size = int(problems[:, [0, 2]].max()) + 1
    image = np.zeros((size, size), int)
    image[problems[:, 2], problems[:, 0]] = 1 + correct
    axes.imshow(
        image, origin="lower", cmap=ListedColormap(["white", PALE, colour]), vmin=0, vmax=2, interpolation="nearest"
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def write(path: Path, frames: list[Image.Image]) -> None:
    """Write the frames as a GIF that repeats, with one small palette for all; the last frame stays longest."""
    palette = Image.new("P", (1, 1))
    palette.putpalette([int(colour[i : i + 2], 16) for colour in PALETTE for i in (1, 3, 5)])
    flat = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [FRAME_MS] * (len(flat) - 1) + [LAST_MS]
    try:
        flat[0].save(path, save_all=True, append_images=flat[1:], duration=times, loop=0, optimize=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --output") from error


if __name__ == "__main__":
    sys.exit(cli.run_script(main, AnimateOptions))
