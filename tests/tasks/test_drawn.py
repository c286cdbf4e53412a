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
from jaxcalc import Problem, arithmetic
from jaxcalc.errors import InputError
from jaxcalc.tasks import digits
from jaxcalc.tasks.drawing import Problems, Rules, draw, is_held_out
from jaxcalc.tasks.drawn import MOST_DIGITS, encode_problems
from jaxcalc.tasks.tokenizer import END, OPERATIONS

LARGEST = 10**MOST_DIGITS - 1
make = functools.cache(arithmetic)
TASKS = {
    "words": lambda: make(999),
    "all words": lambda: make(999_999_999, ("minus",)),
    "digits": lambda: make(9_999, ("plus", "times"), notation="digits"),
    "reversed": lambda: make(LARGEST, ("plus",), notation="digits-reversed"),
    "chains": lambda: make(99, ("plus", "minus"), terms=4, notation="digits"),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
numbers = st.integers(0, LARGEST) | st.integers(0, MOST_DIGITS).flatmap(lambda n: st.integers(0, 10**n))
many = hypothesis.settings(deadline=None, max_examples=100)


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
    for row in range(0, len(task.tokens), 29):
        problem = task.problem(row)
        prompt, answer = np.split(np.asarray(task.tokens[row]), [task.prompt_length])
        assert prompt.tolist() == task.encode(str(problem)).tolist()
        assert problem.answer is not None
        words = [task.tokenizer.token(i) for i in answer if i != 0]
        assert words == [*task.tokenizer.spell(problem.answer), END]
        assert task.parse(str(problem)) == problem


def test_any_problem_is_encoded_as_the_host_does() -> None:
    """Numbers of every length, with many zeros: each form of number words on the device."""
    task = TASKS["all words"]()
    rng = random.Random(0)

    def number() -> int:
        n = rng.randrange(9)
        return rng.choice((0, rng.randrange(10**n), 10**n, 10**n - 1))

    pairs = (sorted((number(), number()), reverse=True) for _ in range(300))
    problems = [Problem(tuple(pair), ("minus",)) for pair in pairs]
    for problem, tokens in zip(problems, np.asarray(task.with_problems(problems).tokens), strict=True):
        assert tokens[: task.prompt_length].tolist() == task.encode(str(problem)).tolist()
        spelled = task.tokenizer.decode(token for token in tokens[task.prompt_length :] if token > 1)
        assert spelled == jaxcalc.number_to_words(problem.numbers[0] - problem.numbers[1])


@each_task
def test_every_problem_drawn_is_one_of_the_task_and_of_its_side(task) -> None:
    task = task()
    for rows, side in ((task.train_rows, "training"), (task.held_out_rows, "held out")):
        for row in np.asarray(rows)[::41].tolist():
            assert task.membership(task.problem(row)) == side
    assert len(task.train_rows) == len(task.held_out_rows) == 2048


@each_task
def test_no_batch_holds_a_problem_that_is_held_out(task) -> None:
    """In 8 steps of 256; the host reads sequences back from their tokens alone."""
    task = task()
    steps = jax.jit(lambda task: jax.vmap(lambda step: task.sequences_at(3, step, 256))(jnp.arange(8)))
    tokens = np.asarray(steps(task)).reshape(-1, task.tokens.shape[1])
    for sequence in tokens[::24]:
        text = task.tokenizer.decode(token for token in sequence if token > 1)
        question, _, answer = text.partition(" equals ")
        problem = task.parse(question)
        assert task.membership(problem) == "training", text
        assert task.tokenizer.read(answer.split()) == problem.answer, text


def held_out(rules: Rules, problems: list[Problem]) -> np.ndarray:
    """Return which problems are held out, bool `[B]`."""
    numbers, kind_ids, _ = rules.arrays(problems)
    return np.asarray(is_held_out(rules, numbers, kind_ids))


def test_the_smaller_task_is_split_as_the_larger_and_twins_stay_together() -> None:
    """The rule is one of problems, not of tasks: problems up to 11, against tasks with larger numbers."""
    small, *larger = (Rules(OPERATIONS, largest, 2, held_out=0.1, seed=0) for largest in (11, 999, LARGEST))
    pairs = itertools.product(itertools.product(range(12), repeat=2), OPERATIONS)
    problems = [problem for pair, name in pairs if small.contains(problem := Problem(pair, (name,)))]
    sides = dict(zip(problems, held_out(small, problems).tolist(), strict=True))
    for rules in larger:
        assert held_out(rules, problems).tolist() == list(sides.values())
    for (a, b), operations in problems:
        if operations[0] in ("plus", "times"):
            assert sides[Problem((a, b), operations)] == sides[Problem((b, a), operations)]
    for operation in OPERATIONS:
        share = np.mean([side for problem, side in sides.items() if problem.operations == (operation,)])
        assert 0 < share < 0.25, (operation, share)
    # Tasks say the same, in whatever notation and with whatever operations.
    for name in ("words", "reversed"):
        task = TASKS[name]()
        there = [problem for problem in problems if task.rules.contains(problem)]
        listed = task.with_problems(there)
        assert np.isin(np.arange(len(there)), listed.held_out_rows).tolist() == [sides[problem] for problem in there]


def test_terms_that_change_places_with_their_signs_stay_on_a_side() -> None:
    rules = Rules(("plus", "minus"), 999, 4, held_out=0.1, seed=0)
    rng = random.Random(0)
    problems, moved = [], []
    for _ in range(500):
        first, terms = rng.randrange(300, 400), [rng.randrange(100) for _ in range(3)]  # no result is out of range
        signed = list(zip(terms, rng.choices(("plus", "minus"), k=3), strict=True))
        for found in (problems, moved):
            terms, signs = zip(*signed, strict=True)
            found.append(Problem((first, *terms), signs))
            rng.shuffle(signed)
    sides = held_out(rules, problems)
    assert (sides == held_out(rules, moved)).all()
    assert 0 < sides.mean() < 0.25


def test_the_share_and_the_seed_choose_what_is_held_out() -> None:
    rng = random.Random(0)
    problems = [Problem((rng.randrange(500), rng.randrange(500)), ("plus",)) for _ in range(4000)]
    tenth, half, other = (
        held_out(Rules(OPERATIONS, 999, 2, share, seed), problems) for share, seed in ((0.1, 0), (0.5, 0), (0.1, 1))
    )
    assert abs(tenth.mean() - 0.1) < 0.025
    assert abs(half.mean() - 0.5) < 0.04
    assert (tenth <= half).all()  # a larger share holds out the same problems, and more
    assert abs((other & tenth).mean() - 0.01) < 0.01
    task = make(999)
    assert (task.held_out, task.seed, task.rules) == (0.1, 0, Rules(OPERATIONS, 999, 2, 0.1, 0))


@functools.cache
def drawn(rules: Rules, n: int) -> Problems:
    """Return n problems of the training side."""
    return jax.jit(lambda: draw(rules, jax.random.key(7), n, "training")[0])()


def test_numbers_are_drawn_evenly_by_length_and_by_value() -> None:
    """Half of the additions by value: nearly all numbers have 6 digits; the other half by length: each as often."""
    rules = Rules(("plus",), 10**6 - 1, 2, held_out=0.1, seed=0)
    lengths = np.asarray(digits.length(drawn(rules, 40_000).numbers))
    counts = np.bincount(lengths.ravel(), minlength=7)[1:] / lengths.size
    # By value a + b ≤ 10⁶ − 1 has 81 % of its numbers above 10⁵; by length each of six is a sixth.
    expected = np.array([0, 0, 0, 0.01, 0.171, 0.81]) / 2 + 1 / 12
    assert np.abs(counts - expected).max() < 0.02, counts


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_problem_is_as_likely_as_every_other(operation: str) -> None:
    """Where numbers have one digit, drawing by length and by value are the same: uniform, by a chi-square test."""
    rules = Rules(OPERATIONS, 9, 2, held_out=0.2, seed=0)
    pairs = [Problem(pair, (operation,)) for pair in itertools.product(range(10), repeat=2)]
    problems = [problem for problem in pairs if rules.contains(problem)]
    training = [
        problem.numbers for problem, unseen in zip(problems, held_out(rules, problems), strict=True) if not unseen
    ]
    numbers, kind_ids, _ = map(np.asarray, drawn(rules, 20_000))
    is_kind = kind_ids == OPERATIONS.index(operation)
    found, counts = np.unique(numbers[is_kind, :, 0], axis=0, return_counts=True)
    assert set(training) == set(map(tuple, found.tolist()))
    assert chisquare(counts).pvalue > 1e-3
    assert abs(is_kind.mean() - 0.25) < 0.03


def test_a_batch_is_a_function_of_seed_and_step_and_its_part_that_of_a_larger_one() -> None:
    task = make(9, ("plus",), notation="digits")
    tokens = jax.jit(lambda seed, step: jaxcalc.batch_at(task, seed, step, 16).tokens)
    batch = jaxcalc.batch_at(task, 0, 5, 64)
    assert batch.mask.shape == (64, task.answer_length)
    assert (tokens(0, 5) == batch.tokens[:16]).all()  # jitted or not
    assert (tokens(0, 5) != tokens(0, 6)).any()
    assert (tokens(0, 5) != tokens(1, 5)).any()


@pytest.mark.slow
def test_train_step_learns_from_it_and_evaluate_reads_it() -> None:
    task = make(9, ("plus",), notation="digits")
    config = jaxcalc.ModelConfig(
        task.vocab_size, d_model=16, n_heads=2, d_ff=64, n_layers=1, context_length=task.context_length
    )
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
        ({"operations": ("plus", "plus")}, "each at most once"),
        ({"operations": ("power",)}, "unknown operation 'power'"),
        ({"operations": ()}, "operations are ()"),
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


def test_what_is_not_a_question_is_refused() -> None:
    for text in ("", "two plus", "two plus three plus four", "two plus three equals five", "1000 + 1", "7 / 0"):
        with pytest.raises(InputError):
            make(999).encode(text)


def test_a_problem_of_another_task_is_outside() -> None:
    task = make(999)
    for problem in (
        Problem((999, 1), ("plus",)),
        Problem((1, 2), ("minus",)),
        Problem((7, 2), ("divided by",)),
        Problem((7, 0), ("divided by",)),
        Problem((1, 2, 3), ("plus", "plus")),
    ):
        assert task.membership(problem) == "outside"
        with pytest.raises(InputError, match="is not a problem of this task"):
            task.with_problems([problem])


def test_encoding_is_integer_operations_alone() -> None:
    task = make(999)
    program = jax.jit(encode_problems).lower(task, task.problems).as_text()
    assert "f32" not in program
    assert "f64" not in program
