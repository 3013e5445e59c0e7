"""Ctrl-C, a step that will not end, and two runs at once, through the command line as a person types it."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.small_desk import PIPELINE, SmallDesk
from workflows.local.runner import GRACE_SECONDS

RUN = ("run", "churn.yaml", "--no-warm")  # these runs end before the imports that a warm parent has ready
STUBBORN = """
import os, signal, time
from pathlib import Path


def rows(**_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    here = Path(os.environ["HERE"])
    (here / "began").touch()
    while not (here / "go").exists():
        time.sleep(0.05)
    import pandas
    return pandas.DataFrame({"age": [-1], "plan": ["basic"], "churned": ["maybe"]}).iloc[:0]
"""


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[SmallDesk]:
    made = SmallDesk.make(tmp_path)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "churn.yaml").write_text(PIPELINE.replace("uri: churn.csv", 'uri: "python:stubborn:rows"'))
    yield made
    made.clear()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def lines_until(process: subprocess.Popen[str], part: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if part in line:
            return line
    raise AssertionError(f"it never said {part!r}: {process.communicate()[1]}")


@pytest.mark.faults
def test_ctrl_c_ends_even_a_step_that_ignores_sigterm_and_the_same_command_goes_on_while_another_waits(
    desk: SmallDesk,
) -> None:
    here = {"HERE": str(desk.folder)}
    process = desk.start(*RUN, **here)
    wait_for((desk.folder / "began").exists)
    [step] = [int(node["local"]["pid"]) for node in desk.stages()["ingest"] if node["phase"] == "Running"]
    asked = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=GRACE_SECONDS + 60)

    assert process.returncode == 130, out + error
    assert time.monotonic() - asked >= GRACE_SECONDS, "it had its grace"
    assert "was interrupted; the same command goes on with it" in out + error
    assert not psutil.pid_exists(step)
    assert desk.strays() == []
    before = desk.stages()

    (desk.folder / "began").unlink()
    process = desk.start(*RUN, **here)
    wait_for((desk.folder / "began").exists)
    second = desk.start(*RUN, "--source", "churn.csv", **here)
    said = lines_until(second, "retrain-churn")
    assert "Waiting" in said
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=60)
    assert second.returncode == 130

    (desk.folder / "go").touch()
    out, error = process.communicate(timeout=120)

    assert process.returncode == 65, out + error
    assert "goes on with churn.yaml" in out
    runs = desk("status", "--all")
    assert runs
    name = before["preflight"][0]["id"].rsplit("-", 1)[0]
    assert "Failed" in desk("status", name)
    assert desk.strays() == []
