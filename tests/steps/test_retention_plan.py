"""What retention keeps, over graphs and histories that nobody thought of: nothing that is needed ever goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.errors import ConfigError
from contracts.outcomes import Note, State
from contracts.references import LedgerEntry
from steps import lifecycle
from steps.approvals import last_good
from steps.ledger.chain import chained
from steps.retention.plan import Decision, Kind, Limit, Node, Policy, plan
from steps.retention.versions import REMOVED, barred_runs, noted, version_key, version_nodes

NOW = datetime(2030, 1, 1, tzinfo=UTC)
POLICY = Policy(served_years=3, unserved_days=30, records_days=60)
MODEL = "churn"
ONWARD = (State.APPROVED, State.RELEASING, State.SERVING)
"""Drawn more often, else few histories come to a version that serves."""
YEAR, FAR = timedelta(days=365), datetime.min.replace(tzinfo=UTC)
KEYS = [f"n{number}" for number in range(12)]
gentle = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1))
    return [
        Node(
            key=key, kind=draw(st.sampled_from(Kind)), limit=draw(st.sampled_from(Limit)),
            since=NOW - timedelta(days=draw(st.integers(-5, 2000))),
            refers=frozenset(draw(st.sets(st.sampled_from(KEYS)))),
            pinned=draw(st.sampled_from(["", "", "it serves"])), barred=draw(st.sampled_from(["", "", "", "removed"])),
        )
        for key in keys
    ]  # fmt: skip


policies = st.builds(
    Policy, served_years=st.integers(1, 6), unserved_days=st.integers(1, 400), records_days=st.integers(1, 400)
)


def kept(decided: list[Decision]) -> set[str]:
    return {decision.key for decision in decided if decision.keep}


@gentle
@given(graphs(), policies)
def test_what_stays_keeps_all_that_it_needs(nodes: list[Node], policy: Policy) -> None:
    stays = kept(plan(nodes, policy, NOW))

    there = {node.key: node for node in nodes}
    for node in nodes:
        if node.key in stays:
            assert {key for key in node.refers if key in there and not there[key].barred} <= stays
        if node.pinned and not node.barred:
            assert node.key in stays
        if node.barred:
            assert node.key not in stays
        if not node.barred and NOW - node.since <= policy.lasts(node.limit):
            assert node.key in stays


@gentle
@given(graphs(), policies)
def test_only_what_nothing_keeps_goes(nodes: list[Node], policy: Policy) -> None:
    stays = kept(plan(nodes, policy, NOW))

    for node in nodes:
        if node.key in stays:
            needed = any(node.key in other.refers and other.key in stays for other in nodes)
            assert needed or node.pinned or NOW - node.since <= policy.lasts(node.limit)


@gentle
@given(graphs(), policies)
def test_once_it_was_done_there_is_nothing_left_to_do(nodes: list[Node], policy: Policy) -> None:
    stays = kept(plan(nodes, policy, NOW))

    assert kept(plan([node for node in nodes if node.key in stays], policy, NOW)) == stays


@gentle
@given(graphs(), policies, policies)
def test_a_policy_that_keeps_longer_keeps_more(nodes: list[Node], one: Policy, other: Policy) -> None:
    longer = Policy(**{name: max(getattr(one, name), getattr(other, name)) for name in Policy.model_fields})

    assert kept(plan(nodes, one, NOW)) <= kept(plan(nodes, longer, NOW))


@gentle
@given(graphs(), policies, st.integers(0, 500))
def test_time_alone_brings_nothing_back(nodes: list[Node], policy: Policy, days: int) -> None:
    assert kept(plan(nodes, policy, NOW + timedelta(days=days))) <= kept(plan(nodes, policy, NOW))


@gentle
@given(graphs())
def test_every_decision_says_why(nodes: list[Node]) -> None:
    decided = plan(nodes, POLICY, NOW)

    assert sorted(decision.key for decision in decided) == sorted(node.key for node in nodes)
    assert all(decision.reason for decision in decided)


@st.composite
def histories(draw: st.DrawFn) -> list[LedgerEntry]:
    """A history of one model, of steps that the state machine permits."""
    entries: list[LedgerEntry] = []
    at = NOW - timedelta(days=3000)
    for _ in range(draw(st.integers(1, 20))):
        at += timedelta(days=draw(st.integers(0, 150)))
        now = lifecycle.standing(entries)
        fresh = max(now.latest, default=0) + 1
        version = draw(st.integers(1, min(fresh, 4)))
        legal = [state for state in permitted(now, version, at) for _ in range(8 if state in ONWARD else 1)]
        for change, changed in lifecycle.changes(now, draw(st.sampled_from(legal)), version, at) if legal else ():
            evidence = {"dataset": f"s3://store/datasets/d{changed % 3}", "split": f"s3://store/splits/s{changed}"}
            more = {REMOVED: []} if change is Note.REMOVED else evidence if change is State.REGISTERED else {}
            entries.append(
                chained(
                    entries[-1] if entries else None, model=MODEL, state=change, version=changed, run_id=f"r{changed}",
                    workflow=f"w{len(entries)}", by="test", reason="", evidence=more, at=at,
                )
            )  # fmt: skip
    return entries


def permitted(now: lifecycle.Standing, version: int, at: datetime) -> Iterator[State | Note]:
    for state in (*State, Note.REMOVED) if version in now.latest else (State.REGISTERED,):
        with suppress(lifecycle.IllegalTransition):
            lifecycle.permit(now, state, version, at)
            yield state


@gentle
@given(histories(), policies)
def test_no_version_that_is_in_use_or_served_within_the_years_goes(entries: list[LedgerEntry], policy: Policy) -> None:
    stays = kept(plan(list(version_nodes(entries, {})), policy, NOW))
    now = lifecycle.standing(entries)
    removed = {entry.version for entry in entries if entry.state is Note.REMOVED}
    served_until: dict[int, datetime] = {}
    for before, after in pairwise(entries):
        for version in {before.version, after.version}:
            if lifecycle.standing(entries[: before.number]).state(version) in (State.SERVING, State.RELEASING):
                served_until[version] = after.at
    for version, entry in now.latest.items():
        key = version_key(MODEL, version)
        if version in removed:
            assert key not in stays
            assert barred_runs(entries)[entry.run_id]
            assert entry.state not in lifecycle.IN_USE
        elif entry.state in lifecycle.IN_USE or NOW - served_until.get(version, FAR) <= YEAR * policy.served_years:
            assert key in stays
    with suppress(ConfigError):
        assert version_key(MODEL, last_good(entries)) in stays


def entry(number: int, state: State | Note, version: int, days_ago: int, **evidence: object) -> LedgerEntry:
    return LedgerEntry(
        id=f"{number:064d}", model=MODEL, number=number, previous=f"{number - 1:064d}", state=state, version=version,
        run_id=f"r{version}", workflow=f"w{number}", by="test", reason="", evidence=evidence,
        at=NOW - timedelta(days=days_ago),
    )  # fmt: skip


def released(version: int, number: int, days_ago: int) -> list[LedgerEntry]:
    states = (State.REGISTERED, State.APPROVED, State.RELEASING, State.SERVING)
    return [entry(number + k, state, version, days_ago) for k, state in enumerate(states)]


def reasons(entries: list[LedgerEntry], aliases: dict[int, str] | None = None) -> dict[int, tuple[bool, str]]:
    decided = plan(list(version_nodes(entries, aliases or {})), POLICY, NOW)
    return {d.version: (d.keep, d.reason) for d in decided if d.kind is Kind.VERSION}


def test_versions_are_kept_for_what_they_did() -> None:
    entries = [
        *released(1, 1, 3000), entry(5, State.RETIRED, 1, 2000),
        *released(2, 6, 2000), entry(10, State.RETIRED, 2, 500),
        *released(3, 11, 500), entry(15, State.RETIRED, 3, 400),
        *released(4, 16, 400),
        entry(20, State.REGISTERED, 5, 300), entry(21, State.REJECTED, 5, 300),
        entry(22, State.REGISTERED, 6, 300), entry(23, State.REJECTED, 6, 300),
        entry(24, State.REGISTERED, 7, 10), entry(25, State.REJECTED, 7, 10),
        entry(26, State.REGISTERED, 8, 300), entry(27, State.APPROVED, 8, 300), entry(28, State.RELEASING, 8, 300),
        entry(29, State.ROLLED_BACK, 8, 299),
    ]  # fmt: skip

    assert reasons(entries, {6: "keep-me"}) == {
        1: (False, f"2000 days since {NOW - timedelta(days=2000):%F}, and nothing needs it; served_years 3"),
        2: (True, f"within served_years 3, since {NOW - timedelta(days=500):%F}"),
        3: (True, "a rollback goes back to it"),
        4: (True, "it is serving"),
        5: (False, f"300 days since {NOW - timedelta(days=300):%F}, and nothing needs it; unserved_days 30"),
        6: (True, "MLflow's alias keep-me names it"),
        7: (True, f"within unserved_days 30, since {NOW - timedelta(days=10):%F}"),
        8: (True, f"within served_years 3, since {NOW - timedelta(days=299):%F}"),
    }


def test_what_a_version_was_made_of_stays_also_where_mlflow_lost_the_run_that_names_it() -> None:
    places = {"dataset": "datasets/d", "split": "splits/s", "code": "code/c.zip"}
    said = {name: f"s3://store/{key}" for name, key in places.items()}
    entries = [entry(1, State.REGISTERED, 1, 2000, **said), *released(1, 1, 2000)[1:]]
    needed = {*places.values(), "reports/w1", "logs/w1"}
    old = [
        Node(key=key, kind=Kind.DATASET, since=NOW - timedelta(days=2000)) for key in sorted({*needed, "splits/other"})
    ]

    assert kept(plan([*version_nodes(entries, {}), *old], POLICY, NOW)) == {version_key(MODEL, 1), *needed}


def test_an_image_goes_with_its_version_and_one_that_serves_any_never_does() -> None:
    built, shared = f"registry/churn@sha256:{'1' * 64}", f"registry/serving@sha256:{'2' * 64}"
    entries = [
        entry(1, State.REGISTERED, 1, 2000, image=shared, image_holds_model="as a run's tags may have it"),
        entry(2, State.APPROVED, 1, 2000),
        entry(3, State.RELEASING, 1, 2000, image=built, image_holds_model=True), entry(4, State.FAILED, 1, 2000),
        entry(5, State.REGISTERED, 2, 2000), entry(6, State.APPROVED, 2, 2000),
        entry(7, State.RELEASING, 2, 2000, image=shared, image_holds_model=False), entry(8, State.FAILED, 2, 2000),
    ]  # fmt: skip

    decided = {d.key: d.keep for d in plan(list(version_nodes(entries, {})), POLICY, NOW)}
    assert decided == {version_key(MODEL, 1): False, version_key(MODEL, 2): False, built: False}
    assert kept(plan(list(version_nodes(entries, {1: "keep"})), POLICY, NOW)) == {version_key(MODEL, 1), built}


def test_after_its_removal_a_version_can_become_nothing_and_a_rollback_passes_it_over() -> None:
    entries = [*released(1, 1, 3000), entry(5, State.RETIRED, 1, 2000), *released(2, 6, 2000)]
    assert last_good(entries) == 1
    entries.append(entry(10, Note.REMOVED, 1, 1, removed=[{"key": "splits/s"}]))
    now = lifecycle.standing(entries)

    for state in (State.APPROVED, State.AWAITING, State.REJECTED):
        with pytest.raises(lifecycle.IllegalTransition, match="was removed on 2029-12-31 by test"):
            lifecycle.permit(now, state, 1, NOW)
    with pytest.raises(ConfigError, match="no version to go back to"):
        last_good(entries)
    assert noted(entries) == {"splits/s": NOW - timedelta(days=1)}


@pytest.mark.parametrize("state", sorted(lifecycle.IN_USE))
def test_what_a_version_in_use_is_made_of_cannot_be_entered_as_removed(state: State) -> None:
    now = lifecycle.standing([replace_state(released(1, 1, 5)[-1], state)])

    with pytest.raises(lifecycle.IllegalTransition, match="cannot be removed"):
        lifecycle.permit(now, Note.REMOVED, 1, NOW)
    lifecycle.permit(now, Note.REMOVED, 0, NOW)


def replace_state(one: LedgerEntry, state: State) -> LedgerEntry:
    return one.model_copy(update={"state": state})


def test_a_year_is_never_shorter_than_the_calendar_says() -> None:
    node = Node(key="version", kind=Kind.VERSION, since=datetime(2024, 1, 1, tzinfo=UTC), limit=Limit.SERVED)
    policy = POLICY.model_copy(update={"served_years": 4})

    assert kept(plan([node], policy, datetime(2028, 1, 1, tzinfo=UTC))) == {"version"}
    assert not kept(
        plan([replace(node, since=datetime(2023, 12, 1, tzinfo=UTC))], policy, datetime(2028, 1, 1, tzinfo=UTC))
    )
