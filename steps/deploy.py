"""Bring an approved version to serve.  Called as the `deploy` stage; trains, judges and builds nothing.

Order of effects: ledger *releasing*, rollout, ledger *serving* (the one before it retires with it), alias and tags.
Killed between any two of them and run again, it goes on where the ledger says it was.  A release that another workflow
left behind is ended by an entry first; where it is of the same version, the release then begins anew in this run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto
from typing import Any

from contracts.errors import Finding, StageError
from contracts.names import tag
from contracts.outcomes import Outcome, State
from contracts.references import LedgerEntry
from contracts.stages import Deploy
from steps.aliases import follow
from steps.ledger import RACES, LostRace, until_won
from steps.ledger.rows import View
from steps.lifecycle import TAKEOVER, IllegalTransition, Standing, ended, permit
from steps.reports import RELEASE_REPORT, ReleaseReport, run_report_uri
from steps.rollout.target import NotHealthy, Serving
from steps.world import World


class Act(Enum):
    """What is to be done about a version."""

    BEGIN = auto()
    RESUME = auto()
    TAKE_OVER = auto()
    LAPSE = auto()
    """Enter that the approval holds no more."""
    FINISH = auto()
    KEEP = auto()
    NONE = auto()


@dataclass(frozen=True)
class Plan:
    """An act, the ledger entry that it rests on, and, where nothing is to be done, how the run ends and why."""

    act: Act
    entry: LedgerEntry | None = None
    outcome: Outcome = Outcome.PROMOTED
    reason: str = ""
    lapsed: State = State.SUPERSEDED


def decide(now: Standing, version: int, approval: str, workflow: str, at: datetime) -> Plan:
    """Say what is to be done, from where the versions stand: pure.

    It holds only while nobody else releases, which the caller sees to: a release under way is then one that broke off.
    """
    latest = now.latest.get(version)
    if latest is None:
        return Plan(Act.NONE, outcome=Outcome.SUPERSEDED, reason=f"version {version} is not in the ledger")
    own = latest.workflow == workflow
    if latest.state is State.SERVING:
        return Plan(Act.FINISH if own else Act.KEEP, latest)
    if latest.state is State.ROLLED_BACK and own:
        return Plan(Act.NONE, latest, Outcome.ROLLED_BACK, latest.reason)
    if latest.state in (State.SUPERSEDED, State.EXPIRED) and own:
        return Plan(Act.NONE, latest, Outcome.SUPERSEDED, latest.reason)
    if latest.state is State.RELEASING and own:
        return Plan(Act.RESUME, latest)
    if now.releasing is not None:
        return Plan(Act.TAKE_OVER, now.releasing)
    if latest.state is State.APPROVED and latest.id != approval:
        reason = f"version {version} was approved anew by {latest.workflow}"
        return Plan(Act.NONE, latest, Outcome.SUPERSEDED, reason)
    if latest.state is State.FAILED and TAKEOVER in latest.evidence and not own:
        # whoever took it over may go on with it; the workflow that was given up may not
        return Plan(Act.NONE, latest, Outcome.SUPERSEDED, latest.reason)
    if latest.state is State.APPROVED and (over := ended(now, version, at)):
        return Plan(Act.LAPSE, latest, Outcome.SUPERSEDED, over[1], over[0])
    try:
        permit(now, State.RELEASING, version, at)
    except IllegalTransition as error:  # not approved, or an approval that was used
        return Plan(Act.NONE, latest, Outcome.SUPERSEDED, error.message)
    return Plan(Act.BEGIN, latest)


def deploy(inputs: Deploy.Inputs, *, world: World) -> Deploy.Outputs:
    """Return how the release ended, and where the server answers.

    Raises
    ------
    ConfigError
        The deploy target, the port or the package cannot be used.
    LostRace
        Another workflow took this release over.
    StageError
        The version that serves by the ledger does not come up again.
    """
    with world.target.turn():
        return _Release(world, inputs).run()


@dataclass(frozen=True)
class _Release:
    """One release, while it has the target's turn."""

    world: World
    inputs: Deploy.Inputs
    moves: list[str] = field(default_factory=list)
    """What was found of the alias, for the summary."""

    def run(self) -> Deploy.Outputs:
        version = self.inputs.version
        self._follow()
        plan, before = until_won(self._settle)
        if plan.act is Act.NONE:
            status = self._reconcile(before.serving)
            if plan.outcome is Outcome.ROLLED_BACK:
                self._report(plan.reason)
            return self._answer(plan.outcome, status, f"version {version} is not released: {plan.reason}")
        assert plan.entry is not None  # noqa: S101  every act but NONE rests on an entry
        if plan.act is Act.KEEP:
            was = self._alive(version)
            status = self._serve(plan.entry)
            self._project(plan.entry)
            kept = f"keeps what serves: version {version}" if was else f"brought back version {version}, which was down"
            return self._answer(Outcome.UNCHANGED, status, kept)
        if plan.act is Act.FINISH:
            status = self._serve(plan.entry)
            self._project(plan.entry)
            return self._answer(Outcome.PROMOTED, status, f"version {version} serves")
        return self._roll_out(plan.entry, before.serving)

    def _settle(self) -> tuple[Plan, Standing]:
        """Decide, end what broke off or went stale, and enter *releasing*.

        A release of this very version that broke off is taken over and begun again, on the approval that it had.
        Entries that others write meanwhile mean deciding anew.
        """
        world, version = self.world, self.inputs.version
        head, now = world.ledger.look(world.pipeline.name)
        plan = decide(now, version, self.inputs.entry, world.workflow, world.now())
        if plan.entry is None or plan.act not in (Act.BEGIN, Act.TAKE_OVER, Act.LAPSE):
            return plan, now
        if plan.act is Act.TAKE_OVER:
            reason = f"taken over by {world.workflow}: the release of {plan.entry.workflow} broke off"
            world.ledger.take_over(
                plan.entry, workflow=world.workflow, by=world.workflow, reason=reason, at=world.now()
            )  # fmt: skip
            return self._settle()
        if plan.act is Act.LAPSE:
            why = {"approved_by": plan.entry.id}
            lapsed = self._append(plan.lapsed, plan.entry, (head, now), plan.reason, why)
            return replace(plan, act=Act.NONE, entry=lapsed), now
        means = self.world.target.means(self.inputs.image, plan.entry.run_id)
        entry = self._append(State.RELEASING, plan.entry, (head, now), "deploy begins", means)
        return Plan(Act.RESUME, entry), now

    def _roll_out(self, releasing: LedgerEntry, before: LedgerEntry | None) -> Deploy.Outputs:
        version = releasing.version
        self.world.ledger.hold(releasing)
        try:
            status = self.world.target.release(releasing)
            self.world.target.hear(releasing, status.url)
        except NotHealthy as error:
            self._end(releasing, State.ROLLED_BACK, error.reason, {"log": error.lines, **error.evidence})
            kept = self._reconcile(before)
            self._report(error.reason)
            self.world.registry.set_tags(version, {tag("state"): State.ROLLED_BACK.value})
            stays = f"; version {before.version} stays" if before else ""
            return self._answer(Outcome.ROLLED_BACK, kept, f"rolled back: {error.reason}{stays}")
        except StageError as error:
            if not error.row.retries:  # else the next attempt resumes it
                self._end(releasing, State.FAILED, error.message, {"error_class": error.row.name})
                self._reconcile(before)
            raise
        answering = {**releasing.evidence, "url": status.url, **status.evidence}
        self._project(self._end(releasing, State.SERVING, "healthy", answering))
        was = f" in place of version {before.version}" if before else ""
        return self._answer(Outcome.PROMOTED, status, f"version {version} serves{was}")

    def _end(self, releasing: LedgerEntry, state: State, reason: str, evidence: Mapping[str, Any]) -> LedgerEntry:
        for attempt in range(RACES):  # entries of others; `hold` gives up where this release was taken over
            seen = self.world.ledger.hold(releasing)
            try:
                return self._append(state, releasing, seen, reason, evidence)
            except LostRace:
                if attempt + 1 == RACES:
                    raise
        raise LostRace(releasing.model)

    def _append(
        self, state: State, about: LedgerEntry, seen: View, reason: str, evidence: Mapping[str, Any]
    ) -> LedgerEntry:
        return self.world.ledger.append(
            about.model, state, version=about.version, run_id=about.run_id, workflow=self.world.workflow,
            by=self.world.workflow, reason=reason, evidence=evidence, after=seen[0], now=seen[1], at=self.world.now(),
        )  # fmt: skip

    def _serve(self, entry: LedgerEntry, *, as_it_was: bool = False) -> Serving:
        """Bring the target to what the ledger says; `as_it_was` when what was asked for since is not healthy."""
        try:
            return self.world.target.restore(entry) if as_it_was else self.world.target.release(entry)
        except NotHealthy as error:
            found = [Finding(where="server.log", what=line) for line in error.lines]
            raise StageError(f"{error.reason}, though it served before", findings=found) from None

    def _reconcile(self, serving: LedgerEntry | None) -> Serving | None:
        if serving is not None:
            return self._serve(serving, as_it_was=True)
        self.world.target.stop()
        return None

    def _alive(self, version: int) -> bool:
        status = self.world.target.serving()
        return status is not None and status.version == version

    def _project(self, serving: LedgerEntry) -> None:
        """Write what others read of the ledger: alias and tags."""
        registry = self.world.registry
        self._follow()
        facts = {tag("state"): State.SERVING.value, tag("ledger_entry"): serving.id}
        if image := serving.evidence.get("image"):
            facts[tag("image")] = image
        registry.set_tags(serving.version, facts)
        for entry in self.world.ledger.standing(serving.model).latest.values():
            if entry.state is State.RETIRED and entry.evidence.get("replaced_by") == serving.version:
                registry.set_tags(entry.version, {tag("state"): State.RETIRED.value, tag("ledger_entry"): entry.id})

    def _report(self, reason: str) -> None:
        """Leave for `notify` why the version was taken back."""
        report = ReleaseReport(version=self.inputs.version, reason=reason)
        self.world.storage.write(run_report_uri(self.world, RELEASE_REPORT), report.model_dump_json().encode())

    def _follow(self) -> None:
        world = self.world
        for line in follow(
            world.ledger, world.registry, by=world.workflow, workflow=world.workflow, at=world.now(), may_set=True
        ):
            world.log.warning("%s", line)
            self.moves.append(line)

    def _answer(self, outcome: Outcome, status: Serving | None, what: str) -> Deploy.Outputs:
        url = status.url if status is not None and status.version is not None else ""
        place = f" at {url}{status.note}" if status is not None and url else ""
        return Deploy.Outputs(outcome=outcome, url=url, summary="; ".join([what + place, *self.moves]))
