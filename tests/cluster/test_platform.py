"""What `make platform` leaves: components that answer, and each account, user and role with its own rights only."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from contracts import names
from contracts.access import ACCESS, ASK, EXECUTOR_RULES, LOGS, SENSOR_RULES, SERVING, SUBMIT, Rule
from contracts.stages import STAGES, Need, Promote
from tests.cluster.conftest import Cluster, run_as

IN_PODS = list(dict.fromkeys(stage.account for stage in STAGES))

# What every authenticated account may do: ask about itself, and read the API's own description.
EVERYBODY = {
    "selfsubjectreviews.authentication.k8s.io", "selfsubjectaccessreviews.authorization.k8s.io",
    "selfsubjectrulesreviews.authorization.k8s.io",
}  # fmt: skip
# What promote alone may do besides, where kind/approvals.yaml is installed: see whether it is.
SEES_THE_POLICY = {
    (f"{kind}.admissionregistration.k8s.io", "get")
    for kind in ("validatingadmissionpolicies", "validatingadmissionpolicybindings")
}


def test_every_component_is_ready(platform: Cluster) -> None:
    for kind in ("deployment", "statefulset"):
        for found in platform.get(kind, "-l", "app.kubernetes.io/part-of=retrain"):
            assert found["status"].get("readyReplicas") == found["spec"]["replicas"], found["metadata"]["name"]


def test_the_compiled_manifests_are_accepted(platform: Cluster) -> None:
    platform.kubectl("apply", "--dry-run=server", "-f", "argo/adult-income")


def abilities(platform: Cluster, account: str) -> set[tuple[str, str]]:
    """Return (resource, verb) of all that a service account may do in the namespace."""
    listed = platform.kubectl(
        "auth", "can-i", "--list", "--no-headers", f"--as=system:serviceaccount:{platform.namespace}:{account}"
    )
    found = set()
    for line in listed.splitlines():
        resource = line.split(" ", 1)[0]
        if resource and not resource.startswith("[") and resource not in EVERYBODY:
            found |= {(resource, verb) for verb in line.rsplit("[", 1)[1].rstrip("]").split()}
    return found


def granted(rules: tuple[Rule, ...]) -> set[tuple[str, str]]:
    return {
        (f"{resource}.{group}" if group else resource, verb)
        for rule in rules
        for group in rule.groups
        for resource in rule.resources
        for verb in rule.verbs
    }


@pytest.mark.parametrize("stage", [name for name in ACCESS if name != SERVING])
def test_a_service_account_may_do_what_the_table_says_and_nothing_else(stage: str, platform: Cluster) -> None:
    access = ACCESS[stage]
    found = abilities(platform, names.STEP_SERVICE_ACCOUNT.format(stage=stage))

    besides = SEES_THE_POLICY if stage == Promote.name and found >= SEES_THE_POLICY else set()
    assert found - besides == granted((*access.serving, *access.gradual, *access.workflows))


@pytest.mark.parametrize(
    ("account", "rules"),
    [(names.EXECUTOR_SERVICE_ACCOUNT, EXECUTOR_RULES), (names.SENSOR_SERVICE_ACCOUNT, SENSOR_RULES)],
)
def test_those_who_talk_for_argo_may_do_what_the_table_says(
    account: str, rules: tuple[Rule, ...], platform: Cluster
) -> None:
    assert abilities(platform, account) == granted(rules)


_REACH = """
import json, socket

def reaches(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
        return True
    except OSError:
        return False

print(json.dumps({name: reaches(*place) for name, place in json.loads(%r).items()}))
"""


@pytest.fixture(scope="session")
def reached(platform: Cluster) -> dict[str, dict[str, bool]]:
    """What a pod of each stage connects to: stage -> component -> whether."""
    namespace = platform.namespace
    places = {
        "store": (f"minio.{namespace}", 9000),
        "tracking": (f"mlflow.{namespace}", 5000),
        "ledger": (f"postgres.{namespace}", 5432),
        "api-server": ("kubernetes.default", 443),
        "argo-server": ("argo-server.argo", 2746),
    }
    program = _REACH % json.dumps(places)
    stages = [*IN_PODS, "kaniko", SUBMIT]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda stage: json.loads(run_as(platform, stage, program)), stages)
    return dict(zip(stages, answers, strict=True))


@pytest.mark.parametrize("stage", [*IN_PODS, "kaniko", SUBMIT])
def test_a_stage_reaches_what_it_needs_and_nothing_else(stage: str, reached: dict[str, dict[str, bool]]) -> None:
    needs = ACCESS[stage].needs

    assert reached[stage] == {
        "store": Need.STORE in needs,
        "tracking": Need.TRACKING in needs,
        "ledger": Need.LEDGER in needs,
        "api-server": True,  # Argo's executor, in the same pod, reports there; the main container has no token
        "argo-server": False,
    }


_S3 = """
import json
from contracts.settings import Settings
from contracts.errors import ConfigError
from steps.storage import Storage
storage = Storage(Settings())
answers = {}
for path in json.loads(%r):
    uri = f"s3://{path}/access-probe"
    try:
        storage.write(uri, b"x")
        storage.delete(uri)
        answers[path] = True
    except ConfigError:
        answers[path] = False
print(json.dumps(answers))
"""

WRITABLE = sorted({path for access in ACCESS.values() for path in access.write})


@pytest.mark.parametrize("stage", ["ingest", "train", "evaluate", "register", "notify", SUBMIT, LOGS])
def test_a_stages_user_writes_to_its_own_places_only(stage: str, platform: Cluster) -> None:
    answers = json.loads(run_as(platform, stage, _S3 % json.dumps(WRITABLE), secrets=True))

    assert answers == {path: path in ACCESS[stage].write for path in WRITABLE}


_REGISTRY = """
import json, os
from contracts.settings import Settings
from steps.mlflow_connection import mlflow_client
from mlflow.exceptions import MlflowException
client = mlflow_client(Settings())
answers = {}
try:
    client.set_registered_model_tag("%s", "probe", "x")
    client.delete_registered_model_tag("%s", "probe")
    answers["writes"] = True
except MlflowException as error:
    answers["writes"] = error.error_code
try:
    client.create_registered_model("access-probe")
    client.delete_registered_model("access-probe")
    answers["creates"] = True
except MlflowException as error:
    answers["creates"] = error.error_code
print(json.dumps(answers))
"""


@pytest.mark.parametrize("stage", ["train", "evaluate", "register", "promote", "deploy"])
def test_only_register_promote_and_deploy_write_to_the_registry(stage: str, pipeline: str, platform: Cluster) -> None:
    answers = json.loads(run_as(platform, stage, _REGISTRY % (pipeline, pipeline), secrets=True))

    assert answers == {
        "writes": True if stage in ("register", "promote", "deploy") else "PERMISSION_DENIED",
        "creates": True if stage in ("register", "promote", "deploy") else "PERMISSION_DENIED",
    }


_LEDGER = """
import os
import psycopg
url = os.environ["RETRAIN_LEDGER"]
answers = []
for statement in ("SELECT count(*) FROM ledger", "DELETE FROM ledger", "TRUNCATE ledger", "CREATE TABLE mine (x int)"):
    try:
        with psycopg.connect(url) as connection:
            connection.execute(statement)
            connection.rollback()
        answers.append("done")
    except psycopg.Error as error:
        answers.append(error.sqlstate)
print(" ".join(answers))
"""


@pytest.mark.parametrize("stage", [ASK, "register", "deploy"])
def test_nobody_changes_the_ledgers_past(stage: str, platform: Cluster) -> None:
    assert run_as(platform, stage, _LEDGER, secrets=True).split() == ["done", "42501", "42501", "42501"]


def test_mlflow_wants_a_password_and_one_of_its_names(platform: Cluster) -> None:
    program = """
import httpx, os
url = os.environ["RETRAIN_TRACKING_URI"]
ask = lambda **more: httpx.post(f"{url}/api/2.0/mlflow/experiments/search", json={"max_results": 1}, **more).status_code
user = (os.environ["RETRAIN_MLFLOW_USERNAME"], os.environ["RETRAIN_MLFLOW_PASSWORD"])
print(ask(), ask(auth=(user[0], "wrong")), ask(auth=user), ask(auth=user, headers={"Host": "elsewhere.example"}))
"""
    assert run_as(platform, "train", program, secrets=True).split() == ["401", "401", "200", "403"]


def test_the_controller_is_not_ours_and_was_left_alone(platform: Cluster) -> None:
    rendered: subprocess.CompletedProcess[str] = platform.run(
        "helm", "get", "manifest", "platform", "-n", platform.namespace
    )

    assert rendered.returncode == 0
    assert "workflow-controller" not in rendered.stdout


def test_doctor_tells_a_controller_that_is_not_ours(platform: Cluster) -> None:
    done = platform.run(sys.executable, "-m", "workflows.cli.main", "doctor", "-n", platform.namespace, "--json")
    lines = {line["what"]: line for line in json.loads(done.stdout)}

    assert lines["platform"]["state"] == "ok"
    assert "not ours: its settings are left alone" in lines["controller"]["found"]
