"""Where the rows come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from contracts.base import Contract


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
                raise ValueError("sql: stands alone")
            if not self.query or not self.dsn_secret:
                raise ValueError("sql: needs `query` and `dsn_secret`")
            if "order by" not in " ".join(self.query.lower().split()):
                raise ValueError("the query must name its ORDER BY: row order is part of the dataset hash")
        elif self.query or self.dsn_secret:
            raise ValueError("`query` and `dsn_secret` belong to sql: only")
        return self

    @property
    def uris(self) -> tuple[str, ...]:
        """All URIs, as written."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri
