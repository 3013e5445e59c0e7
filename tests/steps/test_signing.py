"""Models in a bucket: register signs what was trained, deploy and the server take nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from contracts.errors import ConfigError, DataError, StageError
from contracts.names import MODEL_KEYS, tag
from contracts.outcomes import Outcome, State
from contracts.stages import Deploy
from serving.model import manifest_sha256
from serving.model_keys import fingerprint, public_text
from serving.signature import sign
from steps.deploy import deploy
from steps.mlflow_connection import mlflow_client
from steps.register import register
from steps.rollout import process
from steps.rollout.cluster import Cluster
from steps.rollout.kubernetes import Kubernetes
from steps.rollout.process import Server
from steps.world import World
from tests.loopback import s3_server
from tests.model_packages import KEY, TRUSTED, package, signed
from tests.steps.registered import NOW, finished_run, make_settings, make_world, to_register

OTHER = ec.generate_private_key(ec.SECP256R1())
MODEL = "adult-income"
Act = Callable[["Bucket"], object]


def pem(key: ec.EllipticCurvePrivateKey) -> SecretStr:
    return SecretStr(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


class Bucket:
    """A run whose package lies in a bucket, and who may write there."""

    def __init__(self, world: World, local: Path) -> None:
        self.world, self.local = world, package(local)
        self.s3 = world.storage._s3()
        self.run_id = finished_run(world)
        self.uri = world.tracking.package_uri(self.run_id)
        self.bucket, _, self.prefix = self.uri.removeprefix("s3://").partition("/")
        for file in self.local.iterdir():
            self.put(file.name, file.read_bytes())
        self.tag(manifest_sha256(self.local))

    def tag(self, sha256: str) -> None:
        mlflow_client(self.world.settings).set_tag(self.run_id, tag("artifact_sha256"), sha256)

    def get(self, name: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")["Body"].read())

    def put(self, name: str, data: bytes) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=data)

    def delete(self, name: str) -> None:
        self.s3.delete_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}")

    def flip(self, name: str) -> None:
        data = bytearray(self.get(name))
        data[len(data) // 2] ^= 1
        self.put(name, bytes(data))

    def sign(self, of: str, key: ec.EllipticCurvePrivateKey) -> None:
        self.put("model.sig", sign(self.local, of, key))

    def register(self, **settings: Any) -> int:
        changed = self.world.settings.model_copy(update=settings)
        world = replace(self.world, settings=changed)
        return register(to_register(world, self.run_id), world=world).version

    def approved(self) -> Deploy.Inputs:
        version, ledger = self.register(), self.world.ledger
        entry = ledger.append(
            MODEL, State.APPROVED, version=version, run_id=self.run_id, workflow=self.world.workflow, by="test",
            reason="for the test", evidence={}, after=ledger.head(MODEL), at=NOW,
        )  # fmt: skip
        return Deploy.Inputs(version=version, entry=entry.id, image="reference")


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", endpoint)
    world = make_world(tmp_path)
    world.settings = make_settings(
        tmp_path, artifacts="s3://models", s3_endpoint=endpoint, server_port=0, aws_access_key_id="a",
        aws_secret_access_key="b",
    )  # fmt: skip
    world.storage._s3().create_bucket(Bucket="models")
    yield Bucket(world, tmp_path / "package")
    Server.of(world.settings, MODEL).stop()


def evidence(bucket: Bucket) -> dict[str, Any]:
    [entry] = bucket.world.ledger.entries(MODEL)
    return dict(entry.evidence["signature"])


def test_register_signs_once_and_the_ledger_says_by_which_key(bucket: Bucket) -> None:
    assert bucket.register() == 1
    signature = bucket.get("model.sig")
    assert evidence(bucket)["key"] == fingerprint(KEY.public_key())
    assert bucket.register() == 1
    assert bucket.get("model.sig") == signature, "what holds is kept"


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda b: b.delete("model.sig"), id="removed", marks=pytest.mark.faults),
        pytest.param(lambda b: b.put("model.sig", b"{"), id="cut off", marks=pytest.mark.faults),
        pytest.param(lambda b: b.flip("model.sig"), id="flipped", marks=pytest.mark.faults),
        pytest.param(lambda b: b.sign(f"{MODEL}@{b.run_id}", OTHER), id="by another key"),
        pytest.param(lambda b: b.sign(f"{MODEL}@other", KEY), id="of another run", marks=pytest.mark.faults),
    ],
)
def test_what_lost_its_signature_gets_one_when_it_is_what_the_ledger_has(bucket: Bucket, act: Act) -> None:
    bucket.register()
    bucket.tag("0" * 64)  # somebody else's doing on MLflow's page: the ledger's hash counts
    act(bucket)
    assert bucket.register() == 1
    assert deploy(bucket.approved(), world=bucket.world).outcome is Outcome.PROMOTED


def test_a_signature_by_an_earlier_key_that_is_trusted_is_kept(bucket: Bucket) -> None:
    bucket.sign(f"{MODEL}@{bucket.run_id}", OTHER)
    before = bucket.get("model.sig")
    bucket.register(model_keys=f"{TRUSTED} {public_text(OTHER.public_key())}")
    assert bucket.get("model.sig") == before
    assert evidence(bucket)["key"] == fingerprint(OTHER.public_key())


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("name", ["package.json", "estimator.txt"])
def test_register_does_not_sign_what_was_altered_since_it_was_trained(
    bucket: Bucket, name: str, registered: bool
) -> None:
    if registered:
        bucket.register()
        bucket.delete("model.sig")
    bucket.flip(name)
    with pytest.raises(DataError, match=r"is not the one that was trained|differs from its hash"):
        bucket.register()
    with pytest.raises(bucket.s3.exceptions.NoSuchKey):
        bucket.get("model.sig")
    assert len(bucket.world.ledger.entries(MODEL)) == registered


def test_what_nobody_knows_the_hash_of_is_not_signed(bucket: Bucket) -> None:
    bucket.tag("")
    with pytest.raises(ConfigError, match="nobody knows what it trained"):
        bucket.register()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"signing_key": SecretStr("")}, "RETRAIN_SIGNING_KEY is missing"),
        ({"signing_key": SecretStr("nonsense")}, "RETRAIN_SIGNING_KEY holds no elliptic-curve key"),
        ({"signing_key": pem(OTHER)}, "would not be trusted"),
        ({"model_keys": ""}, "no key is trusted"),
    ],
)
def test_without_a_key_that_is_trusted_nothing_is_registered(
    bucket: Bucket, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        bucket.register(**settings)
    assert "nonsense" not in refused.value.message
    assert bucket.world.ledger.entries(MODEL) == []
    assert bucket.world.registry.aliases() == {}


DEEDS: dict[str, tuple[Act, str]] = {
    "a flipped byte of the model": (lambda b: b.flip("estimator.txt"), "estimator.txt differs from its hash"),
    "a flipped byte of the manifest": (lambda b: b.flip("package.json"), "is not the one that was signed"),
    "a flipped byte of the signature": (lambda b: b.flip("model.sig"), "signature of|is not signed"),
    "another file, hashed anew": (
        lambda b: (b.put("example.json", b"[]"), b.put("package.json", hashed_anew(b))),
        "is not the one that was signed",
    ),
    "unsigned": (lambda b: b.delete("model.sig"), "is not signed: it has no model.sig"),
    "signed by another key": (lambda b: b.sign(f"{MODEL}@{b.run_id}", OTHER), "which is not trusted here"),
    "signature of another model": (lambda b: b.sign(f"{MODEL}@other", KEY), "bears the signature of"),
}


def hashed_anew(bucket: Bucket) -> bytes:
    manifest = json.loads(bucket.get("package.json"))
    manifest["files"]["example.json"] = hashlib.sha256(b"[]").hexdigest()
    return json.dumps(manifest).encode()


@pytest.mark.parametrize("deed", DEEDS)
def test_what_was_altered_in_the_bucket_is_neither_released_nor_served(bucket: Bucket, deed: str) -> None:
    act, says = DEEDS[deed]
    inputs = bucket.approved()
    act(bucket)
    with pytest.raises(DataError, match=says) as refused:
        deploy(inputs, world=bucket.world)
    assert "\n" not in refused.value.message
    assert [e.state for e in bucket.world.ledger.entries(MODEL)] == [State.REGISTERED, State.APPROVED]
    assert bucket.world.target.serving() is None


def test_what_serves_by_the_ledger_does_not_come_back_when_it_was_altered(bucket: Bucket) -> None:
    """The server looks for itself: here deploy has nothing to release."""
    inputs = bucket.approved()
    promoted = deploy(inputs, world=bucket.world)
    assert httpx.get(f"{promoted.url}/v1/model", timeout=30).json()["run_id"] == bucket.run_id
    [serving] = [e for e in bucket.world.ledger.entries(MODEL) if e.state is State.SERVING]
    assert serving.evidence["signature"]["key"] == fingerprint(KEY.public_key())

    Server.of(bucket.world.settings, MODEL).stop()
    bucket.flip("estimator.txt")
    with pytest.raises(StageError, match="though it served before") as refused:
        deploy(inputs, world=replace(bucket.world, workflow="later"))
    assert any("estimator.txt differs from its hash" in finding.what for finding in refused.value.findings)
    assert Server.of(bucket.world.settings, MODEL).status().spec is None  # type: ignore[union-attr]


OLD_HOLDER = """
import os, sys
from dataclasses import fields, make_dataclass
from serving import holder, versions
known = [(f.name, f.type, f) for f in fields(versions.Spec) if f.name != "trusted_keys"]
old = make_dataclass("Spec", known, frozen=True, namespace={"arguments": versions.Spec.arguments})
status, environment = versions.Versions.status, dict(os.environ)
versions.Versions.status = lambda self: {k: v for k, v in status(self).items() if k != "knows"}
versions._environment = lambda spec: environment
holder.Spec = old
sys.exit(holder.main())
"""
"""A holder of before models were signed; what it started then asked for no signature, so here it has the keys."""


@pytest.fixture
def of_before(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Such a holder, and a version that it serves."""
    server, folder = Server.of(bucket.world.settings, MODEL), bucket.local.with_name("before")
    signed(shutil.copytree(bucket.local, folder), f"{MODEL}@before")
    with monkeypatch.context() as before:
        real = subprocess.Popen
        before.setenv(MODEL_KEYS, TRUSTED)
        before.setattr(process, "_SECRET_PREFIXES", ())
        before.setattr(
            process.subprocess, "Popen",
            lambda command, **how: real([sys.executable, "-c", OLD_HOLDER, *command[3:]], **how),
        )  # fmt: skip
        server.home.mkdir(parents=True)
        server._ensure_holder()
    spec = {"package": str(folder), "name": MODEL, "version": 7, "run_id": "before", "dataset_sha256": "d" * 64}
    asked = {"command": "release", "spec": spec, "ready_seconds": 60, "drain_seconds": 1}
    answer = server._ask(asked, timeout=90)
    assert answer is not None
    assert answer["ok"], answer
    return server


def test_what_a_desk_served_before_an_upgrade_serves_until_a_signed_version_takes_its_place(
    bucket: Bucket, of_before: Server
) -> None:
    inputs = bucket.approved()
    before = of_before.status()
    assert before is not None
    assert before.spec is not None
    assert (before.spec.version, before.outdated) == (7, True)

    bucket.flip("estimator.txt")
    with pytest.raises(DataError, match="differs from its hash"):
        bucket.world.target.release(bucket.world.ledger.entries(MODEL)[-1])
    assert of_before.status() == before

    bucket.flip("estimator.txt")
    promoted = deploy(inputs, world=bucket.world)
    assert (promoted.outcome, promoted.url) == (Outcome.PROMOTED, before.url), "where callers know it"
    assert httpx.get(f"{promoted.url}/v1/model", timeout=30).json()["run_id"] == bucket.run_id
    after = of_before.status()
    assert after is not None
    assert not after.outdated


def test_on_a_cluster_the_image_that_serves_is_named_by_its_digest(bucket: Bucket) -> None:
    bucket.register()
    target = Kubernetes(bucket.world, Cluster("serving"))
    image = f"registry/m@sha256:{'0' * 64}"

    said = target.means(image, bucket.run_id)
    assert (said["image"], said["signature"]["key"]) == (image, fingerprint(KEY.public_key()))
    with pytest.raises(ConfigError, match="a name that may mean another image tomorrow"):
        target.means("registry/m:latest", bucket.run_id)
    bucket.flip("estimator.txt")
    with pytest.raises(DataError, match="differs from its hash"):
        target.means(image, bucket.run_id)
