"""Approvals of a cluster from the command line: the programs of its pods run here, against a real ledger."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from contracts.approvals import word_name
from contracts.errors import ConfigError
from contracts.outcomes import State
from contracts.references import LedgerEntry
from contracts.settings import desk, variable
from steps.approvals import HOLDS_SECONDS, Person, WayBack, decide, vouched
from steps.audit.attestation import statement
from steps.audit.key import private_key
from steps.ledger import Ledger
from steps.lifecycle import CLAIMED, EXPIRES, moment_text
from steps.rollout.cluster import Conflict
from tests.steps.registered import NOW
from workflows.cli import approvals as words
from workflows.cli import audit as command
from workflows.cli.checks import by_whom
from workflows.cli.main import app
from workflows.cluster import approvals, audit
from workflows.cluster import errand as errands
from workflows.cluster.errand import _FRAME, failure


class Place:
    """A namespace whose objects lie here; `errand` below runs what its pods would."""

    namespace = "mlops"

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, **desk(folder, folder)}
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.me = "ann"

    def user(self) -> str:
        return self.me

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, name))

    def create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        key = (wanted["kind"], wanted["metadata"]["name"])
        if key in self.objects:
            raise Conflict(f"{key} is there")
        metadata = {**wanted["metadata"], "creationTimestamp": f"{datetime.now(UTC):%FT%TZ}"}
        self.objects[key] = {**wanted, "metadata": metadata}
        return self.objects[key]


def here(place: Place, duty: str, program: str, *arguments: str, **_: Any) -> str:
    """Run an errand's program in a process of this machine."""
    indented = "\n".join(f"    {line}" for line in program.strip().splitlines())
    command = [sys.executable, "-c", _FRAME.replace("{program}", indented), *arguments]
    done = subprocess.run(command, env=place.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        ended = {"state": {"terminated": {"reason": "Error", "exitCode": done.returncode}}}
        raise failure(duty, done.stdout or done.stderr, {"containerStatuses": [ended]})
    return done.stdout


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(approvals, "errand", here)
    monkeypatch.setattr(errands, "errand", here)
    return Place(tmp_path)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    for version in (1, 2):
        for state in (State.REGISTERED, State.APPROVED, State.RELEASING, State.SERVING):
            enter(ledger, state, version, **({"artifact_sha256": "b" * 64} if state is State.APPROVED else {}))
    enter(ledger, State.REGISTERED, 3)
    enter(ledger, State.AWAITING, 3, **{EXPIRES: moment_text(NOW), HOLDS_SECONDS: 60.0, "artifact_sha256": "a" * 64})
    return ledger


def enter(ledger: Ledger, state: State, version: int, **evidence: Any) -> None:
    ledger.append(
        "churn", state, version=version, run_id=f"run-{version}", workflow=f"w-{version}", by="w", reason="why",
        evidence=evidence, after=ledger.head("churn"), at=NOW,
    )  # fmt: skip


def test_a_yes_that_the_ledger_holds_and_nobody_left_is_named(place: Any, ledger: Ledger) -> None:
    request = ledger.entries("churn")[-1]
    place.me = "ann"
    said = approvals.decide(place, "w-3", "", approved=True, reason="fine")

    def entered(name: str, word: str) -> None:
        decide(ledger, "churn", "w-3", State.APPROVED, person=Person(name, True, word), reason="", at=request.at)

    entered("ann", said.name)
    honest = vouched(ledger.entries("churn"))
    assert honest == [(said.name, "ann", 3)]
    assert approvals.never_said(place, "churn", honest) == []
    forged = [
        (said.name, "bob", 3),  # another's
        ("", "bob", 4),
        ("retrain-approval-0", "bob", 5),
        ("retrain-approval-../secrets", "bob", 6),
    ]
    for one in forged:
        assert approvals.never_said(place, "churn", [one]) == [f"bob on version {one[2]}"]
    assert approvals.never_said(place, "churn", honest * 2) == ["ann on version 3"], "a word counts once"


def test_what_waits_is_listed_and_a_yes_is_left_once(place: Any, ledger: Ledger) -> None:
    ((entry, lapsed),) = approvals.requests(place)
    assert (entry.version, entry.workflow) == (3, "w-3")
    assert lapsed.startswith("its request held until")

    said = approvals.decide(place, "w-3", "", approved=True, reason="fine")
    kept = place.get("ConfigMap", word_name(entry.id, 3))
    assert kept["immutable"] is True
    assert (said.word.by, said.word.artifact_sha256, said.authenticated) == ("ann", "a" * 64, False)
    assert kept["data"]["decision"] == "approved"
    # said again after the command was cut off, it is the same word; another's is told whose came first
    assert approvals.decide(place, "3", "churn", approved=True, reason="fine, as I said").name == said.name
    place.me = "bob"
    with pytest.raises(ConfigError, match="version 3 of churn was approved by ann"):
        approvals.decide(place, "w-3", "", approved=False, reason="no")
    with pytest.raises(ConfigError, match="the ledger knows no run w-9"):
        approvals.decide(place, "w-9", "", approved=True, reason="fine")


def back(place: Any, *words: Any) -> approvals.Said:
    said = approvals.roll_back(place, *words)
    assert isinstance(said, approvals.Said)
    return said


def test_a_version_that_serves_is_not_gone_back_to(place: Any, ledger: Ledger) -> None:
    way = approvals.roll_back(place, "churn", 2, "complaints")
    assert isinstance(way, WayBack)
    assert way.serves
    assert not [name for kind, name in place.objects if kind == "ConfigMap"]


def test_the_word_of_a_rollback_answers_what_serves(place: Any, ledger: Ledger) -> None:
    said = back(place, "", None, "complaints")
    serving = ledger.serving("churn")
    assert serving is not None
    assert (said.word.version, said.word.about, said.word.decision) == (1, serving.id, "rollback")
    with pytest.raises(ConfigError, match="version 3 never served"):
        back(place, "churn", 3, "complaints")


def test_a_rollback_is_said_again_when_it_was_too_late_or_anothers(place: Any, ledger: Ledger) -> None:
    first = back(place, "churn", 1, "complaints")
    assert back(place, "churn", 1, "as I said").name == first.name, "cut off before its release began"
    place.me = "bob"
    second = back(place, "churn", 1, "it is urgent")
    assert (second.word.by, second.word.again, second.word.about) == ("bob", 1, first.word.about)
    kept = place.get("ConfigMap", second.name)
    kept["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    assert back(place, "churn", 1, "once more").word.again == 2


def test_a_release_that_acts_on_a_word_is_started_in_that_name(place: Any, ledger: Ledger) -> None:
    said = approvals.decide(place, "w-3", "", approved=True, reason="fine")
    approvals.release(place, said, "churn-1")
    spec = place.get("Workflow", "churn-1")["spec"]
    given = {each["name"]: each["value"] for each in spec["arguments"]["parameters"]}
    assert (spec["workflowTemplateRef"], spec["entrypoint"]) == ({"name": "churn"}, "release")
    assert given == {"version": "3", "requested-by": "ann"}


def test_the_ledger_of_a_cluster_is_audited_from_outside(place: Any, ledger: Ledger) -> None:
    head = ledger.head("churn")
    assert head is not None
    assert audit.heads(place) == {"churn": (head.number, head.id)}
    assert audit.verify(place, "churn", {head.number: head.id}) == []
    (finding,) = audit.verify(place, "churn", {head.number: "f" * 64})
    assert str(head.number) in finding.where
    history = ledger.history("churn", 2)
    assert audit.export(place, "churn@2") == statement("churn", history)


@pytest.mark.parametrize("where", ["here", "there"])
def test_entries_statements_and_requests_are_those_of_a_moment(
    where: str, place: Any, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = NOW + timedelta(hours=1)
    ledger.append(
        "churn", State.REJECTED, version=3, run_id="run-3", workflow="w-4", by="ann", reason="not in this month",
        evidence={}, after=ledger.head("churn"), at=later,
    )  # fmt: skip
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path))
    for module in (command, words):
        monkeypatch.setattr(module, "connected", lambda namespace, context: place)

    def said(*typed: str, code: int = 0) -> str:
        there = ("-n", "mlops") if where == "there" else ()
        done = CliRunner().invoke(app, [*typed, *there], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.output

    then, entries = ("--at", NOW.isoformat()), ledger.entries("churn")
    assert [LedgerEntry.model_validate(each) for each in json.loads(said("audit", "log", "--json"))] == entries
    assert len(json.loads(said("audit", "log", "--json", *then))) == len(entries) - 1
    assert len(json.loads(said("audit", "log", "b" * 12, "--only", "registered", "--json"))) == 2, "a hash of two"
    assert f"{later:%Y-%m-%d %H:%M:%S}  churn 3    rejected       by ann: not in this month  {entries[-1].id[:12]}" in (
        said("audit", "log", "churn@3", "--only", "rejected")
    )
    assert said("audit", "log", "--only", "rejected", *then) == ""
    assert "'refused' is none of" in said("audit", "log", "--only", "refused", code=2)
    (waiting,) = json.loads(said("approvals", "--json", *then))
    assert (waiting["version"], waiting["state"]) == (3, State.AWAITING)
    assert json.loads(said("approvals", "--json")) == []
    of_then = json.loads(said("audit", "export", "churn@1", *then))
    assert of_then == statement("churn", ledger.history("churn", 1, NOW))
    with pytest.raises(ConfigError, match="the ledger did not know it then"):
        said("audit", "export", "churn@1", "--at", (NOW - timedelta(days=1)).isoformat())


def test_heads_that_a_platform_signed_are_held_against_its_ledger_by_a_pinned_key(
    place: Any, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = (tmp_path / "heads").as_uri()
    place.settings = {variable("audit_heads"): where}
    place.environment[variable("audit_heads")] = where
    place.environment[variable("audit_key")] = new_key(tmp_path / "signer.pem")
    signer = subprocess.run(
        [sys.executable, "-m", "steps.audit.sign"], env=place.environment, capture_output=True, text=True, check=True
    )
    assert "churn: entry 11 " in signer.stdout, "the CronJob's program"
    secret = {"data": {variable("audit_key"): base64.b64encode((tmp_path / "signer.pem").read_bytes()).decode()}}
    place.objects["Secret", "retrain-audit-secrets"] = secret
    monkeypatch.setattr(command, "connected", lambda namespace, context: place)
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path / "nothing-here"))

    def said(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(command.app, [*words, "-n", "mlops"])
        assert done.exit_code == code, done.output
        return done.output

    pinned = tmp_path / "pinned.pub"
    pinned.write_text(said("key"))
    assert "11 entries, chain intact; 1 signed heads hold, the last of entry 11 at" in said(
        "verify", "--key", str(pinned)
    )
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as database, database:
        database.execute("DROP TRIGGER ledger_no_DELETE")
        database.execute("DELETE FROM ledger WHERE number = 11")
    assert said("verify", "churn", "--key", str(pinned), code=65) == "churn: entry 11: was signed, and is gone\n"
    new_key(tmp_path / "another.pem")
    assert "its signature does not hold" in said("verify", "--key", str(tmp_path / "another.pub"), code=65)

    # a setting that was cleared is no reason to believe what lies on this machine, nor that there is nothing to hold
    shutil.copytree(tmp_path / "heads", tmp_path / "audit-heads")
    place.settings = {}
    assert "churn: heads: none was signed" in said("verify", "--key", str(pinned), code=65)
    assert "chain intact; no head was signed" in said("verify")
    place.objects.clear()
    with pytest.raises(ConfigError, match="has no key in retrain-audit-secrets"):
        audit.key(place)


def test_who_asked_for_a_run_is_told_apart_from_who_decided(ledger: Ledger) -> None:
    decided = ledger.append(
        "churn", State.REGISTERED, version=9, run_id="run-9", workflow="retrain-9", by="retrain-9", reason="",
        evidence={CLAIMED: "alice"}, after=ledger.head("churn"), at=NOW,
    )  # fmt: skip
    assert by_whom(decided) == "by retrain-9, for alice (not verified)"
    assert by_whom(decided.model_copy(update={"evidence": {}})) == "by retrain-9"


def new_key(path: Path) -> str:
    """Make a key, its public half beside it, and return it as PEM."""
    private_key(path)
    return path.read_text()
