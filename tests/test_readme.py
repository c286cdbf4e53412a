"""Every README is true: its Python runs, its commands parse and run, and what it names or links exists.

A new README is covered as soon as it exists. Python blocks run in order, all those of a file in one
fresh folder that holds a small trained run at runs/calculator. Every command is parsed by its script's own options,
and the slow suite runs it, with fewer steps where it would take many minutes.
"""

import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import benchmark
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from readmes import READMES, ROOT, blocks, commands, flags, parsed_options, read, shell_of, spans
from scripts import run_script

import jaxcalc
from jaxcalc import runs
from jaxcalc.steps import take_step

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPILES_LONG = (
    "jax_num_cpu_devices",
    "population",
    'SIZES["1M"]',
    "10**30",
    "equinox",
    "nnx",
    "curriculum",
    "checkpoint.Writer",
    "optax.masked",
)
"""Python blocks with one of these compile for many seconds; the slow suite runs them."""
SHORTER = {
    "train.py": {"--steps": "100", "--snapshots": "3"},
    "sweep.py": {"--steps": "20", "--seeds": "100", "--learning-rate": "0.04", "--weight-decay": "0.25"},
    "data_efficiency.py": {"--held-out": "0.5", "--seeds": "0", "--train.steps": "20"},
}
"""Options that the slow suite adds to a command that does not give them. (`train.py` alone trains in full.)"""
TOO_LONG = ("benchmark.py --json", "benchmark.py --quick", "gpu.py --json", "words999", "--size 10M")
"""Commands of many minutes; their options are parsed, and they do not run."""

PYTHON = f"""#!{sys.executable}
import os, sys
_, script, *words = sys.argv
name = os.path.basename(script)
more = dict({SHORTER!r}.get(name, {{}})) if words or name != "train.py" else {{}}
if "--resume" in words:  # ten steps more than the run has
    done = os.listdir(words[words.index("--resume") + 1] + "/checkpoints")
    more = {{"--steps": str(10 + max(int(step) for step in done if step.isdecimal()))}}
elif "--fork" in words:
    more = {{"--steps": "300"}}
elif name == "train.py" and "--run-dir" not in words:
    words.append("--overwrite")
extra = [word for flag, value in more.items() if flag not in words for word in (flag, value)]
os.execv(sys.executable, [sys.executable, script, *words, *extra])
"""
"""What the slow suite calls python."""


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
                known = {"-m": markers, "-n": ["0"]}.get(before, ["-m", "-n", "-s"])
                assert word in known or (ROOT / word).exists(), word
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


def run_shell(script: str, folder: Path, programs: Path) -> None:
    """Run some shell in a folder, in which the scripts are where the READMEs say."""
    hidden = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # the tests' own, which slow down what trains for long
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"PATH": f"{programs}:{os.environ['PATH']}", "BROWSER": str(programs / "browser")}
    command = ["bash", "-euo", "pipefail", "-c", script]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{script}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"


@pytest.fixture(scope="session")
def trained_run(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run that the README's first command leaves."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    run_shell("python experiments/train.py", folder, programs)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", READMES)
def test_commands_run(name: str, programs: Path, trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_run, tmp_path, symlinks=True, dirs_exist_ok=True)
    for piece in shell_of(name):
        script = "\n".join(line for line in piece.splitlines() if not any(sign in line for sign in TOO_LONG))
        if not re.match(r"(python3|srun) |$", script):
            run_shell(script, tmp_path, programs)


def test_the_first_loop_is_short_and_the_front_door_too() -> None:
    loop = next(block for block in blocks("README.md") if block.language == "python")
    assert len([line for line in loop.text.splitlines() if line.strip() and not line.startswith("import")]) == 12
    assert len(read("README.md").splitlines()) <= 180


def story() -> str:
    """Return what README's story tells, the first column of its table."""
    table = read("README.md").split("\n| part of the story |")[1].split("\n\n")[0]
    return "\n".join(row.split(" | ")[0] for row in table.splitlines()[2:])


def test_every_number_of_the_story_is_what_the_library_computes() -> None:
    task, tx = runs.RunConfig().make_task(), optax.sgd(0.01)
    params = jaxcalc.init(0, runs.RunConfig().make_model())
    p = jax.nn.softmax(jaxcalc.apply(params, task.encode("two plus three")[None], last=1)[0, 0])
    stepped = take_step(tx, jnp.array(0.1), tx.init(jnp.array(0.5)), jnp.array(0.5)).params
    large = jaxcalc.ModelConfig(task.vocab_size, **jaxcalc.SIZES["100M"])
    millions = jaxcalc.count(jax.eval_shape(lambda: jaxcalc.init(0, large))) / 1e6
    nats = {share: jaxcalc.surprise(share / 100)[0] for share in (42, 35, 94)}
    shares = [len(task.held_out_rows) / len(task.tokens), *(task.problems[:, [0, 2, 3]].min(), task.problems.max())]
    assert [round(float(share), 1) for share in shares] == [0.1, 0, 99]
    told = [
        f'"{task.tokenizer.token(int(p.argmax()))}" ({100 * p.max():.2f} %)',
        '"five" (99.99 %)',  # test_the_numbers_of_a_trained_run
        f"{len(task.tokens):,} problems up to {task.tokenizer.max_number}, a tenth",
        f"{nats[42]:.2f} nats where p is 42 %, {nats[35]:.2f} at 35 %, {nats[94]:.2f} at 94 %",
        f"ln {task.vocab_size} = {np.log(task.vocab_size):.2f}",
        f"0.5 − 0.01 · 0.1 = {stepped:.3f}",
        f"{jaxcalc.count(params):,} weights",
        f"{round(millions, -1):.0f} million",
        f"{task.vocab_size} in all. Each becomes {params['embed']['token'].shape[1]} numbers",
    ]
    rest = story()
    for text in told:
        assert text in rest
        rest = rest.replace(text, "")
    assert re.findall(r".*\d.*", rest) == [], "a number that no test knows"


@pytest.mark.slow
def test_the_numbers_of_a_trained_run(trained_run: Path) -> None:
    """Another machine rounds differently and ends a few answers away, so last digits may differ."""
    folder = trained_run / "runs" / "calculator"
    ended = run_script("watch", folder, "two plus three", "--replay", "--json")
    last = json.loads(ended.out)["replay"][-1]["predictions"][0]
    assert (last["token"], last["probability"]) == ("five", pytest.approx(0.9999, abs=5e-4))
    said = {word for span in spans("README.md") for word in re.findall(r"--step (\d+)", span)}
    assert said <= set(map(str, runs.checkpoint_steps(folder)))
    transcript = next(block.text for block in blocks("README.md") if block.language == "console").splitlines()
    (question,) = commands(transcript[0].removeprefix("$ "))
    out = run_script("ask", folder, *question[3:]).out.splitlines()
    assert [masked(line) for line in (out[0], out[-1])] == [masked(line) for line in (transcript[1], transcript[-1])]
    assert jaxcalc.load_run(folder).summary["held_out_exact_match"] > 0.99


def test_the_speed_tables_are_those_of_the_benchmarks_file() -> None:
    result = json.loads(read("experiments/results/benchmark.json"))
    told = read("experiments/README.md").split("<!-- benchmark -->\n")[1].split("\n<!-- /benchmark -->")[0]
    assert told == benchmark.markdown(result)
