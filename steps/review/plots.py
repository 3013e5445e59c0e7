"""The plots of the page on which a person decides, as inline SVG elements.  Called by `steps.review.page`."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from contracts.reports import Check
from steps.review.contents import Bin, Values

LABEL = 24
"""Characters of a category's name beside its bar."""


def text(parent: Element, name: str, said: str, style: str = "", **attributes: str) -> Element:
    """Add an element that holds a text, in a class of the style sheet."""
    made = SubElement(parent, name, {"class": style} if style else {}, **attributes)
    made.text = said
    return made


def bound(check: Check) -> str:
    """Write what a check asks for."""
    if check.min is not None:
        return f"at least {check.min:g}"
    return f"at most {check.max:g}" if check.max is not None else ""


def interval(parent: Element, check: Check) -> None:
    """Draw a check's number, its interval and its bound on one line; nothing where it has no interval."""
    ends, limit = check.interval, check.min if check.min is not None else check.max
    if ends is None or check.value is None:
        return
    shown = [ends.low, ends.high, check.value, *([] if limit is None else [limit])]
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    style = check.verdict.value if check.verdict else ""

    def at(value: float) -> str:
        return f"{10 + 580 * (value - low) / span:.1f}"

    svg = _svg(parent, 600, 22, f"{check.name}: {check.measured}, {bound(check)}")
    whole = {"class": style, "x1": at(ends.low), "x2": at(ends.high), "y1": "11", "y2": "11", "stroke-width": "2"}
    SubElement(svg, "line", whole)
    SubElement(svg, "circle", {"class": style, "cx": at(check.value), "cy": "11", "r": "4"})
    if limit is not None:
        SubElement(svg, "line", {"class": "bound", "x1": at(limit), "x2": at(limit), "y1": "1", "y2": "21"})


def calibration(parent: Element, curves: Sequence[tuple[str, Sequence[Bin]]]) -> None:
    """Draw calibration curves, each in its style, over the diagonal that is right."""
    svg = _svg(parent, 320, 300, "Calibration: share that came true, by the probability that was said")
    SubElement(svg, "rect", {"class": "axis", "x": "40", "y": "10", "width": "260", "height": "260"})
    SubElement(svg, "line", {"class": "axis", "x1": "40", "y1": "270", "x2": "300", "y2": "10"})
    for tick in (0.0, 0.5, 1.0):
        text(svg, "text", f"{tick:g}", x=f"{40 + 260 * tick:g}", y="285", **{"text-anchor": "middle"})
        text(svg, "text", f"{tick:g}", x="34", y=f"{274 - 260 * tick:g}", **{"text-anchor": "end"})
    for style, curve in curves:
        points = [(f"{40 + 260 * one.probability:.1f}", f"{270 - 260 * one.share:.1f}") for one in curve]
        SubElement(svg, "polyline", {"class": f"{style} curve", "points": " ".join(f"{x},{y}" for x, y in points)})
        for (x, y), one in zip(points, curve, strict=True):
            dot = SubElement(svg, "circle", {"class": style, "cx": x, "cy": y, "r": "3"})
            text(dot, "title", f"said {one.probability:.3f}, came true {one.share:.3f}, {one.rows} rows")


def shares(parent: Element, now: Values, before: Values) -> None:
    """Draw the shares of categories as pairs of bars: the challenger's data above, the champion's below."""
    names = list(dict.fromkeys([*now.shares, *before.shares]))
    svg = _svg(parent, 600, 24 * len(names), "Shares of the most frequent categories, now above, before below")
    for row, name in enumerate(names):
        label = name if len(name) <= LABEL else f"{name[: LABEL - 1]}…"
        text(svg, "text", label, x="190", y=str(24 * row + 15), **{"text-anchor": "end"})
        for offset, style, values in ((3, "ours", now), (12, "theirs", before)):
            width = f"{380 * values.shares.get(name, 0.0):.1f}"
            SubElement(
                svg, "rect", {"class": style, "x": "200", "y": str(24 * row + offset), "width": width, "height": "8"}
            )


def _svg(parent: Element, width: int, height: int, says: str) -> Element:
    svg = SubElement(parent, "svg", viewBox=f"0 0 {width} {height}", role="img")
    text(svg, "title", says)
    return svg
