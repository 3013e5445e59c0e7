"""Decide whether a registered version may serve.  Called as the `promote` stage; writes the ledger, trains nothing.

The decision rests on one reading of the ledger and is written after it; when someone else wrote meanwhile, the ledger
is read and the decision made once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from contracts.errors import ConfigError
from contracts.names import RELEASE, page_name
from contracts.outcomes import Promotion, State
from contracts.references import LedgerEntry
from contracts.stages import Promote
from serving.model import MANIFEST_FILE
from steps import lifecycle
from steps.aliases import follow
from steps.approvals import (
    HOLDS_SECONDS,
    ROLLBACK_HOLDS,
    Person,
    WayBack,
    bound,
    decide,
    given_by_person,
    left,
    roll_back,
    seen,
    was_entered,
    way_back,
    word_on,
)
from steps.judging.judge import Judged, judge
from steps.ledger import LostRace
from steps.lifecycle import EXPIRES, moment_text
from steps.words import Given
from steps.world import World

ATTEMPTS = 2
_DECIDED = (State.APPROVED, State.AWAITING, State.REJECTED)

Judge = Callable[[World, Promote.Inputs, str, LedgerEntry | None], Judged]
"""A version, its run and the entry of what serves -> what the gate says."""


def promote(inputs: Promote.Inputs, *, world: World, judge: Judge = judge) -> Promote.Outputs:
    """Return the decision and the ledger entry that holds it.

    Decided once a workflow: run again, it returns what it entered.  A version that serves already is `unchanged`.
    Where the policy asks for a person, what passes the gate waits for one, and only what one approved goes on.

    Raises
    ------
    LostRace
        When the ledger moved on twice while this was decided.
    ConfigError, DataError
        When the version, its run, model, dataset or split is not there or not whole, or is not what was approved.
    """
    _notice_alias(world)
    for _ in range(ATTEMPTS - 1):
        try:
            return _Decision(world, inputs, judge).make()
        except LostRace:
            world.log.info("the ledger moved on while this was decided; deciding again")
    return _Decision(world, inputs, judge).make()


def report_uri(world: World, run_id: str, version: int, sha256: str) -> str:
    """Return where a promotion report of a version lies: each that was made stays, entries and words rest on it."""
    return world.storage.uri("reports", run_id, f"promotion-{version}-{sha256[:12]}.json")


def _notice_alias(world: World) -> None:
    """Enter what somebody else did to the alias, before the ledger is read for the decision."""
    for line in follow(
        world.ledger, world.registry, by=world.workflow, workflow=world.workflow, at=world.now(), may_set=False
    ):
        world.log.warning("%s", line)


class _Decision:
    """One reading of the ledger, and the decision that rests on it."""

    def __init__(self, world: World, inputs: Promote.Inputs, judge: Judge) -> None:
        self.world, self.inputs, self.judge = world, inputs, judge
        self.version = inputs.version
        self.policy = world.pipeline.gates.policy(world.settings.environment)
        self.entries = world.ledger.entries(world.pipeline.name)
        self.now = lifecycle.standing(self.entries)
        self.back = _way_back(self.entries, self.version)
        known = (entry.run_id for entry in self.entries if entry.version == self.version and entry.run_id)
        self.run_id = next(known, "") or world.registry.run_of(
            self.version
        )  # the ledger tells sooner than MLflow opens

    def make(self) -> Promote.Outputs:
        version, serving = self.version, self.now.serving
        if decided := _decided_here(self.entries, version, self.world.workflow):
            return self._outputs(Promotion(decided.evidence["decision"]), decided, decided.reason)
        if serving is not None and serving.version == version:
            return self._outputs(Promotion.UNCHANGED, serving, f"version {version} serves already")
        if under_way := _released_elsewhere(self.entries, version):
            return self._outputs(Promotion.APPROVED, under_way, f"version {version} was approved and is being released")
        self._end_what_lapsed()
        self._enter_word()
        if (word := self._persons_word()) is not None:
            return word
        if (gone := self._gone_back_from()) is not None:
            return gone
        return self._by_the_gate()

    def _end_what_lapsed(self) -> None:
        """Enter that this version's request or approval holds no more."""
        latest = self.now.latest.get(self.version)
        over = lifecycle.ended(self.now, self.version, self.world.now())
        if latest is not None and over and latest.state in (State.AWAITING, State.APPROVED):
            self._append(over[0], over[1], {"lapsed": latest.id})
            self._look_again()

    def _enter_word(self) -> None:
        """Enter what a person said on the cluster: on this version's request, or to go back to it."""
        latest = self.now.latest.get(self.version)
        if latest is None or self.inputs.entrypoint != RELEASE:
            return
        if latest.state is State.AWAITING:
            self._enter_answer(latest)
        elif self.back is not None:
            self._enter_rollback(self.back)

    def _enter_answer(self, request: LedgerEntry) -> None:
        given = self.world.words.given(request, self.version)
        if given is None or was_entered(self.entries, given.name) or given.word.decision == "rollback":
            return
        person = self._speaker(given, request, request)
        state = State.APPROVED if given.word.decision == "approved" else State.REJECTED
        ledger, reason = self.world.ledger, given.word.reason
        decide(ledger, request.model, str(self.version), state, person=person, reason=reason, at=self.world.now())
        self._look_again()

    def _enter_rollback(self, back: WayBack) -> None:
        given, again, at = None, 0, self.world.now()
        while found := self.world.words.given(back.about, self.version, again):  # of several the last counts
            given, again = found, again + 1
        if given is None or was_entered(self.entries, given.name):
            return
        if given.word.decision != "rollback" or at - given.at > ROLLBACK_HOLDS:
            return
        person, ledger = self._speaker(given, back.about, back.passed), self.world.ledger
        roll_back(ledger, back.about.model, self.version, person=person, reason=given.word.reason, at=at)
        self._look_again()

    def _speaker(self, given: Given, about: LedgerEntry, rests_on: LedgerEntry) -> Person:
        """Return who gave a word, which must be bound to what it rests on."""
        word = given.word
        wanted = word_on(
            about, rests_on, self.version, by=word.by, decision=word.decision, reason=word.reason, again=word.again
        )
        if word != wanted:
            raise ConfigError(f"the approval of version {self.version} by {word.by} is of another package or report")
        return Person(word.by, given.authenticated, given.name)

    def _look_again(self) -> None:
        self.entries = self.world.ledger.entries(self.world.pipeline.name)
        self.now = lifecycle.standing(self.entries)

    def _persons_word(self) -> Promote.Outputs | None:
        """Return what follows from a person's word, or from that there is none; None where the gate is to be asked."""
        latest = self.now.latest.get(self.version)
        if latest is not None and latest.state is State.APPROVED and given_by_person(latest):
            check_bound(self.world, latest)
            return self._outputs(Promotion.APPROVED, latest, f"approved by {latest.by}: {latest.reason}")
        if latest is not None and latest.state is State.REJECTED and self._answers_a_request(latest):
            return self._outputs(Promotion.REJECTED, latest, f"rejected by {latest.by}: {latest.reason}")
        if self.policy.decision == "automatic" and (latest is None or latest.state is not State.AWAITING):
            return None
        if self.inputs.entrypoint == RELEASE:
            state = latest.state.value if latest else "not in the ledger"
            why = f"nobody approved version {self.version}, which is {state}"
            return self._outputs(Promotion.NOT_APPROVED, latest, why)
        if latest is not None and latest.state is State.AWAITING:
            return self._outputs(Promotion.AWAITING_APPROVAL, latest, f"waits for a person since {latest.at:%F %T} UTC")
        return None

    def _gone_back_from(self) -> Promote.Outputs | None:
        """Return that no run of itself releases a version that a person went back from; None where none did."""
        word = left(self.entries).get(self.version)
        if word is None or self.inputs.entrypoint == RELEASE or self.policy.decision != "automatic":
            return None
        why = (
            f"{_told('went back from', word)}; `--entrypoint release --version {self.version}` lets it be judged again"
        )
        return self._outputs(Promotion.NOT_APPROVED, self.now.latest.get(self.version), why)

    def _answers_a_request(self, latest: LedgerEntry) -> bool:
        """Whether a person rejected it, and this is the release that was to follow."""
        return given_by_person(latest) and self.inputs.entrypoint == RELEASE

    def _by_the_gate(self) -> Promote.Outputs:
        world = self.world
        judged = self.judge(world, self.inputs, self.run_id, self.now.serving)
        decision, state, deadline = judged.decision, State.REJECTED, {}
        reason = judged.reason
        if decision is Promotion.APPROVED and self.policy.decision == "approval":
            decision, state = Promotion.AWAITING_APPROVAL, State.AWAITING
            reason = "; ".join((*self._no_before(), reason))
            holds = self.policy.approval_expires
            deadline = {EXPIRES: moment_text(world.now() + holds), HOLDS_SECONDS: holds.total_seconds()}
        elif decision is Promotion.APPROVED:
            state = State.APPROVED
        sha256 = hashlib.sha256(judged.report).hexdigest()
        uri = report_uri(world, self.run_id, self.version, sha256)
        # Report and page first: whoever finds the entry finds them, and what is entered is not judged again.
        world.storage.write(uri, judged.report)
        files = {f"gates/promotion-{self.version}.json": judged.report, page_name(self.version): judged.page}
        world.tracking.log_files(self.run_id, files)
        said = {"decision": decision.value, "report": uri, "report_sha256": sha256}
        entry = self._append(state, reason, {**judged.evidence, **said, **deadline})
        return self._outputs(decision, entry, reason)

    def _no_before(self) -> Iterator[str]:
        """Yield what whoever decides should know: that a person said no to this version before."""
        if (word := left(self.entries).get(self.version)) is not None:
            yield _told("went back from", word)
        latest = self.now.latest.get(self.version)
        if latest is not None and latest.state is State.REJECTED and given_by_person(latest):
            yield _told("rejected", latest)

    def _append(self, state: State, reason: str, evidence: Mapping[str, Any]) -> LedgerEntry:
        return self.world.ledger.append(
            self.world.pipeline.name, state, version=self.version, run_id=self.run_id, workflow=self.world.workflow,
            by=self.world.workflow, reason=reason, evidence=evidence,
            after=self.entries[-1] if self.entries else None, now=self.now, at=self.world.now(),
        )  # fmt: skip

    def _outputs(self, decision: Promotion, entry: LedgerEntry | None, reason: str) -> Promote.Outputs:
        report = _judged_by((*self.entries, entry) if entry else self.entries, self.version)
        return Promote.Outputs(
            decision=decision, entry=entry.id if entry else "", report=report,
            summary=f"version {self.version} {decision.value}: {reason}",
        )  # fmt: skip


def _told(did: str, word: LedgerEntry) -> str:
    return f"{word.by} {did} it at {word.at:%F %T} UTC: {word.reason}"


def _judged_by(entries: Sequence[LedgerEntry], version: int) -> str:
    """Return where the report lies by which a version was judged last; nothing where it never was."""
    decided = (e for e in reversed(entries) if e.version == version and e.state in _DECIDED)
    return next((str(report) for e in decided if (report := seen(e).get("report"))), "")


def _way_back(entries: Sequence[LedgerEntry], version: int) -> WayBack | None:
    try:
        return way_back(entries, version)
    except ConfigError:
        return None


def check_bound(world: World, approval: LedgerEntry) -> None:
    """Return when package and report are those that a person's yes is bound to.

    Raises
    ------
    ConfigError
        Either was changed since.
    """
    said = bound(approval)
    if (expected := said.get("artifact_sha256")) and artifact_sha256(world, approval.run_id) != expected:
        raise ConfigError(f"the package of version {approval.version} is not the one that {approval.by} approved")
    report = said.get("report", "")
    if report and hashlib.sha256(world.storage.read(report)).hexdigest() != said.get("report_sha256"):
        raise ConfigError(f"the report {report} is not the one that {approval.by} approved on")


def artifact_sha256(world: World, run_id: str) -> str:
    """Return the hash of a run's package: of its manifest, which holds the hash of every other file."""
    return hashlib.sha256(world.storage.read(f"{world.tracking.package_uri(run_id)}/{MANIFEST_FILE}")).hexdigest()


def _decided_here(entries: Sequence[LedgerEntry], version: int, workflow: str) -> LedgerEntry | None:
    """Return this workflow's decision on the version, when it was made already."""
    for entry in reversed(entries):
        decided = entry.state in _DECIDED and "decision" in entry.evidence
        if decided and entry.version == version and entry.workflow == workflow:
            return entry
    return None


def _released_elsewhere(entries: Sequence[LedgerEntry], version: int) -> LedgerEntry | None:
    """Return the approval of a version whose release is under way or broke off: deploy's to end, not ours to judge."""
    if lifecycle.standing(entries).state(version) is not State.RELEASING:
        return None
    return next(e for e in reversed(entries) if e.version == version and e.state is State.APPROVED)
