"""What lens.py says: tables in the terminal, and the same findings as Markdown."""

from collections.abc import Mapping
from typing import Any

from lens_findings import Claim, Stable  # beside this script
from lens_measures import History
from rich import box
from rich.table import Table

from jaxcalc.runs import report

KINDS = ("right ones", "right tens", "off by one", "off by ten")
"""What a wrong answer may still share with the right one."""


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Return what is printed below the opening: the claims by topic, the snapshots, the mistakes, the other seeds."""
    made = claim_tables(result["findings"])
    history: History | None = result["while_it_learns"]
    if history:
        columns = ["step", "examples seen", "right", "surprise", "sharpness"]
        rows = [
            [
                f"{row['step']:,}",
                f"{row['step'] * history['batch_size']:,}",
                f"{100 * row['exact_match_all']:.1f} %",
                f"{row['loss']:.3g} nats",
                f"{row['sharpness']:.3g}",
            ]
            for row in history["snapshots"]
        ]
        made.append(report.table("While it learns, on the whole table of problems", columns, rows, text=()))
        if history["mistakes"]:
            title = f"Wrong answers at step {history['mistakes_step']:,} (in brackets: by chance)"
            made.append(report.table(title, *mistakes(history)))
    if result["stable"]:
        made.append(report.table("With other seeds (✗: does not hold)", *with_other_seeds(result)))
    return made


def claim_tables(findings: list[Claim]) -> list[Table]:
    """Return one table for each topic: does a claim hold, its number, its control, and a sentence that explains it."""
    made = []
    for topic in dict.fromkeys(claim["topic"] for claim in findings):
        table = Table(title=topic.capitalize(), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for name in ("", "claim", "number", "control"):
            numeric = name in ("number", "control")
            table.add_column(name, justify="right" if numeric else "left", no_wrap=numeric or not name)
        for claim in findings:
            if claim["topic"] == topic:
                verdict = "[green]holds[/]" if claim["holds"] else "[yellow]does not[/]"
                words = f"[bold]{first_capital(claim['claim'])}[/]\n{first_capital(claim['text'])}."
                numbers = (quantity(claim[key], claim["unit"]) for key in ("value", "control"))
                table.add_row(verdict, words, *numbers)
                table.add_section()
        made.append(table)
    return made


def quantity(value: float, unit: str) -> str:
    """Return a claim's number with its unit; shares, also of right answers, in %."""
    if unit in ("share", "share right", "probability"):
        return f"{100 * value:.0f} %"
    return f"{round(value, 2) + 0.0:.2f} {unit}"  # no −0


def first_capital(text: str) -> str:
    return text[0].upper() + text[1:]


def opening(result: Mapping[str, Any], n_controls: int) -> list[str]:
    """Return what is looked at, when a claim holds, and how many do."""
    findings: list[Claim] = result["findings"]
    n_hold = sum(claim["holds"] for claim in findings)
    what = "the trained model" if result["step"] is None else f"the snapshot of step {result['step']:,}"
    verdict = f"{n_hold} of {len(findings)} claims hold."
    if not n_hold:
        verdict = f"None of {len(findings)} claims holds: the model shows nothing that untrained models do not show."
    return [
        f"# What {result['run']} has learned",
        "",
        f"Seed {result['seed']}, {what}. A claim holds if its number exceeds every control by more than a margin. "
        f"The controls are {n_controls} untrained models and, for probes and periods, shuffled labels.",
        "",
        verdict,
    ]


def as_markdown(result: Mapping[str, Any], figures: list[str], n_controls: int) -> str:
    """Return the findings as Markdown."""
    findings: list[Claim] = result["findings"]
    lines = opening(result, n_controls)
    for topic in dict.fromkeys(claim["topic"] for claim in findings):
        lines += ["", f"## {topic.capitalize()}", ""]
        lines += [sentence(claim) for claim in findings if claim["topic"] == topic]
    if result["while_it_learns"]:
        lines += ["", "## While it learns", "", *learning_lines(result["while_it_learns"])]
    if result["stable"]:
        lines += ["", "## With other seeds", "", *markdown_table(*with_other_seeds(result))]
    return "\n".join([*lines, "", *(f"![{name}]({name}.png)" for name in figures), ""])


def sentence(claim: Claim) -> str:
    verdict = "**holds**" if claim["holds"] else "**does not hold**"
    name, text = first_capital(claim["claim"]), first_capital(claim["text"])
    return (
        f"- {name}: {verdict}. {text}. (Control {claim['control']:.3g} {claim['unit']}, margin {claim['margin']:.2g}.)"
    )


def learning_lines(history: History) -> list[str]:
    table = history["snapshots"]
    lines = []
    for operation in table[0]["exact_match"]:
        reached = next((row["step"] for row in table if row["exact_match"][operation] >= 0.9), None)
        when = "less than 90 % of the whole table is right at every snapshot"
        if reached is not None:
            when = f"90 % of the whole table is right by step {reached:,}"
        lines.append(f"- {operation}: {when}.")
    sharp = ", ".join(f"{row['sharpness']:.3g} (step {row['step']:,})" for row in table)
    lines.append(f"- Sharpness, the Hessian's largest eigenvalue on {history['n_problems']} problems: {sharp}.")
    if history["mistakes"]:
        lines += [
            "",
            f"Wrong answers at step {history['mistakes_step']:,}. The shares in brackets are by chance: the same "
            "answers, dealt to other problems of the operation.",
            "",
            *markdown_table(*mistakes(history)),
        ]
    return lines


def mistakes(history: History) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a table: what wrong answers share with the right ones."""
    rows = []
    for name, row in history["mistakes"].items():
        shares = [(row[kind], row[f"{kind}, by chance"]) for kind in KINDS]
        cells = ["–" if None in both else "{:.0%} ({:.0%})".format(*both) for both in shares]
        rows.append([name, f"{row['wrong']:,} of {row['problems']:,}", *cells])
    return ["operation", "wrong", *KINDS], rows


def with_other_seeds(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a table: each claim's number by seed, and whether the verdicts agree."""
    stable: list[Stable] = result["stable"]
    rows = []
    for row in stable:
        both = zip(row["values"], row["holds"], strict=True)
        cells = [f"{value:.2f}{'' if holds else ' ✗'}" for value, holds in both]
        verdict = ("holds in all" if row["holds"][0] else "holds in none") if row["same"] else "differs"
        rows.append([row["claim"], *cells, verdict])
    seeds = [result["seed"], *(run["seed"] for run in result["other_runs"])]
    return ["claim", *(f"seed {seed}" for seed in seeds), ""], rows


def markdown_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
