"""Checkpoints of a training run (host): Orbax, and what it takes to trust one.

A folder `checkpoints/` holds a folder for each step, such as `000040/`: what Orbax wrote of the parameters and the
optimizer state, and `manifest.json`. The manifest is written last, after the checkpoint was read back and its
fingerprints were those of the arrays on the device; without one, a checkpoint does not count. It holds
the fingerprint of every leaf, size and hash of every file, what the run says of itself, and a hash of all that.

Order is by step number. No file's time is ever looked at.

Of several processes each writes its own part. Process 0 alone verifies, writes manifests and deletes.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxcalc.errors import InputError
from jaxcalc.scale import processes, sharding
from jaxcalc.training import TrainState
from jaxcalc.trees import fingerprint, named_leaves

MANIFEST = "manifest.json"
DAMAGED = ".damaged"
"""What the name of a damaged checkpoint ends in, once it was found to be one."""


class DamagedError(InputError):
    """A checkpoint is not what was written: its files or its arrays have changed."""


@dataclasses.dataclass
class Writer:
    """Saves checkpoints in the background, one at a time, verifies each and then deletes those not to be kept.

    The newest verified checkpoint is never deleted. As a context manager it ends when its last save has ended.
    """

    folder: Path
    info: dict[str, Any]
    """What the manifest of each checkpoint says of the run: a JSON object."""
    kept: Container[int] = ()
    """Steps whose checkpoints are kept for good."""
    newest: int = 2
    """How many of the others are kept, at least 1."""

    def __post_init__(self) -> None:
        if self.newest < 1:
            raise InputError(f"newest is {self.newest}; at least the newest checkpoint is kept")
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def save(self, state: TrainState, **info: Any) -> None:
        """Begin to save a state; returns as soon as its arrays are copied, so that they can be donated.

        Raises `InputError` as `wait` does, for the save before.
        """
        self.wait()
        step, arrays = int(state.step), _arrays(state)
        path = _path(self.folder, step).absolute()
        manifest = {"step": step, "leaves": fingerprint(arrays), **self.info, **info}
        n_bytes = sum(leaf.nbytes for leaf in arrays.values())
        checkpointer = _checkpointer()
        try:
            if processes.is_main():
                self.folder.mkdir(exist_ok=True)
                remove(path)
            processes.wait(f"before {path.name}")
            checkpointer.save(path, arrays)
        except _WRITE_ERRORS as error:
            raise self._failure(path, n_bytes, error) from error

        def finish() -> None:
            try:
                checkpointer.wait_until_finished()
                if processes.is_main():
                    _complete(path, manifest)
                    prune(self.folder, self.kept, self.newest)
            except _WRITE_ERRORS as error:
                raise self._failure(path, n_bytes, error) from error
            finally:
                checkpointer.close()

        self._pending = self._thread.submit(finish)

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises `InputError` where it could not be written, naming the file, its bytes and the checkpoints there are, and
        where a leaf is not finite: such a state does not count as saved.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def failed(self) -> bool:
        """Return whether a save that has ended failed; `wait` then says why."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def _failure(self, path: Path, n_bytes: int, error: Exception) -> InputError:
        intact = ", ".join(f"{step:,}" for step in steps(self.folder) if _path(self.folder, step).name != path.name)
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= 300 else f"…{reason[-300:]}"  # how it ends says why
        return InputError(
            f"cannot write {path} ({n_bytes:,} bytes of arrays): {reason}; "
            f"intact are the checkpoints of steps {intact or '(none)'}; make room and go on with --resume"
        )


def steps(folder: Path) -> list[int]:
    """Return the steps whose checkpoints are complete, ascending."""
    return sorted(int(path.parent.name) for path in folder.glob(f"*/{MANIFEST}") if _is_of_a_step(path.parent))


def restore(folder: Path, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Return the state of a checkpoint, bit for bit as it was, and its manifest.

    Args:
      like: a state of JAX arrays or, as `jax.eval_shape` makes one, of shapes and dtypes. A leaf with a sharding is
        restored to it, whatever the sharding was when it was saved.

    Raises `InputError` that lists every leaf in which the checkpoint differs from `like`, and `DamagedError` for
    one that is not what was written.
    """
    path = _path(folder, step).absolute()
    manifest = read_manifest(folder, step)
    _check_files(path, manifest["files"])
    wanted = {name: _array_type(leaf) for name, leaf in _arrays(like).items()}
    found = {name: mark.split()[0] for name, mark in manifest["leaves"].items()}
    if wanted != found:
        listed = "; ".join(differences(found, wanted))
        raise InputError(f"{path} is of another model, optimizer or dtype: {listed}")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    arrays = _read(path, {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or device)
        for name, leaf in _arrays(like).items()
    })  # fmt: skip
    if fingerprint(arrays) != manifest["leaves"]:
        wrong = [name for name, mark in fingerprint(arrays).items() if mark != manifest["leaves"][name]]
        raise DamagedError(f"{path} is damaged: the fingerprints of {', '.join(wrong)} are not those that were saved")
    saved = {"params": like.params, "opt_state": like.opt_state}
    leaves = [arrays[name] for name in named_leaves(saved)]
    step_array = sharding.put(np.int32(step), getattr(like.step, "sharding", None) or device)
    return like.replace(step=step_array, **jax.tree.unflatten(jax.tree.structure(saved), leaves)), manifest


def restore_newest(folder: Path, like: TrainState, warn: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]]:
    """Return the state and the manifest of the newest checkpoint that is good.

    A damaged one on the way is told to `warn`, and renamed so that it is not in the way again.

    Raises `InputError` as `restore` does, and where no checkpoint is good.
    """
    for step in reversed(steps(folder)):
        try:
            return restore(folder, step, like)
        except DamagedError as error:
            aside = _path(folder, step).with_suffix(DAMAGED)
            warn(f"{error}; kept as {aside.name}, going back to an earlier checkpoint")
            if processes.is_main():
                shutil.rmtree(aside, ignore_errors=True)
                _path(folder, step).rename(aside)
    raise InputError(f"{folder} holds no checkpoint that is complete and undamaged; train again from the start")


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Return what a checkpoint says of itself.

    Raises `DamagedError` where that is not what was written.
    """
    path = _path(folder, step) / MANIFEST
    try:
        data = path.read_bytes()
        manifest = json.loads(data)
        del manifest["checksum"]
        good = data == _written(manifest) and manifest["step"] == step
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: {type(error).__name__} {error}") from error
    if not good:
        raise DamagedError(f"{path} is damaged: it is not of step {step:,}, or its checksum is wrong")
    return manifest


def prune(folder: Path, kept: Container[int], newest: int) -> None:
    """Delete the complete checkpoints that are neither among the `newest` nor of a step that is `kept`."""
    for step in steps(folder)[:-newest]:
        if step not in kept:
            remove(_path(folder, step))


def remove(path: Path) -> None:
    """Delete a checkpoint, its manifest first, so that half a checkpoint never counts as one."""
    (path / MANIFEST).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


def clean(folder: Path) -> list[str]:
    """Delete what a writer that was killed left behind, and return the names; only for one who has the lock."""
    left = [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if ".orbax-checkpoint-tmp" in path.name or (_is_of_a_step(path) and not (path / MANIFEST).is_file())
    ]
    for path in left:
        shutil.rmtree(path)
    for path in folder.glob(f"*/{MANIFEST}.partial"):
        path.unlink()
    return [path.name for path in left]


_WRITE_ERRORS = (OSError, ValueError, RuntimeError)  # the last two are how Orbax and TensorStore say it


def _path(folder: Path, step: int) -> Path:
    return folder / f"{step:06}"


def _is_of_a_step(path: Path) -> bool:
    return path.name.isdecimal() and path.name == f"{int(path.name):06}"


def _arrays(state: TrainState) -> dict[str, Any]:
    return named_leaves({"params": state.params, "opt_state": state.opt_state})


def _array_type(leaf: Any) -> str:
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return a line for each name whose value is not the same in both."""
    return [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]


def _checkpointer(alone: bool = False) -> Any:
    """Return Orbax's checkpointer of all processes together, or of this one alone."""
    import orbax.checkpoint as orbax  # imported where a checkpoint is read or written: a quarter of a second

    me = jax.process_index()
    if not alone or jax.process_count() == 1:
        return orbax.StandardCheckpointer()
    options = orbax.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )
    return orbax.StandardCheckpointer(multiprocessing_options=options)


def _read(path: Path, target: dict[str, jax.ShapeDtypeStruct], alone: bool = False) -> dict[str, Any]:
    """Return the arrays of a checkpoint as JAX's where `target` has a sharding and as NumPy's where it has none."""
    checkpointer = _checkpointer(alone)
    try:
        return checkpointer.restore(path, target)
    except (*_WRITE_ERRORS, KeyError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {' '.join(str(error).split()):.300}") from error
    finally:
        checkpointer.close()


def _complete(path: Path, manifest: dict[str, Any]) -> None:
    """Verify a checkpoint that Orbax has written, and write its manifest."""
    types = {name: mark.split()[0].rstrip("]").split("[") for name, mark in manifest["leaves"].items()}
    target = {
        name: jax.ShapeDtypeStruct([int(n) for n in shape.split(",") if n], dtype)
        for name, (dtype, shape) in types.items()
    }
    arrays = _read(path, target, alone=True)
    if fingerprint(arrays) != manifest["leaves"]:
        raise DamagedError(f"{path} does not read back as it was written")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"{name} is not finite at step {manifest['step']:,}; such a state is not saved")
    partial = path / f"{MANIFEST}.partial"
    with partial.open("wb") as file:
        file.write(_written({**manifest, "files": _files(path)}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path / MANIFEST)


def _written(manifest: dict[str, Any]) -> bytes:
    """Return the bytes of a manifest's file: one way to write it, and the hash of that."""
    text = json.dumps(manifest, sort_keys=True)
    return json.dumps({**manifest, "checksum": hashlib.sha256(text.encode()).hexdigest()}, indent=1).encode()


def _files(path: Path) -> dict[str, list[Any]]:
    """Return size and SHA-256 of every file in a checkpoint but its manifest."""
    found = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not name.startswith(MANIFEST):
            data = file.read_bytes()
            found[name] = [len(data), hashlib.sha256(data).hexdigest()]
    return found


def _check_files(path: Path, files: dict[str, list[Any]]) -> None:
    try:
        found = _files(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    for name in {**files, **found}:
        if found.get(name) != files.get(name):
            what = "missing" if name not in found else "not of it" if name not in files else "changed"
            raise DamagedError(f"{path} is damaged: its file {name} is {what}")
