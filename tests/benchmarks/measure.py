"""Runs commands by turns and says what each took: seconds on the clock, seconds of work, and memory.

Two commands are compared by the ratio of their medians within one call.  Beside the clock stands the processors' time
(of the command and all that it waited for), which a busy machine changes less.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

MIB = 2**20
ROOT = Path(__file__).resolve().parents[2]
Name = TypeVar("Name")


@dataclass(frozen=True)
class Cost:
    """What a command took.  `peak` is the resident memory, in MiB, of the largest single process."""

    seconds: float
    work: float
    peak: float

    def ratio(self, base: Cost) -> str:
        """Return how many times the other's this is: on the clock, and of processors' time in brackets."""
        return f"{self.seconds / base.seconds:.2f} ({self.work / base.work:.2f})"


def cost(command: Sequence[str], environment: Mapping[str, str], folder: Path, name: str) -> Cost:
    """Run a command to its end and return what it took; it must succeed.  Its output is in ``NAME.log``."""
    log = folder / f"{name}.log"
    with log.open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), cwd=folder, stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read_text(errors='replace')[-4000:]}")
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB here
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale / MIB)


def by_turns(
    commands: Mapping[Name, Sequence[str]],
    runs: int,
    folder: Path,
    between: Callable[[Name], object] = lambda _: None,
    **settings: str,
) -> dict[Name, Cost]:
    """Return the median cost of each command; all run once for the caches, and then in turns.

    `between` is called with each command's name before it runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = clean(**settings)
    taken: dict[Name, list[Cost]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            between(name)
            found = cost(command, environment, folder, str(name))
            if turn:
                taken[name].append(found)
    return {name: middle(costs) for name, costs in taken.items()}


def middle(costs: Sequence[Cost]) -> Cost:
    """Return the medians; of memory the largest."""
    return Cost(
        statistics.median(c.seconds for c in costs),
        statistics.median(c.work for c in costs),
        max(c.peak for c in costs),
    )


def clean(**settings: str) -> dict[str, str]:
    """Return this process's environment without what would set retrain, or slow Python, otherwise."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RETRAIN_") and k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        **settings,
    }


def machine() -> str:
    """Name this machine: processor, cores, memory, system, Python."""
    import platform

    import psutil

    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = psutil.virtual_memory().total // 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {memory} GiB, {platform.system()}, Python {platform.python_version()}"
