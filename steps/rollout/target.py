"""What `steps.deploy` asks of whatever serves: the same of a process at the desk and of a Deployment on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from contracts.references import LedgerEntry

IMAGE_HOLDS_MODEL = "image_holds_model"
"""Evidence of *releasing* and *serving*: the image was built for this version, and not one that serves any."""


class NotHealthy(Exception):  # noqa: N818  an outcome, not a failure of the step
    """A version did not come up; what served before still does.

    `lines` are the last of its log; `evidence` is what else the ledger keeps of it.
    """

    def __init__(self, reason: str, lines: Sequence[str] = (), *, evidence: Mapping[str, Any] | None = None) -> None:
        last = lines[-1].rpartition(" ERROR ")[2] if lines else ""
        self.reason = f"{reason}: {last}" if last else reason
        self.lines = list(lines)
        self.evidence = dict(evidence or {})
        super().__init__(self.reason)


@dataclass(frozen=True)
class Serving:
    """What answers, and where.

    `version` is None where nothing does; `evidence` is what the ledger keeps of it, `note` what people should know.
    """

    url: str
    version: int | None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


class Target(Protocol):
    """One pipeline's place to serve.

    Raises
    ------
    NotHealthy
        By `release` and `restore`: the version did not come up; the caller restores the one before.
    NetworkError
        The target does not answer.
    ConfigError
        It cannot be used with these settings or permissions.
    """

    def turn(self) -> AbstractContextManager[None]:
        """Hold the right to release here: one process at a time, let go when it dies."""

    def means(self, built: str, run_id: str) -> Mapping[str, Any]:
        """Return what will serve, from what `build` said: evidence of *releasing*, and of *serving* after it.

        It holds at least `image`; `release` and `restore` find it in the entries that they are given.  Raises
        DataError, before anything is released, where the model in the store is not the one that was signed.
        """

    def serving(self) -> Serving | None:
        """Return what answers now, None when nothing was ever started."""

    def release(self, entry: LedgerEntry) -> Serving:
        """Serve the version of an entry, and return when it is healthy."""

    def hear(self, entry: LedgerEntry, url: str) -> None:
        """Ask at the front door until the version answers there; raise NotHealthy when it does not."""

    def restore(self, entry: LedgerEntry) -> Serving:
        """Serve a version again that was healthy before, just as it was then."""

    def stop(self) -> object:
        """Serve nothing; the address stays for the next release."""
