"""The key of a training: the hash of all that decides it.  Used by `train` and `fit`; by `features`, to look ahead."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator

import steps.candidates
from contracts.errors import Finding
from contracts.stages import Train
from serving.user_code import UserCode
from steps import own_packages
from steps.candidates.lightgbm import lightgbm_problem
from steps.reuse import lookup, reuse_key
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
    "steps.training.fitting",
    "steps.metrics",
    "steps.train",
    "steps.training.material",
    "steps.training.record",
    "steps.training.rows",
)
LEFT_OUT = "lightgbm"


def train_key(dataset_sha256: str, split_sha256: str, code: UserCode, world: World, left_out: str = "") -> str:
    """Return the hash of everything that decides what is trained; a run without LightGBM is not one that had it."""
    read = {
        "dataset": dataset_sha256,
        "split": split_sha256,
        "code": code.sha256,
        "contract": world.pipeline.release.contract,
        "left_out": left_out,
        "packages": own_packages.lock_sha256(own_packages.current(world.settings)),
    }
    return reuse_key(world, Train.name, SECTIONS, MODULES, read)


def keys(dataset_sha256: str, split_sha256: str, code: UserCode, world: World) -> Iterator[tuple[str, Finding | None]]:
    """Yield the keys that a finished training may have, the whole one first, and what is wrong with LightGBM.

    The second, without LightGBM, is worked out only when it is asked for: looking for the library takes a moment.
    """
    yield train_key(dataset_sha256, split_sha256, code, world), None
    if problem := missing_lightgbm(world):
        yield train_key(dataset_sha256, split_sha256, code, world, LEFT_OUT), problem


def missing_lightgbm(world: World) -> Finding | None:
    """Say why LightGBM can't be loaded, where a candidate needs it."""
    wanted = any(candidate.estimator == "lightgbm" for candidate in world.pipeline.training.candidates)
    return lightgbm_problem() if wanted else None


def is_remembered(dataset_sha256: str, split_sha256: str, code: UserCode, world: World) -> bool:
    """Say whether such a training has finished, as far as the store knows; MLflow alone is sure."""
    found = (lookup(world, Train.name, key) for key, _ in keys(dataset_sha256, split_sha256, code, world))
    return any(outputs is not None for outputs in found)
