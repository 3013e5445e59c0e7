"""What stays and what goes: mark and sweep over everything that was kept.  Pure; `retrain retention plan` shows it.

Versions, MLflow runs and objects of the store are nodes that refer to others.  What is pinned, and what the policy's
years and days still cover, stays; so does all that it refers to, however old.  The rest goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import AwareDatetime, Field

from contracts.base import Contract
from contracts.settings import Settings

_YEAR = timedelta(days=366)
"""Rather a day too long than one too short."""


class Kind(StrEnum):
    """What can be removed."""

    VERSION = "version"
    RUN = "run"
    DATASET = "dataset"
    SPLIT = "split"
    CODE = "code"
    REPORTS = "reports"
    LOGS = "logs"
    CACHE = "cache"
    FIT = "fit"
    BUILD = "build"
    RECORDS = "records"
    IMAGE = "image"


class Limit(StrEnum):
    """Which of the policy's limits a node is measured by."""

    SERVED = "served_years"
    UNSERVED = "unserved_days"
    RECORDS = "records_days"


class Policy(Contract):
    """How long what is kept; an environment's settings say it."""

    served_years: int = Field(ge=1)
    unserved_days: int = Field(ge=1)
    records_days: int = Field(ge=1)

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """Return the policy of an environment."""
        return cls(
            served_years=settings.retention_served_years,
            unserved_days=settings.retention_unserved_days,
            records_days=settings.retention_records_days,
        )

    def lasts(self, limit: Limit) -> timedelta:
        """Return how long a limit keeps something."""
        count: int = getattr(self, limit.value)
        return count * _YEAR if limit is Limit.SERVED else timedelta(days=count)


@dataclass(frozen=True)
class Node:
    """One thing that was kept."""

    key: str
    """``version:MODEL@3``, ``run:ID``, an image by digest, or ``datasets/SHA256`` and such: a place below the store."""
    kind: Kind
    since: datetime
    """When it last served, was last written or used: what its limit is counted from."""
    limit: Limit = Limit.UNSERVED
    refers: frozenset[str] = frozenset()
    """Keys of what it is of no use without."""
    pinned: str = ""
    """Why no limit applies to it."""
    barred: str = ""
    """Why nothing may keep it: its version was entered as removed."""
    model: str = ""
    version: int = 0
    size: int = 0
    """In bytes."""


class Decision(Contract):
    """What is to become of one thing, and why."""

    key: str
    kind: Kind
    keep: bool
    reason: str
    since: AwareDatetime
    size: int = 0
    model: str = ""
    version: int = 0


def plan(nodes: Collection[Node], policy: Policy, now: datetime) -> list[Decision]:
    """Decide on every node: those that stay first, each group in the order given."""
    by_key = {node.key: node for node in nodes}
    stays = _marked(by_key, {node.key: why for node in nodes if (why := _root(node, policy, now))})
    decided = [_decision(node, stays.get(node.key, ""), policy, now) for node in nodes]
    return sorted(decided, key=lambda decision: not decision.keep)


def _root(node: Node, policy: Policy, now: datetime) -> str:
    """Say why a node stays by itself, empty when only another's need could keep it."""
    if node.barred or node.pinned:
        return "" if node.barred else node.pinned
    if now - node.since <= policy.lasts(node.limit):
        return f"within {_named(node.limit, policy)}, since {node.since:%F}"
    return ""


def _marked(nodes: Mapping[str, Node], roots: Mapping[str, str]) -> dict[str, str]:
    """Return the keys of all that stays, with why: the roots, and what can be reached from them."""
    stays, open_ends = dict(roots), list(roots)
    while open_ends:
        key = open_ends.pop()
        for needed in _needed(nodes[key], nodes):
            if needed not in stays:
                stays[needed] = f"{key} needs it"
                open_ends.append(needed)
    return stays


def _needed(node: Node, nodes: Mapping[str, Node]) -> Iterator[str]:
    return (key for key in sorted(node.refers) if key in nodes and not nodes[key].barred)


def _decision(node: Node, stays: str, policy: Policy, now: datetime) -> Decision:
    days = (now - node.since).days
    went = node.barred or f"{days} days since {node.since:%F}, and nothing needs it; {_named(node.limit, policy)}"
    return Decision(
        key=node.key, kind=node.kind, keep=bool(stays), reason=stays or went, since=node.since, size=node.size,
        model=node.model, version=node.version,
    )  # fmt: skip


def _named(limit: Limit, policy: Policy) -> str:
    return f"{limit.value} {getattr(policy, limit.value)}"
