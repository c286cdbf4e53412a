"""The story of one weight in one step: its gradient, its finite difference, the optimizer's memory, and its move."""

import difflib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcalc.batch import Batch
from jaxcalc.errors import InputError
from jaxcalc.losses import ApplyFn, check_mask, loss
from jaxcalc.model import apply
from jaxcalc.steps import Step, is_masked
from jaxcalc.trees import dotted, named_leaves


class WeightStory(NamedTuple):
    """One weight in one step."""

    path: str
    value: float
    gradient: float
    finite_difference: float
    """(L(w + h) − L(w − h)) / 2h in float64: the gradient, found without calculus."""
    state: dict[str, float]
    """What the optimizer remembers of this weight after the step: "trace" for momentum, "mu" and "nu" for
    Adam's moments, "mu_hat" and "nu_hat" for the moments with bias correction. Where an optimizer has two of a name,
    each has its path in front, as in "0.mu"."""
    from_gradient: float
    weight_decay: float
    clipping: float
    step: float
    """Δw, the sum of the three fields before."""
    new_value: float


@jax.transfer_guard("allow")  # it moves what it needs on purpose
def weight_story(
    path: str,
    params: Any,
    grads: Any,
    step: Step,
    batch: Batch,
    adam_betas: tuple[float, float] | None = None,
    apply_fn: ApplyFn = apply,
) -> WeightStory:
    """Return what one step does to one weight, and why. For plain SGD: new_value = value − rate · gradient.

    Bias correction at step t (Kingma and Ba 2015): mu_hat = mu / (1 − β₁ᵗ), nu_hat = nu / (1 − β₂ᵗ).

    Args:
      path: a leaf and an index, such as "blocks.0.attention.query[3,1,5]".
      adam_betas: (β₁, β₂), which Adam's state does not hold; `optimizers.ADAM_BETAS` for `make_optimizer`.
        Without them the state has no "mu_hat" and "nu_hat".

    Raises `InputError` as `find_weight` does, and for a batch whose mask is all zero.

    >>> import jaxcalc, optax
    >>> task = jaxcalc.calculator()
    >>> params = jaxcalc.init(jax.random.key(0), jaxcalc.ModelConfig(task.vocab_size))
    >>> batch, tx = jaxcalc.batch_at(task, 0, 0, 4), optax.sgd(0.3)
    >>> grads = jax.jit(jax.grad(loss))(params, batch)
    >>> step = jaxcalc.steps.take_step(tx, grads, tx.init(params), params)
    >>> story = weight_story("output.norm[7]", params, grads, step, batch)
    >>> abs(story.new_value - (story.value - 0.3 * story.gradient)) < 1e-6
    True
    >>> abs(story.finite_difference / story.gradient - 1) < 1e-3
    True
    """
    check_mask(batch)
    leaf, index = find_weight(params, path)

    def entry(tree: Any) -> float:
        return float(np.asarray(named_leaves(tree)[leaf])[index])

    return WeightStory(
        path=path,
        value=entry(params),
        gradient=entry(grads),
        finite_difference=_finite_difference(params, leaf, index, batch, apply_fn),
        state=_optimizer_state(step.opt_state, params, leaf, index, adam_betas),
        from_gradient=entry(step.from_gradient),
        weight_decay=entry(step.weight_decay),
        clipping=entry(step.clipping),
        step=entry(step.update),
        new_value=entry(step.params),
    )


def find_weight(tree: Any, path: str) -> tuple[str, tuple[int, ...]]:
    """Return the leaf and the index that a path such as "blocks.0.attention.query[3,1,5]" names.

    Raises `InputError` for an unknown leaf (naming the nearest ones) and for an index outside the leaf.

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
        raise InputError(f"{path!r} does not name one weight: {leaf} has shape {shape}; its last is {example}")
    return leaf, index


_jitted_loss = jax.jit(loss, static_argnames="apply_fn", compiler_options={"xla_backend_optimization_level": 0})
"""The loss, quick to compile: it runs twice."""


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
    opt_state: Any, params: Any, leaf: str, index: tuple[int, ...], adam_betas: tuple[float, float] | None
) -> dict[str, float]:
    """Return what an Optax state holds of one weight, in the subtrees that are built as the parameters are.

    An entry has the last part of its subtree's path as its name, or the whole path where two end alike. A leaf of
    another shape than the weights, such as the row sums of Adafactor, says nothing of one weight.
    """
    weights = named_leaves(params)
    position, shape, structure = list(weights).index(leaf), np.shape(weights[leaf]), jax.tree.structure(params)

    def is_like_params(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=is_masked) == structure

    held: dict[str, float] = {}
    for path, node in jax.tree.leaves_with_path(opt_state, is_leaf=is_like_params):
        if not is_like_params(node):
            continue
        own: Any = jax.tree.leaves(node, is_leaf=is_masked)[position]
        if not is_masked(own) and np.shape(own) == shape and jnp.issubdtype(jnp.result_type(own), jnp.inexact):
            held[dotted(path)] = float(np.asarray(own)[index])
    ends = [path.rpartition(".")[2] for path in held]
    names = {path: path if ends.count(end) > 1 else end for path, end in zip(held, ends, strict=True)}
    state = {names[path]: value for path, value in held.items()}
    counts = named_leaves(opt_state)
    for path in held:
        owner = path.removesuffix("mu")
        if adam_betas and path == f"{owner}mu" and f"{owner}nu" in held and f"{owner}count" in counts:
            for moment, beta in zip(("mu", "nu"), adam_betas, strict=True):
                corrected = held[owner + moment] / (1 - beta ** int(counts[f"{owner}count"]))
                state[f"{names[owner + moment]}_hat"] = corrected
    return state
