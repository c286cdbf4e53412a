"""summary.json: the results of a finished run, with a checksum, and with marks of files that only it vouches for."""

from collections.abc import Mapping
from pathlib import Path

from jaxcalc.runs.configfile import Json, read_json, with_checksum, without_checksum, write_json
from jaxcalc.runs.files import SUMMARY, Mark

_FILES = "files"


def write_summary(path: Path, summary: Json, marks: Mapping[str, Mark]) -> None:
    """Write the summary of a run into its folder, with the mark of each file that is named.

    Raises `InputError` if it cannot be written.
    """
    write_json(path / SUMMARY, with_checksum({**summary, _FILES: marks}))


def read_summary(path: Path) -> tuple[Json, dict[str, Mark]]:
    """Return the summary of a finished run and the marks in it; one of an earlier version has none.

    Raises `InputError` if the run is unfinished, or if the summary is not what was written.
    """
    missing = f"{path} is unfinished: it has no {SUMMARY}; finish it with: python experiments/train.py --resume {path}"
    summary = without_checksum(read_json(path, SUMMARY, missing), path / SUMMARY)
    return summary, summary.pop(_FILES, {})
