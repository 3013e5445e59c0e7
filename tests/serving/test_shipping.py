"""Records reach the bucket once they are whole, wait while it does not answer, and never fill the disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.shipping import main, ship, trim

BUCKET = "retrain-store"


def recorded(folder: Path, name: str, *, age: int = 0, size: int = 4) -> Path:
    file = folder / "2026-11-28" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"r" * size)
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def keys(s3: Any) -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket=BUCKET).get("Contents", ())]


def test_whole_files_go_and_unfinished_ones_stay(s3: Any, tmp_path: Path) -> None:
    done, part = recorded(tmp_path, "3-a.parquet"), recorded(tmp_path, ".part-3-b.parquet")
    assert ship(s3, tmp_path, BUCKET, "predictions/m") == 1
    assert keys(s3) == ["predictions/m/2026-11-28/3-a.parquet"]
    assert (done.exists(), part.exists()) == (False, True)
    assert ship(s3, tmp_path, BUCKET, "predictions/m") == 0


def test_what_the_bucket_does_not_take_waits(s3: Any, tmp_path: Path) -> None:
    file = recorded(tmp_path, "3-a.parquet")
    assert ship(s3, tmp_path, "no-such-bucket", "predictions/m") == 0
    assert file.exists()


def test_the_oldest_go_where_too_much_waits(tmp_path: Path) -> None:
    old = recorded(tmp_path, "3-a.parquet", age=10, size=60)
    new = recorded(tmp_path, "3-b.parquet", size=60)
    assert trim(tmp_path, max_bytes=100) == 1
    assert (old.exists(), new.exists()) == (False, True)


def test_a_place_that_is_no_bucket_is_a_config_error(tmp_path: Path) -> None:
    assert main([str(tmp_path), "https://example.org/x"]) == 78


def test_told_to_end_it_brings_what_is_left(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path, "3-a.parquet")
    told: list[int] = []

    def at_once(number: int, handler: Callable[[], None]) -> None:
        told.append(number)
        handler()

    monkeypatch.setattr(signal, "signal", at_once)
    assert main([str(tmp_path), f"s3://{BUCKET}/predictions/m"]) == 0
    assert told == [signal.SIGTERM]
    assert keys(s3) == ["predictions/m/2026-11-28/3-a.parquet"]
