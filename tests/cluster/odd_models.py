"""Packaged models that do well, or badly in one way each: what a canary is to be taken back for.

All but `shifted` draw their scores evenly, whatever they are asked, so that two versions compare on a single row.
"""

from __future__ import annotations

from pathlib import Path

from contracts.metrics import Task
from contracts.references import ModelManifest
from serving.estimators import SkopsEstimator
from serving.model import save
from serving.user_code import UserCode
from tests.model_packages import COLUMNS, RECIPE, ROW

KINDS = ("good", "errors", "slow", "shifted", "crashing")
MODULE = b"""
import os
import random
import time

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class Odd(ClassifierMixin, BaseEstimator):
    asked = 0

    def __init__(self, kind="good"):
        self.kind = kind

    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, X):
        Odd.asked += 1
        if Odd.asked > 5:  # the package's own example comes first
            if self.kind == "errors" and random.random() < 0.3:
                raise KeyError("broken")
            if self.kind == "slow":
                time.sleep(0.15)
            if self.kind == "crashing" and Odd.asked > 150:
                os._exit(1)
        positive = np.array([random.random() for _ in range(len(X))])
        if self.kind == "shifted":
            positive **= 4
        return np.column_stack([1 - positive, positive])
"""


def odd_package(folder: Path, kind: str, number: int) -> Path:
    """Write a package of that kind into `folder` and return it; another `number` makes another version."""
    assert kind in KINDS
    code = UserCode({"odd.py": MODULE})
    manifest = ModelManifest(
        pipeline="tiny", task=Task.BINARY, columns=COLUMNS, classes=("no", "yes"), positive="yes", threshold=0.5,
        estimator="skops", trusted_types=("odd.Odd",), dataset_sha256="d" * 64, transform_sha256=RECIPE.sha256,
        candidate=f"{kind}-{number}",
    )  # fmt: skip
    save(folder, manifest, RECIPE, SkopsEstimator(code.resolve("odd:Odd")(kind).fit(None, None)), code, [ROW])
    return folder
