"""Any Optax optimizer trains, is given the loss where it asks for it, and has its step taken apart truly."""

import ast
import inspect
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxcalc
from jaxcalc import Batch, InputError, make_optimizer
from jaxcalc.blame import assign_blame
from jaxcalc.optimizers import OptimizerName, extra_arguments
from jaxcalc.steps import Step, take_step
from jaxcalc.training import in_microbatches

PARAMS = {"w": jnp.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4], [-0.6, 0.2, 0.9]])}
BATCH = Batch(jnp.array([[0, 1], [1, 2], [2, 0], [1, 1]]), jnp.ones((4, 1)))


def apply_fn(params: Any, tokens: jax.Array, last: int) -> jax.Array:
    return params["w"][tokens][:, -last:]


def loss(params: Any) -> jax.Array:
    return jaxcalc.loss(params, BATCH, apply_fn)


def sam(**options: Any) -> optax.GradientTransformationExtraArgs:
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    return optax.contrib.sam(optax.sgd(0.1), adversary, **options)


asking: dict[str, tuple[Any, tuple[str, ...]]] = {
    "backtracking": (
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(9)),
        ("value", "grad", "value_fn"),
    ),
    "plateau": (optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=1)), ("value",)),
    "polyak in MultiSteps": (optax.MultiSteps(optax.polyak_sgd(), 2), ("value",)),
    "sophia": (optax.contrib.sophia(0.1), ("obj_fn",)),
    "opaque sam in a chain": (optax.chain(optax.clip_by_global_norm(0.1), sam(opaque_mode=True)), ("grad_fn",)),
}
"""Optimizers, and the extra arguments that each asks for."""


def test_an_optimizer_that_asks_for_the_loss_is_given_it() -> None:
    """Every way to make a step makes the one that Optax makes with the arguments written out."""

    def by_hand(tx: Any, names: tuple[str, ...], opt_state: Any) -> tuple[Any, Any]:
        value, grads = jax.value_and_grad(loss)(PARAMS)

        def grad_fn(params: Any, _: int) -> Any:
            return jax.grad(loss)(params)

        given = {"value": value, "grad": grads, "grad_fn": grad_fn, "value_fn": loss, "obj_fn": loss}
        updates, opt_state = tx.update(grads, opt_state, PARAMS, **{name: given[name] for name in names})
        return optax.apply_updates(PARAMS, updates), opt_state

    @jax.jit
    def every_way() -> dict[str, list[Any]]:
        steps: dict[str, list[Any]] = {}
        for name, (tx, names) in asking.items():
            state, grads = jaxcalc.create_state(PARAMS, tx, apply_fn), jax.grad(loss)(PARAMS)
            ways: list[Any] = [jaxcalc.train_step(state, BATCH)[0], in_microbatches(2)(state, BATCH)[0]]
            ways.append(take_step(tx, grads, state.opt_state, PARAMS, value_fn=loss))
            steps[name] = [by_hand(tx, names, state.opt_state), *((way.params, way.opt_state) for way in ways)]
        return steps

    for name, (expected, *ways) in every_way().items():
        assert name == "polyak in MultiSteps" or (expected[0]["w"] != PARAMS["w"]).any()
        for way in ways:
            chex.assert_trees_all_close(way, expected, rtol=1e-4, atol=1e-6, custom_message=name)


def test_the_fewest_arguments_are_given() -> None:
    both = optax.chain(optax.contrib.sophia(0.1), optax.scale_by_backtracking_linesearch(2))
    others = {"both": (both, ("value", "grad", "value_fn", "obj_fn")), "sam": (sam(), ()), "adam": (optax.adam(1), ())}
    for name, (tx, names) in {**asking, **others}.items():
        assert tuple(extra_arguments(tx, PARAMS, tx.init(PARAMS), PARAMS, loss)) == names, name


@pytest.mark.slow
def test_many_steps_train_with_a_line_search(task: jaxcalc.Task) -> None:
    def by_last_token(params: Any, tokens: jax.Array, last: int) -> jax.Array:
        return params[tokens][:, -last:]

    state = jaxcalc.create_state(jnp.zeros((task.vocab_size, task.vocab_size)), optax.lbfgs(), by_last_token)
    _, metrics = jaxcalc.train_steps(state, task, seed=0, n_steps=5, batch_size=16)
    assert metrics["loss"][-1] < 0.9 * metrics["loss"][0]


def test_what_cannot_be_given_is_named() -> None:
    def update(updates: Any, state: Any, params: Any = None, *, temperature: float, **_: Any) -> tuple[Any, Any]:
        return updates, state

    tx = optax.chain(optax.polyak_sgd(), optax.GradientTransformationExtraArgs(lambda params: (), update))
    state = jaxcalc.create_state(PARAMS, tx, apply_fn)
    for make in (
        lambda: jaxcalc.train_step(state, BATCH),
        lambda: in_microbatches(2)(state, BATCH),
        lambda: take_step(tx, PARAMS, state.opt_state, PARAMS, value_fn=loss),
    ):
        with pytest.raises(InputError, match=r"value, grad, value_fn, obj_fn, grad_fn; it says: .*'temperature'"):
            make()
    polyak = optax.polyak_sgd()
    with pytest.raises(InputError, match=r"given here, grad; it says: .*'value'; give value_fn"):
        take_step(polyak, PARAMS, polyak.init(PARAMS), PARAMS)


def test_an_update_of_another_shape_is_refused() -> None:
    """As of dpsgd, which asks for the gradient of each example; JAX would broadcast it."""
    tx = optax.GradientTransformation(
        lambda params: (), lambda grads, state, params=None: (jax.tree.map(lambda leaf: leaf.sum(0), grads), state)
    )
    state = jaxcalc.create_state(PARAMS, tx, apply_fn)
    for make in (
        lambda: jaxcalc.train_step(state, BATCH),
        lambda: take_step(tx, PARAMS, state.opt_state, PARAMS),
    ):
        with pytest.raises(InputError, match=r"of shape \(3,\) of a gradient of shape \(3, 3\), w; "):
            make()


def test_optax_asks_for_no_other_arguments() -> None:
    """Of all update functions in Optax's source, those arguments that are no gradient, state or parameters."""
    found: set[str] = set()
    assert optax.__file__
    for path in Path(optax.__file__).parent.rglob("*.py"):
        if "test" in path.name or "experimental" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and [arg.arg for arg in node.args.args[:2]] == ["updates", "state"]:
                found |= {arg.arg for arg in [*node.args.args[2:], *node.args.kwonlyargs]}
    assert found - {"params"} == {"value", "grad", "value_fn", "obj_fn", "grad_fn"}


WEIGHTS, GRADS = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([1.0, 2.0])}
"""Where LAMB, LARS and schedule-free SGD once had 72 %, −44,621 % and 2,200 % of weight decay without any."""
sgd = optax.sgd(0.1)
ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(("learning_rate", "eta", "step_size", "noise_multiplier"), 0.1),
    **dict.fromkeys(("inner", "optimizer", "base_optimizer", "opt", "adv_optimizer", "fast_optimizer", "tx"), sgd),
    **dict.fromkeys(("clipping", "gamma", "decay", "slow_step_size"), 0.5),
    **dict.fromkeys(("max_delta", "threshold", "max_norm", "l2_norm_clip"), 1.0),
    **dict.fromkeys(("key", "seed"), 0),
    **dict.fromkeys(("max_consecutive_errors", "sync_period", "every_k_schedule"), 2),
    **dict.fromkeys(("max_backtracking_steps", "max_linesearch_steps"), 4),
    **{"mask": True, "freeze_mask": False, "transforms": {"all": sgd}, "param_labels": "all", "measure_name": "name"},
    "step_size_fn": lambda step: 0.1,
    "should_transform_fn": lambda step, **_: step < 5,
    "f": lambda grads, params: grads,
    "measure": lambda updates, *_, **__: updates,
}
"""A value for every argument that some optimizer of Optax cannot do without, by its name."""


def optax_optimizers(weight_decay: float) -> dict[str, Any]:
    """Return every optimizer that Optax can make, with this weight decay, and whether it takes one."""
    made: dict[str, Any] = {}
    for module in (optax, optax.contrib):
        for name, make in vars(module).items():
            if name.startswith(("_", "scale_by_")) or not callable(make):  # scale_by_adam is the greater part of adam
                continue
            try:
                takes = inspect.signature(make).parameters
            except ValueError:
                continue  # a type
            kinds = inspect.Parameter
            needed = [
                key
                for key, one in takes.items()
                if one.default is kinds.empty and one.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
            ]
            if not takes or not set(needed) <= set(ARGUMENTS):
                continue
            arguments = {key: ARGUMENTS[key] for key in needed}
            try:
                tx = make(**arguments, **({"weight_decay": weight_decay} if "weight_decay" in takes else {}))
            except (TypeError, ValueError, AttributeError):
                continue  # no optimizer, but a loss or a schedule that takes an argument of such a name
            if hasattr(tx, "init") and hasattr(tx, "update"):
                made[name] = (tx, "weight_decay" in takes)
    return made


@pytest.mark.filterwarnings("ignore:Specifying a key will be required", "ignore::DeprecationWarning:optax")
def test_blame_is_true_of_every_optimizer_that_optax_has() -> None:
    def half_square(params: Any) -> jax.Array:
        return jnp.square(params["w"] - 2.0).sum() / 2  # GRADS is its gradient

    refused: set[str] = set()

    @jax.jit
    def every_step() -> dict[str, Step]:
        steps: dict[str, Step] = {}
        for prefix, decay in (("", 0.0), ("decaying ", 0.3)):
            for name, (tx, takes_decay) in optax_optimizers(decay).items():
                if decay and not takes_decay:
                    continue
                try:
                    step = take_step(tx, GRADS, tx.init(WEIGHTS), WEIGHTS, value_fn=half_square)
                    steps[prefix + name] = step._replace(params=None, opt_state=None)  # unused, so never computed
                except (InputError, ValueError):
                    refused.add(name)
        return steps

    steps = jax.tree.map(np.asarray, every_step())
    assert len(steps) > 105
    others = {"lookahead", "scale_by_muon", "differentially_private_aggregate", "dpsgd"}
    assert refused <= others  # which want other trees of parameters, or a gradient for each example
    for name, step in steps.items():
        account, whole = assign_blame(GRADS, step), np.vdot(GRADS["w"], np.float64(step.update["w"]))
        assert account.total == pytest.approx(-whole, rel=1e-5, abs=1e-7), name
        rates = -step.weight_decay["w"] / np.asarray(WEIGHTS["w"])
        assert rates[0] >= 0, name
        assert rates[0] == pytest.approx(rates[1], rel=1e-4, abs=1e-7), name
        assert ("weight decay" in account.nats) == (name.startswith("decaying") and bool(rates[0])), name
        assert ("weight decay is not split off" in repr(account)) == (not step.splits_decay), name
    split = {name for name, step in steps.items() if step.splits_decay}
    assert not split & {"lamb", "lars", "schedule_free_sgd", "schedule_free_adamw", "fromage", "sam", "lbfgs", "sophia"}
    assert {"sgd", "adam", "adamw", "lion", "muon", "polyak_sgd", "apply_if_finite", "MultiSteps"} <= split
    for name in ("adamw", "adamaxw", "nadamw", "lion", "adan", "ademamix", "galore"):
        decay = assign_blame(GRADS, steps[f"decaying {name}"]).nats["weight decay"]
        assert decay == pytest.approx(0.1 * 0.3 * (1 * 3 + 2 * 4), rel=1e-5), name


def test_what_is_known_of_our_own_optimizers_is_what_would_be_found() -> None:
    @jax.jit
    def both() -> list[tuple[Step, Step]]:
        names: tuple[OptimizerName, ...] = ("muon", "adamw", "sgd")
        ours = [make_optimizer(name, None, weight_decay=0.3) for name in names]
        grads = jax.grad(loss)(PARAMS)
        return [
            (take_step(tx, grads, tx.init(PARAMS), PARAMS), take_step(foreign, grads, tx.init(PARAMS), PARAMS))
            for tx, foreign in ((tx, optax.GradientTransformation(*tx)) for tx in ours)
        ]

    for known, found in both():
        assert known.weight_decay["w"].all()
        chex.assert_trees_all_close(found, known, rtol=1e-6)


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def test_the_matrices_of_any_tree_are_found() -> None:
    """By the axes of its leaves: what decays without a gradient, and what Muon does not leave to Adam."""
    layer = Layer(jnp.ones((3, 2)), jnp.ones(2))
    params = {"Embedding_0": {"kernel": jnp.ones((5, 3))}, "layers": (layer, layer), "scale": jnp.ones(())}
    named = {"scale": "D", "Embedding_0.kernel": "D->F"}  # a table that names some leaf says it all
    for table, expected in (({}, {"layers.0.kernel", "layers.1.kernel"}), (named, {"Embedding_0.kernel"})):
        decaying = make_optimizer("sgd", None, weight_decay=1.0, axes={**jaxcalc.params.AXES, **table})
        updates, _ = decaying.update(jax.tree.map(jnp.zeros_like, params), decaying.init(params), params)
        assert {path for path, update in jaxcalc.named_leaves(updates).items() if np.any(update)} == expected
        state = jaxcalc.named_leaves(make_optimizer("muon", None, axes={**jaxcalc.params.AXES, **table}).init(params))
        to_adam = {path for path in jaxcalc.named_leaves(params) if any(f".nu.{path}" in held for held in state)}
        assert to_adam == jaxcalc.named_leaves(params).keys() - expected
