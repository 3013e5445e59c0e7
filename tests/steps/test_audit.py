"""The ledger against whoever may write to its database: what is tampered with is named."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConfigError, Finding
from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps.audit.heads import Head, Kept, SignedHead, proof, sign
from steps.audit.key import fingerprint, private_key, public_keys
from steps.keys import public_text
from steps.ledger import Ledger
from steps.ledger.chain import chained, check_chain, to_row
from tests.steps.registered import NOW

STATES = (State.REGISTERED, State.APPROVED, State.RELEASING, State.SERVING)
Rows = list[dict[str, Any]]


def chain(versions: int, *, by: str = "ann") -> list[LedgerEntry]:
    """Versions that serve one after the other, a minute an entry."""
    found: list[LedgerEntry] = []

    def enter(state: State, version: int) -> None:
        found.append(
            chained(
                found[-1] if found else None, model="m", state=state, version=version, run_id=f"run-{version}",
                workflow="w", by=by, reason="", evidence={"dataset_sha256": f"{version:064x}", "n": len(found)},
                at=NOW + timedelta(minutes=len(found)),
            )
        )  # fmt: skip

    for version in range(1, versions + 1):
        for state in STATES:
            if state is State.SERVING and version > 1:
                enter(State.RETIRED, version - 1)
            enter(state, version)
    return found


WHOLE = [to_row(entry) for entry in chain(5)]


@st.composite
def tampered(draw: st.DrawFn) -> tuple[Rows, str]:
    """Rows of a chain after one deed, and the deed; its end is not cut off, which no chain shows."""
    rows: Rows = [dict(row) for row in WHOLE]
    deed = draw(st.sampled_from(["change", "remove", "insert", "reorder"]))
    k = draw(st.integers(0, len(rows) - 2))
    if deed == "change":
        field = draw(
            st.sampled_from(["state", "version", "run_id", "by", "reason", "evidence", "at", "previous", "id"])
        )
        rows[k][field] = {"version": 99, "evidence": '{"n":-1}', "state": "expired"}.get(field, "other")
    elif deed == "remove":
        del rows[k]
    elif deed == "insert":
        rows.insert(k, {**rows[k], "id": "f" * 64})
    else:
        other = draw(st.integers(0, len(rows) - 1).filter(lambda i: i != k))
        rows[k], rows[other] = rows[other], rows[k]
    return rows, deed


@settings(deadline=None)
@given(tampered())
def test_whatever_one_row_becomes_it_is_named(done: tuple[Rows, str]) -> None:
    rows, deed = done
    found = check_chain(rows)
    assert found, deed
    assert all("entry" in finding.where for finding in found)


def test_a_whole_chain_is_whole() -> None:
    assert check_chain(WHOLE) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def put(path: Path, entries: list[LedgerEntry]) -> Ledger:
    """Let a database hold these entries and no others, as only its owner can."""
    ledger = Ledger(f"sqlite:///{path}")
    ledger.models()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER ledger_no_DELETE")
        connection.execute("DELETE FROM ledger")
    connection.close()
    ledger = Ledger(f"sqlite:///{path}")
    ledger._rows.insert(entries)
    return ledger


def verify(ledger: Ledger, model: str, found: Kept, *keys: Ed25519PublicKey) -> list[Finding]:
    proven = proof(model, found, keys)
    return [*ledger.verify(model, heads=proven.ids), *proven.doubtful]


def as_kept(**heads: SignedHead) -> Kept:
    return Kept(contents={f"file:///heads/m/{name}.json": each.model_dump_json() for name, each in heads.items()})


def test_a_history_that_was_cut_or_written_anew_shows_against_a_signed_head(path: Path, tmp_path: Path) -> None:
    key, entries = private_key(tmp_path / "keys" / "audit.pem"), chain(3)
    ledger = put(path, entries)
    head = Head(model="m", number=12, id=entries[11].id, signed_at=NOW)
    heads = as_kept(twelve=sign(head, key))
    [public] = public_keys(tmp_path / "keys" / "audit.pub")
    assert verify(ledger, "m", heads, public) == []
    assert proof("m", heads, [public]).newest == head

    assert put(path, entries[:10]).verify("m") == [], "a cut end leaves a whole chain"
    [cut] = verify(Ledger(f"sqlite:///{path}"), "m", heads, public)
    assert str(cut) == "entry 12: was signed, and is gone"

    assert put(path, chain(3, by="mallory")).verify("m") == [], "so does another history"
    [anew] = verify(Ledger(f"sqlite:///{path}"), "m", heads, public)
    assert f"was signed as {entries[11].id[:12]}" in anew.what


def test_a_head_that_somebody_else_signed_proves_nothing(path: Path, tmp_path: Path) -> None:
    ledger = put(path, chain(1))
    ours, theirs = (private_key(tmp_path / name) for name in ("ours.pem", "theirs.pem"))
    head = Head(model="m", number=1, id="0" * 64, signed_at=NOW)
    changed = SignedHead(head=head, signature=sign(head.model_copy(update={"number": 2}), ours).signature, key="k")
    another = sign(head.model_copy(update={"model": "other"}), ours)
    heads = as_kept(forged=sign(head, theirs), moved=changed, stray=another)
    heads = Kept(contents={**heads.contents, "file:///heads/m/nonsense.json": "{}"})
    found = verify(ledger, "m", heads, ours.public_key())
    assert [str(finding).removeprefix("file:///heads/m/") for finding in found] == [
        f"forged.json: its signature does not hold (key {fingerprint(theirs.public_key())})",
        "moved.json: its signature does not hold (key k)",
        "nonsense.json: is no signed head",
        "stray.json: is a head of other, put in another's place",
    ]


def test_two_heads_of_one_entry_show_that_it_was_written_anew_between_them(path: Path, tmp_path: Path) -> None:
    key, entries = private_key(tmp_path / "audit.pem"), chain(1)
    ledger = put(path, entries)
    true = Head(model="m", number=4, id=entries[3].id, signed_at=NOW)
    heads = as_kept(a=sign(true.model_copy(update={"id": "0" * 64}), key), b=sign(true, key))
    said = [str(finding) for finding in verify(ledger, "m", heads, key.public_key())]
    assert any("was signed as 000000000000 and as" in line for line in said)


def test_who_changed_keys_keeps_the_public_half_of_the_earlier(path: Path, tmp_path: Path) -> None:
    ledger, keys = put(path, entries := chain(1)), [private_key(tmp_path / f"{n}.pem") for n in "ab"]
    heads = as_kept(**{
        f"of{k}": sign(Head(model="m", number=n, id=entries[n - 1].id, signed_at=NOW), key)
        for k, (key, n) in enumerate(zip(keys, (2, 4), strict=True))
    })  # fmt: skip
    both = tmp_path / "both.pub"
    both.write_text((tmp_path / "a.pub").read_text() + "earlier:\n" + (tmp_path / "b.pub").read_text())
    assert verify(ledger, "m", heads, *public_keys(both)) == []
    assert len(verify(ledger, "m", heads, *public_keys(tmp_path / "b.pub"))) == 1


def test_a_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "audit.pem"
    made = private_key(path)
    assert path.stat().st_mode & 0o077 == 0
    assert private_key(path).public_key() == made.public_key()
    assert (tmp_path / "audit.pub").read_text() == public_text(made)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        private_key(path)
    (tmp_path / "none.pub").write_text("no key")
    with pytest.raises(ConfigError, match="no Ed25519 public key"):
        public_keys(tmp_path / "none.pub")


def test_the_ledger_answers_for_any_moment(path: Path) -> None:
    entries = chain(3)
    ledger = put(path, entries)
    for k, entry in enumerate(entries):
        served = None
        for before in entries[: k + 1]:
            served = before.version if before.state is State.SERVING else served
            served = None if before.state is State.RETIRED and before.version == served else served
        for moment in (entry.at, entry.at + timedelta(seconds=59)):
            found = ledger.serving_at("m", moment)
            assert (found.version if found else None) == served
            assert ledger.history("m", 1, moment) == [e for e in entries[: k + 1] if e.version == 1]
    assert ledger.serving_at("m", NOW - timedelta(seconds=1)) is None
