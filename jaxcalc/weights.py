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
from jaxcalc.steps import Step
from jaxcalc.trees import named_leaves


class WeightStory(NamedTuple):
    """One weight in one step."""

    path: str
    value: float
    gradient: float
    finite_difference: float
    """(L(w + h) − L(w − h)) / 2h in float64: the gradient, found without calculus."""
    state: dict[str, float]
    """What the optimizer remembers of this weight after the step: "trace" for momentum, "mu" and "nu" for
    Adam's moments, "mu_hat" and "nu_hat" for the moments with bias correction."""
    from_gradient: float
    weight_decay: float
    clipping: float
    step: float
    """Δw, the sum of the three fields before."""
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
        state=_optimizer_state(step.opt_state, leaf, index, adam_betas),
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


_jitted_loss = jax.jit(loss, static_argnames="apply_fn")


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
    """Return the parts of an Optax state that belong to one weight: the arrays stored under its leaf's own path."""
    leaves = named_leaves(opt_state)
    arrays = {name.removesuffix(f".{leaf}"): value for name, value in leaves.items() if name.endswith(f".{leaf}")}
    state = {name.rpartition(".")[2]: float(np.asarray(value)[index]) for name, value in arrays.items()}
    if adam_betas and {"mu", "nu"} <= state.keys():
        adam = next(name for name in arrays if name.endswith("mu")).removesuffix("mu")
        t = int(leaves[f"{adam}count"])
        for name, beta in zip(("mu", "nu"), adam_betas, strict=True):
            state[f"{name}_hat"] = state[name] / (1 - beta**t)
    return state
