"""What watch.py computes, as it stands in its JSON."""

from typing import Any, TypedDict


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
    examples: int
    """How many examples training had seen: step × batch size."""


class Moment(TypedDict):
    """From which snapshot on something holds."""

    step: int
    examples: int
    before: int | None
    """The step of the snapshot before, at which it did not hold yet."""


class Stage(Prediction):
    """One row of before and after."""

    when: str
    """ "first", "here", "after this step" or "last"."""
    step: int


class Replay(Asked):
    """What the run would have said at each of its snapshots."""

    replay: list[Replayed]
    known: Moment | None
    """From where on the right word has more than 94 %."""
    calm: Moment | None
    """From where on its surprise is below 0.06 nats."""


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
    chosen: str
    """Why this snapshot: "given", "newest wrong" or, if the word is wrong at none, "most surprised"."""
    snapshots: list[int]
    forward: list[Positions]
    uniform_nats: float
    stages: list[StageNorms]
    messages: list[Positions]
    optimizer: OptimizerUsed
    blame: dict[str, float] | None
    blame_nats: dict[str, float]
    blame_parts: dict[str, float] | None
    """Shares, as `assign_blame(grads, step, "part")` has them."""
    withheld: str | None
    predicted_drop: float
    credit: dict[str, float]
    actual_drop: float
    residual: float
    token_blame: list[float]
    weight: dict[str, Any]
    """A `WeightStory`, its weight's "learning_rate", and "alone": what `from_gradient` would be without momentum."""
    after: Prediction
    before_and_after: list[Stage]
