"""Whether finished work can be taken again: the key of what a stage reads, and what it answered under that key.

Used by `features` and `train`, and by `evaluate` for a model that it has judged by the same policy; what depends on the
outside world always runs.  The stage itself decides, so the desk and a cluster decide alike.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from contracts.base import Contract
from contracts.stages import BY_NAME, StageOutputs
from steps.world import World

C = TypeVar("C", bound=Contract)
LOCK_FILE = Path(__file__).resolve().parent.parent / "requirements.lock"
_DISTRIBUTIONS = ("lightgbm", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "skops", "xgboost")
"""What computes features and models; another version of any of them may compute something else."""


class Remembered(Contract):
    """``<store>/cache/<stage>/<key>.json``."""

    outputs: dict[str, Any]
    objects: tuple[str, ...] = ()


def reuse_key(
    world: World, stage: str, sections: Sequence[str], modules: Sequence[str], inputs: Mapping[str, Any]
) -> str:
    """Return the SHA-256 of all that a stage reads.

    Parameters
    ----------
    sections
        Fields of `Pipeline` that the stage follows.
    modules
        Our modules whose source decides the result.
    inputs
        What it is fed, by hash rather than by URI.
    """
    read = {
        "stage": stage,
        "pipeline": world.pipeline.section_sha256(*sections),
        "modules": {name: _source_sha256(name) for name in sorted(modules)},
        "environment": environment(),
        "inputs": dict(inputs),
    }
    return hashlib.sha256(json.dumps(read, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def environment() -> dict[str, str]:
    """Return what besides our code decides a computation: interpreter, machine, library versions, lock file."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "lock": lock_sha256()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def lock_sha256() -> str:
    """Return the hash of the lock file; empty where there is none, as in a container that only holds its result."""
    return hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest() if LOCK_FILE.is_file() else ""


def lookup(world: World, stage: str, key: str) -> StageOutputs | None:
    """Return what the stage answered under `key`; None when it never did, or when something it made is gone."""
    if (entry := recall(world, stage, key, Remembered)) is None:
        return None
    try:
        outputs = BY_NAME[stage].Outputs.model_validate(entry.outputs)
    except ValidationError:
        return None
    if gone := [name for name in entry.objects if not world.storage.exists(name)]:
        world.log.info("%s runs again: %s is gone", stage, gone[0])
        return None
    return outputs


def remember(world: World, stage: str, key: str, outputs: StageOutputs, objects: Sequence[str] = ()) -> None:
    """Keep the stage's answer under `key`, with the URIs of the `objects` without which it is worth nothing."""
    keep(world, stage, key, Remembered(outputs=outputs.model_dump(mode="json"), objects=tuple(objects)))


def recall(world: World, stage: str, key: str, form: type[C]) -> C | None:
    """Return what the stage kept under `key`; None when it never did, or in another form."""
    uri = _uri(world, stage, key)
    if not world.storage.exists(uri):
        return None
    try:
        return form.model_validate_json(world.storage.read(uri))
    except ValidationError:
        world.log.warning("what was remembered at %s has another form; %s runs again", uri, stage)
        return None


def keep(world: World, stage: str, key: str, what: Contract) -> None:
    """Keep something under `key`."""
    world.storage.write(_uri(world, stage, key), what.model_dump_json().encode())


def _uri(world: World, stage: str, key: str) -> str:
    return world.storage.uri("cache", stage, f"{key}.json")


def _source_sha256(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source of {module}")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
