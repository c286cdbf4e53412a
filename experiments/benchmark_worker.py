"""A process of benchmark.py --compare, which times the jaxcalc of one commit, one turn for each line that it reads.

It runs with the root of that commit first on its path. Commits differ, so it uses nothing but the names that every
commit has: calculator, ModelConfig, init, make_optimizer, create_state, batch_at, train_step, train_steps, sharding.
"""

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
from timing import turn  # beside this script

import jaxcalc


def main() -> None:
    """For each line that is read, print the seconds of one step of that name; for "cases", print the names."""
    quick = sys.argv[1] == "quick"
    turns = {name: (turn(call, quick), n_steps) for name, (call, n_steps) in cases(quick).items()}
    for line in map(str.strip, sys.stdin):
        if line == "cases":
            print(json.dumps(list(turns)), flush=True)
        else:
            take, n_steps = turns[line]
            print(take() / n_steps, flush=True)


def cases(quick: bool) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return what is timed: a call, and how many steps it takes."""
    found = {f"train_step {size:,}": (one_step(size), 1) for size in ((256,) if quick else (64, 256, 1024))}
    found["train_steps 512, Muon"] = many_steps("muon", 512), 10
    if hasattr(jaxcalc.sharding, "data_parallel") and len(jax.devices()) > 1:
        apply_fn = jaxcalc.sharding.data_parallel(jax.devices())
        for size in (64, 256):
            found[f"train_steps×{len(jax.devices())} {size}"] = many_steps("adamw", size, apply_fn), 10
    return found


def one_step(size: int) -> Callable[[], Any]:
    """Return a call that goes on with one `train_step`, on the same batch each time."""
    state, batch = new_state("adamw"), jaxcalc.batch_at(jaxcalc.calculator(), seed=0, step=0, size=size)

    def call() -> Any:
        nonlocal state
        state, metrics = jaxcalc.train_step(state, batch)
        return metrics

    return call


def many_steps(optimizer: Any, size: int, *apply_fn: Any) -> Callable[[], Any]:
    """Return a call that goes on with ten steps of `train_steps`."""
    state, task = new_state(optimizer, *apply_fn), jaxcalc.calculator()
    steps = functools.partial(jaxcalc.train_steps, seed=0, n_steps=10, batch_size=size)

    def call() -> Any:
        nonlocal state
        state, metrics = steps(state, task)
        return metrics

    return call


def new_state(optimizer: Any, *apply_fn: Any) -> Any:
    params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(jaxcalc.calculator().vocab_size))
    return jaxcalc.create_state(params, jaxcalc.make_optimizer(optimizer, None), *apply_fn)
