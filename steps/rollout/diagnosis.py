"""How far a rollout is, and why it goes no further: pure.  Called by `steps.rollout.kubernetes`, with what it read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from steps.rollout.cluster import Object

REVISION = "deployment.kubernetes.io/revision"
ROLLOUT_REVISION = "rollout.argoproj.io/revision"
_PULL = (
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError",
    "RegistryUnavailable", "SignatureValidationFailed",
)  # fmt: skip
_CREATE = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


@dataclass(frozen=True)
class Log:
    """Whose last lines say more: a container's, or those of the one that ran before it."""

    pod: str
    container: str
    previous: bool


@dataclass(frozen=True)
class Diagnosis:
    """Why pods are not ready, for people; worst first by `rank`."""

    rank: int
    reason: str
    log: Log | None = None


def current(deployment: Object, replicasets: Sequence[Object]) -> Object | None:
    """Return the ReplicaSet of a Deployment's template, None while the controller has not made it."""
    revision = deployment["metadata"].get("annotations", {}).get(REVISION)
    return next(
        (r for r in owned(deployment, replicasets) if r["metadata"]["annotations"].get(REVISION) == revision), None
    )


def owned(owner: Object, things: Sequence[Object]) -> list[Object]:
    """Return what belongs to an object."""
    uid = owner["metadata"]["uid"]
    return [t for t in things if any(o["uid"] == uid for o in t["metadata"].get("ownerReferences", ()))]


def observed(deployment: Object) -> bool:
    """Say whether the controller has seen the Deployment as it is now."""
    seen: int = deployment.get("status", {}).get("observedGeneration", 0)
    return seen >= int(deployment["metadata"]["generation"])


def complete(deployment: Object) -> bool:
    """Say whether all pods are of the template and available, and none of another is left: kubectl's rule."""
    status, wanted = deployment.get("status", {}), deployment["spec"]["replicas"]
    return observed(deployment) and (
        status.get("updatedReplicas", 0) == status.get("replicas", 0) == status.get("availableReplicas", 0) == wanted
    )


def progress(deployment: Object, replicaset: Object | None) -> tuple[int, int]:
    """Return what grows while a rollout goes on: new pods that are available, then old ones that are gone."""
    new = replicaset.get("status", {}) if replicaset else {}
    old = deployment.get("status", {}).get("replicas", 0) - new.get("replicas", 0)
    return new.get("availableReplicas", 0), -old


def diagnose(replicaset: Object | None, pods: Sequence[Object], events: Sequence[Object]) -> Diagnosis:
    """Say why the pods of a ReplicaSet are not ready: the worst that one of them, or the ReplicaSet, shows.

    Parameters
    ----------
    events
        Those of the ReplicaSet and of its pods.
    """
    found = [diagnosis for pod in pods for diagnosis in _pod(pod, events)]
    if replicaset:
        found += _refused(replicaset)
    if not found:
        return Diagnosis(9, f"{len(pods)} pods are there and none says why they are not ready")
    return min(found, key=lambda diagnosis: diagnosis.rank)


def about(event: Object, things: Sequence[Object]) -> bool:
    """Say whether an event is about one of these objects."""
    return event["involvedObject"].get("uid") in {thing["metadata"]["uid"] for thing in things}


def describe(event: Object) -> str:
    """Return an event as a line."""
    of = event["involvedObject"]
    return f"{of.get('kind')} {of.get('name')}: {event.get('reason')}: {event.get('message', '').strip()}"


def _pod(pod: Object, events: Sequence[Object]) -> Iterator[Diagnosis]:
    status = pod.get("status", {})
    probe, ended = _heard(pod, events, "Unhealthy", "probe"), _heard(pod, events, "Killing", "probe")
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        yield from _container(pod["metadata"]["name"], container, probe, by_probe=bool(ended))
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield Diagnosis(5, f"no node takes its pod: {condition.get('message', condition.get('reason'))}")


def _container(pod: str, container: Object, probe: str, *, by_probe: bool) -> Iterator[Diagnosis]:
    name, state = container["name"], container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    log = Log(pod, name, previous="terminated" not in state)
    if reason in _PULL:
        # the name of the image is repeated before what is wrong with it
        what = message.rpartition(container["image"])[2].strip(' ":') or message or reason
        yield Diagnosis(0, f"image pull failed: {container['image']}: {what}")
    elif reason in _CREATE:
        yield Diagnosis(1, f"container {name} cannot be made: {message or reason}")
    elif by_probe and container.get("restartCount"):
        yield Diagnosis(2, f"its probe fails, and it was ended for it: {probe}", log)
    elif crash := _crash(state, container):
        times = container.get("restartCount", 0)
        how = f"container {name} crashed ({_ending(crash)}{f', {times} times' if times > 1 else ''})"
        yield Diagnosis(3, how, log)
    elif "running" in state and probe and not container.get("ready"):
        yield Diagnosis(4, f"its probe fails: {probe}", Log(pod, name, previous=False))
    elif "running" in state and not container.get("ready"):
        yield Diagnosis(7, f"container {name} runs, and is not ready yet")


def _crash(state: Object, container: Object) -> Object | None:
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    completed = ended and ended.get("exitCode") == 0 and ended.get("reason") == "Completed"
    return None if completed and not container.get("restartCount") else ended


def _ending(ended: Object) -> str:
    reason = ended.get("reason", "")
    killed = f"{reason}, " if reason not in ("", "Error", "Completed") else ""
    return f"{killed}exit code {ended.get('exitCode')}"


def _heard(pod: Object, events: Sequence[Object], reason: str, word: str) -> str:
    """Return the newest message of one kind about a pod, empty when there is none."""
    heard = [e for e in events if e.get("reason") == reason and word in e.get("message", "") and about(e, [pod])]
    return str(max(heard, key=_when)["message"]).strip() if heard else ""


def _when(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _refused(replicaset: Object) -> Iterator[Diagnosis]:
    conditions: list[dict[str, Any]] = replicaset.get("status", {}).get("conditions") or []
    for condition in conditions:
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            message = condition.get("message", "")
            if "exceeded quota" in message or "failed quota" in message:
                yield Diagnosis(6, f"the namespace's quota does not allow its pods: {message}")
            else:
                yield Diagnosis(6, f"its pods are refused: {message}")
