"""Objects by URI: the one place that reads and writes the store (``file://`` or ``s3://``).

Writes are whole or not at all: a local file is renamed into place, an S3 object appears when its upload is complete.
What a killed writer left of a file is removed by the next one in that folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from contracts.errors import ConfigError, NetworkError, StageError, StorageError
from contracts.settings import DEFAULT_REGION, Settings

_PART = ".part-"
_ATTEMPTS = 3
"""How often boto itself asks before a request counts as unanswered; the stage's own retries come on top."""
_CONNECT_SECONDS = 5
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""A full disk: nothing that passes, so never tried again."""
_NO_ROOM_STATUS = 507
"""MinIO's answer when its disk is full."""


@dataclass(frozen=True)
class Stored:
    """One object."""

    uri: str
    size: int
    """In bytes."""
    modified: datetime


class Storage:
    """The store of one environment.

    Raises
    ------
    NetworkError
        By every method: the endpoint refused, broke off, or was silent for the setting `timeout_seconds`.
    StorageError
        S3 is busy.
    ConfigError
        No such bucket or object, no permission, no room.
    """

    def __init__(self, settings: Settings) -> None:
        self.root = settings.store.rstrip("/")
        self._settings = settings
        self._client: Any = None

    def uri(self, *parts: str) -> str:
        """Return the URI of something under the store's root."""
        return "/".join((self.root, *parts))

    def exists(self, uri: str) -> bool:
        """Say whether an object is there."""
        if path := local_path(uri):
            return path.is_file()
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            try:
                self._s3().head_object(Bucket=bucket, Key=key)
            except self._s3().exceptions.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return False
                raise
        return True

    def read(self, uri: str, version: str = "") -> bytes:
        """Return an object's bytes: today's, or those of an earlier version; see `versions`."""
        if path := local_path(uri):
            with _os_errors(uri):
                return path.read_bytes()
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            which = {"VersionId": version} if version else {}
            return bytes(self._s3().get_object(Bucket=bucket, Key=key, **which)["Body"].read())

    def write(self, uri: str, data: bytes) -> str:
        """Write an object whole and return its URI."""
        if path := local_path(uri):
            with _os_errors(uri), _atomic(path, self._place(path)) as part:
                part.write_bytes(data)
            return uri
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            self._s3().put_object(Bucket=bucket, Key=key, Body=data)
        return uri

    def upload(self, source: Path, uri: str) -> str:
        """Bring a local file into the store; the caller does not write to it again.

        On the same file system nothing is copied: the object is another name of the file.
        """
        if path := local_path(uri):
            with _os_errors(uri), _atomic(path, self._place(path)) as part:
                _link_or_copy(source, part)
            return uri
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            self._s3().upload_file(str(source), bucket, key)
        return uri

    def fetch(self, uri: str, folder: Path) -> Path:
        """Return a local path of an object: the file itself when it is local, else a copy in `folder`."""
        if path := local_path(uri):
            if not path.is_file():
                raise ConfigError(f"no such object: {uri}", remedy="the store was moved or cleaned; run again")
            return path
        bucket, key = _split(uri)
        target = folder / key.replace("/", "_")
        with self._s3_errors(uri), _atomic(target, folder) as part:
            self._s3().download_file(bucket, key, str(part))
        return target

    def delete(self, uri: str) -> None:
        """Remove an object; one that is not there is no error."""
        if path := local_path(uri):
            with _os_errors(uri):
                path.unlink(missing_ok=True)
            return
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            self._s3().delete_object(Bucket=bucket, Key=key)

    def versions(self, uri: str) -> list[tuple[str, str]]:
        """Return URI and version of all that a bucket still has under a prefix, sorted, the newest of each first.

        Also what was overwritten or deleted, where the bucket keeps versions.  A file has one, without a name.
        """
        if local_path(uri):
            return [(found, "") for found in self.list(uri)]
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            pages = self._s3().get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key)
            found = [item for page in pages for item in page.get("Versions", ())]
        found.sort(key=lambda item: item["LastModified"], reverse=True)
        return sorted(((f"s3://{bucket}/{item['Key']}", item["VersionId"]) for item in found), key=lambda one: one[0])

    def list(self, uri: str) -> list[str]:
        """Return the URIs of all objects under a prefix, sorted."""
        return sorted(each.uri for each in self.objects(uri))

    def objects(self, uri: str) -> Iterator[Stored]:
        """Yield all objects under a prefix, or the one that is called so."""
        if path := local_path(uri):
            for each in [path] if path.is_file() else path.rglob("*"):
                if each.parent.name.startswith(_PART):
                    continue
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    about = each.stat()
                    if stat.S_ISREG(about.st_mode):
                        yield Stored(each.as_uri(), about.st_size, datetime.fromtimestamp(about.st_mtime, UTC))
            return
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            for page in self._s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                for item in page.get("Contents", ()):
                    yield Stored(f"s3://{bucket}/{item['Key']}", item["Size"], item["LastModified"])

    def copy(self, source: str, target: str) -> str:
        """Copy an object whole, inside of S3 where both are there, and return the copy's URI."""
        if local_path(source) or local_path(target):
            with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
                return self.upload(self.fetch(source, Path(folder)), target)
        (bucket, key), (to_bucket, to_key) = _split(source), _split(target)
        with self._s3_errors(target):
            self._s3().copy({"Bucket": bucket, "Key": key}, to_bucket, to_key)
        return target

    def _place(self, path: Path) -> Path:
        """Return where a file is written first: one place for all, so any writer removes what a killed one left."""
        root = local_path(self.root)
        return root if root and path.is_relative_to(root) else path.parent

    def _s3(self) -> Any:
        if self._client is None:
            import boto3

            key = self._settings.aws_access_key_id.get_secret_value()
            secret = self._settings.aws_secret_access_key.get_secret_value()
            self._client = boto3.client(
                "s3",
                endpoint_url=self._settings.s3_endpoint or None,
                aws_access_key_id=key or None,
                aws_secret_access_key=secret or None,
                region_name=self._settings.s3_region or os.environ.get("AWS_DEFAULT_REGION", DEFAULT_REGION),
                config=s3_config(self._settings),
            )
        return self._client

    @contextlib.contextmanager
    def _s3_errors(self, uri: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            yield
        except ClientError as error:
            raise client_error(error, uri) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise ConfigError(
                f"no credentials for {uri}", remedy="set RETRAIN_AWS_ACCESS_KEY_ID and RETRAIN_AWS_SECRET_ACCESS_KEY"
            ) from None
        except Boto3Error as error:  # of a transfer in several requests; what made it fail lies beneath
            if isinstance(error.__context__, ClientError):
                raise client_error(error.__context__, uri) from None
            raise self._silent(uri, error) from None
        except (BotoCoreError, ConnectionError, TimeoutError) as error:
            raise self._silent(uri, error) from None
        except OSError as error:
            raise _os_error(error, uri) from None  # of the file here, not of S3

    def _silent(self, uri: str, error: Exception) -> NetworkError:
        return NetworkError(f"{self._settings.s3_endpoint or 'S3'} did not answer for {uri}: {type(error).__name__}")


def s3_config(settings: Settings) -> Any:
    """Return botocore's configuration for S3: bounded waits, few tries."""
    from botocore.config import Config

    return Config(
        connect_timeout=min(_CONNECT_SECONDS, settings.timeout_seconds),
        read_timeout=settings.timeout_seconds,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
    )


def local_path(uri: str) -> Path | None:
    """Return the path of a ``file://`` URI, None for others."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        raise ConfigError(f"cannot read or write {uri}", remedy="the store is file:// or s3://")
    return parts.netloc, unquote(parts.path).lstrip("/")


def quoted(uri: str) -> str:
    """Return a listed ``s3://`` URI as the other methods take it: its ``%``, ``?`` and ``#`` are part of the key."""
    return "s3://" + quote(uri.removeprefix("s3://")) if uri.startswith("s3://") else uri


def client_error(error: Any, uri: str) -> StageError:
    """Turn botocore's ClientError into an error of the table."""
    status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    if status == 503 or code == "SlowDown":
        return StorageError(f"S3 is busy ({code}) for {uri}")
    if status == _NO_ROOM_STATUS:
        return ConfigError(f"no room is left for {uri}: S3 answered {code}", remedy="make room in the store")
    if status == 429 or status >= 500:
        return NetworkError(f"S3 answered {status} {code} for {uri}")
    return ConfigError(
        f"S3 answered {status} {code} for {uri}", remedy="check bucket, key and the credentials' permissions"
    )


@contextlib.contextmanager
def _os_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"no such object: {uri}") from None
    except OSError as error:
        raise _os_error(error, uri) from None


def _os_error(error: OSError, uri: str) -> ConfigError:
    remedy = "make room on that disk" if error.errno in NO_ROOM else "check path and permissions"
    return ConfigError(f"cannot use {uri}: {error.strerror}", remedy=remedy)


def _link_or_copy(source: Path, part: Path) -> None:
    try:
        os.link(source, part)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, part)


@contextlib.contextmanager
def _atomic(path: Path, place: Path) -> Iterator[Path]:
    """Yield where to write, in a folder below `place`, what then becomes `path`, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(place) as folder:
        part = folder / path.name
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)


@contextlib.contextmanager
def _workplace(parent: Path) -> Iterator[Path]:
    """Make a folder in `parent` that is locked while its maker lives, and remove those whose maker was killed."""
    for left in parent.glob(f"{_PART}*"):
        with contextlib.suppress(OSError), _locked(left):  # being written, or gone meanwhile
            shutil.rmtree(left)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_PART))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_locked(folder))
            except (FileNotFoundError, BlockingIOError):  # taken for a dead one's before it was locked
                continue
            except OSError:  # a file system without locks: nobody removes it, dead or not
                pass
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            if folder.exists():
                yield folder
                return


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
