"""What the READMEs hold: blocks, inline code and commands; and what a script makes of a command."""

import contextlib
import dataclasses
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

ROOT = Path(__file__).parent.parent
LIST = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
READMES = sorted(subprocess.run(LIST, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
"""Every Markdown file of the project."""


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
