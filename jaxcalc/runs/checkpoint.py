"""Checkpoints of a training run (host): Orbax writes them, and this module verifies them.

A folder `checkpoints/` holds one folder per step, such as `000040/`: the parameters and the optimizer state, as Orbax
writes them, and `manifest.json`. Saving ends by reading the checkpoint back and comparing its fingerprints with those
of the arrays on the device. Only then is the manifest written, and a checkpoint without a manifest does not count.

The step number alone decides which checkpoint is newer, never the time of a file.

If several processes train, each writes its part. Process 0 alone verifies, writes manifests and deletes.
"""

import concurrent.futures
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.fingerprints import fingerprint
from jaxcalc.runs.files import PathLike
from jaxcalc.runs.manifest import (
    MANIFEST,
    DamagedError,
    Manifest,
    check_files,
    check_leaves,
    paths,
    read_manifest,
    step_path,
    write_manifest,
)
from jaxcalc.scale import processes, sharding
from jaxcalc.trees import array_type, data_of, is_key, keys_of, named_arrays, named_leaves

if TYPE_CHECKING:
    from jaxcalc.training import TrainState  # and with it Flax, for which asking a model need not wait

DAMAGED = ".damaged"
"""The suffix that the folder of a damaged checkpoint gets when the damage is found."""


class Writer:
    """Saves checkpoints in the background, one at a time: it verifies each, then deletes those no longer needed.

    The newest verified checkpoint is never deleted. Used as a context manager, the writer waits at the end for its
    last save.

    Args:
      folder: where the checkpoints are; it is created if it does not exist.
      info: JSON values about the run, for the manifest of each checkpoint.
      kept: steps whose checkpoints are kept for good.
      newest: how many of the newest checkpoints are kept, at least 1.

    >>> import tempfile, optax
    >>> from jaxcalc import ModelConfig, create_state, init
    >>> state = create_state(init(jax.random.key(0), ModelConfig(35, 8, 2, 8, 1)), optax.sgd(0.1))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Writer(folder, {"note": "untrained"}) as writer:
    ...         writer.save(state)
    ...     again, manifest = restore(folder, step=0, like=state)
    >>> manifest["note"]
    'untrained'
    """

    def __init__(self, folder: PathLike, info: Mapping[str, object], kept: Iterable[int] = (), newest: int = 2) -> None:
        _check_newest(newest)
        self._folder, self._info = Path(folder), info
        self._kept, self._newest = frozenset(kept), newest
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def save(self, state: "TrainState", **info: object) -> None:
        """Start to save a state, with more JSON values for its manifest.

        Returns as soon as the arrays are copied, so that the caller may donate them.

        Raises `InputError` naming the first leaf that is no array of numbers or PRNG keys, and if the save before
        failed; see `wait`.
        """
        self.wait()
        step, saved = int(state.step), _saved(state)
        path = step_path(self._folder, step).absolute()
        manifest = {"step": step, "leaves": fingerprint(saved), "paths": paths(saved), **self._info, **info}
        arrays = named_arrays(saved)
        types = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
        arrays = {name: processes.one_copy(data_of(array)) for name, array in arrays.items()}
        for name, array in arrays.items():
            if not array.size or array.dtype.name in _UNWRITABLE:
                raise InputError(f"Orbax cannot write {name}, {array_type(array)}; keep it out of the state")
        n_bytes = sum(array.nbytes for array in arrays.values())
        checkpointer = _checkpointer()
        try:
            if processes.is_main():
                self._folder.mkdir(exist_ok=True)
                remove(path)
            processes.wait(f"before {path.name}")
            checkpointer.save(path, arrays)
        except _WRITE_ERRORS as error:
            raise self._failure(path, n_bytes, error) from error

        def finish() -> None:
            try:
                checkpointer.wait_until_finished()
                if processes.is_main():
                    _complete(path, manifest, types)
                    prune(self._folder, self._kept, self._newest)
            except _WRITE_ERRORS as error:
                raise self._failure(path, n_bytes, error) from error
            finally:
                checkpointer.close()

        self._pending = self._thread.submit(finish)

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises `InputError` if it could not be written, with its path, its bytes and the intact checkpoints, and if a
        leaf is not finite: such a state does not count as saved.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def failed(self) -> bool:
        """Return whether the last save has ended in failure; `wait` then raises the reason."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def _failure(self, path: Path, n_bytes: int, error: Exception) -> InputError:
        intact = ", ".join(f"{step:,}" for step in steps(self._folder) if step != int(path.name))
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else f"…{reason[-300:]}"  # a long message gives the reason at its end
        return InputError(
            f"cannot write {path} ({n_bytes:,} bytes of arrays): {reason}; "
            f"the intact checkpoints are those of steps {intact or '(none)'}; make room and go on with --resume"
        )


def steps(folder: PathLike) -> list[int]:
    """Return the steps whose checkpoints are complete, ascending."""
    return sorted(int(path.parent.name) for path in Path(folder).glob(f"*/{MANIFEST}") if _has_step_name(path.parent))


def restore(folder: PathLike, step: int, like: "TrainState") -> "tuple[TrainState, Manifest]":
    """Return the state of a checkpoint, bit for bit as it was saved, and its manifest.

    Args:
      like: a state of arrays, or of shapes and dtypes as `jax.eval_shape` returns it. A leaf with a sharding is
        restored with that sharding, whatever sharding it was saved with; a NumPy array or a number as such.

    Raises `InputError` with every leaf that differs between the checkpoint and `like` or is elsewhere in the tree, and
    `DamagedError` if the checkpoint is not what was written.
    """
    path = step_path(folder, step).absolute()
    manifest = read_manifest(folder, step)
    check_files(path, manifest)
    saved = _saved(like)
    leaves = named_leaves(saved)
    types = {name: leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for name, leaf in leaves.items()}
    check_leaves(path, manifest, types, paths(saved))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = {}
    for name, leaf in types.items():
        place = (leaf.sharding or device) if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else None
        target[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
    arrays = _read(path, target)
    marks = fingerprint(arrays)
    if marks != manifest["leaves"]:
        wrong = [name for name, mark in marks.items() if mark != manifest["leaves"][name]]
        raise DamagedError(f"{path} is damaged: the fingerprints of {', '.join(wrong)} do not match")
    restored = [
        type(leaf)(arrays[name].item()) if isinstance(leaf, int | float | complex | np.generic) else arrays[name]
        for name, leaf in leaves.items()
    ]
    step_array = sharding.put(np.int32(step), getattr(like.step, "sharding", None) or device)
    return like.replace(step=step_array, **jax.tree.unflatten(jax.tree.structure(saved), restored)), manifest


def restore_newest(folder: PathLike, like: "TrainState", warn: Callable[[str], None]) -> "tuple[TrainState, Manifest]":
    """Return the state and the manifest of the newest good checkpoint.

    A newer one that is damaged is reported to `warn` and renamed, so that it is not tried again.

    Raises `InputError` as `restore` does, and if no checkpoint is good.
    """
    for step in reversed(steps(folder)):
        try:
            return restore(folder, step, like)
        except DamagedError as error:
            path = step_path(folder, step)
            aside = path.with_suffix(DAMAGED)
            warn(f"{error}; kept as {aside.name}, going back to an earlier checkpoint")
            if processes.is_main():
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
    raise InputError(f"{folder} holds no checkpoint that is complete and undamaged; train again from the start")


def prune(folder: PathLike, kept: Iterable[int], newest: int) -> None:
    """Delete the complete checkpoints except the `newest` ones and those of the steps in `kept`.

    Orbax's preservation policies choose them. Its `CheckpointManager` is not used: it would delete old checkpoints
    before the new one is verified.
    """
    _check_newest(newest)
    policies = import_orbax().checkpoint_managers
    policy = policies.AnyPreservationPolicy([policies.LatestN(newest), policies.CustomSteps(list(kept))])
    found = [SimpleNamespace(step=step) for step in steps(folder)]
    preserved = policy.should_preserve(found, context=policies.PreservationContext())
    for checkpoint, is_preserved in zip(found, preserved, strict=True):
        if not is_preserved:
            remove(step_path(folder, checkpoint.step))


def remove(path: PathLike) -> None:
    """Delete a checkpoint, its manifest first, so that half a checkpoint never counts as one."""
    (Path(path) / MANIFEST).unlink(missing_ok=True)
    if Path(path).exists():
        shutil.rmtree(path)


def clean(folder: PathLike) -> list[str]:
    """Delete what a killed writer left behind and return the names. Only the holder of the run's lock may call it."""
    folder = Path(folder)
    left = [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if ".orbax-checkpoint-tmp" in path.name or (_has_step_name(path) and not (path / MANIFEST).is_file())
    ]
    for path in left:
        shutil.rmtree(path)
    for path in folder.glob(f"*/{MANIFEST}.partial"):
        path.unlink()
    return [path.name for path in left]


_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # Orbax and TensorStore raise the last two
_UNWRITABLE = ("int1", "uint1", "uint2", "uint4", "float6_e2m3fn", "float6_e3m2fn", "float8_e4m3")


def _check_newest(newest: int) -> None:
    if newest < 1:
        raise InputError(f"newest is {newest}; at least the newest checkpoint is kept")


def _has_step_name(path: Path) -> bool:
    return path.name.isdecimal() and path.name == f"{int(path.name):06}"


def _saved(state: "TrainState") -> dict[str, Any]:
    return {"params": state.params, "opt_state": state.opt_state}


def import_orbax() -> Any:
    """Return the module orbax.checkpoint."""
    import orbax.checkpoint  # takes a quarter of a second, which only reading and writing checkpoints should cost

    return orbax.checkpoint


def _checkpointer(alone: bool = False) -> Any:
    """Return Orbax's checkpointer for all processes together, or for this one alone."""
    orbax, me = import_orbax(), jax.process_index()
    if not alone or jax.process_count() == 1:
        return orbax.StandardCheckpointer()
    options = orbax.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )
    return orbax.StandardCheckpointer(multiprocessing_options=options)


def _read(path: Path, target: dict[str, jax.ShapeDtypeStruct], alone: bool = False) -> dict[str, Any]:
    """Return the arrays of a checkpoint: JAX arrays where `target` has a sharding, NumPy arrays elsewhere."""
    checkpointer = _checkpointer(alone)
    try:
        arrays = checkpointer.restore(path, {name: data_of(leaf) for name, leaf in target.items()})
        return {name: keys_of(arrays[name], leaf) for name, leaf in target.items()}
    except (*_WRITE_ERRORS, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {' '.join(str(error).split()):.300}") from error
    finally:
        checkpointer.close()


def _complete(path: Path, manifest: Manifest, types: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Verify a checkpoint that Orbax has written, and write its manifest."""
    arrays = _read(path, types, alone=True)
    if fingerprint(arrays) != manifest["leaves"]:
        raise DamagedError(f"{path} does not read back as it was written")
    for name, array in arrays.items():
        if not is_key(array) and not np.isfinite(array).all():
            raise InputError(f"{name} is not finite at step {manifest['step']:,}; such a state is not saved")
    write_manifest(path, manifest)
