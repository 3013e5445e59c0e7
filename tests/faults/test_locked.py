"""Another process holds a lock on MLflow's or the ledger's SQLite: class storage, in bounded time, then success."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from contracts.errors import STORAGE, StorageError
from tests.faults.rehearsal import exit_codes, rehearse
from tests.faults.small_desk import SmallDesk
from tests.steps.registered import NOW, make_world
from workflows.local.state import RunState

HOLDS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(database: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the database until the end of the block, or until its input is closed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        yield holder
    finally:
        holder.communicate()


@pytest.mark.faults  # MLflow itself waits 20 seconds for a lock
def test_mlflow_s_database_that_another_holds_is_class_storage_and_taken_when_it_is_free(tmp_path: Path) -> None:
    tracking = make_world(tmp_path).tracking
    run = tracking.begin("key", "w", {}, NOW)
    with locked(tmp_path / "mlflow.db"):
        start = time.monotonic()
        with pytest.raises(StorageError, match="locked"):
            tracking.set_tags(run, {"a": "b"})
        assert time.monotonic() - start < 90

    tracking.set_tags(run, {"a": "b"})
    assert tracking.record(run).tags["a"] == "b"


@pytest.mark.faults
@pytest.mark.parametrize(("database", "stage"), [("mlflow.db", "evaluate"), ("ledger.db", "promote")])
def test_a_stage_whose_database_is_locked_is_tried_again_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: str, stage: str
) -> None:
    desk = SmallDesk.make(tmp_path)
    lock, began = ExitStack(), False

    def on_change(run: RunState) -> None:
        nonlocal began
        ended = exit_codes(run, stage)
        if ended and not began:
            began = True
            lock.enter_context(locked(desk.home / database))
        if ended[:1] == [str(STORAGE.exit_code)]:
            lock.close()

    run = rehearse(desk, monkeypatch, on_change=on_change)

    assert run.phase == "Succeeded"
    assert exit_codes(run, stage) == [str(STORAGE.exit_code), "0"]
    assert desk.end_state().versions == {1: "serving"}
    desk.clear()
