"""A task's `depends`: booleans over how other tasks ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from workflows.local.pratt import Evaluate, LanguageError, Parser, Token, tokenise

RESULTS = ("Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned", "AnySucceeded", "AllFailed")
BARE = ("Succeeded", "Skipped", "Daemoned")
"""A name alone: dependents of a skipped task run, dependents of an omitted one do not."""

_TOKENS = re.compile(r"(?P<name>[A-Za-z0-9_][\w-]*(?:\.[A-Za-z]+)?)|(?P<sign>&&|\|\||[!()])")
_POWERS = {"||": (1, 1), "&&": (2, 2)}


@dataclass(frozen=True)
class Depends:
    """The tasks that must have ended, in the order they are named, and the condition on how."""

    tasks: tuple[str, ...]
    holds: Evaluate


class _Depends(Parser):
    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.tasks: dict[str, None] = {}

    def powers(self, token: Token) -> tuple[int, int] | None:
        return _POWERS.get(token.text)

    def prefix(self, token: Token) -> Evaluate:
        if token.text == "!":
            value = self.expression(3)
            return lambda env: not value(env)
        if token.text == "(":
            value = self.expression(0)
            self.take(")")
            return value
        if token.kind != "name":
            raise self.unexpected(token)
        task, _, result = token.text.partition(".")
        if result and result not in RESULTS:
            raise LanguageError(f"{result} is none of {', '.join(RESULTS)}")
        self.tasks[task] = None
        wanted = frozenset((result,) if result else BARE)
        return lambda env: bool(wanted & env[task])

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        right = self.expression(power)
        if token.text == "&&":
            return lambda env: left(env) and right(env)
        return lambda env: left(env) or right(env)


@lru_cache(maxsize=1024)
def compile_depends(text: str) -> Depends:
    """Read a condition; its function takes the set of results of each task named.

    Raises
    ------
    LanguageError
        Syntax, or a result that does not exist.
    """
    parser = _Depends(tokenise(text, _TOKENS))
    condition = parser.parse()
    return Depends(tuple(parser.tasks), condition)


def results(phase: str, children: Mapping[str, int] | None = None) -> frozenset[str]:
    """Return which results hold for a task that ended in `phase`; `children` counts a fan-out's tasks by phase."""
    found = {"Error": "Errored"}.get(phase, phase)
    counts = children or {}
    extra = {
        *(["AnySucceeded"] if counts.get("Succeeded") else []),
        *(["AllFailed"] if counts and counts.get("Failed", 0) == sum(counts.values()) else []),
    }
    return frozenset({found, *extra})
