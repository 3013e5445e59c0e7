"""The part of govaluate that a `when` needs.  Argo pastes values into it as text, so quotes decide what a word is.

Three traps are kept as they are in Argo: a string ends at either kind of quote; a run of signs is one operator, so
``a ==-1`` is an error; and two strings that both read as dates are compared as moments.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from workflows.local.expr import COMPARE, COMPUTE, go_text
from workflows.local.pratt import Evaluate, LanguageError, Parser, Token, constant

OPERATORS = {
    "||": 10, "&&": 20, "==": 30, "!=": 30, "<": 30, "<=": 30, ">": 30, ">=": 30, "=~": 30, "!~": 30, "in": 30,
    "+": 40, "-": 40, "*": 50, "/": 50, "%": 50, "**": 60,
}  # fmt: skip
_PREFIX = 70
_MOMENT = r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?)?"
_NEEDS = {"modifier": (float, "a number"), "comparator": (float, "a number"), "logical operator": (bool, "a bool")}


def holds(text: str) -> bool:
    """Tell whether a condition holds whose tags were replaced already; an empty one does.

    Raises `LanguageError` with Argo's message where it cannot be evaluated.
    """
    if not text:
        return True
    try:
        read = _compile(text)
    except LanguageError as error:
        hint = ' (hint: try wrapping the affected expression in quotes ("))' if "Invalid token" in str(error) else ""
        raise LanguageError(f"Invalid 'when' expression '{text}': {error}{hint}") from None
    try:
        value = read({})
    except LanguageError as error:
        raise LanguageError(f"Failed to evaluate 'when' expresion '{text}': {error}") from None
    if not isinstance(value, bool):
        raise LanguageError(f"Expected boolean evaluation for '{text}'. Got {go_text(value)}")
    return value


@lru_cache(maxsize=1024)
def _compile(text: str) -> Evaluate:
    return _When(text).parse()


class _When(Parser):
    TOKENS = r"""(?P<number>[\d.]+)
        | (?P<string>['"](?:[^'"\\]|\\.)*['"])
        | (?P<bracket>\[(?:[^\]\\]|\\.)*\])
        | (?P<name>[^\W\d_][\w.]*)
        | (?P<sign>[(),]|[^\w\s()\[\]'",]+)"""
    OPERATORS = {**OPERATORS, "IN": OPERATORS["in"]}

    def power(self, token: Token) -> int:
        if token.kind == "sign" and token.text not in OPERATORS and token.text not in ("(", ")", ",", "!", "~"):
            raise LanguageError(f"Invalid token: '{token.text}'")
        return super().power(token)

    def prefix(self, token: Token) -> Evaluate:
        if token.kind == "number":
            try:
                return constant(float(token.text))
            except ValueError:
                raise LanguageError(f"Unable to parse numeric value '{token.text}' to float64") from None
        if token.kind in ("string", "bracket"):
            text = re.sub(r"(?s)\\(.)", r"\1", token.text[1:-1])
            moment = _moment(text) if token.kind == "string" else None
            return constant(text if moment is None else moment)
        if token.kind == "name" and token.text.lower() != "in":
            if "." in token.text:
                raise LanguageError(f"'{token.text}' is a field access; wrap it in quotes")
            # a bare word is a boolean, else its own text, as Argo makes of govaluate's variables
            return constant({"true": True, "false": False}.get(token.text, token.text))
        if token.text == "(":
            items = self.listed(")")
            return items[0] if len(items) == 1 else lambda env: [item(env) for item in items]
        if token.text in ("!", "-"):
            value = self.expression(_PREFIX)
            if token.text == "!":
                return lambda env: not self.truth(value(env), "!")
            return lambda env: -_needs("modifier", "-", value(env))
        raise token.unexpected()

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        right, sign = self.expression(power), token.text.lower()
        if sign in ("&&", "||"):
            return self.logical(sign, left, right)
        return lambda env: _binary(sign, left(env), right(env))

    def truth(self, value: Any, sign: str) -> bool:
        return bool(_needs("logical operator", sign, value))


def _moment(text: str) -> float | None:
    if re.fullmatch(_MOMENT, text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return float(int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


def _needs(what: str, sign: str, value: Any) -> Any:
    kind, article = _NEEDS[what]
    if not isinstance(value, kind):
        raise LanguageError(f"Value '{go_text(value)}' cannot be used with the {what} '{sign}', it is not {article}")
    return value


def _equal(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


def _binary(sign: str, left: Any, right: Any) -> Any:
    texts = isinstance(left, str) + isinstance(right, str)
    try:
        if sign in ("==", "!="):
            return _equal(left, right) is (sign == "==")
        if sign in ("=~", "!~"):
            return bool(re.search(go_text(right), go_text(left))) is (sign == "=~")
        if sign == "in":
            return any(_equal(left, item) for item in (right if isinstance(right, list) else [right]))
        if sign == "+" and texts:
            return go_text(left) + go_text(right)
        if sign in COMPARE and texts == 2:
            return COMPARE[sign](left, right)
        what = "comparator" if sign in COMPARE else "modifier"
        return {**COMPARE, **COMPUTE}[sign](_needs(what, sign, left), _needs(what, sign, right))
    except LanguageError:
        raise
    except (ArithmeticError, ValueError, re.error):
        raise LanguageError(f"{go_text(left)} {sign} {go_text(right)} has no value") from None
