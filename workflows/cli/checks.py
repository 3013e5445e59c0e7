"""The checks of a gate as a table: number, interval, bound, verdict; and in words what else its entry says.

Shown by `run`, `status`, `lineage` and what else prints entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from contracts.outcomes import Verdict
from contracts.references import LedgerEntry
from contracts.reports import Check
from steps.lifecycle import CLAIMED

_STYLES = {
    Verdict.PASSED: ("✓", "green"),
    Verdict.REJECTED: ("✗", "red"),
    Verdict.INCONCLUSIVE: ("?", "yellow"),
    None: ("·", "dim"),
}


def checks_table(checks: Sequence[Check], indent: int = 2) -> Padding:
    """Return one line a check; the reason stands only where the check did not pass."""
    grid = Table.grid(padding=(0, 2))
    for check in checks:
        sign, style = _STYLES[check.verdict]
        reason = "" if check.verdict is Verdict.PASSED else check.reason
        grid.add_row(
            Text(sign, style=style), Text(check.name, no_wrap=True), Text(check.measured, no_wrap=True),
            Text(_bound(check)), Text(reason, style=style, overflow="fold"),
        )  # fmt: skip
    return Padding(grid, (0, 0, 0, indent))


def short(reason: str) -> str:
    """Return what a gate's reason says first, for where its checks are shown beside it; never cut inside a bracket."""
    parts = accumulate(reason.split("; "), "{}; {}".format)
    return next((part for part in parts if part.count("(") <= part.count(")")), reason)


def why(entry: LedgerEntry) -> str:
    """Return an entry's reason: a gate's shortened, since it repeats its checks, and anybody else's whole."""
    return short(entry.reason) if "checks" in entry.evidence else entry.reason


def by_whom(entry: LedgerEntry) -> str:
    """Return who made an entry, and for whom a run says that it was."""
    claimed = entry.evidence.get(CLAIMED)
    return f"by {entry.by}, for {claimed} (not verified)" if claimed else f"by {entry.by}"


def _bound(check: Check) -> str:
    if check.min is not None:
        return f">= {check.min:g}"
    return f"<= {check.max:g}" if check.max is not None else ""
