"""What a researcher meets around the library: a REPL, type checkers, terminals, other processes, other folders."""

import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import inspect
import io
import multiprocessing
import os
import pickle
import shlex
import subprocess
import sys
import types
import venv
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import ask
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scaling
import scripts
import train

import jaxcalc
from jaxcalc import backprop, blame, steps
from jaxcalc.runs import cli
from jaxcalc.runs.config import RunConfig
from jaxcalc.trees import array_type

TASK = jaxcalc.calculator(max_number=6)
CONFIG = jaxcalc.ModelConfig(TASK.vocab_size, d_model=16, n_heads=2, d_ff=32, n_layers=1)
PARAMS = jaxcalc.init(jax.random.key(0), CONFIG)
BATCH = jaxcalc.batch_at(TASK, seed=0, step=0, size=8)
TX = optax.sgd(0.1)
SOURCES = [*Path(jaxcalc.__file__).parent.rglob("*.py"), *scripts.EXPERIMENTS.glob("*.py")]


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


# Terminals


@dataclasses.dataclass(frozen=True)
class Nothing:
    """A script without options."""


def ended(main: Callable[[Any], int], stdout: Any, options: Any = Nothing, arguments: Sequence[str] = ()) -> int:
    """Return the exit status of a script whose standard output is this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script.py", *arguments])
        patch.setattr(sys, "stdout", stdout)
        return cli.run_script(main, options)


Pipes = Iterator[io.TextIOWrapper]


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    """Yield pipes whose readers are gone."""
    with contextlib.ExitStack() as held:

        def make() -> Pipes:
            while True:
                reader, writer = os.pipe()
                os.close(reader)
                yield held.enter_context(os.fdopen(writer, "w", encoding="utf-8"))

        yield make()


def test_symbols_are_written_in_ascii_where_the_terminal_has_no_others(small_run: Path) -> None:
    held = io.BytesIO()
    terminal = io.TextIOWrapper(held, encoding="ascii")
    assert ended(ask.main, terminal, ask.AskOptions, [str(small_run), "2", "+", "3"]) == 0
    assert b"two plus three equals -> " in held.getvalue()
    for options in (train.TrainOptions, ask.AskOptions):
        with pytest.raises(SystemExit, match="0"):
            ended(lambda _: 0, terminal, options, ["--help"])
    held.truncate(0)
    held.seek(0)
    symbols = {symbol for path in SOURCES for symbol in path.read_text(encoding="utf-8") if not symbol.isascii()}
    ended(lambda _: print("".join(symbols)) or 0, terminal)
    assert held.getvalue().isascii()
    held.truncate(0)
    held.seek(0)
    ended(lambda _: print("2 × 3 → 6 … ‖x‖² \udcff") or 0, terminal)
    assert held.getvalue() == b"2 x 3 -> 6 ... |x|2 \xff\n"


@pytest.mark.parametrize("text", ["line", "line" * 100_000])  # held back until the end, or written at once
@pytest.mark.parametrize("is_open", [True, False])
def test_without_a_reader_the_work_is_done_and_the_status_says_so(pipes: Pipes, text: str, is_open: bool) -> None:
    done = []
    stdout = next(pipes) if is_open else None
    assert ended(lambda _: done.append(print(text)) or done.append(print(text)) or 0, stdout) == 141
    assert len(done) == 2
    assert ended(lambda _: 0, next(pipes) if is_open else None) == 0  # nothing was lost


def test_an_error_counts_more_than_lost_output(pipes: Pipes, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_: Nothing) -> int:
        print("line", flush=True)
        raise jaxcalc.InputError("it is wrong")

    assert ended(refuse, next(pipes)) == 2
    assert capsys.readouterr().err == "error: it is wrong\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_one_line_and_a_failing_status(capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    with Path("/dev/full").open("w") as full:
        assert ended(lambda _: done.append(print("line", flush=True)) or 0, full) == 2
    assert done
    assert capsys.readouterr().err == "error: cannot write the output: No space left on device\n"


def test_questions_are_read_only_while_somebody_reads_the_answers(
    pipes: Pipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "2 + 3")
    lines = []

    def answer(_: Nothing) -> int:
        while question := ask.read_line():  # as from `yes "2 + 3"`
            lines.append(question)
            print(question, flush=True)
        return 0

    assert ended(answer, next(pipes)) == 141
    assert len(lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "status"),
    [("PYTHONIOENCODING=ascii", "", 0), ("LC_ALL=C PYTHONUTF8=0", "", 0), ("", "| head -1", 141), ("", "| true", 141),
     ("", "2>&1 | head -1", 141), ("", ">&-", 141), ("", ">/dev/full", 2)],
)  # fmt: skip
def test_a_run_is_kept_on_every_terminal(before: str, after: str, status: int, tmp_path: Path) -> None:
    words = [sys.executable, str(scripts.EXPERIMENTS / "train.py"), *scripts.SMALL, "--run-dir", str(tmp_path / "run")]
    command = f"{before} {shlex.join(words)} {after}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=scripts.child_environment())
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert jaxcalc.load_run(tmp_path / "run").summary["steps"] == scripts.STEPS


# What the documents say


def facts(task: jaxcalc.Calculator, rows: jax.Array) -> dict[str, set[tuple[int, ...]]]:
    """Return what problems state, whatever is asked: a + b = c for plus and minus, a · b = c for the others."""
    found: dict[str, set[tuple[int, ...]]] = {"sums": set(), "products": set()}
    for a, operation, b, answer in np.asarray(task.problems)[np.asarray(rows)].tolist():
        name = task.tokenizer.operations[operation]
        first, second, result = (a, b, answer) if name in ("plus", "times") else (b, answer, a)
        found["sums" if name in ("plus", "minus") else "products"].add((*sorted((first, second)), result))
    return found


def test_training_has_another_form_of_as_many_held_out_facts_as_the_readme_says() -> None:
    task = jaxcalc.calculator()
    training, held_out = facts(task, task.train_rows), facts(task, task.held_out_rows)
    counts = {kind: (len(held_out[kind] & training[kind]), len(held_out[kind])) for kind in held_out}
    assert counts == {"sums": (686, 687), "products": (81, 84)}
    text = (scripts.EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    assert "767 of the 771 facts" in text
    assert "686 of 687 for plus and minus, and of 81 of 84 for times and divided by" in text
    apart = jaxcalc.calculator(split="family")
    training, held_out = facts(apart, apart.train_rows), facts(apart, apart.held_out_rows)
    assert not any(held_out[kind] & training[kind] for kind in held_out)


@pytest.mark.slow
def test_the_prediction_of_scaling_says_for_which_examples_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "PAPER_MESHES", [("data", {}, 1, (8,))])
    assert scaling.SIZE == "14 positions, 36 words"
    titles = [str(table.title) for table in scaling.tables({"paper": scaling.paper()})]
    assert all(scaling.SIZE in title for title in titles)
    text = (scripts.EXPERIMENTS / "README.md").read_text(encoding="utf-8")
    assert "14 positions and a vocabulary of 36 words" in text


# Other processes, other folders


def values_to_send() -> list[Any]:
    state = jaxcalc.create_state(PARAMS, jaxcalc.make_optimizer("muon", 100, clip_norm=1.0))
    return [PARAMS, TASK, jaxcalc.Problem((2, 3), ("plus",)), CONFIG, BATCH, TASK.tokenizer, state.tx, state]


def test_values_pickle_and_copy() -> None:
    for value in values_to_send():
        for again in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)):
            assert type(again) is type(value)
            assert repr(again) == repr(value)
            assert jax.tree.structure(again) == jax.tree.structure(value)  # so that nothing compiles anew
            arrays = [leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array)]
            if arrays:
                assert same([leaf for leaf in jax.tree.leaves(again) if isinstance(leaf, jax.Array)], arrays)
    tx = values_to_send()[-2]
    assert pickle.loads(pickle.dumps(tx)) is tx
    made = tx._replace(init=tx.init)  # no longer that of a call
    with pytest.raises(AttributeError, match="local object"):
        pickle.dumps(made)


def trained(state: jaxcalc.TrainState) -> jaxcalc.TrainState:
    """Return the state after a step, as another process makes it."""
    return jaxcalc.train_step(state, BATCH)[0]


@pytest.mark.slow
def test_a_state_goes_to_another_process_and_comes_back_trained() -> None:
    state = values_to_send()[-1]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        after = pool.submit(trained, state).result()
    assert same(after.params, trained(state).params)
    assert after.tx is state.tx


@pytest.mark.slow
def test_scripts_run_in_any_folder_and_without_a_home(small_run: Path, tmp_path: Path) -> None:
    environment = scripts.child_environment(
        HOME="/proc/none", XDG_CACHE_HOME="/proc/none", XDG_CONFIG_HOME="/proc/none"
    )
    for words in (
        ["train.py", *scripts.SMALL, "--run-dir", "run"],
        ["ask.py", str(small_run), "2 + 3"],
        ["explore.py", "run", "--no-open"],
    ):
        command = [sys.executable, str(scripts.EXPERIMENTS / words[0]), *words[1:]]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
    assert jaxcalc.load_run(tmp_path / "run").summary["steps"] == scripts.STEPS
