"""What a long ledger costs: to verify, to answer for a moment, to add to.  Called by `tests.benchmarks`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps.ledger import Ledger
from steps.ledger.chain import chained

START = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = "m"
_STATES = (State.REGISTERED, State.APPROVED, State.RELEASING, State.RETIRED, State.SERVING)
_EVIDENCE = {
    "report": "s3://retrain-store/reports/" + "a" * 32, "dataset_sha256": "d" * 64, "code_commit": "c" * 40,
    "checks": [{"name": f"check {k}", "verdict": "passed", "value": 0.9, "min": 0.8, "reason": ""} for k in range(6)],
}  # fmt: skip


def history(entries: int) -> Iterator[LedgerEntry]:
    """Yield versions that serve one after the other, five entries each, a minute an entry."""
    last: LedgerEntry | None = None
    for number in range(entries):
        version, state = number // 5 + 1, _STATES[number % 5]
        if state is State.RETIRED and version == 1:
            state = State.SERVING  # nothing served before: the first version has one entry less
        elif version == 1 and state is State.SERVING:
            continue
        last = chained(
            last, model=MODEL, state=state, version=version - (state is State.RETIRED), run_id=f"run-{version}",
            workflow=f"w-{version}", by="pipeline", reason="for the benchmark", evidence=_EVIDENCE,
            at=START + timedelta(minutes=number),
        )  # fmt: skip
        yield last


def filled(folder: Path, entries: int) -> Ledger:
    """Return a ledger in SQLite with so many entries."""
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    made = list(history(entries))
    for k in range(0, len(made), 1000):
        ledger._rows.insert(made[k : k + 1000])
    return ledger


def seconds(work: Callable[[], object], runs: int) -> tuple[float, float]:
    """Return the median of what a call takes: on the clock, and of processors' time."""
    took = []
    for _ in range(runs):
        before = time.perf_counter(), time.process_time()
        work()
        took.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return statistics.median(clock for clock, _ in took), statistics.median(work for _, work in took)


def added(ledger: Ledger, runs: int) -> tuple[float, float]:
    """Return the median time of what deploy does to enter a transition: hold the version, decide, insert."""
    ledger.append(
        MODEL, State.REGISTERED, version=10**6, run_id="r", workflow="w", by="b", reason="", evidence=_EVIDENCE,
        after=ledger.head(MODEL), at=START,
    )  # fmt: skip
    states = iter([State.APPROVED, State.REJECTED] * runs)
    held = ledger.history(MODEL, 10**6)[-1]

    def append() -> None:
        nonlocal held
        head, now = ledger.hold(held)
        held = ledger.append(
            MODEL, next(states), version=10**6, run_id="r", workflow="w", by="b", reason="", evidence=_EVIDENCE,
            after=head, at=START, now=now,
        )  # fmt: skip

    return seconds(append, runs)
