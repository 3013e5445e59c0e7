"""A task's `depends`: booleans over how other tasks ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workflows.local.pratt import Evaluate, LanguageError, Parser, Token

RESULTS = ("Succeeded", "Failed", "Errored", "Skipped", "Omitted", "Daemoned", "AnySucceeded", "AllFailed")
BARE = {"Succeeded", "Skipped", "Daemoned"}  # a name alone: dependents of a skipped task run, of an omitted one not


class Depends(NamedTuple):
    """The tasks that must have ended, in the order they are named, and the condition on the set of results of each."""

    tasks: tuple[str, ...]
    holds: Evaluate


def compile_depends(text: str) -> Depends:
    """Read a condition.  Raises `LanguageError` for its syntax, or a result that does not exist."""
    parser = _Depends(text)
    condition = parser.parse()
    return Depends(tuple(parser.tasks), condition)


def results(phase: str, children: Sequence[str] = ()) -> set[str]:
    """Return which results hold for a task that ended in `phase`; `children` are the phases of a fan-out's tasks."""
    found = {{"Error": "Errored"}.get(phase, phase)}
    found |= {"AnySucceeded"} if "Succeeded" in children else set()
    return found | ({"AllFailed"} if children and set(children) == {"Failed"} else set())


class _Depends(Parser):
    TOKENS = r"(?P<name>[A-Za-z0-9_][\w-]*(?:\.[A-Za-z]+)?)|(?P<sign>&&|\|\||[!()])"
    OPERATORS = {"||": 1, "&&": 2}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.tasks: dict[str, None] = {}

    def prefix(self, token: Token) -> Evaluate:
        if token.text == "!":
            value = self.expression(max(self.OPERATORS.values()))
            return lambda env: not value(env)
        if token.text == "(":
            return self.group(")")
        if token.kind != "name":
            raise token.unexpected()
        task, _, result = token.text.partition(".")
        if result and result not in RESULTS:
            raise LanguageError(f"{result} is none of {', '.join(RESULTS)}")
        self.tasks[task] = None
        return lambda env: not env[task].isdisjoint({result} if result else BARE)

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        return self.logical(token.text, left, self.expression(power))
