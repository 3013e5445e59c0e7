"""Where a stopped program stands, as a value: its frames, where each of them is, and what its variables hold.

Two programs that stand alike go on alike, whatever they were answered before, so they are explored once.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from operator import attrgetter, methodcaller
from types import CodeType, FrameType, NoneType
from typing import Any

from pydantic import BaseModel

from contracts.references import LedgerEntry
from steps.ledger import Ledger
from steps.lifecycle import Standing
from steps.world import World
from tests.explorer.world import Registry, Rows, Store, Tape, Target

_SAME_FOR_ALL = (World, Ledger, Registry, Rows, Store, Tape, Target)
"""Ways to the world: they hold nothing that a step changes."""


def fingerprint(frame: FrameType | None, until: CodeType) -> tuple[Any, ...]:
    """Return where the frames stand from one to that of a caller; equal for programs that go on alike."""
    found: list[Any] = []
    while frame is not None and frame.f_code is not until:
        held, at = frame.f_locals, frame.f_lasti
        live = _live_after(frame.f_code)[at]
        found.append((frame.f_code, at, tuple([(name, value_of(held[name])) for name in live if name in held])))
        frame = frame.f_back
    return tuple(found)


@cache
def _live_after(code: CodeType) -> dict[int, tuple[str, ...]]:
    """Return, by an offset in the bytecode, the variables that are read after it before they are set: all that counts.

    The usual backward analysis (Aho and others, Compilers, 1986, section 10.6) over the bytecode, exceptions included.
    """
    steps = list(dis.get_instructions(code))
    place = {step.offset: k for k, step in enumerate(steps)}
    following: list[set[int]] = [set() for _ in steps]
    for k, step in enumerate(steps):
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            following[k].add(place[step.argval])
        if step.opname not in _LEAVES and k + 1 < len(steps):
            following[k].add(k + 1)
        for entry in dis.Bytecode(code).exception_entries:
            if entry.start <= step.offset < entry.end:
                following[k].add(place[entry.target])
    always = frozenset((*code.co_cellvars, *code.co_freevars))
    reads, sets = zip(*map(_reads_and_sets, steps), strict=True)
    before: list[frozenset[str]] = [frozenset()] * len(steps)
    after = list(before)
    changed = True
    while changed:
        changed = False
        for k in range(len(steps) - 1, -1, -1):
            after[k] = always.union(*(before[f] for f in following[k]))
            wanted = (after[k] - sets[k]) | reads[k]
            changed, before[k] = changed or wanted != before[k], wanted
    after = [wanted.union(*_pushed(steps, reads, k)) for k, wanted in enumerate(after)]
    ends = [*(step.offset for step in steps[1:]), len(code.co_code)]  # caches follow an instruction, and count as it
    return {at: tuple(sorted(after[k])) for k, step in enumerate(steps) for at in range(step.offset, ends[k])}


def _pushed(steps: Sequence[dis.Instruction], reads: Sequence[frozenset[str]], k: int) -> Iterator[frozenset[str]]:
    """Yield what the expression around an instruction has read so far: the interpreter's stack may still hold it."""
    inner = _span(steps[k])
    around = max((span for step in steps[k:] if _within(inner, span := _span(step))), key=_size, default=inner)
    return (reads[j] for j in range(k) if reads[j] and _within(_span(steps[j]), around))


Span = tuple[tuple[int, int], tuple[int, int]]
"""First and last line and column of a piece of the source."""


def _span(step: dis.Instruction) -> Span:
    at = step.positions
    assert at is not None
    return (at.lineno or 0, at.col_offset or 0), (at.end_lineno or 0, at.end_col_offset or 0)


def _within(inner: Span, outer: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _size(span: Span) -> tuple[int, int]:
    return span[1][0] - span[0][0], span[1][1] - span[0][1]


_LEAVES = (
    "RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD",
    "JUMP_BACKWARD_NO_INTERRUPT",
)  # fmt: skip
"""Instructions after which the next one does not come."""


def _reads_and_sets(step: dis.Instruction) -> tuple[frozenset[str], frozenset[str]]:
    names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    match step.opname:
        case "STORE_FAST" | "STORE_FAST_STORE_FAST" | "STORE_FAST_MAYBE_NULL":
            return frozenset(), frozenset(names)
        case "STORE_FAST_LOAD_FAST":
            return frozenset(names[1:]), frozenset(names[:1])
        case name if "FAST" in name:  # LOAD_FAST in all its forms, and DELETE_FAST
            return frozenset(names), frozenset()
    return frozenset(), frozenset()


def value_of(value: Any) -> Any:
    """Return what makes one value unlike another, as something that can be hashed."""
    return _reader(type(value))(value)


@cache
def _reader(kind: type) -> Callable[[Any], Any]:
    """Return how values of a kind are read."""
    if issubclass(kind, (NoneType, str, int, float, bool, Enum, datetime, bytes)):
        return lambda value: value
    if issubclass(kind, LedgerEntry):
        return attrgetter("id")
    if issubclass(kind, Standing):
        return _of_standing
    if issubclass(kind, _SAME_FOR_ALL) or "__call__" in dir(kind):
        return lambda _: kind.__name__
    if issubclass(kind, Mapping):
        return lambda value: tuple(sorted((repr(key), value_of(each)) for key, each in value.items()))
    if issubclass(kind, (list, tuple, set, frozenset)):
        return lambda value: tuple(map(value_of, value))
    if issubclass(kind, BaseModel):
        return methodcaller("model_dump_json")
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        return lambda value: tuple([value_of(getattr(value, name)) for name in names])
    if issubclass(kind, BaseException):
        return lambda value: (kind.__name__, str(value))
    if "__dict__" in dir(kind):
        return lambda value: (kind.__name__, value_of(vars(value)))
    return lambda _: kind.__name__  # an iterator or generator: its frame is in the traceback, or it has ended


def _of_standing(value: Standing) -> Any:
    latest = tuple(sorted([(version, entry.id) for version, entry in value.latest.items()]))
    return latest, value.alias and value.alias.id
