"""The part of expr-lang that Argo's ``{{=...}}`` and ``retryStrategy.expression`` need.

`compile_expression` refuses operators and functions that are not listed here, before anything runs.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
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
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "t": ("a text", lambda value: isinstance(value, str)),
    "n": ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    "i": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "b": ("true or false", lambda value: isinstance(value, bool)),
    "l": ("a list", lambda value: isinstance(value, list)),
    "c": ("a text, a list or a map", lambda value: isinstance(value, str | list | dict)),
    "m": ("a list or a map", lambda value: isinstance(value, list | dict)),
    "a": ("anything", lambda _: True),
}
"""Kinds of operands and arguments, by the letters of the tables below; ``*`` repeats the letter before it."""


def _whole(value: Any) -> int:
    if isinstance(value, str) and not re.fullmatch(r"[+-]?\d+", value):
        raise LanguageError(f"asInt: {value!r} is not a whole number")
    return int(value)


def _extreme(choose: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        items = values[0] if len(values) == 1 and isinstance(values[0], list) else values
        return choose([_of_kind("n", value, choose.__name__) for value in items])

    return call


FUNCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    "asInt": ("a", _whole),
    "asFloat": ("a", float),
    "int": ("a", _whole),
    "float": ("a", float),
    "string": ("a", lambda value: go_text(value)),
    "min": ("a*", _extreme(min)),
    "max": ("a*", _extreme(max)),
    "abs": ("n", abs),
    "len": ("c", len),
    "lower": ("t", str.lower),
    "upper": ("t", str.upper),
    "trim": ("t", str.strip),
    "split": ("tt", str.split),
    "join": ("lt*", lambda items, by="": by.join(_of_kind("t", item, "join") for item in items)),
    "toJson": ("a", lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False)),
    "sprig.trim": ("t", str.strip),
    "sprig.lower": ("t", str.lower),
    "sprig.upper": ("t", str.upper),
    "sprig.trimPrefix": ("tt", lambda prefix, text: text.removeprefix(prefix)),
    "sprig.trimSuffix": ("tt", lambda suffix, text: text.removesuffix(suffix)),
    "sprig.replace": ("ttt", lambda old, new, text: text.replace(old, new)),
    "sprig.default": ("aa", lambda default, value: value if value not in (None, "", 0, False) else default),
}


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _within(item: Any, box: Any) -> bool:
    return any(_equal(item, other) for other in box) if isinstance(box, list) else item in box


def _texts_or(kinds: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Apply to two texts; else to what `kinds` says."""

    def call(left: Any, right: Any) -> Any:
        if isinstance(left, str) and isinstance(right, str):
            return function(left, right)
        return _apply("an operator", kinds, function, [left, right])

    return call


_BINARY: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "==": ("aa", _equal),
    "!=": ("aa", lambda a, b: not _equal(a, b)),
    "<": ("aa", _texts_or("nn", lambda a, b: a < b)),
    ">": ("aa", _texts_or("nn", lambda a, b: a > b)),
    "<=": ("aa", _texts_or("nn", lambda a, b: a <= b)),
    ">=": ("aa", _texts_or("nn", lambda a, b: a >= b)),
    "in": ("am", _within),
    "contains": ("tt", lambda a, b: b in a),
    "startsWith": ("tt", str.startswith),
    "endsWith": ("tt", str.endswith),
    "matches": ("tt", lambda text, pattern: re.search(pattern, text) is not None),
    "+": ("aa", _texts_or("nn", lambda a, b: a + b)),
    "-": ("nn", lambda a, b: a - b),
    "*": ("nn", lambda a, b: a * b),
    "/": ("nn", lambda a, b: float(a / b)),
    "%": ("ii", lambda a, b: int(math.copysign(1, a)) * (abs(a) % abs(b))),  # as in Go, with the dividend's sign
    "**": ("nn", lambda a, b: float(float(a) ** b)),
    "^": ("nn", lambda a, b: float(float(a) ** b)),
}


def _of_kind(kind: str, value: Any, what: str) -> Any:
    name, fits = _KINDS[kind]
    if not fits(value):
        raise LanguageError(f"{what} needs {name}, not {go_text(value)!r}")
    return value


def _apply(name: str, kinds: str, function: Callable[..., Any], values: Sequence[Any]) -> Any:
    last = kinds.rstrip("*")[-1:] if kinds.endswith("*") else ""
    for kind, value in zip(kinds.rstrip("*") + last * len(values), values, strict=False):
        _of_kind(kind, value, name)
    try:
        return function(*values)
    except LanguageError:
        raise
    except (TypeError, ValueError, ArithmeticError, re.error):
        shown = ", ".join(go_text(value) for value in values)
        raise LanguageError(f"{name} has no value for {shown}") from None


class _Expr(Parser):
    def powers(self, token: Token) -> tuple[int, int] | None:
        if token.text == "not" and token.kind == "name" and self.peek(1).text in _NEGATABLE:
            return OPERATORS["in"]
        return OPERATORS.get(token.text) if token.kind in ("sign", "name") else None

    def prefix(self, token: Token) -> Evaluate:
        if token.kind == "number":
            digits = token.text.replace("_", "")
            return constant(int(digits) if digits.isdigit() else float(digits))
        if token.kind == "string":
            return constant(_unquote(token.text))
        if token.text in UNARY:
            return _unary(token.text, self.expression(UNARY[token.text]))
        if token.kind == "name":
            return self._name(token.text)
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
            return lambda env: then(env) if _of_kind("b", left(env), "?:") else other(env)
        if sign == "not":
            return _unary("!", self.infix(left, self.take(), power))
        right = self.expression(power)
        if sign in ("&&", "and"):
            return lambda env: _of_kind("b", left(env), "&&") and _of_kind("b", right(env), "&&")
        if sign in ("||", "or"):
            return lambda env: _of_kind("b", left(env), "||") or _of_kind("b", right(env), "||")
        if sign == "??":
            return lambda env: right(env) if (value := left(env)) is None else value
        kinds, function = _BINARY[sign]
        return lambda env: _apply(sign, kinds, function, [left(env), right(env)])

    def _name(self, name: str) -> Evaluate:
        if name in _LITERALS:
            return constant(_LITERALS[name])
        if name == "sprig":
            self.take(".")
            name = f"sprig.{self.take().text}"
        if self.accept("("):
            if name not in FUNCTIONS:
                raise LanguageError(f"unknown function {name}")
            (kinds, function), arguments = FUNCTIONS[name], self._arguments(")")
            return lambda env: _apply(name, kinds, function, [argument(env) for argument in arguments])
        return lambda env: _variable(env, name)

    def _arguments(self, end: str) -> list[Evaluate]:
        items: list[Evaluate] = []
        while not self.accept(end):
            if items:
                self.take(",")
            items.append(self.expression(0))
        return items


def _unary(sign: str, value: Evaluate) -> Evaluate:
    if sign in ("!", "not"):
        return lambda env: not _of_kind("b", value(env), "!")
    factor = -1 if sign == "-" else 1
    return lambda env: factor * _of_kind("n", value(env), sign)


def _variable(env: Mapping[str, Any], name: str) -> Any:
    if name not in env:
        raise Undefined(f"unknown name {name}")
    return env[name]


def _member(value: Any, key: Any, *, optional: bool) -> Any:
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
        return value[key]
    if value is None and optional:
        return None
    raise (Undefined if value is None else LanguageError)(f"cannot fetch {key} from {go_text(value)!r}")


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

    Raises `LanguageError` for syntax, an operator or a function that is not supported; when called, for values that do
    not fit.
    """
    return _Expr(tokenise(text, _TOKENS)).parse()
