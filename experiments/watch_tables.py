"""The tables of watch.py: what it computes, and how that is printed."""

from typing import Any, TypedDict

import rich.markup
from rich.console import Console

from jaxcalc.runs import report


class Token(TypedDict):
    position: int
    id: int
    token: str


class Asked(TypedDict):
    """The tokens that the model reads, and the one that it should say."""

    run: str
    tokens: list[Token]
    target: str
    membership: str
    """As in `Task.membership`: "training" or "held out"."""
    drawn: bool
    """Whether the task draws its problems instead of listing them all."""


class Word(TypedDict):
    token: str
    probability: float


class Prediction(TypedDict):
    """The likeliest next words, and the surprise at the right one."""

    predictions: list[Word]
    probability: float
    surprise_nats: float
    surprise_bits: float


class Replayed(Prediction):
    step: int


class Replay(Asked):
    """What the run would have said at each of its snapshots."""

    replay: list[Replayed]


class Positions(TypedDict):
    """A norm at each token position."""

    name: str
    norm: list[float]


class StageNorms(TypedDict):
    """Norms of what arrives at a stage on the way back, of what leaves it, and of its gradient."""

    name: str
    message_in: float
    message_out: float | None
    grad_norm: float


class OptimizerUsed(TypedDict):
    name: str
    of: str
    """ "the run's own" or "a fresh optimizer"."""
    learning_rate: float


class Watched(Asked, Prediction):
    """One step of learning from one word."""

    step: int
    snapshots: list[int]
    forward: list[Positions]
    uniform_nats: float
    stages: list[StageNorms]
    messages: list[Positions]
    optimizer: OptimizerUsed
    blame: dict[str, float] | None
    blame_nats: dict[str, float]
    withheld: str | None
    predicted_drop: float
    credit: dict[str, float]
    actual_drop: float
    residual: float
    token_blame: list[float]
    weight: dict[str, Any]
    """The fields of a `WeightStory`, and the "learning_rate" of its weight."""
    after: Prediction


def print_replay(result: Replay, console: Console) -> None:
    """Print what the run would have said at each snapshot."""
    target = result["target"]
    rows = []
    for snapshot in result["replay"]:
        best = snapshot["predictions"][0]
        mark = "" if best["token"] == target else " ✗"
        probabilities = [report.percent(p) for p in (best["probability"], snapshot["probability"])]
        rows.append([f"{snapshot['step']:,}", best["token"] + mark, *probabilities, f"{snapshot['surprise_nats']:.4g}"])
    columns = ["step", "next word", "p", f"p({target})", "surprise (nats)"]
    read = " ".join(token["token"] for token in result["tokens"] if token["id"])  # without the padding
    console.print(report.table(f"{read} → {target}", columns, rows, text=(1,)))
    console.print(f"\nThis problem {membership(result)}.")


def membership(result: Asked) -> str:
    """Return whether training has seen the problem, as the end of a sentence."""
    if result["membership"] == "held out":
        return "was held out, so training never saw it"
    return "is one that training may have drawn" if result["drawn"] else "was in training"


def print_watch(result: Watched, console: Console) -> None:
    """Print one step of learning, part by part."""
    for part in (print_reading, print_backward, print_blame, print_weight, print_after):
        part(result, console)


def print_reading(result: Watched, console: Console) -> None:
    target, p, nats = result["target"], result["probability"], result["surprise_nats"]
    console.print(f"{result['run']} at step {result['step']:,}. This problem {membership(result)}.\n")
    rows = [[str(token["position"]), str(token["id"]), token["token"]] for token in result["tokens"]]
    console.print(report.table("Text → tokens", ["position", "id", "token"], rows, text=(2,)))
    print_positions("\nForward: ‖output‖ of each stage at each position", result["forward"], console)
    print_words("\nLikeliest words", result, console)
    console.print(
        f"\nThe right word is {target}. Surprise = −ln p({target}) = −ln {p:.4g} = {nats:.4g} nats\n"
        f"({result['surprise_bits']:.3g} bits); a uniform guess has {result['uniform_nats']:.2f} nats. "
        "This surprise is the loss.\n"
    )


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
    )
    both = zip(result["tokens"], result["token_blame"], strict=True)
    rows = [[str(token["position"]), token["token"], f"{nats:.6f}"] for token, nats in both]
    console.print(report.table("Blame by position", ["position", "token", "nats"], rows, text=(1,)))


NOTES = {
    "gradient": "by the chain rule",
    "finite difference": "by trying both sides of the value",
    "trace": "momentum",
    "mu": "momentum",
    "nu": "mean of squared gradients",
    "mu_hat": "mu, corrected for its start at 0",
    "nu_hat": "nu, corrected for its start at 0",
    "direction": "what the optimizer makes of the above",
    "new value": "value + step",
}


def print_weight(result: Watched, console: Console) -> None:
    weight = result["weight"]
    extra = {name: value for name in ("weight_decay", "clipping") if (value := weight[name])}
    rows = {
        "value": weight["value"],
        "gradient": weight["gradient"],
        "finite difference": weight["finite_difference"],
        **weight["state"],
        "learning rate": weight["learning_rate"],
        "direction": -weight["from_gradient"] / weight["learning_rate"],
        **{name.replace("_", " "): value for name, value in extra.items()},
        "step": weight["step"],
        "new value": weight["new_value"],
    }
    notes = {**NOTES, "step": "−learning rate · direction" + " + the rest" * bool(extra)}
    cells = [[name, f"{value:.8g}", notes.get(name, "")] for name, value in rows.items()]
    title = rich.markup.escape(f"\nOne weight: {weight['path']}")
    console.print(report.table(title, ["", "", ""], cells, text=(0, 2)))


def print_after(result: Watched, console: Console) -> None:
    after, target = result["after"], result["target"]
    print_words("\nAfter the step", after, console)
    before, now = report.percent(result["probability"]), report.percent(after["probability"])
    console.print(
        f"\np({target}) went from {before} to {now}, the surprise from {result['surprise_nats']:.4g} to "
        f"{after['surprise_nats']:.4g} nats."
    )
