"""One value, one form: what is equal in a table is equal in its bytes.  Applied to every chunk before it is hashed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from steps.table.constants import ZERO, null


def canonical(values: pa.Array) -> pa.Array:
    """Return a typed array with NaN as null and -0.0 as 0.0; other types are canonical as they are."""
    if not pa.types.is_floating(values.type):
        return values
    nan = pc.is_nan(values)
    if pc.any(nan).as_py():
        values = pc.if_else(nan, null(values.type), values)
    return pc.add(values, ZERO)  # IEEE 754: -0.0 + 0.0 is 0.0
