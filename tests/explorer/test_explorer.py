"""Production's own promote, deploy, approve and rollback in every interleaving, with crashes; and bugs that are found.

The invariants are in `tests.explorer.scenario`.  What is small is part of `make test`, the rest of `make test-faults`.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from contracts.outcomes import State
from tests.explorer.bugs import BUGS, names
from tests.explorer.explore import Explorer
from tests.explorer.points import Broken, Program
from tests.explorer.scenario import approval, before_runs, explore, judged, mover, release, rollback
from tests.explorer.world import Outside, Rules

SICK, SICK_4 = Rules(sick=frozenset({3})), Rules(sick=frozenset({4}))
STOLEN = Rules(exclusive=False)


@pytest.mark.parametrize(
    ("programs", "rules", "crashes"),
    [
        ([release(4)], Rules(), 3),
        ([rollback()], Rules(), 2),
        ([release(3), approval()], SICK, 2),
        ([release(4), mover(1)], Rules(), 1),
        ([release(3), release(4), approval()], Rules(), 0),
        ([release(3), release(4), approval()], STOLEN, 0),
        ([release(4), rollback()], Rules(), 0),
    ],
    ids=["crashes", "rollback", "approval", "mover", "two", "two without a lock", "release and rollback"],
)
def test_whatever_the_order_the_ledger_is_right_and_the_rest_follows(
    programs: list[Program], rules: Rules, crashes: int
) -> None:
    explored = explore(programs, rules, crashes=crashes)
    assert explored.boxes > 50
    assert len({world.chain for world in explored.finals}) > 1


@pytest.mark.parametrize(
    ("programs", "rules", "crashes"),
    [
        ([judged(3), judged(4)], Rules(), 1),
        ([judged(3), judged(4)], STOLEN, 0),
        ([judged(4)], SICK_4, 2),
        ([judged(4), rollback()], Rules(), 0),
        ([judged(4), mover(1)], Rules(), 1),
        ([judged(3, "approval"), judged(4, "approval")], Rules(), 1),
    ],
    ids=["two", "two without a lock", "sick", "rollback", "mover", "two that ask a person"],
)
def test_runs_that_the_gate_decides_on_are_right_in_whatever_order(
    programs: list[Program], rules: Rules, crashes: int
) -> None:
    explored = explore(programs, rules, crashes=crashes, begin=before_runs)
    print(_size(explored))
    assert len({world.chain for world in explored.finals}) > 1


@pytest.mark.faults
def test_the_full_product_of_what_the_gate_decides() -> None:
    everybody = [judged(3), judged(4), rollback(), mover(1)]
    explored = explore(everybody, crashes=1, all_begin=False, begin=before_runs)
    print(_size(explored))
    assert len(explored.finals) > 1000


def test_of_two_runs_each_version_serves_in_turn_or_the_later_decision_is_made_anew() -> None:
    ends = {_states(world) for world in explore([judged(3), judged(4)], begin=before_runs).finals}
    assert {("retired", "serving"), ("serving", "retired"), ("serving", "superseded")} <= ends, ends


def test_of_two_that_ask_a_person_the_later_supersedes_the_other() -> None:
    two = [judged(3, "approval"), judged(4, "approval")]
    assert {_states(world) for world in explore(two, begin=before_runs).finals} == {
        ("superseded", "awaiting"), ("awaiting", "superseded"),
    }  # fmt: skip


def _states(world: Outside) -> tuple[str, ...]:
    """Of versions 3 and 4."""
    return tuple(State(e.state).value for v, e in sorted(world.chain.standing.latest.items()) if v > 2)


@pytest.mark.faults
def test_the_full_product() -> None:
    """Each of the five may also never begin, so that each smaller product of them is in it."""
    everybody = [release(3), release(4), approval(), rollback(), mover(1)]
    explored = explore(everybody, crashes=1, all_begin=False)
    print(_size(explored))
    assert len(explored.finals) > 10_000


@pytest.mark.faults
@pytest.mark.parametrize(
    ("programs", "rules", "crashes"),
    [
        ([release(3), release(4), approval()], SICK, 2),
        ([release(3), release(4), approval()], STOLEN, 1),
        ([release(4), release(4, "again"), mover(None)], Rules(), 2),
        ([release(4), mover(1, 2), approval()], Rules(), 2),
    ],
    ids=["sick", "two without a lock", "twice", "moves"],
)
def test_other_worlds(programs: list[Program], rules: Rules, crashes: int) -> None:
    print(_size(explore(programs, rules, crashes=crashes)))


def _size(explored: Explorer) -> str:
    worlds, finals = len(explored.worlds), len(explored.finals)
    return f"{explored.boxes} boxes, {len(explored.places)} places in {worlds} worlds, {finals} of them at the end"


def test_of_two_releases_one_serves_and_the_other_is_told() -> None:
    ends = {
        tuple(sorted((v, State(e.state).value) for v, e in world.chain.standing.latest.items() if v > 2))
        for world in explore([release(3), release(4), approval()]).finals
    }
    assert {((3, "superseded"), (4, "serving")), ((3, "serving"), (4, "superseded"))} <= ends
    assert all([state for _, state in end].count("serving") == 1 for end in ends)


@pytest.mark.parametrize("name", names())
def test_a_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    bug.seed(monkeypatch)
    with pytest.raises(Broken) as found:
        explore(bug.programs, bug.rules, crashes=bug.crashes)
    assert bug.says in str(found.value)


EACH_STEP = {"merge": False, "at_once": False, "together": False, "tags": True}
"""No reduction."""


@pytest.mark.parametrize(
    ("reduction", "rules"), [*((reduction, Rules()) for reduction in EACH_STEP), ("at_once", STOLEN)]
)
def test_a_reduction_loses_no_end(reduction: str, rules: Rules) -> None:
    programs = [release(3), release(4), approval()]
    fewer, every = explore(programs, rules), explore(programs, rules, **{reduction: EACH_STEP[reduction]})
    assert _told(fewer.finals) == _told(every.finals)
    if reduction != "at_once":  # which takes effects together
        assert _told(fewer.worlds) == _told(every.worlds)
    assert fewer.boxes + len(fewer.worlds) < every.boxes + len(every.worlds)


@pytest.mark.parametrize(
    ("programs", "rules", "crashes"),
    [
        ([release(3), approval()], SICK, 2),
        ([release(4), mover(1)], Rules(), 2),
        ([release(4), rollback()], Rules(), 0),
    ],
    ids=["approval", "mover", "rollback"],
)
def test_all_reductions_lose_no_end(programs: list[Program], rules: Rules, crashes: int) -> None:
    fewer, every = explore(programs, rules, crashes=crashes), explore(programs, rules, crashes=crashes, **EACH_STEP)
    assert _told(fewer.finals) == _told(every.finals)
    assert fewer.boxes < every.boxes / 3


def test_a_product_in_which_programs_may_never_begin_has_the_smaller_ones_in_it() -> None:
    programs = [release(4), rollback()]
    ends = [_told(explore(some, crashes=1).finals) for some in ([], programs[:1], programs[1:], programs)]
    assert set().union(*ends) <= _told(explore(programs, crashes=1, all_begin=False).finals)


def _told(worlds: Iterable[Outside]) -> set[tuple[object, ...]]:
    return {(tuple(e.id for e in w.chain.entries), w.alias, w.serves, w.turn, w.moves) for w in worlds}
