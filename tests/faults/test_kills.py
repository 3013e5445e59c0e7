"""Runs with SIGKILL at random moments to random processes: whatever was killed, the end is the same.

A seed stands for who is killed and when.  ``FAULT_SEEDS=17,23 make test-faults`` repeats some, ``FAULT_SECONDS=600``
takes fresh ones for so long in place of the fixed ones; each seed is printed with what was killed.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from contracts.settings import Settings, desk, variable
from serving.versions import Spec
from steps.rollout.process import Server
from tests.faults.killing import Plan, draw, run_to_the_end
from tests.faults.small_desk import NAME, EndState, SmallDesk

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "").split(",") if seed] or list(range(1, 51))
FRESH_SECONDS = float(os.environ.get("FAULT_SECONDS", "0"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDesk]:
    made = SmallDesk.make(tmp_path_factory.mktemp("kills"))
    yield made
    made.clear()


class Unharmed:
    """Two runs that nobody disturbed: what they left is what every run has to leave.

    MLflow keeps absolute paths, so the home of the first is put back to where it was made.
    """

    def __init__(self, small: SmallDesk) -> None:
        self._small = small
        self._kept = small.folder / "kept"
        small("run", "churn.yaml", "--require-promoted")
        self.first = small.end_state()
        server = self._server().status()
        assert server is not None
        assert server.spec is not None
        self._spec: Spec = server.spec
        small("stop")
        shutil.copytree(small.home, self._kept)
        self.put_back()
        small("run", "churn.yaml", "--require-promoted", "--source", "later.csv")
        self.second = small.end_state()
        small.clear()

    def put_back(self) -> None:
        """Return to the moment after the first run, its server included."""
        self._small.clear()
        shutil.copytree(self._kept, self._small.home)
        self._server().release(self._spec, ready_seconds=60, drain_seconds=2)

    def _server(self) -> Server:
        values = desk(self._small.home, self._small.folder) | {variable("server_port"): "0"}
        fields = {f: values[variable(f)] for f in Settings.model_fields if variable(f) in values}
        return Server.of(Settings.model_validate(fields), NAME)


@pytest.fixture(scope="module")
def unharmed(small: SmallDesk) -> Unharmed:
    return Unharmed(small)


def check(small: SmallDesk, plan: Plan, words: tuple[str, ...] = ()) -> EndState:
    """Run under the kills of a plan, and return the end state after looking for what must not be left."""
    print(plan)
    before = time.monotonic()
    told = run_to_the_end(small, plan, *words)
    print("  " + "\n  ".join([*told.lines, f"{time.monotonic() - before:.0f} s"]))
    state = small.end_state()
    assert small.strays() == []
    assert small.leftovers() == []
    assert set(told.runs.values()) <= set(state.versions)
    return state


def against(small: SmallDesk, unharmed: Unharmed, plan: Plan) -> None:
    if plan.successor:
        unharmed.put_back()
        state, expected = check(small, plan, ("--source", "later.csv")), unharmed.second
    else:
        small.clear()
        state, expected = check(small, plan), unharmed.first
    assert asdict(state) == asdict(expected)


@pytest.mark.faults
def test_a_run_whose_runner_and_server_are_killed_ends_with_one_version_that_serves(small: SmallDesk) -> None:
    small.clear()

    state = check(small, draw(1583, successor=False, kills=2))

    assert state.versions == {1: "serving"}
    assert (state.production, state.serving) == (1, 1)


@pytest.mark.faults
@pytest.mark.skipif(FRESH_SECONDS > 0, reason="fresh seeds were asked for")
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_killed_the_end_is_that_of_an_unharmed_run(small: SmallDesk, unharmed: Unharmed, seed: int) -> None:
    against(small, unharmed, draw(seed))


@pytest.mark.faults
@pytest.mark.skipif(FRESH_SECONDS == 0, reason="set FAULT_SECONDS to try fresh seeds")
def test_so_it_is_with_fresh_seeds(small: SmallDesk, unharmed: Unharmed, capsys: pytest.CaptureFixture[str]) -> None:
    deadline = time.monotonic() + FRESH_SECONDS
    while time.monotonic() < deadline:
        plan = draw(random.SystemRandom().randrange(10**6))
        with capsys.disabled():  # as it comes, so that it is known whatever happens
            print(plan, flush=True)
        against(small, unharmed, plan)
