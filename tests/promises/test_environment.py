"""What a researcher meets around the library: a REPL, type checkers, terminals, other processes, other folders."""

import functools
import importlib.metadata
import inspect
import os
import subprocess
import sys
import types
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import backprop, blame, steps
from jaxcalc.runs.config import RunConfig
from jaxcalc.trees import array_type

TASK = jaxcalc.calculator(max_number=6)
CONFIG = jaxcalc.ModelConfig(TASK.vocab_size, d_model=16, n_heads=2, d_ff=32, n_layers=1)
PARAMS = jaxcalc.init(jax.random.key(0), CONFIG)
BATCH = jaxcalc.batch_at(TASK, seed=0, step=0, size=8)
TX = optax.sgd(0.1)


# Printed values


class WithStatistics(jaxcalc.TrainState):
    """A state with a field of its own, as Flax's users write it."""

    statistics: Any = None


def printed() -> dict[str, Any]:
    """Return a value of each class that holds arrays or much text, by the name of its class."""
    state = WithStatistics.create(apply_fn=jaxcalc.apply, params=PARAMS, tx=TX, statistics=jnp.ones(3))
    (first, *rest), walked = backprop.stages(PARAMS, BATCH), list(backprop.walk(PARAMS, BATCH))
    values = [
        state,
        jaxcalc.create_state(PARAMS, jaxcalc.make_optimizer("muon", 100)),
        jax.eval_shape(lambda: state),
        BATCH,
        TASK,
        TASK.tokenizer,
        CONFIG,
        first,
        *backprop.forward(PARAMS, BATCH.tokens[:, :-1], [first, *rest]),
        *walked,
        steps.take_step(TX, PARAMS, TX.init(PARAMS), PARAMS),
        blame.ExampleBlame(np.zeros(8), 3.0),
        jaxcalc.Explorer("<html>" * 100_000, (0, 1), ()),
        jaxcalc.Evaluation(TASK, np.arange(5), np.zeros((5, 3), int), np.zeros(5), np.ones(5, bool)),
        jaxcalc.Run(Path("runs/x"), RunConfig(), {"errors": ["seven"] * 1_000}, TASK, PARAMS),
    ]
    return {f"{index} {type(value).__name__}": value for index, value in enumerate(values)}


def test_every_public_value_prints_in_a_few_lines_and_without_its_numbers() -> None:
    for name, value in printed().items():
        text = repr(value)
        assert text.count("\n") <= 12, name
        assert len(text) <= 1_000, name
        assert "rray(" not in text, name
        assert " at 0x" not in text, name


def test_arrays_print_as_dtype_and_shape_and_numbers_as_themselves() -> None:
    assert repr(BATCH) == "Batch(tokens=int32[8,6], mask=float32[8,2])"
    state = jaxcalc.create_state(PARAMS, TX)
    assert "step=0," in repr(state)
    assert f"<dict: 12 arrays, {jaxcalc.count(PARAMS):,} numbers>" in repr(state)
    mlp = next(step for step in backprop.walk(PARAMS, BATCH) if step.name == "block 0 mlp")
    assert "{'down': float32[32,16], 'norm': float32[16], 'up': float32[16,32]}" in repr(mlp)
    assert array_type(jnp.zeros((64, 4, 16))) == "float32[64,4,16]"
    assert "step=int32[]" in repr(jax.eval_shape(lambda: state))
    seen = []
    jax.jit(lambda batch: seen.append(repr(batch)))(BATCH)  # in a transformation too
    assert seen == [repr(BATCH)]
    state.step.delete()
    assert "step=int32[]" in repr(state)


ARRAY: Any = jnp.full((40, 50), jnp.nan)


@pytest.mark.parametrize(
    "call",
    [
        lambda: jaxcalc.batch_of(TASK, TASK.tokens, loss_on=ARRAY),
        lambda: jaxcalc.batch_of(TASK, TASK.tokens, loss_on=PARAMS),  # type: ignore[arg-type]
        lambda: jaxcalc.calculator(split=ARRAY),
        lambda: jaxcalc.calculator(output=np.asarray(ARRAY)),  # type: ignore[arg-type]
        lambda: jaxcalc.make_optimizer(ARRAY, 100),
        lambda: jaxcalc.interventions.twins(TASK, ARRAY, "plus"),
        lambda: jaxcalc.Problem((2, 3), ARRAY),
        lambda: jaxcalc.apply({**PARAMS, "embed": {"token": "x" * 1000, "position": ARRAY}}, BATCH.tokens),  # type: ignore[arg-type]
        lambda: blame.assign_blame(PARAMS, steps.take_step(TX, PARAMS, TX.init(PARAMS), PARAMS), level=ARRAY),
    ],
)
def test_an_error_names_what_is_wrong_and_prints_no_array(call: Callable[[], object]) -> None:
    with pytest.raises(jaxcalc.InputError) as error:
        call()
    assert "\n" not in str(error.value)
    assert "rray(" not in str(error.value)
    assert "nan" not in str(error.value)
    assert len(str(error.value)) < 250


# The package: names, help and types


def public() -> dict[str, Any]:
    """Return every public name with what it stands for: those of the package, and those of its public modules."""
    found: dict[str, Any] = {name: getattr(jaxcalc, name) for name in jaxcalc.__all__}
    for module in [value for value in found.values() if isinstance(value, types.ModuleType)]:
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        for name in getattr(module, "__all__", own):
            if not name.startswith("_"):
                found[f"{module.__name__}.{name}"] = getattr(module, name)
    return {name: value for name, value in found.items() if not isinstance(value, str | dict | tuple | float | int)}


def members(value: type) -> dict[str, Any]:
    """Return the public methods and properties that a class of this library defines."""
    own = {name: member for name, member in vars(value).items() if not name.startswith("_")}
    found = {name: getattr(member, "__func__", member) for name, member in own.items()}
    return {
        name: member
        for name, member in found.items()
        if isinstance(member, property | functools.cached_property) or inspect.isfunction(member)
    }


def test_help_of_every_public_name_begins_with_a_sentence_and_has_types() -> None:
    values = public()
    assert {"train_step", "jaxcalc.blame.assign_blame", "jaxcalc.runs.open_session"} <= values.keys()
    for name, value in dict(values).items():
        if inspect.isclass(value) and value.__module__.startswith("jaxcalc"):
            values |= {f"{name}.{member}": each for member, each in members(value).items()}
    for name, value in values.items():
        if name == "Metrics" or not getattr(value, "__module__", "jaxcalc").startswith("jaxcalc"):
            continue
        text = inspect.getdoc(value) or ""
        first = text.partition("\n\n")[0]
        assert len(first) > 10, f"{name} has no docstring"
        assert first[0].isupper(), f"{name}: {first}"
        assert first[-1] in ".:", f"{name}: {first}"
        assert not first.startswith(f"{name.rpartition('.')[2]}("), f"{name} has the docstring of a dataclass"
        if callable(value) and not inspect.isclass(value) and not name.endswith(".replace"):  # Flax's own
            signature = inspect.signature(value)
            assert signature.return_annotation is not signature.empty, name
            bare = {p.name for p in signature.parameters.values() if p.annotation is p.empty} - {"self", "cls"}
            assert not bare, f"{name} has no types for {bare}"


def test_the_version_is_that_of_the_package() -> None:
    assert jaxcalc.__version__ == importlib.metadata.version("jaxcalc")


def same(a: Any, b: Any) -> bool:
    return jaxcalc.fingerprint(a) == jaxcalc.fingerprint(b)


@pytest.mark.parametrize("seed", [0, np.int64(0), jnp.int32(0), jax.random.key(0)])
def test_init_takes_a_seed_or_a_key(seed: Any) -> None:
    assert same(jaxcalc.init(seed, CONFIG), PARAMS)


def test_init_takes_old_keys_and_refuses_the_rest() -> None:
    assert same(jaxcalc.init(jax.random.PRNGKey(0), CONFIG), PARAMS)
    assert not same(jaxcalc.init(1, CONFIG), PARAMS)
    for wrong in (1.5, "0", None, jax.random.split(jax.random.key(0)), np.zeros(2)):
        with pytest.raises(jaxcalc.InputError, match=r"key is .*; it must be a whole number or one key"):
            jaxcalc.init(wrong, CONFIG)  # type: ignore[arg-type]


def test_a_problem_written_in_another_way_is_refused_with_the_right_one() -> None:
    for wrong in (lambda: jaxcalc.Problem(2, "mod", 3), lambda: jaxcalc.Problem(2, "plus")):  # type: ignore[arg-type]
        with pytest.raises(jaxcalc.InputError, match=r"Problem\(\(2, 3\), \('plus',\)\)"):
            wrong()
    with pytest.raises(jaxcalc.InputError, match="unknown operation 'mod'"):
        jaxcalc.Problem((2, 3), ("mod",))


USE = """
import jax
import optax
import jaxcalc

task = jaxcalc.calculator()
params = jaxcalc.init(0, jaxcalc.ModelConfig(task.vocab_size))
state = jaxcalc.create_state(params, optax.sgd(0.1))
batch = jaxcalc.batch_at(task, seed=0, step=0, size=8)
reveal_type(params["embed"]["token"])
reveal_type(jaxcalc.loss(state.params, batch))
reveal_type(jaxcalc.evaluate(state.params, task, task.held_out_rows).exact_match)
jaxcalc.calculator(split="half")
"""


def test_the_package_is_marked_as_typed() -> None:
    assert Path(jaxcalc.__file__).with_name("py.typed").is_file()


@pytest.mark.slow
def test_type_checkers_see_the_types_of_an_installed_wheel(tmp_path: Path) -> None:
    """Install the wheel into a fresh environment beside this one's other packages, and check a script there."""
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=tmp_path)
    root = Path(jaxcalc.__file__).parents[1]
    built = run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(root)])
    assert built.returncode == 0, built.stderr
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    site = next((tmp_path / "venv/lib").glob("python3*/site-packages"))
    (site / "others.pth").write_text(str(Path(np.__file__).parents[1]))
    with zipfile.ZipFile(next(tmp_path.glob("jaxcalc-*.whl"))) as wheel:
        wheel.extractall(site)
    (tmp_path / "use.py").write_text(USE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pyright = run(["pyright", "--pythonpath", str(python), "use.py"], env=environment).stdout
    mypy = run([sys.executable, "-m", "mypy", "--python-executable", str(python), "use.py"], env=environment).stdout
    for said, array in ((pyright, '"Array"'), (mypy, '"jax._src.basearray.Array"')):
        assert said.count(array) == 2, said
        assert '"float | None"' in said, said
        assert "half" in said, said
