"""Versions as nodes, from a model's entries in the ledger alone.  Pure; called by `steps.retention.survey`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from contracts.errors import ConfigError
from contracts.outcomes import Note, State
from contracts.references import LedgerEntry
from steps.approvals import last_good
from steps.lifecycle import IN_USE, standing
from steps.retention.plan import Kind, Limit, Node
from steps.rollout.target import IMAGE_HOLDS_MODEL

REMOVED = "removed"
"""Evidence of the note *removed*: what was removed, a list of {key, kind, since, why}."""
_ANSWERS = (State.RELEASING, State.SERVING)
"""A canary that was taken back answered too, so it counts as having served."""
_MATERIAL = ("dataset", "split", "code")
"""Evidence of *registered* that names places in the store."""


def version_nodes(entries: Sequence[LedgerEntry], aliases: Mapping[int, str]) -> Iterator[Node]:
    """Yield the versions of a model that were not removed, and the images that were built for them.

    Parameters
    ----------
    aliases
        Version -> an alias of MLflow's that names it.
    """
    now, back = standing(entries), _way_back(entries)
    for version, latest in now.latest.items():
        history = [e for e in entries if e.version == version and isinstance(e.state, State)]
        served = _answered_until(history)
        images = dict(_images(history))
        if version not in now.removed:
            pinned = {
                f"it is {latest.state.value}": latest.state in IN_USE,
                "a rollback goes back to it": version == back,
                f"MLflow's alias {aliases.get(version)} names it": version in aliases,
            }
            yield Node(
                key=version_key(latest.model, version), kind=Kind.VERSION, since=served or latest.at,
                limit=Limit.SERVED if served else Limit.UNSERVED,
                refers=frozenset((*_refers(history), *images)),
                pinned=next((why for why, holds in pinned.items() if holds), ""),
                model=latest.model, version=version,
            )  # fmt: skip
        for image, at in images.items():
            yield Node(key=image, kind=Kind.IMAGE, since=at, model=latest.model, version=version)


def barred_runs(entries: Sequence[LedgerEntry]) -> dict[str, str]:
    """Return the runs of versions whose removal was entered, and why nothing may keep them."""
    return {
        entry.run_id: f"the removal of version {version} was entered on {entry.at:%F}"
        for version, entry in standing(entries).removed.items()
        if version
    }


def noted(entries: Sequence[LedgerEntry]) -> dict[str, datetime]:
    """Return the keys of what was entered as removed, and when last."""
    return {
        each["key"]: entry.at for entry in entries if entry.state is Note.REMOVED for each in entry.evidence[REMOVED]
    }


def version_key(model: str, version: int) -> str:
    """Return the key of a version."""
    return f"version:{model}@{version}"


def run_key(run_id: str) -> str:
    """Return the key of an MLflow run."""
    return f"run:{run_id}"


def place_key(uri: str) -> str:
    """Return the key of a place in the store: without the root, which may have moved since it was written down."""
    return "/".join(uri.rstrip("/").split("/")[-2:])


def _refers(history: Sequence[LedgerEntry]) -> Iterator[str]:
    yield run_key(history[0].run_id)
    for entry in history:
        yield from (place_key(str(entry.evidence[name])) for name in _MATERIAL if entry.evidence.get(name))
        yield from (f"reports/{entry.workflow}", f"logs/{entry.workflow}")


def _images(history: Sequence[LedgerEntry]) -> Iterator[tuple[str, datetime]]:
    """Yield the images that hold the version's model; those that serve any, and those of the steps, are shared."""
    for entry in history:
        image = str(entry.evidence.get("image", "")) if entry.state in _ANSWERS else ""
        if "@sha256:" in image and entry.evidence.get(IMAGE_HOLDS_MODEL):
            yield image, entry.at


def _answered_until(history: Sequence[LedgerEntry]) -> datetime | None:
    """Return when a version answered last, None when it never did."""
    ends = [
        after.at for entry, after in zip(history, (*history[1:], history[-1]), strict=True) if entry.state in _ANSWERS
    ]
    return max(ends, default=None)


def _way_back(entries: Sequence[LedgerEntry]) -> int | None:
    with suppress(ConfigError):
        return last_good(entries)
    return None
