"""The one style of all figures (host): light, safe for the colour-blind, and sharp on screens."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.runs.files import PathLike, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"plus": "#4477aa", "minus": "#66ccee", "times": "#ee6677", "divided by": "#ccbb44"}
"""Each operation's colour, the same in every figure (Paul Tol's "bright", safe for the colour-blind)."""
INK, MUTED, PALE = "#222222", "#5c6370", "#e4e6ea"
"""Titles and labels; captions and axes; what only helps the eye."""
MAIN, OTHER, CONTROL = "#4477aa", "#ee6677", "#8a8f98"
"""What a figure is about; what it is compared with; the control."""
HEAT = "Blues"
"""The map of colours of a table: nothing is pale, and much is dark."""
WIDTH = 8.3
"""Inches: the width of a page of text."""
SUFFIXES = (".png", ".svg", ".pdf")
"""The formats of a figure."""
DPI = 200
"""Dots per inch of a PNG: twice what a page shows, for sharp screens."""


def new_figure(title: str, caption: str, height: float, width: float = WIDTH) -> "Figure":
    """Return an empty figure whose title says what is found, and whose caption says what is seen and its control.

    Sizes are in inches. Both texts are wrapped to the width.
    """
    from matplotlib.figure import Figure  # slow to import, and most of a run needs no figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    title, caption = (
        textwrap.fill(text.replace(" %", "\N{NO-BREAK SPACE}%"), int(width * letters_per_inch))
        for text, letters_per_inch in ((title, 9.7), (caption, 15.3))
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold", color=INK)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color=MUTED)
    return figure


def check_path(path: Path) -> None:
    """Raise `InputError` if a figure cannot be written to a path, before it takes long to draw."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} cannot be a figure; its name must end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")


def save(figure: "Figure", path: PathLike) -> None:
    """Write a figure whole or not at all, in the format that the path's suffix names.

    Raises `InputError` if it cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, format=Path(path).suffix[1:])
    write_whole(path, [drawn.getvalue()])


def plain(axes: "Axes", title: str = "") -> None:
    """Give axes a title, a faint grid and no frame."""
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(CONTROL)
    axes.tick_params(which="both", labelsize=8, color=CONTROL, labelcolor=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(fontsize=8.5, color=INK)


def table(
    axes: "Axes",
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    decimals: int = 0,
    least: float = 0.5,
    **settings: Any,
) -> Any:
    """Draw a table of numbers as colours, and return the image for a colour bar.

    Args:
      least: a cell shows its number only from this size on.
      settings: of matplotlib's imshow, such as vmin and vmax.
    """
    image = axes.imshow(values, aspect="auto", cmap=HEAT, **settings)
    for (row, column), value in np.ndenumerate(values):
        if abs(value) >= least:
            red, green, blue, _ = image.cmap(image.norm(value))
            colour = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.55 else INK
            axes.text(column, row, f"{value:.{decimals}f}", ha="center", va="center", fontsize=7.5, color=colour)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
    axes.grid(which="minor", color=PALE, linewidth=0.8)
    axes.tick_params(labelsize=8, color=CONTROL, labelcolor=INK)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color(CONTROL)
    return image


def colour_bar(figure: "Figure", image: Any, axes: Any, label: str, ticks: Sequence[float] | None = None) -> None:
    """Add a colour bar that says what the colours of `axes` mean."""
    bar = figure.colorbar(image, ax=axes, aspect=35, pad=0.02, ticks=ticks, format=None if ticks is None else "%g")
    bar.set_label(label, fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=8, color=CONTROL, labelcolor=INK)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
