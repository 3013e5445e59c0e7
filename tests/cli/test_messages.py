"""What commands say where there is little to say, or nothing to mend: over a home that holds a ledger alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from contracts.errors import ConfigError
from contracts.outcomes import Note, Outcome, State
from steps.approvals import HOLDS_SECONDS
from steps.ledger import Ledger
from steps.lifecycle import EXPIRES, moment_text
from steps.retention.plan import Policy
from steps.retention.sweep import Outlook
from tests.cli.test_submit import NODES, workflow
from tests.steps.registered import NOW
from workflows.cli.desk import desk_settings
from workflows.cli.main import app
from workflows.cli.summary import at_desk, show, summarise
from workflows.cluster import runs


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path))
    return Ledger(desk_settings(tmp_path).ledger.get_secret_value())


def enter(ledger: Ledger, state: State | Note, workflow: str, reason: str = "", **evidence: Any) -> None:
    ledger.append(
        "churn", state, version=1, run_id="r", workflow=workflow, by=workflow, reason=reason, evidence=evidence,
        after=ledger.head("churn"), at=NOW,
    )  # fmt: skip


def printed(*words: str) -> str:
    result = CliRunner().invoke(app, [*words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_who_answers_a_request_that_is_decided_is_sent_to_what_waits(ledger: Ledger) -> None:
    enter(ledger, State.REGISTERED, "w-1")
    enter(
        ledger, State.AWAITING, "w-1", **{EXPIRES: moment_text(NOW + timedelta(days=1)), HOLDS_SECONDS: 86_400.0}
    )  # fmt: skip
    enter(ledger, State.REJECTED, "reject")
    with pytest.raises(ConfigError, match="is decided: version 1 is rejected") as refused:
        CliRunner().invoke(app, ["approve", "churn@1", "--reason", "but yes"], catch_exceptions=False)
    assert refused.value.remedy == "`retrain approvals` lists what waits now"


def test_a_run_that_found_the_alias_moved_says_so_at_its_end_and_no_other_does(ledger: Ledger, tmp_path: Path) -> None:
    enter(ledger, State.REGISTERED, "r")
    moved = "MLflow's alias production was moved by other means, from version 1 to version 7"
    enter(ledger, Note.ALIAS_MOVED, "churn-1", moved)
    nodes = {"n": {**NODES["r-2"], "templateName": "promote", "phase": "Succeeded"}}

    def said(name: str) -> str:
        ended = workflow(nodes=nodes, finishedAt="2026-11-24T20:05:57Z")
        run = runs.run_state(ended)._replace(name=name, workflow_template="churn", phase="Succeeded")
        console = Console(record=True, width=200)
        show(summarise(run, at_desk(tmp_path)).model_copy(update={"outcome": Outcome.PROMOTED}), console)
        return console.export_text()

    assert f"warning    {moved}" in said("churn-1")
    assert moved not in said("churn-2")


def test_an_empty_ledger_is_told_from_one_that_was_verified(ledger: Ledger) -> None:
    assert printed("audit", "verify") == "no entries\n"
    enter(ledger, State.REGISTERED, "w-1")
    assert printed("audit", "verify").startswith("churn: 1 entries, chain intact")


def test_a_plan_that_removes_nothing_says_so(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Outlook(policy=Policy(served_years=1, unserved_days=1, records_days=1), archive="", decisions=())
    monkeypatch.setattr("steps.retention.sweep.look", lambda *_: nothing)
    assert printed("retention", "plan").splitlines()[-1] == "goes: nothing"
