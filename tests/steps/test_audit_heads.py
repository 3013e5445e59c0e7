"""Heads in a bucket under object lock: what its owner can do to them, and what the signer does before it signs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from contracts.errors import Finding
from contracts.settings import variable
from steps.audit.heads import Head, keep, kept, proof, sign
from steps.audit.key import fingerprint, private_key
from steps.audit.sign import Signing, sign_heads
from steps.keys import public_text
from steps.ledger import Ledger
from steps.storage import Storage
from tests.loopback import s3_server
from tests.steps.registered import NOW, make_settings
from tests.steps.test_audit import chain, put

BUCKET = "retrain-audit"
FOLDER = f"s3://{BUCKET}/heads"
KEYS = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def storage(endpoint: str, tmp_path: Path) -> Iterator[Storage]:
    """A bucket as kind/platform/files/provision.py makes it, empty."""
    found = Storage(make_settings(tmp_path, s3_endpoint=endpoint, **KEYS))
    client = found._s3()
    client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    rule = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}}
    client.put_object_lock_configuration(
        Bucket=BUCKET, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )
    yield found
    import requests

    requests.post(f"{endpoint}/moto-api/reset", timeout=10)


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return private_key(tmp_path / "audit.pem")


def signed(
    ledger: Ledger, storage: Storage, key: Ed25519PrivateKey, *earlier: Ed25519PublicKey
) -> list[Signing]:  # fmt: skip
    return list(
        sign_heads(
            ledger.heads(), lambda m, heads: ledger.verify(m, heads=heads), storage, FOLDER, key, NOW, earlier=earlier
        )
    )  # fmt: skip


def findings(ledger: Ledger, storage: Storage, key: Ed25519PrivateKey) -> list[str]:
    proven = proof("m", kept(storage, FOLDER), [key.public_key()])
    return [str(finding) for finding in (*ledger.verify("m", heads=proven.ids), *proven.doubtful)]


def test_a_locked_head_is_not_removed_and_a_deleted_one_still_proves(
    storage: Storage, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    entries = chain(2)
    ledger = put(tmp_path / "ledger.db", entries)
    signed(ledger, storage, key)
    [(uri, version)] = storage.versions(FOLDER)
    name = {"Bucket": BUCKET, "Key": uri.removeprefix(f"s3://{BUCKET}/")}
    client = storage._s3()

    with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
        client.delete_object(**name, VersionId=version, BypassGovernanceRetention=True)
    # without a version it is only hidden: it is in no list any more, and proves what it proved
    client.delete_object(**name)
    assert storage.list(FOLDER) == []
    cut = put(tmp_path / "cut.db", entries[:6])
    assert findings(cut, storage, key) == [
        f"entry {len(entries)}: was signed, and is gone", f"{uri}: was deleted; the object lock kept it",
    ]  # fmt: skip


def test_a_head_that_was_overwritten_is_named_and_the_first_still_proves(
    storage: Storage, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    entries = chain(2)
    signed(put(tmp_path / "ledger.db", entries), storage, key)
    [(uri, _)] = storage.versions(FOLDER)
    other = put(tmp_path / "other.db", chain(2, by="mallory"))
    anew = other.head("m")
    assert anew is not None
    head = Head(model="m", number=anew.number, id=anew.id, signed_at=NOW)
    storage.write(uri, sign(head, private_key(tmp_path / "mallory.pem")).model_dump_json().encode())

    said = findings(other, storage, key)
    assert f"entry {anew.number}: is {anew.id[:12]}, and was signed as {entries[-1].id[:12]}" in said
    assert len([line for line in said if "its signature does not hold" in line]) == 1
    assert [line.partition("?versionId=")[0] for line in said if "; the object lock kept it" in line] == [uri]
    assert len([line for line in said if "was overwritten" in line]) == 1
    assert len(said) == 3


def test_a_head_that_was_written_again_as_it_was_is_no_finding(
    storage: Storage, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    ledger = put(tmp_path / "ledger.db", chain(2))
    signed(ledger, storage, key)
    [(uri, _)] = storage.versions(FOLDER)
    storage.write(uri, storage.read(uri))

    assert len(storage.versions(FOLDER)) == 2
    assert findings(ledger, storage, key) == []
    storage.delete(uri)
    assert findings(ledger, storage, key) == [f"{uri}: was deleted; the object lock kept it"]


def test_what_was_written_anew_is_not_signed(storage: Storage, key: Ed25519PrivateKey, tmp_path: Path) -> None:
    entries = chain(3)
    [first] = signed(put(tmp_path / "ledger.db", entries[:8]), storage, key)
    assert (first.findings, "signed by key" in first.line) == ((), True)
    [again] = signed(put(tmp_path / "ledger.db", entries[:8]), storage, key)
    assert len(storage.versions(FOLDER)) == 1, "the same head is kept once"
    [later] = signed(put(tmp_path / "ledger.db", entries), storage, key)
    assert later.findings == again.findings == ()
    assert len(storage.versions(FOLDER)) == 2

    [anew] = signed(put(tmp_path / "ledger.db", chain(4, by="mallory")), storage, key)
    assert "was not signed" in anew.line
    assert [finding.where for finding in anew.findings] == ["entry 8", f"entry {len(entries)}"]
    assert len(storage.versions(FOLDER)) == 2


def test_after_a_change_of_keys_heads_of_the_earlier_still_count(
    storage: Storage, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    entries, new = chain(3), private_key(tmp_path / "new.pem")
    before = put(tmp_path / "ledger.db", entries[:8])
    signed(before, storage, key)

    [alone] = signed(before, storage, new)
    assert "entry 8 was not signed" in alone.line, "nobody said whose the earlier head is"
    assert "its signature does not hold" in str(alone.findings)
    [same] = signed(before, storage, new, key.public_key())
    assert f"entry 8 ({entries[7].id[:12]}) signed by key {fingerprint(key.public_key())}: " in same.line
    [anew] = signed(put(tmp_path / "ledger.db", chain(4, by="mallory")), storage, new, key.public_key())
    assert [finding.where for finding in anew.findings] == ["entry 8"]
    [later] = signed(put(tmp_path / "ledger.db", entries), storage, new, key.public_key())
    assert f"signed by key {fingerprint(new.public_key())}: " in later.line
    both = proof("m", kept(storage, FOLDER), [new.public_key(), key.public_key()])
    assert (sorted(both.ids), both.doubtful) == ([8, len(entries)], [])


def test_what_is_no_head_in_a_heads_place_does_not_pass_for_one(
    storage: Storage, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    entries = chain(1)
    ledger, place = put(tmp_path / "ledger.db", entries), f"{FOLDER}/m/{4:09d}-{entries[3].id[:12]}.json"

    def look(model: str, heads: Mapping[int, str]) -> list[Finding]:
        storage.write(place, b"another's")  # after the signer has looked
        return ledger.verify(model, heads=heads)

    [raced] = sign_heads(ledger.heads(), look, storage, FOLDER, key, NOW)
    assert (raced.line, [finding.where for finding in raced.findings]) == (
        "m: entry 4 was not signed: something else was put in its place", [place],
    )  # fmt: skip
    [there] = signed(ledger, storage, key)
    assert "was not signed" in there.line
    assert [str(finding) for finding in there.findings] == [f"{place}: is no signed head"]


def test_the_signer_of_a_platform_signs_by_its_settings(
    storage: Storage, endpoint: str, key: Ed25519PrivateKey, tmp_path: Path
) -> None:
    ledger = put(tmp_path / "ledger.db", chain(1))
    own: dict[str, Any] = {
        "store": "s3://retrain-store", "tracking_uri": "http://mlflow:5000", "s3_endpoint": endpoint,
        "audit_heads": FOLDER, "ledger": f"sqlite:///{tmp_path / 'ledger.db'}",
        "audit_key": (tmp_path / "audit.pem").read_text(), **KEYS,
    }  # fmt: skip

    def run(**changed: str) -> subprocess.CompletedProcess[str]:
        kept_back = {name: value for name, value in os.environ.items() if not name.startswith("RETRAIN_")}
        environment = kept_back | {variable(name): value for name, value in (own | changed).items()}
        return subprocess.run(
            [sys.executable, "-m", "steps.audit.sign"], env=environment, capture_output=True, text=True, check=False
        )

    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "m: entry 4" in done.stdout
    assert findings(ledger, storage, key) == []
    newest = proof("m", kept(storage, FOLDER), [key.public_key()]).newest
    assert newest is not None
    assert abs((datetime.now(UTC) - newest.signed_at).total_seconds()) < 600

    new = private_key(tmp_path / "new.pem")
    own["audit_key"] = (tmp_path / "new.pem").read_text()
    assert run().returncode == 65
    own["audit_key"] += public_text(key)
    again = run()
    assert (again.returncode, again.stderr) == (0, "")
    put(tmp_path / "ledger.db", chain(2))
    assert f" signed by key {fingerprint(new.public_key())}: " in run().stdout

    none = run(audit_key="")
    assert (none.returncode, none.stdout) == (78, "")
    assert none.stderr == "RETRAIN_AUDIT_KEY holds no Ed25519 key in PEM\n"
    assert run(audit_heads="").returncode == 78
    put(tmp_path / "ledger.db", chain(3, by="mallory"))
    assert run().returncode == 65


def test_a_local_folder_of_heads_needs_no_versions(key: Ed25519PrivateKey, tmp_path: Path) -> None:
    storage = Storage(make_settings(tmp_path))
    folder = (tmp_path / "heads").as_uri()
    head = Head(model="m", number=4, id="4" * 64, signed_at=NOW)
    uri = keep(storage, folder, sign(head, key))
    assert storage.versions(folder) == [(uri, "")]
    assert kept(storage, folder).hidden == ()
    assert proof("m", kept(storage, folder), [key.public_key()]).newest == head
