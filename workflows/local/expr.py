"""The part of expr-lang that Argo's ``{{=...}}`` and ``retryStrategy.expression`` need.

`compile_expression` refuses operators and functions that are not listed here, before anything runs.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from workflows.local.pratt import Evaluate, LanguageError, Parser, Token, Undefined, constant

OPERATORS = {
    "?": 5, "or": 10, "||": 10, "and": 15, "&&": 15, "==": 20, "!=": 20, "<": 20, ">": 20, "<=": 20, ">=": 20, "in": 20,
    "contains": 20, "startsWith": 20, "endsWith": 20, "matches": 20, "+": 30, "-": 30, "*": 60, "/": 60, "%": 60,
    "**": 100, "^": 100, "??": 500, ".": 1000, "?.": 1000, "[": 1000,
}  # fmt: skip
"""Binding powers as in expr-lang 1.17."""
UNARY = {"not": 50, "!": 50, "-": 90, "+": 90}
_NEGATABLE = ("in", "contains", "startsWith", "endsWith", "matches")
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "t": ("a text", (str,)), "n": ("a number", (int, float)), "i": ("a whole number", (int,)),
    "b": ("true or false", (bool,)), "l": ("a list", (list,)), "m": ("a list or a map", (list, dict)),
    "c": ("a text, a list or a map", (str, list, dict)), "a": ("anything", (object,)),
}  # fmt: skip
"""Kinds of operands and arguments, by the letters of the tables below; the last letter holds for what follows too."""


def go_text(value: Any) -> str:
    """Write a value as Argo pastes it: text as it is, 2.0 as ``2``, lists and maps as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return "<nil>" if value is None else go_json(value)


def go_json(value: Any, *, sort_keys: bool = False) -> str:
    """Write JSON as Go does."""
    return json.dumps(value, separators=(",", ":"), sort_keys=sort_keys, ensure_ascii=False)


def _whole(value: Any) -> int:
    return int(value) if not isinstance(value, str) or re.fullmatch(r"[+-]?\d+", value) else int("")


def _extreme(choose: Callable[[Any], Any], values: Sequence[Any]) -> Any:
    items = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    return choose([_of_kind("n", value, choose.__name__) for value in items])


FUNCTIONS: dict[str, tuple[str, Callable[..., Any]]] = {
    **dict.fromkeys(("asInt", "int"), ("a", _whole)),
    **dict.fromkeys(("asFloat", "float"), ("a", float)),
    "string": ("a", go_text),
    "min": ("a", lambda *values: _extreme(min, values)),
    "max": ("a", lambda *values: _extreme(max, values)),
    "abs": ("n", abs),
    "len": ("c", len),
    "split": ("t", str.split),
    "join": ("lt", lambda items, by="": by.join(_of_kind("t", item, "join") for item in items)),
    "toJson": ("a", go_json),
    "get": ("a", lambda value, key: _member(value, key, optional=True)),
    **dict.fromkeys(("lower", "sprig.lower"), ("t", str.lower)),
    **dict.fromkeys(("upper", "sprig.upper"), ("t", str.upper)),
    **dict.fromkeys(("trim", "sprig.trim"), ("t", str.strip)),
    "sprig.replace": ("t", lambda old, new, text: text.replace(old, new)),
    "sprig.default": ("a", lambda default, value: value if value not in (None, "", 0, False) else default),
}
COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "%": math.fmod,
           "**": math.pow}  # fmt: skip


def _equal(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


_BINARY: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    **{sign: ("", function) for sign, function in COMPARE.items()},  # no kinds: two texts or two numbers
    **{sign: ("n", function) for sign, function in COMPUTE.items()},
    "+": ("", operator.add),
    "%": ("i", lambda left, right: int(math.fmod(left, right))),
    "^": ("n", math.pow),
    "==": ("a", _equal),
    "!=": ("a", lambda left, right: not _equal(left, right)),
    "in": ("am", lambda item, box: any(_equal(item, o) for o in box) if isinstance(box, list) else item in box),
    "contains": ("t", operator.contains),
    "startsWith": ("t", str.startswith),
    "endsWith": ("t", str.endswith),
    "matches": ("t", lambda text, pattern: re.search(pattern, text) is not None),
}


def _of_kind(kind: str, value: Any, what: str) -> Any:
    name, types = _KINDS[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind not in "ab"):
        raise LanguageError(f"{what} needs {name}, not {go_text(value)!r}")
    return value


def _apply(name: str, kinds: str, function: Callable[..., Any], values: Sequence[Any]) -> Any:
    kinds = kinds or ("t" if all(isinstance(value, str) for value in values) else "n")
    for kind, value in zip(kinds + kinds[-1] * len(values), values, strict=False):
        _of_kind(kind, value, name)
    try:
        return function(*values)
    except LanguageError:
        raise
    except (TypeError, ValueError, ArithmeticError, re.error):
        raise LanguageError(f"{name} has no value for {', '.join(map(go_text, values))}") from None


class _Expr(Parser):
    TOKENS = r"""(?P<number>\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)
        | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|`[^`]*`)
        | (?P<name>[A-Za-z_$][\w$]*)
        | (?P<sign>\*\*|\?\?|\?\.|&&|\|\||==|!=|<=|>=|[-+*/%^<>!?:.,()\[\]{}])"""
    OPERATORS = OPERATORS
    FROM_THE_RIGHT = ("?", "**", "^")

    def power(self, token: Token) -> int:
        negated = token.text == "not" and self.peek(1).text in _NEGATABLE
        return OPERATORS["in"] if negated else super().power(token)

    def prefix(self, token: Token) -> Evaluate:
        text = token.text
        if token.kind == "number":
            digits = text.replace("_", "")
            return constant(int(digits) if digits.isdigit() else float(digits))
        if token.kind == "string":
            escapes = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
            read = re.sub(r"(?s)\\(.)", lambda match: escapes.get(match[1], match[1]), text[1:-1])
            return constant(text[1:-1] if text[0] == "`" else read)
        if text in UNARY:
            return self._unary(text, self.expression(UNARY[text]))
        if token.kind == "name":
            return self._name(text)
        if text == "(":
            return self.group(")")
        if text == "[":
            items = self.listed("]")
            return lambda env: [item(env) for item in items]
        raise token.unexpected()

    def infix(self, left: Evaluate, token: Token, power: int) -> Evaluate:
        sign = token.text
        if sign in (".", "?."):
            name = self.take().text
            return lambda env: _member(left(env), name, optional=sign == "?.")
        if sign == "[":
            index = self.group("]")
            return lambda env: _member(left(env), index(env), optional=False)
        if sign == "?":
            then, other = self.group(":"), self.expression(power)
            return lambda env: then(env) if _of_kind("b", left(env), "?:") else other(env)
        if sign == "not":
            return self._unary("!", self.infix(left, self.take(), power))
        right = self.expression(power)
        if sign in ("&&", "and", "||", "or"):
            return self.logical({"and": "&&", "or": "||"}.get(sign, sign), left, right)
        if sign == "??":
            return lambda env: right(env) if (value := left(env)) is None else value
        kinds, function = _BINARY[sign]
        return lambda env: _apply(sign, kinds, function, [left(env), right(env)])

    def truth(self, value: Any, sign: str) -> bool:
        return bool(_of_kind("b", value, sign))

    def _name(self, name: str) -> Evaluate:
        if name in ("true", "false", "nil"):
            return constant({"true": True, "false": False}.get(name))
        if name == "sprig":
            self.take(".")
            name = f"sprig.{self.take().text}"
        if self.peek().text != "(":
            return lambda env: _variable(env, name)
        self.take("(")
        if name not in FUNCTIONS:
            raise LanguageError(f"unknown function {name}")
        (kinds, function), arguments = FUNCTIONS[name], self.listed(")")
        return lambda env: _apply(name, kinds, function, [argument(env) for argument in arguments])

    @staticmethod
    def _unary(sign: str, value: Evaluate) -> Evaluate:
        if sign in ("!", "not"):
            return lambda env: not _of_kind("b", value(env), "!")
        return lambda env: (-1 if sign == "-" else 1) * _of_kind("n", value(env), sign)


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


@lru_cache(maxsize=1024)
def compile_expression(text: str) -> Evaluate:
    """Read an expression; call the answer with a map of names to get its value.

    Raises `LanguageError` for syntax, an operator or a function that is not supported; when called, for values that do
    not fit.
    """
    return _Expr(text).parse()
