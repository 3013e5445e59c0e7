"""Replaces Argo's tags: ``{{name}}`` as text, ``{{=expression}}`` by its value.

What has no value (yet) is left as it stands: a later pass may know it, and Argo does the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from workflows.local.expr import compile_expression, go_text
from workflows.local.pratt import LanguageError

_TAG = r"(?s)\{\{((?:(?!\{\{|\}\}).)*)\}\}"
_NESTED = r"(?s)\{\{(?:(?!\}\}).)*\{\{"


class Scope:
    """What names mean at one place: dotted names to texts."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = values

    @cached_property
    def names(self) -> dict[str, Any]:
        """The same values as nested maps, for expressions."""
        nested: dict[str, Any] = {}
        for dotted, value in self.values.items():
            head, mark, parameter = dotted.partition(".parameters.")  # a parameter's own name may hold dots
            *path, last = [*head.split("."), "parameters", parameter] if mark else dotted.split(".")
            place = nested
            for key in path:
                if not isinstance(place.get(key), dict):  # where a name is also the head of others, the others win
                    place[key] = {}
                place = place[key]
            if not isinstance(place.get(last), dict):
                place[last] = value
        return nested

    def extended(self, more: Mapping[str, str]) -> Scope:
        """Return a scope that knows `more` besides."""
        return Scope({**self.values, **more})


def paste(text: str, scope: Scope) -> str:
    """Replace the tags of one text, inner ones first."""
    if "{{" not in text:
        return text
    replaced = re.sub(_TAG, lambda match: _value(match, scope), text)
    if replaced != text and re.search(_NESTED, text):
        return re.sub(_TAG, lambda match: _value(match, scope), replaced)
    return replaced


def substitute(value: Any, scope: Scope) -> Any:
    """Replace the tags in all texts of a piece of manifest."""
    if isinstance(value, dict):
        return {key: substitute(item, scope) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, scope) for item in value]
    return paste(value, scope) if isinstance(value, str) else value


def tags(value: Any) -> Iterator[str]:
    """Return what stands between the braces of each tag, in all texts of a piece of manifest."""
    if isinstance(value, str):
        yield from (match[1].strip() for match in re.finditer(_TAG, value)) if "{{" in value else ()
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tags(item)


def _value(match: re.Match[str], scope: Scope) -> str:
    tag = match[1].strip()
    if not tag.startswith("="):
        return scope.values.get(tag, match[0])
    try:
        value = compile_expression(tag[1:].strip())(scope.names)
    except LanguageError:
        return match[0]
    return match[0] if value is None else go_text(value)
