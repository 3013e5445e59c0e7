"""Why a pod never began, from the events that the cluster keeps of it.  Called by `notify`, and by the commands that
look at a run: Argo says of such a pod that it was not done in its time, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from contracts.errors import CONFIG, INFRASTRUCTURE, ErrorClass
from steps.rollout.cluster import Cluster, Object

_MAIN = "spec.containers{main}"
_NO_ROOM = "FailedScheduling"
_REPEATS = re.compile(r"(Error: \w+|Back-off .*)$")
"""Warnings that say again, in fewer words, what another said."""


@dataclass(frozen=True)
class Waited:
    """What a pod waited for, and whose matter that is."""

    reason: str
    row: ErrorClass

    def __str__(self) -> str:
        return f"its pod never began: {self.reason}"


def waited_for(cluster: Cluster, pod: str) -> Waited | None:
    """Return what a pod waited for until it was given up; None when it began, or nothing is known of it."""
    return _waited([event for event in cluster.select("Event") if event["involvedObject"].get("name") == pod])


def _waited(events: Sequence[Object]) -> Waited | None:
    if any(e.get("reason") == "Started" and e["involvedObject"].get("fieldPath") == _MAIN for e in events):
        return None
    warnings = [e for e in events if e.get("type") == "Warning" and not _REPEATS.match(e.get("message", ""))]
    if not warnings:
        return None
    last = max(warnings, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
    return Waited(str(last["message"]).strip(), INFRASTRUCTURE if last["reason"] == _NO_ROOM else CONFIG)
