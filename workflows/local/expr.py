"""The part of expr-lang that Argo's ``{{=...}}`` and ``retryStrategy.expression`` need.

`compile_expression` refuses operators and functions that are not listed here, before anything runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from workflows.local.pratt import Evaluate, LanguageError, Parser, Token, Undefined, constant, tokenise

OPERATORS: dict[str, tuple[int, int]] = {
    "?": (5, 4), "or": (10, 10), "||": (10, 10), "and": (15, 15), "&&": (15, 15),
    "==": (20, 20), "!=": (20, 20), "<": (20, 20), ">": (20, 20), "<=": (20, 20), ">=": (20, 20),
    "in": (20, 20), "contains": (20, 20), "startsWith": (20, 20), "endsWith": (20, 20), "matches": (20, 20),
    "+": (30, 30), "-": (30, 30), "*": (60, 60), "/": (60, 60), "%": (60, 60), "**": (100, 99), "^": (100, 99),
    "??": (500, 500), ".": (1000, 1000), "?.": (1000, 1000), "[": (1000, 1000),
}  # fmt: skip
"""Binding powers as in expr-lang 1.17; ``**`` and ``?:`` join from the right."""
UNARY = {"not": 50, "!": 50, "-": 90, "+": 90}
_NEGATABLE = ("in", "contains", "startsWith", "endsWith", "matches")

_TOKENS = re.compile(
    r"""(?P<number>\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)
      | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)
      | (?P<name>[A-Za-z_$][\w$]*)
      | (?P<sign>\*\*|\?\?|\?\.|&&|\|\||==|!=|<=|>=|[-+*/%^<>!?:.,()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
_LITERALS = {"true": True, "false": False, "nil": None}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}


def _number(value: Any, what: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LanguageError(f"{what} needs a number, not {go_text(value)!r}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise LanguageError(f"{what} needs a text, not {go_text(value)!r}")
    return value


def _boolean(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise LanguageError(f"{what} needs true or false, not {go_text(value)!r}")
    return value


def _as_int(value: Any) -> int:
    try:
        if isinstance(value, str):
            if not re.fullmatch(r"[+-]?\d+", value):
                raise ValueError
            return int(value)
        return int(_number(value, "asInt"))
    except (ValueError, OverflowError):
        raise LanguageError(f"asInt: {value!r} is not a whole number") from None


def _as_float(value: Any) -> float:
    try:
        return float(value if isinstance(value, str) else _number(value, "asFloat"))
    except ValueError:
        raise LanguageError(f"asFloat: {value!r} is not a number") from None


def _extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        flat = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        return choose(flat, key=lambda value: _number(value, choose.__name__))

    return call


def _length(value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise LanguageError(f"len needs a text, a list or a map, not {go_text(value)!r}")
    return len(value)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "asInt": _as_int,
    "asFloat": _as_float,
    "int": _as_int,
    "float": _as_float,
    "string": lambda value: go_text(value),
    "min": _extreme(min),
    "max": _extreme(max),
    "abs": lambda value: abs(_number(value, "abs")),
    "len": _length,
    "lower": lambda text: _text(text, "lower").lower(),
    "upper": lambda text: _text(text, "upper").upper(),
    "trim": lambda text: _text(text, "trim").strip(),
    "split": lambda text, by: _text(text, "split").split(_text(by, "split")),
    "join": lambda items, by="": _text(by, "join").join(_text(item, "join") for item in items),
    "toJson": lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False),
    "sprig.trim": lambda text: _text(text, "sprig.trim").strip(),
    "sprig.lower": lambda text: _text(text, "sprig.lower").lower(),
    "sprig.upper": lambda text: _text(text, "sprig.upper").upper(),
    "sprig.trimPrefix": lambda prefix, text: _text(text, "sprig.trimPrefix").removeprefix(prefix),
    "sprig.trimSuffix": lambda suffix, text: _text(text, "sprig.trimSuffix").removesuffix(suffix),
    "sprig.replace": lambda old, new, text: _text(text, "sprig.replace").replace(
        _text(old, "sprig.replace"), _text(new, "sprig.replace")
    ),
    "sprig.default": lambda default, value: value if value not in (None, "", 0, False) else default,
}


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _within(item: Any, box: Any) -> bool:
    if isinstance(box, list):
        return any(_equal(item, other) for other in box)
    if isinstance(box, dict):
        return item in box
    raise LanguageError(f"in needs a list or a map, not {go_text(box)!r}")


def _order(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def call(left: Any, right: Any) -> bool:
        if isinstance(left, str) and isinstance(right, str):
            return compare(left, right)
        return compare(_number(left, "a comparison"), _number(right, "a comparison"))

    return call


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, str):
        return left + right
    return _number(left, "+") + _number(right, "+")


def _divide(left: Any, right: Any) -> float:
    try:
        return float(_number(left, "/") / _number(right, "/"))
    except ZeroDivisionError:
        raise LanguageError("division by zero") from None


def _remainder(left: Any, right: Any) -> int:
    if not (isinstance(left, int) and isinstance(right, int) and right):
        raise LanguageError("% needs two whole numbers, the second not zero")
    sign = -1 if left < 0 else 1  # as in Go, the remainder has the sign of the dividend
    return sign * (abs(left) % abs(right))


def _power(left: Any, right: Any) -> float:
    try:
        return float(float(_number(left, "**")) ** _number(right, "**"))
    except (OverflowError, ZeroDivisionError, TypeError):
        raise LanguageError(f"{left} ** {right} has no value") from None


def _matches(text: Any, pattern: Any) -> bool:
    try:
        return re.search(_text(pattern, "matches"), _text(text, "matches")) is not None
    except re.error as error:
        raise LanguageError(f"matches: {error}") from None


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "==": _equal,
    "!=": lambda a, b: not _equal(a, b),
    "<": _order(lambda a, b: a < b),
    ">": _order(lambda a, b: a > b),
    "<=": _order(lambda a, b: a <= b),
    ">=": _order(lambda a, b: a >= b),
    "in": _within,
    "contains": lambda a, b: _text(b, "contains") in _text(a, "contains"),
    "startsWith": lambda a, b: _text(a, "startsWith").startswith(_text(b, "startsWith")),
    "endsWith": lambda a, b: _text(a, "endsWith").endswith(_text(b, "endsWith")),
    "matches": _matches,
    "+": _add,
    "-": lambda a, b: _number(a, "-") - _number(b, "-"),
    "*": lambda a, b: _number(a, "*") * _number(b, "*"),
    "/": _divide,
    "%": _remainder,
    "**": _power,
    "^": _power,
}


class _Expr(Parser):
    def powers(self, token: Token) -> tuple[int, int] | None:
        if token.kind not in ("sign", "name"):
            return None
        if token.text == "not" and self.peek(1).text in _NEGATABLE:
            return OPERATORS["in"]
        return OPERATORS.get(token.text)

    def prefix(self, token: Token) -> Evaluate:
        if token.kind == "number":
            digits = token.text.replace("_", "")
            number: int | float = int(digits) if digits.isdigit() else float(digits)
            return constant(number)
        if token.kind == "string":
            text = _unquote(token.text)
            return constant(text)
        if token.text in UNARY:
            return self._unary(token.text, self.expression(UNARY[token.text]))
        if token.kind == "name":
            return self._name(token)
        if token.text == "(":
            inner = self.expression(0)
            self.take(")")
            return inner
        if token.text == "[":
            items = self._arguments("]")
            return lambda env: [item(env) for item in items]
        raise self.unexpected(token)

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        sign = token.text
        if sign in (".", "?."):
            name = self.take().text
            return lambda env: _member(left(env), name, optional=sign == "?.")
        if sign == "[":
            index = self.expression(0)
            self.take("]")
            return lambda env: _member(left(env), index(env), optional=False)
        if sign == "?":
            then = self.expression(0)
            self.take(":")
            other = self.expression(power)
            return lambda env: then(env) if _boolean(left(env), "?:") else other(env)
        if sign == "not":
            return self._unary("!", self.infix(left, self.take(), power))
        right = self.expression(power)
        if sign in ("&&", "and"):
            return lambda env: _boolean(left(env), "&&") and _boolean(right(env), "&&")
        if sign in ("||", "or"):
            return lambda env: _boolean(left(env), "||") or _boolean(right(env), "||")
        if sign == "??":
            return lambda env: right(env) if (value := left(env)) is None else value
        apply = _BINARY[sign]
        return lambda env: apply(left(env), right(env))

    def _unary(self, sign: str, value: Evaluate) -> Evaluate:
        if sign in ("!", "not"):
            return lambda env: not _boolean(value(env), "!")
        if sign == "-":
            return lambda env: -_number(value(env), "-")
        return lambda env: _number(value(env), "+")

    def _name(self, token: Token) -> Evaluate:
        name = token.text
        if name in _LITERALS:
            return constant(_LITERALS[name])
        if name == "sprig":
            self.take(".")
            name = f"sprig.{self.take().text}"
        if self.accept("("):
            if name not in FUNCTIONS:
                raise LanguageError(f"unknown function {name}")
            function, arguments = FUNCTIONS[name], self._arguments(")")
            return lambda env: _call(name, function, [argument(env) for argument in arguments])
        return lambda env: _variable(env, name)

    def _arguments(self, end: str) -> list[Evaluate]:
        items: list[Evaluate] = []
        while not self.accept(end):
            if items:
                self.take(",")
            items.append(self.expression(0))
        return items


def _variable(env: Mapping[str, Any], name: str) -> Any:
    if name not in env:
        raise Undefined(f"unknown name {name}")
    return env[name]


def _member(value: Any, key: Any, *, optional: bool) -> Any:
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
        return value[key]
    if value is None:
        if optional:
            return None
        raise Undefined(f"cannot fetch {key} from nil")
    raise LanguageError(f"cannot fetch {key} from {go_text(value)!r}")


def _call(name: str, function: Callable[..., Any], values: list[Any]) -> Any:
    try:
        return function(*values)
    except (TypeError, ValueError) as error:
        if isinstance(error, LanguageError):
            raise
        raise LanguageError(f"{name}: wrong arguments") from None


def _unquote(text: str) -> str:
    if text[0] == "`":
        return text[1:-1]
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), text[1:-1], flags=re.DOTALL)


def go_text(value: Any) -> str:
    """Write a value as Argo pastes it: text as it is, 2.0 as ``2``, lists and maps as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "<nil>"}[value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=1024)
def compile_expression(text: str) -> Evaluate:
    """Read an expression; call the answer with a map of names to get its value.

    Raises
    ------
    LanguageError
        Syntax, or an operator or function that is not supported; when called, values that do not fit.
    """
    return _Expr(tokenise(text, _TOKENS)).parse()
