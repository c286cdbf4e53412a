"""The tables of watch.py: how what it computes is printed."""

import math
import shlex

from rich.console import Console
from watch_records import Asked, Moment, Positions, Prediction, Replay, Watched
from watch_weight import print_weight

from jaxcalc.runs import pipeline, report
from jaxcalc.tasks.tokenizer import EQUALS, PAD


def print_replay(result: Replay, console: Console) -> None:
    """Print what the run would have said at each snapshot."""
    rows = []
    for row in result["replay"]:
        said = answer_cells(row, result["target"])
        rows.append([f"{row['step']:,}", f"{row['examples']:,}", *said, f"{row['surprise_nats']:.4g}"])
    columns = ["step", "examples seen", "next word", "p", f"p({result['target']})", "surprise (nats)"]
    console.print(report.table(f"{question(result)} → {result['target']}", columns, rows, text=(2,)))
    console.print(f"\nThis problem {membership(result)}.")
    for what, moment in (("p passes 94 %", result["known"]), ("the surprise falls below 0.06", result["calm"])):
        console.print(f"For {result['target']}, {what} for good {when(moment)}.")


def when(moment: Moment | None) -> str:
    """Return from where on something holds, as the end of a sentence."""
    if moment is None:
        return "at no snapshot"
    before = "" if moment["before"] is None else f", not yet at step {moment['before']:,}"
    return f"at step {moment['step']:,} ({moment['examples']:,} examples){before}"


def answer_cells(row: Prediction, target: str) -> list[str]:
    """Return the likeliest word, marked if it is wrong, its probability, and that of the right one."""
    best = row["predictions"][0]
    mark = "" if best["token"] == target else " ✗"
    return [best["token"] + mark, report.percent(best["probability"]), report.percent(row["probability"])]


def question(result: Asked) -> str:
    """Return the words that the model reads, without the padding."""
    return " ".join(token["token"] for token in result["tokens"] if token["id"])


def membership(result: Asked) -> str:
    """Return whether training has seen the problem, as the end of a sentence."""
    if result["membership"] == "held out":
        return "was held out, so training never saw it"
    return "is one that training may have drawn" if result["drawn"] else "was in training"


def print_watch(result: Watched, console: Console) -> None:
    """Print one step of learning, part by part."""
    for part in (print_opening, print_reading, print_backward, print_blame, print_weight, print_after):
        part(result, console)


def print_opening(result: Watched, console: Console) -> None:
    """Print the blank, and which snapshot this is."""
    asked, said, target = question(result), result["predictions"][0]["token"], result["target"]
    words = asked.removesuffix(f" {EQUALS}")
    console.print(f"{asked} ___\n", style="bold")
    verdict = f"it says {said}" if said == target else f"it says {said} instead of {target}"
    why = {
        "given": "",
        "newest wrong": ", the newest of its snapshots that is wrong",
        "most surprised": ", the most surprised of its snapshots; the likeliest word is right at all of them",
    }[result["chosen"]]
    console.print(f"{result['run']} at step {result['step']:,}{why}: {verdict}. This problem {membership(result)}.\n")
    if result["chosen"] != "given":
        others = ", ".join(str(step) for step in result["snapshots"] if step != result["step"])
        command = f'python experiments/watch.py {shlex.quote(result["run"])} "{words}"'
        command += (" " if len(command) < 66 else " \\\n  ") + f"--step {result['snapshots'][0]}"
        console.print(f"The others are steps {others}:\n{command}\n")


def print_reading(result: Watched, console: Console) -> None:
    target = result["target"]
    rows = [[str(token["position"]), str(token["id"]), token["token"]] for token in result["tokens"]]
    console.print(report.table("Text → tokens", ["position", "id", "token"], rows, text=(2,)))
    print_positions("\nForward: ‖output‖ of each stage at each position", result["forward"], console)
    print_words("\nLikeliest words", result, console)
    p, nats = written(result["probability"], result["surprise_nats"])
    console.print(
        f"\nThe right word is {target}. Surprise = −ln p({target}) = −ln {p} = {nats} nats\n"
        f"({result['surprise_bits']:.3g} bits); a uniform guess has {result['uniform_nats']:.2f} nats. "
        "This surprise is the loss.\n"
    )


def written(probability: float, nats: float) -> tuple[str, str]:
    """Return p and −ln p with so many digits that −ln of the one, as it is written, is the other, as it is written.

    >>> written(0.4219, 0.8630), written(0.99997192, 2.808e-05)
    (('0.4219', '0.863'), ('0.99997192', '2.808e-05'))
    """
    for digits in (4, 3, 2, 1):
        for more in range(4, 18):
            p, said = f"{probability:.{more}g}", f"{nats:.{digits}g}"
            if float(p) > 0 and f"{abs(math.log(float(p))):.{digits}g}" == said:
                return p, said
    return f"{probability:.17g}", f"{nats:.1g}"  # a surprise smaller than the rounding of p


def print_positions(title: str, rows: list[Positions], console: Console) -> None:
    console.print(*report.position_tables(title, {row["name"]: row["norm"] for row in rows}), sep="\n")


def print_words(title: str, prediction: Prediction, console: Console) -> None:
    rows = [[word["token"], report.percent(word["probability"])] for word in prediction["predictions"]]
    console.print(report.table(title, ["word", "probability"], rows))


def print_backward(result: Watched, console: Console) -> None:
    rows = []
    for stage in result["stages"]:
        norms = (stage["message_in"], stage["message_out"], stage["grad_norm"])
        rows.append([stage["name"], *("–" if norm is None else f"{norm:.4g}" for norm in norms)])
    columns = ["stage", "message in", "message out", "gradient"]
    console.print(report.table("Backward: norms, from the loss to the embeddings", columns, rows))
    print_positions("\nBackward: ‖message in‖ at each position", result["messages"], console)
    console.print("Norms do not add up, so they have no percentages. The tokenizer has no weights.\n")


def print_blame(result: Watched, console: Console) -> None:
    optimizer, shares = result["optimizer"], result["blame"]
    earned = sum(result["credit"].values())
    rows = []
    for name, nats in result["blame_nats"].items():
        later = result["credit"][name]
        percents = ("–", "–") if shares is None else (f"{shares[name]:.1%}", f"{later / earned:.1%}")
        rows.append([name, f"{nats:.6f}", percents[0], f"{later:.6f}", percents[1]])
    whole = "–" if shares is None else "100.0%"
    rows.append(["all", f"{result['predicted_drop']:.6f}", whole, f"{earned:.6f}", whole])
    rate = f"{optimizer['learning_rate']:.3g}"
    console.print(f"One step of {optimizer['name']} ({optimizer['of']}), learning rate {rate}.")
    console.print(report.table("The drop in loss, in nats", ["", "blame before", "", "credit after", ""], rows))
    if shares is None:
        console.print(
            f"No percentages: {result['withheld']}. There is almost nothing to learn here. "
            f"Choose another --step: {', '.join(map(str, result['snapshots']))}."
        )
    console.print(
        f"Predicted drop −⟨g, Δ⟩: {result['predicted_drop']:.6f}.\n"
        f"Actual drop: {result['actual_drop']:.6f}; the credit misses {result['residual']:.1e} of it.\n"
        f"{promise(result)}\n"
    )
    print_pipeline(result, console)
    both = zip(result["tokens"], result["token_blame"], strict=True)
    rows = [[str(token["position"]), token["token"], f"{nats:.6f}"] for token, nats in both]
    console.print(report.table("\nBlame by position", ["position", "token", "nats"], rows, text=(1,)))
    if any(token["token"] == PAD for token in result["tokens"]):
        console.print(
            f"The model attends to {PAD} as to any token, so {PAD} has a part in the answer, and its embedding gets "
            "blame.",
        )


def promise(result: Watched) -> str:
    """Return why a step promises another drop than comes."""
    promised, nats = result["predicted_drop"], result["surprise_nats"]
    starts = "The promise takes the slope at the start for the whole step"
    if promised > 0 > result["actual_drop"]:
        return f"{starts}. The step is too long: it passes the valley, and the surprise rises."
    if promised <= nats:
        return f"{starts}; credit follows the slope on the way."
    return (
        f"{starts}, so it is more than the {nats:.3g} nats of surprise that there are. The slope flattens on the way "
        "as p nears 1, and credit follows it."
    )


def print_pipeline(result: Watched, console: Console) -> None:
    """Print the way from the text to the answer, and the blame on the way back."""
    said, shares = result["predictions"][0]["token"], result["blame_parts"]
    is_right = said == result["target"]
    for line in pipeline.pipeline_lines(f"{question(result)} ___", said, is_right, shares, console.width):
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    if shares is None:
        return
    console.print(
        "Here one would look for the tutorial's 5 → 15 → 30 → 50 %, from the tokenizer to the output. "
        "A tokenizer has no weights to blame."
    )
    into, out = result["stages"][-2]["message_in"], result["stages"][-2]["message_out"] or 0.0
    if max(shares, key=shares.__getitem__) == "embeddings" and out > into:
        console.print(
            f"The embeddings lead because the message grows from {into:.3g} to {out:.3g} on its way to them: they are "
            "small, and the norm before the first attention scales them up."
        )


def print_after(result: Watched, console: Console) -> None:
    after, target = result["after"], result["target"]
    print_words("\nAfter the step", after, console)
    before, now = report.percent(result["probability"]), report.percent(after["probability"])
    console.print(
        f"\np({target}) went from {before} to {now}, the surprise from {result['surprise_nats']:.4g} to "
        f"{after['surprise_nats']:.4g} nats."
    )
    rows = []
    for row in result["before_and_after"]:
        note = {"first": " (untrained)" if row["step"] == 0 else "", "after this step": " + this step"}
        name = f"step {row['step']:,}{note.get(row['when'], '')}"
        rows.append([name, *answer_cells(row, target), f"{row['surprise_nats']:.4g}"])
    columns = ["", "next word", "p", f"p({target})", "surprise (nats)"]
    console.print(report.table(f"\nBefore and after: {question(result)} ___", columns, rows, text=(0, 1)))
