"""Draw kills from a seed and deliver them while `retrain run` goes on.

SIGKILL goes to the runner, a step, the process that steps are forked from, the guard that ends what the runner leaves,
the holder of the server's socket, or the server.
"""

from __future__ import annotations

import json
import queue
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from tests.faults.small_desk import SmallDesk
from workflows.local.state import from_json

USUAL_SECONDS = {
    "preflight": 2.0, "ingest": 0.7, "features": 1.0, "fit": 3.5, "train": 2.0, "evaluate": 3.0, "register": 2.0,
    "promote": 3.0, "build": 0.5, "deploy": 5.0, "notify": 0.6,
}  # fmt: skip
"""About how long each stage of the small run takes, so that a moment is as likely in one second as in another."""
STAGES = tuple(USUAL_SECONDS)
MOST_RUNS = 12
EXPECTED = {0, 3, 69, 70, -9}
"""An outcome, another outcome than promoted, a lost step, a step or holder that was killed, the runner's own end."""


@dataclass(frozen=True)
class Kill:
    """Who is killed, and when: so many seconds after a stage began."""

    victim: str
    stage: str
    after: float

    def __str__(self) -> str:
        return f"{self.victim} {self.after:.2f} s into {self.stage}"


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    successor: bool
    """A version serves already when the run begins."""
    warm: bool
    """Steps are forked from a process that has the imports done."""
    kills: tuple[Kill, ...]

    def __str__(self) -> str:
        onto = "a served version" if self.successor else "nothing"
        how = "" if self.warm else ", each step started afresh"
        return f"seed {self.seed}, upon {onto}{how}: " + ", then ".join(map(str, self.kills))


def draw(seed: int, *, successor: bool | None = None, kills: int | None = None) -> Plan:
    """Return the plan of a seed; what is given here is not drawn."""
    chance = random.Random(seed)
    onto = chance.random() < 0.5
    number, warm = chance.choice([1, 1, 2, 3]), chance.random() < 0.9
    onto = onto if successor is None else successor
    drawn = [_kill(chance, onto, warm) for _ in range(number if kills is None else kills)]
    return Plan(seed, onto, warm, tuple(sorted(drawn, key=lambda kill: STAGES.index(kill.stage))))


def _kill(chance: random.Random, served: bool, warm: bool) -> Kill:
    victim = chance.choices(["runner", "step", "guard", "warm", "holder", "server"], [4, 4, 1, int(warm), 2, 2])[0]
    # without a version that serves there is no server before deploy
    possible = STAGES if served or victim not in ("holder", "server") else ("deploy", "notify")
    stage = chance.choices(possible, [USUAL_SECONDS[name] for name in possible])[0]
    return Kill(victim, stage, chance.uniform(0, USUAL_SECONDS[stage]))


@dataclass
class Told:
    """What came of a plan: for the reader of a failure."""

    lines: list[str] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    """MLflow run -> version, by all that the command line said."""


def run_to_the_end(desk: SmallDesk, plan: Plan, *words: str) -> Told:
    """Type ``retrain run`` again and again until it ends with what serves, while the kills of the plan arrive."""
    told, pending = Told(), list(plan.kills)
    for _ in range(MOST_RUNS):
        code, summary, error = _run(desk, pending, told, (*words, *([] if plan.warm else ["--no-warm"])))
        told.lines.append(f"exit code {code}")
        assert code in EXPECTED, f"exit code {code}: {summary} {error}"
        assert "Traceback" not in error, error
        if summary.get("version") and summary.get("run_id"):
            assert told.runs.setdefault(summary["run_id"], summary["version"]) == summary["version"]
        if code == 0 and desk.answering() is not None:
            return told
    raise AssertionError("it does not come to an end")


def _run(desk: SmallDesk, pending: list[Kill], told: Told, words: tuple[str, ...]) -> tuple[int, dict[str, Any], str]:
    process = desk.start("run", "churn.yaml", "--json", "--require-promoted", *words)
    said: list[str] = []
    begun: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    listener = threading.Thread(target=_listen, args=(process, said, begun), daemon=True)
    listener.start()
    while pending and _wait_for_stage(pending[0].stage, begun):
        kill = pending.pop(0)
        _sleep(process, kill.after)
        told.lines.append(f"{kill}: {_deliver(desk, process, kill.victim)}")
    out = process.stdout.read() if process.stdout else ""
    process.wait(timeout=300)
    listener.join()
    summary = json.loads(out) if out.strip().startswith("{") else {}
    return process.returncode, summary, "".join(said)


def _listen(process: subprocess.Popen[str], said: list[str], begun: queue.SimpleQueue[str | None]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        match line.split():
            case [stage, "Running", *_] if stage in STAGES:
                begun.put(stage)
    begun.put(None)


def _wait_for_stage(stage: str, begun: queue.SimpleQueue[str | None]) -> bool:
    """Wait until a stage, or one after it, has begun; False when the run ended first."""
    while (heard := begun.get(timeout=300)) is not None:
        if STAGES.index(heard) >= STAGES.index(stage):
            return True
    return False


def _sleep(process: subprocess.Popen[str], seconds: float) -> None:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def _deliver(desk: SmallDesk, process: subprocess.Popen[str], victim: str) -> str:
    """Kill, as soon as there is somebody to kill; say what came of it."""
    while True:
        for found in _victims(desk, process, victim):
            try:
                found.kill()
                return f"killed {found.pid}"
            except psutil.NoSuchProcess:
                continue
        if process.poll() is not None:
            return "the run had ended"
        time.sleep(0.01)


def _victims(desk: SmallDesk, process: subprocess.Popen[str], victim: str) -> Iterator[psutil.Process]:
    try:
        match victim:
            case "runner":
                if process.poll() is None:
                    yield psutil.Process(process.pid)
            case "holder" | "server":
                if (found := desk.holder() if victim == "holder" else desk.server()) is not None:
                    yield found
            case "step":
                yield from _running_steps(desk)
            case _:
                for child in psutil.Process(process.pid).children():
                    words = child.cmdline()
                    is_warm, is_shell = "steps.warm" in words, words[:1] == ["/bin/sh"] and "step" not in words
                    if (victim == "warm" and is_warm) or (victim == "guard" and is_shell):
                        yield child
    except psutil.NoSuchProcess:
        return


def _running_steps(desk: SmallDesk) -> Iterator[psutil.Process]:
    newest = max(desk.home.glob("runs/*/state.json"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None:
        run = from_json(newest.read_text())
        yield from (psutil.Process(node.pid) for node in run.nodes.values() if node.phase == "Running" and node.pid)
