"""An S3 endpoint that fails in each of its ways: the right class, in bounded time, and nothing half-written."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.errors import ConfigError, NetworkError, StageError, StorageError
from contracts.settings import Settings
from steps import storage as module
from steps.storage import Storage
from tests.faults.endpoints import Fault, faulty
from tests.loopback import free_port

URI = "s3://bucket/object"
ACTS: dict[str, Callable[[Storage, Path], object]] = {
    "exists": lambda storage, _: storage.exists(URI),
    "read": lambda storage, _: storage.read(URI),
    "write": lambda storage, _: storage.write(URI, b"x"),
    "upload": lambda storage, folder: storage.upload(folder / "file", URI),
    "fetch": lambda storage, folder: storage.fetch(URI, folder / "fetched"),
    "list": lambda storage, _: storage.list(URI),
    "delete": lambda storage, _: storage.delete(URI),
}
WRITES_AND_IS_KILLED = """
import os, signal, sys
from pathlib import Path
from steps.storage import _atomic
with _atomic(Path(sys.argv[1]), Path(sys.argv[2])) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def storage_at(folder: Path, endpoint: str) -> Storage:
    return Storage(
        Settings(
            store="s3://bucket", tracking_uri="sqlite:///none", s3_endpoint=endpoint, timeout_seconds=1,
            aws_access_key_id="key", aws_secret_access_key="hunter2",
        )
    )  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto not wait between its own tries."""
    import botocore.retries.standard

    monkeypatch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 0.0)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(Fault.BUSY, StorageError), (Fault.REFUSES, NetworkError), (Fault.HANGS, NetworkError)],
    ids=lambda value: value.value if isinstance(value, Fault) else "",
)
@pytest.mark.parametrize(
    "act", [pytest.param(act, marks=() if act in ("read", "upload", "fetch") else pytest.mark.faults) for act in ACTS]
)
def test_whatever_is_asked_of_an_endpoint_that_fails_has_the_class_of_the_fault(
    tmp_path: Path, quick: None, act: str, fault: Fault, expected: type[StageError]
) -> None:
    if fault is Fault.HANGS and act not in ("read", "fetch"):
        pytest.skip("takes three seconds; a request and a transfer stand for all")
    (tmp_path / "file").write_bytes(b"x" * 100)
    with faulty(fault=fault) as endpoint:
        start = time.monotonic()
        with pytest.raises(expected) as error:
            ACTS[act](storage_at(tmp_path, endpoint.url), tmp_path)
        # three tries of a second each, and what this machine takes besides
        assert time.monotonic() - start < 10

    assert type(error.value) is expected
    assert "hunter2" not in error.value.message
    assert endpoint.asked == 3
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


@pytest.mark.parametrize("act", ["write", "upload"])
def test_a_store_that_is_full_is_told_as_such_and_not_asked_again(tmp_path: Path, act: str) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    said = pytest.raises(ConfigError, match="no room is left for s3://bucket/")
    with faulty(fault=Fault.FULL) as endpoint, said as error:
        ACTS[act](storage_at(tmp_path, endpoint.url), tmp_path)

    assert error.value.remedy == "make room in the store"
    assert endpoint.asked == 1


@pytest.mark.parametrize("act", ["read", "fetch"])
def test_an_answer_that_breaks_off_is_network_and_no_half_of_it_stays(tmp_path: Path, quick: None, act: str) -> None:
    with faulty(fault=Fault.CUTS) as endpoint, pytest.raises(NetworkError):
        ACTS[act](storage_at(tmp_path, endpoint.url), tmp_path)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nobody_at_the_port_is_network(tmp_path: Path, quick: None) -> None:
    with pytest.raises(NetworkError, match=r"EndpointConnectionError"):
        storage_at(tmp_path, f"http://127.0.0.1:{free_port()}").read(URI)


def test_no_room_for_what_is_fetched_is_no_matter_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    storage = storage_at(tmp_path, "http://127.0.0.1:9")
    monkeypatch.setattr(storage._s3(), "download_file", full)
    with pytest.raises(ConfigError, match="No space left"):
        storage.fetch(URI, tmp_path)


def test_what_a_killed_writer_left_is_no_object_and_goes_with_the_next_write(tmp_path: Path) -> None:
    storage = Storage(Settings(store=tmp_path.as_uri(), tracking_uri="sqlite:///none"))
    words = [sys.executable, "-c", WRITES_AND_IS_KILLED, str(tmp_path / "fits" / "a"), str(tmp_path)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    [left] = tmp_path.glob(".part-*")
    assert storage.list(tmp_path.as_uri()) == []

    with module._atomic(tmp_path / "reports" / "b", tmp_path) as part:
        part.write_bytes(b"slowly")
        storage.write(storage.uri("reports", "a"), b"whole")
        assert part.read_bytes() == b"slowly", "the part of a writer that lives stays"

    assert not left.exists()
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == ["a", "b"]
