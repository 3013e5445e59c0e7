"""The platform's chart: what it renders for a laptop and for a company, and that it says what the contracts say."""

from __future__ import annotations

import base64
import json
import os
import runpy
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from contracts import confinement, names
from contracts.access import ACCESS, ARCHIVE, AUDIT, HEADS, LOGS, RETENTION, SERVING, SHADOW
from contracts.admission import in_force
from contracts.approvals import policy_objects, vouches
from contracts.settings import Settings, secret_fields, sizes, variable
from contracts.stages import Deploy, Register
from steps.signing import signing_key
from tests.loopback import Handler, serving
from workflows.platform import APPROVALS, CONFINEMENT, FILE, approvals_policy, chart_contracts, deploy_policy

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "kind" / "platform"
IMAGES = [f"images.{name}=registry/{name}@sha256:{'0' * 64}" for name in ("steps", "serving", "mlflow")]
TARGETS = {
    "local": [*(["-f", str(ROOT / "kind" / "values-local.yaml")]), *(part for i in IMAGES for part in ("--set", i))],
    "cloud": ["-f", str(ROOT / "kind" / "values-cloud.yaml")],
}
MODEL_KEYS = variable("model_keys")

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")


def render(*options: str, kubeconfig: Path | None = None, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
    """Render as a first install; with a cluster's `kubeconfig` as an upgrade of what is there."""
    command = ["helm", "template", "platform", str(chart), "-n", "mlops", "--kube-version", "1.34.0", *options]
    known = {} if kubeconfig is None else {"KUBECONFIG": str(kubeconfig)}
    command += ["--dry-run=server"] if known else []
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | known)


def masked(text: str) -> str:
    """Return a render without what differs each time: new passwords and keys."""
    documents = [d for d in yaml.safe_load_all(text) if d]
    for document in documents:
        if document["kind"] == "Secret" and "data" in document:
            document["data"] = dict.fromkeys(document["data"], "made at install")
        if MODEL_KEYS in document.get("data", {}):
            document["data"][MODEL_KEYS] = "made at install"
        annotations = document.get("spec", {}).get("template", {}).get("metadata", {}).get("annotations", {})
        if "checksum/secret" in annotations:
            annotations["checksum/secret"] = "of what is made at install"
    return yaml.safe_dump_all(documents, sort_keys=True, width=120)


@pytest.fixture(scope="module", params=list(TARGETS))
def rendered(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    done = render(*TARGETS[request.param])
    assert done.returncode == 0, done.stderr
    return request.param, [d for d in yaml.safe_load_all(done.stdout) if d]


def kinds(documents: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def test_the_chart_takes_names_and_rights_from_the_contracts() -> None:
    assert FILE.read_text(encoding="utf-8") == chart_contracts(), "run `make compile`"


def test_the_policy_of_approvals_is_the_one_that_promote_looks_for() -> None:
    assert APPROVALS.read_text(encoding="utf-8") == approvals_policy(), "run `make compile`"
    written = [d for d in yaml.safe_load_all(APPROVALS.read_text(encoding="utf-8")) if d]
    policy, binding = (
        {**d, "metadata": {**d["metadata"], "creationTimestamp": "2026-01-01T00:00:00Z"}} for d in written[:2]
    )
    assert vouches(policy, binding, "mlops", made="2026-01-01T00:00:01Z")
    promote = next(d for d in written if d["kind"] == "ClusterRoleBinding")["subjects"][0]["name"]
    assert promote == names.STEP_SERVICE_ACCOUNT.format(stage="promote")


def test_the_policy_on_deploy_is_the_one_that_doctor_looks_for() -> None:
    assert CONFINEMENT.read_text(encoding="utf-8") == deploy_policy(), "run `make compile`"
    policy, binding = list(yaml.safe_load_all(CONFINEMENT.read_text(encoding="utf-8")))[:2]
    assert in_force(policy, binding, confinement.SPEC, "mlops")
    asked = {
        (g, r)
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]
        for g in rule["apiGroups"]
        for r in rule["resources"]
    }
    access = ACCESS[Deploy.name]
    for rule in (*access.serving, *access.gradual):
        if set(rule.verbs) - {"get", "list"}:
            assert asked >= {(group, resource) for group in rule.groups for resource in rule.resources}


def test_approvals_of_a_second_namespace_leave_those_of_the_first_alone() -> None:
    def clusterwide(namespace: str) -> dict[tuple[str, str], Any]:
        return {
            (each["kind"], each["metadata"]["name"]): each
            for each in policy_objects(namespace)
            if "namespace" not in each["metadata"]
        }

    one, other = clusterwide("one"), clusterwide("other")
    assert len(one) == 4
    assert {key: one[key] for key in one.keys() & other.keys()} == {
        key: other[key] for key in other if key[0] == "ValidatingAdmissionPolicy"
    }


@needs_helm
@pytest.mark.parametrize("target", TARGETS)
def test_a_render_is_the_committed_one(target: str) -> None:
    done = render(*TARGETS[target])
    assert done.returncode == 0, done.stderr
    golden = Path(__file__).with_name(f"chart-{target}.yaml")
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(masked(done.stdout), encoding="utf-8")

    assert masked(done.stdout) == golden.read_text(encoding="utf-8"), "UPDATE_GOLDEN=1 writes it anew"


@needs_helm
def test_the_chart_passes_lint() -> None:
    for options in TARGETS.values():
        done = subprocess.run(["helm", "lint", str(CHART), *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@needs_helm
@pytest.mark.parametrize(
    "wrong",
    [
        "images.stepz=x",
        "minio.endpoint=minio",
        "settings.STORE=s3://x",
        "buckets.data=Data",
        "secrets.create=perhaps",
        "audit.retention.mode=SOFT",
        "audit.schedule=hourly",
        "networkPolicies.apiServer.cidrs=[]",
        "networkPolicies.apiServer.ports=[]",
        "postgresql.sslmode=verify-full",
    ],
)
def test_a_value_that_does_not_exist_or_fit_is_refused(wrong: str) -> None:
    done = render(*TARGETS["local"], "--set-json" if wrong.endswith("[]") else "--set", wrong)

    assert done.returncode != 0
    assert wrong.split("=")[0].split(".")[-1] in done.stderr


@needs_helm
def test_an_install_without_images_says_what_to_do() -> None:
    assert "make push" in render("-f", str(ROOT / "kind" / "values-local.yaml")).stderr


@needs_helm
def test_every_pod_of_the_platform_is_restricted(rendered: tuple[str, list[dict[str, Any]]]) -> None:
    pods = [
        (d["metadata"]["name"], d["spec"].get("jobTemplate", d)["spec"]["template"]["spec"])
        for d in rendered[1]
        if d["kind"] in ("Deployment", "StatefulSet", "Job", "CronJob")
    ]
    assert pods
    for name, pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["automountServiceAccountToken"] is False, name
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name


@needs_helm
def test_the_settings_are_known_and_hold_no_secret(rendered: tuple[str, list[dict[str, Any]]]) -> None:
    settings = kinds(rendered[1], "ConfigMap")[names.SETTINGS_CONFIGMAP]
    secret = {variable(field) for field in secret_fields()}

    assert settings["metadata"]["labels"]["workflows.argoproj.io/configmap-type"] == "Parameter"
    assert set(settings["data"]) <= {variable(field) for field in Settings.model_fields} - secret | set(sizes())
    assert set(sizes()) <= set(settings["data"])


@needs_helm
def test_register_alone_has_the_key_that_models_are_signed_by_and_the_settings_have_its_public_half() -> None:
    documents = [d for d in yaml.safe_load_all(render(*TARGETS["local"]).stdout) if d]
    settings = kinds(documents, "ConfigMap")[names.SETTINGS_CONFIGMAP]["data"]
    holders = {
        name: base64.b64decode(secret["data"][variable("signing_key")]).decode()
        for name, secret in kinds(documents, "Secret").items()
        if variable("signing_key") in secret.get("data", {})
    }

    assert list(holders) == [names.STAGE_SECRET.format(stage=Register.name)]
    known = {"store": "s3://s", "tracking_uri": "http://m", "model_keys": settings[MODEL_KEYS]}
    for pem in holders.values():
        key = signing_key(Settings(**known, signing_key=pem))  # it must be among those that are trusted
        assert key.curve.name == "secp256r1"


class Installed(Handler):
    """An API server that knows the Secrets of an earlier install."""

    secrets: ClassVar[dict[str, dict[str, Any]]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        kinds_of_v1 = [{"name": "secrets", "namespaced": True, "kind": "Secret", "verbs": ["get"]}]
        known: dict[str, Any] = {
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": kinds_of_v1},
        }
        known |= {
            f"/api/v1/namespaces/{secret['metadata']['namespace']}/secrets/{name}": secret
            for name, secret in self.secrets.items()
        }
        missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        answer = json.dumps(known.get(path, missing)).encode()
        self.send_response(200 if path in known else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


Upgrade = Callable[..., tuple[dict[str, Any], str]]
"""Options -> the Secrets and the trusted keys that an upgrade renders."""


@pytest.fixture
def upgraded(tmp_path: Path) -> Iterator[Upgrade]:
    kubeconfig = tmp_path / "kubeconfig"
    with serving(Installed) as port:
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        there = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        kubeconfig.write_text(yaml.safe_dump(there | {"users": [{"name": "u", "user": {}}], "current-context": "c"}))

        def upgrade(*options: str) -> tuple[dict[str, Any], str]:
            done = render(*TARGETS["local"], "--set", "namespaces.workflows=flows", *options, kubeconfig=kubeconfig)
            assert done.returncode == 0, done.stderr
            documents = [d for d in yaml.safe_load_all(done.stdout) if d]
            settings = kinds(documents, "ConfigMap")[names.SETTINGS_CONFIGMAP]["data"]
            return kinds(documents, "Secret"), settings[MODEL_KEYS]

        Installed.secrets = {}
        yield upgrade


@needs_helm
def test_an_upgrade_brings_the_key_where_there_was_none_and_keeps_it_and_all_passwords(upgraded: Upgrade) -> None:
    register = names.STAGE_SECRET.format(stage=Register.name)
    Installed.secrets, first = upgraded()
    assert upgraded() == (Installed.secrets, first)
    lost = Installed.secrets[register]["data"].pop(variable("signing_key"))
    later, second = upgraded()
    key = later[register]["data"].pop(variable("signing_key"))
    assert (key != lost, second != first) == (True, True)
    assert later == Installed.secrets, "nothing else changes"
    later[register]["data"][variable("signing_key")] = key
    Installed.secrets = later
    assert upgraded() == (later, second)


@needs_helm
def test_an_upgrade_that_switches_retention_on_adds_its_passwords_and_keeps_all_others(upgraded: Upgrade) -> None:
    own = {"s3-retention", "mlflow-retention"}
    Installed.secrets, key = upgraded()
    on, as_before = upgraded("--set", "retention.enabled=true")
    assert as_before == key
    assert on.pop(names.STAGE_SECRET.format(stage=RETENTION))["metadata"]["namespace"] == "flows"
    passwords = on["platform-passwords"]["data"]
    assert {name for name in own if passwords.pop(name)} == own
    assert on == Installed.secrets


@needs_helm
def test_a_stage_has_its_own_account_secret_and_policy(rendered: tuple[str, list[dict[str, Any]]]) -> None:
    target, documents = rendered
    accounts, policies = kinds(documents, "ServiceAccount"), kinds(documents, "NetworkPolicy")
    secrets = kinds(documents, "Secret")

    for stage in ACCESS if target == "cloud" else ACCESS.keys() - {RETENTION}:
        name = names.STEP_SERVICE_ACCOUNT.format(stage=stage)
        if stage != SERVING:
            assert accounts[name]["automountServiceAccountToken"] is ACCESS[stage].token
            assert policies[name]["spec"]["podSelector"] == {"matchLabels": {names.LABEL_STAGE: stage}}
        if target == "local":
            data = secrets[names.STAGE_SECRET.format(stage=stage)].get("data") or {}
            wanted = {variable(field) for field in ACCESS[stage].secrets} - {variable("notify_urls")}
            assert set(data) == wanted
    if target == "cloud":
        assert set(secrets) == {names.EXECUTOR_SERVICE_ACCOUNT}, "a token's Secret alone, which Kubernetes fills"


@needs_helm
def test_only_those_of_the_table_and_who_talk_for_argo_have_rights(rendered: tuple[str, list[dict[str, Any]]]) -> None:
    roles = kinds(rendered[1], "Role")

    assert {name for name, access in ACCESS.items() if access.token} == {"deploy", "ask", "promote", "notify"}
    assert set(roles) == {
        "retrain-deploy",
        "retrain-ask",
        "retrain-promote",
        "retrain-notify",
        names.EXECUTOR_SERVICE_ACCOUNT,
        names.SENSOR_SERVICE_ACCOUNT,
    }
    assert roles[names.EXECUTOR_SERVICE_ACCOUNT]["rules"] == [
        {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]}
    ]
    assert not [d for d in rendered[1] if d["kind"].startswith("Cluster")]


def pairs(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@needs_helm
def test_who_is_admin_of_a_namespace_gives_no_right_that_they_lack() -> None:
    def given(*options: str) -> set[tuple[str, str, str]]:
        done = render(*TARGETS["local"], *options)
        roles = kinds([d for d in yaml.safe_load_all(done.stdout) if d], "Role")
        return {pair for role in roles.values() for pair in pairs(role["rules"])}

    granted = yaml.safe_load_all((ROOT / "kind" / "admin.yaml").read_text(encoding="utf-8"))
    beyond = pairs(next(d for d in granted if d["kind"] == "ClusterRole")["rules"])
    # Argo Workflows adds its own kinds to the ClusterRole `admin`; nobody adds Traefik's.
    plain = given("--set", "gradual.enabled=false")

    assert {pair for pair in plain if "." in pair[0]} == {
        ("argoproj.io", "workflowtaskresults", "create"),
        ("argoproj.io", "workflowtaskresults", "patch"),
        ("argoproj.io", "workflows", "create"),
        ("argoproj.io", "workflowtemplates", "get"),
        *(pair for pair in plain if pair[0].endswith(".k8s.io")),
    }
    assert {pair for pair in given() - plain if pair[0] in ("argoproj.io", "traefik.io")} == beyond


@needs_helm
def test_components_that_others_own_are_not_rendered() -> None:
    done = render(
        *TARGETS["local"], "--set", "mlflow.enabled=false", "--set", "mlflow.url=https://mlflow.example.com",
        "--set", "postgresql.enabled=false", "--set", "minio.enabled=false", "--set", "minio.endpoint=https://s3.example.com",
    )  # fmt: skip
    documents = [d for d in yaml.safe_load_all(done.stdout) if d]
    settings = kinds(documents, "ConfigMap")[names.SETTINGS_CONFIGMAP]["data"]

    assert not [d for d in documents if d["kind"] in ("Deployment", "StatefulSet", "Service")]
    assert settings["RETRAIN_TRACKING_URI"] == "https://mlflow.example.com"
    assert settings["RETRAIN_S3_ENDPOINT"] == "https://s3.example.com"


@needs_helm
def test_servers_reach_the_store_as_the_stages_do_or_are_confined_by_nobody() -> None:
    def rendered(*options: str) -> list[dict[str, Any]]:
        return [d for d in yaml.safe_load_all(render(*TARGETS["local"], *options).stdout) if d]

    def setting(documents: list[dict[str, Any]], field: str) -> Any:
        return json.loads(kinds(documents, "ConfigMap")[names.SETTINGS_CONFIGMAP]["data"][variable(field)])

    confined, free = rendered(), rendered("--set", "networkPolicies.enabled=false")

    [own] = setting(confined, "store_egress")
    assert own in kinds(confined, "NetworkPolicy")["retrain-features"]["spec"]["egress"]
    assert (setting(confined, "network_policies"), setting(free, "network_policies")) == (True, False)
    assert not kinds(free, "NetworkPolicy")


@needs_helm
def test_the_store_lets_servers_in_and_those_that_answer_copies() -> None:
    documents = [d for d in yaml.safe_load_all(render(*TARGETS["local"]).stdout) if d]
    [rule] = kinds(documents, "NetworkPolicy")["minio"]["spec"]["ingress"]
    chosen = [peer["podSelector"].get("matchExpressions", [{}])[0] for peer in rule["from"]]

    assert {"key": names.LABEL_STAGE, "operator": "In", "values": [SERVING, SHADOW]} in chosen


@needs_helm
def test_minio_tells_an_event_source_of_new_objects_and_may_reach_it() -> None:
    done = render(*TARGETS["local"], "--set", "minio.notify={adult-income}", "--set", "namespaces.workflows=runs")
    documents = [d for d in yaml.safe_load_all(done.stdout) if d]
    source = yaml.safe_load((ROOT / "argo" / "adult-income" / "3-eventsource.yaml").read_text(encoding="utf-8"))
    [port] = source["spec"]["service"]["ports"]
    door = f"http://{source['metadata']['name']}-eventsource-svc.runs:{port['port']}"
    environment = {
        each["name"]: each
        for each in kinds(documents, "StatefulSet")["minio"]["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    *_, reached = kinds(documents, "NetworkPolicy")["minio"]["spec"]["egress"]

    assert environment["MINIO_NOTIFY_WEBHOOK_ENDPOINT_ADULT_INCOME"]["value"] == f"{door}/adult-income/objects"
    assert environment["MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_ADULT_INCOME"]["valueFrom"]["secretKeyRef"] == {
        "name": names.WEBHOOK_SECRET, "key": source["spec"]["webhook"]["run"]["authSecret"]["key"],
    }  # fmt: skip
    assert (reached["to"][0]["namespaceSelector"]["matchLabels"], reached["ports"]) == (
        {"kubernetes.io/metadata.name": "runs"}, [{"port": port["targetPort"], "protocol": "TCP"}],
    )  # fmt: skip


@needs_helm
def test_logs_are_kept_by_a_user_that_can_do_nothing_else() -> None:
    documents = [d for d in yaml.safe_load_all(render(*TARGETS["local"]).stdout) if d]
    kept = yaml.safe_load(kinds(documents, "ConfigMap")["artifact-repositories"]["data"]["retrain"])
    secret = names.STAGE_SECRET.format(stage=LOGS)

    assert kept["archiveLogs"] is True
    assert ACCESS[LOGS].read == ()
    assert ACCESS[LOGS].write == (f"{kept['s3']['bucket']}/{kept['s3']['keyFormat'].split('/')[0]}",)
    for reference in (kept["s3"]["accessKeySecret"], kept["s3"]["secretKeySecret"]):
        assert reference["name"] == secret
        assert reference["key"] in kinds(documents, "Secret")[secret]["data"]


@needs_helm
def test_an_argo_controller_of_ours_keeps_ended_workflows_in_a_database_of_its_own() -> None:
    documents = [d for d in yaml.safe_load_all(render(*TARGETS["local"], "--set", "argo.enabled=true").stdout) if d]
    kept = yaml.safe_load(kinds(documents, "ConfigMap")["workflow-controller-configmap"]["data"]["persistence"])
    secret = kinds(documents, "Secret")[kept["postgresql"]["passwordSecret"]["name"]]
    callers = kinds(documents, "NetworkPolicy")["postgres"]["spec"]["ingress"][0]["from"]

    assert (kept["archive"], kept["postgresql"]["host"], kept["postgresql"]["database"]) == (
        True,
        "postgres.mlops",
        "argo",
    )
    assert (secret["metadata"]["namespace"], set(secret["data"])) == ("argo", {"username", "password"})
    assert '"archive": true' in kinds(documents, "ConfigMap")["platform-provision"]["data"]["plan.json"]
    assert {"kubernetes.io/metadata.name": "argo"} in [c["namespaceSelector"]["matchLabels"] for c in callers]


@needs_helm
@pytest.mark.parametrize(
    ("values", "mode"),
    [
        ([], "prefer"),
        (["postgresql.sslmode=disable"], "disable"),
        (["postgresql.sslmode=require"], "require"),
        (["postgresql.sslmode=require", "argo.archive.sslmode=verify-full"], "verify-full"),
    ],
)
def test_the_archive_of_ended_workflows_is_reached_as_the_values_say(values: list[str], mode: str) -> None:
    rendered = of(*(part for value in ["argo.enabled=true", *values] for part in ("--set", value)))
    kept = yaml.safe_load(kinds(rendered, "ConfigMap")["workflow-controller-configmap"]["data"]["persistence"])

    # Argo reads the mode only where ssl is on, and takes `prefer` where it is off
    assert (kept["postgresql"]["ssl"], kept["postgresql"]["sslMode"]) == (True, mode)


@needs_helm
def test_callers_of_a_webhook_have_a_token() -> None:
    documents = [d for d in yaml.safe_load_all(render(*TARGETS["local"]).stdout) if d]

    assert set(kinds(documents, "Secret")[names.WEBHOOK_SECRET]["data"]) == {"token"}


@needs_helm
def test_the_key_of_the_heads_is_in_one_secret_that_one_pod_reads(
    rendered: tuple[str, list[dict[str, Any]]],
) -> None:
    target, documents = rendered
    secret, key = names.STAGE_SECRET.format(stage=AUDIT), variable("audit_key")
    assert [name for name, access in ACCESS.items() if "audit_key" in access.secrets] == [AUDIT]
    if target == "local":
        assert [name for name, one in kinds(documents, "Secret").items() if key in (one.get("data") or {})] == [secret]
    reading = [d for d in documents if d["kind"] not in ("Secret",) and secret in yaml.safe_dump(d)]
    assert [(d["kind"], d["metadata"]["name"]) for d in reading] == [("CronJob", "retrain-audit")]
    assert not any(
        "secrets" in rule["resources"] for role in kinds(documents, "Role").values() for rule in role["rules"]
    )
    # who may start pods where workflows run could read it there, so it is where the platform's own pods are
    named = ("retrain-audit", secret)
    assert {d["metadata"]["namespace"] for d in documents if d["metadata"]["name"] in named} == {"mlops"}


@needs_helm
def test_the_signer_reaches_ledger_and_store_and_they_let_it_in() -> None:
    done = render(*TARGETS["local"], "--set", "namespaces.workflows=elsewhere")
    policies = kinds([d for d in yaml.safe_load_all(done.stdout) if d], "NetworkPolicy")
    own = policies["retrain-audit"]
    ports = {port["port"] for rule in own["spec"]["egress"] for port in rule["ports"]}
    assert (own["metadata"]["namespace"], ports) == ("mlops", {53, 5432, 9000}), "not the API server"
    for component in ("postgres", "minio", "mlflow"):
        callers = [
            peer for peer in policies[component]["spec"]["ingress"][0]["from"]
            if peer["podSelector"].get("matchLabels") == {names.LABEL_STAGE: AUDIT}
        ]  # fmt: skip
        assert [c["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for c in callers] == (
            [] if component == "mlflow" else ["mlops"]
        )


@needs_helm
def test_mlflow_reaches_its_database_and_nothing_of_the_store_which_it_has_no_credentials_of() -> None:
    rendered = of()
    own = kinds(rendered, "NetworkPolicy")["mlflow"]["spec"]["egress"]
    assert {port["port"] for rule in own for port in rule["ports"]} == {53, 5432}
    assert "platform-minio" not in yaml.safe_dump(kinds(rendered, "Deployment")["mlflow"])


@needs_helm
def test_a_bucket_of_heads_is_made_with_its_lock_and_added_to_alone() -> None:
    plan = planned()
    assert plan["locked"] == {HEADS: {"mode": "COMPLIANCE", "days": 30}}
    assert HEADS not in plan["buckets"]
    assert [name for name, rights in plan["stages"].items() if HEADS in rights["append"]] == [AUDIT]
    assert not [name for name, rights in plan["stages"].items() if HEADS in rights["write"]]
    provision = runpy.run_path(str(CHART / "files" / "provision.py"))
    said = provision["policy"](**{what: plan["stages"][AUDIT][what] for what in ("read", "write", "append", "remove")})
    actions = {action for statement in said["Statement"] for action in statement["Action"]}
    assert "s3:PutObject" in actions
    assert not [action for action in actions if "Delete" in action or "Retention" in action or "Bypass" in action]


@needs_helm
def test_a_platform_without_a_signer_has_nothing_of_it() -> None:
    done = render(*TARGETS["local"], "--set", "audit.enabled=false")
    documents = [d for d in yaml.safe_load_all(done.stdout) if d]
    assert not [d for d in documents if d["metadata"]["name"].startswith("retrain-audit")]
    assert kinds(documents, "ConfigMap")[names.SETTINGS_CONFIGMAP]["data"][variable("audit_heads")] == ""
    assert planned("--set", "audit.enabled=false")["locked"] == {}


@needs_helm
def test_nobody_may_remove_anything_until_retention_is_switched_on() -> None:
    account, secret = names.STEP_SERVICE_ACCOUNT.format(stage=RETENTION), names.STAGE_SECRET.format(stage=RETENTION)
    off, on = (
        {
            (d["kind"], d["metadata"]["name"]): d
            for d in yaml.safe_load_all(render(*TARGETS["local"], *more).stdout)
            if d
        }
        for more in ([], ["--set", "retention.enabled=true"])
    )
    assert {key for key in on.keys() - off.keys() if key[0] != "Job"} == {
        ("ServiceAccount", account), ("Secret", secret), ("NetworkPolicy", account),
    }  # fmt: skip
    assert set(on["Secret", secret]["data"]) == {variable(field) for field in ACCESS[RETENTION].secrets}
    assert {"s3-retention", "mlflow-retention"} == (
        on["Secret", "platform-passwords"]["data"].keys() - off["Secret", "platform-passwords"]["data"].keys()
    )
    before, after = planned(), planned("--set", "retention.enabled=true")
    assert not [name for name, rights in before["stages"].items() if rights["remove"]]
    assert [name for name, rights in after["stages"].items() if rights["remove"]] == [RETENTION]
    assert set(after["buckets"]) - set(before["buckets"]) == {ARCHIVE}
    assert after["stages"][RETENTION]["write"] == []
    assert (before["versioned"], after["versioned"]) == ([], [ARCHIVE]), "or it could write over what it removed"


def planned(*options: str) -> dict[str, Any]:
    """Return what the chart's jobs are told."""
    documents = [d for d in yaml.safe_load_all(render(*TARGETS["local"], *options).stdout) if d]
    return dict(json.loads(kinds(documents, "ConfigMap")["platform-provision"]["data"]["plan.json"]))


def of(*options: str) -> list[dict[str, Any]]:
    done = render(*TARGETS["local"], *options)
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


@needs_helm
def test_a_large_number_of_a_values_file_stays_what_it_is(tmp_path: Path) -> None:
    values = {
        "settings": {"RETRAIN_MAX_PART_BYTES": 1048576, "RETRAIN_DEBUG": True},
        "argo": {"enabled": True, "controller": {"parallelism": 1000000, "ttlSecondsAfterCompletion": 31536000}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    rendered = kinds(of("-f", str(tmp_path / "values.yaml")), "ConfigMap")
    settings, argo = rendered[names.SETTINGS_CONFIGMAP]["data"], rendered["workflow-controller-configmap"]["data"]

    assert (settings["RETRAIN_MAX_PART_BYTES"], settings["RETRAIN_DEBUG"]) == ("1048576", "true")
    assert argo["parallelism"] == "1000000"
    assert "secondsAfterCompletion: 31536000" in argo["workflowDefaults"]


@needs_helm
def test_an_empty_list_of_callers_lets_nobody_in() -> None:
    documents = of("--set", "prometheus.enabled=true", "--set-json", "networkPolicies.prometheusFrom=[]")

    assert kinds(documents, "NetworkPolicy")["prometheus"]["spec"]["ingress"] == []


@needs_helm
def test_mlflow_answers_under_the_name_of_its_ingress_which_must_have_one() -> None:
    ingress = ("--set", "mlflow.ingress.enabled=true", "--set")
    documents = of(*ingress, "mlflow.ingress.host=mlflow.corp")
    (allowed,) = [
        a for a in kinds(documents, "Deployment")["mlflow"]["spec"]["template"]["spec"]["containers"][0]["args"]
        if a.startswith("--allowed-hosts=")
    ]  # fmt: skip

    assert {"mlflow.corp", "mlflow.corp:*"} <= set(allowed.partition("=")[2].split(","))
    assert "mlflow.ingress.host" in render(*TARGETS["local"], *ingress, "mlflow.ingress.host=").stderr


@needs_helm
def test_a_job_has_another_name_once_what_it_does_is_another() -> None:
    """Also where every render is the first revision, as under Argo CD: a job cannot be changed."""

    def jobs(*options: str) -> set[str]:
        return set(kinds(of(*options), "Job"))

    def called(found: set[str]) -> set[str]:
        return {name.rsplit("-", 1)[0] for name in found}

    assert jobs() == jobs()
    for other in ("images.mlflow=other", "buckets.data=other"):
        changed = jobs("--set", other)
        assert called(changed) == called(jobs())
        assert any("databases" in name for name in changed - jobs())


@needs_helm
def test_a_data_store_that_recovers_is_not_taken_for_dead(rendered: tuple[str, list[dict[str, Any]]]) -> None:
    for kind in ("StatefulSet", "Deployment"):
        for name, component in kinds(rendered[1], kind).items():
            for container in component["spec"]["template"]["spec"]["containers"]:
                startup = container["startupProbe"]
                assert startup["periodSeconds"] * startup["failureThreshold"] >= 1200, name


@needs_helm
def test_submit_finds_the_bucket_of_sources_where_the_workflows_are() -> None:
    settings = kinds(of("--set", "namespaces.workflows=elsewhere"), "ConfigMap")[names.SETTINGS_CONFIGMAP]

    assert settings["metadata"]["namespace"] == "elsewhere"
    assert settings["metadata"]["annotations"] == {"retrain/data-bucket": "retrain-data"}


@needs_helm
def test_no_secret_goes_with_the_release_or_with_who_made_it() -> None:
    secrets = kinds(of("--set", "argo.enabled=true"), "Secret")
    del secrets[names.EXECUTOR_SERVICE_ACCOUNT]  # Kubernetes fills it

    assert {"platform-argo", "platform-mlflow", "retrain-submit-secrets"} < set(secrets)
    for name, secret in secrets.items():
        assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", name


@needs_helm
def test_a_quota_of_the_clusters_administrator_becomes_the_releases() -> None:
    """As docs/cluster.md has it made: without images, and with the marks by which Helm takes it over."""
    command = "--set images.steps=any,images.mlflow=any --show-only templates/limits.yaml"
    assert command in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    done = render("-f", str(ROOT / "kind" / "values-local.yaml"), *command.split())
    documents = [d for d in yaml.safe_load_all(done.stdout) if d]

    assert [d["kind"] for d in documents] == ["ResourceQuota", "LimitRange"]
    for metadata in (d["metadata"] for d in documents):
        assert metadata["namespace"] == "mlops"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert metadata["annotations"]["meta.helm.sh/release-name"] == "platform"
        assert metadata["annotations"]["meta.helm.sh/release-namespace"] == "mlops"


@needs_helm
def test_secrets_that_others_are_to_make_are_written_down_by_the_chart() -> None:
    """As docs/cluster.md has them rendered: each that is read, with its keys, where the chart itself renders none."""
    command = "--set secrets.create=true --show-only templates/secrets.yaml"
    assert command in (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    documents = yaml.safe_load_all(render(*TARGETS["cloud"], *command.split()).stdout)
    secrets = {d["metadata"]["name"]: set(d.get("data") or {}) for d in documents if d}

    from_a_workload_identity = {variable(f"aws_{key}") for key in ("access_key_id", "secret_access_key")}
    for stage, access in ACCESS.items():
        others = from_a_workload_identity | {variable("notify_urls")}
        assert secrets[names.STAGE_SECRET.format(stage=stage)] == {variable(f) for f in access.secrets} - others
    assert secrets["platform-mlflow"] == {"backend", "auth.ini", "admin", "session"}
    assert {"mlflow-database", "argo", "s3-train", "mlflow-train"} < secrets["platform-passwords"]


@needs_helm
@pytest.mark.parametrize("signed", [True, False])
def test_an_install_ends_with_what_comes_next_and_when_the_first_head_is_signed(tmp_path: Path, signed: bool) -> None:
    chart = shutil.copytree(CHART, tmp_path / "platform")
    shutil.move(chart / "templates" / "NOTES.txt", chart / "notes")  # which `helm template` leaves out
    (chart / "templates" / "notes.yaml").write_text('kind: Notes\ntext: {{ tpl (.Files.Get "notes") . | toJson }}\n')
    options = ["--set", "namespaces.workflows=flows", "--set", f"audit.enabled={str(signed).lower()}"]

    done = render(*TARGETS["local"], *options, "--show-only", "templates/notes.yaml", chart=chart)

    assert done.returncode == 0, done.stderr
    said = yaml.safe_load(done.stdout)["text"]
    assert "make smoke NAMESPACE=flows\n" in said
    assert "retrain submit FILE -n flows" in said
    assert ('signed by cron\'s "10 * * * *" after the first run' in said) == signed
    assert ("kubectl create job -n mlops retrain-audit-first --from=cronjob/retrain-audit" in said) == signed
    assert not said.startswith("\n")
