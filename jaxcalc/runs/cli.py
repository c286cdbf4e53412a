"""How a script reads its command line, and how it ends on bad input."""

import contextlib
import functools
import gc
import io
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from jaxcalc.errors import InputError
from jaxcalc.runs.streams import Output, exit_status
from jaxcalc.runs.text import wrapped

Options = TypeVar("Options")

COLLECT_EVERY = 100_000
"""New objects between two searches for cycles to free. Python's own 700 cost watch.py a tenth of its time: importing
and tracing make many objects and few cycles."""
gc.set_threshold(COLLECT_EVERY)  # here, before the script imports JAX


def run_script(
    main: Callable[[Options], int],
    options: type[Options],
    defaults: Callable[[Options], Options | None] = lambda _: None,
) -> int:
    """Parse the command line into `options`, run `main` on it and return its exit status.

    `defaults` sees the parsed options, and may return other defaults for the options that the command line leaves out.
    An `InputError` becomes one line on stderr and status 2. The status is 141 if what the script printed had no reader
    (`| head`, `>&-`), and 2, with one line, if it could not be written. What the script does is done all the same.
    Scripts compute in float32, also under JAX_ENABLE_X64, and keep what they compile: see `keep_programs`.
    """
    gc.freeze()  # what was imported stays
    out, err = Output(sys.stdout), Output(sys.stderr)
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # it has been read from
            sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is no text is an unknown word
    with contextlib.redirect_stdout(cast(Any, out)), contextlib.redirect_stderr(cast(Any, err)):
        try:
            status = _run(main, options, defaults)
        finally:
            out.flush()
            err.flush()
        return exit_status(status, out, err)


def _run(main: Callable[[Options], int], options: type[Options], defaults: Callable[[Options], Options | None]) -> int:
    parse = functools.partial(_parse, options)
    try:
        parsed = parse()
        default = defaults(parsed)
        import jax  # a mistake on the command line is told before this takes its half second

        from jaxcalc.runs.programs import keep_programs

        if jax.config.read("jax_enable_x64"):
            print("warning: JAX_ENABLE_X64 is set; a run is trained and read in float32 all the same", file=sys.stderr)
            jax.config.update("jax_enable_x64", False)
        keep_programs()
        return main(parsed if default is None else parse(default=default))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parse(options: type[Options], default: Options | None = None) -> Options:
    """Return the options of the command line. tyro fits its help to the terminal, but not the line of usage."""
    import tyro

    shown = io.StringIO()
    shown.isatty = sys.stdout.isatty
    given = tyro.MISSING_NONPROP if default is None else default
    try:
        with contextlib.redirect_stdout(shown):
            config = (tyro.conf.FlagCreatePairsOff,)
            return tyro.cli(options, default=given, description=about(options), config=config)
    finally:
        usage, newline, rest = shown.getvalue().partition("\n")
        if usage:
            print(wrapped(re.sub("\x1b\\[[\\d;]*m", "", usage)) + newline + rest, end="")


def about(options: type) -> str:
    """Return what a script says it does, its options' docstring, in lines that fit the terminal.

    tyro joins lines, but none that begins with a space.
    """
    text = " ".join((options.__doc__ or "").split())
    return wrapped(text, indent=" ")
