"""A checkpoint counts only if it is complete and verified; anything else is detected."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcalc import InputError, TrainState, create_state, fingerprint
from jaxcalc.runs import checkpoint


def new_state(value: float = 1.0, dtype: str = "float32") -> TrainState:
    params = {"up": jnp.full((4, 6), value, dtype), "blocks": [{"norm": jnp.arange(3, dtype=dtype)}]}
    return create_state(params, optax.adam(0.1))


def save(folder: Path, *steps: int, **options: object) -> checkpoint.Writer:
    writer = checkpoint.Writer(folder, {"config": {"rate": 1e-05}}, **options)
    for step in steps:
        writer.save(new_state(step + 0.5).replace(step=jnp.int32(step)), metrics={"bytes": step})
    writer.wait()
    return writer


def test_a_state_comes_back_bit_for_bit_with_what_was_said_of_it(tmp_path: Path) -> None:
    save(tmp_path / "in here", 0, 30)
    state, manifest = checkpoint.restore(tmp_path / "in here", 30, jax.eval_shape(new_state))
    expected = new_state(30.5)
    chex.assert_trees_all_equal((state.params, state.opt_state), (expected.params, expected.opt_state), strict=True)
    assert int(state.step) == 30
    assert manifest["config"] == {"rate": 1e-05}
    assert manifest["metrics"] == {"bytes": 30}
    assert manifest["leaves"]["params.up"] == fingerprint(expected.params)["up"]


def test_a_saved_state_may_be_donated_at_once(tmp_path: Path) -> None:
    state = new_state()
    add = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    writer = checkpoint.Writer(tmp_path, {})
    writer.save(state)
    for _ in range(5):
        state = add(state)
    writer.wait()
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, 0, new_state())[0].params, new_state().params)


def test_the_newest_and_the_kept_ones_stay(tmp_path: Path) -> None:
    save(tmp_path, 0, 10, 20, 30, 40, 50, kept={0, 20}, newest=2)
    assert checkpoint.steps(tmp_path) == [0, 20, 40, 50]
    with pytest.raises(InputError, match="newest is 0"):
        checkpoint.Writer(tmp_path, {}, newest=0)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 10)
    writer = checkpoint.Writer(tmp_path, {})
    writer.save(new_state(7).replace(step=jnp.int32(10)))
    writer.wait()
    state, _ = checkpoint.restore(tmp_path, 10, new_state())
    chex.assert_trees_all_equal(state.params, new_state(7).params)


def test_every_leaf_that_is_other_is_listed_and_nothing_is_cast(tmp_path: Path) -> None:
    save(tmp_path, 0)
    like = jax.eval_shape(lambda: new_state(dtype="bfloat16"))
    with pytest.raises(InputError, match="of another model, optimizer or dtype: ") as error:
        checkpoint.restore(tmp_path, 0, like)
    listed = str(error.value).split("dtype: ")[1].split("; ")
    assert "params.up is float32[4,6] there and bfloat16[4,6] here" in listed
    assert len(listed) == 6  # two parameters and their two moments
    other = create_state({"up": jnp.zeros((4, 7)), "down": jnp.zeros(2)}, optax.sgd(0.1))
    with pytest.raises(InputError, match=r"params\.down is missing there and float32\[2\] here"):
        checkpoint.restore(tmp_path, 0, other)


def test_a_checkpoint_of_one_sharding_is_restored_to_another(tmp_path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    state = new_state()
    state = state.replace(params={**state.params, "up": jax.device_put(jnp.arange(24.0).reshape(4, 6), split)})
    writer = checkpoint.Writer(tmp_path, {})
    writer.save(state)
    writer.wait()
    across = NamedSharding(mesh, PartitionSpec(None, "data"))
    like = state.replace(params={**state.params, "up": jax.device_put(state.params["up"], across)})
    restored, manifest = checkpoint.restore(tmp_path, 0, like)
    assert restored.params["up"].sharding == across
    assert manifest["leaves"]["params.up"] == fingerprint({"x": np.arange(24, dtype=np.float32).reshape(4, 6)})["x"]
    np.testing.assert_array_equal(restored.params["up"], state.params["up"])


def test_what_a_killed_writer_leaves_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 10)
    (tmp_path / "000020.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "000030").mkdir()
    (tmp_path / "000030" / "half").write_text("")
    (tmp_path / "000010" / "manifest.json.partial").write_text("{")
    (tmp_path / "notes").mkdir()
    assert checkpoint.clean(tmp_path) == ["000020.orbax-checkpoint-tmp", "000030"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000010", "notes"]
    checkpoint.restore(tmp_path, 10, new_state())
    assert checkpoint.clean(tmp_path / "nowhere") == []


def test_a_damaged_checkpoint_is_passed_over_loudly_and_kept_aside(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30, newest=3)
    (tmp_path / "000020" / "_METADATA").unlink()
    manifest = tmp_path / "000030" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"bytes": 30', '"bytes": 31'))
    told: list[str] = []
    state, _ = checkpoint.restore_newest(tmp_path, new_state(), told.append)
    assert int(state.step) == 10
    assert "manifest.json is damaged: it is not of step 30, or its checksum is wrong; kept as 000030.damaged" in told[0]
    assert "000020 is damaged: its file _METADATA is missing; kept as 000020.damaged" in told[1]
    assert checkpoint.steps(tmp_path) == [10]
    checkpoint.remove(tmp_path / "000010")
    with pytest.raises(InputError, match="holds no checkpoint that is complete and undamaged"):
        checkpoint.restore_newest(tmp_path, new_state(), told.append)


def test_arrays_that_read_back_wrong_are_found_by_their_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)
    read = checkpoint._read

    def flipped(path: Path, target: dict, alone: bool = False) -> dict:
        arrays = read(path, target, alone)
        return arrays | {"params.up": jnp.asarray(arrays["params.up"]).at[2, 3].multiply(-1)}

    monkeypatch.setattr(checkpoint, "_read", flipped)
    with pytest.raises(checkpoint.DamagedError, match=r"damaged: the fingerprints of params\.up do not match"):
        checkpoint.restore(tmp_path, 10, new_state())
    with pytest.raises(InputError, match=r"000020 .*does not read back as it was written; .* those of steps 10;"):
        save(tmp_path, 20)
    assert checkpoint.steps(tmp_path) == [10]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    state = new_state()
    state = state.replace(params={**state.params, "up": state.params["up"].at[1, 1].set(jnp.nan)})
    writer = checkpoint.Writer(tmp_path, {})
    writer.save(state)
    with pytest.raises(InputError, match=r"params\.up is not finite at step 0; such a state is not saved"):
        writer.wait()
    assert checkpoint.steps(tmp_path) == []


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    save(tmp_path, 10)
    manifest = json.loads((tmp_path / "000010" / "manifest.json").read_text())
    assert set(manifest) == {"step", "leaves", "paths", "files", "config", "metrics", "checksum"}
