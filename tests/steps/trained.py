"""A real version at the desk: ingest to register on a small made-up table, with a user's own module."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from contracts.pipeline import load_pipeline
from contracts.stages import Evaluate, Features, Ingest, Train
from serving.user_code import pack
from steps.archive import Archive
from steps.evaluate import evaluate
from steps.features import features
from steps.ingest import ingest
from steps.register import register
from steps.train import train
from steps.world import World
from tests.steps.registered import NOW, make_settings, make_world, to_register

PIPELINE = """
apiVersion: retrain/v1
name: churn
source: {uri: churn.csv, csv: {missing: ["?"]}}
schema:
  columns:
    - {name: age, type: integer}
    - {name: plan, type: string}
    - {name: since, type: date}
    - {name: spend, type: number, infinity: true}
    - {name: churned, type: string, nullable: false}
target: {column: churned, task: binary, positive: "yes"}
split: {method: random, validation: 0.2, test: 0.2, seed: 3}
training:
  metric: roc_auc
  candidates:
    - {name: mine, estimator: "my_model:make"}
gates:
  default:
    validation:
      thresholds: [{metric: accuracy, min: 0.1}]
      bootstrap: {resamples: 100, decide: point}
"""
MODULE = """
from sklearn.linear_model import LogisticRegression


def make(**parameters):
    return LogisticRegression(max_iter=500, **parameters)
"""


@dataclass(frozen=True)
class Trained:
    """What a version was made of."""

    world: World
    run_id: str
    version: int
    code: str

    def archive(self) -> Archive:
        return Archive.open(self.world.settings)


def rows(count: int, seed: int = 1) -> str:
    draw = random.Random(seed)
    lines = ["age,plan,since,spend,churned"]
    for _ in range(count):
        age, plan, spend = draw.randint(18, 80), draw.choice(["basic", "plus", "team"]), round(draw.uniform(0, 100), 2)
        churned = "yes" if spend + 30 * (plan == "basic") + draw.gauss(0, 20) > 60 else "no"
        cell = "?" if draw.random() < 0.05 else str(age)
        lines.append(f"{cell},{plan},2024-{draw.randint(1, 12):02d}-01,{spend},{churned}")
    return "\n".join(lines) + "\n"


def make_version(folder: Path, pipeline: str = PIPELINE) -> Trained:
    (folder / "churn.yaml").write_text(pipeline)
    (folder / "my_model.py").write_text(MODULE)
    make_world(folder)  # MLflow's database
    world = World(
        settings=make_settings(folder), pipeline=load_pipeline(folder / "churn.yaml"),
        pipeline_path=folder / "churn.yaml", workflow="retrain-1", now=lambda: NOW,
    )  # fmt: skip
    return train_version(world)


def train_version(world: World, seed: int = 1) -> Trained:
    """Train a version on another month's rows."""
    world, folder = replace(world), world.pipeline_path.parent  # a scratch folder of its own, as a step has
    (folder / "churn.csv").write_text(rows(600, seed))
    code = world.storage.write(world.storage.uri("code", "mine.zip"), pack(folder, ["my_model"]))
    data = ingest(Ingest.Inputs(as_of=NOW, code=code), world=world)
    split = features(Features.Inputs(dataset=data.dataset, dataset_sha256=data.dataset_sha256), world=world)
    run = train(
        Train.Inputs(
            dataset=data.dataset, dataset_sha256=data.dataset_sha256, split=split.split,
            split_sha256=split.split_sha256, code=code,
        ),
        world=world,
    )  # fmt: skip
    evaluate(Evaluate.Inputs(run_id=run.run_id), world=world)
    version = register(to_register(world, run.run_id), world=world).version
    return Trained(world, run.run_id, version, code)
