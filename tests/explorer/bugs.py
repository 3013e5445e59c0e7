"""Bugs that production's code might have: the explorer has to find each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from contracts.names import ALIAS_PRODUCTION
from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps import aliases, approvals, deploy, lifecycle, promote
from steps.ledger import Ledger, LostRace
from steps.lifecycle import AliasAct, Standing
from tests.explorer.points import Program
from tests.explorer.scenario import PLAIN, approval, mover, release, rollback
from tests.explorer.world import Rules

Seed = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Bug:
    """What is done to the code, in which world it shows, and what the explorer says of it."""

    seed: Seed
    says: str
    programs: tuple[Program, ...]
    rules: Rules = PLAIN
    crashes: int = 0


TWO = (release(3), release(4), approval())


def _nothing(_: pytest.MonkeyPatch) -> None:
    """The bug is in the world's rules."""


def alias_before_ledger(patch: pytest.MonkeyPatch) -> None:
    real = deploy._Release._end

    def end(self: Any, releasing: LedgerEntry, state: State, *more: Any) -> LedgerEntry:
        if state is State.SERVING:
            self.world.registry.set_alias(ALIAS_PRODUCTION, releasing.version)
        return real(self, releasing, state, *more)

    patch.setattr(deploy._Release, "_end", end)


def takeover_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Standing, "releasing", None)


def approval_reused(patch: pytest.MonkeyPatch) -> None:
    row = lifecycle.TRANSITIONS[State.RELEASING]
    looser = replace(row, follows=row.follows | {State.ROLLED_BACK})
    patch.setitem(lifecycle.TRANSITIONS, State.RELEASING, looser)


def stale_approval_taken(patch: pytest.MonkeyPatch) -> None:
    for module in (lifecycle, deploy, promote, approvals):
        patch.setattr(lifecycle if module is promote else module, "ended", lambda *_: None)


def _judging(patch: pytest.MonkeyPatch, instead: dict[AliasAct, AliasAct]) -> None:
    real = lifecycle.judge_alias

    def judge(now: Standing, observed: int | None) -> AliasAct:
        act = real(now, observed)
        return instead.get(act, act)

    patch.setattr(aliases, "judge_alias", judge)


def confirmation_forgotten(patch: pytest.MonkeyPatch) -> None:
    _judging(patch, {AliasAct.CONFIRM: AliasAct.NOTHING})


def move_overlooked(patch: pytest.MonkeyPatch) -> None:
    _judging(patch, {AliasAct.ENTER_MOVE: AliasAct.NOTHING})


def move_undone(patch: pytest.MonkeyPatch) -> None:
    _judging(patch, {AliasAct.ENTER_MOVE: AliasAct.SET})


def alias_set_out_of_turn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(aliases, "alias_is_to_follow", lambda _: False)


def nobody_retires(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(lifecycle, "changes", lambda _, state, version, __: ((state, version),))


def two_inserts(patch: pytest.MonkeyPatch) -> None:
    real = Ledger.append

    def append(self: Ledger, *a: Any, **k: Any) -> LedgerEntry:
        rows = self._rows
        self._rows = SimpleNamespace(  # type: ignore[assignment]
            look=rows.look, entries=rows.entries, after=rows.after,
            insert=lambda entries: [rows.insert([each]) for each in entries],
        )  # fmt: skip
        try:
            return real(self, *a, **k)
        finally:
            self._rows = rows

    patch.setattr(Ledger, "append", append)


def rollout_before_ledger(patch: pytest.MonkeyPatch) -> None:
    real = deploy._Release._settle

    def settle(self: Any) -> Any:
        self.world.target.release(SimpleNamespace(version=self.inputs.version))
        return real(self)

    patch.setattr(deploy._Release, "_settle", settle)


def race_retried_blindly(patch: pytest.MonkeyPatch) -> None:
    real = Ledger.append

    def append(self: Ledger, model: str, *a: Any, **k: Any) -> LedgerEntry:
        while True:
            try:
                return real(self, model, *a, **k)
            except LostRace:
                k["after"] = self.look(model)[0]

    patch.setattr(Ledger, "append", append)


def put_back_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deploy._Release, "_reconcile", lambda *_: None)


def tags_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(deploy._Release, "_project", lambda self, _: self._follow())


def unchanged_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    real = deploy._Release._serve
    patch.setattr(
        deploy._Release, "_serve", lambda self, entry, **k: real(self, entry, **k) if k else SimpleNamespace(
            url="", version=entry.version, note=""
        ),
    )  # fmt: skip


BUGS: dict[str, Bug] = {
    "uniqueness dropped": Bug(_nothing, "does not verify", TWO, Rules(unique=False)),
    "alias before ledger": Bug(alias_before_ledger, "does not serve by the ledger", TWO),
    "takeover lost": Bug(takeover_lost, "two versions are releasing", TWO, crashes=1),
    "approval reused": Bug(
        approval_reused, "let through two releases", (release(4), release(4, "again")), Rules(sick=frozenset({4}))
    ),
    "stale approval taken": Bug(stale_approval_taken, "is older than what serves", TWO),
    "confirmation forgotten": Bug(confirmation_forgotten, "and the ledger says", (release(4), mover(2))),
    "move overlooked": Bug(move_overlooked, "the ledger says", (release(4), mover(1))),
    "move undone": Bug(move_undone, "is undone that nobody entered", (release(4), mover(1))),
    "alias set out of turn": Bug(
        alias_set_out_of_turn, "which does not serve by the ledger", (release(3), release(4), rollback())
    ),
    "nobody retires": Bug(nobody_retires, "two versions are serving", (release(4),)),
    "two inserts in place of one": Bug(two_inserts, "nothing serves by the ledger", (release(4),), crashes=1),
    "rollout before ledger": Bug(rollout_before_ledger, "answers before the ledger says", (release(4),)),
    "race retried blindly": Bug(race_retried_blindly, "version", TWO, Rules(exclusive=False)),
    "put back forgotten": Bug(put_back_forgotten, "version None answers", (release(4),), Rules(sick=frozenset({4}))),
    "tags forgotten": Bug(tags_forgotten, "its tag does not say so", (release(4),)),
    "unchanged is not looked at": Bug(unchanged_is_not_looked_at, "answers, the ledger says", (release(4),), crashes=1),
}


def names() -> Sequence[str]:
    return list(BUGS)
