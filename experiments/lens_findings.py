"""The findings of lens.py: each claim has a number and controls, and the numbers decide the verdict and the words."""

from typing import TypedDict

import numpy as np
from lens_measures import Matrix, Measures, Probe, Swap, stage_name  # beside this script

from jaxcalc import lens


class Claim(TypedDict):
    """It holds if `value` exceeds `control`, the largest of the controls, by more than `margin`."""

    topic: str
    claim: str
    text: str
    value: float
    control: float
    margin: float
    unit: str
    holds: bool


class Stable(TypedDict):
    """One claim about several runs."""

    claim: str
    values: list[float]
    holds: list[bool]
    same: bool
    """Whether all verdicts are the same."""


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


def make_claim(
    topic: str, name: str, text: str, value: float, controls: list[float], margin: float, unit: str
) -> Claim:
    """Return a claim: it holds if its value exceeds every control by more than `margin`."""
    most = max(controls)
    return {
        "topic": topic,
        "claim": name,
        "text": text,
        "value": value,
        "control": most,
        "margin": margin,
        "unit": unit,
        "holds": bool(value > most + margin),
    }


def claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    """Return every claim about a model's measures; untrained models (`blank`) and shuffled labels are the controls."""
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
        controls = [max(look(other, head, query, keys) for head in other["attention"]) for other in blank]
        seen = " and ".join(f'"{key}"' for key in keys)
        text = f'{best} gives {value:.0%} of the attention of "{query}" to {seen}'
        made.append(make_claim("attention", name, text, value, controls, 0.1, "share"))
    by_mean, by_zero = (found["lost_without_head"][kind] for kind in ("mean", "zero"))
    for operation in found["exact_match"]:
        lost = {head: costs[operation] for head, costs in by_mean.items()}
        best = max(lost, key=lost.__getitem__)
        controls = [max(costs[operation] for costs in other["lost_without_head"]["mean"].values()) for other in blank]
        text = (
            f'when the mean replaces what {best} mixes, "{operation}" loses {points(lost[best])} points of exact '
            f"match, and when zero does, {points(by_zero[best][operation])}; without the head that it needs least it "
            f"loses {points(min(lost.values()))}"
        )
        made.append(make_claim("attention", f"{operation} needs a head", text, lost[best], controls, 0.1, "share"))
    return made


def number_claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    sites = found["stages"]
    made = [
        probe_claim(f"a number's {name}", "at its last word", sites, scores, [b["number_probes"][name] for b in blank])
        for name, scores in found["number_probes"].items()
    ]
    made += [
        probe_claim(f"the answer's {name}", 'at "equals"', sites, scores, [b["answer_probes"][name] for b in blank])
        for name, scores in found["answer_probes"].items()
    ]
    power = np.array(found["fourier"][-1])
    top = np.argsort(-power)[:3]
    named = ", ".join(f"{len(found['pca'][-1]) / (k + 1):.3g} ({power[k]:.0%})" for k in top)
    controls = [found["fourier_shuffled"][-1], *(max(other["fourier"][-1]) for other in blank)]
    text = f"after the last stage the numbers repeat with periods {named}"
    made.append(make_claim("numbers", "one period stands out", text, float(power[top[0]]), controls, 0.05, "share"))
    return made


def probe_claim(what: str, where: str, sites: list[str], scores: Probe, blank: list[Probe]) -> Claim:
    """Return the claim that a linear probe reads an attribute such as "a number's parity" somewhere."""
    best = int(np.argmax(scores["score"]))
    score, shuffled = scores["score"][best], scores["shuffled"][best]
    unit = "R²" if what.endswith("magnitude") else "share right"
    untrained = [max(other["score"]) for other in blank]
    text = (
        f"a linear probe after {stage_name(sites[best])} reads {what} {where} with {unit} {score:.2f}; "
        f"with shuffled labels {shuffled:.2f}, from untrained models at most {max(untrained):.2f}"
    )
    margin = max(0.05, scores["n"] ** -0.5)  # at least two standard errors of a share of n
    return make_claim("numbers", f"{what} becomes readable", text, score, [*untrained, shuffled], margin, unit)


def operation_claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    if not found["swaps"]:
        return []
    swap, *others = (measures["swaps"][0] for measures in (found, *blank))
    sites = [stage_name(site) for site in found["stages"]]
    made = []
    for place in ("operation", "equals"):
        costs, *controls = (-np.array(each["change_in_log_prob"])[1:, ROLE[place]] for each in (swap, *others))
        by_stage = ", ".join(f"{abs(cost):.1f} after {site}" for site, cost in zip(sites[1:], costs, strict=True))
        text = (
            f'when the stream at "{place}" comes from the {swap["to"]} question, the right answer of {swap["from"]} '
            f"loses, in nats, {by_stage}; when the operation's embedding does, it loses "
            f"{abs(swap['change_in_log_prob'][0][ROLE['operation']]):.1f}"
        )
        most = [float(cost.max()) for cost in controls]
        name = f'after the embeddings, "{place}" carries the operation'
        made.append(make_claim("operations", name, text, float(costs.max()), most, 0.5, "nats"))
    made += [direction_claim(place, swap, others, sites) for place in swap["turned"]]
    return made


def direction_claim(place: str, swap: Swap, blank: list[Swap], sites: list[str]) -> Claim:
    """Return the claim that adding one direction at a place turns answers into those of the other operation."""
    turned, at_random = (np.array(swap["turned"][place][kind])[1:] for kind in ("mean difference", "random"))
    best = int(np.argmax(turned))
    at_embedding = swap["turned"]["operation"]["mean difference"][0]
    text = (
        f'adding the mean difference of {swap["to"]} and {swap["from"]} to "{place}" after {sites[best + 1]} turns '
        f"{turned[best]:.1%} of {swap['n']:,} answers into those of {swap['to']}, a random direction of that length "
        f"{at_random[best]:.1%} (the difference of the two embeddings turns {at_embedding:.0%}, since it makes the "
        "other question)"
    )
    untrained = [max(other["turned"][place]["mean difference"][1:]) for other in blank]
    name = f'after the embeddings, an operation is one direction at "{place}"'
    controls = [*untrained, float(at_random[best])]
    return make_claim("operations", name, text, float(turned[best]), controls, 0.1, "share")


def output_claims(found: Measures, blank: list[Measures]) -> list[Claim]:
    def first_word(p_right_by_stage: Matrix) -> np.ndarray:
        return np.array(p_right_by_stage)[:, 0]

    right = first_word(found["p_right_by_stage"])
    gains = np.diff(right)
    best = int(gains.argmax())
    text = (
        f"read out after each stage, the answer's first word has probability {', '.join(f'{p:.2f}' for p in right)}; "
        f"{stage_name(found['stages'][best + 1])} adds most"
    )
    controls = [float(np.diff(first_word(other["p_right_by_stage"])).max()) for other in blank]
    made = [make_claim("output", "a stage says the word", text, float(gains[best]), controls, 0.05, "probability")]

    parts = {stage_name(name): values[0] for name, values in found["contributions"].items()}
    writer = max(parts, key=parts.__getitem__)
    others = ", ".join(f"{name} {value:.1f}" for name, value in parts.items() if name != writer)
    text = (
        f"the logit of the answer's first word is {sum(parts.values()):.1f} above the mean, and {writer} writes "
        f"{parts[writer]:.1f} of that; {others}"
    )
    controls = [max(values[0] for values in other["contributions"].values()) for other in blank]
    made.append(make_claim("output", "a part writes the word", text, parts[writer], controls, 0.5, "logit"))
    return made


def stable(first: list[Claim], others: list[list[Claim]]) -> list[Stable]:
    """Return each claim's values and verdicts over several runs; an empty list for one run."""
    if not others:
        return []
    return [
        {
            "claim": row[0]["claim"],
            "values": [claim["value"] for claim in row],
            "holds": [claim["holds"] for claim in row],
            "same": len({claim["holds"] for claim in row}) == 1,
        }
        for row in zip(first, *others, strict=True)
    ]
