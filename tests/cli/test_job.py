"""A Workflow of its own that failed: its class is that of its last pod, and what is said is what that wrote."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from contracts.errors import CODE, CONFIG, INFRASTRUCTURE, NETWORK, RESOURCES, ErrorClass, StageError
from workflows.cluster import images, job

LOG = ["INFO[0002] Retrieving image", "error checking push permissions: 503"]
INSTALLER = ["ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "error building image: exit status 78"]


class Place:
    """A namespace in which every Workflow has failed in its only pod, if it had one."""

    namespace = "mlops"
    settings: ClassVar = {"RETRAIN_STORE": "s3://store"}

    def __init__(self, template: str, phase: str, message: str, log: list[str], *, started: bool = True) -> None:
        node = {
            "id": "n", "name": "n", "displayName": template, "type": "Pod", "templateName": template, "phase": phase,
            "message": message, "startedAt": "2026-11-24T20:04:56Z",
        }  # fmt: skip
        self.status = {
            "phase": "Failed", "message": "" if started else message, "finishedAt": "2026-11-24T20:05:56Z",
            "nodes": {"n": node} if started else {},
        }  # fmt: skip
        self.written = log

    def create(self, wanted: dict[str, Any]) -> None:
        self.name = wanted["metadata"]["name"]

    def get(self, kind: str, name: str) -> dict[str, Any]:
        metadata = {"name": name, "uid": "u", "creationTimestamp": "2026-11-24T20:04:50Z", "resourceVersion": "1"}
        return {"kind": kind, "metadata": metadata, "spec": {}, "status": self.status}

    def select(self, kind: str, _labels: dict[str, str]) -> list[dict[str, Any]]:
        annotations = {"workflows.argoproj.io/node-id": "n"}
        return [{"kind": kind, "metadata": {"name": "pod", "annotations": annotations}}]

    def log(self, *_: Any, **__: Any) -> list[str]:
        return self.written


@pytest.mark.parametrize(
    ("phase", "message", "log", "row", "said"),
    [
        ("Failed", "main: Error (exit code 1)", LOG, NETWORK, "error checking push permissions: 503"),
        ("Failed", "main: Error (exit code 78)", INSTALLER, CONFIG, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"),
        ("Failed", "main: OOMKilled (exit code 137)", LOG[:1], RESOURCES, "not built: main: OOMKilled"),
        ("Failed", "workflow shutdown with strategy:  Stop", [], INFRASTRUCTURE, "not built: workflow shutdown"),
        ("Error", "pod deleted", [], INFRASTRUCTURE, "not built: pod deleted"),
        ("Failed", "Pod was active on the node longer than the specified deadline", [], CODE, "not built: Pod was act"),
    ],
)
def test_an_image_that_was_not_built_says_why_in_the_class_of_what_failed(
    phase: str, message: str, log: list[str], row: ErrorClass, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "put", lambda *_: None)
    monkeypatch.setattr(images, "workflow", lambda name, *_: {"metadata": {"name": name}})
    place = Place("kaniko", phase, message, log)

    with pytest.raises(StageError) as failed:
        images.build(place, {}, "registry/steps:tag", b"context")  # type: ignore[arg-type]

    assert failed.value.row is row
    assert said in failed.value.message
    assert failed.value.remedy == f"`retrain logs {place.name} -n mlops` has all of it"


def test_the_last_line_of_a_stage_is_told() -> None:
    place = Place("retention", "Failed", "main: Error (exit code 75)", ["begins", "network: S3 is away"])

    with pytest.raises(StageError, match=r"x: network: S3 is away \(main: Error \(exit code 75\)\)") as failed:
        job.succeeded(place, "x")  # type: ignore[arg-type]

    assert failed.value.row is NETWORK


def test_one_that_never_had_a_pod_says_what_argo_says() -> None:
    place = Place("retention", "", "invalid spec: no such template", [], started=False)

    with pytest.raises(StageError, match="x: invalid spec: no such template"):
        job.succeeded(place, "x")  # type: ignore[arg-type]
