"""Retention's manifests: the committed one is what is compiled, suspended, and with the rights of its duty alone."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import yaml

from contracts.access import ACCESS, ARCHIVE, MODELS, RETENTION, LedgerRole
from workflows.retention import FILE, cron_workflow, cron_workflow_file, workflow


def test_the_committed_manifest_is_what_is_compiled() -> None:
    assert FILE.read_text(encoding="utf-8") == cron_workflow_file(), "run `make compile`"


def test_it_is_suspended_and_never_runs_twice_at_once() -> None:
    spec = cron_workflow()["spec"]

    assert (spec["suspend"], spec["concurrencyPolicy"]) == (True, "Forbid")


def test_at_once_it_does_the_same_and_says_for_whom() -> None:
    scheduled = cron_workflow()["spec"]["workflowSpec"]
    at_once = workflow("retrain-retention-x", "ann (unauthenticated)")["spec"]

    assert at_once["templates"][0]["container"].pop("args") == ["ann (unauthenticated)"]
    assert at_once == scheduled


def test_its_pod_has_the_duty_s_account_and_secret_and_no_token() -> None:
    [template] = cron_workflow()["spec"]["workflowSpec"]["templates"]

    assert template["serviceAccountName"] == "retrain-retention"
    assert template["automountServiceAccountToken"] is False
    assert template["metadata"]["labels"] == {"retrain/stage": RETENTION}
    assert {"secretRef": {"name": "retrain-retention-secrets", "optional": True}} in template["container"]["envFrom"]
    assert template["container"]["securityContext"]["readOnlyRootFilesystem"] is True


def test_it_deletes_what_it_may_not_write_and_writes_what_it_may_not_delete() -> None:
    rights = ACCESS[RETENTION]

    assert rights.write == ()
    assert rights.append == (ARCHIVE,)
    assert MODELS in rights.remove
    assert ARCHIVE not in rights.remove
    assert not any(path.startswith("retrain-data") for path in rights.remove), "sources are their owner's"
    assert (rights.ledger, rights.serving, rights.workflows) == (LedgerRole.WRITER, (), ())


def test_an_s3_policy_lets_it_delete_and_read_there_and_add_to_the_archive() -> None:
    provision = runpy.run_path(str(Path(__file__).parents[2] / "kind" / "platform" / "files" / "provision.py"))
    policy = provision["policy"](read=[], write=[], append=["cold"], remove=["store/datasets"])

    allowed = {(action, path) for s in policy["Statement"] for action in s["Action"] for path in s["Resource"]}
    objects = {(action.removeprefix("s3:"), path.removeprefix("arn:aws:s3:::")) for action, path in allowed}
    assert {pair for pair in objects if pair[1].endswith("/*")} == {
        ("GetObject", "store/datasets/*"), ("GetObjectVersion", "store/datasets/*"),
        ("DeleteObject", "store/datasets/*"), ("PutObject", "cold/*"),
    }  # fmt: skip
    assert ("ListBucket", "cold") in objects


def test_argo_lints_it(argo: str, tmp_path: Path) -> None:
    at_once = tmp_path / "workflow.yaml"
    at_once.write_text(yaml.safe_dump(workflow("retrain-retention-x", "ann")), encoding="utf-8")

    done = subprocess.run([argo, "lint", "--offline", FILE, at_once], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
