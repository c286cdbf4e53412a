"""The story of one weight in watch.py: its numbers, plain SGD's step, and what made another step of it."""

import math

import rich.markup
from rich.console import Console
from watch_records import Watched

from jaxcalc.runs import report

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


MUON = "Muon moves a whole matrix at once, some of its entries uphill."


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
    title = rich.markup.escape(f"\nOne weight: {weight['path']}{meaning(result)}")
    console.print(report.table(title, ["", "", ""], cells, text=(0, 2)))
    value, rate, gradient = (weight[name] for name in ("value", "learning_rate", "gradient"))
    console.print(
        "\nPlain SGD at this rate, whose step is always against the gradient:\n"
        f"w − rate · gradient = {value:.6g} − {rate:.6g} · ({gradient:.6g}) = {value - rate * gradient:.6g}"
    )
    ways = ways_to_the_step(result)
    rows = [[name, f"{change:+.3g}", f"{step:+.4g}"] for name, change, step in ways]
    console.print(report.table("\nFrom SGD's step to this one", ["", "adds", "step so far"], rows))
    console.print(verdict(ways))


def meaning(result: Watched) -> str:
    """Return what a weight of the token embeddings stands for, or nothing."""
    path = result["weight"]["path"]
    for token in result["tokens"]:
        if path.startswith(f"embed.token[{token['id']},"):
            return f", number {path[path.index(',') + 1 : -1].strip()} of those for {token['token']}"
    return ""


def ways_to_the_step(result: Watched) -> list[tuple[str, float, float]]:
    """Return the parts of one weight's step: a name, what it adds, and the step up to there."""
    weight = result["weight"]
    method = "Adam" if "nu" in weight["state"] else {"muon": "Muon"}.get(result["optimizer"]["name"], "SGD")
    steps = {
        "plain SGD": -weight["learning_rate"] * weight["gradient"],
        f"{method} instead": weight["alone"],
        "momentum": weight["from_gradient"],
        "weight decay": weight["from_gradient"] + weight["weight_decay"],
        "clipping": weight["step"],
    }
    if method == "SGD":
        del steps["SGD instead"]
    ways, before = [], 0.0
    for name, step in steps.items():
        if not ways or not math.isclose(step, before, rel_tol=1e-5):
            ways.append((name, step - before, step))
            before = step
    return ways


def verdict(ways: list[tuple[str, float, float]]) -> str:
    """Return whether the step is against the gradient, as SGD's is, or what turned it and by how much."""
    sgd, step = ways[0][2], ways[-1][2]
    if len(ways) == 1:
        return "The step is that of plain SGD."
    if sgd * step > 0:
        return f"The step is against the gradient too, and {step / sgd:.3g} times as long as SGD's."
    if sgd == 0 or step == 0:
        return "Without a gradient there is no direction to compare." if sgd == 0 else "The step is zero."
    turns = [index for index in range(1, len(ways)) if ways[index - 1][2] * sgd > 0 >= ways[index][2] * sgd]
    name, change, after = ways[turns[-1]]
    if any(way == "Muon instead" for way, _, _ in ways):
        because = {"Muon instead": MUON, "momentum": f"{MUON} The earlier gradients of all its entries weigh more."}
    else:
        because = {"momentum": "The earlier gradients pointed the other way, and they weigh more."}
    turned = f"{name} turned the step: it adds {change:+.3g} and makes it {after:+.3g}, along the gradient."
    return f"{turned} {because.get(name, '')}".strip()
