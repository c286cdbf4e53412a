"""A server of writers that can be killed: it imports JAX once, and forks a process for each writer.

Each line of stdin is a JSON object. For each, a child goes on with the checkpoints in "folder" as train.py does, and
saves "n" more states. From its last save on it counts the calls that change a file, and at call number "kill" it is
killed; with "kill" 0 it is not. The server answers with what the child printed and with its status.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxcalc import TrainState, create_state, runs
from jaxcalc.runs import checkpoint

KEPT, NEWEST = range(0, 10_000, 50), 2  # every fifth checkpoint is kept, and the newest two
TX = optax.adam(0.1)


def state_of(step: int) -> TrainState:
    """Return the state of a step; its bits depend on the step alone, and no other step has them."""
    numbers = np.random.default_rng(step)
    params = {"up": jnp.asarray(numbers.normal(size=(40, 30)), "f4"), "norm": jnp.asarray(numbers.normal(size=7), "f4")}
    state = create_state(params, TX)
    moments = (state.opt_state[0]._replace(count=jnp.int32(step), mu=params, nu=params), state.opt_state[1])
    return state.replace(step=jnp.int32(step), opt_state=moments)


def resumed(folder: Path) -> tuple[int, runs.MetricsFile]:
    """Return the step of the newest checkpoint and its metrics file, opened as train.py --resume does."""
    metrics_file, checkpoints = folder / runs.METRICS, folder / runs.CHECKPOINTS
    checkpoint.clean(checkpoints)
    if not checkpoint.steps(checkpoints):
        return 0, runs.MetricsFile(metrics_file)
    state, manifest = checkpoint.restore_newest(checkpoints, state_of(0), lambda text: sys.exit(f"damaged: {text}"))
    return int(state.step), runs.MetricsFile(metrics_file, manifest["metrics"])


def child(order: dict[str, Any], shim: ctypes.CDLL, into: int) -> None:
    folder = Path(order["folder"])
    step, metrics = resumed(folder)
    if order.get("remove"):  # only delete the newest checkpoint
        shim.arm(order["kill"])
        checkpoint.remove(folder / runs.CHECKPOINTS / f"{step:06}")
        return
    writer = checkpoint.Writer(folder / runs.CHECKPOINTS, {"of": "a test"}, KEPT, NEWEST)
    for index in range(order["n"]):
        step += 10
        if index == order["n"] - 1:
            os.write(into, b"armed\n")
            shim.arm(order["kill"])
        metrics.write(*({"step": each} for each in range(step - 9, step + 1)))
        writer.save(state_of(step), metrics=metrics.mark())
        writer.wait()
        os.write(into, f"{step}\n".encode())
    metrics.__exit__()


def serve() -> None:
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for line in sys.stdin:
        order = json.loads(line)
        out, into = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(out)
            status = 1
            try:
                child(order, shim, into)
                status = 0
            except BaseException as error:
                os.write(into, f"{type(error).__name__}: {' '.join(str(error).split())}\n".encode())
            finally:
                os.write(into, f"calls {shim.calls()}\n".encode())
                os._exit(status)
        os.close(into)
        print(json.dumps({"pid": pid}), flush=True)
        with os.fdopen(out) as printed:
            lines = printed.read().split("\n")[:-1]
        _, ended = os.waitpid(pid, 0)
        print(json.dumps({"said": lines, "status": os.waitstatus_to_exitcode(ended)}), flush=True)


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long count, last;
static atomic_int armed;

void arm(long n) { count = 0; last = n; armed = 1; }
long calls(void) { armed = 0; return count; }

static void tick(void) {
    if (armed && ++count == last) { kill(getpid(), SIGKILL); for (;;) pause(); }
}

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })
#define WRAP(type, name, parameters, arguments) type name parameters { tick(); return REAL(name) arguments; }

WRAP(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n))
WRAP(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at))
WRAP(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at))
WRAP(ssize_t, writev, (int fd, const struct iovec *data, int n), (fd, data, n))
WRAP(int, rename, (const char *from, const char *to), (from, to))
WRAP(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to))
WRAP(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
WRAP(int, link, (const char *from, const char *to), (from, to))
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode))
WRAP(int, mkdirat, (int fd, const char *path, mode_t mode), (fd, path, mode))
WRAP(int, unlink, (const char *path), (path))
WRAP(int, unlinkat, (int fd, const char *path, int flags), (fd, path, flags))
WRAP(int, rmdir, (const char *path), (path))
WRAP(int, fsync, (int fd), (fd))
WRAP(int, fdatasync, (int fd), (fd))
WRAP(int, ftruncate, (int fd, off_t n), (fd, n))
WRAP(int, ftruncate64, (int fd, off64_t n), (fd, n))

#define OPEN(name, first_parameter, first) int name(first_parameter const char *path, int flags, ...) { \
    mode_t mode = 0; \
    if (flags & O_CREAT) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT)) tick(); \
    return REAL(name)(first path, flags, mode); }
#define NONE
#define COMMA ,
OPEN(open, NONE, NONE)
OPEN(open64, NONE, NONE)
OPEN(openat, int fd COMMA, fd COMMA)
OPEN(openat64, int fd COMMA, fd COMMA)
"""

if __name__ == "__main__":
    serve()
