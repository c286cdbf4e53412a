"""Drawn tasks: digits are exact, drawing is even, and nothing that is held out is ever drawn."""

import functools
import itertools
import random

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

import jaxcalc
from jaxcalc import Expression, arithmetic
from jaxcalc.errors import InputError
from jaxcalc.tasks import digits
from jaxcalc.tasks.drawn import MOST_DIGITS, draw, encode, is_held_out
from jaxcalc.tasks.tokenizer import END, OPERATIONS

LARGEST = 10**MOST_DIGITS - 1
make = functools.cache(arithmetic)
TASKS = {
    "words": lambda: make(999),
    "all words": lambda: make(999_999_999),
    "digits": lambda: make(10**6 - 1, notation="digits"),
    "reversed": lambda: make(LARGEST, notation="digits-reversed"),
    "chains": lambda: make(99, ("plus", "minus"), terms=4, notation="digits"),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
numbers = st.integers(0, LARGEST) | st.integers(0, MOST_DIGITS).flatmap(lambda n: st.integers(0, 10**n))
many = hypothesis.settings(deadline=None, max_examples=200)


def on_device(*values: int) -> jax.Array:
    return jnp.stack([jnp.asarray(digits.from_int(value, MOST_DIGITS)) for value in values])


add, subtract = jax.jit(lambda a, b: digits.carry(a + b)), jax.jit(lambda a, b: digits.carry(a - b))
multiply, at_most, length = jax.jit(digits.multiply), jax.jit(digits.at_most), jax.jit(digits.length)


@many
@hypothesis.given(numbers, numbers)
def test_digits_calculate_as_integers_do(a: int, b: int) -> None:
    x, y = on_device(a, b)
    total, beyond = add(x, y)
    assert digits.to_int(total) + int(beyond) * 10**MOST_DIGITS == a + b
    rest, beyond = subtract(x, y)
    assert digits.to_int(rest) + int(beyond) * 10**MOST_DIGITS == a - b
    product, overflow = multiply(x, y)
    assert (digits.to_int(product), bool(overflow)) == (a * b % 10**MOST_DIGITS, a * b > LARGEST)
    assert bool(at_most(x, y)) == (a <= b)
    assert int(length(x)) == len(str(a))


@each_task
def test_the_device_encodes_as_the_host_does(task) -> None:
    task = task()
    for row in range(0, len(task.tokens), 7):
        problem = task.problem(row)
        prompt, answer = np.split(np.asarray(task.tokens[row]), [task.prompt_length])
        assert prompt.tolist() == task.encode(str(problem)).tolist()
        assert problem.answer is not None
        words = [task.tokenizer.token(i) for i in answer if i != 0]
        assert words == [*task.tokenizer.spell(problem.answer), END]
        assert task.parse(str(problem)) == problem


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(st.data())
def test_any_problem_is_encoded_as_the_host_does(data: st.DataObject) -> None:
    task = TASKS["all words"]()
    value = st.integers(0, 999_999_999) | st.integers(0, 9).flatmap(lambda n: st.integers(0, 10**n - 1))
    a, b = data.draw(value), data.draw(value)
    problem = Expression((max(a, b), min(a, b)), ("minus",))
    tokens = np.asarray(task.of([problem]).tokens[0])
    assert tokens[: task.prompt_length].tolist() == task.encode(str(problem)).tolist()
    spelled = task.tokenizer.decode(token for token in tokens[task.prompt_length :] if token > 1)
    assert spelled == jaxcalc.number_to_words(max(a, b) - min(a, b))


@each_task
def test_every_problem_drawn_is_one_of_the_task_and_of_its_side(task) -> None:
    task = task()
    for rows, side in ((task.train_rows, "training"), (task.held_out_rows, "held out")):
        for row in np.asarray(rows)[::41].tolist():
            assert task.membership(task.problem(row)) == side
    assert len(task.train_rows) == len(task.held_out_rows) == 2048


@each_task
def test_no_batch_holds_a_problem_that_is_held_out(task) -> None:
    """In 64 steps of 512; each sequence is read back by the host from its tokens alone."""
    task = task()
    steps = jax.jit(lambda task, first: jax.vmap(lambda step: task.sequences_at(3, step, 512))(first + jnp.arange(4)))
    tokens = np.concatenate([steps(task, 4 * i).reshape(-1, task.tokens.shape[1]) for i in range(4)])
    for sequence in tokens[::97]:
        text = task.tokenizer.decode(token for token in sequence if token > 1)
        question, _, answer = text.partition(" equals ")
        problem = task.parse(question)
        assert task.membership(problem) == "training", text
        assert task.tokenizer.read(answer.split()) == problem.answer, text


def test_the_smaller_task_is_split_as_the_larger_and_twins_stay_together() -> None:
    """The rule is one of problems, not of tasks: problems up to 11, against larger tasks in other notations."""
    small, *larger = make(11), make(999), make(LARGEST, notation="digits-reversed")
    problems = [
        Expression((a, b), (operation,)) for a, b in itertools.product(range(12), repeat=2) for operation in OPERATIONS
    ]
    problems = [problem for problem in problems if small._is_inside(problem)]
    sides = {}
    for task in (small, *larger):
        held_out = np.isin(np.arange(len(problems)), task.of(problems).held_out_rows)
        sides[task.tokenizer.max_number] = dict(zip(problems, held_out.tolist(), strict=True))
    first, *others = sides.values()
    assert all(other == first for other in others)
    for (a, b), (operation,) in problems:
        if operation in ("plus", "times"):
            assert first[Expression((a, b), (operation,))] == first[Expression((b, a), (operation,))]
    for operation in OPERATIONS:
        share = np.mean([side for problem, side in first.items() if problem.operations == (operation,)])
        assert 0 < share < 0.25, (operation, share)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(st.lists(st.integers(0, 99), min_size=4, max_size=4), st.permutations([1, 2, 3]), st.data())
def test_terms_that_change_places_with_their_signs_stay_on_a_side(terms, order, data: st.DataObject) -> None:
    task = TASKS["chains"]()
    signs = data.draw(st.lists(st.sampled_from(["plus", "minus"]), min_size=3, max_size=3))
    problem = Expression(tuple(terms), tuple(signs))
    moved = Expression((terms[0], *(terms[i] for i in order)), tuple(signs[i - 1] for i in order))
    sides = [bool(is_held_out(task, *task._device(one))) for one in (problem, moved)]
    assert sides[0] == sides[1]


def test_the_share_and_the_seed_choose_what_is_held_out() -> None:
    task = make(999)
    problems = Expression((1, 1), ("plus",))
    rng = random.Random(0)
    problems = [Expression((rng.randrange(500), rng.randrange(500)), ("plus",)) for _ in range(4000)]

    def held_out(**arguments) -> np.ndarray:
        other = make(999, **arguments).of(problems)
        return np.isin(np.arange(len(problems)), other.held_out_rows)

    assert abs(held_out().mean() - 0.1) < 0.025
    assert abs(held_out(held_out=0.5).mean() - 0.5) < 0.04
    assert (held_out() <= held_out(held_out=0.5)).all()  # a larger share holds out the same problems, and more
    assert abs((held_out(seed=1) & held_out()).mean() - 0.01) < 0.01
    assert task.held_out == 0.1


def test_numbers_are_drawn_evenly_by_length_and_by_value() -> None:
    """Half of the additions by value: nearly all numbers have 6 digits; the other half by length: each as often."""
    task = arithmetic(10**6 - 1, ("plus",), notation="digits")
    lengths = np.asarray(digits.length(_problems(task, 40_000).numbers))
    counts = np.bincount(lengths.ravel(), minlength=7)[1:] / lengths.size
    # By value a + b ≤ 10⁶ − 1 has 81 % of its numbers above 10⁵; by length each of six is a sixth.
    expected = np.array([0, 0, 0, 0.01, 0.171, 0.81]) / 2 + 1 / 12
    assert np.abs(counts - expected).max() < 0.02, counts


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_problem_is_as_likely_as_every_other(operation: str) -> None:
    """Where numbers have one digit, drawing by length and by value are the same: uniform, by a chi-square test."""
    task = make(9, notation="digits", held_out=0.2)
    pairs = [Expression(pair, (operation,)) for pair in itertools.product(range(10), repeat=2)]
    there = {problem for problem in pairs if task.membership(problem) == "training"}
    drawn = _problems(task, 20_000)
    of_kind = np.asarray(drawn.kinds) == OPERATIONS.index(operation)
    found, counts = np.unique(np.asarray(drawn.numbers)[of_kind, :, 0], axis=0, return_counts=True)
    assert {problem.numbers for problem in there} == set(map(tuple, found.tolist()))
    assert chisquare(counts).pvalue > 1e-3
    assert abs(of_kind.mean() - 0.25) < 0.03


def _problems(task: jaxcalc.Arithmetic, n: int):
    return jax.jit(lambda task: draw(task, jax.random.key(7), n, "training")[0])(task)


def test_a_batch_is_a_function_of_seed_and_step_and_its_part_that_of_a_larger_one() -> None:
    task = make(999)
    tokens = jax.jit(lambda seed, step: jaxcalc.batch_at(task, seed, step, 64).tokens)
    batch = jaxcalc.batch_at(task, 0, 5, 256)
    assert batch.mask.shape == (256, task.answer_length)
    assert (tokens(0, 5) == batch.tokens[:64]).all()  # jitted or not
    assert (tokens(0, 5) != tokens(0, 6)).any()
    assert (tokens(0, 5) != tokens(1, 5)).any()


def test_train_step_learns_from_it_and_evaluate_reads_it() -> None:
    task = arithmetic(9, ("plus",), notation="digits")
    config = jaxcalc.ModelConfig(task.vocab_size, d_model=32, d_ff=64, context_length=task.context_length)
    params = jaxcalc.init(jax.random.key(0), config)
    state = jaxcalc.create_state(params, jaxcalc.make_optimizer("muon", 150))
    state, _ = jaxcalc.train_steps(state, task, seed=0, n_steps=150, batch_size=64)
    evaluation = jaxcalc.evaluate(state.params, task, task.train_rows)
    assert evaluation.exact_match is not None
    assert evaluation.exact_match > 0.95
    row = evaluation.by_digits()[1]
    assert row["problems"] == 2048
    assert row["low"] < row["exact_match"] <= row["high"] <= 1
    assert evaluation.by_carry_chain().keys() == {0}  # no sum up to 9 carries
    assert evaluation.by_operation()["plus"]["problems"] == 2048


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_number": 10**30, "notation": "digits"}, "max_number is 1000000000000000000000000000000"),
        ({"max_number": 10**9}, "with notation='words' it must be from 9 to 999999999"),
        ({"max_number": 8}, "max_number is 8"),
        ({"terms": 3}, "only plus and minus"),
        ({"terms": 5, "operations": ("plus",)}, "terms is 5"),
        ({"notation": "roman"}, "notation is 'roman'"),
        ({"operations": ("plus", "plus")}, "name each at most once"),
        ({"operations": ("power",)}, "operations are ('power',)"),
        ({"held_out": 1.0}, "held_out is 1.0"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message: str) -> None:
    with pytest.raises(InputError) as error:
        arithmetic(**arguments)
    assert message in str(error.value)


def test_a_task_without_a_held_out_problem_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcalc.tasks.drawn.ATTEMPTS", 50)
    with pytest.raises(InputError, match="leaves one side without any"):
        arithmetic(9, ("plus",), held_out=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a question"),
        ("two plus", "not 2 numbers"),
        ("two plus three plus four", "not 2 numbers"),
        ("plus two three", "not a number"),
        ("two plus three equals five", "not a question"),
        ("two pluss three", "did you mean 'plus'?"),
        ("1000 + 1", "number out of range"),
        ("7 / 0", "division by zero"),
    ],
)
def test_what_is_not_a_question_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        make(999).encode(text)
    assert message in str(error.value)


def test_every_notation_reads_words_and_digits() -> None:
    for task in (make(999), make(LARGEST, notation="digits"), make(LARGEST, notation="digits-reversed")):
        assert task.parse("Twenty-one + 305") == task.parse("21 plus three hundred and five")


def test_a_problem_of_another_task_is_outside() -> None:
    task = make(999)
    for problem in (
        Expression((999, 1), ("plus",)),
        Expression((1, 2), ("minus",)),
        Expression((7, 2), ("divided by",)),
        Expression((7, 0), ("divided by",)),
        Expression((1, 2, 3), ("plus", "plus")),
    ):
        assert task.membership(problem) == "outside"
        with pytest.raises(InputError, match="is not a problem of this task"):
            task.of([problem])


def test_encoding_is_integer_operations_alone() -> None:
    task = make(999)
    program = jax.jit(encode).lower(task, task.problems).as_text()
    assert "f32" not in program
    assert "f64" not in program
