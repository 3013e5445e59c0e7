"""What differs between environments: endpoints, places, sizes.  Read from ``RETRAIN_*`` variables, never from code.

On a cluster the ConfigMap `retrain-settings` and one Secret a stage provide them; at the desk the local runner renders
the same objects from `desk()` and from the 0600 file ``secrets.env`` in its home.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, Json, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from contracts.errors import ConfigError, Finding
from contracts.names import STEPS_IMAGE
from contracts.stages import SIZED

PREFIX = "RETRAIN_"
DEFAULT_REGION = "us-east-1"
"""MinIO asks for one, and takes this."""


class Secret:
    """Marks a setting whose value comes from the Secret, never from the ConfigMap."""


class Settings(BaseSettings):
    """One field, one variable: ``store`` is ``RETRAIN_STORE``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    environment: str = Field("desk", description="Which gate policy of the pipeline file applies.")
    store: str = Field(description="URI of datasets, splits, reports, code: file:///... or s3://bucket/prefix.")
    source_base: str = Field("", description="Folder that relative source paths start from; empty: they are refused.")
    tracking_uri: str = Field(description="MLflow tracking and registry URI.")
    artifacts: str = Field("", description="MLflow artifact location for new experiments; empty: the server's own.")
    s3_endpoint: str = Field(
        "",
        description="Endpoint of an S3-compatible store such as MinIO: http(s)://...; empty: AWS.",
        pattern="^(https?://[^/]+.*)?$",
    )
    s3_region: str = Field("", description="Region of the buckets; empty: AWS_DEFAULT_REGION, else us-east-1.")
    deploy_target: str = Field(
        "process",
        description="process (a local server), kubernetes, or export (files that Argo CD or Flux applies).",
        pattern="^(process|kubernetes|export)$",
    )
    build: str = Field(
        "reference",
        description="reference (one serving image) or kaniko (an image a version).",
        pattern="^(reference|kaniko)$",
    )
    server_home: str = Field("", description="Folder where the local server's holder keeps its state.")
    server_host: str = Field("127.0.0.1", description="Address the local server binds.")
    server_port: int = Field(8080, ge=0, lt=65536, description="Its port; kept over releases. 0: any free one.")
    threads: int = Field(0, ge=0, description="Threads a training may use; 0: all.")
    min_free_mib: int = Field(512, ge=0, description="Free disk that preflight asks for.")
    timeout_seconds: int = Field(30, ge=1, description="How long a request to MLflow or S3 may wait for an answer.")
    allow_input_example: bool = Field(False, description="Log real rows as MLflow input example; else synthetic ones.")
    code_commit: str = Field("", description="Commit of retrain in the image; empty: asked of git.")
    steps_image: str = Field("", description="Image of the steps, by digest; at the desk no image.")
    packages: str = Field("", description="Folder of this pipeline's own packages, with their packages.lock.")
    image_registry: str = Field("", description="Where built serving images are pushed; for build: kaniko.")
    insecure_registry: bool = Field(False, description="That registry speaks plain HTTP.")
    serving_image: str = Field("", description="Reference image, by digest: it serves, or built ones start from it.")
    serving_namespace: str = Field("", description="Where versions are served; empty: the namespace of the step.")
    pull_secrets: Json[list[dict[str, str]]] = Field(
        [], validate_default=False, description='Secrets there that servers\' images are pulled by: [{"name": "..."}].'
    )
    serving_cpu: int = Field(250, ge=10, description="Millicores that a server asks for; what its scaling refers to.")
    serving_memory: int = Field(512, ge=64, description="MiB that a server asks for, and may not exceed.")
    serving_min_replicas: int = Field(2, ge=1, description="Servers there are at least.")
    serving_max_replicas: int = Field(6, ge=1, description="Servers there are at most.")
    serving_cpu_percent: int = Field(70, ge=1, description="Use of its CPU above which another server is added.")
    network_policies: bool = Field(True, description="A NetworkPolicy confines the servers.")
    store_egress: Json[list[dict[str, Any]]] = Field(
        [],
        validate_default=False,
        description="Its rules by which they reach the store, as JSON; none: any address, at the store's port.",
    )
    prometheus_url: str = Field(
        "",
        description="Prometheus that reads the servers, as Argo Rollouts reaches it; for canary and blue-green.",
        pattern="^(https?://[^/]+.*)?$",
    )
    export_uri: str = Field("", description="Where deploy_target export writes; empty: the store's folder `export`.")
    kaniko_image: str = Field("gcr.io/kaniko-project/executor:v1.24.0", description="Builds images in the cluster.")
    mlflow_url: str = Field("", description="Where people open MLflow's page; used in links.")
    audit_heads: str = Field(
        "", description="Where signed heads of the ledger are kept; empty: beside the desk's home."
    )
    model_keys: str = Field(
        "",
        description="Public keys; one of them must have signed a model that is to serve. Each the body of a PEM.",
    )
    retention_served_years: int = Field(10, ge=1, description="What a version needs that served is kept so long after.")
    retention_unserved_days: int = Field(90, ge=1, description="Everything else, after it was last written or used.")
    retention_records_days: int = Field(180, ge=1, description="Prediction records.")
    retention_archive: str = Field(
        "",
        description="URI of a folder where what is removed is copied first: s3://bucket/prefix; empty: it is deleted.",
        pattern="^((s3|file)://.+)?$",
    )
    retention_delete_images: bool = Field(
        False, description="Ask the registry to delete the images of removed versions; else they are named only."
    )

    @field_validator("tracking_uri")
    @classmethod
    def _no_credentials(cls, value: str) -> str:
        # this setting lies in a ConfigMap, in logs and links
        if urlsplit(value).password:
            raise ValueError(
                "holds a password; use RETRAIN_MLFLOW_USERNAME and RETRAIN_MLFLOW_PASSWORD, in the secrets"
            )
        return value

    audit_key: Annotated[SecretStr, Secret()] = Field(SecretStr(""), description="Ed25519 key in PEM; signs heads.")
    ledger: Annotated[SecretStr, Secret()] = Field(SecretStr(""), description="SQLAlchemy URL of the ledger.")
    notify_urls: Annotated[SecretStr, Secret()] = Field(SecretStr(""), description="Apprise URLs, separated by spaces.")
    aws_access_key_id: Annotated[SecretStr, Secret()] = Field(SecretStr(""), description="S3 access key.")
    aws_secret_access_key: Annotated[SecretStr, Secret()] = Field(SecretStr(""), description="S3 secret key.")
    mlflow_password: Annotated[SecretStr, Secret()] = Field(SecretStr(""), description="MLflow basic-auth password.")
    mlflow_username: Annotated[SecretStr, Secret()] = Field(SecretStr(""), description="MLflow basic-auth user.")
    signing_key: Annotated[SecretStr, Secret()] = Field(
        SecretStr(""), description="Elliptic-curve private key, PEM, that models are signed by when registered."
    )


def variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + field.upper()


def size(stage: str, what: str) -> str:
    """Return the variable that holds the `memory` (MiB) or `cpu` (millicores) of a stage's container."""
    return variable(f"{stage}_{what}")


def sizes() -> dict[str, str]:
    """Return the sizes of all stages as variables, as the stages declare them; an environment may say otherwise."""
    memory = {size(stage.name, "memory"): str(stage.memory_mib) for stage in SIZED}
    return memory | {size(stage.name, "cpu"): str(stage.cpu_millicores) for stage in SIZED}


def secret_fields() -> tuple[str, ...]:
    """Return the settings that are secrets."""
    return tuple(
        name for name, info in Settings.model_fields.items() if any(isinstance(m, Secret) for m in info.metadata)
    )


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises
    ------
    ConfigError
        With one finding a variable that is missing or wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        findings = [
            Finding(where=variable(str(e["loc"][0])), what=e["msg"], remedy="set it in the settings")
            for e in error.errors()
        ]
        raise ConfigError("settings are missing or wrong", findings=findings) from None


def find_home(start: Path | None = None) -> Path:
    """Return the desk's home: ``RETRAIN_HOME``, else the nearest ``.retrain`` upward, else ``.retrain`` here."""
    if value := os.environ.get("RETRAIN_HOME"):
        return Path(value).expanduser().resolve()
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / ".retrain").is_dir():
            return folder / ".retrain"
    return here / ".retrain"


def desk(home: Path, source_base: Path) -> dict[str, str]:
    """Return the settings of the desk as variables: everything in one folder, MLflow and the ledger on SQLite."""
    return {
        variable("environment"): "desk",
        variable("store"): (home / "store").as_uri(),
        variable("source_base"): str(source_base),
        variable("tracking_uri"): f"sqlite:///{home / 'mlflow.db'}",
        variable("artifacts"): (home / "artifacts").as_uri(),
        variable("ledger"): f"sqlite:///{home / 'ledger.db'}",
        variable("deploy_target"): "process",
        variable("build"): "reference",
        variable("server_home"): str(home / "server"),
        variable("steps_image"): STEPS_IMAGE,
        variable("serving_image"): "",
        variable("packages"): str(home / "packages" / "none"),
        variable("kaniko_image"): "",
        **sizes(),
    }
