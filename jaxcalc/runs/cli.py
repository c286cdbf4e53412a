"""How a script reads its command line, and how it ends on bad input."""

import sys
from collections.abc import Callable
from typing import TypeVar

import jax
import tyro

from jaxcalc.errors import InputError

Options = TypeVar("Options")


def run_script(
    main: Callable[[Options], int],
    options: type[Options],
    defaults: Callable[[Options], Options | None] = lambda _: None,
) -> int:
    """Parse the command line into `options`, run `main` on it and return its exit status.

    `defaults` sees the parsed options, and may return other defaults for the options that the command line leaves out.
    An `InputError` becomes one line on stderr and status 2. Scripts compute in float32, also under JAX_ENABLE_X64.
    """
    if jax.config.read("jax_enable_x64"):
        print("warning: JAX_ENABLE_X64 is set; a run is trained and read in float32 all the same", file=sys.stderr)
        jax.config.update("jax_enable_x64", False)
    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        parsed = tyro.cli(options, config=config)
        default = defaults(parsed)
        return main(parsed if default is None else tyro.cli(options, default=default, config=config))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
