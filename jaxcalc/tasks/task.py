"""What every task has: problems, encoded and split, and the sequences of each training step."""

import abc
from typing import Any, Literal

import jax
import numpy as np

from jaxcalc.tasks.problems import Expression, Problem
from jaxcalc.tasks.tokenizer import Tokenizer

Split = Literal["orbit", "family", "random", "none"]


class Task(abc.ABC):
    """What is to be learned: problems, encoded and split into training and held-out ones, and the batch of each step.

    A `Calculator` lists all its problems; a `jaxcalc.Arithmetic` draws them, and lists a sample.
    """

    tokens: jax.Array
    """int32 `[N, L]`: the problems that it lists, each as a sequence "prompt equals | answer <end> [padding]"."""
    train_rows: jax.Array
    """int32 `[n]`: the rows of them that training may see."""
    held_out_rows: jax.Array
    """int32 `[m]`: the other rows, which training never sees."""
    tokenizer: Tokenizer
    prompt_length: int
    """Tokens up to "equals", padding included."""
    split: Split
    """What is kept together on one side; see `calculator`."""

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        return len(self.tokenizer.vocabulary)

    @property
    def context_length(self) -> int:
        """C, the number of positions that the model reads: all tokens but the last."""
        return self.tokens.shape[1] - 1

    @property
    def answer_length(self) -> int:
        """Tokens of the longest answer, its end token included."""
        return self.tokens.shape[1] - self.prompt_length

    @property
    @abc.abstractmethod
    def kinds(self) -> tuple[str, ...]:
        """What kinds of problems there are: the operations or, with more than two numbers, all sequences of them."""

    @property
    @abc.abstractmethod
    def kind(self) -> np.ndarray:
        """The index of the kind of each problem that it lists, int `[N]`."""

    @abc.abstractmethod
    def problem(self, row: int) -> Problem | Expression:
        """Return the problem in one row."""

    @abc.abstractmethod
    def parse(self, text: str) -> Problem | Expression:
        """Return the problem that a question states; anything but one question raises `InputError`."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Return a question as int32 `[prompt_length]`. Raises as `parse` does."""

    @abc.abstractmethod
    def membership(self, problem: Any) -> Literal["training", "held out", "outside"]:
        """Say whether training may see a problem, whether it is held out, or whether it is not of this task at all."""

    @abc.abstractmethod
    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`; see `batch_at`."""
