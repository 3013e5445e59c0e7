"""Every object of a store as one tar stream: ``backup`` writes it to standard output, ``restore`` reads it back.

kind/backup and kind/restore run it in a pod of the MLflow image, whose environment names the store and its
administrator.  A member is ``bucket/key``; nothing is held in memory or on disk but the part that is passing.
"""

from __future__ import annotations

import os
import sys
import tarfile
import time
from typing import BinaryIO

from minio import Minio
from minio.error import S3Error
from urllib3.exceptions import HTTPError

_PART_BYTES = 16 * 2**20
_PATIENCE_SECONDS = 60
_ETAG = "RETRAIN.etag"
"""Of a member: the store's own word for what the object held."""
_RESTORED = "restored"
"""Of an object: which word that was.  Written in parts of another size, the same content has another."""


def connect() -> Minio:
    """Return the store once it answers: a network policy takes hold a moment after a pod has its address."""
    scheme, host = os.environ["S3_ENDPOINT"].split("://", 1)
    store = Minio(
        endpoint=host, access_key=os.environ["S3_ADMIN"], secret_key=os.environ["S3_ADMIN_PASSWORD"],
        secure=scheme == "https",
    )  # fmt: skip
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            store.list_buckets()
        except HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return store


def backup(store: Minio, out: BinaryIO) -> int:
    """Write all objects of all buckets, sorted; an empty bucket is a folder."""
    count = 0
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for bucket in sorted(bucket.name for bucket in store.list_buckets()):
            folder = tarfile.TarInfo(bucket)
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for listed in store.list_objects(bucket_name=bucket, recursive=True):
                answer = store.get_object(bucket_name=bucket, object_name=listed.object_name)
                try:
                    # by the answer's own length: the object may have been written anew since it was listed
                    member = tarfile.TarInfo(f"{bucket}/{listed.object_name}")
                    member.size = int(answer.headers["Content-Length"])
                    member.mtime = int(listed.last_modified.timestamp())
                    member.pax_headers = {_ETAG: answer.headers["ETag"].strip('"')}
                    archive.addfile(member, answer)
                finally:
                    answer.close()
                    answer.release_conn()
                count += 1
    return count


def restore(store: Minio, source: BinaryIO) -> int:
    """Write every member back where it came from, but those that are there as they were; make missing buckets.

    Where a bucket keeps versions, what is written once more stays for as long as its object lock holds.
    """
    count = 0
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            bucket, _, key = member.name.partition("/")
            if member.isdir():
                if not store.bucket_exists(bucket_name=bucket):
                    store.make_bucket(bucket_name=bucket)
                continue
            etag = member.pax_headers.get(_ETAG, "")
            if etag and etag in _etags(store, bucket, key):
                continue
            content = archive.extractfile(member)
            if content is None:
                raise ValueError(f"{member.name} is no file")
            store.put_object(
                bucket_name=bucket, object_name=key, data=content, length=member.size, part_size=_PART_BYTES,
                metadata={_RESTORED: etag} if etag else None,
            )  # fmt: skip
            count += 1
    return count


def _etags(store: Minio, bucket: str, key: str) -> set[str | None]:
    """Return the words for what an object holds now, none where there is no such object."""
    try:
        found = store.stat_object(bucket_name=bucket, object_name=key)
    except S3Error as error:
        if error.code != "NoSuchKey":
            raise
        return set()
    return {found.etag, found.metadata.get(f"x-amz-meta-{_RESTORED}")}


if __name__ == "__main__":
    done = {
        "backup": lambda store: backup(store, sys.stdout.buffer),
        "restore": lambda store: restore(store, sys.stdin.buffer),
    }[sys.argv[1]](connect())
    print(f"{sys.argv[1]}: {done} objects", file=sys.stderr)
