"""The signer of a platform: it signs what is whole, into a bucket where nobody removes it; what is cut then shows.

A test writes entries of a model of its own, as the account of `register` may; entries stay, so its name is a new one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from contracts import names
from contracts.access import ACCESS, AUDIT, HEADS
from contracts.settings import variable
from tests.cluster.conftest import Cluster, run_as, until

SIGNER = names.STEP_SERVICE_ACCOUNT.format(stage=AUDIT)

_WRITE = """
from datetime import UTC, datetime
from contracts.outcomes import State
from contracts.settings import load_settings
from steps.ledger import Ledger

ledger = Ledger(load_settings().ledger.get_secret_value())
for version in range(1, %d + 1):
    ledger.append(
        %r, State.REGISTERED, version=version, run_id=f"run-{version}", workflow="w", by="test", reason="for the test",
        evidence={}, after=ledger.head(%r), at=datetime.now(UTC),
    )
"""


@pytest.fixture(scope="module")
def signer(platform: Cluster) -> Cluster:
    """The platform, where the signer is in this namespace."""
    if platform.run("kubectl", "-n", platform.namespace, "get", "cronjob", SIGNER).returncode != 0:
        pytest.skip(f"namespace {platform.namespace} has no CronJob {SIGNER}: audit.enabled, then `make platform`")
    return platform


@pytest.fixture(scope="module")
def model(signer: Cluster) -> str:
    """A model with three entries."""
    name = f"audited-{os.urandom(3).hex()}"
    run_as(signer, "register", _WRITE % (3, name, name), secrets=True)
    return name


@pytest.fixture(scope="module")
def public_key(signer: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The public key, as whoever installed the platform takes it."""
    path = tmp_path_factory.mktemp("pinned") / "audit.pub"
    path.write_text(retrain(signer, "audit", "key"))
    assert path.read_text().startswith("-----BEGIN PUBLIC KEY-----")
    return path


def retrain(cluster: Cluster, *words: str, code: int = 0) -> str:
    done = cluster.run(sys.executable, "-m", "workflows.cli.main", *words, "-n", cluster.namespace, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def verified(cluster: Cluster, model: str, public_key: Path, *, code: int = 0) -> list[str]:
    return retrain(cluster, "audit", "verify", model, "--key", str(public_key), code=code).splitlines()


def sign(cluster: Cluster) -> tuple[bool, str]:
    """Let the CronJob's own job run now; return whether it succeeded, and its log."""
    name = f"audit-{os.urandom(3).hex()}"
    cluster.kubectl("create", "job", name, f"--from=cronjob/{SIGNER}")
    # its first failure is enough to know
    cluster.kubectl("patch", "job", name, "-p", '{"spec": {"backoffLimit": 0}}')
    try:
        status = until(
            lambda: (
                {c["type"] for c in cluster.get("job", name).get("status", {}).get("conditions", ())}
                & {"Complete", "Failed"}
            ),
            300,
        )
        assert status, "the job did not end"
        return status == {"Complete"}, cluster.kubectl("logs", f"job/{name}")
    finally:
        cluster.kubectl("delete", "job", name, "--wait=false")


def psql(cluster: Cluster, statement: str) -> str:
    return cluster.kubectl(
        "exec", "statefulset/postgres", "-c", "postgres", "--",
        "psql", "-U", "postgres", "-d", "retrain_ledger", "-v", "ON_ERROR_STOP=1", "-Atc", statement,
    )  # fmt: skip


@contextmanager
def cut(cluster: Cluster, model: str) -> Iterator[None]:
    """Be the database's owner, and take the last entry of a model away for a while."""
    kept = f"cut_{os.urandom(3).hex()}"
    last = f"model = '{model}' AND number = 3"
    psql(cluster, f"BEGIN; CREATE TABLE {kept} AS SELECT * FROM ledger WHERE {last};"
         f"ALTER TABLE ledger DISABLE TRIGGER USER; DELETE FROM ledger WHERE {last};"
         "ALTER TABLE ledger ENABLE TRIGGER USER; COMMIT")  # fmt: skip
    try:
        yield
    finally:
        psql(cluster, f"BEGIN; INSERT INTO ledger SELECT * FROM {kept}; DROP TABLE {kept}; COMMIT")


def test_the_job_signs_and_a_cut_end_shows(signer: Cluster, model: str, public_key: Path) -> None:
    done, said = sign(signer)
    assert done, said
    assert f"{model}: entry 3 " in said
    [whole] = verified(signer, model, public_key)
    assert "3 entries, chain intact; 1 signed heads hold, the last of entry 3 at" in whole

    with cut(signer, model):
        assert verified(signer, model, public_key, code=65) == [f"{model}: entry 3: was signed, and is gone"]
        done, said = sign(signer)
        assert not done
        assert f"{model}: entry 2 was not signed: the ledger is not whole" in said
    [whole] = verified(signer, model, public_key)
    assert "1 signed heads hold" in whole


_LOCKED = """
import json, os
from contracts.settings import load_settings
from steps.storage import Storage

settings = load_settings()
if "user" in os.environ:  # the store's administrator
    from pydantic import SecretStr
    settings = settings.model_copy(update={
        "aws_access_key_id": SecretStr(os.environ["user"]), "aws_secret_access_key": SecretStr(os.environ["password"]),
    })
storage, answers = Storage(settings), {}
client = storage._s3()

def tried(what, action):
    try:
        action()
        answers[what] = "done"
    except Exception as error:
        answers[what] = getattr(error, "response", {}).get("Error", {}).get("Code") or type(error).__name__

where = {"Bucket": %(bucket)r, "Key": "tried/%(name)s"}
tried("adds", lambda: client.put_object(**where, Body=b"first"))
tried("lists", lambda: storage.list(f"s3://{where['Bucket']}/tried"))
version = storage.versions(f"s3://{where['Bucket']}/{where['Key']}")[-1][1]
tried("removes", lambda: client.delete_object(**where, VersionId=version, BypassGovernanceRetention=True))
tried("hides", lambda: client.delete_object(**where))
answers["is there"] = storage.read(f"s3://{where['Bucket']}/{where['Key']}", version).decode()
print(json.dumps(answers))
"""


def test_what_lies_in_the_bucket_nobody_removes_its_administrator_included(signer: Cluster) -> None:
    heads = signer.get("configmap", names.SETTINGS_CONFIGMAP)["data"][variable("audit_heads")]
    bucket = heads.removeprefix("s3://").partition("/")[0]

    def answers(*besides: str) -> dict[str, str]:
        # not among the heads: what is put there stays for as long as the lock does
        program = _LOCKED % {"bucket": bucket, "name": os.urandom(4).hex()}
        return dict(json.loads(run_as(signer, AUDIT, program, secrets=True, besides=besides)))

    assert answers() == {
        "adds": "done", "lists": "done", "removes": "AccessDenied", "hides": "AccessDenied", "is there": "first",
    }  # fmt: skip
    assert answers("platform-minio") == {
        "adds": "done", "lists": "done", "removes": "InvalidRequest", "hides": "done", "is there": "first",
    }  # fmt: skip


@pytest.mark.parametrize("stage", ["register", "promote", "deploy", "train"])
def test_no_stage_sees_heads_or_the_key(stage: str, signer: Cluster) -> None:
    program = """
import os
from contracts.errors import ConfigError
from contracts.settings import load_settings
from steps.storage import Storage

settings = load_settings()
try:
    print("lists", len(Storage(settings).list(settings.audit_heads)), bool(settings.audit_key.get_secret_value()))
except ConfigError as error:
    print("refused", "403" in error.message, bool(settings.audit_key.get_secret_value()))
"""
    assert run_as(signer, stage, program, secrets=True).split() == ["refused", "True", "False"]
    account = f"system:serviceaccount:{signer.namespace}:{names.STEP_SERVICE_ACCOUNT.format(stage=stage)}"
    asked = signer.run(
        "kubectl", "-n", signer.namespace, "auth", "can-i", "get",
        f"secrets/{names.STAGE_SECRET.format(stage=AUDIT)}", f"--as={account}",
    )  # fmt: skip
    assert asked.stdout.strip() == "no"
    assert HEADS not in (*ACCESS[stage].read, *ACCESS[stage].write, *ACCESS[stage].append)


def test_the_settings_say_where_heads_lie_and_hold_no_key(signer: Cluster) -> None:
    settings = signer.get("configmap", names.SETTINGS_CONFIGMAP)["data"]
    assert settings[variable("audit_heads")].startswith("s3://")
    assert variable("audit_key") not in settings
