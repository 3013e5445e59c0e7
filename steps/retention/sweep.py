"""Remove what the policy no longer keeps.  Called by `retrain retention apply` and by the CronWorkflow.

Order of effects: a note in the ledger, then copies in the archive, then the removal.  Only what a note names is
removed, and only what is still to go when everything was looked at again after the notes.  Killed anywhere, the next
run goes on: what was entered and is still there is removed then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from contracts.base import Contract
from contracts.outcomes import Note
from contracts.references import LedgerEntry
from contracts.settings import Settings, variable
from steps.images import remove
from steps.ledger import Ledger, until_won
from steps.lifecycle import first_transition, moment_text
from steps.retention.objects import in_order
from steps.retention.plan import Decision, Kind, Policy, plan
from steps.retention.runs import Runs
from steps.retention.survey import Survey, survey
from steps.retention.versions import REMOVED, run_key
from steps.signing import EVIDENCE
from steps.storage import Storage, Stored, quoted

ARCHIVE = "archive"
"""Evidence of the note *removed*: where copies were put first, if anywhere."""
_AT_ONCE = 1000
"""A note holds no more than so many things."""
_HASHES = (
    "dataset_sha256",
    "split_sha256",
    "transform_sha256",
    "user_code",
    "lock_sha256",
    "artifact_sha256",
    EVIDENCE,
)


class Total(Contract):
    """How much goes, or went."""

    things: int
    size: int = Field(description="In bytes.")
    left: int = Field(description="Of these, how many could not be removed.")


class Outlook(Contract):
    """What a policy would do, or did."""

    policy: Policy
    archive: str = Field(description="Where copies go first; empty: nowhere.")
    decisions: tuple[Decision, ...] = Field(description="On everything, what stays first; once done: what was removed.")
    notes: tuple[str, ...] = Field((), description="Ids of the entries that were written.")
    left: tuple[str, ...] = Field((), description="What could not be removed, and why.")
    total: Total = Field(
        default_factory=lambda made: Total(
            things=len(gone := [d for d in made["decisions"] if not d.keep]), size=sum(d.size for d in gone),
            left=len(made["left"]),
        ),
        description="Of all that goes, also where an answer names a part of it.",
    )  # fmt: skip

    def shortened(self, length: int) -> Outlook:
        """Return the same with so many names at most; the total stays that of all."""
        return self.model_copy(update={"decisions": self.decisions[:length], "left": self.left[:length]})

    @property
    def goes(self) -> list[Decision]:
        """What is to be removed."""
        return [decision for decision in self.decisions if not decision.keep]


def look(settings: Settings, now: datetime) -> Outlook:
    """Return what would be removed, and what would stay, each with why; change nothing.

    Raises
    ------
    NetworkError, StorageError, ConfigError
        Store, MLflow or ledger can't be read.
    """
    policy = Policy.of(settings)
    decided = _measured(plan(survey(settings, policy, now).nodes, policy, now), settings)
    return Outlook(policy=policy, archive=settings.retention_archive, decisions=tuple(decided))


def apply(
    settings: Settings, now: datetime, *, workflow: str, by: str, tell: Callable[[str], None] = lambda _: None
) -> Outlook:
    """Remove what goes, and return what that was.

    Raises
    ------
    LostRace
        Others wrote to the ledger each time.
    NetworkError, StorageError, ConfigError
        Something could not be read, copied or removed; the next run goes on from there.
    """
    policy = Policy.of(settings)
    notes: list[str] = []
    named: list[Decision] = []

    def enter() -> None:
        found = survey(settings, policy, now)
        for note, things in _enter(found, plan(found.nodes, policy, now), settings, workflow, by, now):
            notes.append(note.id)
            named.extend(things)

    until_won(enter)
    found = survey(settings, policy, now)
    goes = [d for d in plan(found.nodes, policy, now) if not d.keep and _entered(d, found)]
    # of a version nothing is to be removed but what it needed; an image is another's to remove, unless the settings say
    done = [
        d for d in named if d.kind is Kind.VERSION or (d.kind is Kind.IMAGE and not settings.retention_delete_images)
    ]
    done += _measured(goes, settings)
    sweep, left = _Sweep(settings, now), []
    for decision in done:
        why = sweep.remove(decision)
        tell(f"{'left' if why else 'removed'} {decision.key}: {why or decision.reason}")
        left += [f"{decision.key}: {why}"] if why else []
    return Outlook(
        policy=policy, archive=settings.retention_archive, decisions=tuple(done), notes=tuple(notes), left=tuple(left)
    )


def _enter(
    found: Survey, decided: Sequence[Decision], settings: Settings, workflow: str, by: str, now: datetime
) -> Iterator[tuple[LedgerEntry, list[Decision]]]:
    """Write a note for each version that goes, with what goes for its sake, and notes for what belonged to none."""
    ledger, heads = Ledger(settings.ledger.get_secret_value()), dict(found.heads)
    said = {"policy": Policy.of(settings).model_dump(), ARCHIVE: settings.retention_archive}
    for (model, version), things in sorted(_by_version(found, decided).items()):
        history = [e for e in found.histories.get(model, ()) if version and e.version == version]
        registered = first_transition(history)
        hashes = {name: e.evidence[name] for name in _HASHES for e in history if e.evidence.get(name)}
        for start in range(0, len(things), _AT_ONCE):
            part = things[start : start + _AT_ONCE]
            heads[model] = ledger.append(
                model, Note.REMOVED, version=version, run_id=registered.run_id if registered else "",
                workflow=workflow, by=by, reason=_reason(part),
                evidence={**said, **hashes, REMOVED: [_thing(d) for d in part]}, after=heads.get(model), at=now,
            )  # fmt: skip
            yield heads[model], part


def _by_version(found: Survey, decided: Sequence[Decision]) -> dict[tuple[str, int], list[Decision]]:
    """Return what is to be entered, by whose chain and version (0: none's) it goes in.

    What no model needed goes into the first one's chain; where there is none yet, nothing can be entered or removed.
    """
    goes = {d.key: d for d in decided if not d.keep and not _entered(d, found)}
    users = {key: node for node in found.nodes if node.key in goes and node.version for key in (node.key, *node.refers)}
    first = min(found.heads, default="")
    groups: dict[tuple[str, int], list[Decision]] = {}
    for key, decision in goes.items():
        user = users.get(key)
        model = user.model if user else decision.model if decision.model in found.heads else first or decision.model
        if model:
            groups.setdefault((model, user.version if user else 0), []).append(decision)
    return groups


def _reason(things: Sequence[Decision]) -> str:
    return next((d.reason for d in things if d.kind is Kind.VERSION), f"{len(things)} that nothing needs any more")


def _thing(decision: Decision) -> dict[str, Any]:
    return {
        "key": decision.key,
        "kind": decision.kind.value,
        "since": moment_text(decision.since),
        "why": decision.reason,
    }


def _entered(decision: Decision, found: Survey) -> bool:
    """Whether a note names this very thing, and not one that was written in its place later."""
    at = found.noted.get(decision.key)
    return at is not None and at >= decision.since


def _measured(decided: Sequence[Decision], settings: Settings) -> list[Decision]:
    """Say how much the files of a run take, where they are to go."""
    sweep = _Sweep(settings, None)
    return [
        d.model_copy(update={"size": sum(each.size for each in sweep.files(d))})
        if d.kind is Kind.RUN and not d.keep
        else d
        for d in decided
    ]


class _Sweep:
    """Removes single things; each may have been removed in part before."""

    def __init__(self, settings: Settings, now: datetime | None) -> None:
        self._settings, self._now = settings, now
        self._storage, self._runs = Storage(settings), Runs(settings)
        self._roots = {
            f"{root.rstrip('/')}/": name
            for name, root in (("store", settings.store), ("artifacts", settings.artifacts))
            if root
        }

    def remove(self, decision: Decision) -> str:
        """Remove one thing, and return why not, if so."""
        if decision.kind is Kind.VERSION:
            return ""  # its number, tags and entries stay; its run and what else it needed are things of their own
        if decision.kind is Kind.IMAGE:
            if not self._settings.retention_delete_images:
                return f"yours to delete: {variable('retention_delete_images')} is off"
            return remove(decision.key, self._settings)
        files = list(self.files(decision))
        for each in files:
            self._archive(each)
        for each in in_order(files):
            self._storage.delete(quoted(each.uri))
        if decision.kind is Kind.RUN:
            if decision.version and self._now:
                self._runs.mark(decision.model, decision.version, self._now)
            self._runs.remove(decision.key.removeprefix(run_key("")))
        return ""

    def files(self, decision: Decision) -> Iterator[Stored]:
        """Yield the objects that a thing consists of; of artifacts kept elsewhere none, `mlflow gc` removes those."""
        if decision.kind is not Kind.RUN:
            uri = self._storage.uri(decision.key)
            yield from (
                each for each in self._storage.objects(uri) if each.uri == uri or each.uri.startswith(f"{uri}/")
            )
            return
        root = f"{self._settings.artifacts.rstrip('/')}/"
        for place in self._runs.places(decision.key.removeprefix(run_key(""))):
            if self._settings.artifacts and place.startswith(root):  # an experiment's location is who made it's to say
                yield from self._storage.objects(f"{place.rstrip('/')}/")

    def _archive(self, stored: Stored) -> None:
        if not (archive := self._settings.retention_archive.rstrip("/")) or not self._storage.exists(
            quoted(stored.uri)
        ):
            return
        root = next((root for root in self._roots if stored.uri.startswith(root)), "")
        below = stored.uri.removeprefix(root) if root else stored.uri.partition("://")[2].lstrip("/")
        self._storage.copy(quoted(stored.uri), quoted("/".join((archive, self._roots.get(root, "elsewhere"), below))))
