"""The figures of lens.py. Each title states the finding, from the numbers drawn."""

from pathlib import Path
from typing import Any

import numpy as np
from lens_measures import Example, History, Measures, Surroundings, Swap  # beside this script
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcalc import lens
from jaxcalc.runs.style import COLOURS
from jaxcalc.tasks.tokenizer import EQUALS, PAD


def draw(
    folder: Path,
    example: Example,
    found: Measures,
    blank: Measures,
    history: History | None,
    surroundings: Surroundings | None,
) -> list[str]:
    """Write every figure as PNG and SVG and return their names."""
    drawings = {
        "question": question(example),
        "attention": attention(found),
        "ablation": ablation(found),
        "probes": probes(found, blank),
        "numbers": numbers(found),
        "output": output(found),
    }
    if found["swap"]:
        drawings["operation"] = operation(found, found["swap"])
    if history:
        drawings["learning"] = learning(history)
    if surroundings:
        drawings["landscape"] = loss_lines(surroundings)
    for name, figure in drawings.items():
        figure.savefig(folder / f"{name}.png", dpi=110)
        figure.savefig(folder / f"{name}.svg")
    return list(drawings)


def short(site: str) -> str:
    """Return the short name of a residual site, for an axis: "blocks.0.mlp.residual" → "mlp 0"."""
    parts = site.split(".")
    return "embed" if parts[0] == "embed" else f"{parts[2]} {parts[1]}"


def grid(axes: Axes, values: np.ndarray, rows: list[str], columns: list[str], decimals: int, **settings: Any) -> Any:
    """Draw a table of numbers as colours, with each number in its cell."""
    values = np.round(values, decimals) + 0.0  # no −0
    image = axes.imshow(values, aspect="auto", **settings)
    low, high = image.get_clim()
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap((value - low) / ((high - low) or 1))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        colour = "w" if dark else "k"
        axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    return image


def heading(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=11)


def plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def head_panels(heads: dict[str, np.ndarray], rows: list[str], columns: list[str]) -> Figure:
    """Draw the attention of every head in %, block by block: who looks, in rows, at what, in columns."""
    n_blocks = len({name.split(".")[0] for name in heads})
    n_heads = -(-len(heads) // n_blocks)
    figure = Figure(figsize=(3.1 * n_heads + 1, 3.2 * n_blocks + 0.5), layout="constrained")
    panels = np.ravel(figure.subplots(n_blocks, n_heads))
    for index, (axes, (head, shares)) in enumerate(zip(panels, heads.items(), strict=False)):
        labels = [""] * len(rows) if index % n_heads else rows
        grid(axes, 100 * shares, labels, columns, decimals=0, vmin=0, vmax=100, cmap="cividis")
        axes.set_title(f"head {head}", loc="left", fontsize=9)
    figure.supxlabel("looked at", fontsize=9)
    figure.supylabel("looking", fontsize=9)
    return figure


def question(example: Example) -> Figure:
    words, heads = example["words"], {head: np.array(pattern) for head, pattern in example["attention"].items()}
    figure = head_panels(heads, words, words)
    due = words.index(EQUALS)
    looks = [(pattern[due, key], head, words[key]) for head, pattern in heads.items() for key in range(due + 1)]
    share, head, word = max(looks)
    text = " ".join(word for word in words[: due + 1] if word != PAD)
    first = f'for the answer\'s first word head {head} looks at "{word}" with {100 * share:.0f} %'
    heading(figure, f'Attention in %, "{text} …": {first}')
    return figure


def attention(found: Measures) -> Figure:
    heads = {head: np.array(shares) for head, shares in found["attention"].items()}
    kept = [index for index, role in enumerate(lens.ROLES) if role != "start"]
    names: list[str] = list(lens.ROLES)
    figure = head_panels({head: shares[kept] for head, shares in heads.items()}, [names[i] for i in kept], names)
    looks = [
        (share, head, query, key)
        for head, shares in heads.items()
        for query in ("equals", "answer")
        for share, key in zip(shares[names.index(query)], names, strict=True)
    ]
    share, head, query, key = max(looks)
    most = f'"{query}" looks at "{key}" with {100 * share:.0f} % in head {head}'
    heading(figure, f"Where each head looks, in % of a row's attention: {most}")
    return figure


def ablation(found: Measures) -> Figure:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, (kind, costs) in zip(figure.subplots(1, 2), found["lost_without_head"].items(), strict=True):
        names = list(found["exact_match"])
        values = 100 * np.array([[row[name] for name in names] for row in costs.values()])
        grid(axes, values, [f"head {head}" for head in costs], names, decimals=0, vmin=0, vmax=100, cmap="cividis")
        axes.set_title(f"{kind} replaces what the head mixes", loc="left", fontsize=9)
    costs = found["lost_without_head"]["mean"]
    lost, head, name = max((row[name], head, name) for head, row in costs.items() for name in row)
    heading(figure, f'Points of exact match lost without a head: at most {100 * lost:.0f} ("{name}" without {head})')
    return figure


def probes(found: Measures, blank: Measures) -> Figure:
    figure = Figure(figsize=(10, 6), layout="constrained")
    sites = [short(site) for site in found["stages"]]
    rows = figure.subplots(2, 4, sharex=True, sharey=True)
    probed = [
        ("number", found["number_probes"], blank["number_probes"]),
        ("answer", found["answer_probes"], blank["answer_probes"]),
    ]
    for axes_row, (where, trained, untrained) in zip(rows, probed, strict=True):
        for axes, (name, scores) in zip(axes_row, trained.items(), strict=True):
            axes.plot(sites, scores["score"], marker="o", color="#4477aa", label="this model")
            axes.plot(sites, untrained[name]["score"], marker="s", color="#ccbb44", label="untrained")
            axes.plot(sites, scores["shuffled"], linestyle=":", color="#666666", label="shuffled labels")
            axes.set_title(f"{where}: {name}" + (" (R²)" if name == "magnitude" else ""), loc="left", fontsize=9)
            axes.set_ylim(-0.45, 1.05)
            axes.tick_params("x", rotation=45)
            plain(axes)
    rows[0][1].legend(frameon=False, fontsize=8, loc="center right")
    rows[0][0].set_ylabel("read at its last word")
    rows[1][0].set_ylabel('read at "equals"')
    final = {name: scores["score"][-1] for name, scores in found["answer_probes"].items() if name != "magnitude"}
    read = ", ".join(f"{name} {value:.0%}" for name, value in final.items())
    heading(figure, f"What a linear probe reads from the stream (share right); the answer at the end: {read}")
    return figure


def numbers(found: Measures) -> Figure:
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    last = len(found["stages"]) - 1
    for column, stage in enumerate((0, last)):
        points = np.array(found["pca"][stage])
        value = np.arange(len(points))
        colourings = ((value, "number", "viridis"), (value % 10, "ones digit", "twilight"))
        for row, (colour, label, cmap) in enumerate(colourings):
            image = axes[row, column].scatter(*points.T, c=colour, cmap=cmap, s=14)
            share = sum(found["pca_variance"][stage])
            title = f"after {short(found['stages'][stage])}, by {label} ({share:.0%} of variance)"
            axes[row, column].set_title(title, loc="left", fontsize=9)
            axes[row, column].set_xlabel("principal component 1", fontsize=8)
            axes[row, column].set_ylabel("principal component 2", fontsize=8)
            figure.colorbar(image, ax=axes[row, column], label=label)
    image = axes[0, 2].imshow(found["distances"], cmap="cividis")
    axes[0, 2].set_title("distance between two numbers, last stage", loc="left", fontsize=9)
    figure.colorbar(image, ax=axes[0, 2], label="distance")
    power = 100 * np.array(found["fourier"][last])
    axes[1, 2].bar(1 + np.arange(len(power)), power, color="#4477aa")
    shuffled = 100 * found["fourier_shuffled"][last]
    axes[1, 2].axhline(shuffled, color="#666666", linestyle=":", label="largest, in random order")
    n = len(found["distances"])
    top = np.argsort(-power)[:3]
    for k in top:
        axes[1, 2].annotate(f"{n / (k + 1):.3g}", (k + 1, power[k]), ha="center", va="bottom", fontsize=8)
    axes[1, 2].set_xlabel(f"cycles in 0 … {n - 1} (marked: period)", fontsize=8)
    axes[1, 2].set_ylabel("variance (%)", fontsize=8)
    axes[1, 2].legend(frameon=False, fontsize=8)
    plain(axes[1, 2])
    periods = ", ".join(f"{n / (k + 1):.3g} ({power[k]:.0f} %)" for k in top)
    heading(figure, f"The numbers in the stream repeat with periods {periods}")
    return figure


def operation(found: Measures, swap: Swap) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    sites = [short(site) for site in found["stages"]]
    changes = np.array(swap["change_in_log_prob"])
    image = grid(left, changes, sites, list(lens.ROLES[:-1]), decimals=1, cmap="cividis")
    figure.colorbar(image, ax=left, label="change in ln p of the right answer (nats)")
    left.set_title(f"stream from the {swap['to']!r} question, by place and stage", loc="left", fontsize=9)
    colours = {"operation": "#4477aa", "equals": "#ee6677"}
    for name, shares in swap["turned"].items():
        for (direction, values), style in zip(shares.items(), ("-", ":"), strict=True):
            added = "random" if direction == "random" else f"{swap['to']} − {swap['from']}"
            label = f"{added} at {name!r}"
            right.plot(sites, 100 * np.array(values), marker="o", color=colours[name], linestyle=style, label=label)
    right.set_title("answers turned by a direction (%)", loc="left", fontsize=9)
    right.set_ylim(-3, 103)
    right.tick_params("x", rotation=45)
    right.legend(frameon=False, fontsize=8)
    plain(right)
    place = lens.ROLES.index("operation")
    costs = [f"{abs(changes[stage, place]):.1f}" for stage in (0, 1, -1)]
    swapped = f"{costs[0]} nats at the embedding, {costs[1]} after attention 0, {costs[2]} at the end"
    heading(figure, f"What {swap['from']!r} means: a swap at the operation costs {swapped}")
    return figure


def output(found: Measures) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    sites = [short(site) for site in found["stages"]]
    by_stage = np.array(found["p_right_by_stage"])
    styles = zip(by_stage.T, ("#4477aa", "#ee6677", "#228833", "#ccbb44"), "os^d", strict=False)
    for index, (values, colour, marker) in enumerate(styles):
        left.plot(sites, values, marker=marker, color=colour, label=f"token {index + 1} of the answer")
    left.set_title("p(right token), read out after each stage", loc="left", fontsize=9)
    left.set_ylim(-0.03, 1.03)
    left.legend(frameon=False, fontsize=8)
    plain(left)
    parts = {name: values[0] for name, values in found["contributions"].items()}
    right.barh(list(parts), list(parts.values()), color="#4477aa")
    right.invert_yaxis()
    right.set_xlabel("logit of the answer's first word, above the mean logit")
    right.set_title("what each part writes directly; the parts add up", loc="left", fontsize=9)
    plain(right)
    best = max(parts, key=parts.__getitem__)
    heading(figure, f"Who says the word: {best} writes {parts[best]:.1f} of {sum(parts.values()):.1f}")
    return figure


def learning(history: History) -> Figure:
    table = history["snapshots"]
    steps = [max(row["step"], 1) for row in table]
    figure = Figure(figsize=(9, 8), layout="constrained")
    accuracy, readable, loss, sharp = figure.subplots(4, 1, sharex=True)
    for name in table[0]["exact_match"]:
        shares = [100 * row["exact_match"][name] for row in table]
        accuracy.plot(steps, shares, marker="o", color=COLOURS[name], label=name)
    accuracy.set_ylabel("exact match (%)")
    for name, style in zip(table[0]["answer_probes"], ("-", "--", "-.", ":"), strict=True):
        scores = [row["answer_probes"][name] for row in table]
        readable.plot(steps, scores, linestyle=style, color="#4477aa", label=name)
    readable.set_ylabel("probes of the answer")
    loss.plot(steps, [row["loss"] for row in table], marker="o", color="#4477aa")
    loss.set_ylabel("surprise (nats)")
    loss.set_yscale("log")
    errors = [row["sharpness_error"] for row in table]
    sharp.errorbar(steps, [row["sharpness"] for row in table], errors, marker="o", color="#4477aa")
    sharp.set_ylabel("sharpness")
    sharp.set_xscale("log")
    sharp.set_xlabel("training step (0 is drawn at 1)")
    for axes in (accuracy, readable):
        axes.legend(frameon=False, fontsize=8)
    for axes in figure.axes:
        plain(axes)
    order = []
    for name in table[0]["exact_match"]:
        reached = next((row["step"] for row in table if row["exact_match"][name] >= 0.9), None)
        order.append(f"{name} (" + ("not yet)" if reached is None else f"step {reached:,})"))
    heading(figure, "90 % right: " + ", ".join(order))
    return figure


def loss_lines(surroundings: Surroundings) -> Figure:
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = (("#ee6677", "-"), ("#4477aa", "--"), ("#4477aa", ":"))
    for (name, losses), (colour, style) in zip(surroundings["losses"].items(), styles, strict=True):
        axes.plot(surroundings["distances"], losses, label=name, color=colour, linestyle=style)
    axes.set_yscale("log")
    share = 1 / surroundings["step_lengths"]
    axes.set_xlabel(
        "distance, in lengths of the filter-normalised random direction 1\n"
        f"(the next step is {share:.1e} of it). Three of as many directions as there are\n"
        "weights; the curves depend on how the directions are scaled (Li et al. 2018)"
    )
    axes.set_ylabel("surprise (nats)")
    axes.legend(frameon=False)
    plain(axes)
    near = np.isclose(np.abs(surroundings["distances"]), 0.25)
    there = ", ".join(
        f"{np.mean(np.array(losses)[near]):.2g} along {name}" for name, losses in surroundings["losses"].items()
    )
    heading(figure, f"Surprise a quarter of the way: {there}")
    return figure
