"""Ends that a cluster gives a pod and a desk never does: what a test lets befall a step by `runner`'s `fate`."""

from __future__ import annotations

from workflows.local.pods import Fate

DELETED = Fate("pod deleted", "Error", None)


def evicted(message: str = "The node was low on resource: memory.") -> Fate:
    """Return the end of a pod that the kubelet evicted, with its message."""
    return Fate(message, exit_code=None)
