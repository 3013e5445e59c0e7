"""The outside world as a value: every effect makes another one.  The ports that production's code is given over it.

A port's call is one step (`Op`), put to `Tape`, which answers from what happened already or stops the program there.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from contracts.pipeline import parse_pipeline
from contracts.references import LedgerEntry
from contracts.settings import Settings, desk, variable
from steps import lifecycle
from steps.ledger import Ledger
from steps.ledger.rows import UniqueViolationError, View
from steps.rollout.target import NotHealthy, Serving
from steps.words import NoWords
from steps.world import World
from tests.steps.registered import NOW

MODEL = "m"
PIPELINE = """
apiVersion: retrain/v1
name: m
source: {uri: m.csv}
schema: {columns: [{name: x, type: number}, {name: y, type: string}]}
target: {column: y, task: binary, positive: "1"}
training: {metric: roc_auc, candidates: [{name: l, estimator: linear}]}
gates:
  default:
    decision: {decision}
    validation: {thresholds: [{metric: roc_auc, min: 0.5}]}
"""


class Chain:
    """The ledger's entries; equal ones are one object, so that worlds compare fast."""

    known: dict[tuple[str, ...], Chain] = {}

    def __init__(self, entries: tuple[LedgerEntry, ...]) -> None:
        self.entries = entries
        self.standing = lifecycle.standing(entries)
        self.followed = {entry.previous for entry in entries}

    @classmethod
    def of(cls, entries: Sequence[LedgerEntry]) -> Chain:
        key = tuple(entry.id for entry in entries)
        if key not in cls.known:
            cls.known[key] = cls(tuple(entries))
        return cls.known[key]

    def refuses(self, entries: Sequence[LedgerEntry]) -> bool:
        """Whether another entry follows the one that one of these is to follow."""
        return any(entry.previous in self.followed for entry in entries)

    @property
    def head(self) -> LedgerEntry | None:
        return self.entries[-1] if self.entries else None


class Outside(NamedTuple):
    """All that outlives a process."""

    chain: Chain
    alias: int | None = None
    """What MLflow's alias `production` names."""
    tags: frozenset[tuple[int, str]] = frozenset()
    """Version and what its tag says of its state."""
    serves: int | None = None
    """The version that answers at the front door."""
    turn: str = ""
    """Who holds the target's turn."""
    moves: int = 0
    """How often a person moved the alias."""


class Op(NamedTuple):
    """One step of a program: a port's call and its arguments."""

    name: str
    arguments: tuple[Any, ...] = ()


class Blocked(Exception):  # noqa: N818  a state, no error
    """The step has to wait."""


@dataclass(frozen=True)
class Rules:
    """What differs between the worlds that are explored."""

    sick: frozenset[int] = frozenset()
    """Versions that do not come up; what served before is down by then, as with the strategy `recreate`."""
    exclusive: bool = True
    """Whether the turn keeps others out: a Lease that its holder did not renew in time does not."""
    unique: bool = True
    """Whether the ledger's table refuses a second entry after the same one; a seeded bug otherwise."""


def apply(op: Op, outside: Outside, actor: str, rules: Rules) -> tuple[Outside, Any, Any]:
    """Return the world after a step, what tells its answer from others, and the answer; an exception is raised there.

    Raises
    ------
    Blocked
        Somebody else holds the turn.
    """
    chain, first = outside.chain, op.arguments[0] if op.arguments else None
    match op.name:
        case "look":
            return outside, chain, (chain.head, chain.standing)
        case "entries":
            return outside, chain, list(chain.entries)
        case "after":
            found = next((entry for entry in chain.entries if entry.previous == first), None)
            return outside, found and found.id, found
        case "insert":
            if rules.unique and chain.refuses(op.arguments):
                return outside, "refused", UniqueViolationError()
            return outside._replace(chain=Chain.of((*chain.entries, *op.arguments))), "", None
        case "alias":
            return outside, outside.alias, outside.alias
        case "set alias":
            return outside._replace(alias=first), "", None
        case "move":
            return outside._replace(alias=first, moves=outside.moves + 1), "", None
        case "tag":
            version, state = op.arguments
            kept = {(v, s) for v, s in outside.tags if v != version}
            return outside._replace(tags=frozenset(kept | {(version, state)})), "", None
        case "take":
            if rules.exclusive and outside.turn:
                raise Blocked
            return outside._replace(turn=actor), "", None
        case "free":
            return outside._replace(turn="" if outside.turn == actor else outside.turn), "", None
        case "serve":
            if first in rules.sick:
                return outside._replace(serves=None), "sick", NotHealthy("it does not come up")
            return outside._replace(serves=first), "", Serving("http://m", first)
        case "stop":
            return outside._replace(serves=None), "", None
    raise AssertionError(op)


class Stop(BaseException):
    """The program is to be left where it stands."""


class Tape:
    """Answers a program's steps from what was answered before, and then as it is told to."""

    def __init__(self, answers: Sequence[Any], further: Callable[[Op, FrameType], Any]) -> None:
        self._answers, self._answered = answers, 0
        self._further = further

    def __call__(self, name: str, *arguments: Any) -> Any:
        if self._answered < len(self._answers):
            answer = self._answers[self._answered]
            self._answered += 1
        else:
            answer = self._further(Op(name, arguments), sys._getframe(1))
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass(frozen=True)
class Rows:
    """The ledger's table, as `steps.ledger.rows.Rows` has it."""

    step: Tape

    def entries(self, model: str) -> list[LedgerEntry]:
        found: list[LedgerEntry] = self.step("entries")
        return found

    def look(self, model: str, version: int | None = None) -> View:
        found: View = self.step("look")
        return found

    def after(self, model: str, previous: str) -> LedgerEntry | None:
        found: LedgerEntry | None = self.step("after", previous)
        return found

    def insert(self, entries: Sequence[LedgerEntry]) -> None:
        self.step("insert", *entries)

    def alone(self, model: str) -> AbstractContextManager[None]:
        return nullcontext()


@dataclass(frozen=True)
class Registry:
    """MLflow's registry, as far as promote and deploy ask it."""

    step: Tape
    name: str = MODEL

    def alias(self, name: str) -> int | None:
        found: int | None = self.step("alias")
        return found

    def set_alias(self, name: str, version: int) -> None:
        self.step("set alias", version)

    def set_tags(self, version: int, tags: Mapping[str, str]) -> None:
        self.step("tag", version, tags["retrain.state"])

    def run_of(self, version: int) -> str:
        return f"run-{version}"


@dataclass(frozen=True)
class Target:
    """What serves, as `steps.rollout.target.Target` has it."""

    step: Tape

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.step("take")
        try:
            yield
        except Stop:
            raise
        except BaseException:
            self.step("free")
            raise
        self.step("free")

    def means(self, built: str, run_id: str) -> Mapping[str, Any]:
        return {"image": built}

    def serving(self) -> Serving | None:
        """What answers now, which deploy asks for the text of its summary alone."""
        return None

    def release(self, entry: LedgerEntry) -> Serving:
        found: Serving = self.step("serve", entry.version)
        return found

    def hear(self, entry: LedgerEntry, url: str) -> None:
        """The front door answers when the target says so."""

    restore = release

    def stop(self) -> object:
        return self.step("stop")


class Store:
    """Reports and packages: written before the entry that names them, and read by no decision explored here."""

    def uri(self, *parts: str) -> str:
        return "/".join(parts)

    def write(self, uri: str, data: bytes) -> None:
        pass

    def log_files(self, run_id: str, files: Mapping[str, bytes]) -> None:
        pass


@cache
def _settings() -> Settings:
    values = desk(Path("/nowhere"), Path("/nowhere"))
    return Settings.model_validate({f: values[variable(f)] for f in Settings.model_fields if variable(f) in values})


@cache
def _pipeline(decision: str) -> Any:
    return parse_pipeline(PIPELINE.replace("{decision}", decision))


_PIPELINE_PATH = Path("m.yaml")


@cache
def _log() -> logging.Logger:
    log = logging.getLogger("retrain.explorer")
    log.setLevel(logging.CRITICAL)
    return log


def ledger_over(step: Tape) -> Ledger:
    return Ledger.over(Rows(step))  # type: ignore[arg-type]  no locks and no raw rows are asked for


def world_over(step: Tape, workflow: str, decision: str = "approval") -> World:
    """Return production's world with every port led to the tape; `decision` is who has the last word."""
    world = World(
        settings=_settings(), pipeline=_pipeline(decision), pipeline_path=_PIPELINE_PATH, workflow=workflow,
        now=lambda: NOW, log=_log(),
    )  # fmt: skip
    store = Store()
    world.__dict__ |= {
        "ledger": ledger_over(step), "registry": Registry(step), "target": Target(step), "storage": store,
        "tracking": store, "words": NoWords(),
    }  # fmt: skip
    return world
