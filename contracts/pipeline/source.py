"""Where the rows come from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from contracts.base import Contract
from contracts.pipeline.mistakes import Mistake, refuse

SECRET = re.compile(r"\{\{\s*secret:(\w+)\s*\}\}")
"""Stands in a URI for the value of an environment variable, which comes from a Secret."""
_SECRET_KEY = re.compile(r"(?i)token|signature|\bsig\b|password|secret|credential|api_?key")


def credential_in(uri: str) -> str:
    """Say what secret stands openly in an http(s) URI, empty when none does: manifests and states of runs hold URIs."""
    try:
        parts = urlsplit(SECRET.sub("", uri))
    except ValueError:  # no URL; opening it says so
        return ""
    if parts.scheme.lower() not in ("http", "https"):
        return ""
    if parts.netloc.rpartition("@")[0].partition(":")[2]:
        return "a password"
    return next((f"a secret in {key}" for key, value in parse_qsl(parts.query) if _SECRET_KEY.search(key)), "")


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

    URIs may hold ``{{as_of:%Y-%m-%d}}``, filled with the run's `as_of` in UTC, and ``{{secret:NAME}}``, filled with
    the environment variable NAME (from a Secret): a whole signed URL, or what stands before its @ or after its ?.
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
    def _secrets_stay_outside(self) -> Source:
        refuse(self._open_secrets())
        return self

    def _open_secrets(self) -> Iterator[Mistake]:
        for i, uri in enumerate(self.uris):
            at = ("uri",) if isinstance(self.uri, str) else ("uri", i)
            if what := credential_in(uri):
                remedy = "write {{secret:NAME}} in its place, and set NAME in the secrets"
                yield Mistake(at, f"holds {what}, and this file is copied into manifests and records", remedy)
            if SECRET.search(uri.rpartition("@")[2].partition("?")[0]) and not SECRET.fullmatch(uri.strip()):
                what = "has a {{secret:...}} in its path, which is written down"
                yield Mistake(at, what, "put the whole URL into the secret, or only what stands before @ or after ?")

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
    def secrets(self) -> tuple[str, ...]:
        """The environment variables that reading it needs, without doubles."""
        named = [self.dsn_secret] if self.dsn_secret else []
        return tuple(dict.fromkeys(named + [name for uri in self.uris for name in SECRET.findall(uri)]))

    @property
    def uris(self) -> tuple[str, ...]:
        """All URIs, as written."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri
