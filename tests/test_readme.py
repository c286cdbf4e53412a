"""Every README is true: its Python runs, its commands parse and run, and what it names or links exists.

A new README is covered as soon as it exists. Python blocks and quick commands run in order, all those of a file in one
fresh folder that holds a small trained run at runs/calculator. Every other command is parsed by its script's own
options, and the slow suite runs it, with fewer steps where it would take many minutes.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import benchmark
import jax
import pytest
import tyro
from scripts import run_script

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT, capture_output=True, text=True, check=True,
)  # fmt: skip
READMES = sorted(LISTED.stdout.split())
COMPILES_LONG = ("jax_num_cpu_devices", "population", 'SIZES["1M"]', "10**30")
"""Python blocks with one of these compile for many seconds; the slow suite runs them."""
SHORTER = {
    "train.py": {"--steps": "100", "--snapshots": "3"},
    "sweep.py": {"--steps": "20", "--seeds": "100", "--learning-rate": "0.04", "--weight-decay": "0.25"},
    "data_efficiency.py": {"--held-out": "0.5", "--seeds": "0", "--train.steps": "20"},
}
"""Options that the slow suite adds to a command that does not give them. (`train.py` alone trains in full.)"""
TOO_LONG = ("benchmark.py --json", "benchmark.py --quick", "words999", "--size 10M")
"""Commands of many minutes; their options are parsed, and they do not run."""


PYTHON = f"""#!{sys.executable}
import os, sys
_, script, *words = sys.argv
name = os.path.basename(script)
more = {SHORTER!r}.get(name, {{}}) if words or name != "train.py" else {{}}
extra = [word for flag, value in more.items() if flag not in words for word in (flag, value)]
if name == "train.py" and not {{"--run-dir", "--resume"}} & {{*words}}:
    extra.append("--overwrite")
os.execv(sys.executable, [sys.executable, script, *words, *extra])
"""
"""What the slow suite calls python."""


class Block(NamedTuple):
    """One fenced block of a README."""

    line: int
    language: str
    text: str


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[Block]:
    text = read(name)
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in found]


def spans(name: str) -> list[str]:
    """Return the inline code of a README."""
    prose = re.sub(r"^```.*?^```$", "", read(name), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def commands(shell: str) -> Iterator[list[str]]:
    """Return the arguments of each command in some lines of shell, as the shell would split them."""
    for line in shell.replace("\\\n", " ").replace("$i", "0").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for token in [*lexer, ";"]:
            if set(token) <= set(";&|"):
                if command:
                    yield command
                command = []
            elif token not in ("do", "done", "wait", "srun"):
                command.append(token)


def shell_of(name: str) -> list[str]:
    """Return every piece of shell in a README: blocks, the questions of transcripts, and inline commands."""
    pieces = [block.text for block in blocks(name) if block.language == "bash"]
    for block in blocks(name):
        if block.language == "console":
            pieces += [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
    for span in spans(name):
        if re.match(r"(python3?|pip|pytest|srun) ", span):
            pieces.append(span)
        elif re.match(r"\w+\.py .", span):
            pieces.append(f"python experiments/{span}")
    return pieces


class Parsed(BaseException):
    """Stops a script once its command line is parsed."""


@contextlib.contextmanager
def arguments(*words: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(words))
        yield


def parsed_options(script: str, *words: str) -> Any:
    """Return the options that a script makes of its command line, without running it."""
    cli = tyro.cli

    def parse(*args: Any, **kwargs: Any) -> None:
        raise Parsed(cli(*args, **kwargs))

    with arguments(script, *words), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tyro, "cli", parse)
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f"{script} parses no options")


def flags(options: Any) -> set[str]:
    """Return every flag of a script whose parsed options these are."""
    found = set()
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        found |= {f"--{field.name}".replace("_", "-")} | (flags(value) if dataclasses.is_dataclass(value) else set())
    return found


def check(command: list[str]) -> Any:
    """Check one command as far as that goes without running it; return a script's options."""
    match command:
        case ["python" | "python3", "-m", "venv", *_] | ["source" | "export" | "for" | "echo", *_]:
            return None
        case ["python", "-c", code]:
            compile(code, "a README's command", "exec")
        case ["python", script, *words]:
            return parsed_options(script, *words)
        case ["pip", "install", *words]:
            extras = [word.removeprefix(".[").removesuffix("]") for word in words if word.startswith(".[")]
            assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
        case ["pytest", *words]:
            markers = [marker.split(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
            for before, word in zip(["", *words], words, strict=False):
                assert word in markers if before == "-m" else word == "-m" or (ROOT / word).exists(), word
        case ["jupyter", "lab", notebook]:
            assert (ROOT / notebook).is_file()
        case _:
            raise AssertionError(f"a command that no test knows: {shlex.join(command)}")
    return None


@pytest.mark.parametrize("name", READMES)
def test_commands_and_flags_exist(name: str) -> None:
    known: set[str] = {"--help"}
    for command in {tuple(command): command for piece in shell_of(name) for command in commands(piece)}.values():
        try:
            options = check(command)
        except SystemExit as stop:
            pytest.fail(f"{name}: {shlex.join(command)} ends with {stop.code}")
        known |= flags(options) if options is not None else set()
    used = {span.split()[0].split(".")[0] for span in spans(name) if span.startswith("--")}
    assert used <= known | flags(parsed_options("experiments/train.py"))


@pytest.mark.parametrize("script", SHORTER)
def test_shorter_options_exist(script: str) -> None:
    check(["python", f"experiments/{script}", *(word for pair in SHORTER[script].items() for word in pair)])


@pytest.mark.parametrize("name", READMES)
def test_names_paths_and_links_exist(name: str) -> None:
    for span in spans(name):
        for dotted in re.findall(r"\b(jax(?:calc)?\.[A-Za-z_.]+\w)", span):
            assert_exists(dotted)
        for path in re.findall(r"(?<![\w/])((?:jaxcalc|experiments|tests)/[\w./]*)", span):
            assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)]+)\)", read(name)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}, link


def assert_exists(dotted: str) -> None:
    """Check that a dotted name, such as jaxcalc.blame.assign_blame, is a module or in one."""
    found: Any = importlib.import_module(dotted.split(".")[0])
    done = dotted.split(".")[0]
    for part in dotted.split(".")[1:]:
        done = f"{done}.{part}"
        if not hasattr(found, part):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(done)
        assert hasattr(found, part), f"{done} of {dotted}"
        found = getattr(found, part)


@pytest.mark.parametrize("name", READMES)
def test_languages_are_known(name: str) -> None:
    """A block of another language would be run by no test."""
    assert read(name).count("```") == 2 * len(blocks(name))
    assert {block.language for block in blocks(name)} <= {"python", "bash", "console", "text"}


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READMES)
def test_python_runs(name: str, slow: bool, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Python in order, and before it the exports that it reads."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run, "runs/calculator")
    update = jax.config.update  # JAX has started here, with more devices than any example needs
    monkeypatch.setattr(jax.config, "update", lambda key, v: key == "jax_num_cpu_devices" or update(key, v))
    output = ""
    for block in blocks(name):
        if block.language == "python" and slow == any(sign in block.text for sign in COMPILES_LONG):
            output = run_python("\n" * block.line + block.text, name)
        elif block.language == "bash" and not slow:
            for command in commands(block.text):
                if command[:2] == ["python", "-c"]:
                    run_python(command[2], name)
                elif command[:2] == ["python", "experiments/export.py"]:
                    assert run_script("export", *command[2:]).status == 0
        elif block.language == "text" and not slow:  # what the block before prints, with this machine's digits
            assert len(output.splitlines()) == len(block.text.splitlines())
            assert masked(output) == masked(block.text)


def run_python(code: str, name: str) -> str:
    """Run a block of Python and return what it prints; a failure names the README and its line."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, ROOT / name, "exec"), {"__name__": "readme"})
    return out.getvalue()


def masked(text: str) -> list[str]:
    """Return the words of the last line, with every number as "#"."""
    return re.sub(r"-?\d[\d.e-]*", "#", text.splitlines()[-1]).split()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs for the shell: python adds `SHORTER`, and nothing is installed, tested or opened."""
    folder = tmp_path_factory.mktemp("bin")
    texts = dict.fromkeys(("pip", "pytest", "jupyter", "browser"), "#!/bin/sh\n") | {"python": PYTHON}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the README's first command leaves."""
    path = tmp_path_factory.mktemp("trained") / "calculator"
    assert run_script("train", "--run-dir", path).status == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", READMES)
def test_commands_run(name: str, programs: Path, trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path / "runs" / "calculator")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    hidden = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # the tests' own, which slow down what trains for long
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "BROWSER": str(programs / "browser")}
    for piece in shell_of(name):
        lines = [line for line in piece.splitlines() if not any(sign in line for sign in TOO_LONG)]
        script = "\n".join(lines)
        if re.match(r"(python3|srun) |$", script):
            continue
        command = ["bash", "-euo", "pipefail", "-c", script]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{script}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"


def test_the_first_loop_is_short_and_the_front_door_too() -> None:
    loop = next(block for block in blocks("README.md") if block.language == "python")
    assert len([line for line in loop.text.splitlines() if line.strip() and not line.startswith("import")]) == 12
    assert len(read("README.md").splitlines()) <= 180


def test_the_speed_tables_are_those_of_the_benchmarks_file() -> None:
    result = json.loads(read("experiments/results/benchmark.json"))
    told = read("experiments/README.md").split("<!-- benchmark -->\n")[1].split("\n<!-- /benchmark -->")[0]
    assert told == benchmark.markdown(result)
