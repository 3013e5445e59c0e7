"""Steps forked from a warm parent: processes like any other, with the results of steps that start afresh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from contracts.settings import desk, variable
from tests.datasets.make import penguins
from workflows.cli.warm import WarmParent
from workflows.local import pods
from workflows.local.pods import Launch, Process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere every step starts afresh"),
]

PIPELINE = """
apiVersion: retrain/v1
name: penguins
source: {uri: penguins.csv}
schema:
  columns:
    - {name: species, type: string}
    - {name: island, type: string}
    - {name: bill_length_mm, type: number}
    - {name: bill_depth_mm, type: number}
    - {name: flipper_length_mm, type: number}
    - {name: body_mass_g, type: number}
    - {name: sex, type: string}
    - {name: year, type: integer}
target: {column: species, task: multiclass}
training:
  metric: log_loss
  candidates:
    - {name: linear, estimator: linear}
    - {name: trees, estimator: lightgbm, parameters: {n_estimators: 20, num_leaves: 7}}
gates:
  default:
    validation:
      thresholds: [{metric: accuracy, min: 0.5}]
      bootstrap: {resamples: 100}
"""
INGEST = ("ingest", "--as-of", "2026-01-01T00:00:00Z")


@pytest.fixture(scope="module")
def parent() -> Iterator[WarmParent]:
    """Return a parent that has imported all that it will: it sleeps until it is asked."""
    warm = WarmParent()
    process, deadline = psutil.Process(warm.pid), time.monotonic() + 120
    while not (process.status() == psutil.STATUS_SLEEPING and process.cpu_times().user > 1):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield warm
    warm.close()


@pytest.fixture
def guard() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def start(tmp_path: Path, guard: tuple[int, int]) -> Callable[..., Process]:
    """Start a stage of the penguins' pipeline with some spawn."""
    penguins().to_csv(tmp_path / "penguins.csv", index=False)
    (tmp_path / "penguins.yaml").write_text(PIPELINE)

    def call(spawn: pods.Spawn, name: str, *words: str, **more: str) -> Process:
        folder = tmp_path / name
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        env = {**os.environ, **desk(folder, tmp_path), variable("pipeline"): str(tmp_path / "penguins.yaml")}
        env |= {variable("outputs"): str(folder / "out"), "TMPDIR": str(folder / "tmp"), **more}
        command = [sys.executable, "-m", "steps", *words]
        return spawn(Launch(command, env, cwd=folder, log=folder / "log"), guard[1])

    return call


def test_the_parent_has_one_thread_when_it_forks(parent: WarmParent) -> None:
    assert len(list(Path(f"/proc/{parent.pid}/task").iterdir())) == 1


@pytest.mark.faults
def test_a_fork_trains_what_a_fresh_process_trains(
    parent: WarmParent, start: Callable[..., Process], tmp_path: Path
) -> None:
    def stage(spawn: pods.Spawn, *words: str) -> Mapping[str, str]:
        step = start(spawn, "home", *words, **{variable("workflow"): str(spawn)})
        assert step.wait() == 0, (tmp_path / "home" / "log").read_text()
        return {path.name: path.read_text() for path in (tmp_path / "home" / "out").iterdir()}

    made = stage(parent.spawn, *INGEST)
    dataset = ("--dataset", made["dataset"], "--dataset-sha256", made["dataset-sha256"], "--cache", "refuse")
    forked, fresh = (stage(spawn, "features", *dataset) for spawn in (parent.spawn, pods.spawn))
    assert forked == fresh
    split = ("--split", forked["split"], "--split-sha256", forked["split-sha256"])
    runs = [stage(spawn, "train", *dataset, *split)["run-id"] for spawn in (parent.spawn, pods.spawn)]
    # every candidate's parameters and value, to the last bit
    forked_trials, fresh_trials = ((tmp_path / f"home/artifacts/penguins/{run}/artifacts/trials.json") for run in runs)
    assert forked_trials != fresh_trials
    assert forked_trials.read_text() == fresh_trials.read_text()


def test_a_fork_heads_its_own_group_tells_the_guard_and_writes_to_its_log(
    parent: WarmParent, start: Callable[..., Process], guard: tuple[int, int], tmp_path: Path
) -> None:
    step = start(parent.spawn, "step", *INGEST)
    assert psutil.Process(step.pid).ppid() == parent.pid
    assert os.getpgid(step.pid) == step.pid
    assert os.read(guard[0], 64) == f"+ {step.pid}\n".encode()
    assert (step.wait(), step.wait()) == (0, 0)
    assert " rows, 8 columns" in (tmp_path / "step" / "log").read_text()
    assert not list((tmp_path / "step" / "tmp").iterdir())  # its scratch is gone with it


def test_exit_codes_and_signals_arrive(parent: WarmParent, start: Callable[..., Process], tmp_path: Path) -> None:
    assert start(parent.spawn, "step", "ingest", "--as-of", "yesterday").wait() == 78
    assert start(parent.spawn, "step", "no-stage").wait() == 64
    step = start(parent.spawn, "step", *INGEST)
    os.killpg(step.pid, signal.SIGTERM)
    assert step.wait() == -signal.SIGTERM


def test_what_a_library_reads_early_or_another_program_starts_afresh(
    parent: WarmParent, start: Callable[..., Process], tmp_path: Path, guard: tuple[int, int]
) -> None:
    fresh = start(parent.spawn, "step", "no-stage", OMP_NUM_THREADS="1")
    assert (fresh.wait(), isinstance(fresh, subprocess.Popen)) == (64, True)
    shell = parent.spawn(Launch(["sh", "-c", "exit 7"], os.environ, tmp_path, log=tmp_path / "shell.log"), guard[1])
    assert shell.wait() == 7


def test_a_killed_parent_ends_no_run(start: Callable[..., Process]) -> None:
    parent = WarmParent()
    running = start(parent.spawn, "step", *INGEST)
    os.kill(parent.pid, signal.SIGSTOP)
    os.kill(parent.pid, signal.SIGKILL)
    assert running.wait() in (0, -signal.SIGKILL)
    afterwards = start(parent.spawn, "step", "no-stage")
    assert (afterwards.wait(), isinstance(afterwards, subprocess.Popen)) == (64, True)
    parent.close()


def test_the_parent_ends_with_the_runner(tmp_path: Path) -> None:
    script = (
        "import time; from workflows.cli.warm import WarmParent; print(WarmParent().pid, flush=True); time.sleep(60)"
    )
    runner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert runner.stdout is not None
    parent = psutil.Process(int(runner.stdout.readline()))
    runner.kill()
    runner.communicate()
    parent.wait(30)
