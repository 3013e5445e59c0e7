"""A person's word: bound to one request, once, while it holds; and the way back to a version that served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError
from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps.approvals import HOLDS_SECONDS, Person, bound, decide, in_force, last_good, left, requests, roll_back
from steps.ledger import Ledger
from steps.lifecycle import APPROVAL, EXPIRES, TAKEOVER, IllegalTransition, moment_text
from tests.steps.registered import NOW

ANN = Person("ann")
DAY = timedelta(days=1)
PASSED = {"artifact_sha256": "a" * 64, "report": "file:///r.json", "report_sha256": "b" * 64}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def write(ledger: Ledger, state: State, version: int, *, at: datetime = NOW, **evidence: Any) -> LedgerEntry:
    return ledger.append(
        "m", state, version=version, run_id=f"run-{version}", workflow=f"w-{version}", by="pipeline", reason="why",
        evidence=evidence, after=ledger.head("m"), at=at,
    )  # fmt: skip


def ask(ledger: Ledger, version: int) -> LedgerEntry:
    if ledger.state("m", version) is None:
        write(ledger, State.REGISTERED, version)
    holds = {EXPIRES: moment_text(NOW + DAY), HOLDS_SECONDS: DAY.total_seconds()}
    return write(ledger, State.AWAITING, version, **PASSED, **holds)


def serve(ledger: Ledger, version: int) -> None:
    for state in (State.REGISTERED, State.APPROVED, State.RELEASING, State.SERVING):
        if state is not State.REGISTERED or ledger.state("m", version) is None:
            write(ledger, state, version, **(PASSED if state is State.APPROVED else {}))


def say(ledger: Ledger, run: str, state: State = State.APPROVED, at: timedelta = timedelta(0)) -> LedgerEntry:
    return decide(ledger, "m", run, state, person=ANN, reason="reviewed", at=NOW + at)


def states(ledger: Ledger) -> list[tuple[str, int]]:
    return [(e.state.value, e.version) for e in ledger.entries("m")]


@pytest.mark.parametrize("run", ["w-1", "1"])
def test_a_yes_is_bound_to_the_request_and_says_how_far_the_name_can_be_believed(ledger: Ledger, run: str) -> None:
    request = ask(ledger, 1)
    entry = say(ledger, run, at=timedelta(hours=1))
    assert (entry.state, entry.version, entry.by, entry.reason) == (
        State.APPROVED,
        1,
        "ann (unauthenticated)",
        "reviewed",
    )
    assert entry.evidence[APPROVAL] == {"name": "ann", "authenticated": False, "request": request.id, **PASSED}
    assert bound(entry) == PASSED
    assert entry.evidence[EXPIRES] == moment_text(NOW + timedelta(hours=25))
    assert say(ledger, run) == entry, "said again after a crash, it is the same yes"


def test_a_no_ends_the_request(ledger: Ledger) -> None:
    ask(ledger, 1)
    assert say(ledger, "w-1", State.REJECTED).state is State.REJECTED
    with pytest.raises(ConfigError, match=r"is decided: version 1 is rejected, by ann \(unauthenticated\)"):
        say(ledger, "w-1")


def test_a_word_is_in_force_until_its_release_has_ended_and_said_again_till_then_it_is_the_same(ledger: Ledger) -> None:
    ask(ledger, 1)
    assert in_force(ledger.entries("m"), 1) is None
    yes = say(ledger, "w-1")
    write(ledger, State.RELEASING, 1)
    assert say(ledger, "w-1", at=2 * DAY) == in_force(ledger.entries("m"), 1) == yes, "its release was cut off"
    with pytest.raises(ConfigError, match="version 1 is releasing"):
        decide(ledger, "m", "w-1", State.APPROVED, person=Person("bob"), reason="me too", at=NOW)
    with pytest.raises(ConfigError, match="version 1 is releasing"):
        say(ledger, "w-1", State.REJECTED)
    write(ledger, State.SERVING, 1)
    assert in_force(ledger.entries("m"), 1) is None
    serve(ledger, 2)
    back = roll_back(ledger, "m", 1, person=ANN, reason="bad", at=NOW)
    write(ledger, State.RELEASING, 1)
    again = roll_back(ledger, "m", None, person=ANN, reason="very bad", at=NOW + timedelta(hours=2))
    assert again == in_force(ledger.entries("m"), 1) == back
    write(ledger, State.ROLLED_BACK, 1)
    assert in_force(ledger.entries("m"), 1) is None
    assert roll_back(ledger, "m", 1, person=ANN, reason="bad", at=NOW).number > back.number
    write(ledger, State.REGISTERED, 3)
    write(ledger, State.APPROVED, 3)
    assert in_force(ledger.entries("m"), 3) is None, "the gate's word is no person's"


def test_a_yes_is_used_up_by_its_release(ledger: Ledger) -> None:
    ask(ledger, 1)
    say(ledger, "w-1")
    write(ledger, State.RELEASING, 1)
    write(ledger, State.ROLLED_BACK, 1)
    with pytest.raises(ConfigError, match="version 1 is rolled-back"):
        say(ledger, "w-1")
    with pytest.raises(IllegalTransition):
        write(ledger, State.RELEASING, 1)


def test_a_request_that_expired_is_entered_as_such_by_who_comes_too_late(ledger: Ledger) -> None:
    ask(ledger, 1)
    with pytest.raises(ConfigError, match="is expired: its request held until"):
        say(ledger, "w-1", at=2 * DAY)
    assert states(ledger)[-1] == ("expired", 1)
    assert ledger.verify("m") == []
    ask(ledger, 1)
    assert say(ledger, "w-1").state is State.APPROVED, "asked anew"


def test_a_request_is_superseded_by_what_began_to_serve_and_by_a_newer_one(ledger: Ledger) -> None:
    ask(ledger, 1)
    assert [(e.version, why) for e, why in requests(ledger.entries("m"), NOW)] == [(1, "")]
    serve(ledger, 2)
    [(_, why)] = requests(ledger.entries("m"), NOW)
    assert "version 2 began to serve after this request" in why
    with pytest.raises(ConfigError, match="superseded"):
        say(ledger, "w-1")
    ask(ledger, 3)
    ask(ledger, 4)
    assert [entry.version for entry, _ in requests(ledger.entries("m"), NOW)] == [4]
    with pytest.raises(ConfigError, match="version 3 is superseded"):
        say(ledger, "w-3")


def test_who_asked_for_nothing_is_told_what_waits(ledger: Ledger) -> None:
    ask(ledger, 1)
    with pytest.raises(ConfigError) as caught:
        say(ledger, "w-7")
    assert "w-1" in caught.value.remedy


@pytest.mark.parametrize("answers", [(State.APPROVED,), (State.APPROVED, State.REJECTED)], ids=["yes", "yes and no"])
def test_of_many_who_decide_at_once_one_does_and_the_others_are_told_who(
    ledger: Ledger, tmp_path: Path, answers: tuple[State, ...]
) -> None:
    ask(ledger, 1)

    def person(number: int) -> str:
        own = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
        state = answers[number % len(answers)]
        try:
            decide(own, "m", "w-1", state, person=Person(f"p{number}"), reason=f"{number} looked", at=NOW)
        except ConfigError as error:
            return error.message
        return ""

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(person, range(8)))
    assert len(states(ledger)) == 3, "one decision"
    entry = ledger.entries("m")[-1]
    first = told.index("")
    assert (entry.by, entry.reason) == (f"p{first} (unauthenticated)", f"{first} looked")
    others = [line for number, line in enumerate(told) if number != first]
    assert all(f"is decided: version 1 is {entry.state.value}, by {entry.by}" in line for line in others), told


def test_a_second_person_s_yes_is_not_the_first_s(ledger: Ledger) -> None:
    ask(ledger, 1)
    first = say(ledger, "w-1")
    with pytest.raises(ConfigError, match=r"is decided: version 1 is approved, by ann \(unauthenticated\)"):
        decide(ledger, "m", "w-1", State.APPROVED, person=Person("bob"), reason="me too", at=NOW)
    assert say(ledger, "w-1") == first, "the same person goes on after a crash"


def test_back_to_the_last_good_and_not_to_one_that_was_left(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="no version to go back to"):
        last_good([])
    for version in (1, 2, 3):
        serve(ledger, version)
    entry = roll_back(ledger, "m", None, person=ANN, reason="bad", at=NOW)
    assert (entry.version, entry.evidence["rollback_from"], entry.workflow) == (2, 3, "rollback")
    assert bound(entry) == PASSED, "to the package and the report by which it served"
    assert roll_back(ledger, "m", None, person=ANN, reason="bad", at=NOW) == entry, "said again, it is the same"
    write(ledger, State.RELEASING, 2)
    write(ledger, State.SERVING, 2)
    again = roll_back(ledger, "m", None, person=ANN, reason="bad too", at=NOW)
    assert again.version == 1, "3 was left"
    write(ledger, State.RELEASING, 1)
    write(ledger, State.SERVING, 1)
    assert roll_back(ledger, "m", 3, person=ANN, reason="it was the data", at=NOW).version == 3, "by name it may be"
    assert ledger.verify("m") == []


@pytest.mark.parametrize(
    "ends",
    [[], [State.EXPIRED], [State.RELEASING, State.ROLLED_BACK], [State.RELEASING, State.FAILED]],
    ids=["said alone", "lapsed", "taken back", "broke off"],
)
def test_a_way_back_that_came_to_nothing_left_no_version(ledger: Ledger, ends: list[State]) -> None:
    serve(ledger, 1)
    serve(ledger, 2)
    roll_back(ledger, "m", None, person=ANN, reason="bad", at=NOW)
    for state in ends:
        write(ledger, state, 1, at=NOW + timedelta(hours=2 if state is State.EXPIRED else 0))
    assert left(ledger.entries("m")) == {}
    assert last_good(ledger.entries("m")) == 1, "said again, it goes there again"
    serve(ledger, 3)
    assert last_good(ledger.entries("m")) == 2, "it served right before 3"
    again = roll_back(ledger, "m", None, person=ANN, reason="bad too", at=NOW + timedelta(hours=2))
    assert (again.version, again.evidence["rollback_from"]) == (2, 3)
    serve(ledger, 4)
    assert left(ledger.entries("m")) == {}, "nor did a word that 4 superseded"


def test_a_way_back_counts_by_the_word_that_let_its_version_serve(ledger: Ledger) -> None:
    serve(ledger, 1)
    serve(ledger, 2)
    tried = roll_back(ledger, "m", 1, person=ANN, reason="bad", at=NOW)
    write(ledger, State.RELEASING, 1)
    write(ledger, State.FAILED, 1, **{TAKEOVER: "an entry"})
    write(ledger, State.RELEASING, 1)
    write(ledger, State.SERVING, 1)
    assert left(ledger.entries("m")) == {2: tried}, "another run took it over, by the same word"
    serve(ledger, 2)
    assert left(ledger.entries("m")) == {}, "it serves again"
    roll_back(ledger, "m", 1, person=ANN, reason="bad", at=NOW)
    write(ledger, State.RELEASING, 1)
    write(ledger, State.ROLLED_BACK, 1)
    serve(ledger, 1)
    assert left(ledger.entries("m")) == {}, "1 came back by the gate"


def test_no_way_back_to_what_never_served_or_serves(ledger: Ledger) -> None:
    serve(ledger, 1)
    write(ledger, State.REGISTERED, 2)
    with pytest.raises(ConfigError, match="version 2 never served"):
        roll_back(ledger, "m", 2, person=ANN, reason="r", at=NOW)
    with pytest.raises(IllegalTransition, match="version 1 is serving"):
        roll_back(ledger, "m", 1, person=ANN, reason="r", at=NOW)


def test_a_way_back_holds_for_an_hour(ledger: Ledger) -> None:
    serve(ledger, 1)
    serve(ledger, 2)
    first = roll_back(ledger, "m", 1, person=ANN, reason="r", at=NOW)
    later = roll_back(ledger, "m", 1, person=ANN, reason="r", at=NOW + timedelta(hours=2))
    assert later.id != first.id
    assert later.evidence[EXPIRES] == moment_text(NOW + timedelta(hours=3))
