"""Would a version refuse requests that production accepts?  Pure; called by `promote`.

A request holds every column by name, `null` where the column allows it; an absent key, an unknown key or a wrong type
is refused (docs/serving.md).  So each column that comes, goes or narrows breaks some caller.
"""

from __future__ import annotations

from collections.abc import Sequence

from contracts.pipeline.table import ColumnType
from contracts.references import ColumnSpec

_WIDENS = {(ColumnType.INTEGER.value, ColumnType.NUMBER.value)}
"""(production's type, candidate's type): every value of the first is a value of the second."""


def refusals(candidate: Sequence[ColumnSpec], champion: Sequence[ColumnSpec]) -> tuple[str, ...]:
    """Return one line for each way in which `candidate` refuses requests that `champion` accepts; none: compatible."""
    new, old = {c.name: c for c in candidate}, {c.name: c for c in champion}
    found = [f"column {name} is asked for anew" for name in new if name not in old]
    found += [f"column {name} is known no more" for name in old if name not in new]
    for name in (n for n in old if n in new):
        before, after = old[name], new[name]
        if before.type != after.type and (before.type, after.type) not in _WIDENS:
            found.append(f"column {name} was {before.type}, is {after.type}")
        if before.nullable and not after.nullable:
            found.append(f"column {name} may be null no more")
    return tuple(found)
