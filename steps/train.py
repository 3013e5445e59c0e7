"""Fit the candidates, choose one on validation rows, and leave it in MLflow with all that it came from.  The stage.

A run carries its `train_key`: the hash of what training reads.  Tried again, the stage finds the run that it finished,
or marks the one that it did not finish KILLED and starts afresh.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager

import steps.candidates
from contracts.errors import ConfigError, Finding, StageError
from contracts.names import tag
from contracts.stages import Cache, Train
from serving.user_code import UserCode, unpack
from steps import own_packages, provenance
from steps.candidates import Problem
from steps.candidates.choice import Choice, choose, without_lightgbm
from steps.candidates.lightgbm import lightgbm_problem
from steps.reuse import reuse_key
from steps.training_material import Material, read_material
from steps.training_record import first_tags, record_training
from steps.world import World

SECTIONS = ("name", "table", "target", "features", "training")
MODULES = (
    "serving.estimators",
    "serving.model",
    "serving.transform",
    "serving.user_code",
    "steps.candidates",
    *(f"steps.candidates.{module.name}" for module in pkgutil.iter_modules(steps.candidates.__path__)),
    "steps.example_rows",
    "steps.metrics",
    "steps.train",
    "steps.training_material",
    "steps.training_record",
    "steps.training_rows",
)
LEFT_OUT = "lightgbm"


def train(inputs: Train.Inputs, *, world: World) -> Train.Outputs:
    """Return the MLflow run of the best candidate, trained now or found finished.

    Raises
    ------
    ConfigError
        When parameters, own code or a library do not fit; the findings name candidate and parameter.
    DataError
        When target or weights can't be learned from.
    """
    code = unpack(world.storage.read(inputs.code)) if inputs.code else UserCode({})
    key = train_key(inputs, code, world)
    if found := _finished(inputs, key, world):
        return found
    if problem := _lightgbm_problem(world):
        world.log.warning("LightGBM is skipped: %s; to mend it: %s", problem.what, problem.remedy)
        key = train_key(inputs, code, world, left_out=LEFT_OUT)
        if found := _finished(inputs, key, world):
            return found
    material = read_material(inputs, code, world)
    run_id = world.tracking.begin(key, world.workflow, first_tags(material, problem, world), world.now())
    with _marked_when_it_fails(run_id, world):
        choice = _fit_and_record(run_id, problem, material, world)
        world.tracking.end(run_id)
    best = choice.best
    metric = f"{world.pipeline.training.metric} {best.value:.4f} on validation"
    summary = f"{best.candidate.name}, best of {len(choice.finalists)}: {metric}"
    return Train.Outputs(run_id=run_id, candidate=best.candidate.name, reused=False, summary=summary)


def train_key(inputs: Train.Inputs, code: UserCode, world: World, left_out: str = "") -> str:
    """Return the hash of everything that decides what is trained; a run without LightGBM is not one that had it."""
    read = {
        "dataset": inputs.dataset_sha256,
        "split": inputs.split_sha256,
        "code": code.sha256,
        "contract": world.pipeline.release.contract,
        "left_out": left_out,
        "packages": own_packages.lock_sha256(own_packages.current(world.settings)),
    }
    return reuse_key(world, "train", SECTIONS, MODULES, read)


def _finished(inputs: Train.Inputs, key: str, world: World) -> Train.Outputs | None:
    """Return what an earlier attempt has finished, or with ``cache: use`` an earlier run."""
    run_id = world.tracking.find_run(key, workflow=world.workflow if inputs.cache is Cache.REFUSE else "")
    if run_id is None:
        return None
    record = world.tracking.record(run_id)
    candidate = record.tags[tag("candidate")]
    reused = record.tags[tag("workflow")] != world.workflow
    summary = f"{'reused' if reused else 'finished before'}: {candidate}, run {run_id[:8]}"
    return Train.Outputs(run_id=run_id, candidate=candidate, reused=reused, summary=summary)


def _lightgbm_problem(world: World) -> Finding | None:
    wanted = any(candidate.estimator == "lightgbm" for candidate in world.pipeline.training.candidates)
    return lightgbm_problem() if wanted else None


def _fit_and_record(run_id: str, lightgbm: Finding | None, material: Material, world: World) -> Choice:
    training, target = world.pipeline.training, world.pipeline.target
    problem = Problem(
        task=target.task,
        classes=len(material.classes.values),
        metric=training.metric,
        feature_names=material.recipe.feature_names,
        categorical=material.recipe.categorical,
        cardinalities=material.recipe.cardinalities,
        seed=training.seed,
        threads=provenance.threads(world.settings),
        code=material.code,
    )
    candidates = without_lightgbm(training.candidates, lightgbm)
    choice = choose(problem, candidates, target.threshold, material.train, material.validation, world.log.info)
    for number, trial in enumerate(choice.finalists):
        if ":" in trial.candidate.estimator:
            # what can't be saved is an error whoever wins, not only on the day that it wins
            folder = world.scratch / f"trial-{number}"
            folder.mkdir(exist_ok=True)
            try:
                trial.fitted.estimator.save(folder, training.trusted_types)
            except ConfigError as error:
                message = f"candidate {trial.candidate.name}: {error.message}"
                raise ConfigError(message, findings=error.findings, remedy=error.remedy) from error
    record_training(run_id, problem, choice, material, world)
    return choice


@contextmanager
def _marked_when_it_fails(run_id: str, world: World) -> Iterator[None]:
    try:
        yield
    except Exception:
        try:
            world.tracking.end(run_id, "FAILED")
        except StageError as error:
            world.log.warning("run %s could not be marked as failed: %s", run_id, error.message)
        raise
