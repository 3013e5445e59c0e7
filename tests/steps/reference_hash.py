"""The dataset hash as docs/dataset-hash.md specifies it, in plain Python: imports nothing of the project.

A table is a list of (name, type, cells); cells are None, int, float, bool, str, date or datetime.
"""

from __future__ import annotations

import hashlib
import math
import struct
from datetime import UTC, date, datetime
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def reference_hash(columns: list[tuple[str, str, list[Any]]]) -> str:
    rows = len(columns[0][2])
    total = b"retrain-dataset-1\n" + struct.pack("<QI", rows, len(columns))
    for name, kind, cells in columns:
        for text in (name, kind):
            total += struct.pack("<I", len(text.encode())) + text.encode()
        total += _column(kind, cells)
    return hashlib.sha256(total).hexdigest()


def _column(kind: str, cells: list[Any]) -> bytes:
    cells = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]
    valid = bytes(cell is not None for cell in cells)
    if kind == "string":
        texts = [(cell or "").encode() for cell in cells]
        lengths = b"".join(struct.pack("<I", len(text)) for text in texts)
        return _sha(valid) + _sha(lengths) + _sha(b"".join(texts))
    return _sha(valid) + _sha(b"".join(_fixed(kind, cell) for cell in cells))


def _fixed(kind: str, cell: Any) -> bytes:
    if kind == "integer":
        return struct.pack("<q", cell or 0)
    if kind == "number":
        return struct.pack("<d", (cell or 0.0) + 0.0)
    if kind == "boolean":
        return struct.pack("<B", bool(cell))
    if kind == "date":
        return struct.pack("<i", (cell - date(1970, 1, 1)).days if cell else 0)
    since = (cell - EPOCH) if cell else EPOCH - EPOCH
    return struct.pack("<q", (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
