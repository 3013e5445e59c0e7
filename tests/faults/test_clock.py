"""The clock is set back between runs and in the middle of one: order comes from the ledger, never from the clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from contracts.outcomes import Outcome, State
from contracts.references import LedgerEntry
from contracts.stages import Register
from steps.deploy import Act, decide
from steps.ledger import Ledger
from steps.register import register
from steps.world import World
from tests.steps.registered import NOW, finished_run, make_world, to_register

BACK = NOW - timedelta(days=400)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def at(world: World, moment: datetime, workflow: str) -> World:
    return replace(world, now=lambda: moment, workflow=workflow)


def asked(world: World) -> Register.Inputs:
    run = finished_run(world)
    return to_register(world, run)


def enter(ledger: Ledger, before: LedgerEntry, state: State, moment: datetime, workflow: str) -> LedgerEntry:
    return ledger.append(
        before.model, state, version=before.version, run_id=before.run_id, workflow=workflow, by="test",
        reason="for the test", evidence={}, after=ledger.head(before.model), at=moment,
    )  # fmt: skip


def test_a_version_released_after_the_clock_was_set_back_takes_the_place_of_the_one_before(world: World) -> None:
    model, ledger = world.pipeline.name, world.ledger
    for moment, workflow in ((NOW, "w1"), (BACK, "w2")):
        now = at(world, moment, workflow)
        version = register(asked(world), world=now).version
        registered = ledger.standing(model).latest[version]
        approved = enter(ledger, registered, State.APPROVED, moment, workflow)
        plan = decide(ledger.standing(model), version, approved.id, workflow, moment)
        assert plan.act is Act.BEGIN, "the approval is fresh, whatever the clock says"
        releasing = enter(ledger, approved, State.RELEASING, moment, workflow)
        assert decide(ledger.standing(model), version, approved.id, workflow, moment).act is Act.RESUME
        enter(ledger, releasing, State.SERVING, moment, workflow)

    standing = ledger.standing(model)
    assert {version: entry.state for version, entry in standing.latest.items()} == {
        1: State.RETIRED, 2: State.SERVING,
    }  # fmt: skip
    assert ledger.verify(model) == []
    assert [entry.number for entry in ledger.entries(model)] == list(range(1, 9 + 1))
    served = [ledger.serving_at(model, moment) for moment in (BACK, NOW)]
    assert [entry.version for entry in served if entry] == [2, 2], "what came last by the ledger, not by the clock"


def test_a_run_whose_clock_is_set_back_between_two_attempts_registers_one_version(world: World) -> None:
    inputs = asked(world)

    first = register(inputs, world=at(world, NOW, "w1"))
    again = register(inputs, world=at(world, BACK, "w1"))

    assert (first.version, again.version) == (1, 1)
    assert len(world.ledger.entries(world.pipeline.name)) == 1


def test_a_stale_approval_stays_stale_when_the_clock_is_set_back(world: World) -> None:
    model, ledger = world.pipeline.name, world.ledger
    entries = []
    for workflow in ("w1", "w2"):
        version = register(asked(world), world=at(world, NOW, workflow)).version
        entries.append(enter(ledger, ledger.standing(model).latest[version], State.APPROVED, NOW, workflow))
    serving = enter(ledger, entries[1], State.RELEASING, BACK, "w2")
    enter(ledger, serving, State.SERVING, BACK, "w2")

    plan = decide(ledger.standing(model), 1, entries[0].id, "w1", BACK)

    assert (plan.act, plan.outcome) == (Act.LAPSE, Outcome.SUPERSEDED)


def test_a_training_that_began_in_the_future_by_this_clock_is_not_taken_for_dead(world: World) -> None:
    others = world.tracking.begin("key", "w1", {}, NOW)
    mine = world.tracking.begin("key", "w2", {}, BACK)

    assert world.tracking.record(others).status == "RUNNING"
    world.tracking.end(mine)
    world.tracking.end(others)
    assert world.tracking.find_run("key") == mine, "of two that finished, the first by what MLflow wrote down"
