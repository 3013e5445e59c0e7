"""The store as nodes: each dataset, split, report and so on with when it was last written, and what it names.

A folder that is not in the table below is none of retention's business, and is left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from contracts.names import PREDICTIONS
from contracts.references import DATASET_MANIFEST, SPLIT_MANIFEST
from contracts.stages import Features, Train
from steps.ingest_report import IngestReport
from steps.reports import INGEST_REPORT
from steps.retention.plan import Kind, Limit, Node
from steps.retention.versions import place_key, run_key
from steps.reuse import Remembered
from steps.storage import Storage, Stored
from steps.training.fitting import FIT_FILE

_FOLDERS = {
    "datasets": (Kind.DATASET, 1), "splits": (Kind.SPLIT, 1), "code": (Kind.CODE, 1), "reports": (Kind.REPORTS, 1),
    "logs": (Kind.LOGS, 1), "cache": (Kind.CACHE, 2), "fits": (Kind.FIT, 1), "builds": (Kind.BUILD, 1),
    PREDICTIONS: (Kind.RECORDS, 2),
}  # fmt: skip
"""Folder of the store -> what lies in it, and how many parts of a path below it make one thing."""
_FIRST = (DATASET_MANIFEST, SPLIT_MANIFEST, FIT_FILE)
"""Written last, so removed first: what has one is whole."""


def object_nodes(storage: Storage, read_since: datetime) -> Iterator[Node]:
    """Yield everything in the store's folders.

    Parameters
    ----------
    read_since
        What was written before is not asked what it names: nothing but its age decides on it.
    """
    for folder, (kind, depth) in _FOLDERS.items():
        start, things = f"{storage.uri(folder)}/", defaultdict[str, list[Stored]](list)
        for stored in storage.objects(start):
            key = "/".join((folder, *stored.uri.removeprefix(start).split("/")[:depth]))
            things[key].append(stored)
        for key, files in sorted(things.items()):
            modified, records = max(each.modified for each in files), kind is Kind.RECORDS
            yield Node(
                key=key, kind=kind, since=(_day_after(key) if records else None) or modified,
                limit=Limit.RECORDS if records else Limit.UNSERVED,
                refers=_named(storage, key, files) if modified >= read_since else frozenset(),
                size=sum(each.size for each in files), model=key.split("/")[1] if records else "",
            )  # fmt: skip


def in_order(objects: list[Stored]) -> list[Stored]:
    """Return a thing's objects in the order in which they may be removed."""
    return sorted(objects, key=lambda stored: (not stored.uri.endswith(_FIRST), stored.uri))


def _named(storage: Storage, key: str, files: list[Stored]) -> frozenset[str]:
    """Return what a run used lately: its report names the dataset, the cache what was taken again."""
    with suppress(ValidationError):  # of another version of retrain: its age alone counts
        if (ingested := storage.uri(key, INGEST_REPORT)) in {each.uri for each in files}:
            report = IngestReport.model_validate_json(storage.read(ingested))
            return frozenset({place_key(report.dataset)})
        if key.startswith((f"cache/{Train.name}/", f"cache/{Features.name}/")):
            outputs = Remembered.model_validate_json(storage.read(storage.uri(key))).outputs
            run, split = outputs.get("run_id"), outputs.get("split")
            return frozenset((*([run_key(run)] if run else ()), *([place_key(split)] if split else ())))
    return frozenset()


def _day_after(key: str) -> datetime | None:
    """Return the end of the day whose records these are, None where the folder is called otherwise."""
    with suppress(ValueError):
        return datetime.fromisoformat(key.rpartition("/")[2]).replace(tzinfo=UTC) + timedelta(days=1)
    return None
