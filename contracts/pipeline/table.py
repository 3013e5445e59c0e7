"""The schema: columns, their types and the rules that rows must keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from contracts.base import Contract, Duration
from contracts.pipeline.mistakes import Mistake, refuse


class ColumnType(StrEnum):
    """The types of the typed table (docs/dataset-hash.md)."""

    INTEGER = "integer"  # int64
    NUMBER = "number"  # float64
    BOOLEAN = "boolean"
    STRING = "string"
    DATE = "date"
    TIMESTAMP = "timestamp"  # microseconds, UTC


Level = Literal["error", "warn"]
T = TypeVar("T")
Scalar = bool | int | float | str


class Rule(Contract, Generic[T]):
    """A limit, what breaking it means, and the share of rows that may break it unheard.

    In the file a bare value stands for ``{value: ..., level: error, tolerate: 0}``.
    """

    value: T
    level: Level = "error"
    tolerate: float = Field(0.0, ge=0, lt=1, description="Share of rows that may break the rule.")

    @model_validator(mode="before")
    @classmethod
    def _bare_value(cls, data: Any) -> Any:
        return data if isinstance(data, dict) and "value" in data else {"value": data}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Let editors take the bare value too."""
        whole = handler(core)
        return {"anyOf": [whole, handler.resolve_ref_schema(whole)["properties"]["value"]]}


class Column(Contract):
    """One column.  Cells that do not fit `type` under ``type_level: warn`` become null and are counted."""

    name: str = Field(min_length=1)
    type: ColumnType
    type_level: Level = "error"
    type_tolerate: float = Field(0.0, ge=0, lt=1)
    nullable: Rule[bool] = Rule(value=True)
    min: Rule[Scalar] | None = None
    max: Rule[Scalar] | None = None
    allowed: Rule[tuple[Scalar, ...]] | None = None
    pattern: Rule[str] | None = Field(None, description="Regular expression (RE2) that the whole cell must match.")
    unique: Rule[bool] | None = None
    max_missing: Rule[float] | None = Field(None, description="Largest share of nulls.")
    infinity: bool = Field(False, description="Allow infinite numbers.")
    sensitive: bool = Field(False, description="Mask its cells in every finding, example, log and report.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, rule: Rule[str] | None) -> Rule[str] | None:
        if rule is not None:
            try:
                re.compile(rule.value)
            except re.error as error:
                raise ValueError(f"not a regular expression: {error}") from None
        return rule

    @model_validator(mode="after")
    def _rules_fit_the_type(self) -> Column:
        refuse(self._misfits())
        return self

    def _misfits(self) -> Iterator[Mistake]:
        numeric = self.type in (ColumnType.INTEGER, ColumnType.NUMBER)
        ordered = numeric or self.type in (ColumnType.DATE, ColumnType.TIMESTAMP)
        for key, rule in (("min", self.min), ("max", self.max)):
            if rule is not None and not ordered:
                yield Mistake((key,), f"does not fit a {self.type} column", "remove it")
            elif rule is not None and numeric == isinstance(rule.value, str):
                wanted = "a number" if numeric else "an ISO date in quotes"
                yield Mistake((key,), f"is {wanted} in a column of type {self.type}, got {rule.value!r}", "correct it")
        if self.pattern and self.type is not ColumnType.STRING:
            yield Mistake(("pattern",), f"does not fit a {self.type} column", "remove it")
        if self.infinity and self.type is not ColumnType.NUMBER:
            yield Mistake(("infinity",), f"is for number columns, this is {self.type}", "remove it")


class Rows(Contract):
    """Bounds of the row count."""

    min: Rule[int] | None = None
    max: Rule[int] | None = None


class Freshness(Contract):
    """The newest value of `column` may be at most `max_age` older than the run's `as_of`, and as much newer."""

    column: str
    max_age: Duration
    level: Level = "error"


class Schema(Contract):
    """The typed table that ingest makes, column by column in this order."""

    columns: tuple[Column, ...] = Field(min_length=1)
    rows: Rows = Rows(min=Rule(value=1))
    freshness: Freshness | None = None
    unique: tuple[tuple[str, ...], ...] = Field((), description="Sets of columns that are unique together.")
    extra_columns: Literal["error", "drop"] = Field("error", description="What to do with columns not listed here.")

    @model_validator(mode="after")
    def _names_are_known(self) -> Schema:
        refuse(self._misnamed())
        return self

    def _misnamed(self) -> Iterator[Mistake]:
        names = self.names
        for i, name in enumerate(names):
            if name in names[:i]:
                yield Mistake(("columns", i, "name"), f"{name!r} stands twice", "keep one")
        for i, group in enumerate(self.unique):
            yield from (
                Mistake(("unique", i), f"{n!r} is not in columns", "correct it") for n in group if n not in names
            )
        if self.freshness and self.freshness.column not in names:
            yield Mistake(("freshness", "column"), f"{self.freshness.column!r} is not in columns", "correct it")
        elif self.freshness and self.column(self.freshness.column).type not in (ColumnType.DATE, ColumnType.TIMESTAMP):
            what = f"{self.freshness.column} is no date or timestamp"
            yield Mistake(("freshness", "column"), what, "name a column that is")

    def column(self, name: str) -> Column:
        """Return the column of that name."""
        return next(c for c in self.columns if c.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(c.name for c in self.columns)
