"""A curriculum: tasks of one vocabulary and width, mixed by weights that change with the step."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxcalc.batch import PAD_ID
from jaxcalc.errors import InputError
from jaxcalc.tasks.problems import Problem
from jaxcalc.tasks.task import STATIC, Membership, Task


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Tasks, of which every batch takes shares that are a function of the step; see `curriculum`."""

    tasks: tuple[Task, ...]
    weights: Callable[[jax.Array], ArrayLike] = dataclasses.field(metadata=STATIC)
    """Returns how often each task is asked at a step, `[len(tasks)]`, in any unit."""
    pad_id = PAD_ID

    @property
    def prompt_length(self) -> int:
        """Tokens up to "equals", padding included."""
        return self.tasks[0].prompt_length

    @property
    def context_length(self) -> int:
        """C, the number of positions that the model reads: all tokens but the last."""
        return self.tasks[0].context_length

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`; see `jaxcalc.batch_at`.

        Each task has its share of the size, up or down to a whole number at random. The first sequences are those that
        the first task has at this step in their places, then come those of the second, and so on.
        """
        sequences = jnp.stack([task.sequences_at(seed, step, size) for task in self.tasks])
        until = jnp.cumsum(self._weights(step))
        start = jax.random.uniform(jax.random.fold_in(jax.random.key(seed), step), dtype=jnp.float32)
        places = (jnp.arange(size, dtype=jnp.float32) + start) / size * until[-1]
        # Rounding may put the last place at the end of the last share, where a task of weight 0 would follow.
        chosen = (places[:, None] >= until[None]).sum(axis=1)
        chosen = jnp.minimum(chosen, (until < until[-1]).sum())
        return sequences[chosen, jnp.arange(size)]

    def membership(self, problem: Problem | str) -> Membership:
        """Say where a problem is: in training if it is in that of any task, else held out if any task holds it out."""
        found = {task.membership(problem) for task in self.tasks}
        sides: tuple[Membership, ...] = ("training", "held out", "left out", "outside")
        return next(side for side in sides if side in found)

    def _weights(self, step: int | jax.Array) -> jax.Array:
        weights = jnp.asarray(self.weights(jnp.asarray(step)), jnp.float32)
        if weights.shape != (len(self.tasks),):
            raise InputError(
                f"weights returns an array of shape {weights.shape}; it must be ({len(self.tasks)},), one per task"
            )
        return weights


def curriculum(tasks: Sequence[Task], weights: Callable[[jax.Array], ArrayLike]) -> Curriculum:
    """Return a mixture of tasks, of which every batch takes shares that are a function of the step.

    It trains as a task does, in `train_steps` and `batch_at`. Each task makes a whole batch per step, of which its
    share is taken, so drawing costs as much as for all of them.

    Args:
      tasks: of one vocabulary and width, such as those of `task.where`.
      weights: takes the step, an int32 scalar that may be traced, and returns how often each task is asked,
        `[len(tasks)]`, not negative and not all 0. `train_steps` compiles once per function.

    Raises `InputError` for tasks that do not fit together, and for weights at step 0 that are none.

    >>> from jaxcalc import batch_at, calculator
    >>> task = calculator()
    >>> small = task.where(largest=20)
    >>> both = curriculum([small, task], lambda step: jnp.where(step < 100, jnp.array([3, 1]), jnp.array([0, 1])))
    >>> batch_at(both, seed=0, step=0, size=256).tokens.shape
    (256, 9)
    """
    if not tasks:
        raise InputError("a curriculum has no tasks; give at least one")
    first = tasks[0]
    for index, task in enumerate(tasks):
        if task.tokenizer.vocabulary != first.tokenizer.vocabulary:
            raise InputError(
                f"task {index} has another vocabulary than task 0 ({task.vocab_size} and {first.vocab_size} words); "
                "make all of them from one task, with where or task_from"
            )
        widths = [(one.prompt_length, one.context_length + 1) for one in (task, first)]
        if widths[0] != widths[1]:
            raise InputError(
                f"the sequences of task {index} have {widths[0][1]} tokens, {widths[0][0]} of them in the prompt; "
                f"those of task 0 have {widths[1][1]} and {widths[1][0]}"
            )
    mixed = Curriculum(tuple(tasks), weights)
    at_start = np.asarray(mixed._weights(0))
    if not (np.isfinite(at_start).all() and (at_start >= 0).all() and at_start.any()):
        raise InputError(f"weights at step 0 are {at_start.tolist()}; they must be at least 0, finite and not all 0")
    return mixed
