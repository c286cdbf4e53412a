"""The figures of lens.py. Each title states what the numbers say, each caption what is seen and its control."""

from pathlib import Path
from typing import Any

import numpy as np
from lens_heads import ablation, attention, question  # these modules are beside this script
from lens_measures import Example, History, Measures, NumberMap, Surroundings, stage_name
from lens_operations import directions, operation, stages
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from jaxcalc.runs import style
from jaxcalc.tasks.words import number_to_words

NAMED = (2, 3, 90)
"""The numbers that the map names in words."""
TENS = "plasma"
"""The map of colours of the tens; its palest end is left out."""


def draw(
    folder: Path,
    example: Example,
    found: Measures,
    blank: list[Measures],
    maps: list[NumberMap],
    history: History | None,
    surroundings: Surroundings | None,
) -> list[str]:
    """Write every figure as PNG and SVG and return their names."""
    control = blank[0]
    drawings = {
        "question": question(example),
        "attention": attention(found, control),
        "ablation": ablation(found, control),
        "probes": probes(found, control),
        "numbers": numbers(maps, found["stages"]),
        "periods": periods(found, control),
        "output": output(found, control),
    }
    if found["swaps"]:
        drawings["operation"] = operation(found, control)
        drawings["directions"] = directions(found)
    if history:
        drawings["learning"] = learning(history)
    if surroundings:
        drawings["landscape"] = loss_lines(surroundings)
    for name, figure in drawings.items():
        for suffix in ("png", "svg"):
            style.save(figure, folder / f"{name}.{suffix}")
    return list(drawings)


def probes(found: Measures, blank: Measures) -> Figure:
    """Draw how well linear probes read a number at its last word, and the answer where it is due."""
    final = {name: scores["score"][-1] for name, scores in found["answer_probes"].items() if name != "magnitude"}
    read = ", ".join(f"{name} {100 * value:.0f} %" for name, value in final.items())
    caption = (
        "How much a linear probe reads from the stream after each stage, on problems that it was not fitted on: the "
        "share of right labels, and R² for the magnitude (0: nothing). Controls: the same in an untrained "
        "model, and with the labels shuffled. Where the lines of both models lie together, training added nothing."
    )
    figure = style.new_figure(f'The answer, read off "equals" at the end: {read}', caption, height=5.8)
    rows = figure.subplots(2, 4, sharex=True, sharey=True)
    probed = [
        ("a number, at its last word", found["number_probes"], blank["number_probes"]),
        ('the answer, at "equals"', found["answer_probes"], blank["answer_probes"]),
    ]
    for axes_row, (where, trained, untrained) in zip(rows, probed, strict=True):
        for axes, (name, scores) in zip(axes_row, trained.items(), strict=True):
            places = np.arange(len(scores["score"]))
            axes.plot(
                places, np.maximum(scores["score"], 0), marker="o", color=style.MAIN, label="this model", zorder=3
            )
            control = np.maximum(untrained[name]["score"], 0)
            axes.plot(places, control, marker="s", color=style.OTHER, label="untrained", markersize=4)
            axes.plot(
                places, np.maximum(scores["shuffled"], 0), linestyle=":", color=style.CONTROL, label="labels shuffled"
            )
            axes.set_ylim(-0.05, 1.05)
            stages(axes, found, rotation=90)
            style.plain(axes, name + " (R²)" * (name == "magnitude"))
        axes_row[0].set_ylabel(where, fontsize=8.5)
    rows[0, 1].legend(frameon=False, fontsize=8, loc="center")
    return figure


def numbers(maps: list[NumberMap], sites: list[str]) -> Figure:
    """Draw where models put the number words and the numbers, the last model beside the first."""
    last, n = len(sites) - 1, len(maps[0]["distances"])
    low, near, far = (number if number < n else None for number in NAMED)
    title = "Where the numbers lie"
    if low is not None and near is not None and far is not None:
        *before, times = (each["distances"][low][far] / max(each["distances"][low][near], 1e-9) for each in maps)
        control = "".join(f" (untrained: {share:.1f})" for share in before)
        title = f"From two it is {times:.1f} times as far to ninety as to three, after the last stage{control}"
    caption = (
        f"Numbers that the model treats alike lie together. Above: the word of each number, after the "
        f"{stage_name(sites[0])}; the tens are coloured. Below: the numbers 0 to {n - 1} after the last stage, read at "
        "their last word, coloured by their tens. Drawn are the two directions of most variance, with their share of "
        "it in brackets. Control: the same map at step 0, on the left."
    )
    figure = style.new_figure(title, caption, height=8.6)
    grid = figure.subplots(2, len(maps), squeeze=False)
    words = [*range(min(21, n)), *range(30, n, 10)]
    image = None
    for column, each in enumerate(maps):
        for row, (stage, shown) in enumerate(((0, words), (last, range(n)))):
            axes = grid[row, column]
            image = number_cloud(axes, np.array(each["pca"][stage]), list(shown), n, in_words=row == 0)
            share = sum(each["pca_variance"][stage])
            style.plain(axes, f"{each['name']}, after {stage_name(sites[stage])} ({100 * share:.0f} %)")
            axes.spines[:].set_visible(True)
            axes.set_xticks([])
            axes.set_yticks([])
    style.colour_bar(figure, image, grid, "the number's tens")
    return figure


def number_cloud(axes: Axes, points: np.ndarray, shown: list[int], n: int, in_words: bool) -> Any:
    """Write each number at its place; return what a colour bar of the tens needs."""
    most = -(-n // 10)
    colours = colormaps[TENS](np.linspace(0, 0.78, most))
    for number in shown:
        named, coloured = number in NAMED, not in_words or (number >= 20 and number % 10 == 0)
        text = number_to_words(number) if in_words or named else str(number)
        axes.text(
            points[number, 0],
            points[number, 1],
            text,
            ha="center",
            va="center",
            fontsize=10 if named else 7.5,
            weight="bold" if named else "normal",
            color=colours[number // 10] if coloured else style.INK if named else style.CONTROL,
            zorder=3 if named else 2,
        )
    low, high = points[shown].min(axis=0), points[shown].max(axis=0)
    space = 0.08 * (high - low)
    axes.set_xlim(low[0] - space[0], high[0] + space[0])
    axes.set_ylim(low[1] - space[1], high[1] + space[1])
    return ScalarMappable(BoundaryNorm(np.arange(0, 10 * most + 1, 10), most), ListedColormap(list(colours)))


def periods(found: Measures, blank: Measures) -> Figure:
    """Draw how the numbers repeat on the number line after the last stage."""
    power, untrained = 100 * np.array(found["fourier"][-1]), 100 * np.array(blank["fourier"][-1])
    n, cycles = len(found["distances"]), 1 + np.arange(len(power))
    top = np.argsort(-power)[:3]
    named = ", ".join(f"every {n / (k + 1):.3g} ({power[k]:.0f} %)" for k in top)
    caption = (
        "Left: how far apart two numbers lie after the last stage; pale stripes ten apart mean that numbers with the "
        "same last digit are alike. Right: how much of the differences repeats, such as every ten numbers. Controls: "
        "an untrained model, and the most that repeats of the numbers in random order."
    )
    figure = style.new_figure(f"How the numbers repeat: {named}", caption, height=4.3)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    image = left.imshow(found["distances"], cmap=style.HEAT)
    style.colour_bar(figure, image, left, "distance")
    style.plain(left, "distance between two numbers")
    left.grid(visible=False)
    right.bar(cycles, power, color=style.MAIN, label="this model")
    right.plot(cycles, untrained, color=style.OTHER, linewidth=1, label="untrained")
    shuffled = 100 * found["fourier_shuffled"][-1]
    right.axhline(shuffled, color=style.CONTROL, linestyle=":", label="in random order, at most")
    for k in top:
        text = f"every {n / (k + 1):.3g}"
        right.annotate(text, (k + 1, power[k]), (0, 2), textcoords="offset points", ha="center", fontsize=8.5)
    right.set_xlabel(f"how often it repeats from 0 to {n - 1}")
    right.set_ylabel("share of the differences (%)")
    right.legend(frameon=False, fontsize=8.5)
    right.margins(y=0.1)
    style.plain(right, "what repeats")
    return figure


def output(found: Measures, blank: Measures) -> Figure:
    """Draw when the right word is ready, and who writes it."""
    parts = {name: values[0] for name, values in found["contributions"].items()}
    parts = {"embed": parts["embed"]} | parts  # it comes first
    best = max(parts, key=parts.__getitem__)
    control = max(values[0] for values in blank["contributions"].values())
    caption = (
        "Left: the probability of the right token if the output stage followed each stage directly. Right: what each "
        "part adds to the score (logit) of the answer's first word, above the mean of all words; the bars add up to "
        f"{sum(parts.values()):.1f}. Control: in an untrained model no part adds more than {control:.2f}."
    )
    title = f"Who says the word? {stage_name(best).capitalize()} writes {parts[best]:.1f} of {sum(parts.values()):.1f}"
    figure = style.new_figure(title, caption, height=4)
    left, right = figure.subplots(1, 2)
    by_stage = np.array(found["p_right_by_stage"])
    for index, (values, marker) in enumerate(zip(by_stage.T, "os^dv", strict=False)):
        colour = (style.MAIN, style.OTHER, "#228833", "#aa3377", style.INK)[index]
        label = f"token {index + 1}"
        left.plot(np.arange(len(values)), 100 * values, marker=marker, color=colour, label=label)
    left.set_ylim(-3, 103)
    left.set_ylabel("probability of the right token (%)")
    left.legend(frameon=False, fontsize=8.5)
    stages(left, found)
    style.plain(left, "when is each token of the answer ready?")
    names = [stage_name(name) for name in parts]
    right.barh(names, list(parts.values()), color=[style.MAIN if name == best else style.CONTROL for name in parts])
    right.invert_yaxis()
    right.set_xlabel("added to the score of the answer's first word")
    style.plain(right, "who writes it?")
    return figure


def learning(history: History) -> Figure:
    """Draw how right the answers are, what can be read, the loss and its sharpness over training."""
    table = history["snapshots"]
    steps = [max(row["step"], 1) for row in table]
    order = []
    for name in table[0]["exact_match"]:
        reached = next((row["step"] for row in table if row["exact_match"][name] >= 0.9), None)
        order.append(f"{name} (" + ("not yet)" if reached is None else f"step {reached:,})"))
    caption = (
        f"At each snapshot of the run, on the whole table of problems; a step sees {history['batch_size']} examples, "
        'and step 0 is drawn at 1. Probes: how well a linear probe reads the answer off the stream at "equals". '
        "Sharpness: the largest curvature of the loss. Control: step 0, on the left."
    )
    figure = style.new_figure("90 % right: " + ", ".join(order), caption, height=8.2)
    accuracy, readable, loss, sharp = figure.subplots(4, 1, sharex=True)
    for name, marker in zip(table[0]["exact_match"], "os^d" * len(table[0]["exact_match"]), strict=False):
        shares = [100 * row["exact_match"][name] for row in table]
        accuracy.plot(steps, shares, marker=marker, color=style.COLOURS[name], label=name)
    for name, linestyle in zip(table[0]["answer_probes"], ("-", "--", "-.", ":"), strict=True):
        scores = [row["answer_probes"][name] for row in table]
        readable.plot(steps, scores, linestyle=linestyle, color=style.MAIN, label=f"its {name}")
    loss.plot(steps, [row["loss"] for row in table], marker="o", color=style.MAIN)
    loss.set_yscale("log")
    errors = [row["sharpness_error"] for row in table]
    sharp.errorbar(steps, [row["sharpness"] for row in table], errors, marker="o", color=style.MAIN)
    sharp.set_ylim(bottom=0)
    sharp.set_xscale("log")
    sharp.set_xlabel("training step")
    for axes, title, unit in (
        (accuracy, "whole answers right", "%"),
        (readable, "what can be read of the answer", "share right (R²)"),
        (loss, "surprise", "nats per token"),
        (sharp, "sharpness", "eigenvalue"),
    ):
        axes.set_ylabel(unit)
        style.plain(axes, title)
    for axes in (accuracy, readable):
        axes.legend(frameon=False, fontsize=8.5)
    return figure


def loss_lines(surroundings: Surroundings) -> Figure:
    """Draw the loss along the next step and along random directions."""
    near = np.isclose(np.abs(surroundings["distances"]), 0.25)
    there = {name: np.mean(np.array(losses)[near]) for name, losses in surroundings["losses"].items()}
    step, *random = (f"{loss:.2g}" for loss in there.values())
    caption = (
        "The surprise when all weights move along one direction; 0 is the model itself, and 1 is as long as a random "
        "direction with the lengths of the weights (filter-normalised: Li et al. 2018, on which the curves depend). "
        f"The run's next step is {1 / surroundings['step_lengths']:.1e} of that. Control: the two random directions."
    )
    figure = style.new_figure(
        f"Surprise a quarter of the way: {step} along {next(iter(there))}, {' and '.join(random)} at random",
        caption,
        height=4.2,
    )
    axes = figure.subplots()
    looks = ((style.OTHER, "-"), (style.MAIN, "--"), (style.MAIN, ":"))
    for (name, losses), (colour, linestyle) in zip(surroundings["losses"].items(), looks, strict=True):
        axes.plot(surroundings["distances"], losses, label=name, color=colour, linestyle=linestyle)
    axes.set_yscale("log")
    axes.set_xlabel("distance")
    axes.set_ylabel("surprise (nats per token)")
    axes.legend(frameon=False, fontsize=8.5)
    style.plain(axes)
    return figure
