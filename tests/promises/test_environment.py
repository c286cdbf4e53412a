"""What a researcher meets around the library: a REPL, type checkers, terminals, other processes, other folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcalc
from jaxcalc import backprop, blame, steps
from jaxcalc.runs.config import RunConfig
from jaxcalc.trees import array_type

TASK = jaxcalc.calculator(max_number=6)
CONFIG = jaxcalc.ModelConfig(TASK.vocab_size, d_model=16, n_heads=2, d_ff=32, n_layers=1)
PARAMS = jaxcalc.init(jax.random.key(0), CONFIG)
BATCH = jaxcalc.batch_at(TASK, seed=0, step=0, size=8)
TX = optax.sgd(0.1)


# Printed values


class WithStatistics(jaxcalc.TrainState):
    """A state with a field of its own, as Flax's users write it."""

    statistics: Any = None


def printed() -> dict[str, Any]:
    """Return a value of each class that holds arrays or much text, by the name of its class."""
    state = WithStatistics.create(apply_fn=jaxcalc.apply, params=PARAMS, tx=TX, statistics=jnp.ones(3))
    (first, *rest), walked = backprop.stages(PARAMS, BATCH), list(backprop.walk(PARAMS, BATCH))
    values = [
        state,
        jaxcalc.create_state(PARAMS, jaxcalc.make_optimizer("muon", 100)),
        jax.eval_shape(lambda: state),
        BATCH,
        TASK,
        TASK.tokenizer,
        CONFIG,
        first,
        *backprop.forward(PARAMS, BATCH.tokens[:, :-1], [first, *rest]),
        *walked,
        steps.take_step(TX, PARAMS, TX.init(PARAMS), PARAMS),
        blame.ExampleBlame(np.zeros(8), 3.0),
        jaxcalc.Explorer("<html>" * 100_000, (0, 1), ()),
        jaxcalc.Evaluation(TASK, np.arange(5), np.zeros((5, 3), int), np.zeros(5), np.ones(5, bool)),
        jaxcalc.Run(Path("runs/x"), RunConfig(), {"errors": ["seven"] * 1_000}, TASK, PARAMS),
    ]
    return {f"{index} {type(value).__name__}": value for index, value in enumerate(values)}


def test_every_public_value_prints_in_a_few_lines_and_without_its_numbers() -> None:
    for name, value in printed().items():
        text = repr(value)
        assert text.count("\n") <= 12, name
        assert len(text) <= 1_000, name
        assert "rray(" not in text, name
        assert " at 0x" not in text, name


def test_arrays_print_as_dtype_and_shape_and_numbers_as_themselves() -> None:
    assert repr(BATCH) == "Batch(tokens=int32[8,6], mask=float32[8,2])"
    state = jaxcalc.create_state(PARAMS, TX)
    assert "step=0," in repr(state)
    assert f"<dict: 12 arrays, {jaxcalc.count(PARAMS):,} numbers>" in repr(state)
    mlp = next(step for step in backprop.walk(PARAMS, BATCH) if step.name == "block 0 mlp")
    assert "{'down': float32[32,16], 'norm': float32[16], 'up': float32[16,32]}" in repr(mlp)
    assert array_type(jnp.zeros((64, 4, 16))) == "float32[64,4,16]"
    assert "step=int32[]" in repr(jax.eval_shape(lambda: state))
    seen = []
    jax.jit(lambda batch: seen.append(repr(batch)))(BATCH)  # in a transformation too
    assert seen == [repr(BATCH)]
    state.step.delete()
    assert "step=int32[]" in repr(state)


ARRAY: Any = jnp.full((40, 50), jnp.nan)


@pytest.mark.parametrize(
    "call",
    [
        lambda: jaxcalc.batch_of(TASK, TASK.tokens, loss_on=ARRAY),
        lambda: jaxcalc.batch_of(TASK, TASK.tokens, loss_on=PARAMS),  # type: ignore[arg-type]
        lambda: jaxcalc.calculator(split=ARRAY),
        lambda: jaxcalc.calculator(output=np.asarray(ARRAY)),  # type: ignore[arg-type]
        lambda: jaxcalc.make_optimizer(ARRAY, 100),
        lambda: jaxcalc.interventions.twins(TASK, ARRAY, "plus"),
        lambda: jaxcalc.Problem((2, 3), ARRAY),
        lambda: jaxcalc.apply({**PARAMS, "embed": {"token": "x" * 1000, "position": ARRAY}}, BATCH.tokens),  # type: ignore[arg-type]
        lambda: blame.assign_blame(PARAMS, steps.take_step(TX, PARAMS, TX.init(PARAMS), PARAMS), level=ARRAY),
    ],
)
def test_an_error_names_what_is_wrong_and_prints_no_array(call: Callable[[], object]) -> None:
    with pytest.raises(jaxcalc.InputError) as error:
        call()
    assert "\n" not in str(error.value)
    assert "rray(" not in str(error.value)
    assert "nan" not in str(error.value)
    assert len(str(error.value)) < 250
