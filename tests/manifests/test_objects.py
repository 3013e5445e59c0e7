"""Objects of the platform's store: as the chart's job has them kept, and kind/backup and kind/restore copied."""

from __future__ import annotations

import io
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from minio import Minio

from tests.loopback import s3_server

KIND = Path(__file__).resolve().parents[2] / "kind"
OBJECTS, PROVISION = (
    SimpleNamespace(**runpy.run_path(str(KIND / name))) for name in ("objects.py", "platform/files/provision.py")
)
PLAIN, VERSIONED = "retrain-store", "retrain-audit"


@pytest.fixture
def store() -> Iterator[Minio]:
    """An empty store, with a bucket that keeps versions and one that doesn't."""
    with s3_server() as url:
        client = Minio(endpoint=url.removeprefix("http://"), access_key="a", secret_key="b", secure=False)
        client.make_bucket(bucket_name=PLAIN)
        client.make_bucket(bucket_name=VERSIONED)  # as one under an object lock is, which stands in nobody's way here
        PROVISION.keep_versions(client, VERSIONED)
        yield client
        requests.post(f"{url}/moto-api/reset", timeout=10)


def put(store: Minio, bucket: str, key: str, data: bytes, part_size: int = 0) -> None:
    store.put_object(
        bucket_name=bucket, object_name=key, data=io.BytesIO(data), length=len(data), part_size=part_size
    )  # fmt: skip


def read(store: Minio, bucket: str, key: str) -> bytes:
    answer = store.get_object(bucket_name=bucket, object_name=key)
    return bytes(answer.read())


def versions(store: Minio, bucket: str) -> int:
    return len(list(store.list_objects(bucket_name=bucket, recursive=True, include_version=True)))


def copy(store: Minio) -> bytes:
    out = io.BytesIO()
    OBJECTS.backup(store, out)
    return out.getvalue()


def test_what_is_written_over_where_versions_are_kept_is_still_there(store: Minio) -> None:
    for word in (b"of the version that goes", b"something else"):
        put(store, VERSIONED, "artifacts/model", word)

    found = [
        store.get_object(bucket_name=VERSIONED, object_name="artifacts/model", version_id=each.version_id).read()
        for each in store.list_objects(bucket_name=VERSIONED, recursive=True, include_version=True)
    ]
    assert sorted(found) == [b"of the version that goes", b"something else"]


@pytest.fixture
def restored(store: Minio) -> Callable[[bytes], int]:
    """Bring a copy back, and return how many objects that wrote."""
    return lambda kept: int(OBJECTS.restore(store, io.BytesIO(kept)))


def test_what_is_there_as_it_was_copied_is_not_written_again(store: Minio, restored: Callable[[bytes], int]) -> None:
    put(store, VERSIONED, "m/000000001-abc.json", b"{}")
    put(store, PLAIN, "reports/one run?/a%20b.json", b"before")
    kept = copy(store)
    put(store, PLAIN, "reports/one run?/a%20b.json", b"after")
    put(store, PLAIN, "later", b"of another run")

    assert restored(kept) == 1
    assert read(store, PLAIN, "reports/one run?/a%20b.json") == b"before"
    assert read(store, PLAIN, "later") == b"of another run"
    assert restored(kept) == 0
    assert versions(store, VERSIONED) == 1, "a version more would be kept for years"


def test_a_large_object_that_was_lost_comes_back_once(store: Minio, restored: Callable[[bytes], int]) -> None:
    """In parts of another size than its writer's, so the store calls the same content by another word."""
    large = bytes(range(256)) * (20 * 2**20 // 256)
    put(store, PLAIN, "large", large, part_size=5 * 2**20)
    kept = copy(store)
    store.remove_object(bucket_name=PLAIN, object_name="large")

    assert restored(kept) == 1
    assert read(store, PLAIN, "large") == large
    assert restored(kept) == 0
    assert restored(copy(store)) == 0
