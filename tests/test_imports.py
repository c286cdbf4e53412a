"""The architecture is the file list: imports only run downwards, and what is pure knows no files."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcalc

PACKAGE = Path(jaxcalc.__file__).parent
ORDER = [
    "lazy", "errors", "trees", "reprs", "fingerprints", "numerics", "batch",
    "tasks.words", "tasks.tokenizer", "tasks.problems", "tasks.questions", "tasks.task", "tasks.hashing",
    "tasks.encoding", "tasks.table", "tasks.relations", "tasks.digits", "tasks.drawing", "tasks.drawn", "tasks.own",
    "tasks.mixing", "tasks",
    "params", "model", "losses", "optimizers", "training", "decoding",
    "evaluation", "backprop", "steps", "blame", "weights", "lens", "interventions", "landscape", "population",
    "linear_step", "ledger",
    "scale.large", "scale.sharding", "scale.scaling", "scale.cost", "scale.processes", "scale",
    "runs.text", "runs.programs", "runs.files", "runs.manifest", "runs.checkpoint", "runs.share", "runs.stablehlo",
    "runs.config", "runs.configfile", "runs.placement", "runs.asking", "runs.summary", "runs.metrics", "runs.claim",
    "runs.replay", "runs.account", "runs.folder", "runs.guard", "runs.style", "runs.figures", "runs.pipeline",
    "runs.report", "runs.results", "runs.session", "runs.streams", "runs.cli", "runs.options", "runs",
    "explorer.live", "explorer.timeline", "explorer.page", "explorer",
]  # fmt: skip
"""Every module, each below those that may import it."""
OUTSIDE = {"pathlib", "os", "sys", "time", "rich", "matplotlib", "safetensors", "tyro", "orbax"}
"""What only runs, the explorer, `scale.processes`, `scale.cost` and `lazy` may know."""


def modules() -> dict[str, Path]:
    """Every module of the package but its face, by its name without the prefix."""
    names = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(part for part in name if part != "__init__"): path for path, name in names.items()}


def imports(path: Path) -> set[str]:
    """Every module that a file imports; of `from a import b` a.b where that is a module, else a."""
    known = {f"jaxcalc.{name}" for name in modules()}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            whole = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {path if path in known else str(node.module) for path in whole.values()}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_imports_run_downwards_only() -> None:
    assert modules().keys() == {"", *ORDER}
    for index, name in enumerate(ORDER):
        found = imports(modules()[name])
        assert "jaxcalc" not in found, f"{name} imports the face"
        above = {module for module in ORDER[index + 1 :] if f"jaxcalc.{module}" in found}
        assert not above, f"{name} imports {above}"


def test_pure_modules_know_no_files_clocks_or_terminals() -> None:
    for name in ORDER:
        if not name.startswith(("lazy", "runs", "explorer", "scale.processes", "scale.cost")):
            outside = {module.partition(".")[0] for module in imports(modules()[name])} & OUTSIDE
            assert not outside, f"{name} imports {outside}"


IMPORT = """
import sys
import jaxcalc
print(*({"jax", "numpy"} & sys.modules.keys()))
print(sorted(dir(jaxcalc)) == sorted(jaxcalc.__all__))
import flax.training.train_state
before = set(sys.modules)
for name in jaxcalc.__all__:
    getattr(jaxcalc, name)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
print(*({"rich", "tyro", "matplotlib", "orbax"} & (sys.modules.keys() - before)))
"""
ASK = """
import sys
from jaxcalc.runs import cli, folder
print(*({"flax", "rich", "matplotlib", "orbax", "scipy", "safetensors"} & sys.modules.keys()))
"""


def run(program: str) -> list[str]:
    """Return the lines that a program prints in a process of its own."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


def test_the_face_is_light_and_documented() -> None:
    assert run(IMPORT) == ["", "True", "False", ""]
    for name in jaxcalc.__all__:
        value = getattr(jaxcalc, name)
        assert name == "Metrics" or (value.__doc__ and len(value.__doc__) > 20), name


def test_asking_a_model_waits_for_nothing_that_only_training_needs() -> None:
    assert run(ASK) == [""]


def test_a_name_is_what_its_stub_says_and_another_name_is_an_error() -> None:
    assert jaxcalc.train_step is importlib.import_module("jaxcalc.training").train_step
    assert jaxcalc.runs.config is importlib.import_module("jaxcalc.runs.config")  # not in the stub, but a module
    with pytest.raises(AttributeError, match="module 'jaxcalc' has no attribute 'train_stop'"):
        _ = jaxcalc.train_stop  # pyright: ignore[reportAttributeAccessIssue]
