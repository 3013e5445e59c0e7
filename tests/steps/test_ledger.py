"""The ledger on SQLite: races, crashes, tampering, errors by class."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.errors import CODE, ConfigError, DataError, NetworkError, StorageError
from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps.ledger import Ledger, LostRace, guards
from steps.ledger.chain import GENESIS, chained, to_row
from steps.lifecycle import IllegalTransition

AT = datetime(2026, 1, 1, 3, 0, tzinfo=UTC)
Put = Callable[..., LedgerEntry]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger(f"sqlite:///{path}", busy_seconds=0.2)


def write(ledger: Ledger, state: State, version: int, model: str = "churn", **more: Any) -> LedgerEntry:
    fields = {
        "workflow": "w-1",
        "by": "ann",
        "reason": "",
        "evidence": {},
        "after": ledger.head(model),
        "at": AT,
    } | more
    return ledger.append(model, state, version=version, run_id=f"run-{version}", **fields)


def release(ledger: Ledger, version: int) -> LedgerEntry:
    for state in (State.REGISTERED, State.APPROVED, State.RELEASING):
        write(ledger, state, version)
    return write(ledger, State.SERVING, version)


def tamper(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        for verb in ("UPDATE", "DELETE"):
            connection.execute(f"DROP TRIGGER IF EXISTS ledger_no_{verb}")
        connection.execute(statement)
    connection.close()


def test_the_first_use_makes_folder_and_schema(ledger: Ledger) -> None:
    assert ledger.models() == []
    assert ledger.head("churn") is None
    assert ledger.serving("churn") is None


def test_an_entry_comes_back_as_it_was_written(ledger: Ledger) -> None:
    evidence = {"roc_auc": 0.1 + 0.2, "name": "Größe", "list": [1, None, True]}
    at = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    written = write(ledger, State.REGISTERED, 7, evidence=evidence, at=at, reason="passed")
    [read] = ledger.entries("churn")
    assert read == written
    assert (read.number, read.previous, read.version, read.run_id) == (1, GENESIS, 7, "run-7")
    assert read.evidence == evidence
    assert read.at == at


def test_the_id_is_the_hash_that_the_docs_describe(ledger: Ledger) -> None:
    entry = write(ledger, State.REGISTERED, 1, evidence={"b": 1.5, "a": "é"})
    fields = {
        "at": "2026-01-01T03:00:00.000000Z", "by": "ann", "evidence": {"a": "é", "b": 1.5}, "model": "churn",
        "number": 1, "previous": "0" * 64, "reason": "", "run_id": "run-1", "state": "registered", "version": 1,
        "workflow": "w-1",
    }  # fmt: skip
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert entry.id == hashlib.sha256(text.encode()).hexdigest()
    assert entry.id == "4ee17946caa86fcd33fc3483d4f59dd3625d484d090ff5c5a337d295845baa3f"


def test_of_two_that_decide_at_once_one_loses(ledger: Ledger) -> None:
    seen = write(ledger, State.REGISTERED, 1)
    write(ledger, State.APPROVED, 1, after=seen)
    with pytest.raises(LostRace) as caught:
        write(ledger, State.REJECTED, 1, after=seen)
    assert caught.value.row is CODE
    assert "entry 2, version 1 approved by ann (workflow w-1), came first; nothing was written" in caught.value.message
    assert len(ledger.entries("churn")) == 2


def test_the_database_itself_refuses_a_second_entry_after_the_same_one(ledger: Ledger, path: Path) -> None:
    write(ledger, State.REGISTERED, 1)
    rest = "previous, state, version, run_id, workflow, 'by', reason, evidence, at"
    copy = f"INSERT INTO ledger SELECT '{'f' * 64}', model, 1, {rest} FROM ledger"
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        tamper(path, copy)


NO_ENTRY: dict[str, dict[str, Any]] = {
    "evidence is no JSON": {"evidence": "not json"},
    "evidence is no object": {"evidence": "[]"},
    "a state that nobody knows": {"state": "believed"},
    "an id that is no hash": {"id": "A" * 64},
    "a previous that is none's": {"previous": "f" * 64},
    "a second beginning": {"previous": GENESIS},
    "a number that leaves a gap": {"number": 2**31 - 1},
    "a number before the first": {"number": 0, "previous": GENESIS},
    "a version before the first": {"version": -1},
    "a moment that is none": {"at": "2026-02-30T03:00:00.000000Z"},
    "a moment in other words": {"at": "2026-01-01 03:00:00.000000Z"},
    "a model that is a path": {"model": "../churn", "number": 1, "previous": GENESIS},
}
"""What is wrong, and by which fields of a second entry."""


def second_row(first: LedgerEntry, **changed: Any) -> dict[str, Any]:
    entry = chained(
        first, model=first.model, state=State.APPROVED, version=1, run_id="run-1", workflow="w", by="mallory",
        reason="", evidence={}, at=AT,
    )  # fmt: skip
    return to_row(entry) | changed


@pytest.mark.parametrize("wrong", NO_ENTRY)
def test_the_database_itself_refuses_what_is_no_entry(ledger: Ledger, path: Path, wrong: str) -> None:
    row = second_row(write(ledger, State.REGISTERED, 1), **NO_ENTRY[wrong])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        with pytest.raises(sqlite3.Error, match="no entry of the ledger"):
            connection.execute(f"INSERT INTO ledger VALUES ({', '.join('?' * len(row))})", [*row.values()])
        whole = second_row(ledger.entries("churn")[0])
        connection.execute(f"INSERT INTO ledger VALUES ({', '.join('?' * len(row))})", [*whole.values()])


def test_an_entry_that_cannot_be_read_is_named_and_verified(ledger: Ledger, path: Path) -> None:
    row = second_row(write(ledger, State.REGISTERED, 1), evidence="not json")
    tamper(path, "DROP TRIGGER ledger_well_formed")
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"INSERT INTO ledger VALUES ({', '.join('?' * len(row))})", [*row.values()])
    for ask in (ledger.entries, ledger.serving, ledger.head):
        with pytest.raises(DataError, match=rf"entry 2 \({row['id'][:12]}\) of churn in the ledger cannot be read"):
            ask("churn")
    assert ledger.heads() == {"churn": (2, row["id"])}
    assert [finding.where for finding in ledger.verify("churn")] == [f"entry 2 ({row['id'][:12]})"]


@pytest.mark.parametrize("statement", ["UPDATE ledger SET reason = 'x'", "DELETE FROM ledger"])
def test_the_table_is_append_only(ledger: Ledger, path: Path, statement: str) -> None:
    write(ledger, State.REGISTERED, 1)
    with sqlite3.connect(path) as connection, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_a_part_of_the_schema_that_is_missing_is_made_at_the_next_use(ledger: Ledger, path: Path) -> None:
    write(ledger, State.REGISTERED, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER ledger_no_DELETE")
        connection.execute("DROP TRIGGER ledger_well_formed")
        connection.execute(
            "CREATE TRIGGER ledger_well_formed BEFORE INSERT ON ledger "
            "WHEN NEW.state = 'unknown to an earlier version' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        connection.execute("DROP INDEX ledger_state")
        connection.execute("CREATE INDEX someone_elses ON ledger (run_id)")
        connection.execute("CREATE INDEX another_ones ON ledger (reason)")
    connection.close()
    Ledger(f"sqlite:///{path}").models()
    with sqlite3.connect(path) as connection:
        made = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
    connection.close()
    assert {"ledger_no_DELETE", "ledger_no_UPDATE", "ledger_state", "ledger_version"} <= made.keys()
    assert made["ledger_well_formed"] == guards.sqlite("ledger")["ledger_well_formed"]


def test_a_new_version_serves_and_the_old_one_retires_in_one_transaction(ledger: Ledger) -> None:
    release(ledger, 1)
    serving = release(ledger, 2)
    retired = ledger.entries("churn")[-2]
    assert (retired.state, retired.version, retired.run_id) == (State.RETIRED, 1, "run-1")
    assert retired.evidence == {"replaced_by": 2}
    assert ledger.serving("churn") == serving
    assert ledger.state("churn", 1) is State.RETIRED
    assert ledger.verify("churn") == []


def test_an_illegal_transition_writes_nothing(ledger: Ledger) -> None:
    write(ledger, State.REGISTERED, 1)
    with pytest.raises(IllegalTransition):
        write(ledger, State.SERVING, 1)
    assert len(ledger.entries("churn")) == 1


def test_evidence_that_is_not_json_writes_nothing(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(ledger, State.REGISTERED, 1, evidence={"auc": float("nan")})
    assert ledger.entries("churn") == []


def test_a_release_goes_on_while_other_versions_are_registered(ledger: Ledger) -> None:
    write(ledger, State.REGISTERED, 1)
    write(ledger, State.APPROVED, 1)
    releasing = write(ledger, State.RELEASING, 1)
    write(ledger, State.REGISTERED, 2)
    assert write(ledger, State.SERVING, 1, after=ledger.hold(releasing)[0]).version == 1


def test_a_release_that_was_taken_over_cannot_go_on_even_when_its_version_releases_again(ledger: Ledger) -> None:
    write(ledger, State.REGISTERED, 1)
    write(ledger, State.APPROVED, 1)
    crashed = write(ledger, State.RELEASING, 1)
    taken = ledger.take_over(crashed, workflow="w-2", by="bob", reason="no sign of life", at=AT)
    assert (taken.state, taken.evidence) == (State.FAILED, {"takeover_of": crashed.id, "workflow": "w-1"})
    write(ledger, State.APPROVED, 1, workflow="w-2")
    write(ledger, State.RELEASING, 1, workflow="w-2")
    with pytest.raises(LostRace):
        ledger.hold(crashed)
    with pytest.raises(LostRace):
        ledger.take_over(crashed, workflow="w-3", by="bob", reason="", at=AT)


def test_models_have_chains_of_their_own(ledger: Ledger) -> None:
    write(ledger, State.REGISTERED, 1, model="a")
    write(ledger, State.REGISTERED, 1, model="b")
    assert ledger.models() == ["a", "b"]
    assert [e.previous for m in ("a", "b") for e in ledger.entries(m)] == [GENESIS, GENESIS]


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE ledger SET reason = 'other' WHERE number = 3", ["entry 3", "was changed"]),
        ("""UPDATE ledger SET evidence = '{"x":1}' WHERE number = 2""", ["entry 2", "was changed"]),
        ("UPDATE ledger SET evidence = 'no json' WHERE number = 2", ["entry 2", "was changed"]),
        ("UPDATE ledger SET state = 'blessed' WHERE number = 4", ["entry 4", "was changed"]),
        ("DELETE FROM ledger WHERE number = 3", ["entry 4", "was removed"]),
        ("DELETE FROM ledger WHERE number = 1", ["entry 2", "was removed"]),
        ("UPDATE ledger SET number = CASE number WHEN 2 THEN -3 ELSE 2 END WHERE number IN (2, 3)", ["entry", "moved"]),
    ],
)
def test_verify_names_the_entry_that_was_tampered_with(
    ledger: Ledger, path: Path, statement: str, said: list[str]
) -> None:
    release(ledger, 1)
    tamper(path, statement)
    told = [str(finding) for finding in ledger.verify("churn")]
    assert any(all(word in line for word in said) for line in told), told


def test_verify_sees_a_cut_end_only_against_a_head_kept_elsewhere(ledger: Ledger, path: Path) -> None:
    head = release(ledger, 1)
    tamper(path, "DELETE FROM ledger WHERE number = 4")
    assert ledger.verify("churn") == []
    [finding] = ledger.verify("churn", head=head.id)
    assert finding.where == "the end"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(list(State)), st.integers(1, 3)), max_size=25))
def test_whatever_is_written_verifies(tmp_path: Path, tries: list[tuple[State, int]]) -> None:
    path = tmp_path / "random.db"
    for file in tmp_path.glob("random.db*"):
        file.unlink()
    ledger = Ledger(f"sqlite:///{path}")
    for state, version in tries:
        try:
            write(ledger, state, version)
        except IllegalTransition:
            continue
    assert ledger.verify("churn") == []
    assert [e.number for e in ledger.entries("churn")] == list(range(1, len(ledger.entries("churn")) + 1))


def _create_and_write(url: str, model: str) -> str:
    return write(Ledger(url), State.REGISTERED, 1, model=model).id


def test_processes_that_create_the_ledger_at_once_all_succeed(path: Path) -> None:
    models = [f"m-{i}" for i in range(8)]
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        ids = list(pool.map(_create_and_write, [f"sqlite:///{path}"] * 8, models))
    ledger = Ledger(f"sqlite:///{path}")
    assert ledger.models() == models
    assert len(set(ids)) == 8
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_of_many_threads_that_approve_and_release_at_once_one_wins(path: Path) -> None:
    ledger = Ledger(f"sqlite:///{path}")
    write(ledger, State.REGISTERED, 1)
    approved = write(ledger, State.APPROVED, 1)

    def try_release(worker: int) -> bool:
        try:
            write(Ledger(f"sqlite:///{path}"), State.RELEASING, 1, after=approved, workflow=f"w-{worker}")
        except LostRace:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_release, range(16))) == 1
    assert ledger.verify("churn") == []


def test_the_lock_of_a_model_keeps_others_out(ledger: Ledger, path: Path) -> None:
    ledger.models()
    with ledger.exclusively("churn"), pytest.raises(StorageError, match="locked"):
        write(Ledger(f"sqlite:///{path}", busy_seconds=0.1), State.REGISTERED, 1)
    write(ledger, State.REGISTERED, 1)


def test_a_locked_database_is_class_storage(ledger: Ledger, path: Path) -> None:
    ledger.models()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="locked"):
        write(ledger, State.REGISTERED, 1)
    connection.close()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("", ConfigError),
        ("no url hunter2", ConfigError),
        ("mysql://ann:hunter2@host/ledger", ConfigError),
        ("sqlite:////proc/hunter2/ledger.db", ConfigError),
        ("postgresql://ann:hunter2@127.0.0.1:1/ledger", NetworkError),
        ("postgresql://ann:hunter2@127.0.0.1:notaport/ledger", ConfigError),
    ],
)
def test_a_wrong_url_is_told_without_showing_it(url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        Ledger(url).models()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_file_that_is_no_database_is_class_config(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database at all, but long enough to be read as one" * 50)
    with pytest.raises(ConfigError):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").models()
