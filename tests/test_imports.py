"""The architecture is a list of modules in which imports only run downwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxcalc

PACKAGE = Path(jaxcalc.__file__).parent
ORDER = [
    "errors", "words", "tokenizer", "problems", "tasks", "digits", "sampled", "trees", "model", "losses", "large",
    "training", "decoding", "evaluation", "backprop", "blame", "lens", "landscape", "population", "sharding", "scaling",
    "processes", "share", "checkpoint", "runs", "cost", "report", "page",
    "__init__",
]  # fmt: skip
HOST = {"processes", "share", "checkpoint", "runs", "cost", "report", "page"}
"""The only modules that touch files, clocks, the machine and the terminal."""


def imports(module: str) -> set[str]:
    """Every module that a module imports, the names of this package without its prefix."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("jaxcalc.") for name in found}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_those_above_it(module: str) -> None:
    allowed = ORDER[: ORDER.index(module)]
    assert not {name for name in imports(module) if name in ORDER and name not in allowed}


@pytest.mark.parametrize("module", [module for module in ORDER if module not in HOST and module != "__init__"])
def test_pure_modules_know_no_files_clocks_or_terminals(module: str) -> None:
    assert not imports(module) & {"pathlib", "os", "sys", "time", "rich", "matplotlib", "safetensors", "tyro"}


IMPORT = """
import time, jax, optax, flax.training.train_state
start = time.perf_counter()
import jaxcalc
seconds = time.perf_counter() - start
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized(), "matplotlib" in __import__("sys").modules)
"""


def test_importing_touches_no_device_and_loads_no_figures() -> None:
    result = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_every_public_name_is_documented() -> None:
    for name in jaxcalc.__all__:
        value = getattr(jaxcalc, name)
        assert name in ("Metrics",) or (value.__doc__ and len(value.__doc__) > 20), name
