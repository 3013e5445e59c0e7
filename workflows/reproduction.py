"""The Workflow that builds a version again, on the image of the steps that its run recorded.

Its rights are those of the duty `reproduce`: it reads what was kept, and writes nothing.  Submitted by `retrain
reproduce` where a cluster is meant; no part of a pipeline's graph.
"""

from __future__ import annotations

from typing import Any

from hera.workflows import Workflow
from hera.workflows.models import TTLStrategy

from contracts.access import REPRODUCE
from contracts.pipeline.operation import Resources
from contracts.stages import Train
from workflows.duties import duty_container
from workflows.stages import argo_containers

_DAY_SECONDS = 86400


def reproduction(name: str, image: str, version: str, had: Resources) -> dict[str, Any]:
    """Return the Workflow.

    Parameters
    ----------
    image
        Of the steps, by digest: code and libraries of the training.
    version
        ``MODEL@VERSION``.
    had
        What the training had, by its own pipeline file or else by the environment; it trains again, beside the
        process that compares.
    """
    asked = {"cpu": f"{had.cpu_millicores}m", "memory": f"{had.memory_mib}Mi"}
    resources = {"requests": asked, "limits": {"memory": f"{2 * had.memory_mib}Mi"}}
    with Workflow(
        name=name,
        entrypoint=REPRODUCE,
        pod_spec_patch=argo_containers(),
        ttl_strategy=TTLStrategy(seconds_after_completion=_DAY_SECONDS),
        api_version="argoproj.io/v1alpha1",
    ) as workflow:
        duty_container(
            REPRODUCE, image, ["steps.reproduce", version], resources=resources, deadline_seconds=Train.deadline_seconds
        )
    return dict(workflow.to_dict())
