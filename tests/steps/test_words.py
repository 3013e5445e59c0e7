"""A person's word that a cluster keeps: promote enters it once, in that person's name, and only what it is bound to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.admission import binding_name
from contracts.approvals import POLICY, SPEC, Word, config_map, policy_objects, vouches, word_name
from contracts.errors import ConfigError
from contracts.names import RELEASE, RETRAIN
from contracts.outcomes import Promotion, State
from contracts.pipeline import parse_pipeline
from contracts.references import LedgerEntry
from contracts.stages import Promote
from steps.approvals import HOLDS_SECONDS, ROLLBACK_HOLDS, unauthenticated, way_back, word_on
from steps.ledger import Ledger
from steps.lifecycle import APPROVAL, EXPIRES, moment_text
from steps.promote import promote
from steps.words import ClusterWords
from steps.world import World
from tests.explorer.world import MODEL, PIPELINE
from tests.steps.registered import NOW, make_settings

MADE = "2026-03-01T12:00:00Z"
DAY = timedelta(days=1)
ASKING, AUTOMATIC = (PIPELINE.replace("{decision}", each) for each in ("approval", "automatic"))


@dataclass
class Objects:
    """The API server's objects, as `steps.rollout.cluster.Cluster` returns them."""

    namespace: str = "mlops"
    held: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.held.get((kind, name))

    def put(self, wanted: Mapping[str, Any], made: str = MADE) -> None:
        metadata = {**wanted["metadata"], "creationTimestamp": made}
        self.held[wanted["kind"], metadata["name"]] = {**wanted, "metadata": metadata}


@pytest.fixture
def objects() -> Objects:
    return Objects()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def at_desk(ledger: Ledger, tmp_path: Path, objects: Objects, workflow: str, file: str, now: datetime) -> World:
    world = World(
        settings=make_settings(tmp_path), pipeline=parse_pipeline(file), pipeline_path=tmp_path, workflow=workflow,
        now=lambda: now,
    )  # fmt: skip

    class Registry:
        name = MODEL

        def alias(self, name: str) -> int | None:
            from steps.lifecycle import known_alias

            return known_alias(ledger.standing(MODEL))

    world.__dict__ |= {"ledger": ledger, "registry": Registry(), "words": ClusterWords(objects)}  # type: ignore[arg-type]
    return world


@pytest.fixture
def release(ledger: Ledger, tmp_path: Path, objects: Objects) -> Any:
    def run(
        version: int, workflow: str = "w", file: str = ASKING, now: datetime = NOW, entrypoint: str = RELEASE
    ) -> Promote.Outputs:
        world = at_desk(ledger, tmp_path, objects, workflow, file, now)
        inputs = Promote.Inputs.model_validate({"version": version, "entrypoint": entrypoint})
        return promote(inputs, world=world, judge=_asks_the_gate)

    return run


class AskedTheGateError(Exception):
    pass


def _asks_the_gate(*_: Any) -> Any:
    raise AskedTheGateError


def write(ledger: Ledger, state: State, version: int, **evidence: Any) -> LedgerEntry:
    return ledger.append(
        MODEL, state, version=version, run_id=f"run-{version}", workflow=f"of-{version}", by="pipeline", reason="why",
        evidence=evidence, after=ledger.head(MODEL), at=NOW,
    )  # fmt: skip


def asked(ledger: Ledger, version: int = 1) -> LedgerEntry:
    write(ledger, State.REGISTERED, version)
    holds = {EXPIRES: moment_text(NOW + DAY), HOLDS_SECONDS: DAY.total_seconds()}
    return write(ledger, State.AWAITING, version, **holds)


def said(request: LedgerEntry, decision: Any = "approved", **changed: Any) -> dict[str, Any]:
    word = word_on(request, request, request.version, by="ann", decision=decision, reason="looked at")
    return config_map(word.model_copy(update=changed))


def vouched(objects: Objects, made: str = "2026-02-01T00:00:00Z") -> None:
    for each in policy_objects(objects.namespace)[:2]:
        objects.put(each, made)


def test_a_yes_is_entered_in_the_name_that_the_cluster_vouched_for(
    ledger: Ledger, objects: Objects, release: Any
) -> None:
    request = asked(ledger)
    assert release(1, "before").decision is Promotion.NOT_APPROVED
    vouched(objects)
    objects.put(said(request))
    done = release(1)
    assert done.decision is Promotion.APPROVED
    entry = ledger.head(MODEL)
    assert entry is not None
    assert (done.entry, entry.state, entry.by, entry.reason) == (entry.id, State.APPROVED, "ann", "looked at")
    assert entry.evidence[APPROVAL]["word"] == word_name(request.id, 1)
    assert entry.evidence[APPROVAL]["authenticated"] is True
    assert unauthenticated(ledger.entries(MODEL)) == (1, [])
    assert release(1, "again").entry == entry.id, "entered once"


@pytest.mark.parametrize("policy", ["none", "younger than the word", "weaker", "of another namespace"])
def test_without_the_policy_the_name_is_unauthenticated(
    ledger: Ledger, objects: Objects, release: Any, policy: str
) -> None:
    request = asked(ledger)
    if policy != "none":
        vouched(objects, MADE if policy == "younger than the word" else "2026-02-01T00:00:00Z")
    if policy == "weaker":
        kept = objects.held["ValidatingAdmissionPolicy", "retrain-approvals"]
        kept["spec"] = {**kept["spec"], "validations": kept["spec"]["validations"][1:]}
    if policy == "of another namespace":
        bound = policy_objects("elsewhere")[1]
        del objects.held[bound["kind"], binding_name(objects.namespace, POLICY)]
        objects.put(bound, "2026-02-01T00:00:00Z")
    objects.put(said(request))
    release(1)
    entry = ledger.head(MODEL)
    assert entry is not None
    assert (entry.state, entry.by) == (State.APPROVED, "ann (unauthenticated)")
    assert unauthenticated(ledger.entries(MODEL)) == (1, ["ann"])


def as_kept(namespace: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return policy and binding with what Kubernetes 1.34 was seen to add to them."""
    policy, binding = copy.deepcopy(policy_objects(namespace)[:2])
    everything = {"matchPolicy": "Equivalent", "objectSelector": {}}
    policy["spec"]["matchConstraints"] |= {**everything, "namespaceSelector": {}}
    policy["spec"]["matchConstraints"]["resourceRules"][0]["scope"] = "*"
    binding["spec"]["matchResources"] |= everything
    return policy, binding


CONFIG_MAPS = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"]}
NEVER_THERE = {"matchLabels": {"never": "there"}}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0, "failurePolicy"), "Ignore"),
        ((0, "matchConstraints", "excludeResourceRules"), [CONFIG_MAPS]),
        ((0, "matchConstraints", "objectSelector"), NEVER_THERE),
        ((0, "matchConstraints", "namespaceSelector"), NEVER_THERE),
        ((0, "matchConstraints", "resourceRules", 0, "scope"), "Cluster"),
        ((0, "matchConstraints", "resourceRules", 0, "resourceNames"), ["other"]),
        ((0, "matchConditions", 0, "expression"), "false"),
        ((0, "matchConditions"), [*SPEC["matchConditions"], {"name": "never", "expression": "false"}]),
        ((0, "validations"), SPEC["validations"][1:]),
        ((0, "validations", 0, "expression"), "true"),
        ((0, "paramKind"), {"apiVersion": "v1", "kind": "ConfigMap"}),
        ((1, "matchResources", "excludeResourceRules"), [CONFIG_MAPS]),
        ((1, "matchResources", "objectSelector"), NEVER_THERE),
        ((1, "matchResources", "resourceRules"), []),
        ((1, "matchResources", "namespaceSelector", "matchLabels"), NEVER_THERE["matchLabels"]),
        ((1, "matchResources", "namespaceSelector", "matchExpressions", 0, "values"), ["elsewhere"]),
        ((1, "matchResources", "namespaceSelector", "matchExpressions", 0, "operator"), "NotIn"),
        ((1, "paramRef"), {"name": "p", "parameterNotFoundAction": "Allow"}),
        ((1, "policyName"), "other"),
        ((1, "validationActions"), ["Audit"]),
    ],
)
def test_a_policy_that_lets_more_through_vouches_for_nothing(path: tuple[Any, ...], value: Any) -> None:
    made = as_kept("mlops")
    assert vouches(*made, "mlops")
    *there, last = ("spec", *path[1:])
    place = made[path[0]]
    for key in there:
        place = place[key]
    place[last] = value
    assert not vouches(*made, "mlops")


def test_a_no_ends_the_request_and_the_run_says_so_however_often(
    ledger: Ledger, objects: Objects, release: Any
) -> None:
    objects.put(said(asked(ledger), "rejected"))
    for workflow in ("w", "retried"):
        done = release(1, workflow)
        assert (done.decision, ledger.state(MODEL, 1)) == (Promotion.REJECTED, State.REJECTED)
    assert "rejected by ann (unauthenticated): looked at" in done.summary


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"report_sha256": "f" * 64}, "is of another package or report"),
        ({"artifact_sha256": "f" * 64}, "is of another package or report"),
    ],
)
def test_a_yes_to_something_else_lets_nothing_through(
    ledger: Ledger, objects: Objects, release: Any, changed: dict[str, str], says: str
) -> None:
    objects.put(said(asked(ledger), **changed))
    with pytest.raises(ConfigError, match=says):
        release(1)
    assert ledger.state(MODEL, 1) is State.AWAITING


def test_what_is_no_approval_or_can_be_changed_is_refused(ledger: Ledger, objects: Objects, release: Any) -> None:
    request = asked(ledger)
    wanted = said(request)
    objects.put({**wanted, "immutable": False})
    with pytest.raises(ConfigError, match="can be changed"):
        release(1)
    objects.put({**wanted, "data": {"by": "ann"}})
    with pytest.raises(ConfigError, match="is no approval"):
        release(1)
    other = config_map(Word.model_validate(wanted["data"]).model_copy(update={"version": 2}))
    objects.put({**other, "metadata": {"name": word_name(request.id, 1)}})
    with pytest.raises(ConfigError, match="speaks of another version"):
        release(1)


def test_a_yes_to_a_request_that_lapsed_lets_nothing_through(ledger: Ledger, objects: Objects, release: Any) -> None:
    objects.put(said(asked(ledger)))
    assert release(1, now=NOW + 2 * DAY).decision is Promotion.NOT_APPROVED
    assert ledger.state(MODEL, 1) is State.EXPIRED


def served(ledger: Ledger, *versions: int) -> None:
    for version in versions:
        for state in (State.REGISTERED, State.APPROVED, State.RELEASING, State.SERVING):
            write(ledger, state, version)


def back(ledger: Ledger, to: int | None = None, again: int = 0) -> dict[str, Any]:
    way = way_back(ledger.entries(MODEL), to)
    return config_map(
        word_on(way.about, way.passed, way.to, by="ann", decision="rollback", reason="complaints", again=again)
    )


@pytest.mark.parametrize("file", [ASKING, AUTOMATIC], ids=["approval", "automatic"])
def test_a_rollback_is_entered_under_either_policy_and_once(
    ledger: Ledger, objects: Objects, release: Any, file: str
) -> None:
    served(ledger, 1, 2)
    objects.put(back(ledger))
    done = release(1, file=file)
    entry = ledger.head(MODEL)
    assert entry is not None
    assert (done.decision, done.entry, entry.state) == (Promotion.APPROVED, entry.id, State.APPROVED)
    assert (entry.by, entry.evidence["rollback_from"]) == ("ann (unauthenticated)", 2)
    write(ledger, State.RELEASING, 1)
    write(ledger, State.ROLLED_BACK, 1)
    used = len(ledger.entries(MODEL))
    if file == ASKING:
        assert release(1, "later").decision is Promotion.NOT_APPROVED
    else:
        with pytest.raises(AskedTheGateError):
            release(1, "later", file=file)
    assert len(ledger.entries(MODEL)) == used, "the same word lets nothing through twice"


def test_a_rollback_that_nobody_began_in_time_or_whose_champion_went_is_void(
    ledger: Ledger, objects: Objects, release: Any
) -> None:
    served(ledger, 1, 2)
    objects.put(back(ledger))
    late = NOW + ROLLBACK_HOLDS + timedelta(seconds=1)
    assert release(1, "late", now=late).decision is Promotion.NOT_APPROVED
    served(ledger, 3)
    assert release(1, "elsewhere").decision is Promotion.NOT_APPROVED


def test_a_rollback_that_came_to_nothing_is_said_again_and_asks_no_gate(
    ledger: Ledger, objects: Objects, release: Any
) -> None:
    """Taken back, it is answered anew; left lying for too long, by one more word on the same entries."""
    served(ledger, 1, 2)
    first, late = back(ledger), back(ledger, again=1)
    objects.put(first)
    objects.put(late, "2026-03-01T14:00:00Z")
    assert release(1, file=AUTOMATIC, now=NOW + timedelta(hours=2)).decision is Promotion.APPROVED
    for state in (State.RELEASING, State.ROLLED_BACK):
        write(ledger, state, 1)
    write(ledger, State.REGISTERED, 3)  # a schedule's run meanwhile

    objects.put(back(ledger, 1))
    done = release(1, "second", file=AUTOMATIC)
    entry = ledger.head(MODEL)
    assert entry is not None
    assert (done.decision, entry.by, entry.reason) == (Promotion.APPROVED, "ann (unauthenticated)", "complaints")
    words = [e.evidence[APPROVAL]["word"] for e in ledger.entries(MODEL) if APPROVAL in e.evidence]
    assert words[0] == late["metadata"]["name"]
    assert len({first["metadata"]["name"], *words}) == 3


def test_no_run_of_itself_releases_what_a_person_went_back_from(ledger: Ledger, objects: Objects, release: Any) -> None:
    served(ledger, 1, 2)
    objects.put(back(ledger))
    assert release(1, file=AUTOMATIC).decision is Promotion.APPROVED
    for state in (State.RELEASING, State.SERVING):
        write(ledger, state, 1)

    done = release(2, "scheduled", file=AUTOMATIC, entrypoint=RETRAIN)
    assert done.decision is Promotion.NOT_APPROVED
    for part in ("ann (unauthenticated) went back from it", "complaints", "--entrypoint release --version 2"):
        assert part in done.summary
    with pytest.raises(AskedTheGateError):
        release(2, "by name", file=AUTOMATIC)  # whoever releases it by name has it judged
    with pytest.raises(AskedTheGateError):
        release(2, "asked", entrypoint=RETRAIN)  # where a person decides, one is asked
    write(ledger, State.REGISTERED, 3)
    with pytest.raises(AskedTheGateError):
        release(3, "other", file=AUTOMATIC, entrypoint=RETRAIN)
