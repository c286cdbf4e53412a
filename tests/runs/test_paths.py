"""Paths may be text or any `os.PathLike`, in every public function that takes one."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
import optax
import pytest

import jaxcalc
from jaxcalc import Params, create_state, load_metadata, load_params, save_params
from jaxcalc.runs import checkpoint, figures, files, manifest, share, stablehlo


class Place(os.PathLike[str]):
    """A path that is neither text nor a `Path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


as_text_and_as_place = pytest.mark.parametrize("given", [str, Place])


@pytest.mark.parametrize("module", [checkpoint, figures, files, manifest, share, stablehlo])
def test_every_public_function_says_that_it_takes_them(module: ModuleType) -> None:
    for name, value in vars(module).items():
        if not name.startswith("_") and inspect.isroutine(value) and value.__module__.startswith("jaxcalc"):
            for parameter, kind in inspect.get_annotations(value).items():
                if parameter in ("path", "folder"):
                    assert kind == files.PathLike, f"{name} takes {parameter} as {kind}"


@as_text_and_as_place
def test_checkpoints(tmp_path: Path, given: Callable[[Path], files.PathLike]) -> None:
    folder, warnings = given(tmp_path / "checkpoints"), []
    state = create_state({"up": jnp.ones(3)}, optax.sgd(0.1))
    with checkpoint.Writer(folder, {"note": "here"}) as writer:
        for step in (0, 10, 20):
            writer.save(state.replace(step=jnp.int32(step)))
    assert checkpoint.steps(folder) == [10, 20]
    assert checkpoint.read_manifest(folder, 10)["note"] == "here"
    assert int(checkpoint.restore(folder, 10, state)[0].step) == 10
    assert int(checkpoint.restore_newest(folder, state, warnings.append)[0].step) == 20
    path = given(manifest.step_path(folder, 20))
    manifest.check_files(path, manifest.read_manifest(folder, 20))
    checkpoint.prune(folder, (), newest=1)
    assert checkpoint.steps(folder) == [20]
    checkpoint.remove(path)
    assert (checkpoint.steps(folder), checkpoint.clean(folder), warnings) == ([], [], [])


@as_text_and_as_place
def test_model_files(tiny: Params, tmp_path: Path, given: Callable[[Path], files.PathLike]) -> None:
    path = given(tmp_path / "model.safetensors")
    save_params(path, tiny, {"note": "here"})
    assert jaxcalc.fingerprint(load_params(path)) == load_metadata(path)["fingerprint"]
    files.write_whole(path, [b"no ", b"model"])
    assert (tmp_path / "model.safetensors").read_bytes() == b"no model"


@as_text_and_as_place
def test_figures(tmp_path: Path, given: Callable[[Path], files.PathLike]) -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "by_operation": {"plus": 0.5}}]
    figures.learning_curve(given(tmp_path / "curve.png"), lines, "held-out", 512)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
