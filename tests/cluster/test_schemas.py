"""What is rendered and compiled fits the API's own description: kubeconform, with schemas taken from the cluster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import ROOT, Cluster

pytestmark = pytest.mark.skipif(shutil.which("kubeconform") is None, reason="kubeconform is not installed")

IMAGES = [
    part for name in ("steps", "serving", "mlflow") for part in ("--set", f"images.{name}=registry/{name}@sha256:0")
]
KINDS = {
    "ConfigMap", "CronJob", "CronWorkflow", "Deployment", "EventBus", "EventSource", "Ingress", "Job", "LimitRange",
    "NetworkPolicy", "ResourceQuota", "Role", "RoleBinding", "Secret", "Sensor", "Service", "ServiceAccount",
    "StatefulSet", "WorkflowTemplate",
}  # fmt: skip
TARGETS = {
    "local": ["-f", "kind/values-local.yaml", *IMAGES, "--set", "argo.enabled=true"],
    "cloud": ["-f", "kind/values-cloud.yaml"],
}


def strict(schema: Any) -> Any:
    """Refuse fields that an object does not have."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return {"type": ["string", "integer"]}
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def with_references(name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the definitions that one of them needs, itself among them."""
    found: dict[str, Any] = {}
    wanted = [name]
    while wanted:
        if (one := wanted.pop()) not in found:
            found[one] = definitions[one]
            wanted += re.findall(r'"#/definitions/([^"]+)"', json.dumps(definitions[one]))
    return found


@pytest.fixture(scope="session")
def schemas(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one JSON schema a kind, from the API server's OpenAPI."""
    folder = tmp_path_factory.mktemp("schemas")
    definitions = strict(json.loads(cluster.kubectl("get", "--raw", "/openapi/v2"))["definitions"])
    # a quantity may be written as a number
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = {"type": ["string", "number"]}
    for name, definition in definitions.items():
        for kind in definition.get("x-kubernetes-group-version-kind", ()) if "properties" in definition else ():
            if kind["kind"] in KINDS:
                parts = [kind["kind"], kind["group"].split(".")[0], kind["version"]]
                file = "-".join(part for part in parts if part).lower() + ".json"
                schema = {"$ref": f"#/definitions/{name}", "definitions": with_references(name, definitions)}
                (folder / file).write_text(json.dumps(schema))
    return folder


def without_nulls(value: Any) -> Any:
    """Leave out what is null: the API server drops it, and with it what it had filled in."""
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value


def conform(text: str, schemas: Path) -> subprocess.CompletedProcess[str]:
    text = yaml.safe_dump_all(without_nulls(list(yaml.safe_load_all(text))))
    location = f"{schemas}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    return subprocess.run(
        ["kubeconform", "-summary", "-schema-location", location, "-"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_a_render_fits_the_api(target: str, schemas: Path, cluster: Cluster) -> None:
    rendered = cluster.run(
        "helm", "template", "platform", "kind/platform", "-n", "mlops", "--kube-version", "1.34.0", *TARGETS[target]
    )
    assert rendered.returncode == 0, rendered.stderr
    done = conform(rendered.stdout, schemas)

    assert done.returncode == 0, done.stdout
    assert "Skipped: 0" in done.stdout


def test_the_compiled_manifests_fit_the_api(schemas: Path) -> None:
    text = "---\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "argo").rglob("*.yaml")))
    done = conform(text, schemas)

    assert done.returncode == 0, done.stdout


def test_a_field_that_does_not_exist_is_found(schemas: Path) -> None:
    wrong = "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {portz: [{port: 1}]}\n"

    assert conform(wrong, schemas).returncode != 0
