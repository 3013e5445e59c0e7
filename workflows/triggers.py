"""What starts runs besides a person: a schedule, a webhook, a new object.  Called by `workflows.compile`.

The CronWorkflow is compiled suspended; an environment's values switch it on.  A webhook takes three objects: the
EventSource (an HTTP server that wants a bearer token), the EventBus between the two, and the Sensor that checks the
body and creates a Workflow from the WorkflowTemplate.  ``docs/triggers.md`` says what callers see of it.

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
from contracts.pipeline.operation import Objects, Schedule, Webhook
from workflows.stages import no_privileges

_PAYLOAD_LIMIT = 64 * 1024
_RUNS_PER_MINUTE = 6
_REQUEST, _REFUSED, _OBJECT = "request", "refused", "object"

_KEEP = '{content_type: ((.header["Content-Type"] // [""])[0]), body: .body}'
"""jq: what the sensor sees of an HTTP request, and its log shows; other headers are the caller's affair."""

# What is let through holds no tag of Argo's, no reference of Kubernetes', no quote, no space, no way up a path.
_CHECK = """\
local function known(event)
  local body = event.body
  if type(body) ~= "table" or not string.find(event.content_type, "^application/json") then return false end
  for key, value in pairs(body) do
    if key ~= "type" and key ~= "id" and key ~= "source" and key ~= "as_of" then return false end
    if type(value) ~= "string" or #value > 1024 then return false end
  end
  if body.type ~= "retrain" then return false end
  if not body.id or #body.id > 64 or not string.find(body.id, "^%w[%w._-]*$") then return false end
  local source, as_of = body.source or "s3://none", body.as_of or "0000-00-00T00:00:00Z"
  local place = "://[%w._~/=%%+:?&,*-]+$"
  if not (string.find(source, "^s3" .. place) or string.find(source, "^https?" .. place)) then return false end
  if string.find(source, "..", 1, true) then return false end
  local time = "^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d"
  return string.find(as_of, time .. "Z$") ~= nil or string.find(as_of, time .. "[+-]%d%d:%d%d$") ~= nil
end
"""

_CHECK_OBJECT = """\
local body, start, ending = event.body, "%s", "%s"
if type(body) ~= "table" or type(body.Key) ~= "string" or type(body.EventName) ~= "string" then return false end
local key = body.Key
return string.find(body.EventName, "^s3:ObjectCreated:") ~= nil
  and string.find(key, "^[%%w._~/=+:,-]+$") ~= nil and #key <= 1024 and not string.find(key, "..", 1, true)
  and string.sub(key, 1, #start) == start and (ending == "" or string.sub(key, -#ending) == ending)
"""

# Go templates.  A run's name follows from its event, so the same event again finds the run there and makes no other.
_NAME = "%s-{{ sha256sum .Input.body.id | trunc 16 }}"
_OBJECT_NAME = "%s-{{ print .Input.body.Key (index .Input.body.Records 0).s3.object.sequencer | sha256sum | trunc 16 }}"
_NOW = '(now | date "2006-01-02T15:04:05Z07:00")'
"""Written down when the run starts, so that a retry of it stands for the same moment."""


def triggers(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return file name -> manifest of the triggers that the file asks for."""
    found: dict[str, dict[str, Any]] = {}
    if pipeline.schedule:
        found["3-cronworkflow.yaml"] = cron_workflow(pipeline, pipeline.schedule)
    if webhook := pipeline.triggers.webhook:
        found["3-eventbus.yaml"] = event_bus()
        found["3-eventsource.yaml"] = event_source(pipeline, webhook)
        found["3-sensor.yaml"] = sensor(pipeline, webhook)
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
    common = {
        "method": "POST",
        "port": str(webhook.port),
        "maxPayloadSize": _PAYLOAD_LIMIT,
        "authSecret": {"name": webhook.token_secret, "key": "token"},
    }
    endpoints = {"run": {"endpoint": f"/{pipeline.name}", **common}}
    if webhook.objects:
        endpoints["objects"] = {"endpoint": f"/{pipeline.name}/objects", **common}
    spec = {
        "eventBusName": names.EVENT_BUS,
        "service": {"ports": [{"name": "http", "port": webhook.port, "targetPort": webhook.port}]},
        "template": {"container": {"securityContext": no_privileges()}},
        "webhook": endpoints,
    }
    return _object("EventSource", pipeline.name, _labels(pipeline), spec)


def sensor(pipeline: Pipeline, webhook: Webhook) -> dict[str, Any]:
    """Return the Sensor: a body that passes its check starts a Workflow; every other one is logged and counted."""
    dependencies = [
        _dependency(pipeline, _REQUEST, "run", f"{_CHECK}return known(event)\n"),
        _dependency(pipeline, _REFUSED, "run", f"{_CHECK}return not known(event)\n"),
    ]
    found = [
        _run(
            pipeline, _REQUEST, _NAME % pipeline.name,
            {"dataKey": "body.source", "value": ""},
            {"dataTemplate": f"{{{{ .Input.body.as_of | default {_NOW} }}}}"},
            {"dataTemplate": "webhook {{ .Input.body.id }}"},
        ),
        {"template": {"name": _REFUSED, "conditions": _REFUSED, "log": {}}},
    ]  # fmt: skip
    if webhook.objects:
        dependencies.append(_dependency(pipeline, _OBJECT, "objects", _wanted(webhook.objects)))
        found.append(
            _run(
                pipeline, _OBJECT, _OBJECT_NAME % pipeline.name,
                {"dataTemplate": "s3://{{ .Input.body.Key }}"},
                {"dataTemplate": f"{{{{ {_NOW} }}}}"},
                {"dataTemplate": "object {{ .Input.body.Key }}"},
            )
        )  # fmt: skip
    spec = {
        "eventBusName": names.EVENT_BUS,
        "template": {
            "serviceAccountName": names.SENSOR_SERVICE_ACCOUNT,
            "container": {"securityContext": no_privileges()},
        },
        "dependencies": dependencies,
        "triggers": found,
    }
    return _object("Sensor", pipeline.name, _labels(pipeline), spec)


def _wanted(objects: Objects) -> str:
    return _CHECK_OBJECT % (f"{objects.bucket}/{objects.prefix}", objects.suffix)


def _dependency(pipeline: Pipeline, name: str, event: str, script: str) -> dict[str, Any]:
    return {
        "name": name,
        "eventSourceName": pipeline.name,
        "eventName": event,
        "transform": {"jq": _KEEP},
        "filters": {"script": script},
    }


def _run(
    pipeline: Pipeline, name: str, workflow: str, source: dict[str, str], as_of: dict[str, str], by: dict[str, str]
) -> dict[str, Any]:
    """Return a trigger that creates the Workflow of an event; what it can't create after some tries is logged whole."""
    given = {"source": source, "as-of": as_of, "requested-by": by}
    manifest = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": "", "labels": _labels(pipeline)},
        "spec": {
            "workflowTemplateRef": {"name": pipeline.name},
            "arguments": {"parameters": [{"name": parameter, "value": ""} for parameter in given]},
        },
    }
    places = {"metadata.name": {"dataTemplate": workflow}} | {
        f"spec.arguments.parameters.{i}.value": value for i, value in enumerate(given.values())
    }
    return {
        "template": {
            "name": name,
            "conditions": name,
            "k8s": {
                "operation": "create",
                "source": {"resource": manifest},
                "parameters": [
                    {"src": {"dependencyName": name, **value}, "dest": place} for place, value in places.items()
                ],
            },
        },
        # Without it nothing is tried again: Argo Events then takes every event for done.
        "atLeastOnce": True,
        "retryStrategy": {"steps": 4, "duration": "1s", "factor": 2},
        "rateLimit": {"unit": "Minute", "requestsPerUnit": _RUNS_PER_MINUTE},
        "dlqTrigger": {"template": {"name": f"{name}-lost", "log": {}}, "atLeastOnce": True},
    }


def _object(kind: str, name: str, labels: dict[str, str], spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels} if labels else {"name": name}
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def _labels(pipeline: Pipeline) -> dict[str, str]:
    return {names.LABEL_PIPELINE: pipeline.name}
