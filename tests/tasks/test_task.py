"""What every task has: it takes text, prints in one line, compares by what it holds, and hashes."""

import copy
import dataclasses
import functools
import pickle

import jax
import numpy as np
import pytest

from jaxcalc import InputError, Problem, Task, arithmetic, calculator

TASKS = {
    "table": functools.partial(calculator, max_number=9),
    "drawn": functools.partial(arithmetic, 9, ("plus",), notation="digits"),
}


@functools.cache
def made(name: str) -> Task:
    return TASKS[name]()


each_task = pytest.mark.parametrize("name", TASKS)


@each_task
def test_membership_takes_text_as_well_as_a_problem(name: str) -> None:
    task = made(name)
    for row in (int(task.train_rows[0]), int(task.held_out_rows[0])):
        problem = task.problem(row)
        assert task.membership(f"What is {problem}?") == task.membership(problem) != "outside"
    assert task.membership("nine plus one") == "outside"
    with pytest.raises(InputError, match="unknown word 'pluss'; did you mean 'plus'"):
        task.membership("two pluss three")


def test_another_seed_makes_another_task() -> None:
    assert calculator(max_number=9) != calculator(max_number=9, seed=1)


def test_row_takes_text_as_well_as_a_problem() -> None:
    task = calculator(max_number=9)
    assert task.row("two plus three") == task.row(Problem((2, 3), ("plus",))) is not None
    assert task.row("nine plus one") is None
    with pytest.raises(InputError, match="the prompt is not 'number operation number'"):
        task.row("two")


@each_task
def test_a_task_prints_in_one_line(name: str) -> None:
    task = made(name)
    n_training, n_held_out = len(task.train_rows), len(task.held_out_rows)
    for shown in (task, jax.eval_shape(lambda task: task, task)):
        line = repr(shown)
        assert line.startswith(f"{type(task).__name__}(plus")
        assert f"lists {n_training:,} training and {n_held_out:,} held-out problems)" in line
        assert "\n" not in line
        assert len(line) < 200


@each_task
def test_tasks_compare_and_hash_by_what_they_hold(name: str) -> None:
    task, again = made(name), TASKS[name]()
    for same in (again, copy.deepcopy(task), pickle.loads(pickle.dumps(task)), jax.tree.map(np.asarray, task)):
        assert task == same
        assert hash(task) == hash(same)
    assert {task: "found"}[again] == "found"
    others = [dataclasses.replace(task, **changes) for changes in ({"tokens": task.tokens + 1}, {"split": "family"})]
    for different in (*others, *(made(key) for key in TASKS if key != name)):
        assert task != different
    assert task != repr(task)


def test_the_same_program_serves_equal_tasks() -> None:
    traces: list[Task] = []
    tokens = jax.jit(lambda task: traces.append(task) or task.tokens)
    for make in (calculator, calculator):
        tokens(make(max_number=9))
    assert len(traces) == 1


@pytest.mark.parametrize("operations", [("mod",), ("plus", "mod"), "mod"])
def test_an_unknown_operation_of_a_problem_is_named(operations: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"unknown operation 'mod'; the operations are 'plus', 'minus'|tuple, such as"):
        Problem((2, 3), operations)


def test_a_problem_is_a_tuple_still() -> None:
    problem = Problem((2, 3), ("plus",))
    assert repr(problem) == "Problem(numbers=(2, 3), operations=('plus',))"
    assert problem == ((2, 3), ("plus",)) == pickle.loads(pickle.dumps(problem))
    assert problem._replace(operations=("times",)).answer == 6
    assert jax.tree.map(lambda number: number, problem) == problem
