"""A canary by a whole run, judged by the platform's Prometheus, and the way back from it, under load by Traefik."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.cluster.conftest import Cluster
from tests.cluster.load import TRAEFIK, Load
from tests.cluster.small_run import OF_PIPELINE, SmallRun

HOLD_SECONDS = 20
RELEASE = {
    "strategy": "canary", "drain_timeout": "2s", "ready_timeout": "600s",
    "steps": [{"weight": 50, "hold": f"{HOLD_SECONDS}s"}, {"weight": 80, "hold": f"{HOLD_SECONDS}s"}],
    # both versions answer the same few rows again and again: their scores differ as they do there, not by chance
    "analysis": {
        "interval": "5s", "window": "20s", "min_requests": 30, "patience": "5m", "max_latency_ratio": 6,
        "max_score_distance": 0.9, "max_label_distance": 0.9,
    },
}  # fmt: skip
CUSTOMERS = [{"age": age, "plan": plan} for age in range(20, 80, 5) for plan in ("basic", "plus")]


@pytest.fixture(scope="module")
def small(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallRun]:
    if not platform.get("configmap", "retrain-settings")["data"].get("RETRAIN_PROMETHEUS_URL"):
        pytest.skip("the platform has no Prometheus: values `prometheus: {enabled: true}`")
    made = SmallRun.make(platform, tmp_path_factory.mktemp("canary"), "canary", release=RELEASE)
    yield made
    made.remove()
    gradual = "rollouts.argoproj.io,analysistemplates.argoproj.io,traefikservices.traefik.io,ingressroutes.traefik.io"
    platform.kubectl("delete", gradual, "-l", f"{OF_PIPELINE}={made.name}", "--wait=false")


def calls(run: SmallRun) -> Load:
    """Callers for whom one server a version is enough, so that a small node holds both."""
    return Load(f"{run.name}.{run.cluster.namespace}", via=TRAEFIK, instances=CUSTOMERS, rate=24)


def served(run: SmallRun, version: int) -> tuple[dict[str, Any], float]:
    """Return the evidence of a version's newest *serving*, and the seconds since its *releasing*."""
    lineage = json.loads(run.retrain("lineage", f"{run.name}@{version}", "--json"))
    releasing, serving = [e for e in lineage["history"] if e["state"] in ("releasing", "serving")][-2:]
    began, ended = (datetime.fromisoformat(entry["at"]) for entry in (releasing, serving))
    return serving["evidence"], (ended - began).total_seconds()


def test_a_run_shares_the_requests_out_and_loses_none(small: SmallRun) -> None:
    assert small.ends(0)["outcome"] == "promoted"
    small.take_data(2)
    with calls(small) as load:
        assert small.ends(0)["outcome"] == "promoted"
    evidence, seconds = served(small, 2)

    print(dict(load.seen), seconds, evidence["analysis"])
    assert set(load.seen) == {"200 version 1", "200 version 2"}
    assert (evidence["strategy"], evidence["analysis"]["error-rate"]) == ("canary", 0)
    assert seconds > 2 * HOLD_SECONDS
    left = small.left()
    assert (left["serves"], left["aliases"]["production"], left["deployments"]) == (2, 2, ["2"])


def test_the_way_back_waits_for_no_step_and_loses_none(small: SmallRun) -> None:
    with calls(small) as load:
        small.retrain("rollback", small.name, "--reason", "to see how long it takes")
    evidence, seconds = served(small, 1)

    print(dict(load.seen), seconds)
    assert set(load.seen) == {"200 version 1", "200 version 2"}
    assert evidence["analysis"] == {}
    assert seconds < 2 * HOLD_SECONDS
    left = small.left()
    assert (left["serves"], left["aliases"]["production"], left["deployments"]) == (1, 1, ["1"])
