"""Figures of the operations: where a model tells one from another. Each title states what the numbers say."""

import numpy as np
from lens_measures import Measures, Swap, stage_name  # beside this script
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from jaxcalc import lens
from jaxcalc.runs import style

ASKED: list[str] = list(lens.ROLES[:-1])
"""The roles of a question's words."""


def stages(axes: Axes, found: Measures, rotation: float = 45) -> None:
    """Write the stages along the x axis."""
    names = [stage_name(site) for site in found["stages"]]
    ha, mode = ("center", "default") if rotation == 90 else ("right", "anchor")
    axes.set_xticks(range(len(names)), names, rotation=rotation, ha=ha, rotation_mode=mode)


def lost(swap: Swap) -> np.ndarray:
    """Return what patching costs the right answer, in nats, by stage and role."""
    return -np.array(swap["change_in_log_prob"])


def operation(found: Measures, blank: Measures) -> Figure:
    """Draw for each operation what the right answer loses when one place comes from another operation's question."""
    swaps = found["swaps"]
    equals, place = ASKED.index("equals"), ASKED.index("operation")
    most = max(float(lost(swap).max()) for swap in swaps)
    control = max(float(lost(swap).max()) for swap in blank["swaps"])
    at_end = min(float(lost(swap)[-1, equals]) for swap in swaps)
    left = max(float(lost(swap)[1:, place].max()) for swap in swaps)
    caption = (
        "One place of the stream (column), after one stage (row), is taken from the same question with another "
        "operation. The number says how many nats ln p of the right answer loses; white: no effect. Controls: the "
        "other places, and an untrained model: there it costs "
        f"{blank['swaps'][0]['from']} at most {control:.2f} nats."
    )
    title = (
        f'The operation swapped at "equals", at the end, costs {max(at_end, 0):.0f} nats or more; at its own word, '
        f"after the embeddings, {max(left, 0):.1f} or less"
    )
    n_rows = -(-len(swaps) // 2)
    figure = style.new_figure(title, caption, height=1.6 + 2.3 * n_rows)
    grid = figure.subplots(n_rows, min(len(swaps), 2), sharex=True, sharey=True, squeeze=False)
    names = [stage_name(site) for site in found["stages"]]
    image = None
    for axes, swap in zip(grid.flat, swaps, strict=False):
        norm = PowerNorm(0.5, 0, max(most, 1), clip=True)
        image = style.table(axes, np.maximum(lost(swap), 0), names, ASKED, norm=norm)
        text = f"{swap['from']}, told {swap['to']} ({swap['n']:,} questions)"
        axes.set_title(text, loc="left", fontsize=9.5, color=style.INK)
    for axes in grid.flat[len(swaps) :]:
        axes.set_visible(False)
    ticks = [tick for tick in (0, 0.1, 1, 5, 10, 20, 40, 80) if tick <= max(most, 1)]
    style.colour_bar(figure, image, grid, "nats lost by the right answer", ticks)
    return figure


def directions(found: Measures) -> Figure:
    """Draw how many answers one direction turns into those of another operation."""
    swaps = found["swaps"]
    turned = [(swap, max(swap["turned"]["equals"]["mean difference"][1:])) for swap in swaps]
    said = ", ".join(f"{swap['from']} {100 * share:.0f} %" for swap, share in turned)
    caption = (
        "To the stream at one place, after one stage, is added the mean difference between the questions of two "
        "operations. Drawn: the share of answers that become right for the other operation. At the operation's "
        "embedding this makes the other question, so nearly all turn. Control: a random direction of the same length."
    )
    title = f'Is an operation one direction at "equals"? Turned: {said}'
    n_rows = -(-len(swaps) // 2)
    figure = style.new_figure(title, caption, height=1.9 + 1.8 * n_rows)
    grid = figure.subplots(n_rows, min(len(swaps), 2), sharex=True, sharey=True, squeeze=False)
    for axes, swap in zip(grid.flat, swaps, strict=False):
        for place, colour in (("operation", style.MAIN), ("equals", style.OTHER)):
            for kind, shares in swap["turned"][place].items():
                at_random = kind == "random"
                label = f'a random direction at "{place}"' if at_random else f'the difference at "{place}"'
                look = {"linestyle": ":", "marker": ""} if at_random else {"linestyle": "-", "marker": "o"}
                axes.plot(np.arange(len(shares)), 100 * np.array(shares), color=colour, label=label, **look)
        axes.set_ylim(-4, 104)
        stages(axes, found)
        style.plain(axes, f"{swap['from']} → {swap['to']}")
    for axes in grid.flat[len(swaps) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("answers turned (%)")
    grid[0, 0].legend(frameon=False, fontsize=8)
    return figure
