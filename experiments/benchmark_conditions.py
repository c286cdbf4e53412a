"""Where and when something was measured: machine, versions, commit, and what else kept the machine busy."""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxcalc import runs
from jaxcalc.scale.cost import n_cores

ROOT = Path(__file__).resolve().parent.parent
STAT = Path("/proc/stat")


@contextlib.contextmanager
def observed() -> Iterator[dict[str, Any]]:
    """Yield where and when the `with` block runs; once it is over, also what else kept the machine busy meanwhile.

    "load" is the average of a minute before and after the block. "others_cpu" is the share of all cores' time that
    other processes used, and "stolen_cpu" what the host of a virtual machine gave to others; None if not known.
    """
    conditions = {**machine(), "commit": commit(), "began": time.strftime("%Y-%m-%d %H:%M:%S%z")}
    load, clock, before = os.getloadavg()[0], time.perf_counter(), _cpu_seconds()
    yield conditions
    seconds, after = time.perf_counter() - clock, _cpu_seconds()
    conditions |= {"seconds": seconds, "load": [load, os.getloadavg()[0]], "others_cpu": None, "stolen_cpu": None}
    if before and after:
        used, stolen, own = (b - a for a, b in zip(before, after, strict=True))
        whole = seconds * (os.cpu_count() or 1)
        conditions |= {"others_cpu": max(0.0, used - own) / whole, "stolen_cpu": stolen / whole}


def machine() -> dict[str, Any]:
    """Return what results depend on: processor, device and versions."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    torch = {"torch": importlib.metadata.version("torch")} if importlib.util.find_spec("torch") else {}
    device = jax.devices()[0]
    where = {"cpu": cpu, "cores": n_cores(), "device": device.device_kind, "platform": device.platform}
    return {**where, **runs.versions(), **torch}


def commit() -> str | None:
    """Return the commit of this checkout, with a "+" if tracked files differ from it; None outside of Git."""
    if git("rev-parse", "HEAD") is None:
        return None
    return f"{git('rev-parse', '--short', 'HEAD')}{'+' if git('status', '--porcelain', '-uno') else ''}"


def git(*arguments: str) -> str | None:
    """Return what a Git command prints in this checkout, None if it fails."""
    with contextlib.suppress(OSError):
        ended = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return ended.stdout.strip() if ended.returncode == 0 else None
    return None


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Return the seconds that all processes used, that were stolen, and that this process and its children used."""
    if not STAT.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, STAT.read_text().split("\n", 1)[0].split()[1:])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks, steal / ticks, sum(os.times()[:4])
