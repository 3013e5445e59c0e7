"""A person's word on a cluster: asked there what waits, said by a ConfigMap, followed by a `release`.

Called by `approvals`, `review`, `approve`, `reject` and `rollback` with a namespace, and by `doctor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

from contracts.access import ASK
from contracts.admission import binding_name
from contracts.approvals import POLICY, PREFIX, Word, config_map, vouches, word_name
from contracts.errors import ConfigError
from contracts.names import RELEASE
from contracts.references import LedgerEntry
from steps.rollout.cluster import Conflict
from workflows.cluster import submission
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import answer, errand

if TYPE_CHECKING:
    from steps.approvals import WayBack
    from steps.lineage import Lineage

_REQUESTS = """
import json
from datetime import UTC, datetime
from contracts.settings import load_settings
from steps.approvals import requests
from steps.ledger import Ledger

ledger, at = Ledger(load_settings().ledger.get_secret_value()), next(map(datetime.fromisoformat, sys.argv[1:]), None)
now = at or datetime.now(UTC)
ask = lambda: [found for model in ledger.models() for found in requests(ledger.entries(model, at), now)]
print(json.dumps([[entry.model_dump(mode="json"), why] for entry, why in patiently(ask)]))
"""
_ASKED = """
from contracts.settings import load_settings
from steps.archive import asked
print(patiently(lambda: asked(load_settings(), sys.argv[1], sys.argv[2]))[1].model_dump_json())
"""
_REVIEW = """
import json
from contracts.settings import load_settings
from steps.archive import asked
from steps.lineage import lineage

def look():
    archive, request = asked(load_settings(), sys.argv[1], sys.argv[2])
    versions = [request.version, request.evidence.get("from")]
    known = [each and lineage(archive, str(each)) for each in versions]
    return [each and each.model_dump(mode="json") for each in (request, *known)]

print(json.dumps(patiently(look)))
"""
_PAGE = """
from pathlib import Path
from contracts.names import page_name
from contracts.settings import load_settings
from steps.archive import asked

def look():
    archive, request = asked(load_settings(), sys.argv[1], sys.argv[2])
    kept = archive.registry.fetch(request.run_id, page_name(request.version), Path("/tmp"))
    return kept.read_text() if kept else ""

print(patiently(look))
"""
_WAY_BACK = """
import json
from contracts.settings import load_settings
from steps.approvals import way_back
from steps.archive import Archive

def look():
    archive = Archive.open(load_settings(), sys.argv[1])
    return way_back(archive.ledger.entries(archive.model), int(sys.argv[2]) if sys.argv[2] else None)

found = patiently(look)
print(json.dumps([found.to, found.passed.model_dump(mode="json"), found.about.model_dump(mode="json")]))
"""


@dataclass(frozen=True)
class Said:
    """A word that was left, and the name of the ConfigMap that holds it."""

    word: Word
    name: str
    authenticated: bool
    """Whether an admission policy saw to it that the name is right."""


def requests(namespace: Namespace, at: datetime | None = None) -> list[tuple[LedgerEntry, str]]:
    """Return what waits for a person, and why it lapsed, empty while it holds; raises as `errand`."""
    found = answer(namespace, ASK, _REQUESTS, *([at.isoformat()] if at else []))
    return [(LedgerEntry.model_validate(entry), why) for entry, why in found]


def review(namespace: Namespace, run: str, model: str) -> tuple[LedgerEntry, Lineage, Lineage | None]:
    """Return a request, the challenger and what serves; raises as `errand`."""
    from steps.lineage import Lineage

    request, challenger, champion = answer(namespace, ASK, _REVIEW, run, model)
    before = Lineage.model_validate(champion) if champion else None
    return LedgerEntry.model_validate(request), Lineage.model_validate(challenger), before


def page(namespace: Namespace, run: str, model: str) -> str:
    """Return the page that MLflow keeps of a request, empty where there is none; raises as `errand`."""
    said = errand(namespace, ASK, _PAGE, run, model)
    return said[said.find("<!doctype html>") :] if "<!doctype html>" in said else ""


def decide(namespace: Namespace, run: str, model: str, *, approved: bool, reason: str) -> Said:
    """Leave a yes or a no on what a run asks for.

    Raises
    ------
    ConfigError
        It asks for nothing, or somebody has answered already.
    """
    from steps.approvals import word_on

    request = LedgerEntry.model_validate(answer(namespace, ASK, _ASKED, run, model))
    word = word_on(
        request, request, request.version, by=namespace.user(), decision="approved" if approved else "rejected",
        reason=reason,
    )  # fmt: skip
    return _say(namespace, word)


def roll_back(namespace: Namespace, model: str, version: int | None, reason: str) -> Said | WayBack:
    """Leave the word that a version which served is to serve again, by default the last that was good.

    Where it serves already none is left, and the way is returned.

    Raises
    ------
    ConfigError
        There is no way back.
    """
    from steps.approvals import WayBack, word_on

    found = answer(namespace, ASK, _WAY_BACK, model, str(version or ""))
    way = WayBack(found[0], *map(LedgerEntry.model_validate, found[1:]))
    if way.serves:
        return way
    said = {"by": namespace.user(), "reason": reason}
    words = (word_on(way.about, way.passed, way.to, decision="rollback", again=n, **said) for n in count())
    return _say(namespace, next(word for word in words if _may_say(namespace, word)))


def _may_say(namespace: Namespace, word: Word) -> bool:
    """Say whether a word to go back is new, or was said by the same person just now: they were cut off then."""
    from steps.approvals import ROLLBACK_HOLDS

    there = namespace.get("ConfigMap", word_name(word.about, word.version, word.again))
    if there is None:
        return True
    made = datetime.fromisoformat(str(there["metadata"]["creationTimestamp"]))
    return there["data"].get("by") == word.by and datetime.now(UTC) - made < ROLLBACK_HOLDS / 2


def release(namespace: Namespace, said: Said, name: str) -> None:
    """Start the `release` that enters a word and acts on it."""
    given = {"version": str(said.word.version), "requested-by": said.word.by}
    submission.start(namespace, name, said.word.model, RELEASE, given)


def authenticates(namespace: Namespace) -> bool:
    """Say whether the policy that vouches for names is in place, as far as this person may see."""
    try:
        policy = namespace.get("ValidatingAdmissionPolicy", POLICY)
        binding = namespace.get("ValidatingAdmissionPolicyBinding", binding_name(namespace.namespace, POLICY))
    except ConfigError:
        return False
    return vouches(policy, binding, namespace.namespace)


def never_said(namespace: Namespace, model: str, vouched: Sequence[tuple[str, str, int]]) -> list[str]:
    """Return which words, vouched for as a ledger says, nobody gave here, each as who on what.

    Who has the ledger's password may enter any; what the policy guards, a word in the cluster, they cannot make.
    """
    used, found = set[str](), []
    for name, by, version in vouched:
        ours = name.startswith(PREFIX) and name.removeprefix(PREFIX).isalnum() and name not in used
        said = (namespace.get("ConfigMap", name) or {}).get("data", {}) if ours else {}
        used.add(name)
        if (said.get("by"), said.get("model"), said.get("version")) != (by, model, str(version)):
            found.append(f"{by} on version {version}")
    return found


def _say(namespace: Namespace, word: Word) -> Said:
    name = word_name(word.about, word.version, word.again)
    try:
        namespace.create(config_map(word))
    except Conflict:
        there = (namespace.get("ConfigMap", name) or {}).get("data", {})
        if {**there, "reason": ""} == {**config_map(word)["data"], "reason": ""}:
            return Said(word, name, authenticates(namespace))  # the command was cut off before the release began
        raise ConfigError(
            f"version {word.version} of {word.model} was {there.get('decision', 'answered')} by {there.get('by', '?')}",
            remedy="an approval is neither changed nor removed; the next run asks anew",
        ) from None
    return Said(word, name, authenticates(namespace))
