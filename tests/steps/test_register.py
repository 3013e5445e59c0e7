"""The register stage: one version, one ledger entry, alias last, wherever it is killed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError, DataError, StageError
from contracts.names import tag
from contracts.outcomes import State
from serving.model_keys import fingerprint
from steps.ledger import Ledger
from steps.mlflow_connection import mlflow_client
from steps.register import register
from steps.registry import Registry
from steps.world import World
from tests.model_packages import KEY
from tests.steps.registered import NOW, TAGS, finished_run, make_world, to_register

MODEL = "adult-income"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def test_a_run_is_registered_entered_and_named_staging(world: World) -> None:
    run = finished_run(world)
    inputs = to_register(world, run)
    outputs = register(inputs, world=world)
    [entry] = world.ledger.entries(MODEL)
    assert outputs.version == 1
    assert (entry.state, entry.version, entry.run_id, entry.at) == (State.REGISTERED, 1, run, NOW)
    report = world.storage.read(inputs.report)
    assert entry.evidence["report"] == inputs.report
    assert entry.evidence["report_sha256"] == hashlib.sha256(report).hexdigest()
    said = entry.evidence["validation"]
    assert (said["checks"], said["metrics"]) == (json.loads(report)["checks"], {"roc_auc": 0.91})
    assert entry.evidence["parameters"] == {}
    assert entry.evidence["dataset_sha256"] == TAGS[tag("dataset_sha256")]
    assert world.registry.aliases() == {"staging": 1}
    assert world.registry.tags(1) == {
        **{k: v for k, v in TAGS.items() if k != tag("train_key")},
        tag("artifact_sha256"): entry.evidence["artifact_sha256"],
        tag("pipeline"): MODEL,
        tag("validation_report"): inputs.report,
    }


def test_a_second_time_changes_nothing(world: World) -> None:
    run = finished_run(world)
    first = register(to_register(world, run), world=world)
    later = make_world(Path(world.settings.server_home).parent, workflow="retrain-2")
    again = register(to_register(world, run), world=later)
    assert again.version == first.version
    assert "as before" in again.summary
    assert len(world.ledger.entries(MODEL)) == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("victim", ["create_model_version", "append", "set_registered_model_alias"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_effect_and_run_again_it_ends_alike(
    world: World, monkeypatch: pytest.MonkeyPatch, victim: str, moment: str
) -> None:
    from mlflow import MlflowClient

    run = finished_run(world)
    owner: Any = Ledger if victim == "append" else MlflowClient
    effect = getattr(owner, victim)

    def kill(*arguments: Any, **named: Any) -> None:
        if moment == "after":
            effect(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, victim, kill)
        with pytest.raises(Killed):
            register(to_register(world, run), world=world)
    assert register(to_register(world, run), world=world).version == 1
    assert [e.state for e in world.ledger.entries(MODEL)] == [State.REGISTERED]
    assert world.registry.aliases() == {"staging": 1}
    assert len(mlflow_client(world.settings).search_model_versions(f"name = '{MODEL}'")) == 1


def test_an_entry_written_meanwhile_does_not_stop_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    head, other = Ledger.head, iter([True, True, False])

    def head_then_another(self: Ledger, model: str) -> Any:
        seen = head(self, model)
        if next(other, False):
            number = (seen.number if seen else 0) + 100
            self.append(
                model, State.REGISTERED, version=number, run_id="other", workflow="w", by="w", reason="", evidence={},
                after=seen, at=NOW,
            )  # fmt: skip
        return seen

    monkeypatch.setattr(Ledger, "head", head_then_another)
    register(to_register(world, finished_run(world)), world=world)
    assert [e.version for e in world.ledger.entries(MODEL)] == [100, 101, 1]


def test_an_unfinished_run_is_refused(world: World) -> None:
    run = finished_run(world)
    mlflow_client(world.settings).set_terminated(run, "KILLED")
    with pytest.raises(ConfigError, match="is killed"):
        register(to_register(world, run), world=world)
    assert world.ledger.entries(MODEL) == []
    assert Registry(world.settings, MODEL).aliases() == {}


def test_a_run_that_is_not_there_is_told(world: World) -> None:
    with pytest.raises(StageError, match="has not what was asked for"):
        register(to_register(world, "0" * 32), world=world)


def test_without_its_report_nothing_is_registered(world: World) -> None:
    run = finished_run(world)
    gone = to_register(world, run).model_copy(update={"report": world.storage.uri("reports", "gone.json")})
    with pytest.raises(ConfigError, match="no such object"):
        register(gone, world=world)
    assert world.ledger.entries(MODEL) == []
    assert world.registry.aliases() == {}


def test_a_report_that_was_rewritten_since_it_was_judged_is_no_evidence(world: World) -> None:
    run = finished_run(world)
    inputs = to_register(world, run)
    world.storage.write(inputs.report, world.storage.read(inputs.report).replace(b"0.91", b"0.99"))
    with pytest.raises(DataError, match="not the one that evaluate wrote"):
        register(inputs, world=world)
    assert world.ledger.entries(MODEL) == []
    assert world.registry.aliases() == {}


def test_what_somebody_else_tags_a_run_with_is_no_evidence(world: World) -> None:
    foreign = dict.fromkeys(("approval", "decision", "image", "image_holds_model", "signature", "report"), "x")
    run = finished_run(world, {tag(name): value for name, value in foreign.items()})
    inputs = to_register(world, run)
    register(inputs, world=world)
    [entry] = world.ledger.entries(MODEL)
    assert entry.evidence["report"] == inputs.report
    assert entry.evidence["signature"]["key"] == fingerprint(KEY.public_key())
    assert not {"approval", "decision", "image", "image_holds_model"} & entry.evidence.keys()
    assert foreign.keys() & {key.removeprefix("retrain.") for key in world.registry.tags(1)} == set()
