"""What starts runs besides a person: a schedule, and a webhook.  Called by `workflows.compile`.

The CronWorkflow is compiled suspended; an environment's values switch it on.  A webhook takes three objects: the
EventSource (an HTTP server that wants a bearer token), the EventBus between the two, and the Sensor that checks the
body and creates a Workflow from the WorkflowTemplate.
"""

from __future__ import annotations

from typing import Any

from hera.workflows import CronWorkflow, Parameter
from hera.workflows.models import WorkflowTemplateRef

from contracts import names
from contracts.pipeline import Pipeline
from contracts.pipeline.operation import Schedule


def triggers(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return file name -> manifest of the triggers that the file asks for."""
    found: dict[str, dict[str, Any]] = {}
    if pipeline.schedule:
        found["cronworkflow.yaml"] = cron_workflow(pipeline, pipeline.schedule)
    return found


def cron_workflow(pipeline: Pipeline, schedule: Schedule) -> dict[str, Any]:
    """Return the CronWorkflow, suspended until an environment switches it on.  A run stands for its scheduled time."""
    workflow = CronWorkflow(
        name=pipeline.name,
        labels={names.LABEL_PIPELINE: pipeline.name},
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
