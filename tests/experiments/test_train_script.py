"""train.py is the loop; what makes it survive can be deleted."""

import ast
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import train

from jaxcalc.runs import cli

SOURCE = Path(train.__file__).read_text(encoding="utf-8")
OPTIONS = [
    "--ops",
    "plus",
    "--max-number",
    "5",
    "--steps",
    "20",
    "--batch-size",
    "8",
    "--model.d-model",
    "16",
    "--model.n-heads",
    "2",
    "--model.d-ff",
    "16",
    "--model.n-layers",
    "1",
]


class WithoutSession(ast.NodeTransformer):
    """Deletes every statement that names the session, and takes the body out of its `with` block."""

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.With) and names_session(node.items[0]):
            return [kept for each in node.body if (kept := self.visit(each)) is not None]
        if isinstance(node, ast.If) and not names_session(node.test):
            node = self.generic_visit(node)
            return node if node.body else None
        statements = (ast.ImportFrom, ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.If)
        return None if isinstance(node, statements) and names_session(node) else self.generic_visit(node)


def names_session(node: ast.AST) -> bool:
    names = [getattr(each, "id", None) or getattr(each, "module", None) or "" for each in ast.walk(node)]
    return any("session" in name for name in names)


def test_it_fits_on_a_few_screens() -> None:
    assert len(SOURCE.splitlines()) <= 130


def test_without_the_session_it_still_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = ast.fix_missing_locations(WithoutSession().visit(ast.parse(SOURCE)))
    assert "session" not in ast.unparse(ast.Module(tree.body[1:], []))
    bare = ModuleType("bare")
    exec(compile(tree, "train.py", "exec"), bare.__dict__)
    monkeypatch.setattr(sys, "argv", ["train.py", *OPTIONS, "--run-dir", str(tmp_path / "run")])
    assert cli.run_script(bare.main, train.TrainOptions, train.defaults) is None
    out, err = capsys.readouterr()
    assert "Exact match" in out
    assert "step 20/20 (160 examples)  loss" in err
    assert not (tmp_path / "run").exists()
