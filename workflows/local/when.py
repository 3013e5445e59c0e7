"""The part of govaluate that a `when` needs.  Argo pastes values into it as text, so quotes decide what a word is.

Three traps are kept as they are in Argo: a string ends at either kind of quote; a run of signs is one operator, so
``a ==-1`` is an error; and two strings that both read as dates are compared as moments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from workflows.local.expr import go_text
from workflows.local.pratt import Evaluate, LanguageError, Parser, Token, constant, tokenise

OPERATORS: dict[str, tuple[int, int]] = {
    "||": (10, 10), "&&": (20, 20),
    "==": (30, 30), "!=": (30, 30), "<": (30, 30), "<=": (30, 30), ">": (30, 30), ">=": (30, 30),
    "=~": (30, 30), "!~": (30, 30), "in": (30, 30),
    "+": (40, 40), "-": (40, 40), "*": (50, 50), "/": (50, 50), "%": (50, 50), "**": (60, 60),
}  # fmt: skip
_PREFIX = 70
_TOKENS = re.compile(
    r"""(?P<number>[\d.]+)
      | (?P<string>['"](?:[^'"\\]|\\.)*['"])
      | (?P<bracket>\[(?:[^\]\\]|\\.)*\])
      | (?P<name>[^\W\d_][\w.]*)
      | (?P<sign>[(),]|[^\w\s()\[\]'",]+)""",
    re.VERBOSE | re.DOTALL,
)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?)?")
_NEEDS = {"modifier": (float, "a number"), "comparator": (float, "a number"), "logical operator": (bool, "a bool")}


def _equal(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


_ANY: dict[str, Callable[[Any, Any], Any]] = {
    "==": _equal,
    "!=": lambda a, b: not _equal(a, b),
    "=~": lambda a, b: re.search(go_text(b), go_text(a)) is not None,
    "!~": lambda a, b: re.search(go_text(b), go_text(a)) is None,
    "in": lambda a, b: any(_equal(a, item) for item in (b if isinstance(b, list) else [b])),
}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}  # fmt: skip
_COMPUTE: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
    "%": math.fmod, "**": math.pow,
}  # fmt: skip


def _needs(what: str, sign: str, value: Any) -> Any:
    kind, article = _NEEDS[what]
    if not isinstance(value, kind):
        raise LanguageError(f"Value '{go_text(value)}' cannot be used with the {what} '{sign}', it is not {article}")
    return value


def _binary(sign: str, left: Any, right: Any) -> Any:
    texts = isinstance(left, str) + isinstance(right, str)
    try:
        if sign in _ANY:
            return _ANY[sign](left, right)
        if sign == "+" and texts:
            return go_text(left) + go_text(right)
        if sign in _COMPARE:
            values = [left, right] if texts == 2 else [_needs("comparator", sign, value) for value in (left, right)]
            return _COMPARE[sign](*values)
        return _COMPUTE[sign](_needs("modifier", sign, left), _needs("modifier", sign, right))
    except LanguageError:
        raise
    except (ArithmeticError, ValueError, re.error):
        raise LanguageError(f"{go_text(left)} {sign} {go_text(right)} has no value") from None


class _When(Parser):
    def powers(self, token: Token) -> tuple[int, int] | None:
        if token.kind == "sign" and token.text not in OPERATORS and token.text not in ("(", ")", ",", "!", "~"):
            raise LanguageError(f"Invalid token: '{token.text}'")
        sign = "in" if token.text == "IN" else token.text
        return OPERATORS.get(sign) if token.kind != "string" else None

    def prefix(self, token: Token) -> Evaluate:
        if token.kind == "number":
            try:
                return constant(float(token.text))
            except ValueError:
                raise LanguageError(f"Unable to parse numeric value '{token.text}' to float64") from None
        if token.kind in ("string", "bracket"):
            text = re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
            moment = _moment(text) if token.kind == "string" else None
            return constant(text if moment is None else moment)
        if token.kind == "name" and token.text.lower() != "in":
            if "." in token.text:
                raise LanguageError(f"'{token.text}' is a field access; wrap it in quotes")
            # a bare word is a boolean, else its own text, as Argo makes of govaluate's variables
            return constant({"true": True, "false": False}.get(token.text, token.text))
        if token.text == "(":
            items = [self.expression(0)]
            while self.accept(","):
                items.append(self.expression(0))
            self.take(")")
            return items[0] if len(items) == 1 else lambda env: [item(env) for item in items]
        if token.text in ("!", "-"):
            value = self.expression(_PREFIX)
            if token.text == "!":
                return lambda env: not _needs("logical operator", "!", value(env))
            return lambda env: -_needs("modifier", "-", value(env))
        raise self.unexpected(token)

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        right = self.expression(power)
        sign, logical = token.text.lower(), "logical operator"
        if sign == "&&":
            return lambda env: _needs(logical, sign, left(env)) and _needs(logical, sign, right(env))
        if sign == "||":
            return lambda env: _needs(logical, sign, left(env)) or _needs(logical, sign, right(env))
        return lambda env: _binary(sign, left(env), right(env))


def _moment(text: str) -> float | None:
    if not _MOMENT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return float(int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


@lru_cache(maxsize=1024)
def _compile(text: str) -> Evaluate:
    return _When(tokenise(text, _TOKENS)).parse()


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
