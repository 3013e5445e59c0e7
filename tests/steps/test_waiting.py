"""Of a pod that was given up before it began, its events say what it waited for."""

from __future__ import annotations

from typing import Any, cast

import pytest

from contracts.errors import CONFIG, INFRASTRUCTURE
from steps.rollout.cluster import Cluster
from steps.waiting import Waited, waited_for


class Heard:
    """A namespace that has heard of pods."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.events = list(events)

    def select(self, kind: str) -> list[dict[str, Any]]:
        assert kind == "Event"
        return self.events


def event(reason: str, message: str, at: str = "2026-01-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    about = {"name": more.pop("pod", "p"), "fieldPath": "spec.containers{main}"}
    return {
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": about,
        "lastTimestamp": at,
    } | more


def waited(*events: dict[str, Any]) -> Waited | None:
    return waited_for(cast("Cluster", Heard(*events)), "p")


PULL = 'Failed to pull image "x@sha256:0": not found'
KEY = "Error: couldn't find key token in Secret mlops/s"


@pytest.mark.parametrize(
    ("reason", "message", "row"),
    [
        ("Failed", PULL, CONFIG),
        ("Failed", KEY, CONFIG),
        ("FailedMount", 'MountVolume.SetUp failed for volume "pipeline": configmap "c" not found', CONFIG),
        ("FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.", INFRASTRUCTURE),
    ],
)
def test_the_warning_is_the_reason(reason: str, message: str, row: Any) -> None:
    assert waited(event(reason, message)) == Waited(message, row)


def test_what_only_repeats_it_is_passed_over() -> None:
    found = waited(
        event("Failed", PULL, "2026-01-01T00:00:00Z"),
        event("Failed", "Error: ErrImagePull", "2026-01-01T00:00:01Z"),
        event("BackOff", 'Back-off pulling image "x@sha256:0"', "2026-01-01T00:00:02Z"),
        event("Failed", "Error: ImagePullBackOff", "2026-01-01T00:00:03Z"),
    )

    assert found == Waited(PULL, CONFIG)


def test_one_that_began_did_not_wait_to_its_end() -> None:
    assert (
        waited(event("FailedScheduling", "no cpu"), event("Started", "Started container main", type="Normal")) is None
    )


def test_others_pods_and_what_is_no_warning_say_nothing() -> None:
    assert waited(event("Failed", PULL, pod="q"), event("Pulling", "Pulling image", type="Normal")) is None
