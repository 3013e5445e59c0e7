"""The schedule and the webhook, as compiled."""

from __future__ import annotations

from typing import Any

from contracts.pipeline import Pipeline, load_pipeline
from contracts.pipeline.operation import Objects, Schedule, Webhook
from tests.manifests.conftest import ADULT
from workflows.triggers import cron_workflow, event_source, sensor

Manifests = dict[str, dict[str, Any]]


def parameters(arguments: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: p["value"] for p in arguments["parameters"]}


def test_the_schedule_is_suspended_forbids_two_at_once_and_keeps_history(manifests: Manifests) -> None:
    spec = manifests["3-cronworkflow.yaml"]["spec"]

    assert spec["suspend"] is True
    assert spec["concurrencyPolicy"] == "Forbid"
    assert (spec["schedules"], spec["timezone"]) == (["0 3 * * 1"], "Europe/Berlin")
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (3, 3)
    assert spec["startingDeadlineSeconds"] == 3600


def test_a_scheduled_run_stands_for_its_scheduled_time(manifests: Manifests) -> None:
    workflow = manifests["3-cronworkflow.yaml"]["spec"]["workflowSpec"]

    assert workflow["workflowTemplateRef"] == {"name": "adult-income"}
    assert parameters(workflow["arguments"]) == {"as-of": "{{workflow.scheduledTime}}", "requested-by": "schedule"}


def test_several_cron_lines_and_no_history_are_kept_as_written() -> None:
    pipeline: Pipeline = load_pipeline(ADULT)
    schedule = Schedule(cron=("0 3 * * 1", "30 12 1 * *"), keep_successful=0)

    spec = cron_workflow(pipeline, schedule)["spec"]

    assert spec["schedules"] == ["0 3 * * 1", "30 12 1 * *"]
    assert spec["successfulJobsHistoryLimit"] == 0


def test_the_webhook_wants_a_token_from_a_secret(manifests: Manifests) -> None:
    webhook = manifests["3-eventsource.yaml"]["spec"]["webhook"]["run"]

    assert (webhook["method"], webhook["endpoint"], webhook["port"]) == ("POST", "/adult-income", "12000")
    assert webhook["authSecret"] == {"name": "retrain-webhook", "key": "token"}


def test_source_bus_and_sensor_name_each_other(manifests: Manifests) -> None:
    bus, source, sensor = (manifests[f"3-{kind}.yaml"] for kind in ("eventbus", "eventsource", "sensor"))

    assert source["spec"]["eventBusName"] == sensor["spec"]["eventBusName"] == bus["metadata"]["name"]
    for dependency in sensor["spec"]["dependencies"]:
        assert dependency["eventSourceName"] == source["metadata"]["name"]
        assert dependency["eventName"] in source["spec"]["webhook"]
    assert bus["spec"]["jetstream"]["streamConfig"] == "replicas: 1\n"  # without it nothing is delivered


def test_the_sensor_starts_the_template_with_the_bodys_values(manifests: Manifests) -> None:
    trigger, _ = manifests["3-sensor.yaml"]["spec"]["triggers"]
    k8s = trigger["template"]["k8s"]
    spec = k8s["source"]["resource"]["spec"]

    assert k8s["operation"] == "create"
    assert spec["workflowTemplateRef"] == {"name": "adult-income"}
    name, *values = k8s["parameters"]
    assert (name["dest"], name["src"]["dataTemplate"]) == (
        "metadata.name",
        "adult-income-{{ sha256sum .Input.body.id | trunc 16 }}",  # the same event finds its run there
    )
    wanted = (("source", "body.source"), ("as-of", "body.as_of"), ("requested-by", "body.id"))
    for mapping, (parameter, key) in zip(values, wanted, strict=True):
        index = int(mapping["dest"].removeprefix("spec.arguments.parameters.").removesuffix(".value"))
        assert spec["arguments"]["parameters"][index]["name"] == parameter
        assert key in str(mapping["src"])


def test_what_could_not_be_started_is_tried_again_then_logged(manifests: Manifests) -> None:
    trigger, _ = manifests["3-sensor.yaml"]["spec"]["triggers"]

    assert trigger["atLeastOnce"]  # else Argo Events heeds no retryStrategy
    assert trigger["retryStrategy"]["steps"] == 4
    assert trigger["rateLimit"] == {"unit": "Minute", "requestsPerUnit": 6}
    assert trigger["dlqTrigger"]["template"] == {"name": "request-lost", "log": {}}


def test_a_body_is_either_a_request_or_refused(manifests: Manifests) -> None:
    request, refused = manifests["3-sensor.yaml"]["spec"]["dependencies"]
    check, _, answer = request["filters"]["script"].rpartition("return ")

    assert answer == "known(event)\n"
    assert refused["filters"]["script"] == f"{check}return not known(event)\n"


def test_objects_of_a_bucket_have_an_endpoint_and_a_trigger_of_their_own() -> None:
    webhook = Webhook(objects=Objects(bucket="incoming", prefix="census/", suffix=".csv"))
    pipeline: Pipeline = load_pipeline(ADULT)

    endpoints = event_source(pipeline, webhook)["spec"]["webhook"]
    spec = sensor(pipeline, webhook)["spec"]

    assert {name: e["endpoint"] for name, e in endpoints.items()} == {
        "run": "/adult-income",
        "objects": "/adult-income/objects",
    }
    assert {e["authSecret"]["name"] for e in endpoints.values()} == {"retrain-webhook"}
    assert [d["eventName"] for d in spec["dependencies"]] == ["run", "run", "objects"]
    assert 'start, ending = event.body, "incoming/census/", ".csv"' in spec["dependencies"][2]["filters"]["script"]


def test_the_events_pods_have_no_privileges(manifests: Manifests) -> None:
    for kind in ("eventsource", "sensor"):
        context = manifests[f"3-{kind}.yaml"]["spec"]["template"]["container"]["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsNonRoot"]
