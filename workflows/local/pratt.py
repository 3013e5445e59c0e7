"""Tokens and precedence climbing, shared by the three small languages (`expr`, `when`, `depends`).

A language gives its tokens, its operators' powers, how an operand begins (`prefix`) and how an operator joins two
(`infix`).  The parser answers with a function from an environment to a value; nothing is handed to Python's `eval`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Evaluate = Callable[[Mapping[str, Any]], Any]


class LanguageError(ValueError):
    """A text is not in the language, or its values do not fit its operators."""


class Undefined(LanguageError):  # noqa: N818  named for what it tells
    """A name has no value yet."""


class Token(NamedTuple):
    """One word of a text and where it begins."""

    kind: str
    text: str
    at: int

    def unexpected(self) -> LanguageError:
        """Return the error of this token in the wrong place."""
        return LanguageError("unexpected end" if self.kind == "end" else f"unexpected {self.text!r} at {self.at}")


def constant(value: Any) -> Evaluate:
    """Return what has the same value everywhere."""
    return lambda _: value


class Parser:
    """Reads one text.  Of two operators, the one of greater power gets the operand between them."""

    TOKENS = ""  # a pattern whose named groups are the kinds of tokens
    OPERATORS: Mapping[str, int] = {}
    FROM_THE_RIGHT: tuple[str, ...] = ()

    def __init__(self, text: str) -> None:
        self._tokens: list[Token] = []
        self._at = 0
        for found in re.finditer(rf"(?P<blank>\s+)|{self.TOKENS}|(?P<none>.)", text, re.VERBOSE | re.DOTALL):
            token = Token(found.lastgroup or "", found[0], found.start())
            if token.kind == "none":
                raise token.unexpected()
            self._tokens += [token] if token.kind != "blank" else []
        self._tokens.append(Token("end", "", len(text)))

    def parse(self) -> Evaluate:
        """Read the whole text."""
        value = self.expression()
        if self.peek().kind != "end":
            raise self.peek().unexpected()
        return value

    def expression(self, floor: int = 0) -> Evaluate:
        """Read operands and operators of a greater power than `floor`."""
        left = self.prefix(self.take())
        while (power := self.power(self.peek())) > floor:
            token = self.take()
            left = self.infix(left, token, power - (token.text in self.FROM_THE_RIGHT))
        return left

    def prefix(self, token: Token) -> Evaluate:
        """Read the operand that begins with `token`."""
        raise NotImplementedError

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        """Join `left` with what follows the operator `token`."""
        raise NotImplementedError

    def power(self, token: Token) -> int:
        """Return the power of an operator, 0 where `token` is none."""
        return self.OPERATORS.get(token.text, 0) if token.kind in ("sign", "name") else 0

    def logical(self, sign: str, left: Evaluate, right: Evaluate) -> Evaluate:
        """Join by ``&&`` or ``||``; what is settled by the left is not asked of the right."""
        settled = sign == "||"
        return lambda env: settled if self.truth(left(env), sign) is settled else self.truth(right(env), sign)

    def truth(self, value: Any, sign: str) -> bool:  # noqa: ARG002  languages with other values say which operator
        """Return an operand of a logical operator."""
        return bool(value)

    def listed(self, end: str) -> list[Evaluate]:
        """Read what stands between commas, up to a closing sign."""
        items: list[Evaluate] = []
        while self.peek().kind == "string" or self.peek().text != end:
            if items:
                self.take(",")
            items.append(self.expression())
        self.take()
        return items

    def group(self, end: str) -> Evaluate:
        """Read up to a closing sign, and take that."""
        value = self.expression()
        self.take(end)
        return value

    def peek(self, ahead: int = 0) -> Token:
        """Return a coming token without taking it."""
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)]

    def take(self, text: str | None = None) -> Token:
        """Take the next token, which must be the sign or name `text` where that is given."""
        token = self.peek()
        if text is not None and (token.text != text or token.kind == "string"):
            raise token.unexpected()
        self._at += 1
        return token
