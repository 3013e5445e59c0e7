"""The cluster's targets: a Deployment behind one Service, applied by us or exported for Argo CD or Flux to apply.

`steps.deploy` releases; the rollout is watched here, with its events, and one that gets no further for the pipeline's
`ready_timeout` is not healthy.  What it was before is put back from the ReplicaSet that still holds it, pods and all.
docs/release.md shows the objects, docs/rights.md the permissions that this needs.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import yaml

from contracts.errors import ConfigError, StageError
from contracts.names import PREDICTIONS, tag
from contracts.references import LedgerEntry, ModelManifest
from contracts.settings import Settings, variable
from serving.model import MANIFEST_FILE
from steps.build import REFERENCE, serving_base
from steps.images import pinned
from steps.rollout import diagnosis, lease
from steps.rollout.cluster import Cluster, Object
from steps.rollout.front_door import hear
from steps.rollout.gradual_objects import HASH, next_service
from steps.rollout.objects import ANNOTATION, Version, objects, route_to_service, selector
from steps.rollout.target import IMAGE_HOLDS_MODEL, NotHealthy, Serving
from steps.signing import proof
from steps.world import World

if TYPE_CHECKING:
    from steps.storage import Storage

LOG = logging.getLogger("retrain")

LOOK_SECONDS = 1.0
_MANY = 10**6
_SYNC_SECONDS = 900.0
"""How long whoever applies what we export may take: Argo CD and Flux look every few minutes."""


@dataclass(frozen=True)
class Kubernetes:
    """The Deployment of one pipeline; see `steps.rollout.target.Target`."""

    world: World
    unguarded: Cluster
    lost: threading.Event = field(default_factory=threading.Event)
    """Set when another release took this one's turn."""

    @classmethod
    def of(cls, world: World) -> Self:
        """Return the target of the settings."""
        return cls(world, Cluster.of(world.settings.serving_namespace))

    @cached_property
    def cluster(self) -> Cluster:
        """The namespace of serving, which changes only while this release has its turn."""
        return replace(self.unguarded, before_change=self._keep_turn)

    @property
    def name(self) -> str:
        """The name of every object: the pipeline's."""
        return self.world.pipeline.name

    @property
    def exports(self) -> bool:
        """Whether someone else applies the objects."""
        return self.world.settings.deploy_target == "export"

    def turn(self) -> AbstractContextManager[None]:
        """Hold the pipeline's Lease."""
        return lease.turn(self.unguarded, f"retrain-{self.name}", self.world.workflow, lost=self.lost)

    def means(self, built: str, run_id: str) -> Mapping[str, Any]:
        """Return image and signature: the image that was built, which holds its model, or one that fetches it."""
        image = built if built != REFERENCE else self.reference(run_id)
        if not pinned(image):
            raise ConfigError(
                f"{image} is a name that may mean another image tomorrow", remedy="name it by digest: ...@sha256:..."
            )
        package = self.world.tracking.package(run_id, self.world.scratch)
        return {"image": image, IMAGE_HOLDS_MODEL: built != REFERENCE, **proof(package, run_id, world=self.world)}

    def reference(self, run_id: str = "") -> str:
        """Return the image that serves whatever it fetches: that of a run, or of the settings."""
        if not (image := serving_base(self.world, run_id)):
            raise ConfigError("there is no image to serve with", remedy=f"set {variable('serving_image')}, by digest")
        return image

    def serving(self) -> Serving | None:
        """Return what answers now, by what the Deployment says of itself."""
        deployment = self.cluster.get("Deployment", self.name)
        return None if deployment is None else Serving(self._url, _served_by(self.cluster, deployment))

    def release(self, entry: LedgerEntry) -> Serving:
        """Publish the objects of a version and watch its rollout."""
        return self._roll_out(entry.version, self._objects(entry))

    def hear(self, entry: LedgerEntry, url: str) -> None:
        """Ask at the front door."""
        hear(url, entry.version)

    def restore(self, entry: LedgerEntry) -> Serving:
        """Put the template back that served the version, as a ReplicaSet still holds it; else make it anew."""
        wanted = self._objects(entry)
        if template := self._kept(entry):
            deployment = next(o for o in wanted if o["kind"] == "Deployment")
            deployment["spec"]["template"] = template
        return self._roll_out(entry.version, wanted)

    def stop(self) -> object:
        """Remove Deployment and autoscaler; Service and address stay."""
        for kind in ("HorizontalPodAutoscaler", "Deployment"):
            if self.exports:
                self._exporting.delete(self._exported(kind))
            else:
                self.cluster.delete(kind, self.name)
        return None

    def _objects(self, entry: LedgerEntry) -> list[Object]:
        tracking = self.world.tracking
        package = tracking.package_uri(entry.run_id)
        content = self.world.storage.read(f"{package}/{MANIFEST_FILE}")
        # pods reach a bucket only: where the store is a folder, none are kept
        records, records_uri = self.world.pipeline.records, self.world.storage.uri(PREDICTIONS, self.name)
        manifest = ModelManifest.model_validate_json(content)
        fetches = not entry.evidence.get(IMAGE_HOLDS_MODEL)
        version = Version(
            model=entry.model, version=entry.version, run_id=entry.run_id, image=str(entry.evidence["image"]),
            dataset_sha256=manifest.dataset_sha256,
            commit=tracking.record(entry.run_id).tags.get(tag("code_commit"), ""),
            package=package if fetches else "",
            package_sha256=hashlib.sha256(content).hexdigest() if fetches else "",
            record_share=records.share if records_uri.startswith("s3://") else 0.0, record_inputs=records.inputs,
            task=manifest.task, records_uri=records_uri,
        )  # fmt: skip
        return objects(
            version, self.world.pipeline.release, self.world.settings, self.cluster.namespace,
            entry=entry.id, workflow=entry.workflow,
        )  # fmt: skip

    def _kept(self, entry: LedgerEntry) -> Object | None:
        """Return the pods' template of a version, from the newest ReplicaSet that holds it."""
        found = [
            replicaset
            for replicaset in self.cluster.select("ReplicaSet", selector(self.name))
            if _said(replicaset["spec"]["template"], "version") == str(entry.version)
            and replicaset["spec"]["template"]["spec"]["containers"][0]["image"] == entry.evidence["image"]
        ]
        if not found:
            return None
        newest = max(found, key=lambda r: (_revision(r), str(r["metadata"].get("creationTimestamp", ""))))
        template: Object = newest["spec"]["template"]
        for label in ("pod-template-hash", HASH):
            template["metadata"]["labels"].pop(label, None)
        return template

    def _roll_out(self, version: int, wanted: Sequence[Object]) -> Serving:
        ready = self.world.pipeline.release.ready_timeout.total_seconds()
        if not self.exports:
            self._leave_rollout(wanted, ready)
        for each in wanted:
            self._publish(each)
        if self.exports:
            self._await_sync(next(o for o in wanted if o["kind"] == "Deployment"))
        else:
            self._scale_up(self.world.settings.serving_min_replicas)
        self._watch(ready)
        return Serving(self._url, version)

    def _leave_rollout(self, wanted: Sequence[Object], ready: float) -> None:
        """Let the Deployment serve where a Rollout did: it has pods of what serves before the Rollout's go."""
        try:
            rollout = self.cluster.get("Rollout", self.name)
        except ConfigError:  # no such kind, or no such right: then there is none of ours
            return
        if rollout is None:
            return
        LOG.info("the Deployment %s is to serve by itself again", self.name)
        # while the pods come up, Traefik hears that weights are no more
        self.cluster.apply(route_to_service(self.name, self.cluster.namespace))
        self._scale_up(int(rollout["spec"].get("replicas", 1)))
        self._watch(ready)
        self.cluster.delete("Rollout", self.name)
        # its pods still take connections for a while, but a Service that chooses them only would soon have none
        self.cluster.apply(next(o for o in wanted if o["kind"] == "Service"))
        for kind, name in (
            ("TraefikService", self.name), ("AnalysisTemplate", self.name), ("Service", next_service(self.name)),
        ):  # fmt: skip
            self.cluster.delete(kind, name)

    def _scale_up(self, replicas: int) -> None:
        """Give a Deployment that has no pods so many; what has some is its autoscaler's, which lets none be none."""
        deployment = self.cluster.get("Deployment", self.name)
        if deployment is not None and deployment["spec"].get("replicas") == 0:
            self.cluster.scale("Deployment", self.name, replicas)

    def _publish(self, wanted: Object) -> None:
        if not self.exports:
            self.cluster.apply(wanted)
            return
        text = yaml.safe_dump(wanted, sort_keys=False, width=120)
        self._exporting.write(self._exported(wanted["kind"]), text.encode())

    def _keep_turn(self) -> None:
        if self.lost.is_set():
            raise StageError(f"another release of {self.name} took this one's turn")

    def _wait(self, seconds: float) -> None:
        self.lost.wait(seconds)
        self._keep_turn()

    @property
    def _exporting(self) -> Storage:
        """The store, to which a release exports only while it has its turn."""
        self._keep_turn()
        return self.world.storage

    @property
    def exported_folder(self) -> str:
        """Return the URI of the folder that is exported to."""
        folder = self.world.settings.export_uri.rstrip("/") or self.world.storage.uri("export")
        return f"{folder}/{self.name}"

    def _exported(self, kind: str) -> str:
        return f"{self.exported_folder}/{kind.lower()}.yaml"

    def _await_sync(self, wanted: Object) -> None:
        deadline = time.monotonic() + _SYNC_SECONDS
        entry = _said(wanted, "ledger-entry")
        LOG.info("exported to %s; waiting for it to be applied", self._exported("Deployment"))
        while _said(self.cluster.get("Deployment", self.name) or {}, "ledger-entry") != entry:
            if time.monotonic() > deadline:
                raise NotHealthy(f"nobody applied what was exported to {self._exported('Deployment')}")
            self._wait(LOOK_SECONDS)

    def _watch(self, seconds: float) -> None:
        """Return when the rollout is complete.

        Raises
        ------
        NotHealthy
            It got no further for so many seconds, and why.
        """
        told: set[str] = set()
        best, deadline = (-1, -_MANY), time.monotonic() + seconds
        while True:
            seen = self._look()
            self._tell(seen.events, told)
            if diagnosis.complete(seen.deployment):
                return
            now = diagnosis.progress(seen.deployment, seen.replicaset)
            if diagnosis.observed(seen.deployment) and now > best:
                best, deadline = now, time.monotonic() + seconds
            if time.monotonic() > deadline:
                raise self._not_healthy(seen.replicaset, seen.pods, seen.events)
            self._wait(LOOK_SECONDS)

    def _tell(self, events: Sequence[Object], told: set[str], *, quietly: bool = False) -> None:
        for event in events:
            if (key := f"{event['metadata']['uid']} {event.get('count')}") not in told:
                told.add(key)
                if not quietly:
                    LOG.info("%s", diagnosis.describe(event))

    def _look(self) -> _Seen:
        deployment = self.cluster.get("Deployment", self.name)
        if deployment is None:
            raise StageError(f"the Deployment {self.name} was deleted while it was rolled out")
        replicaset = diagnosis.current(deployment, self.cluster.select("ReplicaSet", selector(self.name)))
        pods = diagnosis.owned(replicaset, self.cluster.select("Pod", selector(self.name))) if replicaset else []
        ours = [deployment, *pods, *([replicaset] if replicaset else [])]
        events = [event for event in self.cluster.select("Event") if diagnosis.about(event, ours)]
        return _Seen(deployment, replicaset, pods, events)

    def _not_healthy(self, replicaset: Object | None, pods: list[Object], events: list[Object]) -> NotHealthy:
        why = diagnosis.diagnose(replicaset, pods, events)
        lines: list[str] = []
        if why.log is not None:
            lines = self.cluster.log(why.log.pod, why.log.container, previous=why.log.previous)
        return NotHealthy(why.reason, lines)

    @property
    def _url(self) -> str:
        return f"http://{self.name}.{self.cluster.namespace}"


@dataclass(frozen=True)
class _Seen:
    """One look at a rollout."""

    deployment: Object
    replicaset: Object | None
    pods: list[Object]
    events: list[Object]


def serving_version(settings: Settings, pipeline: str) -> int | None:
    """Return the version that the pipeline's Deployment has servers of, None without any; raises as `Cluster`."""
    return version_on(Cluster.of(settings.serving_namespace), pipeline)


def version_on(cluster: Cluster, name: str) -> int | None:
    """Return the version that a pipeline has servers of in a namespace, None without any."""
    deployment = cluster.get("Deployment", name)
    return None if deployment is None else _served_by(cluster, deployment)


def _served_by(cluster: Cluster, deployment: Object) -> int | None:
    """Return the version that a Deployment has servers of, or a Rollout that takes its template from it."""
    if deployment.get("status", {}).get("availableReplicas", 0):
        return version_of(deployment)
    return None if deployment["spec"].get("replicas") else _stable(cluster, deployment["metadata"]["name"])


def _stable(cluster: Cluster, name: str) -> int | None:
    """Return the version that a Rollout has servers of, where the Deployment only holds its template."""
    try:
        rollout = cluster.get("Rollout", name)
    except ConfigError:  # no such kind, or no such right: then there is none of ours
        return None
    status = (rollout or {}).get("status") or {}
    if not status.get("availableReplicas", 0):
        return None
    found = cluster.select("ReplicaSet", selector(name) | {HASH: status.get("stableRS", "")})
    return version_of(found[0]) if found else None


def _revision(replicaset: Object) -> int:
    said = replicaset["metadata"].get("annotations") or {}
    return int(said.get(diagnosis.REVISION) or said.get(diagnosis.ROLLOUT_REVISION) or 0)


def version_of(holder: Object) -> int | None:
    """Return the version of which a Deployment or ReplicaSet has the pods' template."""
    version = _said(holder["spec"]["template"], "version")
    return int(version) if version else None


def _said(thing: Object, what: str) -> str:
    return str(((thing.get("metadata") or {}).get("annotations") or {}).get(ANNOTATION.format(what), ""))
