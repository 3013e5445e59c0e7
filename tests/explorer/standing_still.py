"""Where a stopped program stands, as a value: its frames, where each of them is, and what its variables hold.

Two programs that stand alike go on alike, whatever they were answered before, so they are explored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import Enum
from types import TracebackType
from typing import Any

from pydantic import BaseModel

from contracts.references import LedgerEntry
from steps.ledger import Ledger
from steps.lifecycle import Standing
from steps.world import World
from tests.explorer.world import Registry, Rows, Store, Tape, Target

_SAME_FOR_ALL = (World, Ledger, Registry, Rows, Store, Tape, Target)
"""Ways to the world: they hold nothing that a step changes."""


def fingerprint(trace: TracebackType | None) -> tuple[Any, ...]:
    """Return where the frames of a traceback stand; equal for programs that go on alike."""
    found: list[Any] = []
    while trace is not None:
        frame = trace.tb_frame
        if not isinstance(frame.f_locals.get("self"), Tape):
            values = tuple((name, _value(value)) for name, value in sorted(frame.f_locals.items()))
            found.append((frame.f_code, frame.f_lasti, values))
        trace = trace.tb_next
    return tuple(found)


def _value(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bool, Enum, datetime, bytes)):
        return value
    if isinstance(value, LedgerEntry):
        return value.id
    if isinstance(value, Standing):
        latest = tuple(sorted((version, entry.id) for version, entry in value.latest.items()))
        return latest, value.alias and value.alias.id
    if isinstance(value, _SAME_FOR_ALL) or callable(value):
        return type(value).__name__
    if isinstance(value, Mapping):
        return tuple(sorted((repr(key), _value(each)) for key, each in value.items()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(map(_value, value))
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    if is_dataclass(value):
        return tuple(_value(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, BaseException):
        return type(value).__name__, str(value)
    if hasattr(value, "__dict__"):
        return type(value).__name__, _value(vars(value))
    return type(value).__name__  # an iterator or generator: its frame is in the traceback, or it has ended
