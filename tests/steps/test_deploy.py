"""Deploy: a pure plan, and real processes behind a real ledger and registry."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from contracts.names import ALIAS_PRODUCTION, tag
from contracts.outcomes import Note, Outcome, Promotion, State
from contracts.references import LedgerEntry
from contracts.stages import Deploy, Notify, Promote
from steps import deploy as stage
from steps.deploy import Act, decide, deploy
from steps.lifecycle import standing
from steps.notify import notify
from steps.promote import promote
from steps.reports import read_release_report
from steps.rollout.desk import Desk
from steps.rollout.process import Server
from steps.rollout.target import NotHealthy, Serving
from steps.world import World
from tests.model_packages import break_estimator, signed
from tests.steps.registered import NOW, finished_run, make_settings, make_world


def entry(number: int, version: int, state: State, workflow: str = "w1", **evidence: object) -> LedgerEntry:
    return LedgerEntry(
        id=f"e{number}", model="m", number=number, previous=f"e{number - 1}", state=state, version=version,
        run_id=f"r{version}", workflow=workflow, by=workflow, reason="because", evidence=evidence, at=NOW,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "act", "outcome"),
    [
        ([entry(1, 2, State.APPROVED)], Act.BEGIN, Outcome.PROMOTED),
        ([entry(1, 2, State.RELEASING)], Act.RESUME, Outcome.PROMOTED),
        ([entry(1, 2, State.RELEASING, "w0")], Act.TAKE_OVER, Outcome.PROMOTED),
        ([entry(0, 1, State.RELEASING, "w0"), entry(1, 2, State.APPROVED)], Act.TAKE_OVER, Outcome.PROMOTED),
        ([entry(1, 2, State.SERVING)], Act.FINISH, Outcome.PROMOTED),
        ([entry(1, 2, State.SERVING, "w0")], Act.KEEP, Outcome.PROMOTED),
        ([entry(1, 2, State.ROLLED_BACK)], Act.NONE, Outcome.ROLLED_BACK),
        ([entry(1, 2, State.ROLLED_BACK, "w0")], Act.NONE, Outcome.SUPERSEDED),
        ([entry(2, 2, State.APPROVED, "w0")], Act.NONE, Outcome.SUPERSEDED),
        ([entry(1, 2, State.APPROVED), entry(2, 3, State.SERVING)], Act.LAPSE, Outcome.SUPERSEDED),
        ([entry(2, 2, State.FAILED, takeover_of="e1")], Act.BEGIN, Outcome.PROMOTED),
        ([entry(2, 2, State.FAILED, "w2", takeover_of="e1")], Act.NONE, Outcome.SUPERSEDED),
        ([entry(2, 2, State.FAILED)], Act.NONE, Outcome.SUPERSEDED),
        ([entry(1, 2, State.SUPERSEDED)], Act.NONE, Outcome.SUPERSEDED),
        ([], Act.NONE, Outcome.SUPERSEDED),
    ],
)
def test_the_plan_follows_from_where_the_versions_stand(entries: list[LedgerEntry], act: Act, outcome: Outcome) -> None:
    plan = decide(standing(entries), 2, "e1", "w1", NOW)
    assert plan.act is act
    if act in (Act.NONE, Act.LAPSE):
        assert plan.outcome is outcome
        assert plan.reason


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path, "release-1")
    world.settings = make_settings(tmp_path, server_port=0)
    yield world
    Server.of(world.settings, world.pipeline.name).stop()


def approve(world: World, *, broken: bool = False) -> Deploy.Inputs:
    """Register and approve a new version with a real package, or a broken one: signed, but no model."""
    run_id = finished_run(world)
    folder = world.tracking.package(run_id, world.scratch)
    if broken:
        break_estimator(folder)
    signed(folder, f"{world.pipeline.name}@{run_id}")
    model, version = world.pipeline.name, world.registry.register(run_id, folder.as_uri(), {})
    ledger, entry = world.ledger, world.ledger.head(world.pipeline.name)
    for state in (State.REGISTERED, State.APPROVED):
        entry = ledger.append(
            model, state, version=version, run_id=run_id, workflow=world.workflow, by="test", reason="for the test",
            evidence={}, after=entry, at=NOW,
        )  # fmt: skip
    assert entry is not None
    return Deploy.Inputs(version=version, entry=entry.id, image="reference")


def states(world: World) -> list[tuple[int, str]]:
    entries = world.ledger.entries(world.pipeline.name)
    return [(e.version, e.state.value) for e in entries if isinstance(e.state, State)]


def notes(world: World) -> list[tuple[str, object, object]]:
    entries = world.ledger.entries(world.pipeline.name)
    return [(e.state.value, e.evidence["from"], e.evidence["to"]) for e in entries if isinstance(e.state, Note)]


def serves(url: str) -> int:
    return int(httpx.get(f"{url}/v1/model", timeout=30).json()["version"])


def test_a_release_an_unchanged_one_a_broken_one_and_a_dead_server(world: World) -> None:
    first = approve(world)
    promoted = deploy(first, world=world)
    assert promoted.outcome is Outcome.PROMOTED
    assert serves(promoted.url) == 1
    assert world.registry.alias(ALIAS_PRODUCTION) == 1
    assert world.registry.tags(1)[tag("state")] == "serving"

    assert deploy(first, world=world).outcome is Outcome.PROMOTED, "the same workflow again finishes alike"

    later = replace(world, workflow="release-2")
    broken = deploy(approve(later, broken=True), world=later)
    assert broken.outcome is Outcome.ROLLED_BACK
    assert "version 1 stays" in broken.summary
    assert serves(broken.url) == 1
    assert world.registry.alias(ALIAS_PRODUCTION) == 1
    assert states(world)[-1] == (2, "rolled-back")
    assert any("estimator.txt" in line for line in world.ledger.entries(world.pipeline.name)[-1].evidence["log"])

    server = Server.of(world.settings, world.pipeline.name)
    status = server.status()
    assert status is not None
    os.kill(status.pid, signal.SIGKILL)
    kept = deploy(first, world=replace(world, workflow="release-3"))
    assert kept.outcome is Outcome.UNCHANGED
    assert "brought back" in kept.summary
    assert kept.url == promoted.url
    assert serves(kept.url) == 1
    again = deploy(first, world=replace(world, workflow="release-4"))
    assert "keeps what serves" in again.summary
    assert len(states(world)) == 8


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def test_killed_between_any_two_effects_it_reaches_the_same_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each effect in turn is the last before the kill; the next attempt goes on, and the ledger has no doubles."""
    first = approve(world)
    effects = [
        (Desk, "release"), (Desk, "hear"), (stage._Release, "_end"), (stage._Release, "_project"),
    ]  # fmt: skip
    for owner, name in effects:
        with monkeypatch.context() as patched:
            real = getattr(owner, name)

            def killed(*arguments: object, real: object = real) -> None:
                real(*arguments)  # type: ignore[operator]
                raise Killed

            patched.setattr(owner, name, killed)
            with pytest.raises(Killed):
                deploy(first, world=world)
    done = deploy(first, world=world)
    assert done.outcome is Outcome.PROMOTED
    assert states(world) == [(1, s) for s in ("registered", "approved", "releasing", "serving")]
    assert world.registry.alias(ALIAS_PRODUCTION) == 1
    assert serves(done.url) == 1


def test_what_a_version_was_taken_back_for_is_in_the_ledger_and_told_also_after_a_kill(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert deploy(approve(world), world=world).outcome is Outcome.PROMOTED
    later, measured = replace(world, workflow="release-2"), {"metric": "error-rate", "value": 0.4, "at_most": 0.01}
    bad, release = approve(later), Desk.release

    def canary(self: Desk, entry: LedgerEntry) -> Serving:
        if entry.version == bad.version:
            raise NotHealthy("error-rate is 0.4, at most 0.01 is allowed", evidence=measured)
        return release(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Desk, "release", canary)
        with patched.context() as killed:
            killed.setattr(stage._Release, "_report", lambda *_: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                deploy(bad, world=later)
        done = deploy(bad, world=later)

    assert done.outcome is Outcome.ROLLED_BACK
    last = world.ledger.entries(world.pipeline.name)[-1]
    assert (last.version, last.state) == (2, State.ROLLED_BACK)
    assert last.evidence.items() >= measured.items()
    assert serves(done.url) == world.registry.alias(ALIAS_PRODUCTION) == 1
    unset = dict.fromkeys(Notify.Inputs.model_fields, "{{unset}}")
    told = notify(Notify.Inputs(**unset | {"status": "Succeeded", "outcome": "rolled-back"}), world=later)
    assert told.outcome is Outcome.ROLLED_BACK
    report = read_release_report(later)
    assert report is not None
    assert report.reason == "error-rate is 0.4, at most 0.01 is allowed"


def test_a_release_that_broke_off_is_ended_by_an_entry_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = approve(replace(world, workflow="crashed"))
    with monkeypatch.context() as patched:
        patched.setattr(Desk, "release", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            deploy(crashed, world=replace(world, workflow="crashed"))
    done = deploy(approve(world), world=world)
    assert done.outcome is Outcome.PROMOTED
    assert serves(done.url) == 2
    assert states(world)[2:] == [
        (1, "releasing"), (2, "registered"), (2, "approved"), (1, "failed"), (2, "releasing"), (2, "serving"),
    ]  # fmt: skip
    late = deploy(crashed, world=replace(world, workflow="crashed"))
    assert late.outcome is Outcome.SUPERSEDED
    assert serves(late.url) == 2


def test_a_release_of_the_same_version_that_broke_off_goes_on_in_the_next_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when that run is killed itself, between the takeover and the release."""
    crashed, inputs = replace(world, workflow="crashed"), approve(replace(world, workflow="crashed"))
    with monkeypatch.context() as patched:
        patched.setattr(Desk, "release", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            deploy(inputs, world=crashed)
    judged = promote(Promote.Inputs(version=inputs.version), world=world)
    assert (judged.decision, judged.entry) == (Promotion.APPROVED, inputs.entry)
    with monkeypatch.context() as patched:
        patched.setattr(stage._Release, "_append", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            deploy(inputs, world=world)
    assert states(world)[-1] == (1, "failed")
    assert deploy(inputs, world=crashed).outcome is Outcome.SUPERSEDED, "who was given up does not come back"
    done = deploy(inputs, world=world)
    assert done.outcome is Outcome.PROMOTED
    assert serves(done.url) == 1
    assert states(world) == [
        (1, s) for s in ("registered", "approved", "releasing", "failed", "releasing", "serving")
    ]  # fmt: skip
    assert world.registry.alias(ALIAS_PRODUCTION) == 1
    assert world.ledger.verify(world.pipeline.name) == []


def test_an_approval_that_went_stale_is_ended_in_the_ledger_too(world: World) -> None:
    early = approve(replace(world, workflow="early"))
    assert deploy(approve(world), world=world).outcome is Outcome.PROMOTED
    for _ in range(2):
        late = deploy(early, world=replace(world, workflow="early"))
        assert late.outcome is Outcome.SUPERSEDED
        assert "version 2 began to serve after this approval" in late.summary
        assert serves(late.url) == 2
    assert states(world)[-1] == (1, "superseded")
    assert states(world).count((1, "superseded")) == 1


def test_an_alias_that_was_moved_by_other_means_is_entered_and_stays_until_the_next_version_serves(
    world: World,
) -> None:
    first = approve(world)
    deploy(first, world=world)
    assert notes(world) == [("alias-set", None, 1)]
    second = approve(replace(world, workflow="release-2"))
    world.registry.set_alias(ALIAS_PRODUCTION, 2)

    for _ in range(2):
        kept = deploy(first, world=replace(world, workflow="release-3"))
        assert kept.outcome is Outcome.UNCHANGED
        assert world.registry.alias(ALIAS_PRODUCTION) == 2, "not undone"
        assert serves(kept.url) == 1, "nor adopted"
    assert notes(world)[1:] == [("alias-moved", 1, 2)], "entered once"

    world.registry.set_alias(ALIAS_PRODUCTION, 1)
    done = deploy(second, world=replace(world, workflow="release-2"))
    assert "moved by other means, from version 2 to version 1" in done.summary
    assert notes(world)[2:] == [("alias-moved", 2, 1), ("alias-set", 1, 2)]
    assert world.registry.alias(ALIAS_PRODUCTION) == 2
    assert world.ledger.verify(world.pipeline.name) == []
