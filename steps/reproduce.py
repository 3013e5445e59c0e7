"""Build a version again from what was kept, and compare its answers.  Called by `retrain reproduce`.

Features and training run in a scratch store and a scratch MLflow: nothing is reused from, and nothing is left in, the
real ones.  Data, code and parameters are the kept ones; the environment is today's, and where it is not the one that
trained the version, the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from contracts.base import Contract
from contracts.errors import ConfigError
from contracts.names import tag
from contracts.stages import Cache, Features, Train
from serving.model import PackagedModel, Predictions
from serving.user_code import pack
from steps.archive import Archive
from steps.assessment import references
from steps.dataset import read_table
from steps.features import features
from steps.provenance import machine, retrain_code
from steps.reuse import lock_sha256
from steps.splitting import read_split
from steps.table.digest import TableDigest
from steps.tracking import RunRecord
from steps.train import train
from steps.world import World

CODE = "code/user"
"""Artifact of a run: the user's modules."""


class Difference(Contract):
    """One thing that came out otherwise."""

    what: str
    kept: str
    rebuilt: str

    def __str__(self) -> str:
        return f"{self.what}: {self.kept}, rebuilt {self.rebuilt}"


class Reproduction(Contract):
    """Whether a version could be built again, and how close its answers are."""

    model: str
    version: int
    run_id: str
    identical: bool
    rows: int = Field(description="Test rows on which the answers were compared.")
    largest_difference: float = Field(description="Of any probability, or of any predicted value.")
    labels_changed: int
    tolerance: float = Field(description="training.reproduce_tolerance of the kept pipeline file.")
    differences: tuple[Difference, ...] = ()
    warnings: tuple[str, ...] = Field((), description="What is not as it was when the version was trained.")


def reproduce(archive: Archive, name: str, folder: Path) -> Reproduction:
    """Rebuild the version that `name` names, in `folder`, and compare.

    Raises
    ------
    ConfigError, DataError
        Something that it needs was removed or is damaged.
    """
    version = archive.version(name)
    run_id = archive.registry.run_of(version)
    kept = archive.world(run_id, folder)
    run = kept.tracking.record(run_id)
    world = _scratch(kept, folder)
    found = list(_check_dataset(kept, run))
    rebuilt = _rebuild(world, run, _code(archive, kept, run, world))
    found += _compare_references(run, rebuilt)

    before = PackagedModel.load(kept.tracking.package(run_id, folder / "kept"))
    after = PackagedModel.load(world.tracking.package(rebuilt.run_id, folder / "rebuilt"))
    refers = references(run)
    columns = [column.name for column in before.manifest.columns]
    test = read_table(kept, refers.dataset, columns).filter(read_split(kept, refers.split).mask("test"))
    largest, changed, trouble = compare(before, after, before.predict(test), after.predict(test))
    tolerance = kept.pipeline.training.reproduce_tolerance
    found += trouble
    return Reproduction(
        model=archive.model,
        version=version,
        run_id=run_id,
        identical=not found and largest <= tolerance and (changed == 0 or tolerance > 0),
        rows=test.num_rows,
        largest_difference=largest,
        labels_changed=changed,
        tolerance=tolerance,
        differences=tuple(found),
        warnings=tuple(_environment(run, world)),
    )


def compare(
    before: PackagedModel, after: PackagedModel, kept: Predictions, rebuilt: Predictions
) -> tuple[float, int, list[Difference]]:
    """Return the largest difference of any number, how many labels changed, and what made numbers incomparable."""
    if before.manifest.classes != after.manifest.classes:
        classes = [", ".join(m.manifest.classes) for m in (before, after)]
        return float("inf"), len(kept.labels), [Difference(what="classes", kept=classes[0], rebuilt=classes[1])]
    if kept.scores is None or rebuilt.scores is None:
        return _largest(kept.labels, rebuilt.labels), int((kept.labels != rebuilt.labels).sum()), []
    return _largest(kept.scores, rebuilt.scores), int((kept.labels != rebuilt.labels).sum()), []


def _largest(a: Any, b: Any) -> float:
    # NaN in the same place is the same answer; in one of the two it is an infinite difference.
    gap = np.abs(np.where(np.isnan(a) & np.isnan(b), 0.0, a - b))
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))


def _scratch(kept: World, folder: Path) -> World:
    home = folder / "scratch"
    settings = kept.settings.model_copy(
        update={
            "store": (home / "store").as_uri(),
            "tracking_uri": f"sqlite:///{home / 'mlflow.db'}",
            "artifacts": (home / "artifacts").as_uri(),
        }
    )
    return World(settings=settings, pipeline=kept.pipeline, pipeline_path=kept.pipeline_path, workflow="reproduce")


def _check_dataset(kept: World, run: RunRecord) -> Iterator[Difference]:
    """Hash the kept dataset's content again: a changed file is found before anything is trained on it."""
    refers = references(run)
    digest = TableDigest(kept.pipeline.table)
    for batch in read_table(kept, refers.dataset).to_batches():
        digest.update(batch)
    if (now := digest.hexdigest()) != refers.dataset_sha256:
        yield Difference(what="dataset sha256", kept=refers.dataset_sha256, rebuilt=now)


def _code(archive: Archive, kept: World, run: RunRecord, world: World) -> str:
    """Return the URI of the user's packed modules, made anew from MLflow's copy when the store has none any more."""
    uri = run.tags.get(tag("code"), "")
    if not uri or kept.storage.exists(uri):
        return uri
    copy = archive.registry.fetch(run.run_id, CODE, kept.scratch)
    if copy is None:
        raise ConfigError(f"the user's modules are gone: {uri}", remedy="restore that object")
    return world.storage.write(
        world.storage.uri("code.zip"), pack(copy, kept.pipeline.user_modules, kept.pipeline.code)
    )


def _rebuild(world: World, run: RunRecord, code: str) -> RunRecord:
    refers = references(run)
    split = features(
        Features.Inputs(dataset=refers.dataset, dataset_sha256=refers.dataset_sha256, cache=Cache.REFUSE), world=world
    )
    trained = train(
        Train.Inputs(
            dataset=refers.dataset, dataset_sha256=refers.dataset_sha256, split=split.split,
            split_sha256=split.split_sha256, code=code, cache=Cache.REFUSE,
        ),
        world=world,
    )  # fmt: skip
    return world.tracking.record(trained.run_id)


def _compare_references(run: RunRecord, rebuilt: RunRecord) -> Iterator[Difference]:
    for name in ("split_sha256", "transform_sha256", "candidate", "user_code"):
        kept, now = run.tags.get(tag(name), ""), rebuilt.tags.get(tag(name), "")
        if kept != now:
            yield Difference(what=name.replace("_", " "), kept=kept, rebuilt=now)


def _environment(run: RunRecord, world: World) -> Iterator[str]:
    now = {**machine(), "code_commit": retrain_code(world.settings).commit, "lock_sha256": lock_sha256()}
    for name, label in (
        ("code_commit", "commit"), ("lock_sha256", "lock file"), ("python", "Python"), ("architecture", "architecture"),
        ("cpu", "CPU"),
    ):  # fmt: skip
        kept = run.tags.get(tag(name), "") or run.params.get(name, "")
        if kept and kept != now[name]:
            yield f"{label} was {kept}, is {now[name] or 'unknown'}"
