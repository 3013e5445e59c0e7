"""Tokens and precedence climbing, shared by the three small languages (`expr`, `when`, `depends`).

A language gives a table of tokens, how an operand begins (`prefix`) and how an operator joins two operands (`infix`).
The parser answers with a function from an environment to a value; nothing is ever handed to Python's own `eval`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Evaluate = Callable[[Mapping[str, Any]], Any]


class LanguageError(ValueError):
    """A text is not in the language, or its values do not fit its operators."""


class Undefined(LanguageError):  # noqa: N818  named for what it tells
    """A name has no value yet."""


def constant(value: Any) -> Evaluate:
    """Return what has the same value everywhere."""
    return lambda _: value


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a text and where it begins."""

    kind: str
    text: str
    at: int


def tokenise(text: str, pattern: re.Pattern[str]) -> list[Token]:
    """Split `text`; each named group of `pattern` is a kind of token, blanks between them are dropped.

    Raises
    ------
    LanguageError
        At the first character that begins no token.
    """
    tokens, at = [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        match = pattern.match(text, at)
        if match is None or match.end() == at:
            raise LanguageError(f"unexpected {text[at]!r} at {at}")
        tokens.append(Token(match.lastgroup or "", match[0], at))
        at = match.end()
    return [*tokens, Token("end", "", len(text))]


class Parser:
    """Reads one text.  An operator has two binding powers, to its left and right; the stronger one gets the operand."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def parse(self) -> Evaluate:
        """Read the whole text."""
        value = self.expression(0)
        if self.peek().kind != "end":
            raise self.unexpected(self.peek())
        return value

    def expression(self, floor: int) -> Evaluate:
        """Read operands and operators that bind stronger than `floor`."""
        left = self.prefix(self.take())
        while (powers := self.powers(self.peek())) is not None and powers[0] > floor:
            left = self.infix(left, self.take(), powers[1])
        return left

    @abstractmethod
    def prefix(self, token: Token) -> Evaluate:
        """Read the operand that begins with `token`."""

    @abstractmethod
    def powers(self, token: Token) -> tuple[int, int] | None:
        """Return the binding powers of an operator, None where `token` is none."""

    @abstractmethod
    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        """Join `left` with what follows the operator `token`."""

    def peek(self, ahead: int = 0) -> Token:
        """Return a coming token without taking it."""
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)]

    def take(self, *texts: str) -> Token:
        """Take the next token, which must be one of `texts` when some are given."""
        token = self.peek()
        if texts and (token.text not in texts or token.kind in ("string", "end")):
            raise self.unexpected(token)
        self._at += 1
        return token

    def accept(self, text: str) -> bool:
        """Take the next token if it is `text`."""
        found = self.peek().text == text and self.peek().kind != "string"
        self._at += found
        return found

    @staticmethod
    def unexpected(token: Token) -> LanguageError:
        """Return the error of a token in the wrong place."""
        return LanguageError("unexpected end" if token.kind == "end" else f"unexpected {token.text!r} at {token.at}")
