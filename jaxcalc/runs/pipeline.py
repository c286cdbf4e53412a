"""The pipeline as one picture: from text to an answer, and the shares of the blame on the way back (host)."""

from collections.abc import Mapping
from typing import Any

PARTS = ("embeddings", "attention", "feed-forward", "output")
"""The parts with weights, as `assign_blame(grads, step, "part")` names them."""


def pipeline_lines(
    question: str, answer: str, is_right: bool, shares: Mapping[str, float] | None, width: int = 80
) -> list[str]:
    """Return the picture as lines of text: the way forward, and under it, from right to left, the shares of the blame.

    Args:
      question: what stands above the picture, such as "two plus three equals ___".
      shares: those of `assign_blame(grads, step, "part")`; None where there is next to nothing to share.
      width: of the terminal, in columns. The arrows lose their spaces where the picture is wider.

    >>> shares = {"embeddings": 0.4, "attention": 0.2, "feed-forward": 0.15, "output": 0.25}
    >>> print("\\n".join(pipeline_lines("two plus three equals ___", "seven", False, shares)))
    two plus three equals ___
    text → tokens → embeddings → attention → feed-forward → output → "seven" (wrong)
      no weights  ←    40 %    ←    20 %   ←     15 %     ←  25 %  ← the blame
    """
    answered = f'"{answer}" ({"right" if is_right else "wrong"})'
    there, back = " → ", " ← "
    if sum(map(len, ("text", "tokens", *PARTS, answered))) + 6 * len(there) > width:
        there, back = "→", "←"
    tokens = f"text{there}tokens"
    forward = there.join([tokens, *PARTS, answered])
    blamed = [percent(shares, part).center(len(part)) for part in PARTS]
    rest = {} if shares is None else {name: share for name, share in shares.items() if name not in PARTS}
    lines = [question, forward, back.join(["no weights".center(len(tokens)), *blamed, "the blame"])]
    others = [f"{name} {percent(rest, name)}" for name, share in rest.items() if abs(share) >= 0.005]
    return [*lines, f"beside these: {', '.join(others)}"] if others else lines


def percent(shares: Mapping[str, float] | None, name: str) -> str:
    """Return a share as a whole percentage, or "–" if there is none."""
    return "–" if shares is None or name not in shares else f"{round(100 * shares[name])} %"


def draw_pipeline(axes: Any, question: str, answer: str, is_right: bool, shares: Mapping[str, float] | None) -> None:
    """Draw the same picture on Matplotlib axes: the more blame, the darker the box and the longer its bar."""
    names = ("text", "tokens", *PARTS, f'"{answer}"\n({"right" if is_right else "wrong"})')
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(-1.25, 0.75)
    axes.axis("off")
    axes.set_title(question, loc="left")
    most = max((abs(share) for share in (shares or {}).values()), default=1.0) or 1.0
    arrow = {"arrowstyle": "->", "color": "#555555"}
    for x, name in enumerate(names):
        share = (shares or {}).get(name, 0.0)
        shade = 0.35 * abs(share) / most
        colour = "#f2f2f2" if x < 2 else (0.267, 0.467, 0.667, 0.1 + shade)
        if x == len(names) - 1:
            colour = "#d5ead9" if is_right else "#fbdadf"
        box = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "#555555", "linewidth": 0.8}
        axes.text(x, 0.3, name, ha="center", va="center", fontsize=10, bbox=box)
        if x:
            axes.annotate("", (x - 0.42, 0.3), (x - 0.58, 0.3), arrowprops=arrow)
        if x > 1:
            axes.annotate("", (x - 0.58, -0.45), (x - 0.42, -0.45), arrowprops={**arrow, "color": "#aa3344"})
        if name in PARTS:
            axes.text(x, -0.45, percent(shares, name), ha="center", va="center", fontsize=12, color="#aa3344")
            axes.bar(x, -0.5 * abs(share) / most, width=0.5, bottom=-0.7, color="#aa3344", alpha=0.8)
    axes.text(0.5, -0.45, "no weights", ha="center", va="center", fontsize=10, color="#555555")
    axes.text(len(names) - 1, -0.45, "the blame", ha="center", va="center", fontsize=10, color="#aa3344")
