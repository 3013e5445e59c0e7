"""The Workflow that builds a version again, on the image of the steps that its run recorded.

Its rights are those of the duty `reproduce`: it reads what was kept, and writes nothing.  Submitted by `retrain
reproduce` where a cluster is meant; no part of a pipeline's graph.
"""

from __future__ import annotations

import json
from typing import Any

from hera.workflows import ConfigMapEnvFrom, Container, EmptyDirVolume, Env, Parameter, SecretEnvFrom, Workflow
from hera.workflows.models import PodSecurityContext, SeccompProfile, TTLStrategy, ValueFrom, VolumeMount

from contracts import names
from contracts.access import REPRODUCE
from contracts.settings import variable
from contracts.stages import Train
from workflows.retries import retry_strategy
from workflows.stages import NO_PRIVILEGES, argo_containers, executor

ANSWER = "answer"
_DAY_SECONDS = 86400


def reproduction(name: str, image: str, version: str, *, memory_mib: int, cpu_millicores: int) -> dict[str, Any]:
    """Return the Workflow.

    Parameters
    ----------
    image
        Of the steps, by digest: code and libraries of the training.
    version
        ``MODEL@VERSION``.
    memory_mib, cpu_millicores
        What the training had; it trains again, beside the process that compares.
    """
    asked = {"cpu": f"{cpu_millicores}m", "memory": f"{memory_mib}Mi"}
    resources = {"requests": asked, "limits": {"memory": f"{2 * memory_mib}Mi"}}
    with Workflow(
        name=name,
        entrypoint=REPRODUCE,
        pod_spec_patch=argo_containers(),
        ttl_strategy=TTLStrategy(seconds_after_completion=_DAY_SECONDS),
        api_version="argoproj.io/v1alpha1",
    ) as workflow:
        Container(
            name=REPRODUCE,
            labels={names.LABEL_STAGE: REPRODUCE},
            image=image,
            command=["python", "-m", "steps.reproduce"],
            args=[version],
            outputs=[Parameter(name=ANSWER, value_from=ValueFrom(path=f"{names.OUTPUTS_MOUNT}/{ANSWER}"))],
            env=[
                Env(name=variable("outputs"), value=names.OUTPUTS_MOUNT),
                Env(name="TMPDIR", value=names.SCRATCH_MOUNT),
            ],
            env_from=[
                ConfigMapEnvFrom(name=names.SETTINGS_CONFIGMAP),
                SecretEnvFrom(name=names.STAGE_SECRET.format(stage=REPRODUCE)),
            ],
            volumes=[
                EmptyDirVolume(name="outputs", mount_path=names.OUTPUTS_MOUNT),
                EmptyDirVolume(name="scratch", mount_path=names.SCRATCH_MOUNT),
            ],
            volume_mounts=[VolumeMount(name="scratch", mount_path="/tmp", sub_path="tmp")],  # noqa: S108  in the pod
            security_context=NO_PRIVILEGES,
            pod_security_context=PodSecurityContext(
                run_as_non_root=True, seccomp_profile=SeccompProfile(type="RuntimeDefault")
            ),
            service_account_name=names.STEP_SERVICE_ACCOUNT.format(stage=REPRODUCE),
            **executor(),
            active_deadline_seconds=Train.deadline_seconds,
            retry_strategy=retry_strategy(),
            pod_spec_patch=json.dumps({"containers": [{"name": "main", "resources": resources}]}),
        )
    return dict(workflow.to_dict())
