"""A person's word on a run, from the pod that asks for it to the pod that releases, or does not.

One history through all tests, in order: each goes on from what the one before left.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.small_run import APPROVAL, SmallRun


@pytest.fixture(scope="module")
def asking(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRun]:
    made = SmallRun.make(platform, tmp_path_factory.mktemp("words"), "words", gates=APPROVAL)
    yield made
    made.remove()


def waiting(run: SmallRun) -> list[dict[str, Any]]:
    """Return what `retrain approvals` lists of this pipeline."""
    return [each for each in json.loads(run.retrain("approvals", "--json")) if each["model"] == run.name]


def states(run: SmallRun, version: int) -> list[str]:
    return [state for state, of in run.records()["chain"] if of == version]


def test_what_passes_its_gate_waits_and_nothing_serves_yet(asking: SmallRun) -> None:
    said = asking.ends(0)

    assert said["outcome"] == "awaiting-approval"
    [request] = waiting(asking)
    assert (request["version"], request["workflow"], request["lapsed"]) == (1, said["workflow"], "")
    assert asking.left()["deployments"] == []
    shown = json.loads(asking.retrain("review", said["workflow"], "--page", "page.html", "--json"))
    assert shown["challenger"]["version"] == 1
    assert "<!doctype html>" in (asking.folder / "page.html").read_text()


def test_a_release_that_nobody_approved_is_none(asking: SmallRun) -> None:
    said = asking.ends(0, "--entrypoint", "release", "--version", "1")

    assert said["outcome"] == "not-approved"
    assert asking.left()["deployments"] == []
    assert [request["version"] for request in waiting(asking)] == [1], "it still waits"


def test_a_yes_releases_it_in_the_name_of_who_said_it(asking: SmallRun) -> None:
    [request] = waiting(asking)
    said = json.loads(asking.retrain("approve", request["workflow"], "--reason", "seen", "--json"))

    assert said["outcome"] == "promoted"
    left = asking.left()
    assert left["chain"] == [["registered", 1], ["awaiting", 1], ["approved", 1], ["releasing", 1], ["serving", 1]]
    assert (left["serves"], left["broken"], waiting(asking)) == (1, [], [])
    me = json.loads(asking.cluster.kubectl("auth", "whoami", "-o", "json"))["status"]["userInfo"]["username"]
    lineage = json.loads(asking.retrain("lineage", f"{asking.name}@production", "--json"))
    assert lineage["version"] == 1
    assert me in json.dumps(lineage), "who let it through"


def test_a_no_leaves_what_serves(asking: SmallRun) -> None:
    asking.take_data(2)
    said = asking.ends(0)
    assert said["outcome"] == "awaiting-approval"
    asking.retrain("reject", f"{asking.name}@2", "--reason", "not this one")

    assert states(asking, 2) == ["registered", "awaiting", "rejected"]
    assert asking.left()["serves"] == 1
    assert waiting(asking) == []


def test_a_newer_candidate_takes_the_place_of_one_that_waits(asking: SmallRun) -> None:
    for seed in (3, 4):
        asking.take_data(seed)
        assert asking.ends(0)["outcome"] == "awaiting-approval"

    assert states(asking, 3) == ["registered", "awaiting", "superseded"]
    assert [request["version"] for request in waiting(asking)] == [4]
    asking.retrain("approve", f"{asking.name}@4", "--reason", "seen", "--require-promoted")
    assert asking.left()["serves"] == 4
