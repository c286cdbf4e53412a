"""Write the explorer of a run, or a page that trains a model from nothing: one HTML file, and open it.

python experiments/explore.py runs/calculator
→ runs/calculator/explorer.html: 5.9 MB, with all 12 snapshots of the default run. It takes 10 seconds.

python experiments/explore.py runs/calculator --output calculator.html --no-open
python experiments/explore.py runs/calculator --ledger "seven times eight" "six times nine"   # what taught it these?
python experiments/explore.py --live
→ live.html: a small model learns in the page, from its first step. It needs no run.
"""

import dataclasses
import json
import sys
import webbrowser
from pathlib import Path

import tyro
from ledger import taken_again  # beside this script

import jaxcalc
from jaxcalc import runs
from jaxcalc.errors import InputError
from jaxcalc.explorer import explore_live
from jaxcalc.runs import cli, placement
from jaxcalc.runs.text import wrapped

MOST_QUESTIONS = 8
"""Questions whose ledgers a page has."""


@dataclasses.dataclass(frozen=True)
class ExploreOptions:
    """Write one HTML file in which the model of a run runs live, forwards and backwards, at each of its snapshots."""

    run: tyro.conf.Positional[Path | None] = None
    """Run folder, as train.py leaves it."""
    live: bool = False
    """Write the page that trains a small model from nothing; it needs no run."""
    ledger: tuple[str, ...] = ()
    """Up to eight questions, such as "seven times eight": the page shows when and from which lessons the run learned
    their answers. Takes the run again, in minutes."""
    output: Path | None = None
    """The file to write; if left out, explorer.html in the run folder, or live.html here."""
    no_open: bool = False
    """Only write the file; do not open it in a browser."""
    json: bool = False
    """Print one JSON object."""


def main(options: ExploreOptions) -> int:
    if options.live == (options.run is not None):
        raise InputError("give a run folder, or --live for the page that trains from nothing")
    if options.live and options.ledger:
        raise InputError("--ledger needs a run folder; the page that trains from nothing has no run to take again")
    page = page_of(options.run, options.ledger) if options.run else explore_live()
    path = options.output or (options.run / runs.EXPLORER if options.run else Path("live.html"))
    try:
        size = path.write_bytes(page.html.encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --output") from error
    if options.json:
        result = {"path": str(path), "bytes": size, "steps": page.steps, "left_out": page.left_out}
        print(json.dumps(result, ensure_ascii=False))
    else:
        snapshots = f", with the snapshots of steps {', '.join(map(str, page.steps))}" if page.steps else ""
        print(wrapped(f"{path}: {size / 1e6:.2f} MB{snapshots}"))
        if page.left_out:
            print(wrapped(f"The snapshots of steps {', '.join(map(str, page.left_out))} did not fit."))
    if not options.no_open and not webbrowser.open(path.resolve().as_uri()):
        print(f"No browser was found; open {path} yourself.", file=sys.stderr)
    return 0


def page_of(path: Path, questions: tuple[str, ...]) -> jaxcalc.Explorer:
    """Return the explorer of a run, with the ledgers of some questions."""
    if not questions:
        return jaxcalc.explore(path)
    if len(questions) > MOST_QUESTIONS:
        raise InputError(f"--ledger has {len(questions)} questions; a page has room for at most {MOST_QUESTIONS}")
    placement.use_devices("", placement.ProcessOptions())
    run = jaxcalc.load_run(path)
    return jaxcalc.explore(run, ledgers=taken_again(run, questions))


if __name__ == "__main__":
    sys.exit(cli.run_script(main, ExploreOptions))
