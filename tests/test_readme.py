"""The README's Python examples run as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import benchmark
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_python_examples_run(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "jax_num_cpu_devices" in EXAMPLES[index]:  # JAX has started in this process
        subprocess.run([sys.executable, "-c", EXAMPLES[index]], check=True)
        return
    exec(compile(EXAMPLES[index], f"README example {index}", "exec"), {"__name__": "readme"})


def test_the_first_example_is_short() -> None:
    lines = [line for line in EXAMPLES[0].splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) == 10


def test_the_speed_tables_are_those_of_the_benchmarks_file() -> None:
    result = json.loads((ROOT / "experiments" / "results" / "benchmark.json").read_text(encoding="utf-8"))
    assert README.split("<!-- benchmark -->\n")[1].split("\n<!-- /benchmark -->")[0] == benchmark.markdown(result)


def test_every_file_that_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:jaxcalc|experiments|tests)/[\w./]+)`", README):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"^\| `(\w+\.py)`", README.split("## The files")[1], flags=re.MULTILINE):
        assert (ROOT / "jaxcalc" / module).exists(), module


def test_every_function_that_the_readme_names_exists() -> None:
    names = sorted(set(re.findall(r"`jaxcalc\.([\w.]+)`", README)))
    code = "import jaxcalc, jaxcalc.report\n" + "\n".join(f"jaxcalc.{name}" for name in names)
    assert names
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
