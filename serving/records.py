"""Records of predictions, as Parquet files in a folder.  Filled by `serving.app`, for the requests that are sampled.

A request only leaves its answer in a queue; a thread of its own makes tables of them.  A file appears whole, under its
final name ``<day>/<version>-<unique>.parquet``; at the desk the folder is the store's, on a cluster `serving.shipping`
takes the files to the bucket.  Predictions never wait for records and never fail with them: what cannot be kept is
counted as lost.

One row a predicted row: `id`, `time` (UTC), `version`, `key` (of the request, hex; see `serving.sampling`), `label`
(null for a regression), `scores` (probabilities in the order of the schema's metadata `classes`, or the value) and,
where inputs may be kept, `inputs`: the row's columns but the sensitive ones.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.references import class_text
from serving.schemas import ModelAnswer

if TYPE_CHECKING:
    import pyarrow as pa

    from contracts.references import ModelManifest

LOG = logging.getLogger("retrain.server")

FLUSH_SECONDS = 30.0
"""A record lies in memory for so long at most; a server that is killed loses them."""
FILE_ROWS = 50_000
"""Rows after which a file is written sooner."""
WAITING_ROWS = 200_000
"""Rows that wait at most; what comes while so many do is lost."""


@dataclass(frozen=True)
class Recording:
    """Where records go, and of what; `share` of the requests, 0 to 1."""

    folder: Path
    share: float
    inputs: bool = False


@dataclass(frozen=True)
class _Answered:
    """One sampled request: what it got, when (seconds since 1970), and its rows where they are kept."""

    key: bytes
    at: float
    predictions: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]] | None


class Records:
    """The records of one server; `close` writes what is left.  `lost` counts the rows that could not be kept."""

    def __init__(self, recording: Recording, manifest: ModelManifest, identity: ModelAnswer) -> None:
        self.share, self.lost = recording.share, 0
        self._recording, self._identity = recording, identity
        self._columns = tuple(c for c in manifest.columns if not c.sensitive) if recording.inputs else ()
        self._classes = manifest.classes
        self._waiting: list[_Answered] = []
        self._rows, self._lock = 0, threading.Lock()
        self._wake, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="records", daemon=True)
        self._thread.start()

    def add(
        self, key: bytes, at: float, predictions: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Leave one answered request to be written; returns at once."""
        answered = _Answered(key, at, predictions, rows if self._columns else None)
        with self._lock:
            if self._rows >= WAITING_ROWS:
                self.lost += len(predictions)
                return
            self._rows += len(predictions)
            self._waiting.append(answered)
            if self._rows >= FILE_ROWS:
                self._wake.set()

    def close(self) -> None:
        """Write what is left and end; nothing may be added any more."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(FLUSH_SECONDS)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            taken, self._waiting, self._rows = self._waiting, [], 0
        if not taken:
            return
        try:
            self._write(self._table(taken))
        except Exception as error:  # noqa: BLE001  a full disk, say: the server answers on, and its metric says so
            rows = sum(len(each.predictions) for each in taken)
            LOG.error("%d records are lost: %s", rows, type(error).__name__)
            with self._lock:
                self.lost += rows

    def _table(self, taken: Sequence[_Answered]) -> pa.Table:
        import pyarrow as pa

        each = [(answered, prediction) for answered in taken for prediction in answered.predictions]
        columns = {
            "id": pa.array([p["id"] for _, p in each], pa.string()),
            "time": pa.array([round(a.at * 1e6) for a, _ in each], pa.int64()).cast(pa.timestamp("us", "UTC")),
            "version": pa.array([self._identity.version] * len(each), pa.int32()),
            "key": pa.array([a.key.hex() for a, _ in each], pa.string()),
            "label": pa.array([class_text(p["label"]) if "label" in p else None for _, p in each], pa.string()),
            "scores": pa.array([_scores(p) for _, p in each], pa.list_(pa.float64())),
        }  # fmt: skip
        if self._columns:
            columns["inputs"] = self._inputs(taken)
        said = {"model": self._identity.name, "run_id": self._identity.run_id, "classes": json.dumps(self._classes)}
        return pa.table(columns).replace_schema_metadata(said)

    def _inputs(self, taken: Sequence[_Answered]) -> pa.ChunkedArray:
        from serving.transform import rows_to_table

        kept = [column.name for column in self._columns]
        rows = [{name: row[name] for name in kept} for each in taken for row in each.rows or ()]
        return rows_to_table(self._columns, rows).to_struct_array()

    def _write(self, table: pa.Table) -> None:
        import pyarrow.parquet as pq

        day = self._recording.folder / f"{datetime.now(UTC):%Y-%m-%d}"
        day.mkdir(parents=True, exist_ok=True)
        name = f"{self._identity.version}-{uuid.uuid4().hex}.parquet"
        part = day / f".part-{name}"
        try:
            pq.write_table(table, part, compression="zstd")
            part.replace(day / name)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _scores(prediction: Mapping[str, Any]) -> list[float | None]:
    return [prediction["value"]] if "value" in prediction else list(prediction["probabilities"].values())
