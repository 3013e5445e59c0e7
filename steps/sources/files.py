"""Bring the files of a URI to this machine.  Called by `opening`, for every URI that names files."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from contracts.errors import ConfigError, DataError, NetworkError, StageError
from steps.sources.uris import Kind, has_glob, kind, path_of, shown
from steps.storage import quoted
from steps.world import World

_RETRIED = {408, 425, 429}
_MISTAKEN = "check source.uri, or the name that was given in its place"


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine, and the name that people know it by."""

    path: Path
    uri: str


def local_files(uri: str, *, world: World, folder: Path) -> list[LocalFile]:
    """Return the files of a URI, those of a glob sorted by name; remote ones are copied into `folder`.

    Raises
    ------
    ConfigError
        When a named file is not there or may not be read.
    DataError
        When a glob matches nothing.
    NetworkError, StorageError
        When the other end does not answer as it should.
    """
    how = kind(uri)
    if how is Kind.HTTP:
        return [LocalFile(download(uri, folder / "download"), shown(uri))]
    if how is Kind.S3:
        names = object_names(uri, world)
        return [LocalFile(_fetch(name, world, folder / str(i)), name) for i, name in enumerate(names)]
    return [LocalFile(path, path.as_uri()) for path in local_paths(uri, world.settings.source_base)]


def local_paths(uri: str, source_base: str) -> list[Path]:
    """Return the paths of a file URI or path, each of them a file that can be opened; see `local_files`."""
    path = path_of(uri, source_base)
    if has_glob(str(path)) and not os.path.lexists(path):
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207  Path.glob takes no absolute pattern
        found = sorted(p for p in map(Path, names) if not p.is_dir())
        if not found:
            raise DataError(f"no file matches {uri}", remedy="check the pattern, and whether the data has arrived")
    else:
        found = [path]
    for each in found:
        _check_readable(each)
    return [each.absolute() for each in found]


def download(uri: str, target: Path) -> Path:
    """Fetch an http(s) URI into a file; see `local_files` for what is raised."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _answer(uri) as answer, target.open("wb") as file:
        for data in answer.iter_bytes(1 << 20):
            file.write(data)
    return target


def ask(uri: str) -> None:
    """Ask for an http(s) URI and hang up after the headers; raises as `local_files` does."""
    with _answer(uri):
        pass


@contextmanager
def _answer(uri: str) -> Iterator[Any]:
    import httpx

    try:
        with httpx.stream("GET", uri, follow_redirects=True, timeout=httpx.Timeout(60, connect=5)) as answer:
            if problem := _http_problem(answer.status_code, shown(uri)):
                raise problem
            yield answer
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise ConfigError(f"{shown(uri)} cannot be fetched: {type(error).__name__}") from None
    except httpx.HTTPError as error:
        raise NetworkError(f"{shown(uri)} did not answer whole: {type(error).__name__}") from None


def _http_problem(status: int, name: str) -> StageError | None:
    if status < 400:
        return None
    if status >= 500 or status in _RETRIED:
        return NetworkError(f"{name} answered {status}")
    remedy = "check the credentials" if status in (401, 403, 407) else "check the URI"
    return ConfigError(f"{name} answered {status}", remedy=remedy)


def object_names(uri: str, world: World) -> list[str]:
    """Return the s3:// URIs that a URI or pattern names, sorted, each of them there; see `local_files`."""
    bucket, _, key = uri[len("s3://") :].partition("/")
    if not bucket or not key or key.endswith("/"):
        raise ConfigError(
            f"{uri} names no object", remedy=f"name one, or a pattern such as {uri.rstrip('/')}/*.parquet"
        )
    if not has_glob(key):
        if not world.storage.exists(quoted(uri)):
            raise ConfigError(f"there is no object {uri}", remedy=_MISTAKEN)
        return [uri]
    prefix = key[: min(key.index(c) for c in "*?[" if c in key)]
    listed = world.storage.list(quoted(f"s3://{bucket}/{prefix}"))
    start = len(f"s3://{bucket}/")
    found = [name for name in listed if not name.endswith("/") and _matches(name[start:].split("/"), key.split("/"))]
    if not found:
        raise DataError(f"no object matches {uri}", remedy="check the pattern, and whether the data has arrived")
    return found


def _matches(parts: list[str], wanted: list[str]) -> bool:
    """Match folder by folder, ``**`` standing for any number of them, as globs on disk do."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[i:], wanted[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _fetch(name: str, world: World, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return world.storage.fetch(quoted(name), folder)


def _check_readable(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{path} is a directory", remedy=f"name its files, such as {path}/*.parquet")
        if not stat.S_ISREG(mode):  # opening a pipe would wait, and a device may never end
            raise ConfigError(f"{path} is no plain file", remedy="write the rows into one, or use a python: source")
        with path.open("rb") as file:
            file.read(1)
    except FileNotFoundError:
        what = f"{path} is a symbolic link that points to nothing" if path.is_symlink() else f"there is no file {path}"
        raise ConfigError(what, remedy=_MISTAKEN) from None
    except ValueError:
        raise ConfigError("the source's path holds a NUL character", remedy=_MISTAKEN) from None
    except PermissionError:
        raise ConfigError(
            f"{path} may not be read", remedy="give the user that runs retrain the right to read it"
        ) from None
    except OSError as error:
        what = "is a loop of symbolic links" if error.errno == errno.ELOOP else f"cannot be read: {error.strerror}"
        raise ConfigError(f"{path} {what}", remedy=_MISTAKEN) from None
