"""Everything that an environment keeps, as nodes for `steps.retention.plan`.  Changes nothing.

The store is read before MLflow, and the ledger last: what is referred to after it was seen is seen to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from contracts.references import LedgerEntry
from contracts.settings import Settings
from steps.images import exists
from steps.ledger import Ledger
from steps.retention.objects import object_nodes
from steps.retention.plan import Kind, Limit, Node, Policy
from steps.retention.runs import Registered, Runs, TrainingRun
from steps.retention.versions import barred_runs, noted, place_key, run_key, version_key, version_nodes
from steps.storage import Storage


@dataclass(frozen=True)
class Survey:
    """What was found."""

    nodes: tuple[Node, ...]
    heads: Mapping[str, LedgerEntry]
    """Model -> its newest entry when it was looked at."""
    noted: Mapping[str, datetime]
    """Key -> when its removal was last entered."""
    histories: Mapping[str, Sequence[LedgerEntry]]
    """Model -> its entries, oldest first."""


def survey(settings: Settings, policy: Policy, now: datetime) -> Survey:
    """Look at store, MLflow and ledger.

    Raises
    ------
    NetworkError, StorageError, ConfigError
        As each of them does.
    """
    objects = list(object_nodes(Storage(settings), now - policy.lasts(Limit.UNSERVED)))
    runs = Runs(settings)
    trainings, registered = list(runs.trainings()), runs.registered()
    ledger = Ledger(settings.ledger.get_secret_value())
    histories = {model: ledger.entries(model) for model in ledger.models()}
    entered: dict[str, datetime] = {}
    for history in histories.values():
        for key, at in noted(history).items():
            entered[key] = max(at, entered.get(key, at))
    nodes = (
        *_versions(settings, histories, registered, entered),
        *_runs(trainings, histories, registered, settings),
        *_with_evidence(objects, histories),
    )
    return Survey(nodes, {model: history[-1] for model, history in histories.items()}, entered, histories)


def _versions(
    settings: Settings, histories: Mapping[str, Sequence[LedgerEntry]], registered: Registered,
    entered: Mapping[str, datetime],
) -> Iterator[Node]:  # fmt: skip
    for model, history in histories.items():
        for node in version_nodes(history, registered.aliases.get(model, {})):
            if node.kind is Kind.IMAGE and node.key in entered and not _still_there(node.key, settings):
                continue
            yield node


def _still_there(image: str, settings: Settings) -> bool:
    """Whether an image that was to be removed is to be asked for once more."""
    return settings.retention_delete_images and exists(image, settings)


def _runs(
    trainings: Sequence[TrainingRun], histories: Mapping[str, Sequence[LedgerEntry]], registered: Registered,
    settings: Settings,
) -> Iterator[Node]:  # fmt: skip
    """Yield the trainings; a version's run and its version need each other."""
    barred: dict[str, str] = {}
    versions: dict[str, tuple[str, int]] = {}
    for model, history in histories.items():
        barred |= barred_runs(history)
        versions |= {entry.run_id: (model, entry.version) for entry in history if entry.run_id and entry.version}
    elsewhere = {run: model for model, run in registered.versions if run not in versions}
    root = f"{settings.store.rstrip('/')}/"
    for run in trainings:
        ours = versions.get(run.run_id)
        pinned = ""
        if run.run_id in elsewhere:
            pinned = f"a version of {elsewhere[run.run_id]} in MLflow, which the ledger does not know"
        elif not ours and not any(name.startswith(root) for name in run.names):
            pinned = "a training of another store"
        yield Node(
            key=run_key(run.run_id), kind=Kind.RUN, since=run.ended,
            refers=frozenset(
                (*map(place_key, run.names), f"reports/{run.run_id}", *([version_key(*ours)] if ours else ()))
            ),
            pinned=pinned, barred=barred.get(run.run_id, ""), model=ours[0] if ours else run.model,
            version=ours[1] if ours else 0,
        )  # fmt: skip


def _with_evidence(objects: Sequence[Node], histories: Mapping[str, Sequence[LedgerEntry]]) -> Iterator[Node]:
    """Yield the objects; the gates' reports on a version are what its entries rest on, and stay."""
    evidence = {
        f"reports/{entry.run_id}": f"evidence of {version_key(model, entry.version)}"
        for model, history in histories.items()
        for entry in history
        if entry.run_id and entry.version
    }
    for node in objects:
        yield replace(node, pinned=evidence[node.key]) if node.key in evidence else node
