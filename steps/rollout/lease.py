"""One release at a time: a Lease in the namespace of serving.  Called by the Kubernetes and export targets.

It saves work and keeps two releases from undoing each other's rollout; what is true about versions the ledger decides.
Who holds it renews it; one that died loses it when it was not renewed for `SECONDS`, by the clock of whoever waits.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

from contracts.errors import StageError
from contracts.names import LABEL_MANAGED_BY, MANAGED_BY
from contracts.pipeline.operation import MAX_RELEASE
from steps.rollout.cluster import VERSIONS, Cluster, Conflict, Object

LOG = logging.getLogger("retrain")

SECONDS = 15
_RENEW_SECONDS = 4.0
_TURN_SECONDS = MAX_RELEASE.total_seconds()


@contextlib.contextmanager
def turn(cluster: Cluster, name: str, workflow: str, *, lost: threading.Event) -> Iterator[None]:
    """Hold the Lease `name`; `lost` is set when someone took it all the same.

    Raises
    ------
    StageError
        Another release does not end.
    """
    holder = f"{workflow}-{uuid.uuid4().hex[:8]}"
    _acquire(cluster, name, holder)
    ended = threading.Event()
    renewing = threading.Thread(target=_renew, args=(cluster, name, holder, lost, ended), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        _release(cluster, name, holder)


def _acquire(cluster: Cluster, name: str, holder: str) -> None:
    deadline, told = time.monotonic() + _TURN_SECONDS, ""
    seen, since = "", time.monotonic()
    while True:
        with contextlib.suppress(Conflict):
            lease = cluster.get("Lease", name)
            if lease is None:
                cluster.create(_lease(cluster, name, holder))
                return
            now = f"{lease['spec'].get('holderIdentity')} {lease['spec'].get('renewTime')}"
            if now != seen:
                seen, since = now, time.monotonic()
            other = lease["spec"].get("holderIdentity") or ""
            if not other or time.monotonic() - since > SECONDS:
                cluster.replace(_held(lease, holder))
                return
            if other != told:
                LOG.info("waiting for the release of %s", other)
                told = other
        if time.monotonic() > deadline:
            raise StageError(f"another release ({told}) holds the lease {name} and does not end")
        time.sleep(0.5)


def _renew(cluster: Cluster, name: str, holder: str, lost: threading.Event, ended: threading.Event) -> None:
    renewed = time.monotonic()
    while not ended.wait(_RENEW_SECONDS):
        # an API server that is away for a moment takes nothing from us: nobody else can hold it either
        with contextlib.suppress(StageError):
            lease = cluster.get("Lease", name)
            if lease is None or lease["spec"].get("holderIdentity") != holder:
                lost.set()
                return
            cluster.replace(_held(lease, holder))
            renewed = time.monotonic()
        if time.monotonic() - renewed > 10 * SECONDS:
            lost.set()
            return


def _release(cluster: Cluster, name: str, holder: str) -> None:
    with contextlib.suppress(StageError):  # else the next waits until it has expired
        lease = cluster.get("Lease", name)
        if lease is not None and lease["spec"].get("holderIdentity") == holder:
            cluster.replace(_held(lease, ""))


def _lease(cluster: Cluster, name: str, holder: str) -> Object:
    metadata = {"name": name, "namespace": cluster.namespace, "labels": {LABEL_MANAGED_BY: MANAGED_BY}}
    empty: Object = {"apiVersion": VERSIONS["Lease"], "kind": "Lease", "metadata": metadata, "spec": {}}
    return _held(empty, holder)


def _held(lease: Object, holder: str) -> Object:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return lease | {"spec": {"holderIdentity": holder, "leaseDurationSeconds": SECONDS, "renewTime": now}}
