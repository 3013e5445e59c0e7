"""Retention at a desk of real versions: what goes is gone and answers, what stays can be built again."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contracts.errors import ConfigError
from contracts.names import ALIAS_STAGING
from contracts.outcomes import Note, State
from contracts.settings import Settings
from steps.archive import Archive
from steps.lifecycle import IllegalTransition
from steps.lineage import lineage
from steps.mlflow_connection import mlflow_client
from steps.reproduce import Answer, reproduce
from steps.retention.plan import Kind
from steps.retention.sweep import Outlook, apply, look
from steps.storage import Storage
from tests.steps.registered import NOW
from tests.steps.trained import Trained, make_version, train_version
from workflows.cli.main import app

pytestmark = pytest.mark.faults

LATER = datetime.now(UTC) + timedelta(days=100)
SERVED = (State.APPROVED, State.RELEASING, State.SERVING)


def enter(trained: Trained, *states: State | Note, at: datetime = NOW) -> None:
    for state in states:
        trained.world.ledger.append(
            "churn", state, version=trained.version, run_id=trained.run_id, workflow="release", by="ann", reason="",
            evidence={}, after=trained.world.ledger.head("churn"), at=at,
        )  # fmt: skip


@dataclass(frozen=True)
class Desk:
    """Version 1 served and 2 serves, on rows of their own; 3 was rejected on rows of its own, 4 on those of 2."""

    folder: Path
    versions: tuple[Trained, Trained, Trained, Trained]

    @property
    def settings(self) -> Settings:
        return self.versions[0].world.settings

    @property
    def archive(self) -> Archive:
        return Archive.open(self.settings)

    def dataset(self, version: int) -> str:
        return str(self.archive.ledger.history("churn", version)[0].evidence["dataset"])

    def kept(self, version: int) -> bool:
        files = Storage(self.settings).list(self.dataset(version))
        return len(files) == 2

    def run(self, version: int) -> str:
        """The lifecycle of a version's run, as MLflow's database has it."""
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            found = database.execute(
                "SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", (self.versions[version - 1].run_id,)
            )
            return str(found.fetchone()[0])

    def files(self) -> dict[str, bytes]:
        roots = [self.folder / name for name in ("store", "artifacts")]
        return {str(p): p.read_bytes() for root in roots for p in sorted(root.rglob("*")) if p.is_file()}


def make_desk(folder: Path) -> Desk:
    folder.mkdir(exist_ok=True)
    first = make_version(folder)
    enter(first, *SERVED, at=NOW)
    second = train_version(first.world, seed=2)
    enter(second, *SERVED)
    third = train_version(first.world, seed=3)
    enter(third, State.REJECTED)
    other = first.world.pipeline.model_copy(
        update={"training": first.world.pipeline.training.model_copy(update={"metric": "accuracy"})}
    )
    fourth = train_version(replace(first.world, pipeline=other), seed=2)
    enter(fourth, State.REJECTED)
    first.world.registry.set_alias(ALIAS_STAGING, 2)
    return Desk(folder, (first, second, third, fourth))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return make_desk(tmp_path_factory.mktemp("home"))


def gone(outlook: Outlook, *kinds: Kind) -> list[str]:
    return sorted(d.key for d in outlook.goes if d.kind in (kinds or Kind))


def test_a_story_of_four_versions(desk: Desk, tmp_path: Path) -> None:
    before = desk.files()
    planned = look(desk.settings, LATER)
    assert desk.files() == before, "a plan changes nothing"
    third, fourth = desk.versions[2:]
    assert gone(planned, Kind.VERSION) == ["version:churn@3", "version:churn@4"]
    assert gone(planned, Kind.RUN) == sorted([f"run:{third.run_id}", f"run:{fourth.run_id}"])
    assert gone(planned, Kind.DATASET) == [f"datasets/{desk.dataset(3).rpartition('/')[2]}"]
    stays = {d.key: d.reason for d in planned.decisions if d.keep}
    assert stays["version:churn@2"] == "it is serving"
    assert stays["version:churn@1"] == "a rollback goes back to it"
    assert stays[f"datasets/{desk.dataset(2).rpartition('/')[2]}"] in (
        f"{user} needs it" for user in ("version:churn@2", f"run:{desk.versions[1].run_id}")
    )
    assert stays[f"reports/{third.run_id}"] == "evidence of version:churn@3"

    done = apply(desk.settings, LATER, workflow="retention-1", by="ann")

    assert gone(done) == gone(planned), "what is done is what was planned"
    assert (done.left, len(done.notes)) == ((), 3), "a note for each version, and one for what belonged to none"
    assert [desk.kept(version) for version in (1, 2, 3, 4)] == [True, True, False, True]
    assert [desk.run(version) for version in (1, 2, 3, 4)] == ["active", "active", "deleted", "deleted"]
    artifacts = desk.folder / "artifacts"
    assert not [p for p in artifacts.rglob("*") if p.is_file() and third.run_id in str(p)]
    assert sum(p.is_file() for p in artifacts.glob("churn/models/*/artifacts/MLmodel")) == 2
    objects = Storage(desk.settings)
    places = [objects.uri(d.key) for d in done.goes if d.kind not in (Kind.VERSION, Kind.RUN)]
    assert [uri for uri in places if objects.list(uri)] == []
    assert desk.archive.ledger.verify("churn") == []
    again = apply(desk.settings, LATER, workflow="retention-2", by="ann")
    assert (again.decisions, again.notes) == ((), ()), "there is nothing left to do"

    found = lineage(desk.archive, "3")
    assert found.removal is not None
    assert (found.removal.by, found.removal.at, found.removal.entry) == ("ann", LATER, done.notes[1])
    assert found.removal.policy == {"served_years": 10, "unserved_days": 90, "records_days": 180}
    assert (found.state, found.dataset.sha256) == (State.REJECTED, desk.dataset(3).rpartition("/")[2])
    assert found.validation is not None
    assert found.validation.checks, "the gate's report stays"
    assert found.parameters["seed"]
    assert desk.archive.version(found.dataset.sha256[:12]) == 3
    note = desk.archive.ledger.history("churn", 3)[-1]
    assert note.evidence["dataset_sha256"] == found.dataset.sha256
    assert found.signature is not None
    assert note.evidence["signature"]["key"] == found.signature.key
    assert {thing["kind"] for thing in note.evidence["removed"]} == {"version", "run", "dataset", "split"}
    registered = mlflow_client(desk.settings).get_model_version("churn", "3")
    assert registered.tags["retrain.removed"] == f"{LATER:%F}"

    said = "what version 3 of churn was made of was removed on"
    with pytest.raises(ConfigError, match=said) as error:
        reproduce(desk.archive, "3", tmp_path / "gone")
    assert error.value.remedy == "no copy was kept"
    with pytest.raises(IllegalTransition, match="cannot become approved: what it is made of was removed"):
        enter(third, State.APPROVED)
    of_first = {path: data for path, data in before.items() if desk.versions[0].run_id in path}
    assert of_first
    assert of_first.items() <= desk.files().items()
    assert reproduce(desk.archive, "2", tmp_path / "kept", here=True).answer is Answer.IDENTICAL
    shown = CliRunner().invoke(app, ["lineage", "churn@3"], env={"RETRAIN_HOME": str(desk.folder)})
    assert shown.exit_code == 0
    assert "removed" in shown.output
    assert "unserved_days 90" in shown.output


def test_what_is_copied_back_can_be_built_again(tmp_path: Path) -> None:
    desk, cold = make_desk(tmp_path / "home"), tmp_path / "cold"
    third = desk.versions[2]
    archiving = desk.settings.model_copy(update={"retention_archive": cold.as_uri()})
    apply(archiving, LATER, workflow="retention-1", by="ann")
    with pytest.raises(ConfigError, match="what version 3 of churn was made of was removed on") as error:
        reproduce(desk.archive, "3", tmp_path / "gone")
    assert error.value.remedy.startswith(f"copy it back from {cold.as_uri()}")

    for name in ("store", "artifacts"):
        shutil.copytree(cold / name, desk.folder / name, dirs_exist_ok=True)

    assert reproduce(desk.archive, "3", tmp_path / "back", here=True).answer is Answer.IDENTICAL
    with pytest.raises(IllegalTransition, match="was removed on"):
        enter(third, State.APPROVED)


def test_the_same_data_trained_again_is_a_new_version(desk: Desk) -> None:
    again = train_version(desk.versions[0].world, seed=3)

    assert again.version == 5
    assert desk.kept(5)
    assert lineage(desk.archive, "5").removal is None
