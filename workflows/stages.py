"""One container template per stage, derived from the stage's declaration.  Called by `workflows.graph`.

Parameters, defaults, enums and descriptions come from the stage's `Inputs` and `Outputs`; secrets, token and service
account from what it may do (`contracts.access`); retries from the error table.  Nothing here differs between
environments: sizes and images are workflow parameters that Argo reads from the settings ConfigMap.
"""

from __future__ import annotations

import json
from typing import Any

from hera.workflows import ConfigMapEnvFrom, Container, EmptyDirVolume, Env, Parameter, SecretEnv
from hera.workflows.models import (
    Capabilities,
    ConfigMapKeySelector,
    ExecutorConfig,
    PodSecurityContext,
    SeccompProfile,
    SecurityContext,
    ValueFrom,
    VolumeMount,
)
from pydantic.fields import FieldInfo

from contracts import names
from contracts.access import ACCESS
from contracts.base import Contract
from contracts.pipeline import Pipeline
from contracts.settings import variable
from contracts.stages import Deploy, Need, Preflight, Stage, choices, contract, encode
from workflows.retries import memory, retry_strategy

NO_PRIVILEGES = SecurityContext(
    allow_privilege_escalation=False,
    capabilities=Capabilities(drop=["ALL"]),
    read_only_root_filesystem=True,
    run_as_non_root=True,
    seccomp_profile=SeccompProfile(type="RuntimeDefault"),
)

BRACE = Env(name=variable("brace"), value="{")
"""What `argument` writes a brace with; every container whose arguments hold parameters has it."""

GLOBAL_OUTPUTS: dict[tuple[str, str], str] = {
    ("train", "run_id"): "run-id",
    ("evaluate", "verdict"): "verdict",
    ("evaluate", "report"): "validation-report",
    ("register", "version"): "version",
    ("promote", "decision"): "decision",
    ("promote", "report"): "promotion-report",
    ("deploy", "outcome"): "outcome",
    ("deploy", "url"): "url",
}
"""Outputs that the exit handler reads: (stage, field) -> name of the workflow's output."""


def container(stage: type[Stage], pipeline: Pipeline) -> Container:
    """Return the container template of `stage`; Hera adds it to the workflow template that is open."""
    inputs = [_input(stage.Inputs, field, info) for field, info in stage.Inputs.model_fields.items()]
    return Container(
        name=stage.name,
        annotations={"workflows.argoproj.io/description": stage.duty},
        labels={names.LABEL_STAGE: stage.account},
        image="{{workflow.parameters.steps-image}}",
        command=["python", "-m", "steps"],
        args=[stage.name, *(f"--{name}={argument(name)}" for name in map(names.parameter, stage.Inputs.model_fields))],
        inputs=inputs,
        outputs=[_output(stage, field) for field in stage.Outputs.model_fields],
        env=[
            Env(name=variable("workflow"), value="{{workflow.name}}"),
            Env(name=variable("pipeline"), value=names.PIPELINE_FILE),
            Env(name=variable("outputs"), value=names.OUTPUTS_MOUNT),
            Env(name="TMPDIR", value=names.SCRATCH_MOUNT),
            # the images of this run, which a pipeline with packages of its own has made for it
            *(
                Env(name=variable(f"{what}_image"), value=argument(f"{what}-image", "workflow"))
                for what in ("steps", "serving")
            ),
            BRACE,
            *([Env(name=variable("contract"), value=contract())] if stage is Preflight else ()),
            *_secrets(stage, pipeline),
        ],
        env_from=[ConfigMapEnvFrom(name=names.SETTINGS_CONFIGMAP)],
        volumes=[
            EmptyDirVolume(name="outputs", mount_path=names.OUTPUTS_MOUNT),
            EmptyDirVolume(name="scratch", mount_path=names.SCRATCH_MOUNT),
        ],
        volume_mounts=[
            VolumeMount(name="pipeline", mount_path=names.PIPELINE_MOUNT, read_only=True),
            VolumeMount(name="scratch", mount_path="/tmp", sub_path="tmp"),  # noqa: S108  for libraries that ignore TMPDIR
        ],
        security_context=NO_PRIVILEGES,
        pod_security_context=PodSecurityContext(
            run_as_non_root=True, seccomp_profile=SeccompProfile(type="RuntimeDefault")
        ),
        service_account_name=names.STEP_SERVICE_ACCOUNT.format(stage=stage.account),
        **executor(token=ACCESS[stage.account].token),
        active_deadline_seconds=_deadline_seconds(stage, pipeline),
        retry_strategy=retry_strategy(passing=stage is not Preflight),
        pod_spec_patch=sizes(stage.sized),
    )


def _deadline_seconds(stage: type[Stage], pipeline: Pipeline) -> int:
    """Return how long a stage's pod may take; a gradual release goes on for as long as its steps say."""
    return Stage.deadline_seconds if stage is Deploy and pipeline.release.gradual else stage.deadline_seconds


def argument(name: str, of: str = "inputs") -> str:
    """Return the tag that pastes a parameter into a container's `args` or `env`, so that the process gets it as it is.

    Kubernetes replaces ``$(NAME)`` there by the container's own environment, secrets and all; ``$$`` is a dollar to it.
    Argo reads a template more than once, so a value with a tag in it would be evaluated after its dollars were doubled:
    a brace is therefore left to Kubernetes, which reads last.
    """
    dollars = f"sprig.replace('$', '$$', {of}.parameters['{name}'])"
    return f"{{{{=sprig.replace('{{', '$({BRACE.name})', {dollars})}}}}"


def executor(*, token: bool = False) -> dict[str, Any]:
    """Return who talks to the API server: Argo's executor does, the main container only where it needs the cluster."""
    return {
        "automount_service_account_token": token,
        "executor": ExecutorConfig(service_account_name=names.EXECUTOR_SERVICE_ACCOUNT),
    }


def sizes(stage: str) -> str:
    """Return the podSpecPatch of a container's sizes: the limit of memory grows with the attempt, the request stays.

    As whole numbers only: the patch is JSON, and a text could put more into it than a size.
    """
    base = f"workflow.parameters['{stage}-memory']"
    resources = {
        "requests": {
            "cpu": f"{{{{=asInt(workflow.parameters['{stage}-cpu'])}}}}m",
            "memory": f"{{{{=asInt({base})}}}}Mi",
        },
        "limits": {"memory": f"{{{{={memory(base)}}}}}Mi"},
    }
    return json.dumps({"containers": [{"name": "main", "resources": resources}]}, separators=(",", ":"))


def no_privileges() -> dict[str, Any]:
    """Return `NO_PRIVILEGES` as Kubernetes writes it, for what is not one of Hera's models."""
    return NO_PRIVILEGES.model_dump(by_alias=True, exclude_none=True)


def argo_containers() -> str:
    """Return the podSpecPatch of all pods: no privileges for Argo's own containers, which Pod Security looks at too.

    A controller can be told the same, but it may be another's.
    """
    init, wait = ({"name": name, "securityContext": no_privileges()} for name in ("init", "wait"))
    return json.dumps({"initContainers": [init], "containers": [wait]}, separators=(",", ":"))


def from_settings(name: str, key: str, description: str) -> Parameter:
    """Return a workflow parameter whose value is a key of the settings ConfigMap.

    The ConfigMap must hold the key: Argo ignores a default here.
    """
    selector = ConfigMapKeySelector(name=names.SETTINGS_CONFIGMAP, key=key)
    return Parameter(name=name, value_from=ValueFrom(config_map_key_ref=selector), description=description)


def _input(model: type[Contract], field: str, info: FieldInfo) -> Parameter:
    name, enum = names.parameter(field), list(choices(model, field)) or None
    if info.is_required():  # Hera takes a default of None for the text "null"
        return Parameter(name=name, enum=enum, description=info.description)
    return Parameter(name=name, default=encode(info.default), enum=enum, description=info.description)


def _output(stage: type[Stage], field: str) -> Parameter:
    name = names.parameter(field)
    return Parameter(
        name=name,
        value_from=ValueFrom(path=f"{names.OUTPUTS_MOUNT}/{name}"),
        global_name=GLOBAL_OUTPUTS.get((stage.name, field)),
        description=stage.Outputs.model_fields[field].description,
    )


def _secrets(stage: type[Stage], pipeline: Pipeline) -> list[SecretEnv]:
    wanted = [variable(field) for field in ACCESS[stage.account].secrets]
    if Need.SOURCE in stage.needs:
        wanted += pipeline.source.secrets
    # Optional, because a pod whose secret is missing would wait until its deadline; preflight names what is missing.
    secret = names.STAGE_SECRET.format(stage=stage.account)
    return [SecretEnv(name=name, secret_name=secret, secret_key=name, optional=True) for name in wanted]
