"""The state machine: which transitions are legal, and what stays true over any legal history."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps.lifecycle import TAKEOVER, TRANSITIONS, IllegalTransition, changes, permit, standing

AT = datetime(2026, 1, 1, tzinfo=UTC)


def entry(number: int, state: State, version: int, *, takeover: bool = False) -> LedgerEntry:
    return LedgerEntry(
        id=f"{number:064x}", model="m", number=number, previous=f"{number - 1:064x}", state=state, version=version,
        run_id=f"run-{version}", workflow="w", by="test", reason="",
        evidence={TAKEOVER: "e"} if takeover else {}, at=AT,
    )  # fmt: skip


def history(*steps: tuple[State, int]) -> list[LedgerEntry]:
    """Write each step if it is legal; raises as soon as one is not."""
    entries: list[LedgerEntry] = []
    for state, version in steps:
        for change, changed in changes(standing(entries), state, version):
            entries.append(entry(len(entries) + 1, change, changed))
    return entries


def released(version: int) -> list[tuple[State, int]]:
    return [(s, version) for s in (State.REGISTERED, State.APPROVED, State.RELEASING, State.SERVING)]


def test_every_state_has_a_row() -> None:
    assert set(TRANSITIONS) == set(State)


def test_a_version_goes_from_registered_to_serving() -> None:
    entries = history(*released(1))
    assert [e.state for e in entries] == [State.REGISTERED, State.APPROVED, State.RELEASING, State.SERVING]


def test_the_version_before_retires_in_the_same_step_and_first() -> None:
    entries = history(*released(1), *released(2))
    assert [(e.state, e.version) for e in entries[-2:]] == [(State.RETIRED, 1), (State.SERVING, 2)]


def test_a_retired_version_can_be_released_again() -> None:
    back = [(s, 1) for s in (State.APPROVED, State.RELEASING, State.SERVING)]
    entries = history(*released(1), *released(2), *back)
    now = standing(entries)
    assert now.serving is not None
    assert now.serving.version == 1
    assert now.state(2) is State.RETIRED


def test_a_version_that_did_not_come_up_leaves_the_old_one_serving() -> None:
    entries = history(*released(1), *released(2)[:3], (State.ROLLED_BACK, 2))
    now = standing(entries)
    assert now.serving is not None
    assert now.serving.version == 1
    assert now.releasing is None


@pytest.mark.parametrize(
    "end",
    [[State.REJECTED], [State.EXPIRED], [State.SUPERSEDED], [State.RELEASING, State.FAILED]],
    ids=lambda end: end[-1].value,
)
def test_what_did_not_serve_can_be_judged_anew(end: list[State]) -> None:
    entries = history(*[(s, 1) for s in (State.REGISTERED, State.APPROVED, *end, State.APPROVED)])
    assert standing(entries).state(1) is State.APPROVED


def test_only_one_version_releases() -> None:
    entries = history(*released(1)[:3], *released(2)[:2])
    with pytest.raises(IllegalTransition, match="version 1 is releasing"):
        permit(standing(entries), State.RELEASING, 2)


def test_a_crashed_release_is_ended_by_an_explicit_entry() -> None:
    entries = history(*released(1)[:3], *released(2)[:2], (State.FAILED, 1), (State.RELEASING, 2))
    assert standing(entries).state(2) is State.RELEASING


def test_an_approval_is_stale_once_another_version_serves() -> None:
    entries = history(*released(1)[:2], *released(2))
    with pytest.raises(IllegalTransition, match="version 2 began to serve after this approval"):
        permit(standing(entries), State.RELEASING, 1)


def test_a_release_that_was_taken_over_begins_again_on_the_approval_it_had() -> None:
    entries = [*history(*released(1)[:3]), entry(4, State.FAILED, 1, takeover=True)]
    permit(standing(entries), State.RELEASING, 1)


def test_a_release_that_failed_by_itself_is_judged_anew() -> None:
    entries = history(*released(1)[:3], (State.FAILED, 1))
    with pytest.raises(IllegalTransition, match="failed by itself; promote it anew"):
        permit(standing(entries), State.RELEASING, 1)


def test_a_release_that_was_taken_over_is_judged_anew_once_another_version_serves() -> None:
    entries = [*history(*released(1)[:3]), entry(4, State.FAILED, 1, takeover=True)]
    for state, version in released(2):
        permit(standing(entries), state, version)
        entries.append(entry(len(entries) + 1, state, version))
    with pytest.raises(IllegalTransition, match="version 2 began to serve after this approval"):
        permit(standing(entries), State.RELEASING, 1)


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([], State.APPROVED),
        ([], State.SERVING),
        (released(1)[:1], State.RELEASING),
        (released(1)[:1], State.REGISTERED),
        (released(1)[:2], State.SERVING),
        (released(1), State.APPROVED),
        (released(1), State.FAILED),
        (released(1)[:2], State.FAILED),
        (released(1)[:3], State.APPROVED),
        (released(1)[:3], State.RETIRED),
    ],
)
def test_what_is_not_in_the_table_is_refused(steps: list[tuple[State, int]], state: State) -> None:
    with pytest.raises(IllegalTransition) as caught:
        permit(standing(history(*steps)), state, 1)
    assert state.value in caught.value.message


@given(st.lists(st.tuples(st.sampled_from(list(State)), st.integers(1, 4), st.booleans()), max_size=60))
def test_any_legal_history_keeps_at_most_one_serving_and_one_releasing(tries: list[tuple[State, int, bool]]) -> None:
    entries: list[LedgerEntry] = []
    for state, version, takeover in tries:
        served = standing(entries).serving
        try:
            steps = changes(standing(entries), state, version)
        except IllegalTransition:
            continue
        for change, changed in steps:
            entries.append(entry(len(entries) + 1, change, changed, takeover=takeover))
            states = [e.state for e in standing(entries).latest.values()]
            assert states.count(State.SERVING) <= 1
            assert states.count(State.RELEASING) <= 1
        now = standing(entries)
        if served is not None and state is not State.RETIRED:
            assert now.serving is not None, "only an explicit retirement leaves nobody serving"
        if state is State.RELEASING and now.serving is not None:
            approved = max(e.number for e in entries if e.version == version and e.state is State.APPROVED)
            assert approved > now.serving.number
