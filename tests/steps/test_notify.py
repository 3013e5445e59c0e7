"""Notify says how a run ended, why, and what to do; and tells the services that want to know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from contracts.errors import CONFIG, ConfigError, Finding, NetworkError
from contracts.outcomes import Outcome
from contracts.pipeline import Pipeline
from contracts.settings import Settings
from contracts.stages import Notify
from steps.notify import Failure, conclude, failed_stages, notify
from steps.reports import RELEASE_REPORT, ReleaseReport, error_report_uri, run_report_uri
from steps.rollout.cluster import Cluster
from steps.waiting import Waited
from steps.world import World
from tests.loopback import Handler, serving
from tests.steps.ingesting import column, run_ingest, world_for

UNSET = "{{=workflow.outputs.parameters['outcome']}}"


@dataclass
class Service:
    """A real HTTP server that takes Apprise's JSON."""

    url: str
    received: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200


@pytest.fixture
def service() -> Iterator[Service]:
    class Hook(Handler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.received.append(json.loads(body))
            self.send_response(made.status)
            self.end_headers()

    with serving(Hook) as port:
        made = Service(f"json://ann:hidden-word@127.0.0.1:{port}/hook")
        yield made


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "rows.csv").write_text("y,x\n1,2\n0,300\n")
    columns = [column("y", "integer"), column("x", "number", max={"value": 100, "level": "warn"})]
    return world_for(tmp_path, columns, "rows.csv")


def telling(world: World, *urls: str, on: list[str] | None = None) -> World:
    pipeline = world.pipeline.model_dump(mode="json", by_alias=True)
    if on is not None:
        pipeline["notifications"] = {"on": on}
    told = {"notify_urls": SecretStr(" ".join(urls))}
    settings = Settings.model_validate(world.settings.model_dump(round_trip=True) | told)
    return replace(world, settings=settings, pipeline=Pipeline.model_validate(pipeline))


def ended(**said: str) -> Notify.Inputs:
    unset = {name: UNSET for name in Notify.Inputs.model_fields if name not in ("status", "failures")}
    return Notify.Inputs(**({"status": "Succeeded"} | unset | said))


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ({"verdict": "passed", "decision": "approved", "outcome": "promoted"}, Outcome.PROMOTED),
        ({"verdict": "passed", "decision": "unchanged", "outcome": "unchanged"}, Outcome.UNCHANGED),
        ({"verdict": "passed", "decision": "approved", "outcome": "rolled-back"}, Outcome.ROLLED_BACK),
        ({"verdict": "passed", "decision": "approved", "outcome": "superseded"}, Outcome.SUPERSEDED),
        ({"verdict": "rejected"}, Outcome.REJECTED),
        ({"verdict": "inconclusive"}, Outcome.INCONCLUSIVE),
        ({"verdict": "passed", "decision": "rejected"}, Outcome.REJECTED),
        ({"verdict": "passed", "decision": "inconclusive"}, Outcome.INCONCLUSIVE),
        ({"verdict": "passed", "decision": "awaiting-approval"}, Outcome.AWAITING_APPROVAL),
        ({"verdict": "passed", "decision": "not-approved"}, Outcome.NOT_APPROVED),
        ({"verdict": "passed", "decision": "superseded"}, Outcome.SUPERSEDED),
        ({"decision": "rejected"}, Outcome.REJECTED),  # entry point release: no validation gate
        ({"verdict": "passed", "decision": "approved"}, Outcome.FAILED),  # nobody says that it serves
        ({"verdict": "passed"}, Outcome.FAILED),
        ({}, Outcome.FAILED),
        ({"status": "Failed", "verdict": "passed", "decision": "approved"}, Outcome.FAILED),
        ({"status": "Error", "outcome": "promoted"}, Outcome.FAILED),
    ],
)
def test_the_outcome_is_what_the_last_stage_said(said: dict[str, str], outcome: Outcome) -> None:
    assert conclude(ended(**said)) is outcome


def test_why_a_version_was_taken_back_is_told_where_it_was(world: World, service: Service) -> None:
    told, reason = telling(world, service.url), "error-rate is 0.4, at most 0.01 is allowed"
    report = ReleaseReport(version=7, reason=reason).model_dump_json()
    world.storage.write(run_report_uri(world, RELEASE_REPORT), report.encode())
    for outcome in ("rolled-back", "promoted"):
        notify(ended(verdict="passed", decision="approved", outcome=outcome), world=told)
    taken_back, promoted = (message["message"] for message in service.received)
    assert f"version 7 was taken back: {reason}" in taken_back
    assert reason not in promoted


def failures(*nodes: tuple[str, str, str, str], quotes: int = 1) -> str:
    """What Argo hands over: (template, display name, phase, message), in no order."""
    text = json.dumps(
        [
            {
                "templateName": template, "displayName": shown, "phase": phase, "message": message,
                "finishedAt": "2026-01-01T00:00:00Z",
            }
            for template, shown, phase, message in nodes
        ]
    )  # fmt: skip
    for _ in range(quotes):
        text = json.dumps(text, ensure_ascii=False)
    return text


def test_what_a_pod_waited_for_is_told_where_it_never_began(
    world: World, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def waited(_cluster: Cluster, pod: str) -> Waited:
        asked.append(pod)
        return Waited("couldn't find key token in Secret mlops/s", CONFIG)

    monkeypatch.setattr(Cluster, "inside", lambda: Cluster("mlops"))
    monkeypatch.setattr("steps.notify.waited_for", waited)
    node = {
        "templateName": "kaniko", "displayName": "kaniko(0)", "phase": "Failed", "podName": "w-kaniko-7",
        "message": "Pod was active on the node longer than the specified deadline",
    }  # fmt: skip
    notify(ended(status="Failed", failures=json.dumps(json.dumps([node]))), world=telling(world, service.url))

    [told] = [message["message"] for message in service.received]
    assert asked == ["w-kaniko-7"]
    assert "kaniko failed (config): its pod never began: couldn't find key token in Secret mlops/s" in told


@pytest.mark.parametrize(("inside", "options"), [(None, ""), (Cluster("mlops"), "-n mlops ")])
def test_who_is_to_decide_is_told_commands_that_find_the_run(
    inside: Cluster | None, options: str, world: World, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "inside", lambda: inside)
    notify(ended(verdict="passed", decision="awaiting-approval", version="3"), world=telling(world, service.url))

    [told] = [message["message"] for message in service.received]
    assert f"look: retrain review {options}{world.pipeline.name}@3\n" in told
    assert f"then: retrain approve {options}{world.pipeline.name}@3 --reason" in told


@pytest.mark.parametrize("quotes", [0, 1, 2])
def test_failures_are_read_however_often_they_are_quoted(quotes: int) -> None:
    text = failures(("train", "train", "Failed", 'Error "now" (exit code 65)'), quotes=quotes)

    assert failed_stages(text) == [Failure("train", "Failed", 'Error "now" (exit code 65)')]


@pytest.mark.parametrize("text", ["null", '"null"', "", "{{workflow.failures}}", "[1]", "{}"])
def test_no_failures_are_none(text: str) -> None:
    assert failed_stages(text) == []


def test_the_last_attempt_of_a_stage_that_failed_for_good_counts() -> None:
    text = failures(
        ("train", "train(10)", "Failed", "main: OOMKilled (exit code 137)"),
        ("train", "train(9)", "Failed", "main: Error (exit code 75)"),
        ("ingest", "ingest(0)", "Failed", "main: Error (exit code 75)"),  # it came through with attempt 1
        ("train", "train", "Failed", "No more retries left"),
        ("retrain", "adult", "Failed", "child 'train' failed"),
    )

    assert failed_stages(text) == [Failure("train", "Failed", "main: OOMKilled (exit code 137)")]


def test_a_probe_without_an_answer_is_told_and_what_others_answered_stands_in_the_report_of_preflight() -> None:
    lost = 'pods "w-1" is forbidden: error looking up service account'
    text = failures(
        ("preflight-promote", "preflight-promote(3)", "Error", lost),
        ("preflight-promote", "preflight-promote", "Error", "retryStrategy.expression evaluated to false"),
        ("preflight-build", "preflight-build(5)", "Failed", "main: Error (exit code 75)"),
        ("preflight-build", "preflight-build", "Failed", "No more retries left"),
        ("preflight", "preflight(0)", "Failed", "main: Error (exit code 69)"),
        ("preflight", "preflight", "Failed", "retryStrategy.expression evaluated to false"),
    )

    assert failed_stages(text) == [
        Failure("preflight-promote", "Error", lost), Failure("preflight", "Failed", "main: Error (exit code 69)"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "message", "row", "remedy"),
    [
        ("Failed", "main: Error (exit code 65)", "data", "mend the data"),
        ("Failed", "main: Error (exit code 78)", "config", "mend the setting"),
        ("Failed", "main: OOMKilled (exit code 137)", "resources", "raise the stage's memory"),
        ("Error", "pod deleted", "infrastructure", "look at the node's events"),
        ("Failed", "The node was low on resource: memory.", "infrastructure", "look at the node's events"),
        ("Failed", "main: Error (exit code 143)", "infrastructure", "look at the node's events"),
        ("Failed", "main: Error (exit code 137)", "code", "read the stage's log"),
        ("Error", "wait: Error (exit code 64)", "code", "read the stage's log"),
    ],
)
def test_a_stage_that_left_no_report_is_explained_by_its_class(
    world: World, caplog: pytest.LogCaptureFixture, phase: str, message: str, row: str, remedy: str
) -> None:
    caplog.set_level("INFO")

    done = notify(ended(status="Failed", failures=failures(("train", "train", phase, message))), world=world)

    assert done.outcome is Outcome.FAILED
    assert f"train failed ({row}): {message}" in caplog.text
    assert remedy in caplog.text


_STOP = "workflow shutdown with strategy:  Stop"
_STOPPED_STAGE = ("train", "train", "Failed", "Stopped with strategy 'Stop'")
STOPPED = {
    "while it ran": (
        ("train", "train(0)", "Failed", _STOP),
        _STOPPED_STAGE,
    ),
    "before its next attempt": (
        ("train", "train(0)", "Failed", "main: Error (exit code 75)"),
        _STOPPED_STAGE,
    ),
}


@pytest.mark.parametrize("nodes", STOPPED.values(), ids=STOPPED)
def test_a_run_that_was_stopped_says_so(
    world: World, caplog: pytest.LogCaptureFixture, nodes: tuple[tuple[str, str, str, str], ...]
) -> None:
    caplog.set_level("INFO")
    leave_report(world, "train")  # of an attempt before

    done = notify(ended(status="Failed", failures=failures(*nodes)), world=world)

    assert done.summary.startswith("test: failed, stopped by a person")
    assert "train was stopped by a person" in caplog.text
    assert "what to do: `argo retry` goes on from there" in caplog.text
    assert "bucket" not in caplog.text


def test_a_run_that_was_stopped_before_any_stage_says_so(world: World) -> None:
    waiting = ("retrain", "test-1", "Failed", _STOP)

    done = notify(ended(status="Failed", failures=failures(waiting)), world=world)

    assert done.summary.startswith("test: failed, stopped by a person")


def test_a_stage_that_ran_out_of_time_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    late = "Pod was active on the node longer than the specified deadline"

    notify(ended(status="Failed", failures=failures(("train", "train(0)", "Failed", late))), world=world)

    assert f"train was not done in its time: {late}" in caplog.text


def leave_report(world: World, stage: str) -> None:
    error = ConfigError("the bucket is unknown", findings=[Finding(where="RETRAIN_STORE", what="no such bucket")])
    data = error.report(stage).model_dump_json().encode()
    world.storage.write(error_report_uri(world, stage), data)


def test_a_stages_own_report_is_told_with_findings_and_remedy(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    leave_report(world, "ingest")

    said = failures(("ingest", "ingest", "Failed", "main: Error (exit code 78)"))
    notify(ended(status="Failed", failures=said), world=world)

    assert "ingest failed (config): the bucket is unknown" in caplog.text
    assert "- RETRAIN_STORE: no such bucket" in caplog.text
    assert "what to do: mend the setting" in caplog.text


def test_a_report_of_an_earlier_attempt_does_not_explain_a_kill(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    leave_report(world, "train")

    said = failures(("train", "train", "Failed", "main: OOMKilled (exit code 137)"))
    notify(ended(status="Failed", failures=said), world=world)

    assert "train failed (resources)" in caplog.text
    assert "bucket" not in caplog.text


def test_a_service_gets_outcome_links_and_the_warnings_of_the_data(world: World, service: Service) -> None:
    run_ingest(world)
    told = replace(
        telling(world, service.url),
        settings=telling(world, service.url).settings.model_copy(update={"mlflow_url": "http://mlflow.example"}),
    )

    notify(
        ended(verdict="passed", decision="approved", outcome="promoted", run_id="r7", version="3", url="http://h:1"),
        world=told,
    )

    [message] = service.received
    assert message["title"] == "test: promoted"
    assert (
        "workflow test-1, version 3, run r7, serves at http://h:1, MLflow http://mlflow.example" in message["message"]
    )
    assert "warning: x: max broken by 1 rows (50.00%)" in message["message"]
    assert "{{" not in message["message"]


def test_a_failure_is_told_as_one(world: World, service: Service) -> None:
    notify(ended(status="Failed"), world=telling(world, service.url))

    assert [(m["title"], m["type"]) for m in service.received] == [("test: failed", "failure")]


@pytest.mark.parametrize(
    ("on", "said", "count"),
    [
        (["failed"], {"outcome": "promoted"}, 0),
        (["promoted"], {"outcome": "promoted"}, 1),
        (["promoted"], {"status": "Failed"}, 0),
        (["other"], {"decision": "awaiting-approval"}, 1),
        (["other"], {"outcome": "unchanged"}, 0),
        ([], {"status": "Failed"}, 0),
    ],
)
def test_only_the_outcomes_asked_for_are_told(
    world: World, service: Service, on: list[str], said: dict[str, str], count: int
) -> None:
    notify(ended(**said), world=telling(world, service.url, on=on))

    assert len(service.received) == count


def test_a_service_that_refuses_is_a_network_error_without_its_url(
    world: World, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    service.status = 500

    with pytest.raises(NetworkError) as refused:
        notify(ended(outcome="promoted"), world=telling(world, service.url))

    assert "took the message" in refused.value.message
    for text in (str(refused.value.report("notify")), caplog.text):
        assert "hidden-word" not in text
        assert service.url not in text


def test_a_service_that_is_down_neither_fails_the_run_nor_keeps_others_from_being_told_once(
    world: World, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    down = "json://ann:hidden-word@127.0.0.1:1/hook"

    done = notify(ended(outcome="promoted"), world=telling(world, down, service.url))

    assert done.outcome is Outcome.PROMOTED
    assert len(service.received) == 1
    assert "URL 1 of RETRAIN_NOTIFY_URLS did not take the message" in caplog.text
    assert "hidden-word" not in caplog.text


def test_an_unknown_kind_of_url_is_named_by_its_place_only_and_the_others_are_told(
    world: World, service: Service
) -> None:
    with pytest.raises(ConfigError, match="URL 1 of RETRAIN_NOTIFY_URLS") as refused:
        notify(ended(outcome="promoted"), world=telling(world, "nosuch://token-7", service.url))

    assert "token-7" not in str(refused.value.report("notify"))
    assert len(service.received) == 1


def test_a_store_that_cannot_be_read_does_not_keep_the_message_back(world: World, service: Service) -> None:
    unreachable = {
        "store": "s3://bucket",
        "s3_endpoint": "http://127.0.0.1:1",
        "aws_access_key_id": SecretStr("key"),
        "aws_secret_access_key": SecretStr("word"),
    }
    told = telling(world, service.url)

    notify(ended(status="Failed"), world=replace(told, settings=told.settings.model_copy(update=unreachable)))

    assert "reports cannot be read" in service.received[0]["message"]
