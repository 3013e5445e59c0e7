"""Canary and blue-green: the objects, how a Rollout stands, and the order in which a release changes what serves.

The cluster is a dictionary here, with as much of Argo Rollouts as the order of effects rests on; tests/cluster has the
real one.
"""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fastapi.testclient import TestClient

from contracts.errors import ConfigError, StageError
from contracts.outcomes import State
from contracts.pipeline.operation import Release
from contracts.references import LedgerEntry
from contracts.settings import Settings
from serving.app import create_app
from serving.model import PackagedModel
from serving.records import Recording, Records
from serving.schemas import ModelAnswer
from steps.probes import places, release
from steps.rollout import choice, gradual, kubernetes, shadow
from steps.rollout.cluster import Cluster, Conflict, NotThere, Object, UnknownKind
from steps.rollout.gradual import Gradual, crashed, is_new, seen, stands
from steps.rollout.gradual_objects import HASH
from steps.rollout.kubernetes import Kubernetes
from steps.rollout.objects import ANNOTATION, Version, objects, selector
from steps.rollout.target import NotHealthy
from steps.storage import local_path
from steps.world import World
from tests.model_packages import ROW, package
from tests.steps.registered import NOW, make_settings, make_world

HERE = Path(__file__).parent
NAME = "adult-income"
PROMETHEUS = "http://prometheus.mlops:9090"


def version(number: int) -> Version:
    return Version(
        model=NAME, version=number, run_id=f"r{number}", dataset_sha256="d" * 64, commit="abc",
        image=f"registry/m@sha256:{number}",
    )  # fmt: skip


def rendered(settings: Settings, strategy: str, number: int = 3) -> list[Object]:
    release = Release.model_validate({"strategy": strategy})
    return objects(version(number), release, settings, "serving", entry=f"e{number}", workflow=f"w{number}")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    said = {"deploy_target": "kubernetes", "serving_namespace": "serving", "model_keys": "public-key"}
    return make_settings(tmp_path, prometheus_url=PROMETHEUS, **said)


@pytest.mark.parametrize("strategy", ["canary", "blue-green"])
def test_what_a_release_applies_is_the_committed_file(settings: Settings, strategy: str) -> None:
    text = yaml.safe_dump_all(rendered(settings, strategy), sort_keys=False, width=120)
    golden = HERE / f"release-{strategy}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), "UPDATE_GOLDEN=1 writes it anew"


def test_the_rollout_makes_pods_of_the_deployments_template_and_the_autoscaler_turns_to_it(settings: Settings) -> None:
    found = {each["kind"]: each for each in rendered(settings, "canary")}
    assert found["Rollout"]["spec"]["workloadRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["kind"] == "Rollout"
    for kind in ("Rollout", "Deployment"):
        assert "replicas" not in found[kind]["spec"]
    steps = found["Rollout"]["spec"]["strategy"]["canary"]["steps"]
    assert [step["setWeight"] for step in steps if "setWeight" in step] == [10, 50]
    assert sum("analysis" in step for step in steps) == 2, "no weight is left without being judged"


# how a Rollout stands


def a_rollout(**status: Any) -> Object:
    seen = {"observedGeneration": "4", "workloadObservedGeneration": "7", "phase": "Healthy"}
    annotations = {"rollout.argoproj.io/workload-generation": "7"}
    return {
        "metadata": {"name": NAME, "uid": "r", "generation": 4, "annotations": annotations},
        "status": {**seen, **status},
    }


@pytest.mark.parametrize(
    ("status", "generation", "how"),
    [
        ({}, 7, "Healthy"),
        ({"observedGeneration": "3"}, 7, "Progressing"),
        ({}, 8, "Progressing"),
        ({"workloadObservedGeneration": "6"}, 7, "Progressing"),
        ({"phase": "Degraded", "abort": True}, 7, "Degraded"),
        ({"phase": "Degraded", "abort": True}, 8, "Progressing"),
        ({"phase": "Paused", "pauseConditions": [{"reason": "InconclusiveAnalysisRun"}]}, 7, "Undecided"),
        ({"phase": "Paused", "pauseConditions": [{"reason": "CanaryPauseStep"}]}, 7, "Paused"),
        ({"phase": ""}, 7, "Progressing"),
    ],
)
def test_a_phase_counts_only_once_spec_and_template_are_seen(status: Any, generation: int, how: str) -> None:
    assert stands(a_rollout(**status), {"metadata": {"generation": generation}}) == how


def test_a_restart_counts_only_once_the_rollout_has_seen_the_template() -> None:
    """Taken back, a Rollout says for a moment that the crashed version is its newest."""
    looked = a_rollout(currentPodHash="b", stableRS="a")
    assert seen(looked, {"metadata": {"generation": 7}})
    assert not seen(looked, {"metadata": {"generation": 8}})


def test_a_restart_ends_a_new_version_and_not_the_one_that_serves() -> None:
    again = {"status": {"containerStatuses": [{"restartCount": 1}], "initContainerStatuses": []}}
    fetched_twice = {
        "status": {"containerStatuses": [{"restartCount": 0}], "initContainerStatuses": [{"restartCount": 1}]}
    }
    assert [crashed(again), crashed(fetched_twice), crashed({})] == [True, False, False]
    assert is_new(a_rollout(currentPodHash="b", stableRS="a"))
    assert not is_new(a_rollout(currentPodHash="a", stableRS="a"))
    assert not is_new(a_rollout(currentPodHash="a")), "it is the first"


# the order of effects


@dataclass
class InMemory:
    """Objects of one namespace.  Argo Rollouts acts whenever it is looked at: `verdicts` says how each version does."""

    namespace: str = "serving"
    kinds: frozenset[str] = frozenset({"Rollout", "TraefikService", "IngressRoute", "AnalysisTemplate"})
    things: dict[tuple[str, str], Object] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    before_change: Callable[[], None] | None = None

    def knows(self, kind: str) -> bool:
        return kind in self.kinds

    def may(self, verb: str, group: str, resource: str) -> bool:
        return True

    def apply(self, wanted: Object, *, only_ask: bool = False) -> Object:
        if only_ask:
            return wanted
        self._changes()
        key = wanted["kind"], wanted["metadata"]["name"]
        now = self.things.get(key)
        new = copy.deepcopy(wanted)
        if key == ("Deployment", f"{NAME}-shadow"):
            new["metadata"]["generation"] = 1
            of_all = dict.fromkeys(("replicas", "updatedReplicas", "availableReplicas"), new["spec"]["replicas"])
            new["status"] = {"observedGeneration": 1, **of_all}
        elif key[0] in ("Deployment", "Rollout"):
            replicas = now["spec"]["replicas"] if now else 1
            before = {k: v for k, v in now["spec"].items() if k != "replicas"} if now else None
            generation = now["metadata"]["generation"] + (before != new["spec"]) if now else 1
            new["spec"]["replicas"], new["metadata"]["generation"] = replicas, generation
            new["metadata"]["uid"], new["status"] = key[0], now.get("status", {}) if now else {}
        self.things[key] = new
        self.done.append(f"apply {key[0]} {self._what(new)}".strip() + ("-shadow" if "shadow" in key[1] else ""))
        self._deployment_controller()
        return new

    def create(self, wanted: Object) -> Object:
        if (wanted["kind"], wanted["metadata"]["name"]) in self.things:
            raise Conflict("there")
        return self.apply(wanted)

    def get(self, kind: str, name: str) -> Object | None:
        if kind in ("Rollout", "TraefikService", "IngressRoute") and kind not in self.kinds:
            raise UnknownKind(kind)
        if kind == "Rollout":
            self._rollouts_controller()
        return copy.deepcopy(self.things.get((kind, name)))

    def select(self, kind: str, labels: Any = None) -> list[Object]:
        found = [thing for (of, _), thing in self.things.items() if of == kind]
        wanted = dict(labels or {})
        return [copy.deepcopy(t) for t in found if wanted.items() <= t["metadata"].get("labels", {}).items()]

    def scale(self, kind: str, name: str, replicas: int) -> None:
        self._changes()
        if (kind, name) not in self.things:
            raise NotThere(name)
        self.things[kind, name]["spec"]["replicas"] = replicas
        self.things[kind, name]["metadata"]["generation"] += 1
        self.done.append(f"scale {kind} {replicas}")
        self._deployment_controller()

    def delete(self, kind: str, name: str) -> None:
        self._changes()
        if self.things.pop((kind, name), None) is None:
            return
        self.done.append(f"delete {kind}")
        for key, thing in list(self.things.items()):
            if any(owner["uid"] == kind for owner in thing["metadata"].get("ownerReferences", ())):
                del self.things[key]

    def _changes(self) -> None:
        if self.before_change is not None:
            self.before_change()

    def log(self, *_: Any, **__: Any) -> list[str]:
        return ["2026 ERROR broken"]

    def serving(self) -> set[str]:
        """Return the versions that the Service leads to."""
        chosen = self.things["Service", NAME]["spec"]["selector"].get(HASH)
        found = set()
        for replicaset in self.select("ReplicaSet"):
            own = replicaset["metadata"]["labels"].get(HASH)
            if replicaset["spec"]["replicas"] and chosen in (None, own):
                found.add(self._said(replicaset["spec"]["template"]))
        return found

    def _what(self, thing: Object) -> str:
        return self._said(thing["spec"]["template"]) if thing["kind"] == "Deployment" else ""

    def _said(self, template: Object) -> str:
        return str(template["metadata"]["annotations"]["retrain/version"])

    def _replicaset(self, owner: str, template: Object, replicas: int) -> None:
        number = self._said(template)
        labels = {**selector(NAME), **({HASH: f"h{number}"} if owner == "Rollout" else {})}
        key = "ReplicaSet", f"{NAME}-{owner}-{number}"
        labelled = copy.deepcopy(template)
        labelled["metadata"]["labels"][HASH if owner == "Rollout" else "pod-template-hash"] = f"h{number}"
        made = self.things.get(key) or {
            "kind": "ReplicaSet",
            "metadata": {
                "name": key[1], "uid": key[1], "labels": labels, "annotations": {}, "ownerReferences": [{"uid": owner}],
            },
            "spec": {"template": labelled},
        }  # fmt: skip
        made["spec"]["replicas"] = replicas
        made["status"] = {"availableReplicas": replicas, "replicas": replicas}
        self.things[key] = made

    def _deployment_controller(self) -> None:
        if (deployment := self.things.get(("Deployment", NAME))) is None:
            return
        replicas = deployment["spec"]["replicas"]
        for (kind, name), thing in self.things.items():
            if kind == "ReplicaSet" and "-Deployment-" in name:
                thing["spec"]["replicas"] = 0
        self._replicaset("Deployment", deployment["spec"]["template"], replicas)
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"], "replicas": replicas,
            "updatedReplicas": replicas, "availableReplicas": replicas,
        }  # fmt: skip
        revision = deployment["metadata"].setdefault("annotations", {})
        revision["deployment.kubernetes.io/revision"] = self._said(deployment["spec"]["template"])
        made = self.things["ReplicaSet", f"{NAME}-Deployment-{self._said(deployment['spec']['template'])}"]
        made["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = revision[
            "deployment.kubernetes.io/revision"
        ]

    def _rollouts_controller(self) -> None:
        rollout, deployment = self.things.get(("Rollout", NAME)), self.things.get(("Deployment", NAME))
        if rollout is None or deployment is None:
            return
        template, status = deployment["spec"]["template"], rollout["status"]
        number = self._said(template)
        newest, stable = f"h{number}", status.get("stableRS", "")
        self._replicaset("Rollout", template, rollout["spec"]["replicas"])
        verdict = "Healthy" if newest == stable or not stable else self.verdicts.get(number, "Healthy")
        status["currentPodHash"] = newest
        if verdict == "Healthy":
            status["stableRS"] = newest
            self.things["Service", NAME]["spec"]["selector"][HASH] = newest
            for replicaset in self.things.values():
                own = replicaset.get("metadata", {}).get("labels", {}).get(HASH)
                if replicaset["kind"] == "ReplicaSet" and own and own != newest:
                    replicaset["spec"]["replicas"] = 0
        else:
            self.things["AnalysisRun", newest] = {
                "kind": "AnalysisRun",
                "metadata": {"name": newest, "labels": {HASH: newest}, "annotations": {}},
                "status": {"metricResults": [
                    {"name": "error-rate", "phase": "Failed", "measurements": [{"value": "[0.4]", "phase": "Failed"}]}
                ]},
            }  # fmt: skip
        status |= {
            "phase": verdict, "availableReplicas": 1, "observedGeneration": str(rollout["metadata"]["generation"]),
            "workloadObservedGeneration": str(deployment["metadata"]["generation"]),
        }  # fmt: skip
        rollout["metadata"].setdefault("annotations", {})["rollout.argoproj.io/workload-generation"] = str(
            deployment["metadata"]["generation"]
        )


@dataclass
class Place:
    """A world whose targets act on an `InMemory` cluster."""

    base: World
    cluster: InMemory
    lost: threading.Event = field(default_factory=threading.Event)

    def target(self, strategy: str, cls: type[Kubernetes] | None = None) -> Kubernetes:
        release = Release.model_validate({"strategy": strategy})
        pipeline = self.base.pipeline.model_copy(update={"release": release})
        world = World(settings=self.base.settings, pipeline=pipeline, pipeline_path=self.base.pipeline_path)
        kind = cls or (Gradual if release.gradual else Kubernetes)
        return kind(world, self.cluster, self.lost)  # type: ignore[arg-type]  as much of it as is asked for

    def release(self, strategy: str, number: int) -> Any:
        return self.target(strategy).release(entry(number))

    def restore(self, strategy: str, number: int) -> Any:
        return self.target(strategy).restore(entry(number))

    def version(self) -> int | None:
        return kubernetes.version_on(self.cluster, NAME)  # type: ignore[arg-type]


def entry(number: int) -> LedgerEntry:
    return LedgerEntry(
        id=f"e{number}", model=NAME, number=number, previous="", state=State.SERVING, version=number,
        run_id=f"r{number}", workflow="w", by="w", reason="", evidence={"image": f"registry/m@sha256:{number}"}, at=NOW,
    )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Place:
    for module in (gradual, kubernetes):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0)

    def wanted(self: Kubernetes, of: LedgerEntry) -> list[Object]:
        return rendered(self.world.settings, self.world.pipeline.release.strategy, of.version)

    monkeypatch.setattr(Kubernetes, "_objects", wanted)
    world = make_world(tmp_path)
    world.settings = settings
    return Place(world, InMemory())


def test_a_first_release_serves_by_the_rollout_and_leaves_the_deployment_no_pods(place: Place) -> None:
    served = place.release("canary", 1)
    assert served.evidence["strategy"] == "canary"
    assert place.cluster.things["Deployment", NAME]["spec"]["replicas"] == 0
    assert place.cluster.things["Rollout", NAME]["spec"]["replicas"] == place.base.settings.serving_min_replicas
    assert (place.version(), place.cluster.serving()) == (1, {"1"})


def test_a_deployment_that_serves_is_adopted_as_it_is_before_the_new_version_comes(place: Place) -> None:
    place.release("rolling", 1)
    place.cluster.scale("Deployment", NAME, 4)
    place.cluster.done.clear()
    place.release("canary", 2)
    done = place.cluster.done
    order = [
        done.index(what) for what in ("apply Rollout", "scale Rollout 4", "scale Deployment 0", "apply Deployment 2")
    ]
    assert order == sorted(order)
    assert "apply Deployment 1" not in done
    assert (place.version(), place.cluster.serving()) == (2, {"2"})


def test_a_bad_canary_is_told_by_its_metric_and_taken_back_to_what_served(place: Place) -> None:
    place.release("canary", 1)
    served = copy.deepcopy(place.cluster.things["Deployment", NAME]["spec"]["template"])
    place.base.settings = place.base.settings.model_copy(update={"serving_memory": 4096})
    place.cluster.verdicts["2"] = "Degraded"
    with pytest.raises(NotHealthy) as taken:
        place.release("canary", 2)
    assert taken.value.reason.startswith("error-rate is 0.4, at most 0.01 is allowed")
    assert (taken.value.evidence["metric"], taken.value.evidence["value"]) == ("error-rate", 0.4)
    assert place.cluster.serving() == {"1"}, "by the Service it never served"
    place.restore("canary", 1)
    template = place.cluster.things["Deployment", NAME]["spec"]["template"]
    assert template == served, "as it was, whatever the settings say by now, and with no hash of a ReplicaSet in it"
    assert place.version() == 1


def test_the_service_keeps_its_choice_of_pods_and_the_weights_are_not_set_back(place: Place) -> None:
    place.release("canary", 1)
    weights = place.cluster.things["TraefikService", NAME]["spec"]["weighted"]["services"]
    weights[0]["weight"], weights[1]["weight"] = 90, 10
    place.cluster.verdicts["2"] = "Degraded"
    with pytest.raises(NotHealthy):
        place.release("canary", 2)
    assert [
        each["weight"] for each in place.cluster.things["TraefikService", NAME]["spec"]["weighted"]["services"]
    ] == [90, 10]
    assert place.cluster.things["Service", NAME]["spec"]["selector"][HASH] == "h1"


@pytest.mark.parametrize("strategy", ["rolling", "recreate"])
def test_back_to_a_deployment_it_has_pods_of_what_serves_before_the_rollouts_go(place: Place, strategy: str) -> None:
    place.release("canary", 1)
    place.cluster.scale("Rollout", NAME, 3)
    place.cluster.done.clear()
    place.release(strategy, 2)
    done = place.cluster.done
    order = [done.index(w) for w in ("scale Deployment 3", "delete Rollout", "apply Service", "apply Deployment 2")]
    assert order == sorted(order)
    assert order[2] == order[1] + 1, "the Service chooses anew at once"
    assert HASH not in place.cluster.things["Service", NAME]["spec"]["selector"]
    left = {kind for kind, _ in place.cluster.things}
    assert not left & {"Rollout", "TraefikService", "AnalysisTemplate"}
    assert place.cluster.things["IngressRoute", NAME]["spec"]["routes"][0]["services"] == [
        {"name": NAME, "port": 80, "nativeLB": True}
    ]
    assert (place.version(), place.cluster.serving()) == (2, {"2"})


def test_where_there_is_no_argo_rollouts_a_rolling_release_does_not_miss_it(place: Place) -> None:
    place.cluster.kinds = frozenset()
    place.release("rolling", 1)
    assert place.version() == 1


def test_the_strategy_chooses_the_target(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for strategy, kind in (("canary", Gradual), ("blue-green", Gradual), ("rolling", Kubernetes)):
        assert type(choice.target(place.target(strategy).world)) is kind


# shadow


@pytest.fixture
def shadowed(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A place where version 1 serves, a shadow is wanted, and any wait is over at once."""
    monkeypatch.setattr(gradual, "_SETTLE_SECONDS", 0)
    monkeypatch.setattr(gradual, "_HEARD_SECONDS", 0)
    place.release("canary", 1)
    place.cluster.done.clear()
    return place


def shadow_release(place: Place, number: int, **shadow: Any) -> Any:
    target = place.target("canary")
    said = {"strategy": "canary", "shadow": {"hold": "0s", **shadow}}
    target.world.pipeline = target.world.pipeline.model_copy(update={"release": Release.model_validate(said)})
    return target.release(entry(number))


def keep(place: Place, number: int, labels: list[str]) -> None:
    """Put records of a version into the store, as its servers would."""
    at = pa.array([datetime.now(UTC) + timedelta(minutes=1)] * len(labels), pa.timestamp("us", "UTC"))
    table = pa.table({
        "id": [f"{NAME}-{number}-{n:032x}-0" for n in range(len(labels))], "time": at,
        "key": [str(n) for n in range(len(labels))], "label": labels,
        "scores": [[0.25, 0.75] if label == "yes" else [0.75, 0.25] for label in labels],
    })  # fmt: skip
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    uri = place.base.storage.uri("predictions", NAME, f"{datetime.now(UTC):%Y-%m-%d}", f"{number}-a.parquet")
    place.base.storage.write(uri, sink.getvalue().to_pybytes())


def test_a_shadow_answers_copies_before_any_caller_and_its_difference_is_kept(shadowed: Place) -> None:
    keep(shadowed, 1, ["yes", "yes", "no", "no"])
    keep(shadowed, 2, ["yes", "no", "no", "no"])
    done = shadow_release(shadowed, 2)
    order = [shadowed.cluster.done.index(w) for w in ("apply TraefikService-shadow", "apply Deployment 2")]
    assert order == sorted(order)
    assert (done.evidence["shadow"]["rows"], done.evidence["shadow"]["label_changes"]) == (4, 0.25)
    assert done.evidence["shadow"]["score_difference"] == 0.125
    assert "4 rows of both, 25.00% other labels" in done.note
    assert not [name for _, name in shadowed.cluster.things if "shadow" in name], "nothing of it is left"
    [service] = shadowed.cluster.things["IngressRoute", NAME]["spec"]["routes"][0]["services"]
    assert service == {"kind": "TraefikService", "name": NAME}
    assert shadowed.version() == 2


@pytest.mark.parametrize("shadow", [True, False])
def test_a_version_is_judged_once_no_server_of_another_but_the_champion_is_left(
    shadowed: Place, monkeypatch: pytest.MonkeyPatch, shadow: bool
) -> None:
    cluster, looks = shadowed.cluster, []
    stable = (cluster.get("Rollout", NAME) or {})["status"]["stableRS"]
    # of a Deployment that was taken over, a pod has no hash; the last is of a canary that is gone on with
    for number, (of, version) in enumerate(((stable, 1), ("before", 0), (None, 0), ("next", 2))):
        metadata = {
            "name": f"p{number}", "labels": {**selector(NAME), **({HASH: of} if of else {})},
            "annotations": {ANNOTATION.format("version"): str(version)},
        }  # fmt: skip
        cluster.things["Pod", f"p{number}"] = {"kind": "Pod", "metadata": metadata}

    def leaves(_: object, _seconds: float) -> None:
        if len(looks) < 2:
            assert not [what for what in cluster.done if what.endswith("-shadow") or what == "apply Deployment 2"]
            looks.append(cluster.things.pop(("Pod", f"p{len(looks) + 1}")))

    monkeypatch.setattr(Gradual, "_wait", leaves)
    if shadow:
        shadow_release(shadowed, 2)
    else:
        shadowed.release("canary", 2)
    assert len(looks) == 2


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["no"] * 4, "50.00% of its labels differ from version 1's, 30.00% may"),
        (["yes", "yes", "no"], "3 rows of both, 0.00% other labels; whether its labels differ is judged of 4 rows"),
        ([], "no request was recorded of both; whether its labels differ is judged of 4 rows"),
    ],
)
def test_a_shadow_that_answers_otherwise_than_it_may_or_too_little_meets_no_caller(
    shadowed: Place, labels: list[str], said: str
) -> None:
    keep(shadowed, 1, ["yes", "yes", "no", "no"])
    keep(shadowed, 2, labels)
    with pytest.raises(NotHealthy, match=said) as taken:
        shadow_release(shadowed, 2, max_label_changes=0.3, min_rows=4)
    assert taken.value.evidence["metric"] == "shadow"
    assert "apply Deployment 2" not in shadowed.cluster.done
    assert shadowed.version() == 1


def test_the_records_of_two_servers_of_the_same_requests_are_joined(place: Place, tmp_path: Path) -> None:
    folder = local_path(place.base.storage.uri("predictions", "tiny"))
    assert folder is not None
    began, answers = datetime.now(UTC), []
    for number, asked in ((1, range(40)), (2, range(20, 60))):
        model = PackagedModel.load(package(tmp_path / str(number), seed=number))
        identity = ModelAnswer(name="tiny", version=number, run_id="r", dataset_sha256="d" * 64, since=began)
        records = Records(Recording(folder, 1), model.manifest, identity)
        client = TestClient(create_app(model, identity, records))
        for request in asked:
            rows = [ROW | {"age": request}, ROW | {"income per year": 1000.0 * request}]
            headers = {"x-request-id": f"request {request}"}
            answer = client.post("/v1/predict", json={"instances": rows}, headers=headers).json()
            answers.append([p["probabilities"]["yes"] for p in answer["predictions"]])
        records.close()
    one, other = (shadow.records(place.base.storage, "tiny", number, began) for number in (1, 2))

    found = shadow.difference(one, other)

    apart = [abs(a - b) for n in range(20, 40) for a, b in zip(answers[n], answers[n + 20], strict=True)]
    assert found.rows == len(apart) == 40
    assert found.score_difference == pytest.approx(sum(apart) / 40)
    assert found.largest == pytest.approx(max(apart))
    assert shadow.difference(one, one).largest == 0
    assert shadow.records(place.base.storage, "tiny", 1, datetime.now(UTC)).num_rows == 0, "of before"


def test_neither_what_serves_nor_the_way_back_is_put_into_the_shadow_or_waits(
    shadowed: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "shadow" not in shadow_release(shadowed, 1).evidence
    keep(shadowed, 1, ["yes"])
    keep(shadowed, 2, ["yes"])
    assert "shadow" in shadow_release(shadowed, 2).evidence
    for (kind, name), thing in shadowed.cluster.things.items():
        if kind == "ReplicaSet":
            thing["metadata"]["creationTimestamp"] = f"2026-11-28T12:00:0{name[-1]}Z"
    monkeypatch.setattr(Gradual, "_await_leaving", lambda *_: pytest.fail("it waits"))
    assert "shadow" not in shadow_release(shadowed, 1).evidence


def test_a_shadows_pods_are_the_new_versions_and_no_service_that_serves_finds_them(settings: Settings) -> None:
    wanted = rendered(settings, "canary")
    made = {each["kind"]: each for each in shadow.objects(wanted, 2, 50)}
    real = next(o for o in wanted if o["kind"] == "Deployment")["spec"]["template"]
    pods = made["Deployment"]["spec"]["template"]
    assert pods["spec"]["containers"] == real["spec"]["containers"]
    assert not selector(NAME).items() <= pods["metadata"]["labels"].items()
    for kind, key in (("Service", "selector"), ("NetworkPolicy", "podSelector")):
        chosen = made[kind]["spec"][key]
        assert (chosen if kind == "Service" else chosen["matchLabels"]) == pods["metadata"]["labels"]
    assert made["TraefikService"]["spec"]["mirroring"]["mirrors"] == [
        {"name": f"{NAME}-shadow", "port": 80, "nativeLB": True, "percent": 50}
    ]
    assert {each["metadata"]["name"] for each in made.values()} == {f"{NAME}-shadow"}


def test_what_a_shadow_left_that_was_cut_off_is_removed_by_the_next_release(
    shadowed: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Gradual, "_remove_shadow", lambda *_: None)
        keep(shadowed, 1, ["yes"])
        keep(shadowed, 2, ["no"])
        with pytest.raises(NotHealthy):
            shadow_release(shadowed, 2, max_label_changes=0.1, min_rows=1)
    assert ("Deployment", f"{NAME}-shadow") in shadowed.cluster.things
    shadowed.release("canary", 3)
    assert not [name for _, name in shadowed.cluster.things if "shadow" in name]
    [service] = shadowed.cluster.things["IngressRoute", NAME]["spec"]["routes"][0]["services"]
    assert service == {"kind": "TraefikService", "name": NAME}


# one at a time


class Log(list[str]):
    """What was done; the turn is lost after so many entries."""

    left, lost = 0, threading.Event()

    def append(self, what: str) -> None:
        super().append(what)
        if len(self) == self.left:
            self.lost.set()


def begin(place: Place, before: str, act: str) -> Callable[[], object]:
    """Let version 1 serve by a strategy, and return what begins to change that."""
    if before:
        place.release(before, 1)
    if act == "stop":
        return place.target(before).stop
    if act == "shadow":
        keep(place, 1, ["yes"])
        keep(place, 2, ["yes"])
        return lambda: shadow_release(place, 2)
    return lambda: place.release(act, 2)


@pytest.mark.parametrize(
    ("before", "act"),
    [
        ("", "canary"), ("rolling", "canary"), ("canary", "rolling"), ("canary", "canary"), ("canary", "shadow"),
        ("canary", "blue-green"), ("canary", "stop"), ("rolling", "stop"),
    ],
)  # fmt: skip
def test_a_release_that_lost_its_turn_changes_nothing_more(
    place: Place, before: str, act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost after each of its changes, the next one is refused: what has the same names may be another's by now."""
    monkeypatch.setattr(gradual, "_SETTLE_SECONDS", 0)
    monkeypatch.setattr(gradual, "_HEARD_SECONDS", 0)
    whole = Place(place.base, InMemory())
    begun = begin(whole, before, act)
    whole.cluster.done.clear()
    begun()
    assert len(whole.cluster.done) > 1
    for left in range(len(whole.cluster.done)):
        cut = Place(place.base, InMemory(done=(log := Log())))
        begun = begin(cut, before, act)
        log.clear()
        log.left, log.lost = left, cut.lost
        if not left:
            cut.lost.set()
        with pytest.raises(StageError, match="another release of adult-income took this one's turn"):
            begun()
        assert log == whole.cluster.done[:left]


@pytest.mark.parametrize(
    "change",
    [
        lambda cluster: cluster.apply({"kind": "Service", "metadata": {"name": "m"}}),
        lambda cluster: cluster.create({"kind": "Service", "metadata": {"name": "m"}}),
        lambda cluster: cluster.replace({"kind": "Service", "metadata": {"name": "m"}}),
        lambda cluster: cluster.scale("Deployment", "m", 0),
        lambda cluster: cluster.delete("Deployment", "m"),
    ],
)
def test_the_api_server_is_asked_for_no_change_that_is_refused(change: Callable[[Cluster], object]) -> None:
    def refuse() -> None:
        raise StageError("not now")

    cluster, api = Cluster("serving", before_change=refuse), MagicMock()
    vars(cluster)["_client"] = api
    with pytest.raises(StageError, match="not now"):
        change(cluster)
    assert not api.mock_calls
    cluster.get("Deployment", "m")
    cluster.select("Pod")
    assert api.mock_calls, "to look is no change"


def test_nothing_is_exported_either_after_the_turn_was_lost(place: Place) -> None:
    target = place.target("rolling")
    target.world.settings = target.world.settings.model_copy(update={"deploy_target": "export"})
    [deployment] = [each for each in target._objects(entry(1)) if each["kind"] == "Deployment"]
    target._publish(deployment)
    target.lost.set()
    for act in (lambda: target._publish(deployment | {"spec": {}}), target.stop):
        with pytest.raises(StageError, match="took this one's turn"):
            act()
    kept = yaml.safe_load(place.base.storage.read(f"{target.exported_folder}/deployment.yaml"))
    assert kept == deployment


# preflight


def findings(place: Place, strategy: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[str]:
    target = place.target(strategy, Kubernetes)
    target.world.settings = target.world.settings.model_copy(
        update={"serving_image": "registry/serving@sha256:1", **settings}
    )
    monkeypatch.setattr(Kubernetes, "of", classmethod(lambda cls, world: target))
    return [f"{each.where}: {each.what}" for each in release.release_findings(target.world)]


@pytest.mark.parametrize("strategy", ["canary", "blue-green"])
def test_preflight_refuses_what_the_cluster_cannot_do(
    place: Place, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert findings(place, strategy, monkeypatch) == []
    place.cluster.kinds = frozenset({"TraefikService", "IngressRoute"})
    assert findings(place, strategy, monkeypatch) == [
        f"release.strategy: {strategy} needs Argo Rollouts; the cluster has no Rollout of argoproj.io/v1alpha1"
    ]
    place.cluster.kinds = frozenset()
    found = findings(place, strategy, monkeypatch, prometheus_url="")
    assert [each.partition(":")[0] for each in found] == [
        "release.strategy",
        "release.strategy",
        "RETRAIN_PROMETHEUS_URL",
    ]
    assert "needs Traefik" in found[1]
    assert findings(place, "rolling", monkeypatch, prometheus_url="") == []


@pytest.mark.parametrize(
    ("here", "kept", "noted"), [("serving", False, True), ("serving", True, False), ("mlops", False, False)]
)
def test_a_note_says_that_nothing_keeps_a_release_from_the_keys_of_others(
    place: Place, monkeypatch: pytest.MonkeyPatch, here: str, kept: bool, noted: bool
) -> None:
    target = place.target("rolling", Kubernetes)
    asked = []

    def apply(wanted: Object, *, only_ask: bool) -> Object:
        asked.append((wanted["spec"]["template"]["spec"]["volumes"][-1]["secret"]["secretName"], only_ask))
        if kept:
            raise ConfigError("deploy gives a server empty volumes only")
        return wanted

    monkeypatch.setattr(target.cluster, "apply", apply)
    monkeypatch.setattr(Kubernetes, "of", classmethod(lambda cls, world: target))
    monkeypatch.setattr(release.Cluster, "inside", classmethod(lambda cls: release.Cluster(here)))
    found = list(release.confinement_notes(target.world))
    assert [each.where for each in found] == (["namespace serving"] if noted else [])
    assert asked == ([("retrain-deploy-secrets", True)] if here == "serving" else []), "where all is in one namespace"


def test_at_the_desk_a_note_says_that_a_version_serves_at_once(place: Place) -> None:
    world = place.target("canary").world
    world.settings = world.settings.model_copy(update={"deploy_target": "process"})
    [note] = places.server_notes(None, world)  # type: ignore[arg-type]  it does not look at its inputs
    assert "replaces the one before at once" in note.what
