"""Questions and answers of one's own, in text: as a batch, and as a task to learn or to evaluate on."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import Batch, LossOn, batch_of
from jaxcalc.errors import InputError
from jaxcalc.tasks.hashing import visited
from jaxcalc.tasks.problems import Problem
from jaxcalc.tasks.task import STATIC, Membership, Split, Task, asks, fitting, only
from jaxcalc.tasks.tokenizer import END, PAD, Tokenizer

Pairs = Iterable[tuple[str, str]]
"""Questions with their answers, each in text."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OwnTask(Task):
    """A task of questions and answers that someone listed; see `task_from`."""

    tokens: jax.Array
    """int32 `[N, L]`: the questions with their answers, encoded."""
    kinds: jax.Array
    """int32 `[N]`: the kind of each question, an index into `kind_names`."""
    train_rows: jax.Array
    """int32 `[n]`: the rows that training sees."""
    held_out_rows: jax.Array
    """int32 `[m]`: the rows that training never sees."""
    like: Task
    """The task whose words and positions these questions have."""
    tokenizer: Tokenizer = dataclasses.field(metadata=STATIC)
    prompt_length: int = dataclasses.field(metadata=STATIC)
    terms: int = dataclasses.field(metadata=STATIC)
    """Numbers in a question."""
    split: Split = dataclasses.field(default="none", metadata=STATIC)

    @property
    def slot(self) -> int:
        """Tokens that every number of a prompt takes, padding included; 0 where numbers are not padded."""
        return self.like.slot

    @property
    def kind_names(self) -> tuple[str, ...]:
        """The kinds of questions: the operations or, with more than two numbers, all sequences of them."""
        return _kinds(self.like)

    @property
    def kind_ids(self) -> np.ndarray:
        """The kind of each question, an index into `kind_names`, int `[N]`."""
        return np.asarray(self.kinds)

    @property
    def lessons(self) -> jax.Array:
        """The sequences that one epoch visits, those of training, int32 `[n, L]`."""
        return self.tokens[self.train_rows]

    def problem(self, row: int) -> Problem:
        """Return the problem that the question in one row states."""
        prompt = (self.tokenizer.token(int(index)) for index in np.asarray(self.tokens)[row, : self.prompt_length])
        return self.parse(" ".join(token for token in prompt if token != PAD))

    def membership(self, problem: Problem | str) -> Membership:
        """Say where a question is, whatever its answer; see `Task.membership`."""
        problem = self.as_problem(problem)
        in_range = all(0 <= number <= self.tokenizer.max_number for number in problem.numbers)
        if " ".join(problem.operations) not in self.kind_names or not in_range:
            return "outside"
        prompt = self.encode(str(problem))
        if asks(self.lessons, prompt):
            return "training"
        return "held out" if asks(self.tokens[self.held_out_rows], prompt) else "left out"

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return the sequences of one training step, int32 `[size, L]`; see `jaxcalc.batch_at`."""
        return self.lessons[self.rows_at(seed, step, size)]

    def rows_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        """Return which lessons these are, uint32 `[size]`."""
        n_train = self.train_rows.shape[0]
        if not 1 <= size <= n_train:
            raise InputError(
                f"batch size is {size}; it must be from 1 to {n_train:,}, the number of training questions"
            )
        return visited(seed, step, size, n_train)

    def where(
        self,
        operations: tuple[str, ...] | None = None,
        largest: int | None = None,
        predicate: Callable[[Problem], bool] | None = None,
    ) -> "OwnTask":
        """Return a task of these questions alone; see `Task.where`. What counts of a result is the true one."""
        keep = fitting(self, operations, largest, predicate)
        train_rows, held_out_rows = only(keep, self.train_rows), only(keep, self.held_out_rows, least=0)
        return dataclasses.replace(self, train_rows=train_rows, held_out_rows=held_out_rows)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Questions(OwnTask):
    """Questions to evaluate on, neither learned nor held out: `like` says what training saw of them."""

    def membership(self, problem: Problem | str) -> Membership:
        """Say where a question is in the task that a model learned from."""
        return self.like.membership(problem)


def batch_from(pairs: Pairs, task: Task, loss_on: LossOn = "answer") -> Batch:
    """Return questions and answers in text as a batch with the words and positions of a task.

    An answer may be wrong: the model then learns it. `batch_at` explains `loss_on`. Raises `InputError`, with the
    index of the pair, for a question that is not one of the task's form, an answer that is not a number in range, and
    where there is no pair.

    >>> from jaxcalc import calculator
    >>> task = calculator()
    >>> batch = batch_from([("two plus three", "five"), ("40 / 8", "5")], task)
    >>> task.tokenizer.decode(batch.tokens[1])
    '<pad> <pad> forty divided by eight equals five <end> <pad>'
    """
    tokens, _ = encode_pairs(pairs, task)
    if not len(tokens):
        raise InputError("there are no questions; give at least one (question, answer)")
    return batch_of(task, jnp.asarray(tokens), loss_on)


def task_from(pairs: Pairs, task: Task, held_out: Pairs = ()) -> OwnTask:
    """Return a task that trains on questions and answers in text, with the words and positions of another task.

    An epoch visits each pair once, so a pair that is listed twice is visited twice. An answer may be wrong.

    Args:
      held_out: questions to evaluate on, which training does not ask.

    Raises `InputError` as `batch_from` does, and for a question that is both in training and held out.

    >>> from jaxcalc import calculator
    >>> task = task_from([("two plus three", "five"), ("one plus one", "two")], calculator())
    >>> task.membership("1 + 1"), task.membership("1 + 2")
    ('training', 'left out')
    """
    (tokens, kinds), (unseen, unseen_kinds) = encode_pairs(pairs, task), encode_pairs(held_out, task)
    if not len(tokens):
        raise InputError("there are no questions to train on; give at least one (question, answer)")
    for prompt in unseen[:, : task.prompt_length]:
        if asks(tokens, prompt):
            question = " ".join(word for word in map(task.tokenizer.token, prompt.tolist()) if word != PAD)
            raise InputError(f"the question {question!r} is both in training and held out; leave it out of one")
    sequences, kind_ids = np.concatenate([tokens, unseen]), np.concatenate([kinds, unseen_kinds])
    return _listed(OwnTask, task, sequences, kind_ids, *np.split(np.arange(len(sequences)), [len(tokens)]))


def questions_from(pairs: Pairs, task: Task) -> OwnTask:
    """Return questions to evaluate on, with the answers to expect; raises as `batch_from` does for a pair."""
    nothing = np.arange(0)
    return _listed(Questions, task, *encode_pairs(pairs, task), nothing, nothing)


def _listed(
    of: type[OwnTask],
    task: Task,
    tokens: np.ndarray,
    kinds: np.ndarray,
    train_rows: np.ndarray,
    held_out_rows: np.ndarray,
) -> OwnTask:
    arrays = (tokens, kinds, train_rows, held_out_rows)
    tokens_, kinds_, train, held_out = (jnp.asarray(array.astype(np.int32)) for array in arrays)
    return of(tokens_, kinds_, train, held_out, task, task.tokenizer, task.prompt_length, task.terms)


def encode_pairs(pairs: Pairs, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return the sequences of questions and answers, int32 `[N, L]`, and their kinds, int32 `[N]`."""
    sequences, kind_ids = [], []
    names = _kinds(task)
    for index, pair in enumerate(pairs):
        try:
            question, answer = _texts(pair)
            prompt = task.encode(question)
            ids = [task.tokenizer.ids[token] for token in [*_answer(answer, task.tokenizer), END]]
            if len(prompt) > task.prompt_length or len(ids) > task.answer_length:
                raise InputError(
                    f"it takes {len(prompt)} tokens and its answer {len(ids)}; the task has {task.prompt_length} and "
                    f"{task.answer_length}"
                )
        except InputError as error:
            raise InputError(f"pair {index}, {_short(pair)}: {error}") from None
        padding = [task.tokenizer.ids[PAD]] * (task.answer_length - len(ids))
        sequences.append([*prompt.tolist(), *ids, *padding])
        kind_ids.append(names.index(" ".join(task.parse(question).operations)))
    return np.array(sequences, np.int32).reshape(-1, task.context_length + 1), np.array(kind_ids, np.int32)


def _texts(pair: Sequence[str]) -> tuple[str, str]:
    """Return a question and its answer; raises `InputError` for what is not two texts."""
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise InputError("it must be a question and its answer, two texts such as ('two plus three', 'five')")
    question, answer = pair
    return question, answer


def _short(pair: object) -> str:
    text = repr(pair)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _answer(text: str, tokenizer: Tokenizer) -> list[str]:
    """Return the tokens of an answer, as the task writes numbers after "equals"."""
    number = tokenizer.read(tokenizer.canonical(text), tokenizer.notation)
    if number is None:
        raise InputError(f"the answer {_short(text)} is not a number; write one, such as 'five' or '5'")
    if number > tokenizer.max_number:  # the tokenizer saw only its parts, as in "twenty 8"
        raise InputError(f"the answer {_short(text)} is above {tokenizer.max_number}, the largest number of the task")
    return tokenizer.spell(number)


def _kinds(task: Task) -> tuple[str, ...]:
    """Return every sequence of operations that a question may have, whether the task asks it or not."""
    return tuple(map(" ".join, itertools.product(task.tokenizer.operations, repeat=task.terms - 1)))
