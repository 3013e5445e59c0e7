"""Where the rows come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from contracts.base import Contract
from contracts.pipeline.mistakes import Mistake, refuse


class CsvOptions(Contract):
    """How to read delimited text.  The first line names the columns."""

    delimiter: str = Field(",", min_length=1, max_length=1)
    quote: str = Field('"', min_length=1, max_length=1)
    encoding: Literal["utf-8", "latin-1", "utf-16"] = "utf-8"
    missing: tuple[str, ...] = Field(
        (), description="Unquoted cells that mean null, besides the empty one.", examples=[["?", "NA"]]
    )


class Source(Contract):
    """One file, several, a glob, a query or a Python function.

    URIs may hold ``{{as_of:%Y-%m-%d}}``, filled with the run's `as_of` in UTC.
    """

    uri: str | tuple[str, ...] = Field(
        description="Path (relative to this file), file://, s3://, http(s):// (globs allowed for the first three), "
        "sql: (with `query`) or python:module:function that yields Arrow record batches.",
        examples=["adult.csv", "s3://bucket/dt={{as_of:%Y-%m-%d}}/*.parquet", "sql:", "python:my_rows:batches"],
    )
    format: Literal["auto", "csv", "parquet"] = "auto"
    csv: CsvOptions = CsvOptions()
    query: str = Field("", description="For sql: the SELECT, which must name its ORDER BY.")
    dsn_secret: str = Field("", description="For sql: the environment variable (from a Secret) with the DSN.")

    @field_validator("uri")
    @classmethod
    def _not_empty(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or any(not part.strip() for part in ((value,) if isinstance(value, str) else value)):
            raise ValueError("name at least one file")
        return value

    @model_validator(mode="after")
    def _sql_is_whole(self) -> Source:
        if "sql:" in self.uris:
            if len(self.uris) > 1:
                refuse([Mistake(("uri",), "sql: stands alone", "name one source")])
            for key, value in (("query", self.query), ("dsn_secret", self.dsn_secret)):
                if not value:
                    refuse([Mistake((key,), "is missing, sql: needs it", "add it")])
            if "order by" not in " ".join(self.query.lower().split()):
                what = "names no ORDER BY: row order is part of the dataset hash"
                refuse([Mistake(("query",), what, "order by columns that are unique together")])
        else:
            given = (key for key, value in (("query", self.query), ("dsn_secret", self.dsn_secret)) if value)
            refuse(Mistake((key,), "belongs to sql: only", "remove it, or read sql:") for key in given)
        return self

    @property
    def uris(self) -> tuple[str, ...]:
        """All URIs, as written."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri
