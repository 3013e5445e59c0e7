"""What the scripts of kind/ do where the cluster answers, refuses or is silent; `kubectl` and `helm` are stand-ins."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

KIND = Path(__file__).resolve().parents[2] / "kind"
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run a script of kind/ where `kubectl` and `helm` answer as the branches of a `case` over their arguments say.

    What they were called with is in `calls`, what a last `helm` read as values in `found`.
    """

    def run(name: str, *arguments: str, kubectl: str, helm: str = "") -> subprocess.CompletedProcess[str]:
        for command, branches in (("kubectl", kubectl), ("helm", helm)):
            stub = tmp_path / command
            stub.write_text(f"""#!/bin/sh
echo "{command} $*" >> {tmp_path}/calls
case "$*" in
{branches}
esac
""")
            stub.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {"PATH": path, "FOUND": str(tmp_path / "found"), "LOOK_SECONDS": "0.1"}
        return subprocess.run(
            [KIND / name, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


DATABASES = """
*"get -n mlops statefulset postgres"*) echo statefulset.apps/postgres ;;
*psql*) echo mlflow; echo retrain_ledger ;;
*pg_dump*) echo "dump of $*" ;;
"""


def test_a_backup_holds_every_database_and_the_sums_of_all(script: Script, tmp_path: Path) -> None:
    done = script("backup", str(tmp_path / "copy"), kubectl=DATABASES)

    assert done.returncode == 0, done.stderr
    dumps = sorted(file.name for file in (tmp_path / "copy" / "databases").iterdir())
    assert dumps == ["mlflow.dump", "retrain_ledger.dump"]
    sums = (tmp_path / "copy" / "SHA256SUMS").read_text()
    assert [line.split()[-1] for line in sums.splitlines()] == [f"databases/{name}" for name in dumps]


@pytest.mark.parametrize(
    "answers",
    [
        DATABASES.replace("echo mlflow; echo retrain_ledger", "echo 'connection lost' >&2; exit 1"),
        DATABASES.replace("echo statefulset.apps/postgres", "echo 'Unable to connect' >&2; exit 1"),
        DATABASES.replace('echo "dump of $*"', "echo 'disk full' >&2; exit 1"),
    ],
    ids=["databases", "whether there is a PostgreSQL", "a dump"],
)
def test_a_backup_of_what_nobody_could_read_is_none(script: Script, tmp_path: Path, answers: str) -> None:
    minio = '*"get -n mlops statefulset minio"*) exit 0 ;;'
    done = script("backup", str(tmp_path / "copy"), kubectl=answers + minio)

    assert done.returncode != 0
    assert not (tmp_path / "copy" / "SHA256SUMS").exists()
    assert done.stderr.strip() in {"connection lost", "Unable to connect", "disk full"}


@pytest.fixture
def copy(script: Script, tmp_path: Path) -> Path:
    assert script("backup", str(tmp_path / "copy"), kubectl=DATABASES).returncode == 0
    (tmp_path / "calls").unlink()
    return tmp_path / "copy"


NOTED = '*"get configmap"*"retrain/workflows}"*) echo ml-workflows ;;\n'


@pytest.mark.parametrize(
    ("workflows", "code", "said"),
    [
        ("echo workflow.argoproj.io/w", 78, "under way: workflow.argoproj.io/w"),
        ("echo 'Error from server (Forbidden)' >&2; exit 1", 69, "whether a run is under way in ml-workflows"),
    ],
)
def test_nothing_is_restored_beneath_a_run_or_where_nobody_says_that_there_is_none(
    script: Script, copy: Path, workflows: str, code: int, said: str
) -> None:
    done = script("restore", str(copy), kubectl=f'{NOTED}*"get workflows -n ml-workflows"*) {workflows} ;;')

    assert (done.returncode, said in done.stderr) == (code, True)
    assert "exec" not in (copy.parent / "calls").read_text()


def test_databases_come_back_where_no_run_is_under_way(script: Script, copy: Path) -> None:
    done = script("restore", str(copy), kubectl=NOTED)

    assert done.returncode == 0, done.stderr
    calls = (copy.parent / "calls").read_text()
    assert "dropdb -U postgres --force --if-exists mlflow\n" in calls
    assert calls.count("kubectl exec -i -n mlops statefulset/postgres -c postgres -- pg_restore") == 2


MANIFEST = """
*--dry-run=client*)
  for n in mlops ml-workflows ml-serving; do printf 'kind: ResourceQuota\\nmetadata:\\n  namespace: %s\\n' $n; done ;;
*) cat > "$FOUND" ;;
"""
CLUSTER = """
*endpointslices*addresses*) echo 10.0.0.7 fd00::7 ;;
*endpointslices*port*) echo 6443 ;;
*"service -n default"*) echo 10.96.0.1 ;;
*"get pods -n kube-system"*) printf 'seen kube-dns kube-dns' ;;
*storageclass*) echo 'true rancher.io/local-path' ;;
*can-i*) echo yes ;;
"""


def found(tmp_path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((tmp_path / "found").read_text()))


def test_what_an_install_finds_comes_before_the_values_so_that_those_decide(script: Script, tmp_path: Path) -> None:
    done = script("install", "-f", "mine.yaml", kubectl=CLUSTER, helm=MANIFEST)

    assert done.returncode == 0, done.stderr
    assert found(tmp_path) == {
        "networkPolicies": {
            "apiServer": {"cidrs": ["10.0.0.7/32", "10.96.0.1/32", "fd00::7/128"], "ports": [443, 6443]},
        },
    }  # fmt: skip
    words = (tmp_path / "calls").read_text().splitlines()[-1].split()
    given = [word for option, word in itertools.pairwise(words) if option == "-f"]
    assert given[-2:] == ["-", "mine.yaml"]
    assert "--set" not in words


@pytest.mark.parametrize(
    ("answer", "instead", "value"),
    [
        ("printf 'seen kube-dns kube-dns'", "printf 'seen kube-dns node-local-dns'", {"dns": {"cidrs": ["0.0.0.0/0"]}}),
        ("printf 'seen kube-dns kube-dns'", "printf 'seen '", {"dns": {"cidrs": ["0.0.0.0/0"]}}),
        ("printf 'seen kube-dns kube-dns'", "echo Error: Forbidden >&2; exit 1", {}),
    ],
)
def test_dns_that_is_no_pod_or_has_a_cache_on_the_node_is_reached(
    script: Script, tmp_path: Path, answer: str, instead: str, value: dict[str, Any]
) -> None:
    done = script("install", kubectl=CLUSTER.replace(answer, instead), helm=MANIFEST)

    assert done.returncode == 0, done.stderr
    policies = found(tmp_path)["networkPolicies"]
    del policies["apiServer"]
    assert policies == value


def test_each_namespace_of_the_values_is_made_where_it_is_missing(script: Script, tmp_path: Path) -> None:
    script("install", kubectl='*"get namespace ml-serving"*) exit 1 ;;\n' + CLUSTER, helm=MANIFEST)

    calls = (tmp_path / "calls").read_text()
    assert "kubectl create namespace ml-serving\n" in calls
    assert calls.count("create namespace") == 1


@pytest.mark.parametrize(
    ("asked", "value"),
    [
        ("create resourcequotas -n ml-serving", {"limits": {"enabled": False}}),
        ("delete traefikservices.traefik.io -n ml-serving", {"gradual": {"enabled": False}}),
    ],
)
def test_what_an_installer_may_not_do_in_one_namespace_is_left_out(
    script: Script, tmp_path: Path, asked: str, value: dict[str, Any]
) -> None:
    done = script("install", kubectl=f'*"can-i {asked}"*) echo no; exit 1 ;;\n{CLUSTER}', helm=MANIFEST)

    assert done.returncode == 0, done.stderr
    assert {name: found(tmp_path)[name] for name in value} == value
    assert "install: you may not" in done.stderr


@pytest.mark.parametrize("asked", ["can-i create", "endpointslices", "storageclass"])
def test_a_cluster_that_does_not_answer_changes_nothing(script: Script, tmp_path: Path, asked: str) -> None:
    done = script("install", kubectl=f'*"{asked}"*) echo "EOF" >&2; exit 1 ;;\n{CLUSTER}', helm=MANIFEST)

    assert done.returncode == 69
    assert "install: " in done.stderr
    assert not (tmp_path / "found").exists()


def test_what_helm_waits_for_is_told_once(script: Script) -> None:
    pods = """printf 'postgres-0 1/1 Running 0 3m\\nmlflow-1 0/1 ImagePullBackOff 0 3m\\n'"""
    done = script(
        "install", kubectl=f'*"get pods -n mlops --no-headers"*) {pods} ;;\n{CLUSTER}',
        helm=f'*"--dry-run"*) ;;\n*) sleep 1 ;;\n{MANIFEST}',
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stderr == "install: waits for pod mlflow-1 in mlops: ImagePullBackOff\n"


def test_operators_that_are_there_are_left_alone(script: Script, tmp_path: Path) -> None:
    done = script("operators", kubectl="*) ;;")

    assert (done.returncode, done.stdout) == (0, "operators: all are there\n")
    assert "apply" not in (tmp_path / "calls").read_text()


def test_the_settings_of_a_controller_of_ours_may_become_the_releases(script: Script, tmp_path: Path) -> None:
    done = script("operators", "argo-workflows", kubectl="*) ;;")

    assert done.returncode == 0, done.stderr
    settings = "configmap/workflow-controller-configmap --overwrite"
    calls = (tmp_path / "calls").read_text()
    assert f"{settings} app.kubernetes.io/managed-by=Helm" in calls
    assert f"{settings} meta.helm.sh/release-name=platform meta.helm.sh/release-namespace=mlops" in calls


FILES = """
*"get -n mlops configmaps -l retrain/pipeline -o name"*)
  echo configmap/retrain-m-0123456789ab; echo configmap/retrain-m-ba9876543210 ;;
*"get -n mlops workflowtemplates,"*) ANSWER ;;
"""


@pytest.mark.parametrize(
    ("answer", "deleted"),
    [
        ("echo 'volumes: [{configMap: {name: retrain-m-0123456789ab}}]'", ["configmap/retrain-m-ba9876543210"]),
        ("echo 'Unable to connect' >&2; exit 1", []),
    ],
    ids=["one is named", "nobody answers"],
)
def test_pipeline_files_that_nothing_names_are_removed_as_the_docs_say(
    script: Script, tmp_path: Path, answer: str, deleted: list[str]
) -> None:
    page = (KIND.parent / "docs" / "retention.md").read_text(encoding="utf-8")
    section = page.split("## Pipeline files on a cluster")[1].split("## ")[0]
    documented = tmp_path / "documented"
    documented.write_text("#!/usr/bin/env bash\n" + "\n".join(x for x in section.splitlines() if x.startswith("    ")))
    documented.chmod(0o755)

    script(str(documented), kubectl=FILES.replace("ANSWER", answer))

    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[-1] for call in calls if " delete " in call] == deleted


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """What `make cluster` did in a copy of this project, its commands stand-ins and kubectl at another cluster."""
    project, commands = tmp_path / "project", tmp_path / "bin"
    commands.mkdir()
    for name in ("kind", "images"):
        shutil.copytree(KIND.parent / name, project / name, ignore=shutil.ignore_patterns("images.*", "kubeconfig"))
    shutil.copy(KIND.parent / "Makefile", project)
    for command in ("docker", "kind", "kubectl", "helm"):
        stub = commands / command
        stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "{command} $KUBECONFIG $*" >> {tmp_path}/calls\n')
        stub.chmod(0o755)
    who = {f"GIT_{role}_{what}": "t@t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {"PATH": f"{commands}:{os.environ['PATH']}", "KUBECONFIG": "/of/another/cluster", **who}
    digest = "DIGEST=printf registry@sha256:" + "0" * 64
    for line in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-q", "-m", "all"],
        ["make", "cluster", "BUILD=true", "PUSH=true", digest],
    ):
        done = subprocess.run(line, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return project


def test_a_laptops_cluster_is_the_only_one_that_is_changed_and_names_images_as_its_pods_do(made: Path) -> None:
    calls = [line.split(" ", 2) for line in (made.parent / "calls").read_text().splitlines()]
    asked = [where for command, where, _ in calls if command in ("kubectl", "helm")]
    assert len(asked) > 5
    assert set(asked) == {str(made / "kind" / "kubeconfig")}
    assert "--name retrain --kubeconfig kubeconfig" in next(a for c, _, a in calls if a.startswith("export"))

    images = yaml.safe_load((made / "kind" / "images.yaml").read_text())["images"]
    registry = yaml.safe_load((KIND / "values-local.yaml").read_text())["settings"]["RETRAIN_IMAGE_REGISTRY"]
    assert images == {name: f"{registry}/{name}@sha256:{'0' * 64}" for name in ("steps", "serving", "mlflow")}
