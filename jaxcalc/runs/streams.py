"""Standard output and error of a script, on any terminal and with any reader.

A symbol that the terminal's encoding lacks is written in ASCII. When the reader of a pipe is gone, or a disk is full,
the script goes on without output, so that a run that trains is kept; `run_script` tells of it by the exit status.
"""

import codecs
import contextlib
import errno
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

CLOSED = 141
"""The exit status of a script whose output was closed: that of a command that SIGPIPE ends, 128 + 13."""
ASCII = {
    "→": "->", "↔": "<->", "↑": "^", "×": "x", "÷": "/", "−": "-", "–": "-", "—": "-", "·": "*", "…": "...",
    "“": '"', "”": '"', "’": "'", "≤": "<=", "≥": ">=", "‖": "|", "√": "sqrt ", "Δ": "D", "∂": "d", "Σ": "sum ",
    "✗": "x",
}  # fmt: skip
"""How the symbols of the library are written in ASCII; accents and raised digits lose what makes them special."""


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace one character that an encoding lacks; a byte of a file's name that is no text stays that byte."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    symbol = error.object[error.start]
    if "\udc80" <= symbol <= "\udcff":
        return bytes([ord(symbol) - 0xDC00]), error.start + 1
    plain = unicodedata.normalize("NFKD", symbol).encode("ascii", "ignore").decode()
    return ASCII.get(symbol, plain or "?"), error.start + 1


codecs.register_error("jaxcalc.ascii", _in_ascii)


class Output:
    """A stream of text that goes on in silence once writing has failed.

    Args:
      file: standard output or error, as Python has it: None if it was closed before the script began.
    """

    def __init__(self, file: Any) -> None:
        self._is_closed = file is None
        if file is None:
            os.open(os.devnull, os.O_WRONLY)  # so that no file of the run gets the number of the stream
        self._file = io.StringIO() if file is None else file
        self.error: OSError | None = None
        """Why writing failed; None if it has not."""
        if isinstance(self._file, io.TextIOWrapper):
            self._file.reconfigure(errors="jaxcalc.ascii")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        """Write a text, or nothing once writing has failed."""
        if self._is_closed:
            self.error = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        else:
            with self._noting_errors():
                self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is held back, or nothing once writing has failed."""
        with self._noting_errors():
            self._file.flush()

    @contextlib.contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())  # what the stream still holds goes there too
            os.close(nowhere)


def has_reader() -> bool:
    """Return whether somebody may still read what this script prints."""
    return getattr(sys.stdout, "error", None) is None


def exit_status(status: int, *outputs: Output) -> int:
    """Return the exit status of a script that ended with `status`, after telling of output that could not be written.

    An error counts more than the output. A reader that is gone is no error of the script, and nobody is told.
    """
    error = next((output.error for output in outputs if output.error), None)
    if status or error is None:
        return status
    if isinstance(error, BrokenPipeError):
        return CLOSED
    print(f"error: cannot write the output: {error.strerror}", file=sys.stderr)
    return 2
