"""Questions of an auditor about three moments in the past, asked of `retrain` alone, against what was done then.

The history is of thirty runs (`tests.audit.history`): approvals, refusals, rollbacks, a release that was taken back,
one that was killed, and an alias that somebody moved.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.audit.history import COMMITS, Keeper, Seen, make
from tests.faults.small_desk import NAME, SmallDesk

pytestmark = [pytest.mark.slow, pytest.mark.faults]  # thirty runs: five minutes and more

MOMENTS = 3


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    made = Keeper(SmallDesk.make(tmp_path_factory.mktemp("history")))
    try:
        make(made)
        print(f"{made.told.runs} runs, {len(made.told.made)} versions in {made.told.seconds:.0f} s")
        yield made
        print("seconds an answer took, the longest: ", {k: round(v, 1) for k, v in ASKED.items()})
    finally:
        made.desk.clear()


@pytest.fixture(params=range(MOMENTS))
def then(request: pytest.FixtureRequest, keeper: Keeper) -> Seen:
    """A moment of the past."""
    return keeper.told.moments[request.param]


ASKED: dict[str, float] = {}


def ask(keeper: Keeper, *words: str, at: datetime | None = None, code: int = 0) -> Any:
    """Type a question, and return the answer."""
    began = time.monotonic()
    answer = keeper.desk(*words, *(["--at", at.isoformat()] if at else []), code=code)
    name = " ".join(word for word in words[:2] if word.isalpha())
    ASKED[name] = max(ASKED.get(name, 0), time.monotonic() - began)
    return json.loads(answer) if "--json" in words else answer


def log(keeper: Keeper, at: datetime, *words: str) -> list[dict[str, Any]]:
    return list(ask(keeper, "audit", "log", *words, "--json", at=at))


def test_the_history_is_what_it_is_meant_to_be(keeper: Keeper) -> None:
    told = keeper.told
    assert told.runs == 30
    assert len(told.moments) == MOMENTS
    assert [seen.serving for seen in told.moments] == [4, 8, 12]
    kinds = {event.kind for event in told.events}
    assert kinds >= {"rejected", "superseded", "expired", "failed", "rolled-back", "rollback", "moved", "found"}
    assert len([event for event in told.events if event.kind == "rollback"]) == 2


def test_1_which_version_served(keeper: Keeper, then: Seen) -> None:
    found = ask(keeper, "lineage", "production", "--json", at=then.at)
    assert (found["version"], found["state"]) == (then.serving, "serving")
    assert datetime.fromisoformat(found["serving"]["since"]) <= then.at
    assert f"{NAME} version {then.serving}\n" in ask(keeper, "lineage", at=then.at)


def test_2_from_which_data_code_and_parameters_it_was_made(keeper: Keeper, then: Seen) -> None:
    found, made = ask(keeper, "lineage", "--json", at=then.at), keeper.told.made[then.serving]
    assert found["dataset"]["sha256"] == made.dataset_sha256
    assert found["code"]["commit"] == made.commit
    assert found["parameters"]["parameters.num_leaves"] == str(made.leaves)
    assert found["run_id"] == made.run_id
    text = ask(keeper, "lineage", at=then.at)
    for part in (made.dataset_sha256, made.commit, f"num_leaves={made.leaves}", made.run_id):
        assert part in text
    statement = json.loads(ask(keeper, "audit", "export", at=then.at))
    [dataset] = [d for d in statement["predicate"]["buildDefinition"]["resolvedDependencies"] if d["name"] == "dataset"]
    assert dataset["digest"] == {"sha256": made.dataset_sha256}
    decided = [b["annotations"]["at"] for b in statement["predicate"]["runDetails"]["byproducts"] if "annotations" in b]
    assert max(map(datetime.fromisoformat, decided)) <= then.at, "what came later is in no statement of then"


def test_3_who_or_what_let_it_through_and_why(keeper: Keeper, then: Seen) -> None:
    found, word = ask(keeper, "lineage", "--json", at=then.at), keeper.told.let_through(then.serving, then.at)
    said = found["approval"]
    assert said["word"] == {"the gate": "gate", "a person": "person", "rollback": "rollback"}[word.kind]
    assert (said["by"] == keeper.person) == (word.kind != "the gate")
    assert word.why in said["reason"]
    assert datetime.fromisoformat(said["at"]) <= word.at
    assert word.why in ask(keeper, "lineage", at=then.at)


def test_4_what_the_gates_measured(keeper: Keeper, then: Seen) -> None:
    """Of each version that there was: what was let through, and what was not."""
    for version, made in keeper.told.made.items():
        if made.at > then.at or version > then.serving:
            continue
        found = ask(keeper, "lineage", str(version), "--json", at=then.at)
        [check] = [check for check in found["validation"]["checks"] if check["name"] == "roc_auc"]
        assert check["value"] == pytest.approx(made.roc_auc, abs=1e-12)
        [stricter] = [c for c in found["promotion"]["checks"] if c["name"] == "roc_auc" and c["min"] == 0.85]
        assert stricter["value"] == pytest.approx(made.roc_auc, abs=1e-12)
        assert (stricter["verdict"] == "passed") == (made.roc_auc >= 0.85)


def test_5_which_versions_were_made_from_a_dataset(keeper: Keeper, then: Seen) -> None:
    made = {version: one for version, one in keeper.told.made.items() if one.at <= then.at}
    for sha256 in {one.dataset_sha256 for one in made.values()}:
        wanted = {version for version, one in made.items() if one.dataset_sha256 == sha256}
        assert versions(log(keeper, then.at, sha256, "--only", "registered")) == wanted
    first = keeper.told.made[1].dataset_sha256
    assert versions(log(keeper, then.at, first[:12])) == ({1, 12} if then is keeper.told.moments[2] else {1})


def test_6_which_versions_were_made_from_a_commit(keeper: Keeper, then: Seen) -> None:
    made = {version: one for version, one in keeper.told.made.items() if one.at <= then.at}
    for commit in COMMITS.values():
        wanted = {version for version, one in made.items() if one.commit == commit}
        if wanted:
            assert versions(log(keeper, then.at, commit, "--only", "registered")) == wanted
        else:
            assert "nothing of a version's making" in ask(keeper, "audit", "log", commit, at=then.at, code=78)


def test_7_which_version_answered_a_prediction(keeper: Keeper, then: Seen) -> None:
    found = ask(keeper, "lineage", then.prediction, "--json", at=then.at)
    assert found["version"] == then.answered_by == then.serving
    assert found["state"] == "serving"
    assert found["dataset"]["sha256"] == keeper.told.made[then.answered_by].dataset_sha256


def test_8_was_the_alias_moved_by_hand_and_when_was_it_found(keeper: Keeper, then: Seen) -> None:
    [moved], [found] = keeper.told.before(then.at, "moved"), keeper.told.before(then.at, "found")
    [entry] = log(keeper, then.at, "--only", "alias-moved")
    assert (entry["evidence"]["to"], entry["evidence"]["serving"]) == (moved.version, moved.before)
    assert moved.at < datetime.fromisoformat(entry["at"]) < found.at
    assert f"was moved by other means, from version 4 to version {moved.version}" in entry["reason"]


def test_9_which_releases_failed_and_which_versions_were_refused(keeper: Keeper, then: Seen) -> None:
    kinds = ("failed", "rolled-back", "rejected", "expired", "superseded")
    entries = log(keeper, then.at, *(word for kind in kinds for word in ("--only", kind)))
    events = keeper.told.before(then.at, *kinds)
    assert [(e["state"], e["version"]) for e in entries] == [(event.kind, event.version) for event in events]
    for entry, event in zip(entries, events, strict=True):
        assert event.why in entry["reason"]
        assert datetime.fromisoformat(entry["at"]) < event.at
    text = ask(keeper, "audit", "log", "--only", "rejected", at=then.at)
    assert text.count("\n") == len([event for event in events if event.kind == "rejected"])


def test_10_who_rolled_back_from_what_to_what_and_why(keeper: Keeper, then: Seen) -> None:
    approved = log(keeper, then.at, "--only", "approved")
    back = [entry for entry in approved if entry["workflow"] == "rollback"]
    events = keeper.told.before(then.at, "rollback")
    assert [(e["version"], e["evidence"]["rollback_from"], e["by"], e["reason"]) for e in back] == [
        (event.version, event.before, keeper.person, event.why) for event in events
    ]


def test_what_waited_for_a_person(keeper: Keeper, then: Seen) -> None:
    found = ask(keeper, "approvals", "--json", at=then.at)
    assert tuple(entry["workflow"] for entry in found) == then.waiting
    for entry in found:
        assert entry["lapsed"] == ""
        assert "roc_auc" in ask(keeper, "review", entry["workflow"])


def test_the_ledger_of_then_is_whole_and_still_the_one_that_was_signed(keeper: Keeper, then: Seen) -> None:
    entries = log(keeper, then.at)
    assert [entry["number"] for entry in entries] == list(range(1, then.entries + 1))
    [head] = (keeper.heads / NAME).glob(f"{then.entries:09d}-*.json")
    assert json.loads(head.read_text())["head"]["id"] == entries[-1]["id"]
    said = ask(keeper, "audit", "verify", *pinned(keeper))
    assert f"chain intact; {MOMENTS} signed heads hold" in said


@pytest.mark.parametrize("deed", ["changed", "removed", "cut", "written anew"])
def test_a_ledger_that_was_tampered_with_does_not_pass(deed: str, keeper: Keeper, tmp_path: Path) -> None:
    copy = tmp_path / "home"
    copy.mkdir()
    shutil.copy(keeper.desk.home / "ledger.db", copy)
    first = keeper.told.moments[0].entries
    with contextlib.closing(sqlite3.connect(copy / "ledger.db")) as database, database:
        for verb in ("UPDATE", "DELETE"):
            database.execute(f"DROP TRIGGER ledger_no_{verb}")
        if deed == "changed":
            database.execute("UPDATE ledger SET by = 'nobody' WHERE number = 7")
        elif deed == "removed":
            database.execute("DELETE FROM ledger WHERE number = 7")
        else:
            database.execute("DELETE FROM ledger WHERE number >= ?", (first if deed == "cut" else 1,))
    if deed == "written anew":
        rewrite(keeper, copy)
    said = keeper.desk("audit", "verify", *pinned(keeper), code=65, RETRAIN_HOME=str(copy))
    assert {
        "changed": "entry 7 ", "removed": "follows an entry that was removed",
        "cut": f"entry {first}: was signed, and is gone", "written anew": f"entry {first}: is ",
    }[deed] in said  # fmt: skip


def rewrite(keeper: Keeper, copy: Path) -> None:
    """Write the whole history once more with another name in it, so that its own chain holds."""
    from steps.ledger import Ledger
    from steps.ledger.chain import chained

    last, entries = None, []
    for entry in Ledger(f"sqlite:///{keeper.desk.home / 'ledger.db'}").entries(NAME):
        fields = {name: getattr(entry, name) for name in ("model", "state", "version", "run_id", "workflow", "reason")}
        last = chained(last, evidence=entry.evidence, at=entry.at, by="nobody", **fields)
        entries.append(last)
    anew = Ledger(f"sqlite:///{copy / 'ledger.db'}")
    anew._rows.insert(entries)
    assert anew.verify(NAME) == []


def pinned(keeper: Keeper) -> tuple[str, ...]:
    return ("--key", str(keeper.key.with_suffix(".pub")), "--heads", str(keeper.heads))


def versions(entries: list[dict[str, Any]]) -> set[int]:
    return {entry["version"] for entry in entries}
