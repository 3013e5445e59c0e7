"""Objects by URI: the one place that reads and writes the store (``file://`` or ``s3://``).

Writes are whole or not at all: a local file is renamed into place, an S3 object appears when its upload is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from contracts.errors import ConfigError, NetworkError, StageError, StorageError
from contracts.settings import Settings


class Storage:
    """The store of one environment."""

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

    def read(self, uri: str) -> bytes:
        """Return an object's bytes."""
        if path := local_path(uri):
            with _os_errors(uri):
                return path.read_bytes()
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            return bytes(self._s3().get_object(Bucket=bucket, Key=key)["Body"].read())

    def write(self, uri: str, data: bytes) -> str:
        """Write an object whole and return its URI."""
        if path := local_path(uri):
            with _os_errors(uri), _atomic(path) as part:
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
            with _os_errors(uri), _atomic(path) as part:
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
        with self._s3_errors(uri), _atomic(target) as part:
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

    def list(self, uri: str) -> list[str]:
        """Return the URIs of all objects under a prefix, sorted."""
        if path := local_path(uri):
            return sorted(p.as_uri() for p in path.rglob("*") if p.is_file())
        bucket, key = _split(uri)
        with self._s3_errors(uri):
            pages = self._s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
            return sorted(f"s3://{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", ()))

    def _s3(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            key = self._settings.aws_access_key_id.get_secret_value()
            secret = self._settings.aws_secret_access_key.get_secret_value()
            self._client = boto3.client(
                "s3",
                endpoint_url=self._settings.s3_endpoint or None,
                aws_access_key_id=key or None,
                aws_secret_access_key=secret or None,
                region_name=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
                config=Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 2, "mode": "standard"}),
            )
        return self._client

    @contextlib.contextmanager
    def _s3_errors(self, uri: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        try:
            yield
        except ClientError as error:
            raise client_error(error, uri) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise ConfigError(
                f"no credentials for {uri}", remedy="set RETRAIN_AWS_ACCESS_KEY_ID and RETRAIN_AWS_SECRET_ACCESS_KEY"
            ) from None
        except (BotoCoreError, OSError) as error:
            if isinstance(error, StageError):
                raise
            raise NetworkError(
                f"{self._settings.s3_endpoint or 'S3'} did not answer for {uri}: {type(error).__name__}"
            ) from None


def local_path(uri: str) -> Path | None:
    """Return the path of a ``file://`` URI, None for others."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _split(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        raise ConfigError(f"cannot read or write {uri}", remedy="the store is file:// or s3://")
    return parts.netloc, unquote(parts.path).lstrip("/")


def client_error(error: Any, uri: str) -> StageError:
    """Turn botocore's ClientError into an error of the table."""
    status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    if status == 503 or code == "SlowDown":
        return StorageError(f"S3 is busy ({code}) for {uri}")
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
        raise ConfigError(
            f"cannot use {uri}: {error.strerror}", remedy="check path, permissions and free disk"
        ) from None


def _link_or_copy(source: Path, part: Path) -> None:
    part.unlink()
    try:
        os.link(source, part)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, part)


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
