"""Fetch a packaged model: ``python -m serving.fetch s3://bucket/path /model --sha256 ...``.  Runs in a pod before its
server does, where the image holds no model.

The hash is that of the package's manifest, which holds the hashes of all other files; each is checked here, and by the
server again when it loads them, with the signature that is fetched beside them.  Endpoint and credentials are boto3's
own variables.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from contracts.errors import ConfigError, DataError, NetworkError, StageError
from contracts.references import ModelManifest
from serving.model import MANIFEST_FILE
from serving.signature import SIGNATURE_FILE

LOG = logging.getLogger("retrain.fetch")


def fetch(uri: str, folder: Path, sha256: str) -> int:
    """Bring a package into `folder` and return how many bytes it has.

    Raises
    ------
    ConfigError
        It is not there, or may not be read.
    DataError
        It is not what its hashes say, or has no signature.
    NetworkError
        The store does not answer.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    parts = urlsplit(uri)
    if parts.scheme != "s3":
        raise ConfigError(f"cannot fetch {uri}: only s3:// is fetched")
    prefix = unquote(parts.path).strip("/")
    retries = {"max_attempts": 5, "mode": "standard"}
    try:
        client = boto3.client("s3", config=Config(connect_timeout=5, read_timeout=60, retries=retries))
        return _fetch(client, parts.netloc, prefix, folder, sha256)
    except ClientError as error:
        status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
        kind = NetworkError if status == 429 or status >= 500 else ConfigError
        raise kind(f"S3 answered {status} {code} for {uri}") from None
    except BotoCoreError as error:
        raise NetworkError(f"S3 did not answer for {uri}: {type(error).__name__}") from None


def _fetch(client: Any, bucket: str, prefix: str, folder: Path, sha256: str) -> int:
    def read(name: str, expected: str) -> bytes:
        content: bytes = client.get_object(Bucket=bucket, Key=f"{prefix}/{name}")["Body"].read()
        if hashlib.sha256(content).hexdigest() != expected:
            raise DataError(f"s3://{bucket}/{prefix}/{name} is not what its hash says", remedy="train it again")
        return content

    package = {MANIFEST_FILE: read(MANIFEST_FILE, sha256)}
    files = ModelManifest.model_validate_json(package[MANIFEST_FILE]).files
    package |= {name: read(name, expected) for name, expected in files.items()}
    try:
        package[SIGNATURE_FILE] = client.get_object(Bucket=bucket, Key=f"{prefix}/{SIGNATURE_FILE}")["Body"].read()
    except client.exceptions.NoSuchKey:
        raise DataError(f"s3://{bucket}/{prefix} is not signed: it has no {SIGNATURE_FILE}") from None
    for name, content in package.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise DataError(f"s3://{bucket}/{prefix} names a file outside of itself: {name}")
        path = folder / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return sum(map(len, package.values()))


def main(argv: list[str] | None = None) -> int:
    """Fetch and return the exit code of the error table."""
    parser = argparse.ArgumentParser(prog="python -m serving.fetch")
    parser.add_argument("uri", help="folder of the package, s3://...")
    parser.add_argument("folder", type=Path, help="where to put it")
    parser.add_argument("--sha256", required=True, help=f"of its {MANIFEST_FILE}")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        size = fetch(options.uri, options.folder, options.sha256)
    except StageError as error:
        LOG.error("%s", error.message)
        return error.row.exit_code
    LOG.info("%s: %d bytes", options.uri, size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
