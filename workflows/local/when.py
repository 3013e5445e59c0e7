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


def _needs(kind: type, what: str, article: str) -> Callable[[Any, str], Any]:
    def check(value: Any, sign: str) -> Any:
        if not isinstance(value, kind):
            raise LanguageError(
                f"Value '{go_text(value)}' cannot be used with the {what} '{sign}', it is not {article}"
            )
        return value

    return check


_number = _needs(float, "modifier", "a number")
_comparable = _needs(float, "comparator", "a number")
_logical = _needs(bool, "logical operator", "a bool")


def _compare(sign: str, compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def apply(left: Any, right: Any) -> bool:
        if isinstance(left, str) and isinstance(right, str):
            return compare(left, right)
        return compare(_comparable(left, sign), _comparable(right, sign))

    return apply


def _arithmetic(sign: str, compute: Callable[[float, float], float]) -> Callable[[Any, Any], float]:
    def apply(left: Any, right: Any) -> float:
        first, second = _number(left, sign), _number(right, sign)
        try:
            return compute(first, second)
        except (ArithmeticError, ValueError):
            raise LanguageError(f"{go_text(left)} {sign} {go_text(right)} has no value") from None

    return apply


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) or isinstance(right, str):
        return go_text(left) + go_text(right)
    return _number(left, "+") + _number(right, "+")


def _regex(left: Any, right: Any) -> bool:
    try:
        return re.search(go_text(right), go_text(left)) is not None
    except re.error as error:
        raise LanguageError(f"Unable to compile regexp pattern '{right}': {error}") from None


def _equal(left: Any, right: Any) -> bool:
    return type(left) is type(right) and bool(left == right)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "==": _equal,
    "!=": lambda a, b: not _equal(a, b),
    "<": _compare("<", lambda a, b: a < b),
    "<=": _compare("<=", lambda a, b: a <= b),
    ">": _compare(">", lambda a, b: a > b),
    ">=": _compare(">=", lambda a, b: a >= b),
    "=~": _regex,
    "!~": lambda a, b: not _regex(a, b),
    "in": lambda a, b: any(_equal(a, item) for item in (b if isinstance(b, list) else [b])),
    "+": _add,
    "-": _arithmetic("-", lambda a, b: a - b),
    "*": _arithmetic("*", lambda a, b: a * b),
    "/": _arithmetic("/", lambda a, b: a / b),
    "%": _arithmetic("%", math.fmod),
    "**": _arithmetic("**", math.pow),
}


class _When(Parser):
    def powers(self, token: Token) -> tuple[int, int] | None:
        if token.kind == "sign" and token.text not in OPERATORS and token.text not in ("(", ")", ",", "!", "~"):
            raise LanguageError(f"Invalid token: '{token.text}'")
        return (
            OPERATORS.get(token.text.lower() if token.text == "IN" else token.text) if token.kind != "string" else None
        )

    def prefix(self, token: Token) -> Evaluate:
        if token.kind == "number":
            try:
                number = float(token.text)
            except ValueError:
                raise LanguageError(f"Unable to parse numeric value '{token.text}' to float64") from None
            return constant(number)
        if token.kind in ("string", "bracket"):
            text = re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
            moment = _moment(text) if token.kind == "string" else None
            return constant(text if moment is None else moment)
        if token.kind == "name" and token.text.lower() != "in":
            return self._word(token.text)
        if token.text == "(":
            items = [self.expression(0)]
            while self.accept(","):
                items.append(self.expression(0))
            self.take(")")
            return items[0] if len(items) == 1 else lambda env: [item(env) for item in items]
        if token.text == "!":
            value = self.expression(_PREFIX)
            return lambda env: not _logical(value(env), "!")
        if token.text == "-":
            value = self.expression(_PREFIX)
            return lambda env: -_number(value(env), "-")
        raise self.unexpected(token)

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        right = self.expression(power)
        sign = token.text.lower()
        if sign == "&&":
            return lambda env: _logical(left(env), "&&") and _logical(right(env), "&&")
        if sign == "||":
            return lambda env: _logical(left(env), "||") or _logical(right(env), "||")
        apply = _BINARY[sign]
        return lambda env: apply(left(env), right(env))

    @staticmethod
    def _word(text: str) -> Evaluate:
        """Read a bare word: a boolean, else its own text, as Argo makes of govaluate's variables."""
        if "." in text:
            raise LanguageError(f"'{text}' is a field access; wrap it in quotes")
        return constant({"true": True, "false": False}.get(text, text))


def _moment(text: str) -> float | None:
    if not _MOMENT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return float(int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()))


@lru_cache(maxsize=1024)
def compile_when(text: str) -> Evaluate:
    """Read a condition whose tags were replaced already; call the answer with an empty map for its value.

    Raises
    ------
    LanguageError
        Syntax; when called, values that do not fit.
    """
    return _When(tokenise(text, _TOKENS)).parse()


def holds(text: str) -> bool:
    """Tell whether a task's condition holds; an empty one does.

    Raises
    ------
    LanguageError
        With Argo's message of a condition that cannot be evaluated.
    """
    if not text:
        return True
    try:
        read = compile_when(text)
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
