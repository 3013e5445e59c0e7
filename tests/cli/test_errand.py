"""A pod that does one thing and failed: what it says, and of what class that is, by its status as kubelets write it."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import pytest

from contracts.access import RETENTION, SUBMIT
from contracts.errors import (
    CODE,
    CONFIG,
    INFRASTRUCTURE,
    NETWORK,
    RESOURCES,
    ErrorClass,
    Finding,
    NetworkError,
    StageError,
)
from tests.cli.test_cluster_approvals import here
from workflows.cluster import retention
from workflows.cluster.errand import errand

EVICTED = {"reason": "Evicted", "message": "The node was low on resource: memory."}
LATE = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"}


def ended(how: str, code: int, **status: str) -> dict[str, Any]:
    terminated = {"terminated": {"reason": how, "exitCode": code}}
    return {"phase": "Failed", "containerStatuses": [{"name": "main", "state": terminated}], **status}


class Place:
    """A namespace whose pods come to these states one after the other, and have written this."""

    settings: ClassVar = {"RETRAIN_STEPS_IMAGE": "registry/steps@sha256:" + "1" * 64}
    namespace = "mlops"

    def __init__(self, *statuses: dict[str, Any], said: str = "", feeds: bool = True) -> None:
        self.statuses = list(statuses)
        self.said = said
        self.feeds = feeds
        self.fed = b""
        self.made: list[dict[str, Any]] = []

    def create(self, wanted: dict[str, Any]) -> None:
        self.made.append(wanted)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return {"kind": kind, "metadata": {"name": name}, "status": status}

    def log(self, *_: Any, **__: Any) -> list[str]:
        return self.said.splitlines()

    def delete(self, *_: Any) -> None:
        pass

    def feed(self, _pod: str, chunks: Any) -> None:
        if not self.feeds:
            raise NetworkError("the API server answered 0 for pod")
        self.fed += b"".join(chunks)


@pytest.mark.parametrize(
    ("status", "said", "row", "message"),
    [
        (ended("OOMKilled", 137), "", RESOURCES, "OOMKilled (exit code 137)"),
        (ended("OOMKilled", 137), "reads a table", RESOURCES, "reads a table (OOMKilled (exit code 137))"),
        ({"phase": "Failed", **EVICTED}, "", INFRASTRUCTURE, "Evicted: The node was low on resource: memory."),
        (ended("Error", 137, **EVICTED), "", INFRASTRUCTURE, "Evicted: The node was low"),
        (ended("Error", 137, **LATE), "", CODE, "longer than the specified deadline"),
        (ended("Error", 1), "Traceback\nKeyError: 'x'", CODE, "KeyError: 'x' (Error (exit code 1))"),
        (ended("Error", 78), "the platform's image has another retrain", CONFIG, "cluster: the platform's image has"),
        ({"phase": "Failed"}, "", INFRASTRUCTURE, "it ended without a word"),
    ],
)
def test_how_a_pod_ended_gives_class_and_cause(
    status: dict[str, Any], said: str, row: ErrorClass, message: str
) -> None:
    with pytest.raises(StageError) as failed:
        errand(Place(status, said=said), SUBMIT, "pass")  # type: ignore[arg-type]

    assert failed.value.row is row
    assert message in failed.value.message


def test_what_a_program_found_comes_over_with_its_remedy() -> None:
    class Machine:
        environment: ClassVar = dict(os.environ)

    program = """
from contracts.errors import ConfigError, Finding
raise ConfigError("the ledger refuses", findings=[Finding(where="a", what="is b", remedy="c")], remedy="mend it")
"""
    with pytest.raises(StageError) as failed:
        here(Machine(), SUBMIT, program)  # type: ignore[arg-type]

    assert failed.value.row is CONFIG
    assert failed.value.message == "the ledger refuses"
    assert failed.value.findings == (Finding(where="a", what="is b", remedy="c"),)
    assert failed.value.remedy == "mend it"


def test_a_pod_that_failed_before_it_was_fed_says_why() -> None:
    place = Place(ended("Error", 78), said="RETRAIN_STORE is no URI", feeds=False)

    with pytest.raises(StageError, match="RETRAIN_STORE is no URI"):
        errand(place, SUBMIT, "pass", files=[b"data"])  # type: ignore[arg-type]


def test_a_pod_that_fails_while_it_is_fed_says_why() -> None:
    place = Place({"phase": "Running"}, {"phase": "Running"}, ended("Error", 78), said="no bucket", feeds=False)

    with pytest.raises(StageError, match="no bucket"):
        errand(place, SUBMIT, "pass", files=[b"data"])  # type: ignore[arg-type]


def test_a_running_pod_that_cannot_be_reached_is_a_matter_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.cluster.errand._TOLD_SECONDS", 0.1)
    with pytest.raises(NetworkError, match="answered 0 for pod") as failed:
        errand(Place({"phase": "Running"}, feeds=False), SUBMIT, "pass", files=[b"data"])  # type: ignore[arg-type]

    assert failed.value.row is NETWORK


def test_a_plan_of_retention_has_the_memory_of_the_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_on", lambda _: None)
    place = Place(ended("OOMKilled", 137))
    with pytest.raises(StageError):
        retention.look(place)  # type: ignore[arg-type]

    [planned] = place.made
    [removal] = retention.workflow("x", "")["spec"]["templates"]
    limits = planned["spec"]["containers"][0]["resources"]["limits"]
    assert planned["metadata"]["labels"] == {"retrain/stage": RETENTION}
    assert f'"memory": "{limits["memory"]}"' in removal["podSpecPatch"].partition("limits")[2]
