"""Blame before a step of learning, credit after it: which weights lower the loss, in nats that add up.

A step changes the weights by Δ. To first order the loss drops by −⟨g, Δ⟩, a sum over the weights:
what a weight adds to it is its *blame*. Along the step the gradient changes. With its mean over the
way in the place of g the sum is the drop that really happens: what a weight adds to that is its *credit*
(loss change allocation, Lan et al. 2019). Both are sums, so both can be read at any level: the terms
of a stage, a block, a head, a leaf or a single weight.

Two other measures are often seen and are not here. Percentages of gradient norms: norms do not add
(‖(3, 4)‖ is 5, not 7), so how large they come out depends on how the weights are grouped, and they leave out how
far the optimizer really moves each weight. Gradient × weight: it is what the loss would lose, to first
order, if the weight were set to zero, which is no step that learning takes, and it changes when a scale
is moved from one layer to the next although the network computes the same.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcalc.backprop import Backward, collect
from jaxcalc.batch import Batch
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, answer_logits, check_mask, loss, token_cross_entropy
from jaxcalc.model import apply, attend, keys_values
from jaxcalc.params import HEAD_AXIS, Params
from jaxcalc.trees import named_leaves

Level = Literal["stage", "block", "head", "leaf", "weight"]

SMALLEST_TOTAL = 1e-4
"""In nats: shares of a smaller drop would say more about rounding than about learning."""


class Step(NamedTuple):
    """One step of an optimizer, taken apart: `update` = `from_gradient` + `weight_decay` + `clipping`.

    All of them but the state are trees like the parameters.
    """

    update: Any
    """Δ, exactly what the optimizer adds to the parameters."""
    from_gradient: Any
    """What it would add if it neither decayed weights nor clipped; momentum of earlier gradients is in it."""
    weight_decay: Any
    clipping: Any
    params: Any
    """The parameters after the step, θ + Δ."""
    opt_state: Any
    """The optimizer's state after the step."""


@functools.partial(jax.jit, static_argnames=("tx", "unclipped"))
def take_step(
    tx: optax.GradientTransformation,
    grads: Any,
    opt_state: Any,
    params: Any,
    unclipped: optax.GradientTransformation | None = None,
) -> Step:
    """Return the step that an Optax optimizer would make, taken apart. Jitted; changes nothing.

    weight decay = Δ(g, θ) − Δ(g, 0), the part of the step that depends on the weights themselves;
    clipping = Δ with it − Δ without.

    Args:
      tx: any optimizer, and `opt_state` its state.
      unclipped: where `tx` clips, the same optimizer with `optax.identity()` in the place of its clipping
        (`make_optimizer` without `clip_norm`), so that the same state fits both.

    >>> step = take_step(optax.sgd(0.01), jnp.array(0.1), optax.sgd(0.01).init(jnp.array(0.5)), jnp.array(0.5))
    >>> round(float(step.params), 6)
    0.499
    """
    with_and_without = jax.tree.map(lambda leaf: jnp.stack([leaf, jnp.zeros_like(leaf)]), params)
    updates, states = jax.vmap(lambda params: (unclipped or tx).update(grads, opt_state, params))(with_and_without)
    plain, state = jax.tree.map(lambda leaf: leaf[0], (updates, states))
    undecayed = jax.tree.map(lambda leaf: leaf[1], updates)
    update = plain
    if unclipped is not None:
        update, state = tx.update(grads, opt_state, params)
    subtract = functools.partial(jax.tree.map, jnp.subtract)
    after = optax.apply_updates(params, update)
    return Step(update, undecayed, subtract(plain, undecayed), subtract(update, plain), after, state)


@dataclasses.dataclass(frozen=True)
class Account:
    """A drop in loss and the terms that it is the sum of."""

    nats: dict[str, float]
    """What each row adds to the drop; a negative row raises the loss."""

    @property
    def total(self) -> float:
        """The whole drop, in nats."""
        return sum(self.nats.values())

    @property
    def withheld(self) -> str | None:
        """Why there are no shares, or None where there are."""
        if self.total >= SMALLEST_TOTAL:
            return None
        return f"the total, {self.total:.2g} nats, is below {SMALLEST_TOTAL} nats"

    @property
    def shares(self) -> dict[str, float] | None:
        """Each row as a share of the total; together one. None where `withheld` says why."""
        total = self.total
        return None if self.withheld else {name: nats / total for name, nats in self.nats.items()}

    def __repr__(self) -> str:
        rows = {**self.nats, "total": self.total}
        shares = {**self.shares, "total": 1.0} if self.shares else {}
        width = max(map(len, rows))
        lines = [f"{name:{width}} {nats:10.3e} nats" + (f" {shares[name]:8.2%}" if shares else "")
                 for name, nats in rows.items()]  # fmt: skip
        return "\n".join(lines + ([f"no percentages: {self.withheld}"] if self.withheld else []))


def blame(grads: Any, step: Step, level: Level = "stage") -> Account:
    """Return the predicted drop in loss, −⟨g, Δ⟩, and what each part of the network adds to it.

    The blame of part s is −⟨g_s, Δ_s⟩ / Σ; for plain SGD that is ‖g_s‖² / Σ ‖g‖². Where the optimizer
    decays weights or clips, that is a row of its own. Momentum may make a row negative: earlier
    gradients then pull it the other way. Works on any pytree; sums are in float64, so they are the same at each level.

    Args:
      level: rows are a "stage" (named as in `backprop.stages`), a "block", a "head", a "leaf" or a
        "weight" (by path).

    Raises `InputError` for an unknown level and a gradient or an update that is not finite, naming the leaf.

    >>> weights, grads, tx = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([1.0, 2.0])}, optax.sgd(0.1)
    >>> blame(grads, take_step(tx, grads, tx.init(weights), weights), "weight").shares
    {'w[0]': 0.2, 'w[1]': 0.8}
    """
    if level not in get_args(Level):
        raise InputError(f"level is {level!r}; it must be one of {', '.join(map(repr, get_args(Level)))}")
    nats: dict[str, float] = {}
    for name, terms in _terms(grads, step.from_gradient).items():
        for row, value in _rows(name, terms, level):
            nats[row] = nats.get(row, 0.0) + value
    for row, part in (("weight decay", step.weight_decay), ("clipping", step.clipping)):
        if any(np.asarray(leaf).any() for leaf in jax.tree.leaves(part)):
            nats[row] = sum(float(terms.sum()) for terms in _terms(grads, part).values())
    return Account(nats)


def credit(
    params: Any, step: Step, batch: Batch, level: Level = "stage", n_points: int = 32, apply_fn: ApplyFn = apply
) -> Account:
    """Return the drop in loss that the step really brings, and what each part of the network adds to it.

    The credit of part s is −∫₀¹ ⟨∇_s L(θ + tΔ), Δ_s⟩ dt (Lan et al. 2019): `blame` with the
    `mean_gradient` along the step. The total equals `actual_drop` but for the error of the quadrature.

    Raises as `blame` and `mean_gradient` do.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> batch, tx = jaxcalc.batch_at(task, 0, 0, 4), optax.sgd(0.3)
    >>> grads = jax.jit(jax.grad(loss))(params, batch)
    >>> step = take_step(tx, grads, tx.init(params), params)
    >>> abs(credit(params, step, batch).total / actual_drop(params, step, batch) - 1) < 0.01
    True
    """
    return blame(mean_gradient(params, step, batch, n_points, apply_fn), step, level)


def mean_gradient(params: Any, step: Step, batch: Batch, n_points: int = 32, apply_fn: ApplyFn = apply) -> Any:
    """Return ∫₀¹ ∇L(θ + tΔ) dt, by Gauss-Legendre quadrature of `n_points` gradients: a tree like `params`.

    Raises `InputError` for fewer points than one and a batch whose mask is all zero.
    """
    check_mask(batch)
    if n_points < 1:
        raise InputError(f"n_points is {n_points}; it must be at least 1")
    nodes, weights = np.polynomial.legendre.leggauss(n_points)  # on −1 … 1
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        total = _add_gradient(total, params, step.update, batch, (node + 1) / 2, weight / 2, apply_fn)
    return total


@functools.partial(jax.jit, static_argnames="apply_fn")
def _add_gradient(
    total: Any, params: Any, update: Any, batch: Batch, t: float, weight: float, apply_fn: ApplyFn
) -> Any:
    """Return total + weight · ∇L(θ + tΔ)."""
    here = jax.tree.map(lambda theta, delta: theta + t * delta, params, update)
    return jax.tree.map(lambda total, grad: total + weight * grad, total, jax.grad(loss)(here, batch, apply_fn))


_jitted_loss = jax.jit(loss, static_argnames="apply_fn")


def actual_drop(params: Any, step: Step, batch: Batch, apply_fn: ApplyFn = apply) -> float:
    """Return L(θ) − L(θ + Δ), in nats; raises as `jaxcalc.loss` does."""
    check_mask(batch)
    return float(_jitted_loss(params, batch, apply_fn)) - float(_jitted_loss(step.params, batch, apply_fn))


def message_strengths(walked: Iterable[Backward]) -> dict[str, np.ndarray]:
    """Return ‖∂L/∂h‖ where each stage ends, at each token position: stage → `[T]`, in the order of the walk.

    Norms over everything but the position. They say how strong a message is and no more: they do not add
    up, neither over stages nor over positions, so there are no percentages of them.
    """
    return {
        step.name: np.linalg.norm(np.moveaxis(np.asarray(step.message_in, np.float64), 1, 0).reshape(t, -1), axis=1)
        for step in walked
        if np.ndim(step.message_in) and (t := step.message_in.shape[1])
    }


def token_grads(params: Params, walked: Iterable[Backward]) -> Params:
    """Return the gradient taken apart by where the weights were used: a tree like `params`, `[T, …]` each.

    Every position uses the same weights: what it asks, and what it offers as key and value. Entry t is the gradient
    through the uses at position t; the sum over T is the gradient, `backprop.collect(params, walked)`.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> batch, walk = jaxcalc.batch_at(task, 0, 0, 4), jaxcalc.backprop.walk
    >>> by_token = jax.jit(lambda params, batch: token_grads(params, walk(params, batch)))(params, batch)
    >>> by_token["output"]["unembed"].shape
    (8, 64, 35)
    """
    steps = [step for step in walked if step.name != "loss"]
    grads = [_uses_by_position(step, step.stage.select(params)) for step in steps]
    return jax.vmap(lambda grads: collect(params, map(_with_grads, steps, grads)))(grads)


def _with_grads(step: Backward, grads: Any) -> Backward:
    return step._replace(grads=grads)


def _uses_by_position(step: Backward, own: Any) -> Any:
    """Return the gradients of one stage with a leading axis T: each message masked to one position at a time."""

    def by_position(vjp: Any, message: Any) -> Any:
        def at(is_here: jax.Array) -> Any:  # [T]: 1 at one position
            here = jax.tree.map(lambda m: m * is_here.reshape(1, -1, *[1] * (m.ndim - 2)), message)
            return vjp(here)[0]

        return jax.vmap(at)(jnp.eye(step.message_in.shape[1], dtype=step.message_in.dtype))

    if not step.name.endswith(" attention"):
        return by_position(jax.vjp(lambda own: step.stage.apply(own, step.input), own)[1], step.message_in)
    # Only attention carries from one position to another: by the keys and values, so their messages are split too.
    offered, offering = jax.vjp(lambda own: keys_values(own, step.input), own)
    _, asking = jax.vjp(lambda own, offered: attend(own, step.input, *offered)[0], own, offered)
    as_asked = by_position(asking, step.message_in)
    as_offered = by_position(offering, asking(step.message_in)[1])
    return jax.tree.map(jnp.add, as_asked, as_offered)


def token_blame(grads_by_token: Any, step: Step) -> np.ndarray:
    """Return −⟨g_t, Δ⟩ for each position t, float64 `[T]` in nats: the predicted drop by where the weights were used.

    Args:
      grads_by_token: as `token_grads` makes it.
    """
    terms = _terms(grads_by_token, jax.tree.map(lambda leaf: np.asarray(leaf)[None], step.update))
    return np.sum([leaf.reshape(len(leaf), -1).sum(axis=1) for leaf in terms.values()], axis=0)


class ExampleBlame(NamedTuple):
    """What each example of a batch contributes to the gradient, and how far examples agree."""

    shares: np.ndarray
    """float64 `[N]`: ⟨g_i, g⟩ / (N ‖g‖²), together one; negative where an example pulls against the rest."""
    noise_scale: float | None
    """In examples: tr(Σ) / ‖G‖², the batch size at which noise and gradient are equally strong (the "simple" noise
    scale of McCandlish et al. 2018); None where the batch is too small or too noisy to tell."""


def example_blame(params: Any, batch: Batch, chunk: int = 64, apply_fn: ApplyFn = apply) -> ExampleBlame:
    """Return each example's share of the batch's gradient, and the gradient noise scale.

    Per-example gradients g_i, scaled so that their mean is the gradient g, are made `chunk` at a time, so memory
    holds that many copies of the parameters. Unbiased estimates from N examples: tr(Σ) = (Σ ‖g_i‖² − N ‖g‖²) / (N − 1)
    and ‖G‖² = ‖g‖² − tr(Σ) / N.

    Raises `InputError` for a batch whose mask is all zero, a chunk below 1, and a gradient that is zero or not finite.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> result = example_blame(params, jaxcalc.batch_at(task, 0, 0, 8))
    >>> result.shares.shape, round(float(result.shares.sum()), 4)
    ((8,), 1.0)
    """
    check_mask(batch)
    if chunk < 1:
        raise InputError(f"chunk is {chunk}; it must be at least 1")
    inner, squares, square = (np.asarray(x, np.float64) for x in _example_products(params, batch, chunk, apply_fn))
    if not 0 < square < np.inf:
        raise InputError(f"the squared norm of the gradient is {square}; shares of it need it finite and above 0")
    n = len(inner)
    trace = (squares.sum() - n * square) / (n - 1) if n > 1 else np.inf
    signal = square - trace / n
    return ExampleBlame(inner / (n * square), float(trace / signal) if signal > 0 else None)


@functools.partial(jax.jit, static_argnames=("chunk", "apply_fn"))
def _example_products(
    params: Any, batch: Batch, chunk: int, apply_fn: ApplyFn
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return ⟨g_i, g⟩ `[N]`, ‖g_i‖² `[N]` and ‖g‖²."""
    grads = jax.grad(loss)(params, batch, apply_fn)
    scale = batch.tokens.shape[0] / batch.mask.sum()

    def products(example: Batch) -> tuple[jax.Array, jax.Array]:
        one = Batch(example.tokens[None], example.mask[None])
        own = jax.grad(lambda params: scale * token_cross_entropy(answer_logits(params, one, apply_fn), one).sum())
        own_grads = own(params)
        return jnp.asarray(optax.tree.vdot(own_grads, grads)), optax.tree.norm(own_grads, squared=True)

    inner, squares = jax.lax.map(products, batch, batch_size=chunk)
    return inner, squares, optax.tree.norm(grads, squared=True)


class WeightStory(NamedTuple):
    """One weight in one step."""

    path: str
    value: float
    gradient: float
    finite_difference: float
    """(L(w + h) − L(w − h)) / 2h in float64: what the gradient should be, found without any calculus."""
    state: dict[str, float]
    """What the optimizer remembers of this weight, after the step: "trace" for momentum, "mu" and "nu" for
    Adam's moments, "mu_hat" and "nu_hat" for the same with bias correction."""
    from_gradient: float
    weight_decay: float
    clipping: float
    step: float
    """Δw, the sum of the three before."""
    new_value: float


def weight_story(
    path: str,
    params: Any,
    grads: Any,
    step: Step,
    batch: Batch,
    adam_betas: tuple[float, float] | None = None,
    apply_fn: ApplyFn = apply,
) -> WeightStory:
    """Return what one step does to one weight, and why. For plain SGD it reads: new value = value − rate · gradient.

    Bias correction (Kingma and Ba 2015) at the t-th step: mu_hat = mu / (1 − β₁ᵗ), nu_hat = nu / (1 − β₂ᵗ).

    Args:
      path: such as "blocks.0.attention.query[3,1,5]".
      adam_betas: (β₁, β₂), which an Adam state does not hold (`training.ADAM_BETAS` are `make_optimizer`'s);
        without them there is no "mu_hat" and "nu_hat".

    Raises `InputError` as `find_weight` does, and for a batch whose mask is all zero.

    >>> import jaxcalc
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> batch, tx = jaxcalc.batch_at(task, 0, 0, 4), optax.sgd(0.3)
    >>> grads = jax.jit(jax.grad(loss))(params, batch)
    >>> story = weight_story("output.norm[7]", params, grads, take_step(tx, grads, tx.init(params), params), batch)
    >>> abs(story.new_value - (story.value - 0.3 * story.gradient)) < 1e-6
    True
    >>> abs(story.finite_difference / story.gradient - 1) < 1e-3
    True
    """
    check_mask(batch)
    leaf, index = find_weight(params, path)

    def at(tree: Any) -> np.ndarray:
        return np.asarray(named_leaves(tree)[leaf])[index]

    return WeightStory(
        path=path,
        value=float(at(params)),
        gradient=float(at(grads)),
        finite_difference=_finite_difference(params, leaf, index, batch, apply_fn),
        state=_optimizer_state(step.opt_state, leaf, index, adam_betas),
        from_gradient=float(at(step.from_gradient)),
        weight_decay=float(at(step.weight_decay)),
        clipping=float(at(step.clipping)),
        step=float(at(step.update)),
        new_value=float(at(step.params)),
    )


def find_weight(tree: Any, path: str) -> tuple[str, tuple[int, ...]]:
    """Return the leaf and the index that a path such as "blocks.0.attention.query[3,1,5]" names.

    Raises `InputError` for a leaf that is not there (naming the nearest) and an index that the leaf does not have.

    >>> find_weight({"mlp": {"up": np.zeros((2, 3))}}, "mlp.up[1,2]")
    ('mlp.up', (1, 2))
    """
    leaves = named_leaves(tree)
    matched = re.fullmatch(r"([^\[\]]*)(?:\[([\d,\s]*)\])?", path.strip())
    leaf = matched.group(1) if matched else path
    if leaf not in leaves:
        near = difflib.get_close_matches(leaf, leaves, n=3, cutoff=0.0)
        raise InputError(f"no weights are named {leaf!r}; the nearest are {', '.join(near)}")
    shape = np.shape(leaves[leaf])
    assert matched  # every leaf is named without brackets
    numbers = re.findall(r"\d+", matched.group(2) or "")
    index = tuple(map(int, numbers))
    if len(index) != len(shape) or any(i >= size for i, size in zip(index, shape, strict=True)):
        example = f"{leaf}[{','.join(str(size - 1) for size in shape)}]"
        raise InputError(f"{path!r} is no single weight: {leaf} has shape {shape}; its last is {example}")
    return leaf, index


def _finite_difference(params: Any, leaf: str, index: tuple[int, ...], batch: Batch, apply_fn: ApplyFn) -> float:
    wide = {name: np.asarray(value, np.float64) for name, value in named_leaves(params).items()}

    def loss_with(change: float) -> float:
        changed = wide[leaf].copy()
        changed[index] += change
        nudged = jax.tree.unflatten(jax.tree.structure(params), (wide | {leaf: changed}).values())
        return float(_jitted_loss(nudged, Batch(batch.tokens, jnp.asarray(batch.mask, jnp.float64)), apply_fn))

    h = 1e-5  # float64 rounds a loss of a few nats by 1e-15, so the quotient is good to about 1e-10
    with jax.enable_x64(True):
        return (loss_with(h) - loss_with(-h)) / (2 * h)


def _optimizer_state(
    opt_state: Any, leaf: str, index: tuple[int, ...], adam_betas: tuple[float, float] | None
) -> dict[str, float]:
    """Return the pieces of an Optax state that belong to one weight: those stored under its leaf's own path."""
    leaves = named_leaves(opt_state)
    pieces = {name.removesuffix(f".{leaf}"): value for name, value in leaves.items() if name.endswith(f".{leaf}")}
    state = {name.rpartition(".")[2]: float(np.asarray(value)[index]) for name, value in pieces.items()}
    if adam_betas and {"mu", "nu"} <= state.keys():
        holder = next(name for name in pieces if name.endswith("mu")).removesuffix("mu")
        t = int(leaves[f"{holder}count"])
        for name, beta in zip(("mu", "nu"), adam_betas, strict=True):
            state[f"{name}_hat"] = state[name] / (1 - beta**t)
    return state


def _terms(grads: Any, update: Any) -> dict[str, np.ndarray]:
    """Return −g · Δ, weight by weight, float64 under each leaf's name."""
    deltas, terms = named_leaves(update), {}
    for name, grad in named_leaves(grads).items():
        terms[name] = -np.asarray(grad, np.float64) * np.asarray(deltas[name], np.float64)
        if not np.isfinite(terms[name]).all():
            raise InputError(f"the gradient or the update of {name} is not finite; there is no blame to share out")
    return terms


def _rows(name: str, terms: np.ndarray, level: Level) -> Iterator[tuple[str, float]]:
    """Yield the rows that one leaf's terms belong to, with their sums."""
    parent, _, last = name.rpartition(".")
    stage = re.sub(r"^blocks\.(\d+)", r"block \1", parent).replace(".", " ") or name
    if level == "weight":
        for index in np.ndindex(terms.shape):
            yield f"{name}[{','.join(map(str, index))}]", float(terms[index])
    elif level == "head" and stage.endswith(" attention"):
        block = stage.removesuffix(" attention")
        if last not in HEAD_AXIS:
            yield f"{stage} {last}", float(terms.sum())
        else:
            for head, of_head in enumerate(np.moveaxis(terms, HEAD_AXIS[last], 0)):
                yield f"{block} head {head}", float(of_head.sum())
    else:
        block = re.sub(r"^(block \d+) .*", r"\1", stage)
        yield {"leaf": name, "block": block}.get(level, stage), float(terms.sum())
