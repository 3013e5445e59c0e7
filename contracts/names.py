"""Every name that two sides must agree on stands here, once."""

from __future__ import annotations

API_VERSION = "retrain/v1"

# MLflow
ALIAS_STAGING = "staging"
ALIAS_PRODUCTION = "production"
TAG_PREFIX = "retrain."
REFERENCES = (
    "artifact_sha256", "candidate", "code", "code_commit", "code_version", "dataset", "dataset_sha256", "lock_sha256",
    "packages_sha256", "pipeline", "pipeline_sha256", "rows", "schema_sha256", "serving_image", "skipped", "split",
    "split_sha256", "steps_image", "transform_sha256", "user_code", "user_commit", "validation", "warnings", "workflow",
)  # fmt: skip
"""Tags of a run that say what its model was made of and by; no other goes on to the version and into the ledger, since
whoever may write to a run's experiment may tag it.
"""

# Kubernetes: objects that the compiled manifests refer to
SETTINGS_CONFIGMAP = "retrain-settings"
STAGE_SECRET = "retrain-{stage}-secrets"  # noqa: S105  a name
"""One Secret a stage, so that none can read what another was given."""
STEPS_IMAGE = "retrain-steps"
"""Stands for the steps image in settings; the desk maps it to the Python that runs the runner."""
STEP_SERVICE_ACCOUNT = "retrain-{stage}"
EXECUTOR_SERVICE_ACCOUNT = "retrain-executor"
"""Argo's own containers use it; a step's main container holds no token unless it needs the cluster."""
SENSOR_SERVICE_ACCOUNT = "retrain-sensor"
EVENT_BUS = "retrain"
WEBHOOK_SECRET = "retrain-webhook"  # noqa: S105  a name
"""Its key `token` is what callers of a webhook show."""
REGISTRY_SECRET = "retrain-registry"  # noqa: S105  a name
"""Of type kubernetes.io/dockerconfigjson: how Kaniko logs in where it pulls and pushes; there need be none."""
RETRAIN, RELEASE = "retrain", "release"
"""The templates by which one gets in: the whole way, and a version that is there already."""
LABEL_PIPELINE = "retrain/pipeline"
ANNOTATION_TEMPLATE = "retrain/template"
"""On a submitted run: hash of the template that the controller read."""
LABEL_STAGE = "retrain/stage"
"""On every pod of a stage; network policies select by it."""
LABEL_MANAGED_BY, MANAGED_BY = "app.kubernetes.io/managed-by", "retrain"
"""On every object that deploy makes."""

# in a server's environment
MODEL_KEYS = "RETRAIN_MODEL_KEYS"
"""The setting `model_keys`, handed on by who starts it."""

# in the store
PREDICTIONS = "predictions"
"""Folder of prediction records, one a pipeline in it."""

# inside a step's container
PIPELINE_MOUNT = "/etc/retrain/pipeline"
PIPELINE_FILE = f"{PIPELINE_MOUNT}/pipeline.yaml"
SCRATCH_MOUNT = "/retrain/scratch"
OUTPUTS_MOUNT = "/retrain/outputs"
ERROR_FILE = f"{OUTPUTS_MOUNT}/error.json"


def parameter(field: str) -> str:
    """Return the Argo parameter name of a model field: ``run_id`` -> ``run-id``."""
    return field.replace("_", "-")


def pipeline_configmap(name: str, sha256: str) -> str:
    """Return the name of the immutable ConfigMap that holds a pipeline file."""
    return f"retrain-{name}-{sha256[:12]}"


def tag(name: str) -> str:
    """Return the MLflow tag key of one of our references: ``dataset_sha256`` -> ``retrain.dataset_sha256``."""
    return TAG_PREFIX + name


def page_name(version: int) -> str:
    """Return the artifact of a version's MLflow run that is the page on which a person decides."""
    return f"gates/review-{version}.html"
