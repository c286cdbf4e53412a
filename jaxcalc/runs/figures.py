"""Figures of a run (host)."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxcalc.runs import style
from jaxcalc.runs.files import PathLike


def learning_curve(path: PathLike, lines: Sequence[Mapping[str, Any]], watched: str, batch_size: int) -> None:
    """Write a figure of the loss at every step and of exact match by operation wherever it was measured.

    Args:
      lines: the lines of metrics.jsonl, each with "step" and either "loss" in nats or "by_operation" in shares.
      watched: which problems the shares are about, such as "held-out", for the title.
      batch_size: examples per step, for the axis of examples seen.
    """
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    checks = [line for line in lines if "by_operation" in line]
    seen = f"Above: the loss on each training batch. Below: whole answers right, on {watched} problems."
    figure = style.new_figure("Loss and right answers over training", seen, height=5.6)
    above, below = figure.subplots(2, 1, sharex=True)
    above.semilogy(list(losses), list(losses.values()), linewidth=0.6, color=style.MAIN)
    above.set_ylabel("surprise per answer token (nats)")
    steps = [check["step"] for check in checks]
    for operation in checks[0]["by_operation"] if checks else ():
        if checks[0]["by_operation"][operation] is None:
            continue  # a small table may hold out no problem of an operation
        shares = [100 * check["by_operation"][operation] for check in checks]
        below.plot(steps, shares, marker=".", label=operation, color=style.COLOURS.get(operation))
    below.set_ylim(-2, 102)
    below.set_ylabel("exact match (%)")
    below.set_xlabel("training step")
    if checks:
        below.legend(loc="lower right", frameon=False, fontsize=8.5)
    style.plain(above, "Loss")
    style.plain(below, "Right answers")
    examples = above.secondary_xaxis("top", functions=(lambda step: step * batch_size, lambda n: n / batch_size))
    examples.set_xlabel(f"examples seen (step × {batch_size:,})", fontsize=8.5, color=style.INK)
    examples.tick_params(labelsize=8, color=style.CONTROL, labelcolor=style.INK)
    examples.xaxis.set_major_formatter("{x:,.0f}")
    below.xaxis.set_major_formatter("{x:,.0f}")
    style.save(figure, path)
