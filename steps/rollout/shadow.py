"""A new version beside the one that serves: it gets a copy of the requests, and nobody sees its answers.

Called by `steps.rollout.gradual` before any caller meets the new version.  Both keep records of the same requests
(`serving.sampling`); what their answers differ by is read from there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts import names
from contracts.access import SHADOW
from contracts.names import PREDICTIONS
from contracts.pipeline.operation import Shadow
from contracts.prediction_id import PredictionId
from steps.rollout.cluster import VERSIONS, Object
from steps.rollout.gradual_objects import service

if TYPE_CHECKING:
    import pyarrow as pa

    from steps.storage import Storage

_COLUMNS = ("id", "time", "key", "label", "scores")
Key = tuple[str, int]


@dataclass(frozen=True)
class Difference:
    """What two versions answered to the same requests.

    `rows` were answered by both.  `label_changes` is the share of them with another label, None for a regression;
    `score_difference` is the largest absolute difference among a row's scores, as a mean over rows, and `largest` the
    largest of all.
    """

    rows: int
    label_changes: float | None
    score_difference: float | None
    largest: float | None

    def __str__(self) -> str:
        if not self.rows:
            return "no request was recorded of both"
        changed = f", {self.label_changes:.2%} other labels" if self.label_changes is not None else ""
        scores = f", scores differ by {self.score_difference:.4g} (at most {self.largest:.4g})" if self.largest else ""
        return f"{self.rows} rows of both{changed}{scores}"


def objects(wanted: Sequence[Object], replicas: int, percent: int) -> list[Object]:
    """Return what a shadow is made of, from the objects of the release that it precedes.

    Its pods are those of the new version, under a label of their own.  The route to the TraefikService that copies
    requests comes last, once the pods answer.
    """
    name = next(each for each in wanted if each["kind"] == "Deployment")["metadata"]["name"]
    kinds = {each["kind"]: each for each in wanted if each["metadata"]["name"] == name}
    labels = {names.LABEL_PIPELINE: name, names.LABEL_STAGE: SHADOW}
    deployment = dict(kinds["Deployment"]["spec"])
    template = {
        "metadata": {**deployment["template"]["metadata"], "labels": labels},
        "spec": {**deployment["template"]["spec"], "topologySpreadConstraints": []},
    }
    copied = {**service(shadow_name(name)), "percent": percent}
    confining = [
        _named(kind, name, kinds, {**each["spec"], "podSelector": {"matchLabels": labels}})
        for kind, each in kinds.items()
        if kind == "NetworkPolicy"
    ]
    return [
        *confining,
        _named("Service", name, kinds, {"selector": labels, "ports": kinds["Service"]["spec"]["ports"]}),
        _named("Deployment", name, kinds, {
            **deployment, "replicas": replicas, "selector": {"matchLabels": labels}, "template": template,
        }),
        _named("TraefikService", name, kinds, {"mirroring": {**service(name), "mirrors": [copied]}}),
    ]  # fmt: skip


def route(wanted: Object) -> Object:
    """Return the pipeline's IngressRoute while requests are copied."""
    name = wanted["metadata"]["name"]
    rules = [
        {**rule, "services": [{"kind": "TraefikService", "name": shadow_name(name)}]}
        for rule in wanted["spec"]["routes"]
    ]
    return {**wanted, "spec": {**wanted["spec"], "routes": rules}}


def shadow_name(name: str) -> str:
    """Return the name of a shadow's objects."""
    return f"{name}-{SHADOW}"


def difference(champion: pa.Table, challenger: pa.Table) -> Difference:
    """Compare the records of two versions, joined by the request's key and the row's place in it."""
    one, other = dict(_answers(champion)), dict(_answers(challenger))
    both = [(one[key], other[key]) for key in one.keys() & other.keys()]
    labelled = [(a["label"], b["label"]) for a, b in both if a["label"] is not None and b["label"] is not None]
    scored = [d for a, b in both if (d := _largest(a["scores"], b["scores"])) is not None]
    return Difference(
        rows=len(both),
        label_changes=sum(a != b for a, b in labelled) / len(labelled) if labelled else None,
        score_difference=sum(scored) / len(scored) if scored else None,
        largest=max(scored, default=None),
    )


def objection(found: Difference, how: Shadow, champion: int) -> str:
    """Say why a version may meet no caller: its labels differ, or that cannot be told of so few; empty where it may."""
    if (limit := how.max_label_changes) is None:
        return ""
    if found.rows < how.min_rows or found.label_changes is None:
        return f"shadow: {found}; whether its labels differ is judged of {how.min_rows} rows or more"
    if found.label_changes > limit:
        return f"shadow: {found.label_changes:.2%} of its labels differ from version {champion}'s, {limit:.2%} may"
    return ""


def records(storage: Storage, name: str, version: int, since: datetime) -> pa.Table:
    """Return the records of a version since a moment (UTC)."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    found = []
    with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
        for number, uri in enumerate(_files(storage, name, version, since)):
            (place := Path(folder) / str(number)).mkdir()
            table = pq.read_table(storage.fetch(uri, place), columns=list(_COLUMNS))
            found.append(table.filter(pc.greater_equal(table["time"], pa.scalar(since, pa.timestamp("us", "UTC")))))
    return pa.concat_tables(found) if found else pa.table({column: [] for column in _COLUMNS})


def _files(storage: Storage, name: str, version: int, since: datetime) -> Iterator[str]:
    days = (datetime.now(UTC).date() - since.date()).days
    for day in range(days + 1):
        folder = storage.uri(PREDICTIONS, name, f"{since.date() + timedelta(days=day):%Y-%m-%d}")
        for uri in storage.list(folder):
            if uri.rpartition("/")[2].startswith(f"{version}-"):
                yield uri


def _answers(table: pa.Table) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    for row in table.to_pylist():
        prediction = PredictionId.parse(row["id"])
        if prediction is not None and prediction.row is not None:
            yield (row["key"], prediction.row), row


def _largest(one: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a is not None and b is not None]
    return max((abs(a - b) for a, b in pairs), default=None)


def _named(kind: str, name: str, kinds: Mapping[str, Object], spec: dict[str, Any]) -> Object:
    metadata = kinds["Deployment"]["metadata"]
    labels = {**metadata["labels"], names.LABEL_STAGE: SHADOW, "app.kubernetes.io/component": SHADOW}
    place = {"name": shadow_name(name), "namespace": metadata["namespace"], "labels": labels}
    return {"apiVersion": VERSIONS[kind], "kind": kind, "metadata": place, "spec": spec}
