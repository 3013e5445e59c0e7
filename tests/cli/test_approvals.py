"""A pipeline whose versions a person lets through, as that person sees it: ask, look, say no, say yes, go back."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.outcomes import State
from steps.ledger import Ledger
from tests.faults.small_desk import NAME, SmallDesk, write_rows

pytestmark = [pytest.mark.slow, pytest.mark.faults]  # several runs each: a minute and more


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[SmallDesk]:
    made = SmallDesk.make(tmp_path)
    file = tmp_path / "churn.yaml"
    file.write_text(file.read_text().replace("  default:\n", "  default:\n    decision: approval\n"))
    yield made
    made.clear()


def test_a_person_decides(desk: SmallDesk) -> None:
    first = json.loads(desk("run", "churn.yaml", "--json"))
    assert (first["outcome"], first["version"], first["url"]) == ("awaiting-approval", 1, "")
    run = first["workflow"]
    assert "look: retrain review churn@1" in desk("logs", run, "notify")
    assert f"{run}  churn version 1, asked" in desk("approvals")
    shown = desk("review", "churn@1")
    assert "roc_auc" in shown
    assert first["dataset_sha256"][:12] in shown
    assert "page: gates/review-1.html of MLflow run" in shown
    assert "what to do: name another file after --page" in desk("review", run, "--page", "none/p.html", code=78)
    desk("review", run, "--page", "page.html")
    assert (desk.folder / "page.html").read_text().startswith("<!doctype html>")

    # nobody lets it through by hand, and who says why must say something
    by_hand = json.loads(desk("run", "churn.yaml", "--entrypoint", "release", "--version", "1", "--json"))
    assert by_hand["outcome"] == "not-approved"
    assert desk.answering() is None
    desk("approve", run, code=64)

    desk("reject", run, "--reason", "not in this month")
    assert "nothing waits" in desk("approvals")
    assert "is decided: version 1 is rejected" in desk("approve", run, "--reason", "but yes", code=78)

    # asked anew, since nothing changed; and let through
    again = json.loads(desk("run", "churn.yaml", "--json"))
    assert (again["outcome"], again["version"]) == ("awaiting-approval", 1)
    done = json.loads(desk("approve", again["workflow"], "--reason", "looked at", "--json", "--require-promoted"))
    assert (done["outcome"], done["version"]) == ("promoted", 1)
    assert desk.answering() == 1
    known = json.loads(desk("lineage", "--json"))
    assert known["approval"]["by"].endswith("(unauthenticated)")
    assert known["approval"]["reason"] == "looked at"
    told = [line for line in json.loads(desk("doctor", "--json")) if line["what"] == "churn approvals"]
    assert [(line["state"], line["found"][:6]) for line in told] == [("note", "2 of 2")]


def test_a_version_is_taken_back_and_the_ledger_answers_for_then(desk: SmallDesk) -> None:
    first = json.loads(desk("run", "churn.yaml", "--json"))
    desk("approve", first["workflow"], "--reason", "looked at", "--require-promoted")
    known = json.loads(desk("lineage", "--json"))
    desk("audit", "sign", "--key", str(desk.folder / "audit.pem"))

    # another version, let through by its number, and back again
    write_rows(desk.folder / "churn.csv", seed=5)
    second = json.loads(desk("run", "churn.yaml", "--json"))
    assert second["outcome"] == "awaiting-approval"
    assert "version 1, serves" in desk("review", second["workflow"])
    desk("approve", "2", "--reason", "newer data", "--require-promoted")
    assert desk.answering() == 2
    back = json.loads(desk("rollback", "--reason", "complaints", "--json"))
    assert (back["outcome"], back["version"]) == ("promoted", 1)
    assert back["promotion"]["reason"].endswith("(unauthenticated): complaints"), "not what the gate said once"
    assert back["promotion"]["checks"] == []
    assert desk.answering() == 1
    assert "version 1 serves already" in desk("rollback", "--to", "1", "--reason", "again")
    assert "there is no version to go back to" in desk("rollback", "--reason", "further", code=78)
    json.loads(desk("rollback", NAME, "--to", "2", "--reason", "it was not that", "--json"))
    assert desk.end_state().versions == {1: "retired", 2: "serving"}
    assert all(line["state"] != "wrong" for line in json.loads(desk("doctor", "--json")))

    # the ledger answers for then, and it shows when it is cut
    then = json.loads(desk("lineage", "--at", known["serving"]["since"], "--json"))
    assert (then["version"], then["state"]) == (1, "serving")
    assert json.loads(desk("lineage", first["dataset_sha256"][:12], "--json"))["version"] == 1
    public = ("--key", str(desk.folder / "audit.pub"))
    assert "1 signed heads hold" in desk("audit", "verify", *public)
    ledger = desk.home / "ledger.db"
    with contextlib.closing(sqlite3.connect(ledger)) as database, database:
        database.execute("DROP TRIGGER ledger_no_DELETE")
        database.execute("DELETE FROM ledger WHERE number > 3")
    assert "was signed, and is gone" in desk("audit", "verify", *public, code=65)


def test_a_release_that_was_cut_off_goes_on_by_the_same_word_and_by_no_later_one(desk: SmallDesk) -> None:
    run = json.loads(desk("run", "churn.yaml", "--json"))["workflow"]
    cut = cut_while_releasing(desk, "approve", run, "--reason", "looked at")
    assert f"`retrain approve {run} --reason ...` goes on with it" in told(desk)[cut]
    said = desk("approve", run, "--reason", "looked at twice", "--require-promoted")
    assert "kept with that reason: looked at" in said
    assert "goes on with the release of version 1" in said
    assert newest(desk) == cut
    write_rows(desk.folder / "churn.csv", seed=5)
    second = json.loads(desk("run", "churn.yaml", "--json"))["workflow"]
    desk("approve", second, "--reason", "newer data", "--require-promoted")

    cut = cut_while_releasing(desk, "rollback", "--reason", "complaints")
    assert "`retrain rollback churn --to 1 --reason ...` goes on with it" in told(desk)[cut]
    said = desk("rollback", "--reason", "more complaints")
    assert "kept with that reason: complaints" in said
    assert "goes on with the release of version 1" in said
    assert newest(desk) == cut
    assert desk.answering() == 1
    assert told(desk) == {}

    # taken over by another run, it is over, and a later word is a release of its own
    cut = cut_while_releasing(desk, "rollback", "--to", "2", "--reason", "it was not that")
    desk("run", "churn.yaml", "--entrypoint", "release", "--version", "2", "--new", "--require-promoted")
    assert told(desk) == {}
    assert "goes on" not in desk("rollback", "--to", "1", "--reason", "it was")
    said = desk("rollback", "--to", "2", "--reason", "really not")
    assert "runs the release of version 2" in said
    assert "said already" not in said
    assert newest(desk) != cut
    assert desk.end_state().versions == {1: "retired", 2: "serving"}


def cut_while_releasing(desk: SmallDesk, *words: str) -> str:
    """Interrupt a command while its deploy is at work; return the name of the run that it leaves."""
    ledger = Ledger(f"sqlite:///{desk.home / 'ledger.db'}")
    process = desk.start(*words)
    while ledger.entries(NAME)[-1].state is not State.RELEASING:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, out + error
    assert ledger.entries(NAME)[-1].state is State.RELEASING
    return newest(desk)


def newest(desk: SmallDesk) -> str:
    return str(json.loads(desk("status", "--json"))["metadata"]["name"])


def told(desk: SmallDesk) -> dict[str, str]:
    """What doctor says of runs that were cut off: the remedy, by run."""
    lines = json.loads(desk("doctor", "--json"))
    return {line["found"].split()[0]: line["remedy"] for line in lines if line["what"] == "run"}
