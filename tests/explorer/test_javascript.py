"""The explorer's JavaScript has the types that its JSDoc states, and one style."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_modules_pass_their_type_checker_and_their_linter() -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm, which comes with Node: apt-get install nodejs npm")
    if not (HERE / "node_modules").is_dir():
        pytest.skip(f"the checkers are not installed: npm ci --prefix {HERE}")
    checked = subprocess.run([npm, "run", "--silent", "check"], cwd=HERE, capture_output=True, encoding="utf-8")
    assert checked.returncode == 0, checked.stdout + checked.stderr
