"""Data of one's own: filtered tasks, questions in text, curricula, and tasks that are none of ours."""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcalc
from jaxcalc import (
    Arithmetic,
    Calculator,
    InputError,
    Params,
    Problem,
    Task,
    arithmetic,
    batch_at,
    batch_from,
    batch_of,
    calculator,
    curriculum,
    evaluate,
    rows_at,
    task_from,
)
from jaxcalc.tasks.drawing import Rules, draw

OPERATIONS = ("plus", "minus", "times", "divided by")
PAIRS = [("two plus three", "five"), ("8 / 4", "2"), ("one plus one", "seven"), ("two plus three", "five")]


@functools.cache
def table() -> Calculator:
    return calculator(max_number=9, inverse_copies={"times": 1}, copies={"plus": 2})


@functools.cache
def drawn() -> Arithmetic:
    return arithmetic(99, ("plus", "minus"), notation="digits", held_out=0.2)


@functools.cache
def params_of(task: Task) -> Params:
    config = jaxcalc.ModelConfig(
        task.vocab_size, d_model=16, n_heads=2, d_ff=16, n_layers=1, context_length=task.context_length
    )
    return jaxcalc.init(jax.random.key(0), config)


def state_of(task: Task) -> jaxcalc.TrainState:
    return jaxcalc.create_state(params_of(task), jaxcalc.make_optimizer("adamw", 10))


def asked(task: Task, tokens: jax.Array | np.ndarray) -> list[Problem]:
    """Return the problems that sequences of plain questions state."""
    texts = (task.tokenizer.decode(i for i in row[: task.prompt_length] if i > 0) for row in np.asarray(tokens))
    return [task.parse(text) for text in texts]


def test_a_filtered_table_keeps_its_sides_and_says_what_it_left_out() -> None:
    whole = table()
    task = whole.where(operations=("plus", "times"), largest=8, predicate=lambda problem: problem.numbers[0] != 3)

    def is_kept(problem: Problem) -> bool:
        (a, _), (operation,) = problem
        return operation in ("plus", "times") and a != 3 and max(*problem.numbers, problem.answer or 0) <= 8

    problems = [whole.problem(row) for row in range(len(whole.tokens))]
    sides = Counter()
    for problem in problems:
        expected = whole.membership(problem) if is_kept(problem) else "left out"
        assert task.membership(problem) == expected, problem
        sides[expected] += 1
    assert sides.keys() == {"training", "held out", "left out"}
    assert (len(task.train_rows), len(task.held_out_rows)) == (sides["training"], sides["held out"])
    assert task.membership("9 plus 9") == "outside"
    # What training asks is the lessons of the whole task, with their copies and inverse questions, of what is kept.
    lessons = Counter(map(tuple, np.asarray(task.lessons).tolist()))
    before = Counter(map(tuple, np.asarray(whole.lessons).tolist()))
    assert all(before[lesson] == n for lesson, n in lessons.items())
    plain = {tuple(np.asarray(whole.tokens[row]).tolist()) for row in np.asarray(task.train_rows)}
    assert plain <= lessons.keys()
    for text in map(whole.tokenizer.decode, lessons):
        assert "nine" not in text
        assert "minus" not in text
    inverse = lessons.keys() - plain
    assert inverse
    assert all("times" in whole.tokenizer.decode(lesson) for lesson in inverse)
    assert (task.vocab_size, task.tokens.shape) == (whole.vocab_size, whole.tokens.shape)
    assert whole.where() == whole


def test_membership_is_what_the_lessons_ask() -> None:
    task = table()
    kept = dataclasses.replace(task, lessons=task.lessons[:5])
    seen = {kept.membership(task.problem(int(row))) for row in task.train_rows}
    assert seen == {"training", "left out"}
    leaked = dataclasses.replace(task, lessons=task.tokens)
    assert leaked.membership(task.problem(int(task.held_out_rows[0]))) == "training"


@pytest.mark.slow
def test_a_filtered_drawn_task_draws_and_holds_out_what_the_whole_task_does() -> None:
    whole = drawn()
    task = whole.where(operations=("plus",), largest=20)
    tokens = np.asarray(task.tokens)
    for problem in asked(task, tokens[np.asarray(task.train_rows)[:6]]):
        assert whole.membership(problem) == task.membership(problem) == "training"
        assert problem.operations == ("plus",)
        assert max(*problem.numbers, problem.answer or 0) <= 20
    for problem in asked(task, tokens[np.asarray(task.held_out_rows)[:6]]):
        assert whole.membership(problem) == task.membership(problem) == "held out"
    assert [task.membership(text) for text in ("30 + 1", "3 - 1", "90 + 90")] == ["left out", "left out", "outside"]
    assert tokens.shape[1] == whole.tokens.shape[1]
    assert task.vocab_size == whole.vocab_size
    with pytest.raises(InputError, match=r"jaxcalc\.task_from"):
        whole.where(predicate=lambda _: True)
    with pytest.raises(InputError, match="this task draws 'plus' alone"):
        task.where(operations=("minus",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operations": "plus"}, "must be a tuple, such as ('plus',)"),
        ({"operations": ("power",)}, "unknown operation 'power'"),
        ({"largest": 10}, "largest is 10; it must be from 1 to 9"),
        ({"predicate": lambda _: False}, "no training problem is left"),
    ],
)
def test_a_wrong_filter_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        table().where(**arguments)  # pyright: ignore[reportArgumentType]
    assert message in str(error.value)


@pytest.mark.parametrize("make", [table, drawn])
def test_a_batch_from_text_is_that_of_the_rows(make) -> None:
    task = make()
    rows = np.asarray(task.train_rows)[:8]
    problems = [task.problem(int(row)) for row in rows]
    batch = batch_from([(str(problem), str(problem.answer)) for problem in problems], task)
    expected = batch_of(task, task.tokens[rows])
    assert (batch.tokens == expected.tokens).all()
    assert (batch.mask == expected.mask).all()


def test_an_answer_is_a_number_in_whatever_notation() -> None:
    task = calculator(max_number=99, operations=("plus",), output="digits-reversed")
    words = [task.tokenizer.token(int(i)) for i in batch_from([("40 + 2", "forty-two")], task).tokens[0]]
    assert words[task.prompt_length :] == ["2", "4", "<end>"]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "there are no questions"),
        ([PAIRS[0], ("two pluss three", "five")], "pair 1, ('two pluss three', 'five'): unknown word 'pluss'"),
        ([("two plus three", "fife")], "unknown word 'fife'"),
        ([("two plus three", "five plus one")], "the answer 'five plus one' is not a number"),
        ([("two plus three", "")], "the answer '' is not a number"),
        ([("two plus three", "10")], "number out of range: '10'"),
        ([("two plus three", 5)], "two texts such as"),
        (["two plus three"], "two texts such as"),
        ([("two plus three plus four", "nine")], "2 operations"),
        ([("x" * 2000, "five")], "the text has 2,000 characters"),
    ],
)
def test_a_wrong_pair_is_named(pairs: Sequence[tuple[str, str]], message: str) -> None:
    with pytest.raises(InputError) as error:
        batch_from(pairs, table())
    assert message in str(error.value)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [table, drawn])
def test_own_questions_are_a_task(make) -> None:
    like = make()
    pairs = [("2 + 3", "5"), ("1 + 1", "7"), ("2 + 3", "5"), ("7 - 4", "3")]
    task = task_from(pairs, like, held_out=[("6 - 2", "4")])
    sides = [task.membership(text) for text in ("2 + 3", "1 + 1", "6 - 2", "8 - 1")]
    assert sides == ["training", "training", "held out", "left out"]
    assert task.membership(Problem((200, 1), ("plus",))) == "outside"
    epoch = batch_at(task, 0, 0, 4).tokens
    assert (epoch == task.lessons[rows_at(task, 0, 0, 4)]).all()
    assert sorted(map(str, asked(task, epoch))) == ["1 plus 1", "2 plus 3", "2 plus 3", "7 minus 4"]
    assert [task.kind_names[kind] for kind in task.kind_ids] == ["plus", "plus", "plus", "minus", "minus"]
    small = task.where(operations=("minus",))
    assert (small.membership("1 + 1"), small.membership("7 - 4")) == ("left out", "training")
    with pytest.raises(InputError, match="is both in training and held out"):
        task_from(pairs, like, held_out=[("1 + 1", "2")])
    with pytest.raises(InputError, match="from 1 to 4"):
        batch_at(task, 0, 0, 5)


def test_own_questions_are_evaluated_as_rows_are() -> None:
    task, params = table(), params_of(table())
    rows = np.arange(0, len(task.tokens), 9)
    by_row = evaluate(params, task, rows)
    problems = [task.problem(int(row)) for row in rows]
    by_text = evaluate(params, task, [(str(problem), str(problem.answer)) for problem in problems])
    np.testing.assert_array_equal(by_text.generated, by_row.generated)
    assert by_text.by_operation() == by_row.by_operation()
    assert by_text.by_digits() == by_row.by_digits()
    assert by_text.errors() == by_row.errors()
    assert by_text.task.membership(problems[0]) == task.membership(problems[0])
    # What counts as right is the answer that was given, true or not.
    wrong = evaluate(params, task, [("one plus one", "seven")]).errors()
    assert [(error["problem"], error["expected"]) for error in wrong] == [("one plus one", "seven")]
    assert evaluate(params, task, []).exact_match is None
    assert evaluate(params, task, [0, 1]).rows.tolist() == [0, 1]
    with pytest.raises(InputError, match="pair 0"):
        evaluate(params, task, [("two plus three", "fife")])


def shares(step: jax.Array) -> jax.Array:
    """Only the first task, then ever more of the second, and never the third."""
    return jnp.stack([jnp.float32(4), jnp.minimum(step, 12).astype(jnp.float32), jnp.float32(0)])


def test_a_curriculum_mixes_its_tasks_by_the_step() -> None:
    task = calculator(max_number=9)
    parts = [task.where(operations=(name,)) for name in ("plus", "minus", "times")]
    mixed = curriculum(parts, shares)
    sequences = jax.jit(lambda mixed, seed, step: mixed.sequences_at(seed, step, 20))
    for step in (0, 1, 4, 12, 1000):
        found = Counter(problem.operations[0] for problem in asked(task, sequences(mixed, 0, step)))
        share = np.array([4, min(step, 12), 0])
        expected = 20 * share / share.sum()
        counts = np.array([found[name] for name in ("plus", "minus", "times")])
        assert (np.abs(counts - expected) < 1).all(), (step, counts)
    drawn_shares = [
        sum(p.operations == ("minus",) for p in asked(task, sequences(mixed, seed, 1))) for seed in range(9)
    ]
    assert 3 <= np.mean(drawn_shares) <= 5  # 20 / 5, on average
    alone = curriculum([task], lambda _: jnp.ones(1))
    assert (sequences(alone, 3, 9) == task.sequences_at(3, 9, 20)).all()
    assert mixed.membership(task.problem(int(parts[0].train_rows[0]))) == "training"
    assert mixed.membership(task.problem(int(parts[1].held_out_rows[0]))) == "held out"
    assert mixed.membership("8 / 4") == "left out"
    assert mixed.membership("9 + 9") == "outside"


def test_a_curriculum_trains_in_one_program() -> None:
    task = calculator(max_number=9)
    mixed = curriculum([task.where(largest=4), task.where(operations=("plus",)), task], shares)
    state = state_of(task)
    for _ in range(2):
        before = jaxcalc.train_steps._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
        state, metrics = jaxcalc.train_steps(state, mixed, seed=0, n_steps=3, batch_size=16)
        assert np.isfinite(metrics["loss"]).all()
    assert jaxcalc.train_steps._cache_size() == before  # pyright: ignore[reportFunctionMemberAccess]
    assert int(state.step) == 6


def test_tasks_that_do_not_fit_together_are_refused() -> None:
    task = calculator(max_number=9)
    for tasks, weights, message in (
        ([], shares, "no tasks"),
        ([task, calculator(max_number=8)], shares, "another vocabulary than task 0 (16 and 17 words)"),
        ([drawn(), table()], shares, "another vocabulary"),
        ([task], shares, "shape (3,); it must be (1,)"),
        ([task], lambda _: jnp.zeros(1), "not all 0"),
        ([task], lambda _: -jnp.ones(1), "at least 0"),
    ):
        with pytest.raises(InputError) as error:
            curriculum(tasks, weights)
        assert message in str(error.value)


def test_rows_at_says_which_lessons_a_batch_holds() -> None:
    task = table()
    for step in (0, 1000):
        rows = rows_at(task, 1, step, 32)
        batch = batch_at(task, 1, step, 32)
        assert (batch.tokens == task.lessons[rows]).all()
    with pytest.raises(InputError, match="Arithmetic draws its problems"):
        rows_at(drawn(), 0, 0, 8)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Copying:
    """Three digits, each a token from 0 to 9, and the same three again: what `train_steps` needs and no more."""

    pad_id: int | None = None
    prompt_length = 3

    def sequences_at(self, seed: int | jax.Array, step: int | jax.Array, size: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return jnp.tile(jax.random.randint(key, (size, 3), 0, 10), 2)


def test_the_mask_is_the_tasks_own() -> None:
    batch = batch_at(Copying(), 0, 0, 64)
    assert (batch.tokens == 0).any()
    assert batch.mask.shape == (64, 3)
    assert batch.mask.all()
    assert batch_at(Copying(), 0, 0, 64, "all").mask.shape == (64, 5)
    padded = batch_at(Copying(pad_id=7), 0, 0, 64)
    assert ((padded.tokens[:, 3:] != 7) == padded.mask).all()
    config = jaxcalc.ModelConfig(10, d_model=16, n_heads=2, d_ff=16, n_layers=1, context_length=5)
    state = jaxcalc.create_state(jaxcalc.init(jax.random.key(0), config), jaxcalc.make_optimizer("adamw", 10))
    state, metrics = jaxcalc.train_steps(state, Copying(), seed=0, n_steps=2, batch_size=8)
    assert int(state.step) == 2
    assert np.isfinite(metrics["loss"]).all()


def test_what_is_no_task_or_no_batch_is_named() -> None:
    class Bare:
        prompt_length = 3

        def sequences_at(self, seed: object, step: object, size: int) -> jax.Array:
            return jnp.zeros((size, 6), jnp.int32)

    task = table()
    for wrong, tokens, message in (
        (Bare(), jnp.zeros((2, 6), jnp.int32), "Bare has no pad_id"),
        (
            task,
            task.tokens[:, : task.prompt_length],
            "tokens have the shape (184, 4); whole sequences of this task are",
        ),
        (task, task.tokens[:, :-1], "[B, 6]"),
        (task, task.tokens[0], "tokens have the shape (6,)"),
        (task, task.tokens.astype(jnp.float32), "tokens are float32"),
        (Copying(), jnp.zeros((2, 3), jnp.int32), "[B, more than 3]"),
    ):
        with pytest.raises(InputError) as error:
            batch_of(wrong, tokens)
        assert message in str(error.value)


@pytest.mark.slow
def test_a_task_with_too_few_problems_to_hold_out_is_refused_soon() -> None:
    start = time.process_time()
    with pytest.raises(InputError, match="with too few to draw"):
        arithmetic(99, ("plus",), notation="digits", held_out=0.001)
    assert time.process_time() - start < 12  # it was 44 s


@pytest.mark.slow
def test_kinds_are_drawn_as_often_as_the_docstring_says() -> None:
    """At 12,345 many draws do not fit: half of the sums, and most products of two factors of the longest lengths."""
    rules = Rules(OPERATIONS, 12_345, 2, held_out=0.1, seed=0)
    kinds = np.asarray(jax.jit(lambda: draw(rules, jax.random.key(1), 8_000, "training")[0].kind_ids)())
    shares = 4 * np.bincount(kinds, minlength=4) / len(kinds)
    assert ((shares > 0.65) & (shares < 1.35)).all(), shares
    np.testing.assert_allclose(shares[[1, 3]], [1.3, 0.7], atol=0.08)
