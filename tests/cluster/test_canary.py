"""Canary and blue-green on a real cluster, under load through Traefik: what callers see, what is measured, and what
ledger, alias, Deployment and Rollout say when it is over.

One history through all tests, in order: each goes on from what the one before left serving.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from contracts.names import ALIAS_PRODUCTION
from contracts.outcomes import Outcome, State
from contracts.pipeline.operation import Records
from contracts.stages import Deploy
from steps.deploy import deploy
from steps.probes.release import release_findings
from steps.rollout import kubernetes
from tests.cluster.conftest import ROOT, Cluster
from tests.cluster.load import TRAEFIK, Load
from tests.cluster.odd_models import odd_package
from tests.cluster.test_rollout import Place, prepared

NAMESPACE = os.environ.get("CANARY_NAMESPACE", "canary-test")
CANARY = {
    "steps": [{"weight": 30, "hold": "15s"}],
    "analysis": {
        "interval": "5s",
        "window": "20s",
        "min_requests": 100,
        "patience": "3m",
        "hold": "15s",
        "max_latency_ratio": 6,
    },
}


@pytest.fixture(scope="module")
def place(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    for kind in ("rollouts.argoproj.io", "traefikservices.traefik.io"):
        if cluster.run("kubectl", "get", "crd", kind).returncode != 0:
            pytest.skip(f"the cluster has no {kind}")
    url = f"http://prometheus.{NAMESPACE}:9090"
    store = "s3://models/store"
    with prepared(cluster, NAMESPACE, tmp_path_factory.mktemp("canary"), prometheus_url=url, store=store) as made:
        made.cluster.kubectl("apply", "-f", "-", stdin=prometheus(cluster))
        done = made.cluster.run(
            "kubectl", "-n", NAMESPACE, "rollout", "status", "deployment/prometheus", "--timeout=120s", timeout=130
        )
        if done.returncode != 0:
            pytest.skip("the chart's Prometheus does not start: is its image there?")
        yield made


def prometheus(cluster: Cluster) -> str:
    """Return the chart's own Prometheus."""
    images = ("steps", "serving", "mlflow")
    done = cluster.run(
        "helm", "template", "platform", str(ROOT / "kind" / "platform"), "-n", NAMESPACE, "--kube-version", "1.34.0",
        "-s", "templates/prometheus.yaml", "--set", "prometheus.enabled=true",
        *(part for name in images for part in ("--set", f"images.{name}=none")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def release(place: Place, kind: str, strategy: str = "canary", **more: Any) -> Deploy.Outputs:
    how = {**(CANARY if strategy == "canary" else {"analysis": CANARY["analysis"]}), **more}
    world = place.world(strategy=strategy, how=how)
    world.pipeline = world.pipeline.model_copy(update={"records": Records(share=1 if "shadow" in more else 0)})
    folder = odd_package(world.scratch / "package", kind, place.runs)
    return deploy(place.approve_package(world, folder), world=world)


def agree(place: Place, version: int) -> None:
    """Ledger, alias, Deployment and what answers are of one version."""
    world = place.base
    serving = world.ledger.serving(world.pipeline.name)
    assert serving is not None
    assert serving.version == world.registry.alias(ALIAS_PRODUCTION) == version
    assert kubernetes.serving_version(world.settings, world.pipeline.name) == version
    template = place.get("deployment", world.pipeline.name)["spec"]["template"]
    assert template["metadata"]["annotations"]["retrain/version"] == str(version)
    assert place.serves() == version


def released_under_load(place: Place, strategy: str = "canary") -> Load:
    """Release a good version while callers come through Traefik, and others to the Service; none may fail."""
    with through_traefik(place) as load, Load(place.host, rate=20) as direct:
        time.sleep(3)
        done = release(place, "good", strategy)
        time.sleep(3)
    print(f"{strategy}: {done.summary}\n{dict(load.seen)}, {load.rate:.0f} a second; direct {dict(direct.seen)}")
    assert done.outcome is Outcome.PROMOTED
    assert not load.failed
    assert not direct.failed
    agree(place, place.runs)
    return load


def through_traefik(place: Place) -> Load:
    return Load(place.host, via=TRAEFIK)


def test_every_object_is_one_that_the_cluster_takes(place: Place) -> None:
    for strategy in ("canary", "blue-green"):
        assert list(release_findings(place.world(strategy=strategy))) == []
    place.runs = 0


def test_the_first_release_serves_by_a_rollout_and_a_good_canary_follows_it_without_a_failed_request(
    place: Place,
) -> None:
    assert release(place, "good").outcome is Outcome.PROMOTED
    agree(place, 1)
    load = released_under_load(place)

    assert set(load.seen) == {"200 version 1", "200 version 2"}
    world = place.base
    evidence = world.ledger.entries(world.pipeline.name)[-2].evidence  # before the alias's note
    print(evidence["analysis"])
    assert evidence["strategy"] == "canary"
    assert evidence["analysis"]["error-rate"] == 0


LOST = {"errors": {"500"}, "crashing": {"502", "503"}}
"""What callers of such a canary may get."""


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("errors", ("error-rate",)),
        ("shifted", ("score-distribution", "positive-share")),
        ("slow", ("latency",)),
        ("crashing", ("container server crashed", "restarts")),
    ],
)
def test_a_bad_canary_is_taken_back_under_load_and_all_agree(place: Place, kind: str, named: tuple[str, ...]) -> None:
    with through_traefik(place) as load:
        time.sleep(3)
        done = release(place, kind)
        time.sleep(2)
    bad = place.base.ledger.entries(place.base.pipeline.name)[-1]

    print(f"{kind}: {done.summary}\n{dict(load.seen)}, {load.rate:.0f} requests a second\n{dict(bad.evidence)}")
    assert done.outcome is Outcome.ROLLED_BACK
    assert any(name in done.summary for name in named)
    assert bad.state is State.ROLLED_BACK
    if kind != "crashing":
        assert bad.evidence["metric"] in named
    assert set(load.failed) <= LOST.get(kind, set()), "of a version that was taken back before"
    lost, canary = sum(load.failed.values()), load.seen[f"200 version {bad.version}"]
    assert load.seen["200 version 2"] > lost + canary, "most went to the version that serves"
    assert lost <= 0.45 * sum(load.seen.values()), "no more than its weight"
    agree(place, 2)
    with through_traefik(place) as after:
        time.sleep(5)
    assert set(after.seen) == {"200 version 2"}


def test_blue_green_switches_everyone_at_once_without_a_failed_request(place: Place) -> None:
    released_under_load(place, "blue-green")


@pytest.mark.parametrize("strategy", ["rolling", "canary"])
def test_from_one_strategy_to_another_no_request_fails(place: Place, strategy: str) -> None:
    released_under_load(place, strategy)

    assert len(place.get("rollouts.argoproj.io")) == (1 if strategy == "canary" else 0)


def test_a_shadow_answers_copies_that_no_caller_sees_and_one_that_differs_is_taken_back(place: Place) -> None:
    with through_traefik(place):
        assert release(place, "good", shadow={"hold": "1s"}).outcome is Outcome.PROMOTED, (
            "from here on it keeps records"
        )
    champion = place.runs
    with through_traefik(place) as load:
        time.sleep(3)
        done = release(place, "good", shadow={"hold": "20s", "max_label_changes": 0.2})
        time.sleep(2)
    last = place.base.ledger.entries(place.base.pipeline.name)[-1]

    print(f"shadow: {done.summary}\n{dict(load.seen)}\n{dict(last.evidence)}")
    assert done.outcome is Outcome.ROLLED_BACK
    assert "shadow: " in done.summary
    assert not load.failed
    assert f"200 version {place.runs}" not in load.seen, "no caller met it"
    assert last.evidence["shadow"]["rows"] > 100
    assert 0.3 < last.evidence["shadow"]["label_changes"] < 0.7, "both draw at random"
    agree(place, champion)
    left = place.cluster.kubectl("get", "deploy,svc,traefikservices.traefik.io,networkpolicy", "-o", "name")
    assert "shadow" not in left
