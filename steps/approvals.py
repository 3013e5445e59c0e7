"""A person's word on a version: yes, no, or back to one that served.  Called by the command line; promote reads it.

At the desk a person is whom the operating system says, which nobody vouches for, so entries say *unauthenticated*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from contracts.approvals import Said, Word
from contracts.errors import ConfigError
from contracts.outcomes import Promotion, State
from contracts.references import LedgerEntry
from steps.ledger import Ledger, until_won
from steps.lifecycle import APPROVAL, EXPIRES, ended, moment_text, permit, standing

HOLDS_SECONDS = "holds_seconds"
"""Evidence of *awaiting*: how long a request waits, and the approval of it for its release."""
ROLLBACK_FROM = "rollback_from"
"""Evidence of an *approved* that goes back: the version that served."""
ROLLBACK_HOLDS = timedelta(hours=1)
_SAID_BY = {State.APPROVED: "approve", State.REJECTED: "reject"}
"""What stands in place of a workflow where a command enters something."""
_BOUND = ("artifact_sha256", "report", "report_sha256")
"""Evidence of a request that an approval is bound to, beside the version and the request itself."""


@dataclass(frozen=True)
class Person:
    """Who says it, and whether somebody else than they themselves vouches for that."""

    name: str
    authenticated: bool = False
    word: str = ""
    """On a cluster, the ConfigMap that holds what they said."""

    def __str__(self) -> str:
        return self.name if self.authenticated else f"{self.name} (unauthenticated)"


def given_by_person(entry: LedgerEntry) -> bool:
    """Whether an entry holds a person's word."""
    return APPROVAL in entry.evidence


def in_force(entries: Sequence[LedgerEntry], version: int) -> LedgerEntry | None:
    """Return the person's word by which a version is approved or being released now, None where there is none."""
    if standing(entries).state(version) not in (State.APPROVED, State.RELEASING):
        return None
    word = _passed(entries, version)
    return word if given_by_person(word) else None


def unauthenticated(entries: Sequence[LedgerEntry]) -> tuple[int, list[str]]:
    """Return how many words of persons were entered, and by whom those were that nobody vouches for."""
    given = [entry for entry in entries if given_by_person(entry)]
    doubtful = [entry.by.partition(" (")[0] for entry in given if not entry.evidence[APPROVAL].get("authenticated")]
    return len(given), doubtful


def vouched(entries: Sequence[LedgerEntry]) -> list[tuple[str, str, int]]:
    """Return of each word that a cluster vouched for, as its entry says: name there, who, on what version."""
    given = [(entry, entry.evidence[APPROVAL]) for entry in entries if given_by_person(entry)]
    return [(str(said.get("word", "")), entry.by, entry.version) for entry, said in given if said.get("authenticated")]


def requests(entries: Sequence[LedgerEntry], at: datetime) -> Iterator[tuple[LedgerEntry, str]]:
    """Yield each version's request that was not decided, and why it lapsed, empty while it holds."""
    now = standing(entries)
    for entry in now.latest.values():
        if entry.state is State.AWAITING:
            over = ended(now, entry.version, at)
            yield entry, over[1] if over else ""


def request_of(entries: Sequence[LedgerEntry], run: str) -> LedgerEntry:
    """Return the request that a run made, by the run's name or the version's number; the latest of several.

    Raises
    ------
    ConfigError
        It made none.
    """
    made = [entry for entry in entries if entry.state is State.AWAITING]
    for entry in reversed(made):
        if run in (entry.workflow, str(entry.version)):
            return entry
    waits = ", ".join(entry.workflow for entry in standing(entries).latest.values() if entry.state is State.AWAITING)
    raise ConfigError(
        f"{run} asked for no approval", remedy=f"waiting now: {waits}" if waits else "`retrain approvals` lists them"
    )


def decide(
    ledger: Ledger, model: str, run: str, state: State, *, person: Person, reason: str, at: datetime
) -> LedgerEntry:  # fmt: skip
    """Enter a person's yes (*approved*) or no (*rejected*) on a run's request, and return the entry.

    A yes is bound to the request: the version, the hash of its package and the gate's report; said again by the same
    person, it is the same.  A request that lapsed meanwhile is entered as such.

    Raises
    ------
    ConfigError
        The run asked for nothing, or what it asked was decided or lapsed already.
    LostRace
        Others wrote to the ledger each time.
    """

    def write() -> tuple[LedgerEntry, str]:
        entries = ledger.entries(model)
        request, now = request_of(entries, run), standing(entries)
        latest, word = now.latest[request.version], in_force(entries, request.version)
        said = word.evidence[APPROVAL] if word else {}
        if state is State.APPROVED and word and (said["request"], said["name"]) == (request.id, person.name):
            return word, ""  # the command, or the release that it began, was cut off
        if latest.id != request.id:
            raise ConfigError(
                f"the request of {run} is decided: version {latest.version} is {latest.state.value}, "
                f"by {latest.by} at {moment_text(latest.at)}"
            )
        over = ended(now, request.version, at) if state is State.APPROVED else None
        to, why = over or (state, reason)
        evidence: dict[str, Any] = {"request": request.id}
        if over is None:
            evidence |= _word(request, person, at, timedelta(seconds=float(request.evidence[HOLDS_SECONDS])), state)
        entry = ledger.append(
            model, to, version=request.version, run_id=request.run_id, workflow=_SAID_BY[state], by=str(person),
            reason=why, evidence=evidence, after=entries[-1], now=now, at=at,
        )  # fmt: skip
        return entry, why if over else ""

    entry, lapsed = until_won(write)
    if lapsed:
        raise ConfigError(f"the request of {run} is {entry.state.value}: {lapsed}")
    return entry


def roll_back(
    ledger: Ledger, model: str, version: int | None, *, person: Person, reason: str, at: datetime
) -> LedgerEntry:  # fmt: skip
    """Enter that a version which served is to serve again, by default the last before today's, and return the entry.

    It passed its gate then; no gate is asked once more, since the one that serves now won against it there.  A word
    that is in force already is returned as it is.

    Raises
    ------
    ConfigError
        Nothing served before, or that version never did.
    IllegalTransition
        It serves, or is being released by no person's word.
    LostRace
        Others wrote to the ledger each time.
    """

    def write() -> LedgerEntry:
        entries = ledger.entries(model)
        now = standing(entries)
        to = _served(entries, version)
        latest = now.latest[to]
        word = in_force(entries, to)
        if word is not None and ended(now, to, at) is None:
            return word  # the command, or the release that it began, was cut off
        permit(now, State.APPROVED, to, at)
        serving = now.serving.version if now.serving else None
        evidence = {ROLLBACK_FROM: serving, **_word(_passed(entries, to), person, at, ROLLBACK_HOLDS, State.APPROVED)}
        return ledger.append(
            model, State.APPROVED, version=to, run_id=latest.run_id, workflow="rollback", by=str(person),
            reason=reason, evidence=evidence, after=entries[-1], now=now, at=at,
        )  # fmt: skip

    return until_won(write)


@dataclass(frozen=True)
class WayBack:
    """What a rollback would do: to which version, by which entry that let it through, from what serves."""

    to: int
    passed: LedgerEntry
    about: LedgerEntry
    """What a word to go back answers: the newest entry of either version, so that a try that failed is over."""

    @property
    def serves(self) -> bool:
        """Whether nothing is to be done: the version serves."""
        return self.about.state is State.SERVING and self.about.version == self.to


def way_back(entries: Sequence[LedgerEntry], version: int | None) -> WayBack:
    """Return the way back to a version, by default the last that was good.

    Raises
    ------
    ConfigError
        Nothing serves, or there is no such way.
    """
    now = standing(entries)
    if now.serving is None:
        raise ConfigError("nothing serves, so there is nothing to go back from")
    to = _served(entries, version)
    about = max(now.serving, now.latest[to], key=lambda entry: entry.number)
    return WayBack(to, _passed(entries, to), about)


def last_good(entries: Sequence[LedgerEntry]) -> int:
    """Return the version that served last before the one that serves now and that nobody has gone back from since.

    Raises
    ------
    ConfigError
        There is none.
    """
    now = standing(entries)
    served = [entry.version for entry in entries if entry.state is State.SERVING]
    gone = {*left(entries), *now.removed, *([now.serving.version] if now.serving else [])}
    if good := [version for version in served if version not in gone]:
        return good[-1]
    raise ConfigError(
        "there is no version to go back to", remedy="`retrain rollback --to VERSION` takes any that served"
    )


def left(entries: Sequence[LedgerEntry]) -> dict[int, LedgerEntry]:
    """Return the versions that a person went back from and that did not begin to serve since, with their word.

    A word counts once the version that it brings back serves by it: one that lapsed, or whose release was taken back,
    left nothing.
    """
    found: dict[int, LedgerEntry] = {}
    passed: dict[int, LedgerEntry] = {}
    for entry in entries:
        if entry.state is State.APPROVED:
            passed[entry.version] = entry
        elif entry.state is State.SERVING:
            found.pop(entry.version, None)
            word = passed.get(entry.version)
            if word is not None and (before := word.evidence.get(ROLLBACK_FROM)) is not None:
                found[int(before)] = word
    return found


def bound(entry: LedgerEntry) -> dict[str, str]:
    """Return what a person's yes is bound to: evidence of the request, by name."""
    said = entry.evidence.get(APPROVAL, {})
    return {name: str(said[name]) for name in _BOUND if said.get(name)}


def _served(entries: Sequence[LedgerEntry], version: int | None) -> int:
    to = last_good(entries) if version is None else version
    served = {entry.version for entry in entries if entry.state is State.SERVING}
    if to not in served:
        raise ConfigError(
            f"version {to} never served",
            remedy=f"those that did: {', '.join(map(str, sorted(served))) or 'none'}; another is released by a run",
        )
    return to


def word_on(
    about: LedgerEntry, evidence: LedgerEntry, version: int, *, by: str, decision: Said, reason: str, again: int = 0
) -> Word:  # fmt: skip
    """Return a person's word as a cluster keeps it, bound to what `evidence` rests on: a request, or an approval."""
    found = seen(evidence)
    bound_to = {name: str(found.get(name, "")) for name in _BOUND}
    return Word(
        by=by, decision=decision, reason=reason, model=about.model, version=version, about=about.id, again=again,
        **bound_to,
    )  # fmt: skip


def _passed(entries: Sequence[LedgerEntry], version: int) -> LedgerEntry:
    """Return the entry by which a version was let through last."""
    return next(e for e in reversed(entries) if e.version == version and e.state is State.APPROVED)


def _who(person: Person) -> dict[str, Any]:
    return {name: value for name, value in asdict(person).items() if value != ""}


def was_entered(entries: Sequence[LedgerEntry], word: str) -> bool:
    """Whether a cluster's word is in the ledger: it counts once."""
    return any(entry.evidence.get(APPROVAL, {}).get("word") == word for entry in entries)


def seen(entry: LedgerEntry) -> dict[str, Any]:
    """Return an entry's evidence, and what the word that it holds was bound to."""
    return {**entry.evidence.get(APPROVAL, {}), **entry.evidence}


def _word(request: LedgerEntry, person: Person, at: datetime, holds: timedelta, state: State) -> dict[str, Any]:
    decision = Promotion.APPROVED if state is State.APPROVED else Promotion.REJECTED
    found = seen(request)
    return {
        APPROVAL: {**_who(person), "request": request.id, **{name: found[name] for name in _BOUND if name in found}},
        "decision": decision.value,
        **({EXPIRES: moment_text(at + holds)} if state is State.APPROVED else {}),
    }
