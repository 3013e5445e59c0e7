"""The container that builds a serving image in the cluster, from a context that `build` wrote to the store.

Part of the graph; skipped where `build` names an image that is there: the reference image, or one built before.
Called by `workflows.graph`.
"""

from __future__ import annotations

from hera.workflows import Container, EmptyDirVolume, Env, Parameter, SecretEnv, SecretVolume
from hera.workflows.models import (
    Capabilities,
    ConfigMapKeySelector,
    EnvVar,
    EnvVarSource,
    KeyToPath,
    PodSecurityContext,
    SeccompProfile,
    SecurityContext,
    ValueFrom,
)

from contracts import names
from contracts.access import KANIKO
from contracts.errors import KANIKO_FAILED
from contracts.settings import DEFAULT_REGION, variable
from contracts.stages import Build
from workflows.retries import retry_strategy
from workflows.stages import BRACE, argument, executor, sizes

NOT_UNPACKED = "--ignore-path="
"""Kaniko unpacks the whole base for a COPY.  A model is copied beside it, so these folders, nearly all of it, need not
be written; who runs a program of the base needs them."""
_LOGINS = "/kaniko/.docker"


def kaniko() -> Container:
    """Return the template; Hera adds it to the workflow template that is open."""
    image_file = f"{names.OUTPUTS_MOUNT}/image"
    return Container(
        name=KANIKO,
        annotations={"workflows.argoproj.io/description": "context in the store -> pushed image, named by digest"},
        labels={names.LABEL_STAGE: KANIKO},
        image="{{workflow.parameters.kaniko-image}}",
        command=["/kaniko/executor"],  # written out, or the controller would ask the registry for it
        args=[
            f"--context={argument('context')}",
            f"--destination={argument('destination')}",
            f"--image-name-with-digest-file={image_file}",
            f"--insecure-registry={argument('plain-http')}",
            # Neither --reproducible nor --single-snapshot: the base's layers stay as they are, so that nodes have them
            # already, and only what is copied is looked at.
            "--push-retry=3",
            *(f"{NOT_UNPACKED}{folder}" for folder in ("/opt", "/usr", "/var")),
        ],
        inputs=[
            Parameter(name="context", description="URI of the packed build context."),
            Parameter(name="destination", description="Repository and tag to push to."),
            Parameter(name="plain-http", default="", description="Host of a registry that speaks plain HTTP."),
        ],
        outputs=[Parameter(name="image", value_from=ValueFrom(path=image_file), description="Image by digest.")],
        env=[
            _setting("S3_ENDPOINT", variable("s3_endpoint")),
            Env(name="S3_FORCE_PATH_STYLE", value="true"),
            Env(name="AWS_DEFAULT_REGION", value=DEFAULT_REGION),
            _setting("AWS_REGION", variable("s3_region")),  # where it is there, it goes before
            Env(name="DOCKER_CONFIG", value=_LOGINS),
            BRACE,
            *(
                SecretEnv(
                    name=name,
                    secret_name=names.STAGE_SECRET.format(stage=KANIKO),
                    secret_key=variable(name.lower()),
                    optional=True,
                )
                for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            ),
        ],
        volumes=[
            EmptyDirVolume(name="outputs", mount_path=names.OUTPUTS_MOUNT),
            SecretVolume(
                name="logins",
                mount_path=_LOGINS,
                read_only=True,
                secret_name=names.REGISTRY_SECRET,
                optional=True,
                items=[KeyToPath(key=".dockerconfigjson", path="config.json")],
            ),
        ],
        # Kaniko unpacks images over its own root file system as root: it keeps what file ownership needs, nothing else.
        security_context=SecurityContext(
            allow_privilege_escalation=False,
            capabilities=Capabilities(drop=["ALL"], add=["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]),
            seccomp_profile=SeccompProfile(type="RuntimeDefault"),
        ),
        pod_security_context=PodSecurityContext(seccomp_profile=SeccompProfile(type="RuntimeDefault")),
        service_account_name=names.STEP_SERVICE_ACCOUNT.format(stage=KANIKO),
        **executor(),
        active_deadline_seconds=Build.deadline_seconds,
        retry_strategy=retry_strategy(network=KANIKO_FAILED),
        pod_spec_patch=sizes(Build.name),
    )


def _setting(name: str, key: str) -> EnvVar:
    selector = ConfigMapKeySelector(name=names.SETTINGS_CONFIGMAP, key=key, optional=True)
    return EnvVar(name=name, value_from=EnvVarSource(config_map_key_ref=selector))
