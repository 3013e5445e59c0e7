"""The container of a duty that is no stage: `reproduce`, `retention`.  Its rights are those of `contracts.access`.

Unlike a stage it takes no pipeline file, and all of its Secret.  Called by the modules that make such a Workflow.
"""

from __future__ import annotations

import json
from typing import Any

from hera.workflows import ConfigMapEnvFrom, Container, EmptyDirVolume, Env, Parameter, SecretEnvFrom
from hera.workflows.models import PodSecurityContext, SeccompProfile, ValueFrom, VolumeMount

from contracts import names
from contracts.settings import variable
from workflows.retries import retry_strategy
from workflows.stages import NO_PRIVILEGES, executor

ANSWER = "answer"
"""The output parameter that holds what the process answered, JSON."""


def duty_container(
    duty: str, image: str, command: list[str], *, resources: dict[str, Any], deadline_seconds: int
) -> Container:
    """Return the container template of a duty; Hera adds it to the workflow that is open.

    Parameters
    ----------
    command
        A Python module and its arguments.  It leaves its answer in the folder of outputs.
    resources
        Requests and limits of its container.
    """
    return Container(
        name=duty,
        labels={names.LABEL_STAGE: duty},
        image=image,
        command=["python", "-m", command[0]],
        args=command[1:] or None,
        outputs=[Parameter(name=ANSWER, value_from=ValueFrom(path=f"{names.OUTPUTS_MOUNT}/{ANSWER}"))],
        env=[
            Env(name=variable("workflow"), value="{{workflow.name}}"),
            Env(name=variable("outputs"), value=names.OUTPUTS_MOUNT),
            Env(name="TMPDIR", value=names.SCRATCH_MOUNT),
        ],
        env_from=[
            ConfigMapEnvFrom(name=names.SETTINGS_CONFIGMAP),
            SecretEnvFrom(name=names.STAGE_SECRET.format(stage=duty), optional=True),  # or a workload identity
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
        service_account_name=names.STEP_SERVICE_ACCOUNT.format(stage=duty),
        **executor(),
        active_deadline_seconds=deadline_seconds,
        retry_strategy=retry_strategy(),
        pod_spec_patch=json.dumps({"containers": [{"name": "main", "resources": resources}]}),
    )
