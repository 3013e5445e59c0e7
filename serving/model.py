"""The packaged model: transform and estimator as one.  `train` saves it; gates, `predict` and the server load it.

A package is a folder: ``package.json`` (the manifest), ``recipe.json`` (the transform), the estimator in its own
format, ``user/`` (the user's modules), ``packages.lock`` (what those need beside retrain's libraries) and
``example.json`` (rows that were made up, and that it answers).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from contracts.errors import ConfigError, DataError
from contracts.metrics import Task
from contracts.references import PACKAGES_FILE, RECIPE_FILE, ModelManifest
from serving.estimators import FORMATS, FittedEstimator
from serving.transform import Recipe, transform
from serving.user_code import UserCode, read_folder

MANIFEST_FILE = "package.json"
EXAMPLE_FILE = "example.json"
USER_FOLDER = "user"
FORMAT = 1


class Saveable(Protocol):
    """An estimator as far as a package needs it: a fitted one, or one that was saved before."""

    @property
    def kind(self) -> str:
        """A key of `serving.estimators.FORMATS`."""

    def save(self, folder: Path, trusted: Sequence[str] = ()) -> None:
        """Write its file into `folder`."""


@dataclass(frozen=True)
class Predictions:
    """What a model answers.

    `labels` are class labels in the target's own type, or values (float64), [rows].  `scores` are probabilities
    [rows, classes] in the order of the manifest's classes, None for regression.
    """

    labels: NDArray[Any]
    scores: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class PackagedModel:
    """A model ready to answer.  Any number of threads may ask it at once."""

    manifest: ModelManifest
    recipe: Recipe
    estimator: FittedEstimator
    folder: Path | None = None

    @classmethod
    def load(cls, folder: Path) -> PackagedModel:
        """Read a package and check it against the hashes it carries.

        Raises
        ------
        DataError
            When a file is missing, differs from its hash, or is one too many.
        ConfigError
            When it is of another format, or needs a library or a trusted type that is not there.
        """
        manifest = checked_manifest(folder)
        read_folder(folder / USER_FOLDER).register()
        recipe = Recipe.model_validate_json((folder / RECIPE_FILE).read_bytes())
        estimator = FORMATS[manifest.estimator].load(folder, manifest.trusted_types)
        return cls(manifest, recipe, estimator, folder)

    def predict(self, table: Any) -> Predictions:
        """Answer the rows of a typed Arrow table that holds at least the manifest's columns."""
        return self.answer(self.features(table))

    def features(self, table: Any) -> Any:
        """Return what the estimator reads: a matrix [rows, features], or a DataFrame of raw columns for passthrough."""
        return features(self.recipe, table)

    def answer(self, features: Any) -> Predictions:
        """Answer rows whose features are already made."""
        scores = self.estimator.score(features, len(self.manifest.classes))
        return decide(self.manifest, scores)

    @cached_property
    def example(self) -> list[dict[str, Any]]:
        """Rows made up for documentation: JSON objects that this model answers."""
        return read_example(self.folder) if self.folder else []


def checked_manifest(folder: Path) -> ModelManifest:
    """Read a package's manifest and check every file against the hash that it carries; see `PackagedModel.load`."""
    manifest = read_manifest(folder)
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    found.pop(MANIFEST_FILE)
    for name in sorted(found.keys() | manifest.files.keys()):
        if name not in manifest.files:
            if name == PACKAGES_FILE or (name.startswith(f"{USER_FOLDER}/") and name.endswith(".py")):
                raise DataError(f"the model package in {folder} holds {name}, which its manifest does not name")
            continue
        if name not in found or _sha256(found[name]) != manifest.files[name]:
            state = "differs from its hash" if name in found else "is missing"
            raise DataError(
                f"the model package in {folder} is damaged: {name} {state}", remedy="fetch or train it again"
            )
    return manifest


def read_manifest(folder: Path) -> ModelManifest:
    """Read a package's manifest alone; see `PackagedModel.load`."""
    try:
        data = json.loads((folder / MANIFEST_FILE).read_bytes())
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ConfigError(
                f"the model package in {folder} is of another format", remedy=f"this retrain reads format {FORMAT}"
            )
        manifest = ModelManifest.model_validate(data)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"there is no model package in {folder}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(
            f"the model package in {folder} is damaged: {MANIFEST_FILE}: {str(error).splitlines()[0]}"
        ) from None
    if manifest.estimator not in FORMATS:
        raise ConfigError(f"the model package in {folder} holds an unknown kind of estimator: {manifest.estimator}")
    return manifest


def manifest_sha256(folder: Path) -> str:
    """Return the hash of a package: of its manifest, which holds the hash of every other file.

    Raises
    ------
    ConfigError
        There is no package.
    """
    try:
        return _sha256(folder / MANIFEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"there is no model package in {folder}") from None


def read_packages(folder: Path) -> str:
    """Read the lock of what a package's own modules need, empty where they need nothing."""
    file = folder / PACKAGES_FILE
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def read_example(folder: Path) -> list[dict[str, Any]]:
    """Read a package's made-up rows."""
    rows: list[dict[str, Any]] = json.loads((folder / EXAMPLE_FILE).read_bytes())
    return rows


def save(
    folder: Path,
    manifest: ModelManifest,
    recipe: Recipe,
    estimator: Saveable,
    user_code: UserCode,
    example: Sequence[Mapping[str, Any]],
    packages: str = "",
) -> ModelManifest:
    """Write a package into an empty folder and return the manifest as written, with the hashes of the other files.

    Raises
    ------
    ConfigError
        When the estimator can't be saved without pickle; see `serving.estimators`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    estimator.save(folder, manifest.trusted_types)
    (folder / RECIPE_FILE).write_bytes(recipe.json_bytes())
    (folder / EXAMPLE_FILE).write_text(json.dumps(list(example), indent=2), encoding="utf-8")
    user_code.write(folder / USER_FOLDER)
    if packages:
        (folder / PACKAGES_FILE).write_text(packages, encoding="utf-8")
    files = {p.relative_to(folder).as_posix(): _sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    whole = manifest.model_copy(update={"estimator": estimator.kind, "files": files, "user_modules": user_code.modules})
    (folder / MANIFEST_FILE).write_text(whole.model_dump_json(indent=2), encoding="utf-8")
    return whole


def features(recipe: Recipe, table: Any) -> Any:
    """Return what an estimator reads: the transform's matrix, or a DataFrame of the raw columns for passthrough."""
    if not recipe.passthrough:
        return transform(recipe, table)
    return table.select(list(recipe.columns)).to_pandas(date_as_object=False)


def decide(manifest: ModelManifest, scores: NDArray[np.float64]) -> Predictions:
    """Turn probabilities or values into predictions: by the threshold (binary), by the largest (multiclass)."""
    if manifest.task is Task.REGRESSION:
        return Predictions(scores)
    if manifest.task is Task.BINARY and manifest.positive is not None:
        positive = manifest.classes.index(manifest.positive)
        above = scores[:, positive] >= (0.5 if manifest.threshold is None else manifest.threshold)
        chosen = np.where(above, positive, 1 - positive)
    else:
        chosen = scores.argmax(axis=1)
    return Predictions(labels(manifest)[chosen], scores)


def labels(manifest: ModelManifest) -> NDArray[Any]:
    """Return the class labels in the target's own type, in the order of the probability columns."""
    if manifest.class_type == "integer":
        return np.array([int(label) for label in manifest.classes], dtype=np.int64)
    if manifest.class_type == "boolean":
        return np.array([label == "true" for label in manifest.classes], dtype=np.bool_)
    return np.array(manifest.classes, dtype=np.str_)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
