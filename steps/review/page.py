"""The page on which a person decides: one self-contained HTML file, kept with the MLflow run.  Called by `promote`.

Built as a tree of elements, so every text is escaped; no script, nothing from elsewhere, one column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from contracts.metrics import METRICS, is_better
from contracts.names import tag
from contracts.outcomes import Promotion, Verdict
from contracts.reports import Check
from steps.review.contents import MUCH, SOME, Change, Review, Side, Values
from steps.review.plots import bound, calibration, interval, shares, text

_VERDICTS = {
    Promotion.APPROVED: Verdict.PASSED,
    Promotion.REJECTED: Verdict.REJECTED,
    Promotion.INCONCLUSIVE: Verdict.INCONCLUSIVE,
}
_MADE_OF = (
    "candidate",
    "dataset_sha256",
    "split_sha256",
    "transform_sha256",
    "code_commit",
    "user_code",
    "lock_sha256",
)
"""Tags of the run, shortened."""
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #59636e; --page: #fff; --line: #d1d9e0; --good: #1a7f37;
  --bad: #cf222e; --doubt: #9a6700; --ours: #0969da; --theirs: #8250df; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --dim: #9198a1; --page: #0d1117; --line: #3d444d;
  --good: #3fb950; --bad: #f85149; --doubt: #d29922; --ours: #4493f8; --theirs: #ab7df8; } }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, figure { margin: .5rem 0; } .dim, figcaption, th { color: var(--dim); font-weight: normal; font-size: .875rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; vertical-align: top; overflow-wrap: break-word;
  padding: .25rem .5rem .25rem 0; border-bottom: 1px solid var(--line); } td.long { overflow-wrap: anywhere; }
@media (max-width: 30rem) { table { font-size: .8125rem; } }
.passed { color: var(--good); } .rejected { color: var(--bad); } .inconclusive { color: var(--doubt); }
.better { font-weight: 600; } .ours { color: var(--ours); } .theirs { color: var(--theirs); }
svg { display: block; max-width: 26rem; width: 100%; height: auto; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; }
svg .axis { stroke: var(--line); fill: none; } svg .ours { stroke: var(--ours); fill: var(--ours); }
svg .theirs { stroke: var(--theirs); fill: var(--theirs); } svg .curve { fill: none; stroke-width: 2; }
svg .bound { stroke: var(--ink); stroke-dasharray: 3 2; } svg .passed { stroke: var(--good); fill: var(--good); }
svg .rejected { stroke: var(--bad); fill: var(--bad); } svg .inconclusive { stroke: var(--doubt); fill: var(--doubt); }
"""
_LONG_WORD = 18
"""Letters; a longer one is broken anywhere, others only between words: a phone is some 40 letters wide."""
_SIGNS = {Verdict.PASSED: "✓", Verdict.REJECTED: "✗", Verdict.INCONCLUSIVE: "?", None: "·"}

Cell = str | tuple[str, str]
"""A text, or a text and its style."""


def render(review: Review) -> bytes:
    """Return the page, UTF-8."""
    report, champion = review.report, review.champion
    title = f"{report.model} version {report.version}"
    html = Element("html", lang="en")
    head, body = SubElement(html, "head"), SubElement(html, "body")
    SubElement(head, "meta", charset="utf-8")
    SubElement(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    text(head, "title", title)
    text(head, "style", _STYLE)
    text(body, "h1", title)
    before = f"against version {report.champion}, which serves" if report.champion else "nothing serves yet"
    asked = f"run {report.workflow}, for {report.requested_by} (not verified), environment {report.environment}"
    text(body, "p", f"{before}; {asked}", "dim")
    verdict = _VERDICTS[report.decision]
    text(body, "p", f"{_SIGNS[verdict]} promotion gate: {report.reason}", verdict.value)
    for note in (*report.notes, *review.notes):
        text(body, "p", f"Note: {note}", "inconclusive")
    _gate(body, "Promotion gate", report.checks)
    if validation := review.challenger.validation:
        _gate(body, "Validation gate", [check for check in validation.checks if not _is_of_slice(check)])
        _slices(body, [check for check in validation.checks if _is_of_slice(check)], champion)
    _numbers(body, review)
    _calibration(body, review)
    _means(body, review)
    _data(body, review)
    _making(body, review)
    return b"<!doctype html>\n" + bytes(tostring(html, encoding="utf-8", method="html"))


def _table(parent: Element, titles: Sequence[str]) -> Element:
    table = SubElement(parent, "table")
    row = SubElement(table, "tr")
    for title in titles:
        text(row, "th", title)
    return table


def _row(table: Element, cells: Sequence[Cell]) -> None:
    row = SubElement(table, "tr")
    for cell in cells:
        said, style = cell if isinstance(cell, tuple) else (cell, "")
        long = any(len(word) > _LONG_WORD for word in said.split())
        text(row, "td", said, f"{style} long".strip() if long else style)


def _plot(table: Element) -> Element:
    """Return a place for a plot, as wide as the table."""
    return SubElement(SubElement(table, "tr"), "td", colspan="4")


def _beside(review: Review, first: str) -> list[str]:
    """Return the titles of a table with a column for each side."""
    its = review.champion
    return [first, f"version {review.challenger.version}", *([f"version {its.version}, serves"] if its else [])]


def _sides(review: Review) -> list[Side]:
    return [review.challenger, *([review.champion] if review.champion else [])]


def _sign(check: Check) -> Cell:
    return _SIGNS[check.verdict], check.verdict.value if check.verdict else "dim"


def _gate(body: Element, title: str, checks: Sequence[Check]) -> None:
    text(body, "h2", title)
    table = _table(body, ["", "check", "found", "asked"])
    for check in checks:
        _row(table, [_sign(check), check.name, check.measured, bound(check)])
        if check.verdict is not Verdict.PASSED:
            _row(table, ["", (check.reason, _sign(check)[1]), "", ""])
        if check.interval is not None:
            interval(_plot(table), check)


def _is_of_slice(check: Check) -> bool:
    return " of " in check.name


def _slices(body: Element, checks: Sequence[Check], champion: Side | None) -> None:
    if not checks:
        return
    known = (
        {check.name: check.measured for check in champion.validation.checks} if champion and champion.validation else {}
    )
    text(body, "h2", "Slices")
    titles = ["", "slice", "challenger", "asked", "rows"]
    table = _table(body, [*titles, "champion, on its own test rows"] if known else titles)
    for check in checks:
        cells = [_sign(check), check.name, check.measured, bound(check), str(check.rows or "")]
        _row(table, [*cells, known.get(check.name, "")] if known else cells)


def _numbers(body: Element, review: Review) -> None:
    ours, its = review.challenger, review.champion
    if not ours.metrics:
        return
    text(body, "h2", "Numbers")
    shared = its is not None and bool(its.metrics)
    text(body, "p", f"on the {review.rows} {'rows that neither has seen' if shared else 'test rows'}", "dim")
    table = _table(body, _beside(review, "metric"))
    for name, value in ours.metrics.items():
        more = "more" if METRICS[name].greater_is_better else "less"
        cells: list[Cell] = [f"{name} ({more} is better)"]
        other = its.metrics.get(name, math.nan) if its else math.nan
        cells.append((f"{value:.4g}", "better" if is_better(name, value, other) else ""))
        if its:
            said = f"{other:.4g}" if math.isfinite(other) else ""
            cells.append((said, "better" if is_better(name, other, value) else ""))
        _row(table, cells)


def _calibration(body: Element, review: Review) -> None:
    curves = [
        (side, style) for side, style in zip(_sides(review), ("ours", "theirs"), strict=False) if side.calibration
    ]
    if not curves:
        return
    text(body, "h2", "Calibration")
    figure = SubElement(body, "figure")
    calibration(figure, [(style, side.calibration) for side, style in curves])
    said = "across: the probability said; up: the share that came true; on the diagonal both are one. "
    caption = text(figure, "figcaption", said)
    for side, style in curves:
        text(caption, "span", f"● version {side.version} ", style)


def _means(body: Element, review: Review) -> None:
    text(body, "h2", "Size and latency")
    table = _table(body, _beside(review, ""))
    sides = _sides(review)
    _row(table, ["package", *(_measured(side.size_mib, "MiB") for side in sides)])
    _row(table, ["one row, median", *(_measured(side.latency_ms, "ms") for side in sides)])


def _measured(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.3g} {unit}"


def _data(body: Element, review: Review) -> None:
    if not review.changes:
        return
    text(body, "h2", "What changed in the data")
    said = "What moved most comes first. Shift is the population stability index: below 0.1 little, above 0.25 much."
    text(body, "p", said, "dim")
    table = _table(body, ["column", "now", "before", "shift"])
    for change in sorted(review.changes, key=_most_changed):
        _row(table, [change.column, _values(change.now), _values(change.before), _shift(change)])
        if change.now and change.before and change.now.shares:
            shares(_plot(table), change.now, change.before)


def _most_changed(change: Change) -> tuple[bool, float]:
    return change.now is not None and change.before is not None, -(change.shift or 0.0)


def _shift(change: Change) -> Cell:
    if change.now is None or change.before is None:
        return "gone" if change.now is None else "new", "inconclusive"
    if change.shift is None:
        return ""
    style = "rejected" if change.shift > MUCH else "inconclusive" if change.shift > SOME else ""
    return f"{change.shift:.3f}", style


def _values(values: Values | None) -> str:
    if values is None:
        return ""
    said = f"{values.rows:,} rows, {values.missing:.1%} missing"
    if values.quantiles:
        low, quarter, middle, upper, high = values.quantiles
        said += f"; median {middle:.4g}, half in {quarter:.4g} to {upper:.4g}, all in {low:.4g} to {high:.4g}"
    return said


def _making(body: Element, review: Review) -> None:
    text(body, "h2", "What they were made of")
    table = _table(body, _beside(review, ""))
    sides = [dict(_facts(side)) for side in _sides(review)]
    for name in dict.fromkeys(name for side in sides for name in side):
        values = [side.get(name, "") for side in sides]
        _row(table, [name, *((value, "better" if len(set(values)) > 1 else "") for value in values)])


def _facts(side: Side) -> Iterator[tuple[str, str]]:
    yield "MLflow run", side.run.run_id
    for name in _MADE_OF:
        if value := side.run.tags.get(tag(name), ""):
            yield name, value[:12] if name != "candidate" else value
    for name, value in sorted(side.run.params.items()):
        if name.startswith("parameters.") or name in ("seed", "rounds", "threshold"):
            yield name.removeprefix("parameters."), value
