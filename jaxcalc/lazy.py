"""Names of a package that are imported when they are first used."""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return a package's `__getattr__` (PEP 562), `__dir__` and `__all__`; its stub, __init__.pyi, says what it has.

    So the start of a script waits for what the script uses, and for nothing else. Editors and type checkers read the
    same stub, as in SPEC 1 of Scientific Python.

    Args:
      package: the `__name__` of the package.
      file: its `__file__`.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        home = homes.get(name, package)
        if home != package:
            value = getattr(importlib.import_module(home), name)
        elif importlib.util.find_spec(f"{package}.{name}"):
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # the next time, Python finds it by itself
        return value

    return load, lambda: list(homes), list(homes)
