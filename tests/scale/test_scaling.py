"""The model of a step on paper: it predicts the bytes that the compiled program exchanges, and seconds follow."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxcalc
from jaxcalc.scale.scaling import H100, TPU_V5P, Accelerator, StepTime, exchanged, step_time, traffic
from jaxcalc.scale.sharding import FULLY_SHARDED, TENSOR_PARALLEL, Rules, make_mesh, place, sharded

CONFIG = jaxcalc.ModelConfig(vocab_size=40, d_model=16, n_heads=4, d_ff=32, n_layers=2)
ANSWER = 3


@pytest.mark.parametrize(
    ("data", "model", "rules"),
    [
        (8, 1, TENSOR_PARALLEL),
        (1, 4, TENSOR_PARALLEL),
        (2, 4, TENSOR_PARALLEL),
        (8, 1, FULLY_SHARDED),
        (4, 2, FULLY_SHARDED),
    ],
)
def test_what_is_predicted_to_be_exchanged_is_what_the_program_exchanges(data: int, model: int, rules: Rules) -> None:
    mesh = make_mesh(data, model)
    apply_fn = sharded(mesh, rules)
    shapes = jax.eval_shape(
        lambda: jaxcalc.create_state(jaxcalc.init(jax.random.key(0), CONFIG), optax.sgd(0.1), apply_fn)
    )
    batch = jaxcalc.Batch(jnp.zeros((16, CONFIG.context_length + 1), int), jnp.ones((16, ANSWER)))
    found = exchanged(jaxcalc.train_step.lower(place(shapes, mesh, rules), batch).compile().as_text())
    sent = traffic(CONFIG, 16, ANSWER, data, model, rules)
    # The compiler for CPU sums whole gradients and keeps a part of them; others sum only that part. The gradient of a
    # norm's gains follows from that of the matrices after it: nothing more is exchanged along "data", and along "model"
    # a sum for each of the four matrices that read two norms.
    gains = 4 * 2 * CONFIG.n_layers * CONFIG.d_model
    assert found.pop("all-reduce") == sent.gradients + sent.activations - gains * (data > 1) + 2 * gains * (model > 1)
    assert found.pop("all-gather", 0) == sent.gathered
    assert not found


def test_a_tuple_and_single_numbers_are_read() -> None:
    program = """
      %a = (f32[64,4]{1,0}, bf16[8]{0}, /*index=2*/f32[]) all-reduce-start(%x, %y, %z), replica_groups={{0,1}}
      %b = f32[10]{0} all-gather(%c), dimensions={0}
      %d = f32[10]{0} add(%b, %b)
    """
    assert exchanged(program) == {"all-reduce": 4 * 256 + 2 * 8, "all-gather": 40}


def test_seconds_follow_from_the_assumptions() -> None:
    def time(data: int, rules: Rules = TENSOR_PARALLEL, accelerator: Accelerator = H100) -> StepTime:
        return step_time(CONFIG, 4096 * data, ANSWER, data, 1, rules, accelerator)

    n = jaxcalc.count(jaxcalc.init(jax.random.key(0), CONFIG))
    alone = time(1)
    assert alone.exchange == 0
    assert alone.compute == pytest.approx(6 * n * 4096 * CONFIG.context_length / (0.4 * 989e12))
    assert alone.memory == pytest.approx(28 * n / 3.35e12)
    assert time(2).compute == pytest.approx(alone.compute)  # weak scaling: each device has as much to do
    assert time(2).exchange == pytest.approx(2 * (4 * n / 2 / 450e9 + 5e-6))
    # Beyond a group of 8 the network carries a group's share: slower, and once more with latency.
    assert time(16).exchange == pytest.approx(2 * (4 * n * 7 / 8 / 450e9 + 4 * n / 8 / 2 / 50e9 + 4 * 5e-6))
    assert time(8, rules=FULLY_SHARDED).memory == pytest.approx(alone.memory / 8)
    assert time(8).overlapped <= time(8).apart
    assert time(8, accelerator=TPU_V5P).compute > alone.compute
