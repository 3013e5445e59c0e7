"""Small packaged models for tests of the server and of deploy: real LightGBM, every column type, made and signed at
once.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from contracts.metrics import Task
from contracts.references import ColumnSpec, ModelManifest
from serving.estimators import LightgbmEstimator
from serving.model import save
from serving.model_keys import public_text
from serving.signature import SIGNATURE_FILE, sign
from serving.transform import Categorical, DateParts, Numeric, Recipe
from serving.user_code import UserCode

COLUMNS = (
    ColumnSpec(name="age", type="integer", nullable=False),
    ColumnSpec(name="income per year", type="number", nullable=True),
    ColumnSpec(name="member", type="boolean", nullable=True),
    ColumnSpec(name="city", type="string", nullable=True, categories=("Bonn", "Ulm")),
    ColumnSpec(name="diagnosis", type="string", nullable=True, sensitive=True, categories=("a", "b")),
    ColumnSpec(name="since", type="date", nullable=True),
    ColumnSpec(name="seen", type="timestamp", nullable=True),
)
RECIPE = Recipe(
    steps=(
        Numeric(column="age", type="integer", fill=40.0),
        Numeric(column="income per year", type="number"),
        Numeric(column="member", type="boolean"),
        Categorical(column="city", type="string", categories=("Bonn", "Ulm"), missing=2, other=3),
        Categorical(column="diagnosis", type="string", categories=("a", "b"), missing=2, other=3),
        DateParts(column="since", type="date", parts=("year", "month"), fills=(None, None)),
        DateParts(column="seen", type="timestamp", parts=("hour",), fills=(None,)),
    )
)
ROW: dict[str, Any] = {
    "age": 41, "income per year": 52000.5, "member": True, "city": "Ulm", "diagnosis": "a", "since": "2020-02-29",
    "seen": "2026-01-31T12:00:00Z",
}  # fmt: skip

KEY = ec.generate_private_key(ec.SECP256R1())
"""By which packages are signed in this process."""
TRUSTED = public_text(KEY.public_key())


def package(folder: Path, *, task: Task = Task.BINARY, seed: int = 0) -> Path:
    """Write a packaged model into `folder` and return it."""
    random = np.random.default_rng(seed)
    features = random.random((200, len(RECIPE.feature_names))) * 4
    objective = {Task.BINARY: "binary", Task.MULTICLASS: "multiclass", Task.REGRESSION: "regression"}[task]
    classes = {Task.BINARY: ("no", "yes"), Task.MULTICLASS: ("1", "2", "3"), Task.REGRESSION: ()}[task]
    target = random.integers(0, len(classes), 200) if classes else features[:, 0] * 10
    parameters = {"objective": objective, "verbosity": -1, "num_leaves": 4, "min_data_in_leaf": 5, "num_threads": 1}
    if task is Task.MULTICLASS:
        parameters["num_class"] = len(classes)
    booster = lightgbm.train(parameters, lightgbm.Dataset(features, target), num_boost_round=5)
    manifest = ModelManifest(
        pipeline="tiny", task=task, columns=COLUMNS, classes=classes,
        class_type="integer" if task is Task.MULTICLASS else "string",
        positive="yes" if task is Task.BINARY else None, threshold=0.5 if task is Task.BINARY else None,
        estimator="lightgbm", dataset_sha256="d" * 64, transform_sha256=RECIPE.sha256, candidate="tiny",
    )  # fmt: skip
    save(folder, manifest, RECIPE, LightgbmEstimator(booster), UserCode({}), [ROW])
    return folder


def break_estimator(folder: Path) -> None:
    """Let a package's estimator be none, with all hashes right."""
    damaged, manifest = b"no tree", json.loads((folder / "package.json").read_bytes())
    (folder / "estimator.txt").write_bytes(damaged)
    manifest["files"]["estimator.txt"] = hashlib.sha256(damaged).hexdigest()
    (folder / "package.json").write_text(json.dumps(manifest))


def signed(folder: Path, of: str, key: ec.EllipticCurvePrivateKey = KEY) -> Path:
    """Sign a package as that of ``model@run`` and return its folder."""
    (folder / SIGNATURE_FILE).write_bytes(sign(folder, of, key))
    return folder
