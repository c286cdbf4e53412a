"""Several processes that train one model (host): how they join, agree, and end together.

Each process runs the same program on its own devices. `jax.distributed` joins them, and one mesh spans the devices of
all. Process 0 writes and prints; the others only compute. With one process the functions here do almost nothing.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcalc.errors import InputError
from jaxcalc.scale.sharding import put

LOST = 4
"""The exit status of a process that has lost another."""
HEARTBEAT_SECONDS, START_SECONDS = 10, 60
"""How long a process may be silent, and how long all of them may take to join."""

_WATCH = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


def join(
    coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Join the other processes, before JAX starts, and return whether there are any.

    Without arguments, JAX asks the cluster that started this process, if it detects one. When a process is lost, the
    others end within seconds.

    Args:
      coordinator_address: host and port of process 0, such as "localhost:12345".
      num_processes: how many processes there are.
      process_id: the number of this process, from 0.

    Raises `InputError` for a malformed or unknown address, and if not all processes join within a minute.
    """
    if jax.distributed.is_initialized():
        return True
    if coordinator_address is None:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        except jax.errors.JaxRuntimeError as error:
            raise InputError(f"cannot join the processes of the cluster: {_line(error)}") from error
        except (ValueError, RuntimeError):  # there is no cluster, or JAX has already started alone
            return False
        return True
    _check_address(coordinator_address)
    missing = (
        f"process {process_id} of {num_processes} has not met the others at {coordinator_address} within "
        f"{START_SECONDS} s, or has lost them; start all of them at once, with the same address"
    )
    with _last_words(f"error: {missing}", sys.stderr):
        try:
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                initialization_timeout=START_SECONDS,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            )
        except (ValueError, RuntimeError) as error:
            raise InputError(f"cannot join the processes at {coordinator_address}: {_line(error)}") from error
        jax.devices()  # JAX starts here, and every process waits for the others once more
    return True


def is_main() -> bool:
    """Return whether this is process 0, the one that writes and prints."""
    return jax.process_index() == 0


def agree(number: int) -> int:
    """Return the largest of the numbers that the processes pass. All must call this at the same place."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def wait(what: str) -> None:
    """Wait until every process has come to the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Copy arrays that are the same in every process to every device of a mesh, and return the copies."""
    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: put(leaf, replicated), tree) if jax.process_count() > 1 else tree


def whole(tree: Any) -> Any:
    """Gather arrays that lie on several devices, whole on one device of this process. All processes must call it."""
    leaves = jax.tree.leaves(tree)
    if not all(leaf.is_fully_replicated for leaf in leaves):
        mesh = leaves[0].sharding.mesh
        tree = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def whole_like(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return the shape of an array as `whole` returns it: on one device, said only if the leaf's sharding is."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]) if leaf.sharding else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def one_copy(array: Any) -> Any:
    """Return an array that all devices of one process hold whole as it is on the first of them, and others unchanged.

    Orbax cuts arrays that several devices hold, and compiles a program for each shape.
    """
    is_whole = jax.process_count() == 1 and isinstance(array, jax.Array) and array.is_fully_replicated
    return array.addressable_data(0) if is_whole else array


@contextlib.contextmanager
def together(go_on: str) -> Iterator[None]:
    """Run the body in all processes, so that they all end when one of them fails.

    A process that fails ends at once and prints one line that says why; so do the others, which would otherwise wait
    for it forever. Only process 0 prints anything else. The exit status is 2 after an `InputError` and `LOST` after
    another process was lost, or 134 if JAX ends this process first.

    Args:
      go_on: the end of the line about a lost process, which says how to continue.
    """
    if jax.process_count() == 1:
        yield
        return
    stderr = sys.stderr
    _keep_streams_clean()
    me = f"process {jax.process_index()} of {jax.process_count()}"
    try:
        with _last_words(f"error: {me} has ended, because another was lost or it was killed itself; {go_on}", stderr):
            yield
    except InputError as error:
        _end(stderr, f"error: {error}", 2)
    except jax.errors.JaxRuntimeError as error:
        _end(stderr, f"error: {me} has lost another ({_line(error)}); {go_on}", LOST)


@contextlib.contextmanager
def _last_words(line: str, stderr: Any) -> Iterator[None]:
    """Print a line if this process ends in the body. JAX ends it from outside of Python, so a child watches it."""
    watch = subprocess.Popen(
        [sys.executable, "-Ic", _WATCH, line],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        yield
    finally:
        watch.communicate(b".")


def _end(stderr: Any, line: str, status: int) -> None:
    print(line, file=stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)  # a normal exit would wait for the other processes


def _keep_streams_clean() -> None:
    """Leave stdout to Python's output in process 0: gloo must not write to it, and other processes print nothing."""
    sys.stdout.flush()
    if is_main():
        stdout = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = os.fdopen(stdout, "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    else:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (open until the process ends)
        os.dup2(sys.stdout.fileno(), 1)


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"coordinator_address is {address!r}; it must be a host and a port, such as localhost:12345")
    try:
        socket.getaddrinfo(host.strip("[]"), port)
    except OSError as error:
        raise InputError(f"coordinator_address is {address!r}, and {host!r} is not found: {error.strerror}") from error


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
