"""The train stage on a real store and a SQLite MLflow: what a run holds, and that retries make no second one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from contracts.errors import ConfigError
from contracts.names import REFERENCES, TAG_PREFIX, tag
from contracts.pipeline import load_pipeline
from contracts.settings import variable
from contracts.stages import Cache, Features, Ingest, Train
from serving.model import PackagedModel
from serving.user_code import pack
from steps.dataset import read_table
from steps.features import features
from steps.ingest import ingest
from steps.train import train
from steps.world import World
from tests.steps.registered import NOW, make_settings, make_world

SECRET = "Zebediah"
FILE: dict[str, Any] = {
    "apiVersion": "retrain/v1",
    "name": "small",
    "source": {"uri": "rows.csv"},
    "schema": {
        "columns": [
            {"name": "id", "type": "integer", "nullable": False},
            {"name": "size", "type": "number"},
            {"name": "colour", "type": "string"},
            {"name": "owner", "type": "string", "sensitive": True},
            {"name": "weight", "type": "number", "nullable": False},
            {"name": "good", "type": "boolean", "nullable": False},
        ]
    },
    "target": {"column": "good", "task": "binary", "positive": True, "threshold": {"rule": "metric", "metric": "f1"}},
    "features": {"columns": [{"column": "id", "drop": True}]},
    "split": {"key": ["id"]},
    "training": {
        "metric": "roc_auc",
        "sample_weight": "weight",
        "class_weight": "balanced",
        "candidates": [
            {"name": "boost", "estimator": "lightgbm", "parameters": {"n_estimators": 20}, "early_stopping": 5},
            {
                "name": "line",
                "estimator": "linear",
                "search": {"trials": 3, "space": {"C": {"low": 0.01, "high": 10, "log": True}}},
            },
        ],
    },
    "gates": {
        "default": {
            "validation": {"thresholds": [{"metric": "roc_auc", "min": 0.5}]},
            "promotion": {"thresholds": [{"metric": "roc_auc", "min": 0.5}]},
        }
    },
}
OWN = """
from sklearn.base import BaseEstimator, ClassifierMixin
import numpy as np
import helper

class Mine(ClassifierMixin, BaseEstimator):
    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.array([0, 1])
        return self
    def predict_proba(self, X):
        p = helper.squash(np.nan_to_num(X["size"].to_numpy(dtype=float)))
        return np.column_stack((1 - p, p))
"""


def world_of(folder: Path, workflow: str = "w1", **changed: Any) -> World:
    make_world(folder)  # copies a fresh MLflow database
    random = np.random.default_rng(5)
    size = random.normal(size=600)
    lines = ["id,size,colour,owner,weight,good"]
    for i, s in enumerate(size):
        colour = ["red", "green", ""][i % 3]
        owner = SECRET if i % 2 else "Hepzibah"
        good = "true" if s + (colour == "red") + random.normal() > 0.3 else "false"
        lines.append(f"{i},{s:.6f},{colour},{owner},{1 + i % 2},{good}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(FILE | changed))
    return World(
        settings=make_settings(folder, threads=1),
        pipeline=load_pipeline(path),
        pipeline_path=path,
        workflow=workflow,
        now=lambda: NOW,
    )


def inputs_of(world: World, **fields: Any) -> Train.Inputs:
    data = ingest(Ingest.Inputs(as_of=NOW), world=world)
    split = features(Features.Inputs(dataset=data.dataset, dataset_sha256=data.dataset_sha256), world=world)
    return Train.Inputs(
        dataset=data.dataset,
        dataset_sha256=data.dataset_sha256,
        split=split.split,
        split_sha256=split.split_sha256,
        **fields,
    )


def all_runs(world: World) -> list[Any]:
    client = world.tracking._client
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Train.Inputs, Train.Outputs]:
    world = world_of(tmp_path_factory.mktemp("trained"))
    inputs = inputs_of(world)
    return world, inputs, train(inputs, world=world)


Trained = tuple[World, Train.Inputs, Train.Outputs]


def test_the_run_holds_parameters_metrics_and_every_reference(trained: Trained) -> None:
    world, inputs, outputs = trained
    run = world.tracking.record(outputs.run_id)
    assert run.status == "FINISHED"
    assert run.params["candidate"] == outputs.candidate
    assert {"seed", "threads", "architecture", "threshold", "estimator"} <= run.params.keys()
    names = [f"{side}.{m}" for side in ("train", "validation") for m in ("roc_auc", "f1", "log_loss")]
    names += [f"candidate.{c}.validation.roc_auc" for c in ("boost", "line")]
    assert set(names) <= run.metrics.keys()
    expected = {
        "dataset": inputs.dataset,
        "dataset_sha256": inputs.dataset_sha256,
        "split": inputs.split,
        "split_sha256": inputs.split_sha256,
        "candidate": outputs.candidate,
        "workflow": "w1",
        "rows": "600",
        "pipeline_sha256": hashlib.sha256(world.pipeline_path.read_bytes()).hexdigest(),
    }
    assert {name: run.tags.get(tag(name)) for name in expected} == expected
    assert {
        tag(n) for n in ("train_key", "transform_sha256", "schema_sha256", "code_version", "lock_sha256")
    } <= run.tags.keys()
    ours = {key for key in run.tags if key.startswith(TAG_PREFIX)}
    assert ours - {tag(name) for name in REFERENCES} == {tag("train_key")}, "register copies the others"


def test_the_better_candidate_on_validation_rows_is_chosen(trained: Trained) -> None:
    world, _, outputs = trained
    metrics = world.tracking.record(outputs.run_id).metrics
    values = {c: metrics[f"candidate.{c}.validation.roc_auc"] for c in ("boost", "line")}
    assert values[outputs.candidate] == max(values.values()) == metrics["validation.roc_auc"]


def test_dataset_and_files_are_kept_with_the_run(trained: Trained) -> None:
    world, inputs, outputs = trained
    run = world.tracking._client.get_run(outputs.run_id)
    dataset = run.inputs.dataset_inputs[0].dataset
    assert inputs.dataset_sha256.startswith(dataset.digest)
    assert json.loads(dataset.profile) == {"num_rows": 600, "sha256": inputs.dataset_sha256}
    kept = {item.path for item in world.tracking._client.list_artifacts(outputs.run_id)}
    assert {"pipeline.yaml", "trials.json", "environment.json", "code"} <= kept


def test_no_cell_of_a_sensitive_column_is_in_mlflow_outside_of_the_recipe(trained: Trained) -> None:
    world, _, outputs = trained
    root = Path(world.settings.artifacts.removeprefix("file://"))
    holding = {p.name for p in root.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()}
    assert holding <= {"recipe.json"}  # a sensitive feature's categories live in the model, as `init` warns
    assert SECRET not in str(world.tracking.record(outputs.run_id))


def test_mlflows_own_loader_gives_the_packages_answers(trained: Trained) -> None:
    import mlflow

    world, inputs, outputs = trained
    model = PackagedModel.load(world.tracking.package(outputs.run_id, world.scratch))
    table = read_table(world, inputs.dataset, [c.name for c in model.manifest.columns]).slice(0, 50)
    loaded = mlflow.pyfunc.load_model(world.tracking.record(outputs.run_id).model_uri)
    answer = loaded.predict(table.to_pandas())
    ours = model.predict(table)
    assert answer["prediction"].tolist() == ours.labels.tolist()
    assert ours.scores is not None
    assert answer["probability_true"].tolist() == ours.scores[:, 1].tolist()
    assert loaded.metadata.signature.inputs.input_names() == ["size", "colour", "owner"]


def test_the_threshold_comes_from_validation_rows_and_lies_in_the_package(trained: Trained) -> None:
    world, _, outputs = trained
    manifest = PackagedModel.load(world.tracking.package(outputs.run_id, world.scratch)).manifest
    assert manifest.classes == ("false", "true")
    assert manifest.positive == "true"
    assert manifest.threshold == float(world.tracking.record(outputs.run_id).params["threshold"]) != 0.5


def test_a_second_attempt_returns_the_finished_run(trained: Trained) -> None:
    world, inputs, outputs = trained
    again = train(inputs, world=world)
    assert (again.run_id, again.candidate, again.reused) == (outputs.run_id, outputs.candidate, False)


def test_another_workflow_reuses_the_run_unless_the_cache_is_refused(trained: Trained) -> None:
    first, inputs, outputs = trained
    world = World(first.settings, first.pipeline, first.pipeline_path, workflow="w2", now=lambda: NOW)
    taken = train(inputs, world=world)
    assert (taken.run_id, taken.reused) == (outputs.run_id, True)
    fresh = train(inputs.model_copy(update={"cache": Cache.REFUSE}), world=world)
    assert (fresh.run_id != outputs.run_id, fresh.reused) == (True, False)
    assert train(inputs.model_copy(update={"cache": Cache.REFUSE}), world=world).run_id == fresh.run_id
    one, two = (PackagedModel.load(first.tracking.package(r, first.scratch)) for r in (outputs.run_id, fresh.run_id))
    table = read_table(first, inputs.dataset, [c.name for c in one.manifest.columns])
    a, b = one.predict(table).scores, two.predict(table).scores
    assert a is not None
    assert b is not None
    assert a.tobytes() == b.tobytes()


def test_a_training_killed_midway_leaves_one_finished_run_after_the_next_attempt(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    inputs = inputs_of(world)
    environment = os.environ | {
        variable(f): str(v) for f, v in world.settings.model_dump().items() if isinstance(v, (str, int)) and v != ""
    }
    environment |= {variable("pipeline"): str(world.pipeline_path), variable("workflow"): "w1"}
    given = [
        part
        for k, v in inputs.model_dump(mode="json", exclude={"code", "cache"}).items()
        for part in (f"--{k.replace('_', '-')}", v)
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "steps", "train", *given], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while not all_runs(world) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [run.info.status for run in all_runs(world)] == ["RUNNING"]
    outputs = train(inputs, world=world)
    assert sorted(run.info.status for run in all_runs(world)) == ["FINISHED", "KILLED"]
    assert world.tracking.record(outputs.run_id).status == "FINISHED"


def test_own_code_trains_on_raw_columns_and_travels_in_the_model(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "helper.py").write_text("import numpy as np\n\ndef squash(x):\n    return 1 / (1 + np.exp(-x))\n")
    training = {"metric": "roc_auc", "candidates": [{"name": "own", "estimator": "mine:Mine"}]}
    world = world_of(
        tmp_path,
        features={"passthrough": True},
        training=training | {"trusted_types": ["mine.Mine"]},
        code=["helper.py"],
    )
    code = world.storage.write(
        world.storage.uri("code", "x.zip"), pack(tmp_path, world.pipeline.user_modules, world.pipeline.code, "c0ffee")
    )
    inputs = inputs_of(world, code=code)
    outputs = train(inputs, world=world)
    run = world.tracking.record(outputs.run_id)
    assert run.tags[tag("user_commit")] == "c0ffee"
    model = PackagedModel.load(world.tracking.package(outputs.run_id, world.scratch))
    assert set(model.manifest.user_modules) == {"mine", "helper"}
    assert (
        len(
            model.predict(
                pa.table(
                    {
                        "size": [0.5, None],
                        "colour": ["red", None],
                        "owner": ["x", None],
                        "weight": [1.0, 1.0],
                        "id": [1, 2],
                    }
                )
            ).labels
        )
        == 2
    )
    distrusting = world_of(tmp_path, features={"passthrough": True}, training=training, code=["helper.py"])
    with pytest.raises(ConfigError, match=r"candidate own: .* mine\.Mine"):
        train(inputs_of(distrusting, code=code), world=distrusting)
    assert sorted(r.info.status for r in all_runs(world)) == ["FAILED", "FINISHED"]


@pytest.mark.parametrize(("task", "column", "positive"), [("regression", "size", None), ("multiclass", "colour", None)])
def test_other_tasks_train_the_same_way(tmp_path: Path, task: str, column: str, positive: Any) -> None:
    schema = json.loads(json.dumps(FILE["schema"]))
    text = {"regression": "rmse", "multiclass": "log_loss"}[task]
    training = {
        "metric": text,
        "candidates": [{"name": "boost", "estimator": "lightgbm", "parameters": {"n_estimators": 5}}],
    }
    world = world_of(
        tmp_path,
        target={"column": column, "task": task},
        training=training,
        schema=schema,
        source={"uri": "rows.csv", "csv": {"missing": ["none"]}},
        gates=json.loads(
            json.dumps(FILE["gates"])
            .replace("roc_auc", "mae" if task == "regression" else "accuracy")
            .replace("min", "max")
        ),
    )
    rows = (tmp_path / "rows.csv").read_text().replace(",,", ",blue,")
    (tmp_path / "rows.csv").write_text(rows)
    outputs = train(inputs_of(world), world=world)
    model = PackagedModel.load(world.tracking.package(outputs.run_id, world.scratch))
    assert model.manifest.classes == (("blue", "green", "red") if task == "multiclass" else ())
    assert model.manifest.threshold is None
