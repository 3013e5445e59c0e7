"""Who acts in the explored worlds, by production's own code, and what must hold whatever they do."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from contracts.outcomes import Note, Outcome, Promotion, State
from contracts.references import LedgerEntry
from contracts.stages import Deploy, Promote
from steps import approvals, deploy, promote
from steps.aliases import follow
from steps.approvals import HOLDS_SECONDS, Person
from steps.judging.judge import Judged
from steps.ledger.chain import chained, check_chain, to_row
from steps.lifecycle import EXPIRES, moment_text
from tests.explorer.explore import Explorer
from tests.explorer.points import Point, Program, forget, merging, run_alone
from tests.explorer.world import MODEL, Chain, Op, Outside, Rules, Tape, ledger_over, world_over
from tests.steps.registered import NOW

PLAIN = Rules()
WEEK = 7 * 86400.0
ANN = Person("ann")


def _entries(*steps: tuple[State | Note, int]) -> Chain:
    """A history: what a version needs before, and whose word it was, as promote and people write it."""
    written: list[LedgerEntry] = []
    for state, version in steps:
        evidence: dict[str, Any] = {}
        if state is State.AWAITING:
            evidence = {EXPIRES: _after_a_week(), HOLDS_SECONDS: WEEK}
        elif state is State.APPROVED:
            evidence = {"approval": {"request": f"of {version}"}, EXPIRES: _after_a_week()}
        elif isinstance(state, Note):
            evidence = {"to": version}
        written.append(
            chained(
                written[-1] if written else None, model=MODEL, state=state, version=version, run_id=f"run-{version}",
                workflow=f"w-{version}", by="test", reason="before", evidence=evidence, at=NOW,
            )
        )  # fmt: skip
    return Chain.of(written)


def _after_a_week() -> str:
    return moment_text(NOW.replace(day=8))


SERVED = (State.REGISTERED, State.APPROVED, State.RELEASING, State.SERVING)


def before() -> Outside:
    """Versions 1 and 2 served, 2 serves; 3 waits for a person, 4 was approved by one."""
    chain = _entries(
        *[(state, 1) for state in SERVED], (Note.ALIAS_SET, 1), *[(state, 2) for state in SERVED[:3]],
        (State.RETIRED, 1), (State.SERVING, 2), (Note.ALIAS_SET, 2), (State.REGISTERED, 3), (State.REGISTERED, 4),
        (State.AWAITING, 3), (State.APPROVED, 4),
    )  # fmt: skip
    return Outside(chain, alias=2, serves=2, tags=frozenset({(2, "serving"), (1, "retired")}))


def before_runs() -> Outside:
    """Versions 1 and 2 served, 2 serves; 3 and 4 are new, and two runs are about to judge them."""
    served = before()
    known = [entry for entry in served.chain.entries if entry.version < 3]
    both = _entries(*[(entry.state, entry.version) for entry in known], (State.REGISTERED, 3), (State.REGISTERED, 4))
    return served._replace(chain=both)


# programs


def release(version: int, name: str = "") -> Program:
    """Promote and deploy of a version, as two pods."""
    name = name or f"release-{version}"

    return Program(
        name, (partial(_promoting, name=name, version=version), partial(_deploying, name=name, version=version))
    )


def judged(version: int, decision: str = "automatic") -> Program:
    """The end of a run of itself: the gate lets a new version through, or has it wait for a person."""
    name = f"run-of-{version}"
    asked = partial(_promoting, name=name, version=version, decision=decision)
    return Program(name, (asked, partial(_deploying, name=name, version=version)))


def rollback(name: str = "rollback") -> Program:
    """A person who goes back, and the release that follows."""

    def saying(step: Tape, _: Any) -> None:
        approvals.roll_back(ledger_over(step), MODEL, 1, person=ANN, reason="bad", at=NOW)

    return Program(name, (saying, partial(_promoting, name=name, version=1), partial(_deploying, name=name, version=1)))


def approval(run: str = "w-3") -> Program:
    """A person who says yes."""

    def saying(step: Tape, _: Any) -> None:
        approvals.decide(ledger_over(step), MODEL, run, State.APPROVED, person=ANN, reason="good", at=NOW)

    return Program("approve", (saying,))


def mover(*to: int | None) -> Program:
    """A person with MLflow's page."""

    def moving(step: Tape, _: Any) -> None:
        for version in to:
            step("move", version)

    return Program("mover", (moving,), may_crash=False)


def next_run(outside: Outside, number: int = 1) -> Program:
    """The pipeline run once more: the model did not change, so what serves is asked for again."""
    serving = outside.chain.standing.serving
    assert serving is not None
    return release(serving.version, f"next-{number}")


def doctor() -> Program:
    """`retrain doctor`, which looks and enters."""

    def looking(step: Tape, _: Any) -> list[str]:
        world = world_over(step, "doctor")
        return list(follow(world.ledger, world.registry, workflow="doctor", by="me", at=NOW, may_set=False))

    return Program("doctor", (looking,))


def _promoting(step: Tape, _: Any, *, name: str, version: int, decision: str = "") -> str | Outcome:
    """Return what a workflow hands on of promote's answer: the entry to deploy by, or how the run ends without.

    With a policy's `decision` it is a run of itself that asks the gate, else a release of what a person decided on.
    """
    if decision:
        inputs = Promote.Inputs(version=version, entrypoint="retrain")
        said = promote.promote(inputs, world=world_over(step, name, decision), judge=_passes)
    else:
        said = promote.promote(Promote.Inputs(version=version), world=world_over(step, name), judge=_never_asked)
    goes_on = said.decision in (Promotion.APPROVED, Promotion.UNCHANGED)
    return said.entry if goes_on else Outcome(said.decision.value)


def _deploying(step: Tape, said: str | Outcome, *, name: str, version: int) -> Outcome:
    if isinstance(said, Outcome):
        return said
    inputs = Deploy.Inputs(version=version, entry=said, image="reference")
    return deploy.deploy(inputs, world=world_over(step, name)).outcome


def _passes(_: Any, inputs: Promote.Inputs, __: str, serving: LedgerEntry | None) -> Judged:
    better = {"from": serving.version if serving else None, "to": inputs.version}
    return Judged(Promotion.APPROVED, "it is better", b"{}", better)


def _never_asked(*_: Any) -> Judged:
    raise AssertionError("a release of what a person decides on asks no gate")


# invariants


@cache
def wrong_with_chain(chain: Chain) -> str:
    """What no ledger may hold, said without the state machine's own code."""
    if found := check_chain([to_row(entry) for entry in chain.entries]):
        return f"the ledger does not verify: {found[0]}"
    latest: dict[int, State] = {}
    approved: dict[int, LedgerEntry] = {}
    used: dict[str, str] = {}
    served_since = 0
    words: dict[str, str] = {}
    for entry in chain.entries:
        if isinstance(entry.state, Note):
            continue
        latest[entry.version] = entry.state
        for one in (State.SERVING, State.RELEASING, State.AWAITING):
            if list(latest.values()).count(one) > 1:
                return f"two versions are {one.value}"
        if entry.state is State.APPROVED:
            approved[entry.version] = entry
            request = str(entry.evidence.get("request", ""))
            if request and words.setdefault(request, entry.id) != entry.id:
                return f"the request {request[:8]} was decided twice"
        elif entry.state is State.RELEASING:
            if (word := approved.get(entry.version)) is None:
                return f"version {entry.version} is released and passed no gate"
            if used.get(word.id, "takeover") != "takeover":
                return f"the approval of version {entry.version} let through two releases"
            if word.number < served_since:
                return f"the approval of version {entry.version} is older than what serves"
            used[word.id] = "released"
        elif entry.state is State.FAILED and "takeover_of" in entry.evidence:
            used[approved[entry.version].id] = "takeover"
        elif entry.state is State.SERVING:
            served_since = entry.number
    return ""


def look(rules: Rules, before: Outside, after: Outside, op: Op, point: Point) -> str:
    """What no step may do."""
    if after.chain is not before.chain and (wrong := wrong_with_chain(after.chain)):
        return wrong
    if op.name in ("serve", "stop") and rules.exclusive and before.turn != point.program.name:
        return f"{point.program.name} touches the server, and it is not its turn"
    if op.name == "serve" and after.serves is not None:
        states = [e.state for e in after.chain.entries if e.version == after.serves and isinstance(e.state, State)]
        if State.RELEASING not in states:
            return f"version {after.serves} answers before the ledger says that it is released"
    if op.name == "set alias":
        known = before.chain.standing.alias
        # a move after the program's last look leaves no trace in MLflow
        if before.moves and before.alias == point.saw and before.alias != (known.evidence["to"] if known else None):
            return f"a move to version {before.alias} is undone that nobody entered"
        serving = before.chain.standing.serving
        # who lost the turn between its look and this cannot know; the alias is entered as moved then
        if rules.exclusive and (serving is None or serving.version != op.arguments[0]):
            return f"the alias is set to version {op.arguments[0]}, which does not serve by the ledger"
    return ""


def end(outside: Outside, point: Point) -> str:
    """What no program may end with."""
    if point.ended is Outcome.PROMOTED:
        version = next(
            (e.version for e in outside.chain.entries if e.state is State.SERVING and e.workflow == point.program.name),
            None,
        )
        if version is None:
            return "promoted, and the ledger has no version that began to serve by it"
    return ""


def finish(rules: Rules, outside: Outside, nobody_crashed: bool) -> str:
    """What must hold when all is done: at once where nobody crashed, and in any case after the next run."""
    if outside.chain.standing.serving is None:
        return "nothing serves by the ledger"
    if nobody_crashed and rules.exclusive and (wrong := _disagreement(outside, rules)):
        return wrong
    recovered, _, _ = _recover(outside, rules)
    if wrong := wrong_with_chain(recovered.chain) or _disagreement(recovered, rules) or _untagged(recovered):
        return f"after the next run: {wrong}"
    again, _, effects = _recover(recovered, rules, 2)
    if again.chain is not recovered.chain or again._replace(turn="") != recovered._replace(turn="") or effects > 1:
        return "the run after that still finds something to do"
    if rules.exclusive and (wrong := _moves(recovered)):
        return wrong
    return ""


def _recover(outside: Outside, rules: Rules, number: int = 1) -> tuple[Outside, Any, int]:
    outside, _, _ = run_alone(next_run(outside, number), outside._replace(turn="", tags=frozenset()), rules)
    return run_alone(doctor(), outside, rules)


def _disagreement(outside: Outside, rules: Rules) -> str:
    serving, note = outside.chain.standing.serving, outside.chain.standing.alias
    if serving is None:
        return "nothing serves by the ledger"
    if outside.serves != serving.version:
        return f"version {outside.serves} answers, the ledger says {serving.version}"
    told = not rules.exclusive and note is not None and note.state is Note.ALIAS_MOVED
    if outside.moves == 0 and outside.alias != serving.version and not told:
        return f"the alias names version {outside.alias}, which nobody but us touched; {serving.version} serves"
    if outside.moves == 0 and (note is None or note.evidence["to"] != outside.alias):
        return "the ledger does not say where the alias is"
    return ""


def _untagged(recovered: Outside) -> str:
    """What serves, and what it replaced, is tagged as such by the next run, whatever tags there were."""
    for version, entry in recovered.chain.standing.latest.items():
        serving = recovered.chain.standing.serving
        replaced = serving is not None and entry.evidence.get("replaced_by") == serving.version
        if (entry is serving or replaced) and (version, State(entry.state).value) not in recovered.tags:
            return f"version {version} is {entry.state.value}, and its tag does not say so"
    return ""


def _moves(outside: Outside) -> str:
    """A person's moves are in the ledger as such, ours never."""
    entered = [e for e in outside.chain.entries if e.state is Note.ALIAS_MOVED]
    note = outside.chain.standing.alias
    if len(entered) > outside.moves:
        return f"the alias was moved {outside.moves} times by other means, and {len(entered)} are entered"
    if note is None or note.evidence["to"] != outside.alias:
        return f"the alias names version {outside.alias}, and the ledger says {note and note.evidence['to']}"
    serving = outside.chain.standing.serving
    if serving is not None and outside.alias != serving.version and note.state is not Note.ALIAS_MOVED:
        return "alias and ledger differ, and no move is entered"
    return ""


def explore(
    programs: Sequence[Program], rules: Rules = PLAIN, *, crashes: int = 0, all_begin: bool = True, merge: bool = True,
    at_once: bool = True, together: bool = True, tags: bool = False, begin: Callable[[], Outside] = before,
) -> Explorer:  # fmt: skip
    """Explore from a world; raises `Broken`."""
    explorer = Explorer(rules, partial(look, rules), end, partial(finish, rules), at_once, together, tags)
    gc.disable()  # all that is found is kept until the end, so that a quarter of the time went into looking for garbage
    try:
        with merging(merge):
            explorer.run(begin(), programs, crashes=crashes, all_begin=all_begin)
    finally:
        gc.enable()
        forget()
        wrong_with_chain.cache_clear()
    return explorer
