"""Run small manifests, in this process or in one that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.local.small_manifests import IMAGES, Manifest
from workflows.local import runner
from workflows.local.state import RunState

RUNNER = """
import json, sys
from pathlib import Path
from workflows.local import runner
home, name, manifests = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
say = lambda run: print(run.phase, run.message, flush=True)
if manifests:
    end = runner.execute(manifests, home=home, name=name, images={"sh": []}, on_change=say, grace=1.0)
else:
    end = runner.resume(home, name, images={"sh": []}, on_change=say, grace=1.0)
print("END", end.phase, end.interrupted, flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Return a folder where steps leave word of themselves, and are told to go on."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return folder


@pytest.fixture
def execute(home: Path) -> Callable[..., RunState]:
    """Run manifests to their end under the name ``wf``."""

    def call(*manifests: Manifest, **options: Any) -> RunState:
        return runner.execute(manifests, **{"home": home, "name": "wf", "images": IMAGES, "grace": 1.0, **options})

    return call


@pytest.fixture
def spawn(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a runner as a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def call(*manifests: Mapping[str, Any], name: str = "wf") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(home), name, json.dumps(manifests)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield call
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
