"""The promote stage: a version against the policy and against what serves, decided once, entered in the ledger."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError, DataError
from contracts.names import page_name
from contracts.outcomes import Promotion, State
from contracts.references import ColumnSpec
from contracts.reports import PromotionReport
from contracts.stages import Promote
from steps import approvals, own_environment
from steps.approvals import Person
from steps.judging import champion
from steps.ledger import Ledger, LostRace
from steps.mlflow_connection import mlflow_client
from steps.promote import promote
from steps.storage import local_path
from steps.world import World
from tests.steps.judged_runs import PIPELINE, churn_world, registered, serve, train_run, write_rows
from tests.steps.registered import NOW

MODEL = "churn"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three registered versions: 1 weak, 2 good, 3 the same as 2; nothing serves."""
    home = tmp_path_factory.mktemp("promote")
    write_rows(home / "churn.csv")
    world = churn_world(home, workflow="earlier")
    for options in ({"name": "weak", "rounds": 2, "noise": 0.3}, {"name": "good"}, {"name": "twin"}):
        registered(world, train_run(world, home, **options))
    return home


@pytest.fixture
def home(trained: Path) -> Iterator[Path]:
    """The same home with a ledger of its own; runs and registry are only read, or written alike."""
    kept = trained / "ledger.db"
    shutil.copyfile(kept, trained / "kept.db")
    yield trained
    for old in trained.glob("ledger.db*"):
        old.unlink()
    (trained / "kept.db").rename(kept)


def decide(world: World, version: int, by: str = "") -> tuple[Promote.Outputs, PromotionReport]:
    inputs = Promote.Inputs(version=version, requested_by=by, entrypoint="retrain")
    outputs = promote(inputs, world=world)
    return outputs, PromotionReport.model_validate_json(world.storage.read(outputs.report))


def serving(home: Path, version: int) -> None:
    """Let a version serve without asking any gate."""
    world = churn_world(home, workflow="earlier")
    world.ledger.append(
        MODEL, State.APPROVED, version=version, run_id=world.registry.run_of(version), workflow="earlier", by="test",
        reason="test", evidence={}, after=world.ledger.head(MODEL), at=NOW,
    )  # fmt: skip
    serve(world, version)


def test_the_first_version_needs_the_absolute_checks_only(home: Path):
    world = churn_world(home)
    outputs, report = decide(world, 2, by="ada")
    assert outputs.decision is Promotion.APPROVED
    assert outputs.summary.startswith("version 2 approved: nothing serves yet; roc_auc 0.8")
    entry = world.ledger.entries(MODEL)[-1]
    assert (entry.id, entry.state, entry.version) == (outputs.entry, State.APPROVED, 2)
    # whoever submits the run may say any name
    assert (entry.by, entry.evidence["claimed_requester"]) == (world.workflow, "ada")
    assert (entry.evidence["from"], entry.evidence["to"]) == (None, 2)
    assert entry.evidence["policy_sha256"] == report.policy_sha256
    assert entry.evidence["dataset_sha256"] == report.dataset_sha256
    assert entry.evidence["checks"][0]["value"] > 0.75
    assert entry.evidence["report"] == outputs.report


def test_a_better_version_takes_over_and_says_on_how_many_rows(home: Path):
    serving(home, 1)
    outputs, report = decide(churn_world(home), 2)
    assert outputs.decision is Promotion.APPROVED, outputs.summary
    assert report.champion == 1
    assert report.compared_rows == report.test_rows  # one dataset, one split: the champion has seen none of them
    assert f"on {report.compared_rows} rows unseen by both; superior" in outputs.summary


def test_a_tie_keeps_the_champion(home: Path):
    serving(home, 2)
    outputs, _ = decide(churn_world(home), 3)
    assert outputs.decision is Promotion.REJECTED
    assert "a tie: version 2 stays" in outputs.summary
    assert churn_world(home).ledger.state(MODEL, 3) is State.REJECTED
    assert churn_world(home).ledger.serving(MODEL).version == 2


def test_an_old_champion_gives_way_to_an_equal_one_within_the_margin(home: Path):
    serving(home, 2)
    aged = PIPELINE.replace("min_rows: 100", "min_rows: 100, non_inferior_after: 30d, margin: 0.01")
    young = decide(churn_world(home, aged, "young", NOW + timedelta(days=29)), 3)[0]
    old = decide(churn_world(home, aged, "old", NOW + timedelta(days=31)), 3)[0]
    assert (young.decision, old.decision) == (Promotion.REJECTED, Promotion.APPROVED)
    assert "older than 30d" in old.summary


def test_the_absolute_threshold_rejects_whatever_serves(home: Path):
    outputs, report = decide(churn_world(home, PIPELINE.replace("roc_auc, min: 0.75", "roc_auc, min: 0.99")), 2)
    assert outputs.decision is Promotion.REJECTED
    assert "< 0.99" in report.reason


def test_run_again_the_workflow_returns_its_own_decision(home: Path):
    world = churn_world(home)
    first, _ = decide(world, 2)
    count = len(world.ledger.entries(MODEL))
    again, _ = decide(churn_world(home), 2)
    assert again.model_dump() == first.model_dump()
    assert len(world.ledger.entries(MODEL)) == count
    serve(world, 2)
    assert decide(churn_world(home), 2)[0].entry == first.entry  # also after it began to serve


def test_killed_right_after_its_entry_nothing_of_the_decision_is_missing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, version, append = churn_world(home), 2, Ledger.append
    monkeypatch.setattr(Ledger, "append", lambda *given, **named: (append(*given, **named), sys.exit(9)))
    with pytest.raises(SystemExit):
        decide(world, version)
    monkeypatch.undo()

    assert decide(churn_world(home), version)[0].decision is Promotion.APPROVED
    client, run = mlflow_client(world.settings), world.registry.run_of(version)
    kept = {Path(each.path).name for each in client.list_artifacts(run, "gates")}
    assert {f"promotion-{version}.json", Path(page_name(version)).name} <= kept


def test_what_serves_already_is_unchanged(home: Path):
    serving(home, 2)
    world = churn_world(home)
    outputs = promote(Promote.Inputs(version=2), world=world)
    assert outputs.decision is Promotion.UNCHANGED
    assert outputs.entry == world.ledger.serving(MODEL).id
    assert world.ledger.head(MODEL).state is State.SERVING


def test_a_doubt_is_entered_as_rejected_with_the_doubt_as_evidence(home: Path):
    serving(home, 1)
    outputs, report = decide(churn_world(home, PIPELINE.replace("min_rows: 100", "min_rows: 100000")), 2)
    assert outputs.decision is Promotion.INCONCLUSIVE
    assert f"{report.compared_rows} rows are unseen by both, fewer than 100000: version 1 stays" in outputs.summary
    entry = churn_world(home).ledger.head(MODEL)
    assert (entry.state, entry.evidence["decision"]) == (State.REJECTED, "inconclusive")


def test_a_lost_race_is_decided_once_more_against_what_serves_then(home: Path, monkeypatch: pytest.MonkeyPatch):
    world, append, raced = churn_world(home), Ledger.append, []

    def overtaken(ledger: Ledger, *args: Any, **fields: Any):
        if not raced:
            raced.append(True)
            monkeypatch.setattr(Ledger, "append", append)
            serving(home, 3)
        return append(ledger, *args, **fields)

    monkeypatch.setattr(Ledger, "append", overtaken)
    outputs, report = decide(world, 2)
    assert report.champion == 3
    assert outputs.decision is Promotion.REJECTED
    assert "a tie" in outputs.summary


def test_a_race_lost_twice_is_an_error_that_says_so(home: Path, monkeypatch: pytest.MonkeyPatch):
    def lost(*_: Any, **__: Any):
        raise LostRace(MODEL)

    monkeypatch.setattr(Ledger, "append", lost)
    with pytest.raises(LostRace, match="moved on while this was decided"):
        promote(Promote.Inputs(version=2), world=churn_world(home))


def test_rows_that_the_champion_trained_on_are_left_out(home: Path):
    serving(home, 1)
    # another seed puts other rows on the test side; most of them helped to make the champion
    reseeded = churn_world(home, PIPELINE.replace("seed: 1", "seed: 2"))
    version = registered(reseeded, train_run(reseeded, home, name="reseeded"))
    _, report = decide(reseeded, version)
    assert 0 < report.compared_rows < 0.5 * report.test_rows


def test_rows_keyed_in_another_way_are_keyed_anew(home: Path):
    serving(home, 1)
    other = churn_world(home, PIPELINE.replace("key: [id]", "key: [id, region]").replace("seed: 1", "seed: 3"))
    version = registered(other, train_run(other, home, name="other-key"))
    _, report = decide(other, version)
    assert "keyed anew" in report.notes[0]
    assert 0 < report.compared_rows < 0.5 * report.test_rows


@pytest.mark.parametrize("raised", [False, True])
def test_a_version_that_refuses_productions_requests_needs_a_raised_contract(home: Path, raised: bool):
    serving(home, 1)
    narrower = PIPELINE.replace("age, type: number, nullable: true", "age, type: number, nullable: false")
    world = churn_world(home, narrower + ("release: {contract: 2}\n" if raised else ""))
    version = registered(world, train_run(world, home, name=f"narrow-{raised}"))
    outputs, _ = decide(world, version)
    assert outputs.decision is (Promotion.APPROVED if raised else Promotion.REJECTED), outputs.summary
    assert "column age may be null no more" in outputs.summary


def test_a_champion_that_does_not_load_here_is_scored_in_its_own_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    serving(home, 1)
    champions_folder = unloadable(home, monkeypatch)
    asked = []

    def elsewhere(requirements: Path, package: Path, rows: Any, folder: Path, python: str):
        asked.append((requirements.read_text(), package, python))
        return ORIGINAL_LOAD(package).predict(rows)

    monkeypatch.setattr(own_environment, "score_in_own_environment", elsewhere)
    outputs, report = decide(churn_world(home), 2)
    assert outputs.decision is Promotion.APPROVED, outputs.summary
    assert (
        "does not load in today's environment: ImportError: no such library; it was scored in its own"
        in report.notes[0]
    )
    [(requirements, package, python)] = asked
    assert ("lightgbm" in requirements, package, python[:2]) == (True, champions_folder, "3.")


def test_a_champion_that_loads_nowhere_stays_and_the_decision_says_why(home: Path, monkeypatch: pytest.MonkeyPatch):
    serving(home, 1)
    unloadable(home, monkeypatch)

    def nowhere(*_: Any):
        raise ConfigError("uv pip install ended with 1: no such package")

    monkeypatch.setattr(own_environment, "score_in_own_environment", nowhere)
    outputs, _ = decide(churn_world(home), 2)
    assert outputs.decision is Promotion.INCONCLUSIVE
    assert "ImportError: no such library; nor in its own: uv pip install ended with 1" in outputs.summary
    assert "version 1 stays" in outputs.summary


ORIGINAL_LOAD = champion.PackagedModel.load


def unloadable(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the champion's package, and no other, raise on loading; return its folder."""
    world = churn_world(home)
    folder = world.tracking.package(world.registry.run_of(1), home)

    def load(at: Path) -> Any:
        if at == folder:
            raise ImportError("no such library")
        return ORIGINAL_LOAD(at)

    monkeypatch.setattr(champion.PackagedModel, "load", load)
    return folder


@pytest.fixture
def spoil(home: Path) -> Iterator[Callable[[int], None]]:
    """Put code of somebody else's into a version's package, its hashes made to fit."""
    world, kept = churn_world(home), dict[str, bytes]()

    def act(version: int) -> None:
        folder, code = world.tracking.package_uri(world.registry.run_of(version)), b"raise SystemExit('it ran')\n"
        kept[uri] = world.storage.read(uri := f"{folder}/package.json")
        manifest = json.loads(kept[uri])
        manifest["files"]["user/evil.py"] = hashlib.sha256(code).hexdigest()
        world.storage.write(f"{folder}/user/evil.py", code)
        world.storage.write(uri, json.dumps(manifest).encode())

    yield act
    for uri, whole in kept.items():
        world.storage.write(uri, whole)
        Path(local_path(uri.replace("package.json", "user/evil.py")) or "").unlink()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders of the packages that were loaded, whose code runs then."""
    seen: list[Path] = []

    def load(at: Path) -> Any:
        seen.append(at)
        return ORIGINAL_LOAD(at)

    monkeypatch.setattr(champion.PackagedModel, "load", load)
    return seen


def test_a_version_that_was_altered_since_it_was_signed_is_refused_before_it_is_loaded(
    home: Path, spoil: Callable[[int], None], loaded: list[Path]
):
    spoil(2)
    before = churn_world(home).ledger.head(MODEL)
    with pytest.raises(DataError, match="not the one that was signed"):
        decide(churn_world(home), 2)
    assert (loaded, churn_world(home).ledger.head(MODEL)) == ([], before)


def test_a_champion_that_was_altered_is_not_loaded_and_stays(
    home: Path, spoil: Callable[[int], None], loaded: list[Path]
):
    serving(home, 1)
    spoil(1)
    outputs, _ = decide(churn_world(home), 2)
    assert outputs.decision is Promotion.INCONCLUSIVE
    assert "is not the one that was signed: version 1 stays" in outputs.summary
    assert loaded == [churn_world(home).tracking.package(churn_world(home).registry.run_of(2), home)]


def test_the_challenger_with_a_column_of_its_own_is_asked_for_a_contract(home: Path):
    serving(home, 1)
    world = churn_world(home)
    columns = tuple(
        ColumnSpec(name=n, type=t, nullable=True)
        for n, t in (("usage", "number"), ("age", "number"), ("region", "string"), ("id", "integer"))
    )
    version = registered(world, train_run(world, home, name="wider", manifest={"columns": columns}))
    outputs, _ = decide(world, version)
    assert "column id is asked for anew" in outputs.summary


def test_a_version_whose_release_broke_off_keeps_its_approval_for_deploy_to_end(home: Path):
    world = churn_world(home, workflow="earlier")
    approved = decide(world, 2)[0].entry
    world.ledger.append(
        MODEL, State.RELEASING, version=2, run_id=world.registry.run_of(2), workflow="earlier", by="test",
        reason="test", evidence={}, after=world.ledger.head(MODEL), at=NOW,
    )  # fmt: skip
    outputs = promote(Promote.Inputs(version=2), world=churn_world(home, workflow="later"))
    assert (outputs.decision, outputs.entry) == (Promotion.APPROVED, approved)


APPROVAL = PIPELINE.replace("  default:\n", "  default:\n    decision: approval\n    approval_expires: 2d\n")


def test_where_a_person_decides_what_passes_the_gate_waits_and_only_a_yes_lets_it_through(home: Path):
    outputs, report = decide(churn_world(home, APPROVAL, "w-1"), 2)
    assert (outputs.decision, report.decision) == (Promotion.AWAITING_APPROVAL, Promotion.APPROVED)
    ledger = churn_world(home).ledger
    assert ledger.state(MODEL, 2) is State.AWAITING
    assert decide(churn_world(home, APPROVAL, "w-1"), 2)[0] == outputs, "run again, it says the same"

    by_hand = promote(Promote.Inputs(version=2), world=churn_world(home, APPROVAL, "w-2"))
    assert by_hand.decision is Promotion.NOT_APPROVED
    retrained = Promote.Inputs(version=2, entrypoint="retrain")
    assert promote(retrained, world=churn_world(home, APPROVAL, "w-3")).decision is Promotion.AWAITING_APPROVAL
    assert ledger.head(MODEL).id == outputs.entry, "asked once"

    yes = approvals.decide(ledger, MODEL, "w-1", State.APPROVED, person=Person("ann"), reason="fine", at=NOW)
    done = promote(Promote.Inputs(version=2), world=churn_world(home, APPROVAL, "w-4"))
    assert (done.decision, done.entry) == (Promotion.APPROVED, yes.id)
    assert "approved by ann (unauthenticated): fine" in done.summary
    assert promote(Promote.Inputs(version=2), world=churn_world(home, PIPELINE, "w-5")).entry == yes.id


def test_a_yes_is_for_the_package_and_the_report_that_were_seen(home: Path):
    world = churn_world(home, APPROVAL, "w-1")
    outputs, _ = decide(world, 2)
    approvals.decide(world.ledger, MODEL, "w-1", State.APPROVED, person=Person("ann"), reason="fine", at=NOW)
    seen = world.storage.read(outputs.report)
    world.storage.write(outputs.report, seen.replace(b'"reason"', b'"reasom"', 1))
    with pytest.raises(ConfigError, match=r"the report .* is not the one that ann"):
        promote(Promote.Inputs(version=2), world=churn_world(home, APPROVAL, "w-2"))
    world.storage.write(outputs.report, seen)

    manifest = f"{world.tracking.package_uri(world.registry.run_of(2))}/package.json"
    whole = world.storage.read(manifest)
    world.storage.write(manifest, whole + b" ")
    try:
        with pytest.raises(ConfigError, match="the package of version 2 is not the one that ann"):
            promote(Promote.Inputs(version=2), world=churn_world(home, APPROVAL, "w-2"))
    finally:
        world.storage.write(manifest, whole)


def test_who_is_asked_again_about_a_version_is_told_who_said_no_before(home: Path):
    world = churn_world(home, APPROVAL, "w-1")
    decide(world, 2)
    approvals.decide(world.ledger, MODEL, "w-1", State.REJECTED, person=Person("ann"), reason="not in June", at=NOW)
    again, _ = decide(churn_world(home, APPROVAL, "w-2"), 2)
    assert again.decision is Promotion.AWAITING_APPROVAL
    request = world.ledger.head(MODEL)
    assert request.reason.startswith(
        f"ann (unauthenticated) rejected it at {NOW:%F %T} UTC: not in June; nothing serves"
    )


def test_the_way_back_rests_on_what_a_version_was_let_through_by_however_it_was_judged_since(home: Path):
    serving(home, 1)
    let_through, _ = decide(churn_world(home, workflow="w-1"), 2)
    serve(churn_world(home, workflow="w-1"), 2)
    serving(home, 3)
    again, report = decide(churn_world(home, workflow="w-2"), 2)
    assert (again.decision, report.decision) == (Promotion.REJECTED, Promotion.REJECTED), "a tie"
    assert again.report != let_through.report

    world = churn_world(home, workflow="w-3")
    word = approvals.roll_back(world.ledger, MODEL, 2, person=Person("ann"), reason="3 answers wrong", at=NOW)
    done = promote(Promote.Inputs(version=2), world=world)
    assert (done.decision, done.entry, done.report) == (Promotion.APPROVED, word.id, let_through.report)


def test_a_yes_that_nobody_used_in_time_is_entered_as_expired(home: Path):
    world = churn_world(home, APPROVAL, "w-1")
    decide(world, 2)
    approvals.decide(world.ledger, MODEL, "w-1", State.APPROVED, person=Person("ann"), reason="fine", at=NOW)
    late = promote(Promote.Inputs(version=2), world=churn_world(home, APPROVAL, "w-2", NOW + timedelta(days=3)))
    assert late.decision is Promotion.NOT_APPROVED
    assert "nobody approved version 2, which is expired" in late.summary
    assert world.ledger.verify(MODEL) == []


def test_a_newer_candidate_supersedes_the_one_that_waits(home: Path):
    for version in (2, 3):
        given = Promote.Inputs(version=version, entrypoint="retrain")
        outputs = promote(given, world=churn_world(home, APPROVAL, f"w-{version}"))
        assert outputs.decision is Promotion.AWAITING_APPROVAL
    ledger = churn_world(home).ledger
    assert (ledger.state(MODEL, 2), ledger.state(MODEL, 3)) == (State.SUPERSEDED, State.AWAITING)
