"""Retention on a cluster: a CronWorkflow, suspended until an environment switches it on, and the same at once.

One for all pipelines of a namespace, since they share store and policy; the policy is the environment's settings.
`workflows.platform` writes the CronWorkflow to argo/retention/, `retrain retention apply -n` submits the Workflow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hera.workflows import CronWorkflow, Workflow
from hera.workflows.models import TTLStrategy

from contracts import names
from contracts.access import RETENTION
from contracts.settings import variable
from workflows.compile import manifest_text
from workflows.duties import duty_container
from workflows.stages import argo_containers, from_settings

FILE = Path(__file__).resolve().parent.parent / "argo" / RETENTION / "cronworkflow.yaml"
NAME = names.STEP_SERVICE_ACCOUNT.format(stage=RETENTION)
_SUNDAY_NIGHT = "0 3 * * 0"
_WEEK_SECONDS = 7 * 86400
_DEADLINE_SECONDS = 6 * 3600
RESOURCES = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}}
"""Of whoever looks at all that is kept, to plan or to remove."""


def cron_workflow() -> dict[str, Any]:
    """Return the CronWorkflow: Sundays at 3 UTC, never two at once."""
    workflow = CronWorkflow(
        name=NAME,
        schedules=[_SUNDAY_NIGHT],
        cron_suspend=True,
        concurrency_policy="Forbid",
        starting_deadline_seconds=3600,
        successful_jobs_history_limit=3,
        failed_jobs_history_limit=3,
        **_spec(),
    )
    return _filled(workflow, "")


def workflow(name: str, requested_by: str) -> dict[str, Any]:
    """Return a Workflow that does it at once, for a person."""
    return _filled(Workflow(name=name, api_version="argoproj.io/v1alpha1", **_spec()), requested_by)


def cron_workflow_file() -> str:
    """Return the text of `FILE`."""
    return manifest_text(cron_workflow(), "contracts/")


def _spec() -> dict[str, Any]:
    return {
        "entrypoint": RETENTION,
        "arguments": [from_settings("steps-image", variable("steps_image"), "Image of the steps, by digest.")],
        "pod_spec_patch": argo_containers(),
        "ttl_strategy": TTLStrategy(seconds_after_completion=_WEEK_SECONDS),
    }


def _filled(workflow: Workflow, requested_by: str) -> dict[str, Any]:
    with workflow:
        duty_container(
            RETENTION, "{{workflow.parameters.steps-image}}",
            ["steps.retention", *([requested_by] if requested_by else [])],
            resources=RESOURCES, deadline_seconds=_DEADLINE_SECONDS,
        )  # fmt: skip
    return dict(workflow.to_dict())
