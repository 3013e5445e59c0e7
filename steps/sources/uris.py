"""Resolve the URIs of a pipeline file: dated templates, relative paths, and what may be shown of them.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from contracts.errors import ConfigError
from contracts.pipeline.source import SECRET

_TEMPLATE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_AS_OF = re.compile(r"as_of(?::(.*))?\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_GLOB = re.compile(r"[*?[]")


class Kind(StrEnum):
    """How a URI is read."""

    FILE = "file"
    S3 = "s3"
    HTTP = "http"
    SQL = "sql"
    PYTHON = "python"


def fill(text: str, as_of: datetime, secrets: Mapping[str, str] | None = None) -> str:
    """Replace ``{{as_of:FORMAT}}`` (strftime) and ``{{as_of}}`` (the date) by the moment in UTC.

    With `secrets`, ``{{secret:NAME}}`` too, by the variable of that name.

    Raises
    ------
    ConfigError
        When a template names anything else, or a variable that is missing.
    """

    def value(match: re.Match[str]) -> str:
        if secrets is not None and (named := SECRET.fullmatch(match[0])):
            if not secrets.get(named[1]):
                raise ConfigError(f"the variable {named[1]} is missing", remedy="set it in the secrets")
            return secrets[named[1]].strip()
        known = _AS_OF.match(match[1])
        if known is None:
            raise ConfigError(f"{match[0]} in the source is not known", remedy="write {{as_of:%Y-%m-%d}}")
        return as_of.astimezone(UTC).strftime(known[1] or "%Y-%m-%d")

    return _TEMPLATE.sub(value, text)


def kind(uri: str) -> Kind:
    """Say how a URI is read.

    Raises
    ------
    ConfigError
        When its scheme is not known.
    """
    match = _SCHEME.match(uri)
    if match is None:
        return Kind.FILE
    scheme, slashes = match[1].lower(), match[2]
    if scheme in ("sql", "python"):
        return Kind(scheme)
    if not slashes:
        return Kind.FILE  # a file name with a colon in it
    if scheme in ("file", "s3", "http", "https"):
        return Kind.HTTP if scheme == "https" else Kind(scheme)
    raise ConfigError(
        f"the source {scheme}:// is not known",
        remedy="a path, file://, s3://, http(s)://, sql: or python:module:function",
    )


def path_of(uri: str, source_base: str) -> Path:
    """Return the path of a file:// URI, or of a path relative to `source_base`.

    Raises
    ------
    ConfigError
        When the URI is a bare path and there is no `source_base`, as on a cluster; or names another machine.
    """
    if uri.lower().startswith("file://"):
        # not urlsplit: in a path, the glob's ? starts no query
        host, slash, path = uri[len("file://") :].partition("/")
        if host not in ("", "localhost"):
            raise ConfigError(
                f"{uri} names the machine {host}", remedy=f"for a file on this one write file:///{host}/{path}"
            )
        return Path(unquote(slash + path))
    if not source_base:
        raise ConfigError(
            f"the source {uri} is a path, which nothing here reaches: this environment has no source_base",
            remedy="`retrain submit` brings a file along; else give it: `argo submit ... -p source=s3://...`",
        )
    return Path(source_base) / Path(uri).expanduser()


def has_glob(text: str) -> bool:
    """Say whether a path or key holds a pattern."""
    return bool(_GLOB.search(text))


def shown(uri: str) -> str:
    """Return a URI as it may be written down: without user, password, query or fragment."""
    parts = urlsplit(uri)
    if parts.scheme.lower() not in ("http", "https"):
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
