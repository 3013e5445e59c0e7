"""Bring prediction records to the bucket: ``python -m serving.shipping /records s3://bucket/path``.  Runs in a pod
beside its server, which so needs no credentials, and ends after it.

Files that `serving.records` finished are put to the bucket under the same name, then removed here.  While the bucket
does not answer they wait; the oldest go where they grow too many.  Endpoint and credentials are boto3's own variables.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from contracts.errors import ConfigError, StageError

LOG = logging.getLogger("retrain.shipping")

LOOK_SECONDS = 5.0
MAX_BYTES = 64 * 1024 * 1024
"""What waits at most: the folder is the node's disk."""


def ship(client: Any, folder: Path, bucket: str, prefix: str) -> int:
    """Bring all finished files, oldest first, and return how many; those that the bucket does not take stay."""
    from botocore.exceptions import BotoCoreError, ClientError

    brought = 0
    for file in _finished(folder):
        try:
            key = f"{prefix}/{file.relative_to(folder).as_posix()}"
            client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())
        except (BotoCoreError, ClientError) as error:
            LOG.warning("s3://%s/%s did not take %s: %s", bucket, prefix, file.name, type(error).__name__)
            break
        file.unlink()
        brought += 1
    return brought


def trim(folder: Path, max_bytes: int = MAX_BYTES) -> int:
    """Remove the oldest files until the rest is small enough, and return how many."""
    waiting = _finished(folder)
    sizes = [file.stat().st_size for file in waiting]
    removed = 0
    while sum(sizes[removed:]) > max_bytes:
        waiting[removed].unlink()
        removed += 1
    return removed


def _finished(folder: Path) -> list[Path]:
    files = [file for file in folder.glob("*/*.parquet") if not file.name.startswith(".")]
    return sorted(files, key=lambda file: file.stat().st_mtime)


def main(argv: list[str] | None = None) -> int:
    """Ship until told to end, and what is left then; return the exit code of the error table."""
    parser = argparse.ArgumentParser(prog="python -m serving.shipping")
    parser.add_argument("folder", type=Path, help="folder of the records")
    parser.add_argument("uri", help="where they go, s3://...")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    try:
        client, bucket, prefix = _store(options.uri)
    except StageError as error:
        LOG.error("%s", error.message)
        return error.row.exit_code
    while True:
        last = ending.wait(LOOK_SECONDS)
        ship(client, options.folder, bucket, prefix)
        if removed := trim(options.folder):
            LOG.error("%d files of records are lost: the bucket does not take them", removed)
        if last:
            return 0


def _store(uri: str) -> tuple[Any, str, str]:
    import boto3
    from botocore.config import Config

    parts = urlsplit(uri)
    if parts.scheme != "s3":
        raise ConfigError(f"cannot bring records to {uri}: only s3:// is written")
    retries = {"max_attempts": 2, "mode": "standard"}
    client = boto3.client("s3", config=Config(connect_timeout=3, read_timeout=10, retries=retries))
    return client, parts.netloc, unquote(parts.path).strip("/")


if __name__ == "__main__":
    sys.exit(main())
