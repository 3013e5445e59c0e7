"""Arrow constants made from buffers, and flags read from them.  Used by the modules beside it.

`pa.array`, `pa.scalar` and `to_numpy` import pandas to look for its types, which costs more time than ingesting a small
file.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def texts(words: Sequence[str]) -> pa.Array:
    """Return a string array."""
    raw = [word.encode() for word in words]
    ends = np.cumsum([0, *map(len, raw)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(raw), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(raw))])


def numbers(values: Sequence[float], kind: pa.DataType) -> pa.Array:
    """Return an array of a type whose values are stored as numbers of its width: also dates and timestamps."""
    dtype = {32: np.int32, 64: np.int64}[kind.bit_width] if not pa.types.is_floating(kind) else np.float64
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.array(values, dtype=dtype))])


def booleans(values: Sequence[bool]) -> pa.Array:
    """Return a boolean array."""
    bits = np.packbits(np.array(values, dtype=bool), bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])


def flags(values: pa.Array) -> npt.NDArray[np.bool_]:
    """Return booleans of which none is null as NumPy's."""
    if not len(values):
        return np.zeros(0, dtype=np.bool_)
    bytewise = values.cast(pa.uint8())
    return np.frombuffer(bytewise.buffers()[1], dtype=np.bool_, count=len(bytewise), offset=bytewise.offset)


def null(kind: pa.DataType) -> pa.Scalar:
    """Return a type's null."""
    return pa.nulls(1, kind)[0]


EMPTY = texts([""])[0]
ZERO = numbers([0.0], pa.float64())[0]
FALSE = booleans([False])[0]
