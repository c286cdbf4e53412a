"""The rows of benchmark.json, made of what each system took in each round: pure functions on numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from timing import Rounds, ratio, summary  # beside this script

import jaxcalc

Row = dict[str, Any]
"""A row of the measurements in benchmark.json, which names its columns."""
TUTORIAL_LENGTH = 15
"""Positions to which the PyTorch tutorial pads every problem."""
PYTORCH = ("PyTorch", "torch.compile")
OTHERS = {
    f"PyTorch, T {TUTORIAL_LENGTH}": (PYTORCH, TUTORIAL_LENGTH),
    "PyTorch, same T": (PYTORCH, None),
    "Linen, same T": (("Flax Linen",), None),
}
"""What jaxcalc is compared with: systems, and their length if it is not jaxcalc's own."""


def useful_flops(params: jaxcalc.Params, length: int, n_answers: int) -> int:
    """Return the operations of the products that the loss of one example and its gradient need.

    Each product counts three times: once forward, twice backward. The last block needs keys and values everywhere, and
    all else only at the positions whose prediction counts.

    >>> import jax
    >>> useful_flops(jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(vocab_size=35)), length=8, n_answers=3)
    3597696
    """
    config = jaxcalc.config_of(params)
    d, f = config.d_model, config.d_ff
    total = d * config.vocab_size * n_answers
    for n_positions in [length] * (config.n_layers - 1) + [n_answers]:
        total += 2 * d * d * length  # keys and values
        total += (2 * d * d + 2 * d * f) * n_positions  # queries, output and the feed-forward layer
        total += 2 * d * length * n_positions  # the pattern of attention, and what it mixes
    return 3 * 2 * total


def step_row(params: jaxcalc.Params, size: int, length: int, n_answers: int, steps: Rounds) -> Row:
    """Return the speed of one training step, given the seconds of a step in each round.

    GFLOP/s are 6 · parameters · positions · examples/s (2 forward, 4 backward), even if an implementation skips work
    whose result nobody reads. "useful_share" counts `useful_flops` instead.
    """
    flops, useful = 6 * jaxcalc.count(params) * length * size, useful_flops(params, length, n_answers) * size
    seconds = summary(steps.seconds)
    gflops = [flops / second / 1e9 for second in steps.seconds]
    share = ratio(gflops, [peak / 1e9 for peak in steps.peaks])["median"]
    return {
        "batch": size,
        "length": length,
        "ms": 1e3 * seconds["median"],
        "spread": seconds["spread"],
        "noisy": seconds["noisy"],
        "examples_per_second": size / seconds["median"],
        "gflops": flops / seconds["median"] / 1e9,
        "share_of_peak": share,
        "useful_share": share * useful / flops,
        "peak_gflops": summary(steps.peaks)["median"] / 1e9,
    }


def per_step(taken: Rounds, n_steps: int) -> Rounds:
    """Return the seconds of one step, given those of a call that takes several."""
    return Rounds([seconds / n_steps for seconds in taken.seconds], taken.peaks)


def multiples(steps: Mapping[tuple[str, int], Rounds], length: int, size: int) -> list[Row]:
    """Return how many times the examples/s of each other system jaxcalc makes: medians of the rounds' ratios.

    Args:
      steps: what a step took, by system and length.
      length: of jaxcalc's own steps.
      size: examples in a step.
    """
    rows = []
    for system in (system for system, _ in steps if system.startswith("train_step")):
        ours = steps[system, length].seconds
        for name, (systems, other_length) in OTHERS.items():
            keys: Sequence[tuple[str, int]] = [(other, other_length or length) for other in systems]
            ratios = [ratio(steps[key].seconds, ours) for key in keys if key in steps]
            if ratios:  # the better of PyTorch's two
                best = min(ratios, key=lambda each: each["median"])
                rows.append({"system": system, "batch": size, "to": name, "ratio": best.pop("median"), **best})
    return rows
