"""The cluster's target for the strategies canary and blue-green: Argo Rollouts replaces the version that serves step by
step, and takes the new one back when its metrics are bad.  See docs/release.md.

A Deployment that serves by itself is adopted first, as it is: the Rollout makes pods of its template, and only when
they answer do the Deployment's own go and the new template comes.  Whatever ends badly here, `steps.deploy` has
`restore` put the template back, and the Rollout returns to the pods that still serve.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from contracts.access import SHADOW
from contracts.base import format_duration
from contracts.errors import StageError
from contracts.names import LABEL_STAGE
from steps.rollout import analysis, diagnosis, shadow
from steps.rollout.cluster import Conflict, Object
from steps.rollout.gradual_objects import HASH
from steps.rollout.kubernetes import LOOK_SECONDS, Kubernetes, version_of, version_on
from steps.rollout.objects import ANNOTATION, selector
from steps.rollout.target import NotHealthy, Serving

LOG = logging.getLogger("retrain")

_GENERATION = "rollout.argoproj.io/workload-generation"
_UNDECIDED = "InconclusiveAnalysisRun"
_MARGIN_SECONDS = 300
_HEARD_SECONDS = 5.0
"""Until Traefik, which takes changes together, has heard of a new route."""
_LEAVING_SECONDS = 120.0
"""Until the servers of the version before the champion are gone: Argo Rollouts keeps them for 30 s, and they drain."""
_SETTLE_SECONDS = 60.0
"""Until the records of a shadow are in the store: its servers drain, and both versions write what they have."""


@dataclass(frozen=True)
class Gradual(Kubernetes):
    """The Rollout of one pipeline, and the Deployment that holds its template."""

    def stop(self) -> object:
        """Remove the Rollout with its pods, and what a Deployment has."""
        self.cluster.delete("Rollout", self.name)
        return super().stop()

    def _roll_out(self, version: int, wanted: Sequence[Object]) -> Serving:
        kinds = {each["kind"]: each for each in wanted}
        deployment, rollout = kinds.pop("Deployment"), kinds.pop("Rollout")
        autoscaler, route = kinds.pop("HorizontalPodAutoscaler"), kinds.pop("IngressRoute")
        for each in wanted:
            if each["kind"] in kinds:
                self._publish(each)
        self._adopt(deployment, rollout)
        self._publish(autoscaler)
        self._publish(route)  # by now Traefik has heard of what it leads to
        if self.cluster.get("Deployment", shadow.shadow_name(self.name)) is not None:
            self._remove_shadow(wanted)  # of a release that was killed, or lost its turn
        beside = self._beside(version, wanted) if self._to_be_judged(version) else {}
        self._publish(deployment)
        runs = self._watch_rollout()
        evidence = {"strategy": self.world.pipeline.release.strategy, "analysis": analysis.last_values(runs), **beside}
        note = f"; in its shadow {beside['shadow']['said']}" if beside else ""
        return Serving(self._url, version, evidence, note)

    def _beside(self, version: int, wanted: Sequence[Object]) -> dict[str, Any]:
        """Let a new version answer a copy of the requests, and return what that showed, for the ledger."""
        how, champion = self.world.pipeline.release.shadow, version_on(self.cluster, self.name)
        if how is None or champion is None:
            return {}
        began = datetime.now(UTC)
        try:
            for each in shadow.objects(wanted, self.world.settings.serving_min_replicas, how.percent):
                self._publish(each)
            self._await_shadow()
            self._publish(shadow.route(_route(wanted)))
            LOG.info("version %d answers a copy of the requests for %s", version, how.hold)
            self._wait(how.hold.total_seconds())
        finally:
            self._remove_shadow(wanted)
        self._wait(_SETTLE_SECONDS)
        storage = self.world.storage
        of_both = [shadow.records(storage, self.name, number, began) for number in (champion, version)]
        found = shadow.difference(*of_both)
        LOG.info("shadow: %s", found)
        evidence = {**asdict(found), "champion": champion, "said": str(found)}
        if reason := shadow.objection(found, how, champion):
            raise NotHealthy(reason, evidence={"metric": "shadow", "shadow": evidence})
        return {"shadow": evidence}

    def _remove_shadow(self, wanted: Sequence[Object]) -> None:
        self.cluster.apply(_route(wanted))
        self._wait(_HEARD_SECONDS)
        for each in shadow.objects(wanted, 0, 0):
            self.cluster.delete(each["kind"], each["metadata"]["name"])

    def _to_be_judged(self, version: int) -> bool:
        """Say whether a version is new beside one that serves; if so, once nothing but the two answers any more."""
        champion = version_on(self.cluster, self.name)
        if champion is None or champion == version or self._served_before(version, champion):
            return False
        self._await_leaving(version)
        return True

    def _served_before(self, version: int, champion: int) -> bool:
        """Say whether this is the way back: to a version whose template is older than that of what serves."""
        made = {
            version_of(replicaset): str(replicaset["metadata"].get("creationTimestamp", ""))
            for replicaset in self.cluster.select("ReplicaSet", selector(self.name))
        }
        return version in made and champion in made and made[version] < made[champion]

    def _await_shadow(self) -> None:
        deadline = time.monotonic() + self.world.pipeline.release.ready_timeout.total_seconds()
        name = shadow.shadow_name(self.name)
        while True:
            deployment = self.cluster.get("Deployment", name)
            if deployment is not None and diagnosis.complete(deployment):
                return
            if time.monotonic() > deadline:
                labels = {**selector(self.name), LABEL_STAGE: SHADOW}
                replicasets, pods = (self.cluster.select(kind, labels) for kind in ("ReplicaSet", "Pod"))
                raise self._not_healthy(replicasets[0] if replicasets else None, pods, self.cluster.select("Event"))
            self._wait(LOOK_SECONDS)

    def _await_leaving(self, version: int) -> None:
        """Return when there are pods of the champion and of this version alone.

        Connections that Traefik keeps lead to those of a version before, or of one that was taken back, a share of the
        requests with them.
        """
        deadline = time.monotonic() + _LEAVING_SECONDS
        while time.monotonic() < deadline:
            stable = (self.cluster.get("Rollout", self.name) or {}).get("status", {}).get("stableRS")
            pods = self.cluster.select("Pod", selector(self.name))
            others = [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(HASH) != stable]
            if all(_annotation(pod, ANNOTATION.format("version")) == str(version) for pod in others):
                return
            self._wait(LOOK_SECONDS)
        LOG.warning("servers of a version before %s still answer; requests to them are in no comparison", self.name)

    def _publish(self, wanted: Object) -> None:
        if wanted["kind"] == "TraefikService":  # its weights are Argo Rollouts' own once it is there
            with contextlib.suppress(Conflict):
                self.cluster.create(wanted)
            return
        if wanted["kind"] == "Service":  # so is a Service's choice of pods
            now = self.cluster.get("Service", wanted["metadata"]["name"])
            chosen = ((now or {}).get("spec", {}).get("selector") or {}).get(HASH)
            if chosen:
                wanted["spec"]["selector"] = {**wanted["spec"]["selector"], HASH: chosen}
        super()._publish(wanted)

    def _adopt(self, deployment: Object, rollout: Object) -> None:
        """Let the Rollout hold what serves now; a Deployment of which nothing serves gets the new template first."""
        now = self.cluster.get("Deployment", self.name)
        status = (now or {}).get("status") or {}
        own = int((now or {}).get("spec", {}).get("replicas", 0))
        if self.cluster.get("Rollout", self.name) is None and not status.get("availableReplicas"):
            self._publish(deployment)
            own = 1
        self._publish(rollout)
        if own:  # not adopted yet, or not to the end
            self.cluster.scale("Rollout", self.name, max(own, self.world.settings.serving_min_replicas))
            self._watch_rollout()
            self.cluster.scale("Deployment", self.name, 0)

    def _watch_rollout(self) -> list[Object]:
        """Return when the Rollout serves the Deployment's template to all, with what was measured of it.

        Raises
        ------
        NotHealthy
            It was taken back, or is to be: what was measured of it, or what its pods show.
        """
        release = self.world.pipeline.release
        told: set[str] = set()
        self._tell(self._look_at_rollout()[-1], told, quietly=True)  # a Rollout's events of releases before
        deadline = time.monotonic() + release.longest.total_seconds() + _MARGIN_SECONDS
        while True:
            deployment, rollout, replicaset, pods, events = self._look_at_rollout()
            self._tell(events, told)
            runs = self._runs(rollout)
            match stands(rollout, deployment):
                case "Healthy":
                    return runs
                case "Degraded" | "Undecided":
                    raise self._taken_back(rollout, replicaset, pods, events, runs)
            if seen(rollout, deployment) and is_new(rollout) and any(crashed(pod) for pod in pods):
                raise self._not_healthy(replicaset, pods, events)
            if time.monotonic() > deadline:
                said = (rollout.get("status") or {}).get("message", "")
                raise NotHealthy(f"its rollout does not end within {format_duration(release.longest)}: {said}")
            self._wait(LOOK_SECONDS)

    def _look_at_rollout(self) -> tuple[Object, Object, Object | None, list[Object], list[Object]]:
        deployment, rollout = self.cluster.get("Deployment", self.name), self.cluster.get("Rollout", self.name)
        if rollout is None or deployment is None:
            raise StageError(f"the Rollout {self.name}, or its Deployment, was deleted while it was rolled out")
        newest = (rollout.get("status") or {}).get("currentPodHash")
        found = self.cluster.select("ReplicaSet", selector(self.name))
        replicaset = next((r for r in found if newest and r["metadata"]["labels"].get(HASH) == newest), None)
        pods = diagnosis.owned(replicaset, self.cluster.select("Pod", selector(self.name))) if replicaset else []
        ours = [rollout, *pods, *([replicaset] if replicaset else [])]
        events = [event for event in self.cluster.select("Event") if diagnosis.about(event, ours)]
        return deployment, rollout, replicaset, pods, events

    def _runs(self, rollout: Object) -> list[Object]:
        """Return the AnalysisRuns of this revision; one that had the same template before had others."""
        newest = (rollout.get("status") or {}).get("currentPodHash")
        found = self.cluster.select("AnalysisRun", {HASH: newest}) if newest else []
        revision = _annotation(rollout, diagnosis.ROLLOUT_REVISION)
        return [run for run in found if _annotation(run, diagnosis.ROLLOUT_REVISION) == revision]

    def _taken_back(
        self, rollout: Object, replicaset: Object | None, pods: list[Object], events: list[Object], runs: list[Object]
    ) -> NotHealthy:
        if failed := analysis.failed(runs, self._measured):
            evidence = {"metric": failed.metric, "value": failed.value, "at_most": failed.at_most}
            if failed.step is not None:  # each weight is two steps of the Rollout: to set it, and to judge
                evidence["weight"] = self.world.pipeline.release.canary_steps[failed.step // 2].weight
            return NotHealthy(failed.reason, evidence={**evidence, "measurements": list(failed.measurements)})
        if pods:
            return self._not_healthy(replicaset, pods, events)
        return NotHealthy(str(rollout["status"].get("message") or "its Rollout is degraded"))

    @cached_property
    def _measured(self) -> list[analysis.Metric]:
        pipeline = self.world.pipeline
        return analysis.metrics(pipeline.release, pipeline.target.task, self.cluster.namespace, self.name)


def stands(rollout: Object, deployment: Object) -> str:
    """Say how a Rollout stands: Progressing while it has not seen its spec and template as they are, then its phase.

    A pause that only a person could end, since too little was measured, is *Undecided*.
    """
    status = rollout.get("status") or {}
    if not seen(rollout, deployment):
        return "Progressing"
    if any(pause.get("reason") == _UNDECIDED for pause in status.get("pauseConditions") or ()):
        return "Undecided"
    return str(status.get("phase") or "Progressing")


def seen(rollout: Object, deployment: Object) -> bool:
    """Say whether what a Rollout says of itself is of its spec, and of the Deployment's template, as they are now."""
    status, template = rollout.get("status") or {}, str(deployment["metadata"]["generation"])
    return str(status.get("observedGeneration", "")) == str(rollout["metadata"]["generation"]) and str(
        status.get("workloadObservedGeneration", "")
    ) == template == _annotation(rollout, _GENERATION)


def is_new(rollout: Object) -> bool:
    """Say whether a Rollout's newest template is not the one that serves."""
    status = rollout.get("status") or {}
    return bool(status.get("stableRS")) and status.get("currentPodHash") != status["stableRS"]


def crashed(pod: Object) -> bool:
    """Say whether a pod's server ended and was, or will be, started again."""
    containers: list[dict[str, Any]] = (pod.get("status") or {}).get("containerStatuses") or []
    return any(container.get("restartCount", 0) > 0 for container in containers)


def _route(wanted: Sequence[Object]) -> Object:
    return next(each for each in wanted if each["kind"] == "IngressRoute")


def _annotation(thing: Object, name: str) -> str:
    return str((thing["metadata"].get("annotations") or {}).get(name, ""))
