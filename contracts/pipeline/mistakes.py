"""Mistakes that no single field shows: raised by the models' validators, reported with key and line by `reading`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic_core import PydanticCustomError

KIND = "mistakes"
"""The type of pydantic's error that carries them, in its context under the same name."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong, the key that says so (relative to the model that noticed), what to do."""

    at: tuple[str | int, ...]
    what: str
    remedy: str = ""


def refuse(mistakes: Iterable[Mistake]) -> None:
    """Raise all mistakes as one error; do nothing when there are none."""
    if found := tuple(mistakes):
        raise PydanticCustomError(KIND, "{text}", {KIND: found, "text": "; ".join(m.what for m in found)})
