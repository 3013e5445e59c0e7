"""The state machine: which transitions are legal, and what stays true over any legal history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.outcomes import Note, State
from contracts.references import LedgerEntry
from steps.lifecycle import (
    EXPIRES,
    ONE_AT_A_TIME,
    TAKEOVER,
    TRANSITIONS,
    AliasAct,
    IllegalTransition,
    changes,
    judge_alias,
    known_alias,
    moment_text,
    permit,
    standing,
)

AT = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def entry(number: int, state: State | Note, version: int, *, takeover: bool = False, **evidence: object) -> LedgerEntry:
    return LedgerEntry(
        id=f"{number:064x}", model="m", number=number, previous=f"{number - 1:064x}", state=state, version=version,
        run_id=f"run-{version}", workflow="w", by="test", reason="",
        evidence=({TAKEOVER: "e"} if takeover else {}) | evidence, at=AT,
    )  # fmt: skip


def history(*steps: tuple[State, int], at: datetime = AT) -> list[LedgerEntry]:
    """Write each step if it is legal; raises as soon as one is not.  What can expire does so a minute after `AT`."""
    entries: list[LedgerEntry] = []
    for state, version in steps:
        for change, changed in changes(standing(entries), state, version, at):
            entries.append(entry(len(entries) + 1, change, changed, **limited(change)))
    return entries


def limited(state: State | Note) -> dict[str, str]:
    return {EXPIRES: moment_text(AT + MINUTE)} if state in (State.AWAITING, State.APPROVED) else {}


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
    [[State.REJECTED], [State.SUPERSEDED], [State.RELEASING, State.FAILED]],
    ids=lambda end: end[-1].value,
)
def test_what_did_not_serve_can_be_judged_anew(end: list[State]) -> None:
    entries = history(*[(s, 1) for s in (State.REGISTERED, State.APPROVED, *end, State.APPROVED)])
    assert standing(entries).state(1) is State.APPROVED


@pytest.mark.parametrize("state", [State.AWAITING, State.APPROVED], ids=lambda state: state.value)
def test_a_request_and_an_approval_hold_until_their_deadline_and_then_expire(state: State) -> None:
    entries = history((State.REGISTERED, 1), (state, 1))
    goes_on = State.APPROVED if state is State.AWAITING else State.RELEASING
    permit(standing(entries), goes_on, 1, AT + MINUTE)
    with pytest.raises(IllegalTransition, match="its time is not up"):
        permit(standing(entries), State.EXPIRED, 1, AT + MINUTE)
    late = AT + MINUTE + timedelta(microseconds=1)
    with pytest.raises(IllegalTransition, match=r"held until 2026-01-01T00:01:00.000000Z; promote it anew"):
        permit(standing(entries), goes_on, 1, late)
    assert changes(standing(entries), State.EXPIRED, 1, late) == ((State.EXPIRED, 1),)
    expired = [*entries, entry(3, State.EXPIRED, 1)]
    permit(standing(expired), State.AWAITING, 1, late)


def test_a_newer_candidate_supersedes_the_one_that_waits() -> None:
    entries = history((State.REGISTERED, 1), (State.AWAITING, 1), (State.REGISTERED, 2), (State.AWAITING, 2))
    assert [(e.state, e.version) for e in entries[-2:]] == [(State.SUPERSEDED, 1), (State.AWAITING, 2)]
    with pytest.raises(IllegalTransition, match="version 1 is superseded"):
        permit(standing([*entries[:-1]]), State.EXPIRED, 1, AT + 2 * MINUTE)


def test_a_request_is_stale_once_another_version_serves() -> None:
    entries = history((State.REGISTERED, 1), (State.AWAITING, 1), *released(2))
    with pytest.raises(IllegalTransition, match="version 2 began to serve after this request"):
        permit(standing(entries), State.APPROVED, 1, AT)
    permit(standing(entries), State.REJECTED, 1, AT)


def test_only_one_version_releases() -> None:
    entries = history(*released(1)[:3], *released(2)[:2])
    with pytest.raises(IllegalTransition, match="version 1 is releasing"):
        permit(standing(entries), State.RELEASING, 2, AT)


def test_a_crashed_release_is_ended_by_an_explicit_entry() -> None:
    entries = history(*released(1)[:3], *released(2)[:2], (State.FAILED, 1), (State.RELEASING, 2))
    assert standing(entries).state(2) is State.RELEASING


def test_an_approval_is_stale_once_another_version_serves() -> None:
    entries = history(*released(1)[:2], *released(2))
    with pytest.raises(IllegalTransition, match="version 2 began to serve after this approval"):
        permit(standing(entries), State.RELEASING, 1, AT)


def test_a_release_that_was_taken_over_begins_again_on_the_approval_it_had() -> None:
    entries = [*history(*released(1)[:3]), entry(4, State.FAILED, 1, takeover=True)]
    permit(standing(entries), State.RELEASING, 1, AT)


def test_a_release_that_failed_by_itself_is_judged_anew() -> None:
    entries = history(*released(1)[:3], (State.FAILED, 1))
    with pytest.raises(IllegalTransition, match="failed by itself; promote it anew"):
        permit(standing(entries), State.RELEASING, 1, AT)


def test_a_release_that_was_taken_over_is_judged_anew_once_another_version_serves() -> None:
    entries = [*history(*released(1)[:3]), entry(4, State.FAILED, 1, takeover=True)]
    for state, version in released(2):
        permit(standing(entries), state, version, AT)
        entries.append(entry(len(entries) + 1, state, version))
    with pytest.raises(IllegalTransition, match="version 2 began to serve after this approval"):
        permit(standing(entries), State.RELEASING, 1, AT)


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
        permit(standing(history(*steps)), state, 1, AT)
    assert state.value in caught.value.message


@pytest.mark.parametrize("state", sorted({*State} - {State.APPROVED, State.FAILED}))
def test_nothing_but_what_is_approved_is_released(state: State) -> None:
    with pytest.raises(IllegalTransition, match=f"version 1 is {state.value} and cannot become releasing"):
        permit(standing([entry(1, state, 1)]), State.RELEASING, 1, AT)


@given(st.lists(st.tuples(st.sampled_from(list(State)), st.integers(1, 4), st.booleans()), max_size=60))
def test_any_legal_history_keeps_at_most_one_serving_and_one_releasing(tries: list[tuple[State, int, bool]]) -> None:
    entries: list[LedgerEntry] = []
    for state, version, takeover in tries:
        served = standing(entries).serving
        try:
            moment = AT + 2 * MINUTE if state is State.EXPIRED else AT
            steps = changes(standing(entries), state, version, moment)
        except IllegalTransition:
            continue
        for change, changed in steps:
            entries.append(entry(len(entries) + 1, change, changed, takeover=takeover, **limited(change)))
            states = [e.state for e in standing(entries).latest.values()]
            assert all(states.count(one) <= 1 for one in ONE_AT_A_TIME)
        now = standing(entries)
        if served is not None and state is not State.RETIRED:
            assert now.serving is not None, "only an explicit retirement leaves nobody serving"
        if state is State.RELEASING and now.serving is not None:
            approved = max(e.number for e in entries if e.version == version and e.state is State.APPROVED)
            assert approved > now.serving.number


def test_the_alias_follows_a_version_that_began_to_serve_and_a_move_is_entered_and_left() -> None:
    entries = history(*released(1))
    assert judge_alias(standing(entries), None) is AliasAct.SET
    assert judge_alias(standing(entries), 1) is AliasAct.CONFIRM
    assert judge_alias(standing(entries), 7) is AliasAct.ENTER_MOVE, "it was set by nobody of ours"
    entries.append(entry(5, Note.ALIAS_SET, 1, to=1))
    assert judge_alias(standing(entries), 1) is AliasAct.NOTHING
    assert judge_alias(standing(entries), None) is AliasAct.ENTER_MOVE
    entries.append(entry(6, Note.ALIAS_MOVED, 7, to=7))
    assert judge_alias(standing(entries), 7) is AliasAct.NOTHING, "entered once, neither adopted nor undone"
    entries.append(entry(7, Note.ALIAS_RECALLED, 7, to=7))
    assert judge_alias(standing(entries), 7) is AliasAct.SET
    assert standing(entries).state(1) is State.SERVING, "a note changes no state"


@given(st.lists(st.sampled_from(["release", "move", "recall", "act", "set but killed"]), max_size=30), st.data())
def test_whatever_happens_to_the_alias_it_ends_where_the_ledger_says_it_is(
    steps: list[str], data: st.DataObject
) -> None:
    """And every version that it was seen at, other than by our own doing, is entered."""
    entries: list[LedgerEntry] = []
    alias: int | None = None
    ours = True

    def note(kind: Note, to: int | None) -> None:
        entries.append(entry(len(entries) + 1, kind, to or 0, to=to))

    def act(*, killed: bool = False) -> bool:
        nonlocal alias
        match judge_alias(standing(entries), alias):
            case AliasAct.SET:
                serving = standing(entries).serving
                assert serving is not None
                alias = serving.version
            case AliasAct.CONFIRM if not killed:
                note(Note.ALIAS_SET, alias)
            case AliasAct.ENTER_MOVE if not killed:
                assert not ours, "a crash of ours is not taken for somebody else's doing"
                note(Note.ALIAS_MOVED, alias)
            case AliasAct.NOTHING:
                return False
        return not killed

    for step in steps:
        if step == "release":
            version = max((e.version for e in entries), default=9) + 1
            entries += [entry(len(entries) + k, s, v) for k, (s, v) in enumerate(released(version), 1)]
        elif step == "move":
            moved = data.draw(st.sampled_from([None, 1, 2]))
            ours, alias = ours and moved == alias, moved
        elif step == "recall" and standing(entries).serving is not None and alias == known_alias(standing(entries)):
            note(Note.ALIAS_RECALLED, alias)
        else:
            act(killed=step != "act")
    rounds = 0
    while act():
        rounds += 1
    assert rounds <= 3
    assert known_alias(standing(entries)) == alias
    if ours and (serving := standing(entries).serving) is not None:
        assert alias == serving.version
