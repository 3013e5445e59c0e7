"""What starts runs besides a person: a schedule, and a webhook.  Called by `workflows.compile`.

The CronWorkflow is compiled suspended; an environment's values switch it on.  A webhook takes three objects: the
EventSource (an HTTP server that wants a bearer token), the EventBus between the two, and the Sensor that checks the
body and creates a Workflow from the WorkflowTemplate.

The Argo Events objects are plain mappings: Hera's models of them come from Argo Workflows' API description, which has
no EventBus, nests the webhook's inlined fields under a key that Argo Events ignores, and takes a trigger's resource
for base64 text.
"""

from __future__ import annotations

from typing import Any

from hera.workflows import CronWorkflow, Parameter
from hera.workflows.models import WorkflowTemplateRef

from contracts import names
from contracts.pipeline import Pipeline
from contracts.pipeline.operation import Schedule, Webhook
from workflows.stages import NO_PRIVILEGES

_PAYLOAD_LIMIT = 64 * 1024

_CHECK_BODY = """\
-- The body is a JSON object with `source` and `as_of` at most; a text means that its Content-Type was not JSON.
local body = event.body
if type(body) ~= "table" then return false end
for key, value in pairs(body) do
  if key ~= "source" and key ~= "as_of" then return false end
  if type(value) ~= "string" or #value > 1024 then return false end
end
local source, as_of = body.source or "s3://none", body.as_of or "0000-00-00T00:00:00Z"
local known = string.find(source, "^s3://[^%s{}$]+$") or string.find(source, "^https?://[^%s{}$]+$")
local time = "^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d"
local dated = string.find(as_of, time .. "Z$") or string.find(as_of, time .. "[+-]%d%d:%d%d$")
return known ~= nil and dated ~= nil
"""

_AS_OF = '{{ .Input.body.as_of | default (now | date "2006-01-02T15:04:05Z07:00") }}'
"""A Go template: the body's `as_of`, else now, so that a retry of the run stands for the same moment."""


def triggers(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return file name -> manifest of the triggers that the file asks for."""
    found: dict[str, dict[str, Any]] = {}
    if pipeline.schedule:
        found["cronworkflow.yaml"] = cron_workflow(pipeline, pipeline.schedule)
    if webhook := pipeline.triggers.webhook:
        found["eventbus.yaml"] = event_bus()
        found["eventsource.yaml"] = event_source(pipeline, webhook)
        found["sensor.yaml"] = sensor(pipeline)
    return found


def cron_workflow(pipeline: Pipeline, schedule: Schedule) -> dict[str, Any]:
    """Return the CronWorkflow, suspended until an environment switches it on.  A run stands for its scheduled time."""
    workflow = CronWorkflow(
        name=pipeline.name,
        labels=_labels(pipeline),
        schedules=list(schedule.cron),
        timezone=schedule.timezone,
        cron_suspend=True,
        concurrency_policy="Forbid",
        starting_deadline_seconds=int(schedule.starting_deadline.total_seconds()),
        successful_jobs_history_limit=schedule.keep_successful,
        failed_jobs_history_limit=schedule.keep_failed,
        workflow_template_ref=WorkflowTemplateRef(name=pipeline.name),
        arguments=[
            Parameter(name="as-of", value="{{workflow.scheduledTime}}"),
            Parameter(name="requested-by", value="schedule"),
        ],
    )
    return dict(workflow.to_dict())


def event_bus() -> dict[str, Any]:
    """Return the JetStream bus, one for all pipelines of a namespace: a single server that keeps events on a volume."""
    jetstream = {
        "version": "2.10.10",
        "replicas": 1,
        # JetStream's own streams ask for three replicas; with one server nothing would be delivered.
        "streamConfig": "replicas: 1\n",
        "persistence": {"accessMode": "ReadWriteOnce", "volumeSize": "1Gi"},
    }
    return _object("EventBus", names.EVENT_BUS, {}, {"jetstream": jetstream})


def event_source(pipeline: Pipeline, webhook: Webhook) -> dict[str, Any]:
    """Return the HTTP server of POST /<pipeline>; without the secret's bearer token it answers 401."""
    endpoint = {
        "endpoint": f"/{pipeline.name}",
        "method": "POST",
        "port": str(webhook.port),
        "maxPayloadSize": _PAYLOAD_LIMIT,
        "authSecret": {"name": webhook.token_secret, "key": "token"},
    }
    spec = {
        "eventBusName": names.EVENT_BUS,
        "service": {"ports": [{"name": "http", "port": webhook.port, "targetPort": webhook.port}]},
        "template": {"container": {"securityContext": _no_privileges()}},
        "webhook": {"run": endpoint},
    }
    return _object("EventSource", pipeline.name, _labels(pipeline), spec)


def sensor(pipeline: Pipeline) -> dict[str, Any]:
    """Return the Sensor: bodies that do not pass its check start nothing; the others start a Workflow."""
    arguments = [{"name": name, "value": ""} for name in ("source", "as-of")]
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{pipeline.name}-", "labels": _labels(pipeline)},
        "spec": {
            "workflowTemplateRef": {"name": pipeline.name},
            "arguments": {"parameters": [*arguments, {"name": "requested-by", "value": "webhook"}]},
        },
    }
    trigger = {
        "template": {
            "name": "run",
            "k8s": {
                "operation": "create",
                "source": {"resource": workflow},
                "parameters": [
                    {"src": {"dependencyName": "request", **source}, "dest": f"spec.arguments.parameters.{i}.value"}
                    for i, source in enumerate(({"dataKey": "body.source", "value": ""}, {"dataTemplate": _AS_OF}))
                ],
            },
        },
        "retryStrategy": {"steps": 5, "duration": "2s", "factor": 2},
        "rateLimit": {"unit": "Minute", "requestsPerUnit": 6},
    }
    request = {
        "name": "request",
        "eventSourceName": pipeline.name,
        "eventName": "run",
        "filters": {"script": _CHECK_BODY},
    }
    spec = {
        "eventBusName": names.EVENT_BUS,
        "template": {
            "serviceAccountName": names.SENSOR_SERVICE_ACCOUNT,
            "container": {"securityContext": _no_privileges()},
        },
        "dependencies": [request],
        "triggers": [trigger],
    }
    return _object("Sensor", pipeline.name, _labels(pipeline), spec)


def _object(kind: str, name: str, labels: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels} if labels else {"name": name}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def _labels(pipeline: Pipeline) -> dict[str, str]:
    return {names.LABEL_PIPELINE: pipeline.name}


def _no_privileges() -> dict[str, Any]:
    return NO_PRIVILEGES.model_dump(by_alias=True, exclude_none=True)
