"""The findings of lens.py: each claim has a number, a control, and a verdict and words that follow from them."""

from typing import Any

import numpy as np

from jaxcalc import lens

Measures = dict[str, Any]
Claim = dict[str, Any]

ROLE = {name: index for index, name in enumerate(lens.ROLES)}
LOOKS = {
    "the operation looks back at the first number": ("operation", ["first tens", "first ones"]),
    '"equals" looks at the operation': ("equals", ["operation"]),
    '"equals" looks at both ones': ("equals", ["first ones", "second ones"]),
    '"equals" looks at both tens': ("equals", ["first tens", "second tens"]),
    "the answer looks at both ones": ("answer", ["first ones", "second ones"]),
    "the answer looks at its own words": ("answer", ["answer"]),
}
"""Claims about attention: who looks, and at what. (Nothing can look at what comes after it.)"""


def claim(topic: str, name: str, text: str, value: float, controls: list[float], margin: float, unit: str) -> Claim:
    """Return a claim: it holds where its value exceeds every control by more than `margin`."""
    most = max(controls)
    return {"topic": topic, "claim": name, "text": text, "value": value, "control": most, "margin": margin,
            "unit": unit, "holds": bool(value > most + margin)}  # fmt: skip


def claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    """Return every claim about a model's measures, beside those of untrained models and of shuffled labels."""
    return [
        *attention_claims(found, blank),
        *number_claims(found, blank),
        *operation_claims(found, blank),
        *output_claims(found, blank),
    ]


def points(share: float) -> int:
    return round(100 * share)


def attention_claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    def look(measures: Measures, head: str, query: str, keys: list[str]) -> float:
        return sum(measures["attention"][head][ROLE[query]][ROLE[key]] for key in keys)

    made = []
    for name, (query, keys) in LOOKS.items():
        best = max(found["attention"], key=lambda head: look(found, head, query, keys))
        value = look(found, best, query, keys)
        controls = [max(look(one, head, query, keys) for head in one["attention"]) for one in blank]
        seen = " and ".join(f'"{key}"' for key in keys)
        text = f'head {best} gives {value:.0%} of the attention of "{query}" to {seen}'
        made.append(claim("attention", name, text, value, controls, 0.1, "share"))
    by_mean, by_zero = (found["lost_without_head"][kind] for kind in ("mean", "zero"))
    for operation in found["exact_match"]:
        lost = {head: costs[operation] for head, costs in by_mean.items()}
        best = max(lost, key=lost.__getitem__)
        controls = [max(costs[operation] for costs in one["lost_without_head"]["mean"].values()) for one in blank]
        text = (
            f"with the mean in place of what head {best} mixes, {operation} loses {points(lost[best])} points of "
            f"exact match, with zero {points(by_zero[best][operation])}; "
            f"without the head it needs least it loses {points(min(lost.values()))}"
        )
        made.append(claim("attention", f"{operation} needs a head", text, lost[best], controls, 0.1, "share"))
    return made


def number_claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    made = []
    wheres = {"number_probes": ("a number's", "at its last word"), "answer_probes": ("the answer's", 'at "equals"')}
    for key, (whose, where) in wheres.items():
        for name, of in found[key].items():
            best = int(np.argmax(of["score"]))
            score, shuffled = of["score"][best], of["shuffled"][best]
            unit = "R²" if name == "magnitude" else "share right"
            untrained = [max(one[key][name]["score"]) for one in blank]
            text = (
                f"a linear probe after {found['stages'][best]} reads {whose} {name} {where} with {unit} {score:.2f}; "
                f"with shuffled labels {shuffled:.2f}, off untrained models at most {max(untrained):.2f}"
            )
            controls = [*untrained, shuffled]
            margin = max(0.05, of["n"] ** -0.5)  # two standard errors of a share of n, at most
            made.append(claim("numbers", f"{whose} {name} becomes readable", text, score, controls, margin, unit))
    power = np.array(found["fourier"][-1])
    top = np.argsort(-power)[:3]
    named = ", ".join(f"{len(found['pca'][-1]) / (k + 1):.3g} ({power[k]:.0%})" for k in top)
    controls = [found["fourier_shuffled"][-1], *(max(one["fourier"][-1]) for one in blank)]
    text = f"after the last stage the numbers repeat with periods {named}"
    made.append(claim("numbers", "one period stands out", text, float(power[top[0]]), controls, 0.05, "share"))
    return made


def operation_claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    swap, sites = found["swap"], found["stages"]
    if not swap:
        return []
    made = []
    for place in ("operation", "equals"):
        costs, *others = (-np.array(one["swap"]["change_in_log_prob"])[1:, ROLE[place]] for one in (found, *blank))
        by_stage = ", ".join(f"{abs(cost):.1f} after {site}" for site, cost in zip(sites[1:], costs, strict=True))
        text = (
            f'with the stream at "{place}" taken from the {swap["to"]} question, the right answer of {swap["from"]} '
            f"loses, in nats, {by_stage}; with the operation's embedding all of "
            f"{abs(swap['change_in_log_prob'][0][ROLE['operation']]):.1f}"
        )
        controls = [float(cost.max()) for cost in others]
        name = f'after the embeddings, "{place}" carries the operation'
        made.append(claim("operations", name, text, float(costs.max()), controls, 0.5, "nats"))
    for place, shares in swap["turned"].items():
        turned, at_random = (np.array(shares[of])[1:] for of in ("mean difference", "random"))
        best = int(np.argmax(turned))
        text = (
            f'adding the mean difference of {swap["to"]} and {swap["from"]} to "{place}" after {sites[best + 1]} turns '
            f"{turned[best]:.1%} of {swap['n']:,} answers into those of {swap['to']}, a random direction as long "
            f"{at_random[best]:.1%} (the difference of the two embeddings turns {shares_at_embedding(swap):.0%}, since "
            f"it makes the other question)"
        )
        untrained = [max(one["swap"]["turned"][place]["mean difference"][1:]) for one in blank]
        name = f'after the embeddings, an operation is one direction at "{place}"'
        made.append(claim("operations", name, text, float(turned[best]), [*untrained, float(at_random[best])], 0.1,
                          "share"))  # fmt: skip
    return made


def shares_at_embedding(swap: dict[str, Any]) -> float:
    return swap["turned"]["operation"]["mean difference"][0]


def output_claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    def first_word(measures: Measures) -> np.ndarray:
        return np.array(measures["p_right_by_stage"])[:, 0]

    right = first_word(found)
    gains = np.diff(right)
    best = int(gains.argmax())
    text = (
        f"read out after each stage, the answer's first word has probability {', '.join(f'{p:.2f}' for p in right)}; "
        f"{found['stages'][best + 1]} adds most"
    )
    controls = [float(np.diff(first_word(one)).max()) for one in blank]
    made = [claim("output", "a stage says the word", text, float(gains[best]), controls, 0.05, "probability")]

    parts = {name: values[0] for name, values in found["contributions"].items()}
    writer = max(parts, key=parts.__getitem__)
    others = ", ".join(f"{name} {value:.1f}" for name, value in parts.items() if name != writer)
    text = (
        f"{writer} writes {parts[writer]:.1f} of the {sum(parts.values()):.1f} by which the logit of the answer's "
        f"first word is above the mean; {others}"
    )
    controls = [max(values[0] for values in one["contributions"].values()) for one in blank]
    made.append(claim("output", "a part writes the word", text, parts[writer], controls, 0.5, "logit"))
    return made


def stable(first: list[Claim], others: list[list[Claim]]) -> list[dict[str, Any]]:
    """Return for each claim its values over the runs, and whether the verdict is the same in all; empty for one run."""
    if not others:
        return []
    return [
        {"claim": row[0]["claim"], "values": [one["value"] for one in row], "holds": [one["holds"] for one in row],
         "same": len({one["holds"] for one in row}) == 1}
        for row in zip(first, *others, strict=True)
    ]  # fmt: skip


def as_text(result: dict[str, Any], figures: list[str], n_controls: int) -> str:
    """Return the findings as Markdown."""
    findings = result["findings"]
    n_hold = sum(one["holds"] for one in findings)
    of = "the trained model" if result["step"] is None else f"the snapshot of step {result['step']:,}"
    lines = [
        f"# What {result['run']} has learned", "",
        f"Seed {result['seed']}, {of}. A claim holds where its number exceeds every control by more than a margin. "
        f"The controls are {n_controls} untrained models and, for probes and periods, shuffled labels.", "",
        f"{n_hold} of {len(findings)} claims hold." if n_hold
        else f"None of {len(findings)} claims holds: nothing is there that untrained models lack.",
    ]  # fmt: skip
    for topic in dict.fromkeys(one["topic"] for one in findings):
        lines += ["", f"## {topic.capitalize()}", ""]
        lines += [sentence(one) for one in findings if one["topic"] == topic]
    if result["while_it_learns"]:
        lines += ["", "## While it learns", "", *learning_lines(result["while_it_learns"])]
    if result["stable"]:
        lines += ["", "## With other seeds", "", *stable_lines(result)]
    return "\n".join([*lines, "", *(f"![{name}]({name}.png)" for name in figures), ""])


def sentence(one: Claim) -> str:
    verdict = "**holds**" if one["holds"] else "**does not hold**"
    name, text = (words[0].upper() + words[1:] for words in (one["claim"], one["text"]))
    return f"- {name}: {verdict}. {text}. (Control {one['control']:.3g} {one['unit']}, margin {one['margin']:.2g}.)"


def learning_lines(history: dict[str, Any]) -> list[str]:
    table = history["snapshots"]
    lines = []
    for operation in table[0]["exact_match"]:
        reached = next((row["step"] for row in table if row["exact_match"][operation] >= 0.9), None)
        when = "not at any snapshot" if reached is None else f"by step {reached:,}"
        lines.append(f"- {operation}: 90 % of the whole table is right {when}.")
    sharp = ", ".join(f"{row['sharpness']:.3g} (step {row['step']:,})" for row in table)
    lines.append(f"- Sharpness, the Hessian's largest eigenvalue on {history['n_problems']} problems: {sharp}.")
    if history["mistakes"]:
        kinds = ("right ones", "right tens", "off by one", "off by ten")
        lines += ["", f"Wrong answers at step {history['mistakes_step']:,}; in brackets what the same answers, dealt "
                  "to other problems of the operation, would have.", "",
                  f"| operation | wrong | {' | '.join(kinds)} |", "|---|---|" + "---|" * len(kinds)]  # fmt: skip
        for name, row in history["mistakes"].items():
            cells = [
                "–" if row[kind] is None else f"{row[kind]:.0%} ({row[f'{kind}, by chance']:.0%})" for kind in kinds
            ]
            lines.append(f"| {name} | {row['wrong']:,} of {row['problems']:,} | {' | '.join(cells)} |")
    return lines


def stable_lines(result: dict[str, Any]) -> list[str]:
    seeds = [result["seed"], *(run["seed"] for run in result["other_runs"])]
    lines = [f"| claim | {' | '.join(f'seed {seed}' for seed in seeds)} | |", "|---|" + "---|" * (len(seeds) + 1)]
    for row in result["stable"]:
        both = zip(row["values"], row["holds"], strict=True)
        cells = [f"{value:.2f}{'' if holds else ' ✗'}" for value, holds in both]
        verdict = ("holds in all" if row["holds"][0] else "holds in none") if row["same"] else "differs"
        lines.append(f"| {row['claim']} | {' | '.join(cells)} | {verdict} |")
    return lines
