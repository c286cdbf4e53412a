"""python experiments/landscape.py runs/calculator

Draws the hills and valleys that training walks through, in half a minute on two cores: the loss along the run's own
path, and the loss along one gradient at a wrong answer, where a step can be too small, right or too large.

python experiments/landscape.py runs/calculator "seven times eight" --step 180
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TypedDict

import jax
import jax.numpy as jnp
import landscape_figures  # beside this script
import numpy as np
import tyro

import jaxcalc
from jaxcalc import landscape
from jaxcalc.errors import InputError
from jaxcalc.runs import cli, style
from jaxcalc.runs.asking import next_word
from jaxcalc.runs.text import percent, wrapped

BATCH = 256
"""Problems on which the loss along the path is measured; fewer in a run of smaller batches."""
GRID = 33
"""Points of the plane on each side."""
RATES = np.logspace(-6, 1, 141)
"""Learning rates along the gradient."""


@dataclasses.dataclass(frozen=True)
class LandscapeOptions:
    """Draw the loss along a run's own path, and along one gradient at a wrong answer."""

    run: tyro.conf.Positional[Path]
    """Run folder, as train.py leaves it."""
    question: tyro.conf.Positional[str] = "two plus three"
    """The question whose gradient is followed."""
    step: int | None = None
    """The snapshot at which the gradient is taken; the newest with a wrong answer if left out."""
    out: Path | None = None
    """Folder for the figures; the run's folder landscape if left out."""
    json: bool = False
    """Print one JSON object."""


class PathLoss(TypedDict):
    """The loss on the plane nearest to a run's snapshots."""

    steps: list[int]
    path: list[list[float]]
    """x and y of each snapshot, as distances between weights."""
    losses: list[float]
    """The loss of each snapshot itself, which lies beside the plane."""
    shares: list[float]
    """The share of the snapshots' variance along x and along y."""
    xs: list[float]
    ys: list[float]
    grid: list[list[float]]
    """The loss at each y and x."""


class Stride(TypedDict):
    """One step along the gradient."""

    name: str
    rate: float
    loss: float
    says: str
    """The likeliest word after the step."""


class GradientLoss(TypedDict):
    """The loss on one word along its negative gradient."""

    question: str
    step: int
    says: str
    target: str
    before: float
    rates: list[float]
    losses: list[float]
    strides: list[Stride]


def main(options: LandscapeOptions) -> int:
    run = jaxcalc.load_run(options.run)
    folder = run.path / "landscape" if options.out is None else options.out
    gradient = along_gradient(run, options.question, options.step)
    path = along_path(run)
    figures = {"path": landscape_figures.path(path), "gradient": landscape_figures.gradient(gradient)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            style.save(figure, folder / f"{name}.png")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
    if options.json:
        print(json.dumps({"path": path, "gradient": gradient}, ensure_ascii=False))
    else:
        print_strides(gradient)
        print(f"\nThe plane through the snapshots holds {percent(sum(path['shares']))} of the path's variance.")
        print(f"Figures: {', '.join(f'{name}.png' for name in figures)} in {folder}")
    return 0


def along_path(run: jaxcalc.Run) -> PathLoss:
    """Return the loss on the plane nearest to a run's snapshots, on a batch of its training problems."""
    if len(run.steps) < 3:
        raise InputError(f"{run.path} has {len(run.steps)} snapshots, and a plane needs three; train with --snapshots")
    snapshots = [run.at(step) for step in run.steps]
    plane = landscape.path_plane(snapshots)
    schedule = run.config.schedule
    batch = jaxcalc.batch_at(run.task, seed=schedule.seed, step=0, size=min(BATCH, schedule.batch_size))
    loss = jax.jit(jaxcalc.loss)
    sides = [around(np.asarray(plane.path)[:, axis]) for axis in (0, 1)]
    grid = landscape.loss_on(plane, *map(jnp.asarray, sides), batch)
    return {
        "steps": run.steps,
        "path": np.asarray(plane.path).tolist(),
        "losses": [float(loss(snapshot, batch)) for snapshot in snapshots],
        "shares": np.asarray(plane.shares).tolist(),
        "xs": sides[0].tolist(),
        "ys": sides[1].tolist(),
        "grid": np.asarray(grid).tolist(),
    }


def around(values: np.ndarray) -> np.ndarray:
    """Return points from below the lowest value to above the highest, as float32."""
    margin = 0.25 * np.ptp(values)
    return np.linspace(values.min() - margin, values.max() + margin, GRID, dtype=np.float32)


def along_gradient(run: jaxcalc.Run, question: str, step: int | None) -> GradientLoss:
    """Return the surprise at the first word of a question's answer along its negative gradient."""
    batch = next_word(run.task, question)
    target = int(batch.tokens[0, -1])
    likeliest = jax.jit(lambda params: jaxcalc.apply(params, batch.tokens[:, :-1], last=1)[0, 0].argmax())
    if step is None:
        wrong = (at for at in reversed(run.steps) if int(likeliest(run.at(at))) != target)
        step = next(wrong, None)
        if step is None:
            raise InputError(f"every snapshot of {run.path} answers {question!r} right; choose one with --step")
    params = run.at(step)
    before, grads = jax.jit(jax.value_and_grad(jaxcalc.loss))(params, batch)
    downhill = jax.tree.map(jnp.negative, grads)
    losses = np.asarray(landscape.loss_along(params, downhill, jnp.asarray(RATES, jnp.float32), batch))
    strides: list[Stride] = []
    for name, index in three_strides(float(before), losses).items():
        rate = float(RATES[index])
        moved = jax.tree.map(lambda p, d, rate=rate: p + rate * d, params, downhill)
        says = run.task.tokenizer.token(int(likeliest(moved)))
        strides.append({"name": name, "rate": rate, "loss": float(losses[index]), "says": says})
    return {
        "question": question,
        "step": step,
        "says": run.task.tokenizer.token(int(likeliest(params))),
        "target": run.task.tokenizer.token(target),
        "before": float(before),
        "rates": RATES.tolist(),
        "losses": losses.tolist(),
        "strides": strides,
    }


def three_strides(before: float, losses: np.ndarray) -> dict[str, int]:
    """Return where along ascending rates a step is too small, right and, if there is such a rate, too large.

    The right one is at the bottom of the first valley, after which the loss regains half of what it fell. Too small
    falls by at most a tenth of that. Too large is where the loss, on its way up, is twice what it was before, or
    highest.
    """
    lowest = np.minimum.accumulate(losses)
    regained = np.flatnonzero(losses - lowest >= (before - lowest) / 2)
    end = int(regained[0]) if regained.size else len(losses)
    if not (losses[:end] < before).any():
        raise InputError("the loss rises from the first step on: this is no direction downhill")
    right = int(losses[:end].argmin())
    shorter = np.flatnonzero(losses[: right + 1] >= before - 0.1 * (before - losses[right]))
    found = {"too small": int(shorter[-1]) if shorter.size else 0, "right": right}
    if regained.size:
        lower = np.flatnonzero(losses[end:] < losses[right])  # another valley
        rise = losses[end : end + int(lower[0]) if lower.size else None]
        found["too large"] = end + int((rise >= 2 * before).argmax() or rise.argmax())
    return found


def print_strides(found: GradientLoss) -> None:
    """Print what the three steps along the gradient lead to."""
    p = percent(float(np.exp(-found["before"])))
    asked = f"{found['question']} equals → {found['says']}"
    print(wrapped(f"{asked}, at step {found['step']:,}; right is {found['target']}"))
    print(f"before the step:             {found['before']:7.4f} nats, p({found['target']}) = {p}")
    for stride in found["strides"]:
        p = percent(float(np.exp(-stride["loss"])))
        print(
            f"{stride['name']:<9}  rate {stride['rate']:<11.3g} {stride['loss']:7.4f} nats, p = {p}: {stride['says']}"
        )


if __name__ == "__main__":
    sys.exit(cli.run_script(main, LandscapeOptions))
