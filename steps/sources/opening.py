"""Open a pipeline's source: decide what each URI is, and check its columns against the schema before a row is read."""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from contracts.errors import ConfigError, DataError, Finding, NetworkError, StageError, StorageError
from contracts.pipeline.source import Source, credential_in
from contracts.pipeline.table import Schema
from steps.sources.files import LocalFile, ask, local_files, local_paths, object_names
from steps.sources.function import Function
from steps.sources.uris import Kind, fill, kind, shown
from steps.table.arrow_reader import ParquetFile, Stream, is_parquet
from steps.table.chunk import Task
from steps.table.csv_reader import CsvFile
from steps.world import World

if TYPE_CHECKING:
    from contracts.pipeline import Pipeline
    from steps.sources.query import Query


class TableSource(Protocol):
    """One file, query or function."""

    @property
    def name(self) -> str:
        """What people know it by."""

    def columns(self) -> tuple[str, ...]:
        """Return the names of its columns."""

    def tasks(self, schema: Schema) -> Iterator[Task]:
        """Yield its rows as tasks; each makes one chunk."""


@dataclass(frozen=True)
class Opened:
    """Sources in order, and their resolved URIs as they may be written down."""

    sources: tuple[TableSource, ...]
    uris: tuple[str, ...]

    def tasks(self, schema: Schema) -> Iterator[Task]:
        """Yield the rows of all sources, one after the other.

        Raises
        ------
        DataError
            With a finding for every column that is missing, too much, or named twice.
        """
        _check_columns(self.sources, schema)
        return chain.from_iterable(source.tasks(schema) for source in self.sources)


def check_file(path: Path, pipeline: Pipeline) -> None:
    """Look at the header of a file before it is brought to where a run reads it; no row is read.

    Raises
    ------
    DataError
        It is empty or no table, or with a finding for every column that is missing, too much, or named twice.
    """
    _check_columns([_file(LocalFile(path, str(path)), pipeline.source)], pipeline.table)


def open_source(source: Source, override: str, as_of: datetime, code: str, *, world: World) -> Opened:
    """Bring the source within reach: files are found, and fetched where they are remote; no row is read yet.

    `override` is a URI that stands in for the file's; `code` the URI of the packed user modules.

    Raises
    ------
    ConfigError, DataError, NetworkError, StorageError
        When something named is not there, may not be read, or does not answer.
    """
    sources: list[TableSource] = []
    shown_uris: list[str] = []
    for number, uri in enumerate(_uris(source, override, as_of)):
        match kind(uri):
            case Kind.SQL:
                query = _query(source, as_of)
                sources.append(Stream(query.name, query.batches()))
                shown_uris.append(query.name)
            case Kind.PYTHON:
                function = Function(uri, world.user_code(code), as_of)
                sources.append(Stream(uri, function.batches()))
                shown_uris.append(uri)
            case _:
                for file in local_files(uri, world=world, folder=world.scratch / f"source-{number}"):
                    sources.append(_file(file, source))
                    shown_uris.append(file.uri)
    return Opened(tuple(sources), tuple(shown_uris))


def probe(source: str, as_of: str, *, world: World) -> Iterator[Finding]:
    """Look whether the source can be opened, without fetching it; yield what stands in the way.

    `as_of` is the parameter's text, which preflight checks on its own.
    """
    try:
        moment = datetime.fromisoformat(as_of) if as_of else world.now()
    except ValueError:
        return
    declared = world.pipeline.source
    try:
        uris = _uris(declared, source, moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except StageError as error:
        yield Finding(where="source", what=error.message, remedy=error.remedy)
        return
    for uri in uris:
        try:
            _probe(uri, declared, moment, world)
        except (NetworkError, StorageError) as error:  # it may pass, so its class must outlive the report
            raise type(error)(f"source {shown(uri)}: {error.message}", remedy=error.remedy) from None
        except StageError as error:
            yield Finding(where=f"source {shown(uri)}", what=error.message, remedy=error.remedy)


def _check_columns(sources: Iterable[TableSource], schema: Schema) -> None:
    findings = [finding for source in sources for finding in column_findings(source, schema)]
    if findings:
        raise DataError("the columns are not those of the schema", findings=findings)


def column_findings(source: TableSource, schema: Schema) -> Iterator[Finding]:
    """Compare a source's columns with the schema's: none missing, none too many, none twice."""
    found = source.columns()
    counted = Counter(found)
    for name, count in counted.items():
        if count > 1 and name in schema.names:
            yield Finding(
                where=f"{source.name}, column {name}", what=f"stands {count} times in the header", remedy="rename one"
            )
    missing = [name for name in schema.names if name not in counted]
    extra = [name for name in counted if name not in schema.names]
    if missing and (other := other_delimiter(found, schema)):
        yield Finding(
            where=source.name,
            what=f"the header is one column, with {other!r} in its name",
            remedy=f"name the right delimiter: source.csv.delimiter: {json.dumps(other)}",
        )
        return
    for name in missing:
        yield Finding(where=f"{source.name}, column {name}", what="is missing", remedy=_near(name, extra))
    if schema.extra_columns == "error":
        yield from _extra(source.name, found, schema)


def other_delimiter(found: Sequence[str], schema: Schema) -> str:
    """Return the delimiter that a header was written with which was read as one column; empty for none."""
    if len(found) != 1 or len(schema.names) == 1:
        return ""
    named = any(name in found[0] for name in schema.names)  # else it is a remark, not a header
    return next((d for d in ";\t|," if named and d in found[0]), "")


def _extra(source: str, found: Sequence[str], schema: Schema) -> Iterator[Finding]:
    """Name the columns that are too much; by position where a row of cells may stand in the header's place."""
    headless = not set(found) & set(schema.names) and any(column.sensitive for column in schema.columns)
    for number, name in enumerate(found, 1):
        if not name.strip():
            remedy = "name it in the header, or set schema.extra_columns: drop"
            yield Finding(where=f"{source}, column {number}", what="has no name", remedy=remedy)
        elif headless:
            yield Finding(where=source, what=f"column {number} is not in the schema", remedy="is the header missing?")
        elif name not in schema.names and found.index(name) == number - 1:
            remedy = "add it to schema.columns, or set schema.extra_columns: drop"
            yield Finding(where=f"{source}, column {name}", what="is not in the schema", remedy=remedy)


def _near(name: str, others: Sequence[str]) -> str:
    """Return a remedy that names the nearest of other names, whatever its capitals and blanks."""
    plain = {other.strip().lower(): other for other in others}
    near = difflib.get_close_matches(name.lower(), plain, n=1)
    return f"did you mean {plain[near[0]]!r}?" if near else ""


def _uris(source: Source, override: str, as_of: datetime) -> tuple[str, ...]:
    if what := credential_in(override):
        raise ConfigError(
            f"the parameter source holds {what}", remedy="name the URL in source.uri, with {{secret:NAME}} in its place"
        )
    return tuple(fill(uri.strip(), as_of, os.environ) for uri in ((override,) if override else source.uris))


def _query(source: Source, as_of: datetime) -> Query:
    if not source.query:
        raise ConfigError("the source sql: needs source.query and source.dsn_secret in the pipeline file")
    from steps.sources.query import Query  # SQLAlchemy costs more than reading a small file

    return Query(source, fill(source.query, as_of))


def _file(file: LocalFile, source: Source) -> TableSource:
    declared = source.format
    if declared == "auto":
        declared = "parquet" if is_parquet(file.path) else "csv"
    return ParquetFile(file.path, file.uri) if declared == "parquet" else CsvFile(file.path, file.uri, source.csv)


def _probe(uri: str, source: Source, as_of: datetime, world: World) -> None:
    match kind(uri):
        case Kind.FILE:
            local_paths(uri, world.settings.source_base)
        case Kind.S3:
            object_names(uri, world)
        case Kind.HTTP:
            ask(uri)
        case Kind.SQL:
            _query(source, as_of).probe()
        case Kind.PYTHON:
            pass  # preflight checks every module of the file
