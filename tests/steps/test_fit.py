"""Candidates fitted apart and chosen among are the training that one process does alone, bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import steps.fit
import steps.training.key
from contracts.errors import ConfigError, Finding
from contracts.names import tag
from contracts.stages import Cache, Features, Fit, Ingest, Train
from serving.model import PackagedModel
from serving.user_code import pack
from steps.dataset import read_table
from steps.features import features
from steps.fit import fit
from steps.ingest import ingest
from steps.train import train
from steps.world import World
from tests.steps.registered import ADULT, NOW, make_settings, make_world
from tests.steps.test_train import OWN, all_runs, inputs_of, world_of

RECORDED = json.loads(Path(__file__).with_name("adult_training.json").read_text(encoding="utf-8"))
"""What training adult.yaml came to in one process, before candidates were fitted apart."""


def fitted(world: World, inputs: Train.Inputs, *names: str) -> list[str]:
    """Fit candidates, as their pods do, and return where they lie."""
    fields = inputs.model_dump(include=set(Fit.Inputs.model_fields))
    wanted = names or [candidate.name for candidate in world.pipeline.training.candidates]
    # each in a world of its own, as in a process of its own
    return [fit(Fit.Inputs(candidate=name, **fields), world=replace(world)).fit for name in wanted]


def kept(world: World, run_id: str) -> dict[str, Any]:
    """Return all that a run says of what was learned."""
    run = world.tracking.record(run_id)
    package = world.tracking.package(run_id, world.scratch)
    client = world.tracking._client
    trials = json.loads(Path(client.download_artifacts(run_id, "trials.json", str(world.scratch))).read_bytes())
    files = {
        path.relative_to(package).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in package.rglob("*")
        if path.is_file() and path.name not in ("package.json", "estimator.skops")  # skops writes addresses down
    }
    return {"parameters": dict(run.params), "metrics": dict(run.metrics), "trials": trials, "package": files}


def answers(world: World, inputs: Train.Inputs, run_id: str) -> bytes:
    """Return the probabilities that a run's model gives all rows."""
    model = PackagedModel.load(world.tracking.package(run_id, world.scratch))
    scores = model.predict(read_table(world, inputs.dataset, [c.name for c in model.manifest.columns])).scores
    assert scores is not None
    return bytes(scores.tobytes())


def files_of(world: World) -> list[str]:
    return [uri for uri in world.storage.list(world.storage.uri("fits")) if "probe" not in uri]


def test_candidates_fitted_apart_give_the_run_that_one_process_gives(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    inputs = inputs_of(world)
    alone = train(inputs, world=world)

    uris = fitted(replace(world, workflow="w2"), inputs)
    assert len(files_of(world)) == 2 * len(uris)
    apart = replace(world, workflow="w2")
    given = inputs.model_copy(update={"fits": json.dumps(uris), "cache": Cache.REFUSE})
    joined = train(given, world=apart)

    assert joined.run_id != alone.run_id
    assert kept(world, joined.run_id) == kept(world, alone.run_id)
    assert answers(world, inputs, joined.run_id) == answers(world, inputs, alone.run_id)
    assert [len(uri.rpartition("/")[2]) for uri in uris] == [64, 64]
    assert files_of(world) == [], "what was chosen among is not kept twice"


def test_adult_is_trained_as_it_was_in_one_process(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    shutil.copytree(ADULT.parent / "data", tmp_path / "data")
    world = replace(world, settings=make_settings(tmp_path, threads=1))
    data = ingest(Ingest.Inputs(as_of=NOW), world=world)
    split = features(Features.Inputs(dataset=data.dataset, dataset_sha256=data.dataset_sha256), world=world)
    references = {"dataset": data.dataset, "dataset_sha256": data.dataset_sha256}
    inputs = Train.Inputs(**references, split=split.split, split_sha256=split.split_sha256)
    assert json.loads(split.candidates) == ["lightgbm", "hist-gradient-boosting", "linear"]

    outputs = train(inputs.model_copy(update={"fits": json.dumps(fitted(world, inputs))}), world=world)

    run = world.tracking.record(outputs.run_id)
    found = kept(world, outputs.run_id)
    assert {key: run.tags[key] for key in RECORDED["tags"]} == RECORDED["tags"]
    numbers = ("threshold",)
    for name, value in RECORDED["parameters"].items():
        wanted = pytest.approx(float(value), rel=1e-6) if name in numbers else value
        assert (float(run.params[name]) if name in numbers else run.params[name]) == wanted, name
    # exact on one machine; another processor may round the last bits otherwise
    learned = {name: value for name, value in RECORDED["metrics"].items() if not name.startswith("test.")}
    assert found["metrics"] == pytest.approx(learned, rel=1e-6)
    assert [trial | {"value": 0} for trial in found["trials"]] == [t | {"value": 0} for t in RECORDED["trials"]]
    assert [t["value"] for t in found["trials"]] == pytest.approx([t["value"] for t in RECORDED["trials"]], rel=1e-6)


def test_what_is_not_handed_over_is_fitted_by_train(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    inputs = inputs_of(world)
    [line] = fitted(world, inputs, "line")
    [gone] = fitted(world, inputs, "boost")
    for uri in world.storage.list(gone):
        world.storage.delete(uri)

    outputs = train(inputs.model_copy(update={"fits": json.dumps([gone, line])}), world=world)

    names = {name.split(".")[1] for name in world.tracking.record(outputs.run_id).metrics if "candidate" in name}
    assert names == {"boost", "line"}


@pytest.mark.parametrize("what", ["is damaged", "is of another training", "holds no fitted candidate"])
def test_a_fit_that_is_not_what_its_name_says_is_refused(tmp_path: Path, what: str) -> None:
    world = world_of(tmp_path)
    inputs = inputs_of(world)
    [uri] = fitted(world, inputs, "line")
    if what == "is damaged":
        world.storage.write(f"{uri}/estimator.skops", b"other")
    elif what == "holds no fitted candidate":
        world.storage.write(f"{uri}/fit.json", b"{}")
    else:
        changed = world_of(tmp_path, training=world.pipeline.training.model_dump(mode="json") | {"seed": 9})
        world = replace(changed, workflow="w1")

    with pytest.raises(ConfigError, match=what):
        train(inputs.model_copy(update={"fits": json.dumps([uri])}), world=world)
    assert [run.info.status for run in all_runs(world)] == ["FAILED"]


def test_features_names_nothing_to_fit_once_the_training_is_there(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    data = ingest(Ingest.Inputs(as_of=NOW), world=world)

    def named(**more: Any) -> list[str]:
        asked = Features.Inputs(dataset=data.dataset, dataset_sha256=data.dataset_sha256, **more)
        return list(json.loads(features(asked, world=world).candidates))

    assert named() == named() == ["boost", "line"]
    first = train(inputs_of(world), world=world)
    assert named() == []
    assert named(cache=Cache.REFUSE) == ["boost", "line"]
    code = world.storage.write(world.storage.uri("code", "x.zip"), pack(write(tmp_path / "mine.py", OWN), ["mine"]))
    assert named(code=code) == ["boost", "line"]

    for entry in world.storage.list(world.storage.uri("cache", "train")):
        world.storage.delete(entry)
    assert named() == ["boost", "line"], "the store forgot it, MLflow did not"
    assert train(inputs_of(world), world=world).run_id == first.run_id
    assert named() == []


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path.parent


def test_where_lightgbm_is_missing_its_fit_is_empty_and_the_others_are_chosen_among(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Finding(where="LightGBM", what="libgomp is missing", remedy="apt-get install libgomp1")
    monkeypatch.setattr(steps.fit, "lightgbm_problem", lambda: missing)
    monkeypatch.setattr(steps.training.key, "lightgbm_problem", lambda: missing)
    world = world_of(tmp_path)
    inputs = inputs_of(world)

    uris = fitted(world, inputs)
    outputs = train(inputs.model_copy(update={"fits": json.dumps(uris)}), world=world)

    assert uris[0] == ""
    assert outputs.candidate == "line"
    assert "libgomp is missing" in world.tracking.record(outputs.run_id).tags[tag("skipped")]


def test_what_cannot_be_saved_fails_in_its_own_pod(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import numpy as np\n\ndef squash(x):\n    return 1 / (1 + np.exp(-x))\n")
    write(tmp_path / "mine.py", OWN)
    training = {"metric": "roc_auc", "candidates": [{"name": "own", "estimator": "mine:Mine"}]}
    world = world_of(tmp_path, features={"passthrough": True}, training=training, code=["helper.py"])
    packed = pack(tmp_path, world.pipeline.user_modules, world.pipeline.code)
    inputs = inputs_of(world, code=world.storage.write(world.storage.uri("code", "x.zip"), packed))

    with pytest.raises(ConfigError, match=r"candidate own: .* mine\.Mine"):
        fitted(world, inputs)
    assert files_of(world) == []


def test_a_candidate_that_the_file_does_not_name_is_refused(tmp_path: Path) -> None:
    world = world_of(tmp_path)

    with pytest.raises(ConfigError, match="has no candidate other"):
        fitted(world, inputs_of(world), "other")


def test_how_many_run_at_once_decides_nothing_of_what_is_trained(tmp_path: Path) -> None:
    training = world_of(tmp_path).pipeline.training.model_dump(mode="json")
    one, other = (world_of(tmp_path, training=training | {"parallel": number}) for number in (1, 8))

    assert (one.pipeline.training.parallel, other.pipeline.training.parallel) == (1, 8)
    assert one.pipeline.section_sha256("training") == other.pipeline.section_sha256("training")
