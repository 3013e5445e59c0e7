"""How long `retrain run` takes, fresh and with nothing changed: seconds of each stage, and of all.

Called by the part `run`.  Every fresh run has a home of its own, and the run after it in the same home is the
unchanged one.
"""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measure import clean

COMMAND = [str(Path(sys.executable).with_name("retrain"))]
DONE = re.compile(r"^(\w+)\s+Succeeded\s+([\d.]+) s", re.MULTILINE)
Seconds = dict[str, float]


def timed(pipeline: Path, environment: dict[str, str]) -> Seconds:
    """Run once and return the seconds of each stage, of all (`total`), and of all its processes' work (`cpu`)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*COMMAND, "run", str(pipeline)], env=environment, capture_output=True, text=True)
    total, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"retrain run ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {name: float(seconds) for name, seconds in DONE.findall(done.stdout)} | {"total": total, "cpu": cpu}


def measure(pipeline: Path) -> tuple[Seconds, Seconds]:
    """Return the seconds of a fresh run and of the unchanged one after it."""
    with tempfile.TemporaryDirectory() as home:
        environment = clean(RETRAIN_HOME=home, RETRAIN_SERVER_PORT="0")
        try:
            return timed(pipeline, environment), timed(pipeline, environment)
        finally:
            subprocess.run([*COMMAND, "stop"], env=environment, capture_output=True, check=False)


def ratios(fresh: Seconds, unchanged: Seconds) -> str:
    """Return how much of a fresh run an unchanged one takes: on the clock, and of processors' time in brackets."""
    return f"{unchanged['total'] / fresh['total']:.2f} ({unchanged['cpu'] / fresh['cpu']:.2f})"


def medians(pipeline: Path, runs: int) -> tuple[Seconds, Seconds]:
    """Return the median seconds of fresh and of unchanged runs."""
    fresh, unchanged = zip(*(measure(pipeline) for _ in range(runs)), strict=True)
    return middle(fresh), middle(unchanged)


def middle(runs: tuple[Seconds, ...]) -> Seconds:
    """Return the median of each row."""
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
