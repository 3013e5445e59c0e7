"""A task's `depends`: booleans over how other tasks ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

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
    """From the set of results of each task named."""
    bare: dict[str, frozenset[str]] = field(default_factory=dict)
    """What a task's name alone stands for, where that is not BARE (`continueOn`)."""


class _Depends(Parser):
    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.tasks: dict[str, None] = {}
        self.bare: dict[str, frozenset[str]] = {}

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
        if result:
            return lambda env: result in env[task]
        return lambda env: bool(self.bare.get(task, frozenset(BARE)) & env[task])

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        right = self.expression(power)
        if token.text == "&&":
            return lambda env: left(env) and right(env)
        return lambda env: left(env) or right(env)


def compile_depends(text: str) -> Depends:
    """Read a condition.

    Raises
    ------
    LanguageError
        Syntax, or a result that does not exist.
    """
    parser = _Depends(tokenise(text, _TOKENS))
    condition = parser.parse()
    return Depends(tuple(parser.tasks), condition, parser.bare)


def results(phase: str, children: Sequence[str] = ()) -> frozenset[str]:
    """Return which results hold for a task that ended in `phase`; `children` are the phases of a fan-out's tasks."""
    found = {{"Error": "Errored"}.get(phase, phase)}
    if "Succeeded" in children:
        found.add("AnySucceeded")
    if children and all(child == "Failed" for child in children):
        found.add("AllFailed")
    return frozenset(found)
