"""Production's own promote, deploy, approve and rollback in every interleaving, with crashes; and bugs that are found.

The invariants are in `tests.explorer.scenario`.  What is small is part of `make test`, the rest of `make test-faults`.
"""

from __future__ import annotations

import pytest

from contracts.outcomes import State
from tests.explorer.bugs import BUGS, names
from tests.explorer.explore import Broken, Explorer, Program
from tests.explorer.scenario import approval, explore, mover, release, rollback
from tests.explorer.world import Rules

SICK = Rules(sick=frozenset({3}))
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
    assert explored.states > 100
    assert len({world.chain for world in explored.finals}) > 1


@pytest.mark.faults
@pytest.mark.parametrize(
    ("programs", "rules", "crashes"),
    [
        ([release(3), release(4), approval(), mover(1)], Rules(), 1),
        ([release(3), release(4), approval()], SICK, 1),
        ([release(3), release(4), approval()], STOLEN, 1),
        ([release(3), rollback(), approval()], Rules(), 1),
        ([release(4), release(4, "again"), mover(None)], Rules(), 1),
        ([release(4), mover(1, 2), approval()], Rules(), 2),
        ([release(4), rollback(), mover(1)], Rules(), 1),
        ([release(3), release(4), approval(), rollback()], Rules(), 0),
        ([release(3), release(4), approval(), rollback(), mover(1)], Rules(), 0),
    ],
    ids=[
        "two and a mover",
        "sick",
        "two without a lock",
        "rollback",
        "twice",
        "moves",
        "rollback and a mover",
        "three releases",
        "all five",
    ],
)
def test_the_full_product(programs: list[Program], rules: Rules, crashes: int) -> None:
    explored = explore(programs, rules, crashes=crashes)
    print(f"{explored.states} states, {len(explored.finals)} worlds at the end")


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


def test_taking_programs_that_stand_alike_for_one_loses_no_end() -> None:
    programs = [release(3), approval()]
    merged, each = explore(programs, crashes=2), explore(programs, crashes=2, merge=False)
    assert _told(merged) == _told(each)
    assert merged.states < each.states


@pytest.mark.parametrize("rules", [Rules(), STOLEN])
def test_taking_steps_at_once_that_commute_with_all_others_loses_no_end(rules: Rules) -> None:
    programs = [release(3), release(4), approval()]
    fewer, every = explore(programs, rules), explore(programs, rules, at_once=False)
    assert _told(fewer) == _told(every)
    assert fewer.states < every.states / 2


def _told(explored: Explorer) -> set[tuple[object, ...]]:
    return {(tuple(e.id for e in world.chain.entries), *world[1:]) for world in explored.finals}
