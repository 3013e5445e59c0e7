"""Prediction ids: made by the server, read by whoever asks which version answered.  No record is needed for that."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(
    r"([a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?)-([1-9]\d{0,17})-([0-9a-f]{32})(?:-(0|[1-9]\d{0,8}))?", re.ASCII
)


@dataclass(frozen=True)
class PredictionId:
    """One answer of one version, or one row of it (counted from 0): ``adult-income-3-<32 hex digits>-0``."""

    model: str
    version: int
    unique: str
    row: int | None = None

    @classmethod
    def parse(cls, text: str) -> PredictionId | None:
        """Read an id, None when the text is none."""
        found = _FORM.fullmatch(text)
        if found is None:
            return None
        model, version, unique, row = found.groups()
        return cls(model, int(version), unique, None if row is None else int(row))

    def __str__(self) -> str:
        whole = f"{self.model}-{self.version}-{self.unique}"
        return whole if self.row is None else f"{whole}-{self.row}"
