"""Figures of the heads: where they look, and what is lost without them. Each title states what the numbers say."""

from collections.abc import Mapping, Sequence

import numpy as np
from lens_measures import Example, Measures  # beside this script
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jaxcalc import lens
from jaxcalc.runs import style
from jaxcalc.tasks.tokenizer import EQUALS, PAD

Looks = tuple[float, str, str, str]
"""A share of attention, the head, who looks, and at what."""


def question(example: Example) -> Figure:
    """Draw where each head looks for one question."""
    words = example["words"]
    asked = [index for index, word in enumerate(words) if word != PAD]
    heads = {head: np.array(pattern)[asked] for head, pattern in example["attention"].items()}
    caption = (
        "Each square: the share, in %, of a word's attention (row) that goes to a word (column); a row adds up to 100. "
        "A word sees itself and what stands before it, so the upper right is empty; <pad> fills up short questions. "
        "The framed row says the answer's first word. Control: there no head of an untrained model gives more than "
        f"{100 * example['untrained']:.0f} % to one word."
    )
    rows = [words[index] for index in asked]
    return head_panels(most_looked_at(example), caption, heads, rows, words, framed=rows.index(EQUALS))


def most_looked_at(example: Example) -> str:
    """Say which head looks most at one word when the answer's first word is due."""
    words = example["words"]
    due = words.index(EQUALS)
    looks = [(pattern[due][key], head) for head, pattern in example["attention"].items() for key in range(due)]
    share, head = max(looks)
    word = words[example["attention"][head][due].index(share)]
    asked = " ".join(word for word in words[:due] if word != PAD)
    return f'"{asked}": when the answer is due, {head} looks at "{word}" ({100 * share:.0f} %)'


def attention(found: Measures, blank: Measures) -> Figure:
    """Draw where each head looks on average, by what the words are."""
    names: list[str] = list(lens.ROLES)
    kept = [index for index, role in enumerate(names) if role != "start"]
    heads = {head: np.array(shares)[kept] for head, shares in found["attention"].items()}
    share, head, query, key = strongest(found["attention"], ("equals", "answer"))
    control = strongest(blank["attention"], ("equals", "answer"))[0]
    caption = (
        "Each square: the mean share, in %, of the attention of one kind of word (row) that goes to another (column), "
        "over the whole table of problems; the start is what fills up short questions. The framed row says the "
        "answer's first word. Control: no head of an untrained model gives more than "
        f'{100 * control:.0f} % from "equals" or the answer to one kind of word.'
    )
    title = f'On average {head} gives {100 * share:.0f} % of the attention of "{query}" to the {key}'
    rows = [names[index] for index in kept]
    return head_panels(title, caption, heads, rows, names, framed=rows.index("equals"))


def strongest(heads: Mapping[str, Sequence[Sequence[float]]], queries: Sequence[str]) -> Looks:
    """Return the largest share of attention that a query of some roles gives to one other role."""
    return max(
        (heads[head][lens.ROLES.index(query)][index], head, query, key)
        for head in heads
        for query in queries
        for index, key in enumerate(lens.ROLES)
        if key != query
    )


def head_panels(
    title: str, caption: str, heads: Mapping[str, np.ndarray], rows: list[str], columns: list[str], framed: int
) -> Figure:
    """Draw the attention of every head, block by block: who looks, in rows, at what, in columns."""
    n_blocks = len({head.split(" head ")[0] for head in heads})
    n_heads = -(-len(heads) // n_blocks)
    figure = style.new_figure(title, caption, height=1 + 2.6 * n_blocks, width=max(style.WIDTH, 0.6 + 1.9 * n_heads))
    grid = figure.subplots(n_blocks, n_heads, sharex=True, sharey=True, squeeze=False)
    image = None
    for axes, (head, shares) in zip(grid.flat, heads.items(), strict=False):
        image = style.table(axes, 100 * shares, rows, columns, least=9.5, vmin=0, vmax=100)
        axes.set_title(head, loc="left", fontsize=9.5, color=style.INK)
        place = (-0.5, framed - 0.5), len(columns), 1
        axes.add_patch(Rectangle(*place, fill=False, edgecolor=style.OTHER, linewidth=1.6, clip_on=False, zorder=5))
    for axes in grid[:, 0]:
        axes.set_ylabel("who looks", fontsize=8.5, color=style.MUTED)
    for axes in grid[-1]:
        axes.set_xlabel("at what", fontsize=8.5, color=style.MUTED)
    style.colour_bar(figure, image, grid, "attention (%)")
    return figure


def ablation(found: Measures, blank: Measures) -> Figure:
    """Draw what each operation loses without each head."""
    names, lost = list(found["exact_match"]), found["lost_without_head"]
    most, head, name = max((row[name], head, name) for head, row in lost["mean"].items() for name in row)
    control = max(max(row.values()) for costs in blank["lost_without_head"].values() for row in costs.values())
    caption = (
        "Each square: how many points of exact match an operation (column) loses when one head (row) says what it says "
        "on average (left) or nothing (right). Controls: the other heads; an untrained model loses at most "
        f"{100 * control:.0f} points."
    )
    title = f'Without {head}, "{name}" loses {100 * most:.0f} points of exact match'
    figure = style.new_figure(title, caption, height=1.4 + 0.32 * len(lost["mean"]))
    grid = figure.subplots(1, 2, sharey=True)
    image = None
    for axes, kind in zip(grid, ("mean", "zero"), strict=True):
        values = 100 * np.array([[row[name] for name in names] for row in lost[kind].values()])
        image = style.table(axes, values, list(lost[kind]), names, vmin=0, vmax=100)
        axes.set_title(
            f"the head says {'the average' if kind == 'mean' else 'nothing'}", loc="left", fontsize=9.5, color=style.INK
        )
    style.colour_bar(figure, image, grid, "points lost")
    return figure
