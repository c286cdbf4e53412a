"""The figures of landscape.py. A caption says what is seen, and what the picture leaves out."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from jaxcalc.runs import style

if TYPE_CHECKING:
    from landscape import GradientLoss, PathLoss

DARK, GREY, BLUE, RED = "#222222", "#777777", "#4477aa", "#cc3311"
STRIDES = {"too small": "#cc7722", "right": "#117733", "too large": "#aa3377"}
HALO = [withStroke(linewidth=2.5, foreground="white")]
LEVELS = np.array([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100])
"""The contours, in nats."""
CHANCES = (0.99, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001, 0.0001)
"""The probabilities beside the axis of surprise."""


def share(part: float) -> str:
    """Return a share in %, with a decimal where it is near 0 or 1."""
    if part < 0.001:
        return "<0.1 %"
    return f"{100 * part:.0f} %" if 0.01 <= part <= 0.99 else f"{min(100 * part, 99.9):.1f} %"


def chance(nats: float) -> str:
    """Return the probability of the right word at a surprise: 0.06 nats are 94 %."""
    return share(float(np.exp(-nats)))


def path(found: "PathLoss") -> Figure:
    """Draw the loss on the plane nearest to the snapshots, and the way of the run across it."""
    figure = style.new_figure(
        "Training walks downhill, from a guess into a valley",
        "Each point of the map is a model, coloured by its surprise on some training problems. The map is the plane "
        f"nearest to all snapshots (PCA of the weights); it holds {share(sum(found['shares']))} of the path's "
        "variance. The snapshots lie beside it, so each dot has the colour of its own loss. PCA bends every long "
        "path: the bend says little, the depth says much.",
        height=6.6,
    )
    axes = figure.subplots()
    grid = np.array(found["grid"])
    start = max(int(np.searchsorted(LEVELS, grid.min())) - 1, 0)
    levels = LEVELS[start : int(np.searchsorted(LEVELS, np.percentile(grid, 98))) + 1]
    colours = {"norm": LogNorm(levels[0], levels[-1]), "cmap": "Blues_r"}
    grid = np.clip(grid, levels[0], levels[-1])
    filled = axes.contourf(found["xs"], found["ys"], grid, levels=levels, **colours)
    axes.contour(found["xs"], found["ys"], grid, levels=levels, colors="white", linewidths=0.6)
    xs, ys = np.array(found["path"]).T
    axes.plot(xs, ys, color=RED, linewidth=2)
    axes.scatter(xs, ys, c=found["losses"], edgecolors=RED, linewidths=1.8, s=60, zorder=3, **colours)
    label_steps(axes, found["steps"], np.c_[xs, ys], found["losses"])
    bar = figure.colorbar(filled, ax=axes, ticks=levels, pad=0.02, shrink=0.8)
    bar.ax.set_yticklabels([f"{level:g}  ({chance(level)})" for level in levels])
    bar.set_label("surprise in nats (probability of the right word)")
    axes.set_aspect("equal")
    axes.set_xlabel(f"distance between weights, first direction ({share(found['shares'][0])} of the variance)")
    axes.set_ylabel(f"second direction ({share(found['shares'][1])})")
    return figure


def label_steps(axes: Axes, steps: list[int], points: np.ndarray, losses: list[float]) -> None:
    """Write its step beside each point, where there is room, and the loss beside the first and the last."""
    gap, middle = 0.12 * np.ptp(points, axis=0).max(), points.mean(axis=0)
    ends, labelled = (0, len(steps) - 1), []
    for index in (*ends, *range(1, len(steps) - 1)):
        if any(np.linalg.norm(points[index] - other) < gap for other in labelled):
            continue
        labelled.append(points[index])
        nats = f"{losses[index]:.2f}" if losses[index] >= 0.01 else "<0.01"
        text = f"step {steps[index]:,}: {nats} nats" if index in ends else f"{steps[index]:,}"
        away = np.sign(points[index] - middle)
        right = index == 0 or (away[0] > 0 and index not in ends)
        axes.annotate(
            text,
            points[index],
            (9 if right else -9, 7 * away[1]),
            textcoords="offset points",
            ha="left" if right else "right",
            va="bottom" if away[1] > 0 else "top",
            color=DARK,
            weight="bold",
            path_effects=HALO,
        )


def gradient(found: "GradientLoss") -> Figure:
    """Draw the surprise at the right word against the size of a step along its negative gradient."""
    strides, target = found["strides"], found["target"]
    last = "No step drawn is too large for this one word; what it does to other questions is not drawn."
    names = [stride["name"] for stride in strides]
    if "too large" in names:
        last = "It says which way is down just here: a step too long lands where the ground has risen."
    figure = style.new_figure(
        f"One step downhill can be {', '.join(names[:-1])} or {names[-1]}",
        "Each point of the line is one step of plain gradient descent, weights − learning rate × gradient, from the "
        f"model of step {found['step']:,}, which says “{found['says']}” after “{found['question']} equals”. The "
        f"gradient is that of one word. {last}",
        height=5.6,
    )
    axes = figure.subplots()
    rates, losses = np.array(found["rates"]), np.array(found["losses"])
    low, high = strides[0]["rate"] / 8, strides[-1]["rate"] * 4
    shown = (rates >= low) & (rates <= high)
    top = 1.35 * max(found["before"], *(stride["loss"] for stride in strides))
    axes.axhline(found["before"], color=GREY, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"before the step: says “{found['says']}”, p({target}) {chance(found['before'])}",
        (0.56, found["before"]),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="center",
        color=GREY,
        path_effects=HALO,
    )
    axes.plot(rates[shown], losses[shown], color=BLUE, linewidth=2.4)
    right = next(stride["rate"] for stride in strides if stride["name"] == "right")
    for stride in strides:
        name, rate = stride["name"], stride["rate"]
        colour, times = STRIDES[name], max(rate / right, right / rate)
        length = "" if name == "right" else f"\n{times:,.0f} × {'shorter' if rate < right else 'longer'}"
        text = f"{name}{length}\nsays “{stride['says']}”\np({target}) {chance(stride['loss'])}"
        axes.plot(rate, stride["loss"], "o", color=colour, markersize=10)
        text_style = {"ha": "center", "va": "bottom", "color": colour, "weight": "bold", "path_effects": HALO}
        offset = {"too small": (0, 18), "right": (-8, 12), "too large": (0, -14)}[name]
        if name == "too large":
            is_high = stride["loss"] > 1.4 * found["before"]
            offset = (-12, 0) if is_high else offset
            text_style |= {"ha": "right"} if is_high else {"va": "top"}
        axes.annotate(text, (rate, stride["loss"]), offset, textcoords="offset points", **text_style)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(-0.05 * top, top)
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:.7f}".rstrip("0").rstrip("."))
    axes.set_xlabel("learning rate (how long the step is; each mark is ten times the one before)")
    axes.set_ylabel(f"surprise at “{target}” (nats)")
    chances = axes.secondary_yaxis("right")
    kept = [part for part in CHANCES if -np.log(part) < top]
    chances.set_yticks([-np.log(part) for part in kept], [share(part) for part in kept])
    chances.set_ylabel(f"probability of “{target}”")
    axes.spines["top"].set_visible(False)
    return figure
