"""The schedule and the webhook, as compiled."""

from __future__ import annotations

from typing import Any

from contracts.pipeline import Pipeline, load_pipeline
from contracts.pipeline.operation import Schedule
from tests.manifests.conftest import ADULT
from workflows.triggers import cron_workflow

Manifests = dict[str, dict[str, Any]]


def parameters(arguments: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: p["value"] for p in arguments["parameters"]}


def test_the_schedule_is_suspended_forbids_two_at_once_and_keeps_history(manifests: Manifests) -> None:
    spec = manifests["cronworkflow.yaml"]["spec"]

    assert spec["suspend"] is True
    assert spec["concurrencyPolicy"] == "Forbid"
    assert (spec["schedules"], spec["timezone"]) == (["0 3 * * 1"], "Europe/Berlin")
    assert (spec["successfulJobsHistoryLimit"], spec["failedJobsHistoryLimit"]) == (3, 3)
    assert spec["startingDeadlineSeconds"] == 3600


def test_a_scheduled_run_stands_for_its_scheduled_time(manifests: Manifests) -> None:
    workflow = manifests["cronworkflow.yaml"]["spec"]["workflowSpec"]

    assert workflow["workflowTemplateRef"] == {"name": "adult-income"}
    assert parameters(workflow["arguments"]) == {"as-of": "{{workflow.scheduledTime}}", "requested-by": "schedule"}


def test_several_cron_lines_and_no_history_are_kept_as_written() -> None:
    pipeline: Pipeline = load_pipeline(ADULT)
    schedule = Schedule(cron=("0 3 * * 1", "30 12 1 * *"), keep_successful=0)

    spec = cron_workflow(pipeline, schedule)["spec"]

    assert spec["schedules"] == ["0 3 * * 1", "30 12 1 * *"]
    assert spec["successfulJobsHistoryLimit"] == 0


def test_the_webhook_wants_a_token_from_a_secret(manifests: Manifests) -> None:
    webhook = manifests["eventsource.yaml"]["spec"]["webhook"]["run"]

    assert (webhook["method"], webhook["endpoint"], webhook["port"]) == ("POST", "/adult-income", "12000")
    assert webhook["authSecret"] == {"name": "retrain-webhook", "key": "token"}


def test_source_bus_and_sensor_name_each_other(manifests: Manifests) -> None:
    bus, source, sensor = (manifests[f"{kind}.yaml"] for kind in ("eventbus", "eventsource", "sensor"))
    [dependency] = sensor["spec"]["dependencies"]

    assert source["spec"]["eventBusName"] == sensor["spec"]["eventBusName"] == bus["metadata"]["name"]
    assert dependency["eventSourceName"] == source["metadata"]["name"]
    assert dependency["eventName"] in source["spec"]["webhook"]
    assert bus["spec"]["jetstream"]["streamConfig"] == "replicas: 1\n"  # without it nothing is delivered


def test_the_sensor_starts_the_template_with_the_bodys_values(manifests: Manifests) -> None:
    [trigger] = manifests["sensor.yaml"]["spec"]["triggers"]
    k8s = trigger["template"]["k8s"]
    spec = k8s["source"]["resource"]["spec"]

    assert k8s["operation"] == "create"
    assert spec["workflowTemplateRef"] == {"name": "adult-income"}
    assert parameters(spec["arguments"])["requested-by"] == "webhook"
    for mapping, name, key in zip(k8s["parameters"], ("source", "as-of"), ("body.source", "body.as_of"), strict=True):
        index = int(mapping["dest"].removeprefix("spec.arguments.parameters.").removesuffix(".value"))
        assert spec["arguments"]["parameters"][index]["name"] == name
        assert key in str(mapping["src"])


def test_the_sensor_refuses_what_it_does_not_know(manifests: Manifests) -> None:
    [dependency] = manifests["sensor.yaml"]["spec"]["dependencies"]
    script = dependency["filters"]["script"]

    assert 'type(body) ~= "table"' in script  # a body sent without Content-Type: application/json is a text
    assert 'key ~= "source" and key ~= "as_of"' in script
    assert script.count("[^%s{}$]+$") == 2  # no tag of Argo's, no reference of Kubernetes'


def test_the_events_pods_have_no_privileges(manifests: Manifests) -> None:
    for kind in ("eventsource", "sensor"):
        context = manifests[f"{kind}.yaml"]["spec"]["template"]["container"]["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsNonRoot"]
