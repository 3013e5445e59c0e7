"""The schema: columns, their types and the rules that rows must keep."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from contracts.base import Contract, Duration


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
        numeric = self.type in (ColumnType.INTEGER, ColumnType.NUMBER)
        ordered = numeric or self.type in (ColumnType.DATE, ColumnType.TIMESTAMP)
        if (self.min or self.max) and not ordered:
            raise ValueError(f"min and max do not fit a {self.type} column")
        if self.pattern and self.type is not ColumnType.STRING:
            raise ValueError(f"pattern does not fit a {self.type} column")
        for rule in (self.min, self.max):
            if rule is not None and numeric == isinstance(rule.value, str):
                raise ValueError(
                    "min and max are numbers for numeric columns, ISO dates for date and timestamp columns"
                )
        if self.infinity and self.type is not ColumnType.NUMBER:
            raise ValueError("infinity is for number columns")
        return self


class Rows(Contract):
    """Bounds of the row count."""

    min: Rule[int] | None = None
    max: Rule[int] | None = None


class Freshness(Contract):
    """The newest value of `column` may be at most `max_age` older than the run's `as_of`."""

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
        names = [c.name for c in self.columns]
        if double := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"column named twice: {', '.join(double)}")
        wanted = {n for group in self.unique for n in group} | ({self.freshness.column} if self.freshness else set())
        if unknown := sorted(wanted - set(names)):
            raise ValueError(f"unknown column: {', '.join(unknown)}")
        if self.freshness and self.column(self.freshness.column).type not in (ColumnType.DATE, ColumnType.TIMESTAMP):
            raise ValueError(f"freshness needs a date or timestamp column, {self.freshness.column} is none")
        return self

    def column(self, name: str) -> Column:
        """Return the column of that name."""
        return next(c for c in self.columns if c.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in order."""
        return tuple(c.name for c in self.columns)
