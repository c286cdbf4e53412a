import itertools
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcalc import InputError, Task, batch_at, batch_of, calculator, number_to_words
from jaxcalc.tasks.problems import Problem


def problems(task: Task, rows: jax.Array) -> set[tuple[int, str, int]]:
    names = task.tokenizer.operations
    return {(a, names[op], b) for a, op, b, _ in np.asarray(task.problems)[np.asarray(rows)].tolist()}


def test_the_table_is_complete() -> None:
    def truth(a: int, operation: str, b: int) -> int | None:
        results = {"plus": a + b, "minus": a - b, "times": a * b}
        if operation in results:
            return results[operation]
        return a // b if b and a % b == 0 else None

    task = calculator(max_number=12)
    expected = {
        (a, operation, b, answer)
        for a, operation, b in itertools.product(range(13), task.tokenizer.operations, range(13))
        if (answer := truth(a, operation, b)) is not None and 0 <= answer <= 12
    }
    table = [(a, task.tokenizer.operations[op], b, c) for a, op, b, c in task.problems.tolist()]
    assert len(table) == len(set(table))
    assert set(table) == expected


def test_the_table_has_the_known_sizes(task: Task) -> None:
    counts = np.bincount(np.asarray(task.problems)[:, 1])
    assert counts.tolist() == [5050, 5050, 672, 572]
    assert len(calculator(("plus", "minus", "times")).problems) == 10_772


def test_every_row_reads_as_its_problem(task: Task) -> None:
    for row in range(0, len(task.tokens), 37):
        problem = task.problem(row)
        a, b, c = map(number_to_words, (*problem.numbers, int(task.problems[row, 3])))
        text = task.tokenizer.decode(task.tokens[row]).replace("<pad>", "").strip()
        assert text == f"{a} {problem.operations[0]} {b} equals {c} <end>"
        assert task.encode(str(problem)).tolist() == task.tokens[row, :6].tolist()
    assert (np.asarray(task.tokens)[:, task.prompt_length - 1] == task.tokenizer.ids["equals"]).all()


@pytest.mark.parametrize("split", ["orbit", "family", "random"])
@pytest.mark.parametrize("seed", [0, 1])
def test_splits_hold_out_their_share_of_every_operation(split: str, seed: int) -> None:
    task = calculator(split=split, seed=seed)  # pyright: ignore[reportArgumentType]
    train, held_out = np.asarray(task.train_rows), np.asarray(task.held_out_rows)
    assert sorted([*train, *held_out]) == list(range(len(task.problems)))
    shares = np.bincount(np.asarray(task.problems)[held_out, 1]) / [5050, 5050, 672, 572]
    np.testing.assert_allclose(shares, 0.1, atol=0.03 if split == "family" else 0.002)


@pytest.mark.parametrize("seed", range(3))
def test_orbit_keeps_commuted_twins_together(seed: int) -> None:
    task = calculator(split="orbit", seed=seed)
    train, held_out = problems(task, task.train_rows), problems(task, task.held_out_rows)
    twins = {(b, operation, a) for a, operation, b in held_out if operation in ("plus", "times")}
    assert not twins & train
    assert twins <= held_out


@pytest.mark.parametrize("seed", range(3))
def test_family_keeps_all_problems_of_a_fact_together(seed: int) -> None:
    task = calculator(split="family", seed=seed)
    train, held_out = problems(task, task.train_rows), problems(task, task.held_out_rows)
    for a, operation, b in held_out:
        c = {"plus": a + b, "minus": a - b, "times": a * b}.get(operation, a // max(b, 1))
        inverse = {"plus": "minus", "times": "divided by"}
        if operation in inverse:
            same_fact = {(b, operation, a), (c, inverse[operation], a), (c, inverse[operation], b)}
        else:
            forward = {inverse[name]: name for name in inverse}[operation]
            same_fact = {(b, forward, c), (c, forward, b), (a, operation, c)}
        assert not same_fact & train


def test_random_does_not_keep_twins_together_and_none_holds_nothing_out() -> None:
    task = calculator(split="random")
    train, held_out = problems(task, task.train_rows), problems(task, task.held_out_rows)
    assert {(b, op, a) for a, op, b in held_out if op == "plus"} & train
    task = calculator(split="none")
    assert len(task.train_rows) == 11_344
    assert task.held_out_rows.size == 0


def test_the_seed_chooses_the_split() -> None:
    first, again, other = calculator(seed=0), calculator(seed=0), calculator(seed=1)
    np.testing.assert_array_equal(first.held_out_rows, again.held_out_rows)
    assert set(first.held_out_rows.tolist()) != set(other.held_out_rows.tolist())


def visits(task: Task, seed: int, size: int, n_steps: int) -> np.ndarray:
    """The sequences that steps 0, 1, … visit, one after another, `[size * n_steps, L]`."""
    get = jax.jit(batch_at, static_argnames="size")
    return np.concatenate([get(task, seed, step, size=size).tokens for step in range(n_steps)])


def in_order(sequences: np.ndarray) -> list[list[int]]:
    return sorted(np.asarray(sequences).tolist())


@pytest.mark.parametrize("copies", [{}, {"copies": {"times": 3}, "inverse_copies": {"divided by": 2}}])
def test_every_epoch_visits_each_lesson_once_in_a_new_order(copies: dict) -> None:
    task = calculator(max_number=20, **copies)
    epoch, size = len(task.lessons), 48
    seen = visits(task, 5, size, 3 * epoch // size + 1)[: 3 * epoch].reshape(3, epoch, -1)
    for order in seen:
        assert in_order(order) == in_order(task.lessons)
    assert (seen[0] != seen[1]).any(axis=-1).mean() > 0.9


def test_without_copies_the_lessons_are_the_training_problems() -> None:
    task = calculator(max_number=20)
    assert in_order(task.lessons) == in_order(task.tokens[task.train_rows])


def test_copies_and_inverse_questions_are_made_of_training_problems_only() -> None:
    task = calculator(max_number=20, copies={"times": 3}, inverse_copies={"times": 2, "divided by": 1})
    held_out, names = problems(task, task.held_out_rows), task.tokenizer.operations
    lessons = Counter(task.tokenizer.decode(lesson).replace("<pad> ", "").split(" <end>")[0] for lesson in task.lessons)
    expected: Counter[str] = Counter()
    for a, op, b, c in np.asarray(task.problems)[np.asarray(task.train_rows)].tolist():
        name, (a_, b_, c_) = names[op], (number_to_words(number) for number in (a, b, c))
        expected[f"{a_} {name} {b_} equals {c_}"] += 3 if name == "times" else 1
        n_inverse = {"times": 2, "divided by": 1}.get(name, 0)
        # A factor of zero leaves the other one open: 0 = 0 × anything, and 0 / anything = 0.
        expected[f"{c_} equals {a_} {name} {b_}"] += n_inverse * (a != 0)
        expected[f"{c_} equals {name} {b_} {a_}"] += n_inverse * (b != 0)
        assert (a, name, b) not in held_out
    assert lessons == +expected


def test_orders_look_random() -> None:
    task = calculator()
    row_of = {tuple(tokens): row for row, tokens in enumerate(task.tokens.tolist())}
    first, other = ([row_of[tuple(t)] for t in visits(task, seed, 1000, 10).tolist()] for seed in (3, 4))
    # A shuffled order is uncorrelated with itself shifted by one, and with the order of another seed.
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.05


def test_a_batch_is_a_function_of_seed_and_step(task: Task) -> None:
    batch = batch_at(task, 7, 123, 64)
    chex.assert_trees_all_equal(batch, batch_at(task, 7, 123, 64))
    chex.assert_trees_all_equal(batch, jax.jit(batch_at, static_argnames="size")(task, 7, jnp.int32(123), size=64))
    assert (batch.tokens != batch_at(task, 8, 123, 64).tokens).any()
    assert (batch.tokens != batch_at(task, 7, 124, 64).tokens).any()


def test_late_steps_are_where_exact_arithmetic_says() -> None:
    task, size, step = calculator(("plus",), max_number=10), 16, 2_000_000_001  # step × size does not fit 32 bits
    epoch = len(task.lessons)
    place = step * size % epoch
    first = step - -(-place // size)  # the batch in which this epoch begins
    get = jax.jit(batch_at, static_argnames="size")
    seen = np.concatenate([get(task, 0, first + i, size=size).tokens for i in range(2 + epoch // size)])
    begin = (step - first) * size - place
    assert in_order(seen[begin : begin + epoch]) == in_order(task.lessons)


def test_the_mask_is_the_answer_and_its_end_or_everything_before_it(task: Task) -> None:
    row = task.row(Problem((40, 2), ("plus",)))
    assert row is not None
    answer, everything = (
        batch_of(task, task.tokens[np.array([row])]),
        batch_of(task, task.tokens[np.array([row])], "all"),
    )
    assert answer.mask.tolist() == [[1, 1, 1]]
    assert everything.mask.shape == (1, 8)
    row = task.row(Problem((2, 3), ("plus",)))
    assert row is not None
    assert batch_of(task, task.tokens[np.array([row])]).mask.tolist() == [[1, 1, 0]]
    assert batch_of(task, task.tokens[np.array([row])], "all").mask.tolist() == [[0, 1, 1, 1, 1, 1, 1, 0]]


def test_membership(task: Task) -> None:
    held_out = task.problem(int(task.held_out_rows[0]))
    training = task.problem(int(task.train_rows[0]))
    assert task.membership(held_out) == "held out"
    assert task.membership(training) == "training"
    for outside in (
        Problem((99, 1), ("plus",)),
        Problem((1, 2), ("minus",)),
        Problem((7, 2), ("divided by",)),
        Problem((1, 2, 3), ("plus", "plus")),
    ):
        assert task.membership(outside) == "outside"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt is empty"),
        ("two plus three plus four", "2 operations"),
        ("two", "not 'number operation number'"),
        ("two plus", "no number after 'plus'"),
        ("plus two", "no number before 'plus'"),
        ("two plus three equals five", "not 'number operation number'"),
        ("two equals three", "not 'number operation number'"),
        ("two <pad> plus three", "not 'number operation number'|not a number"),
        ("five divided by zero", "division by zero"),
        ("five / 0", "division by zero"),
        ("two plus " * 200, "characters; at most 1,000"),
    ],
)
def test_a_prompt_that_is_no_question_is_refused(task: Task, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task.encode(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operations": ("plus", "modulo")}, "unknown operation 'modulo'"),
        ({"operations": ()}, "at least one of"),
        ({"operations": ("plus", "plus")}, "at most once"),
        ({"max_number": 0}, "max_number is 0"),
        ({"max_number": 1000}, "max_number is 1000"),
        ({"split": "half"}, "split is 'half'"),
        ({"output": "roman"}, "output is 'roman'"),
        ({"held_out": 0.0}, "held_out is 0.0"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"held_out": float("nan")}, "held_out is nan"),
        ({"held_out": 1e-9}, "leaves 0 of 11,344 problems held out"),
        ({"copies": {"times": 0}}, r"copies\['times'\] is 0"),
        ({"inverse_copies": {"times": -1}}, r"inverse_copies\['times'\] is -1"),
        ({"copies": {"modulo": 2}}, "unknown operation 'modulo'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calculator(**arguments)


@pytest.mark.parametrize("size", [0, -1, 10_212])
def test_a_batch_is_no_larger_than_the_training_set(task: Task, size: int) -> None:
    with pytest.raises(InputError, match=f"batch size is {size}"):
        batch_at(task, 0, 0, size)
