"""Fitted estimators: how each format is saved, loaded and asked.  Called by `train`, which saves, and `serving.model`.

No format here can run code when it is read: LightGBM's and XGBoost's are data, and skops builds only the types that it
is told to trust.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ConfigError, Finding
from serving.user_code import plain_name

Floats = NDArray[np.float64]
SAFE_TYPES = frozenset(
    {
        "functools.partial",
        "numpy.dtype",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.tree._tree.Tree",
        "sklearn.utils.validation.check_array",
    }
)
"""What scikit-learn's own estimators are made of, besides what skops trusts anyway."""
SMALL_BATCH = 1000
"""Up to so many rows LightGBM and scikit-learn answer on one thread: waking others costs more than they save."""
_ONE_BLAS_THREAD = threading.Lock()


class FittedEstimator(ABC):
    """A fitted estimator of some library.

    `score` takes features [rows, features], or a DataFrame for passthrough, and returns probabilities [rows, classes],
    or values [rows] when `classes` is 0.  It may be called by several threads at once.
    """

    kind: ClassVar[str]
    file: ClassVar[str]

    @abstractmethod
    def score(self, features: Any, classes: int) -> Floats:
        """Return probabilities or values."""

    @abstractmethod
    def save(self, folder: Path, trusted: Sequence[str] = ()) -> None:
        """Write `file` into `folder`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, trusted: Sequence[str] = ()) -> Self:
        """Read what `save` wrote."""


class LightgbmEstimator(FittedEstimator):
    """A LightGBM Booster, saved as LightGBM's own text."""

    kind = "lightgbm"
    file = "estimator.txt"

    def __init__(self, booster: Any) -> None:
        self._booster = booster

    def score(self, features: Any, classes: int) -> Floats:
        """See `FittedEstimator`."""
        threads = {"num_threads": 1} if len(features) <= SMALL_BATCH else {"num_threads": 0}
        return as_table(self._booster.predict(features, **threads), classes)

    def save(self, folder: Path, trusted: Sequence[str] = ()) -> None:  # noqa: ARG002  holds data only
        """Write the rounds up to the best one."""
        self._booster.save_model(str(folder / self.file))

    @classmethod
    def load(cls, folder: Path, trusted: Sequence[str] = ()) -> Self:  # noqa: ARG003  holds data only
        """See `FittedEstimator`."""
        from lightgbm import Booster

        return cls(Booster(model_file=str(folder / cls.file)))


class XgboostEstimator(FittedEstimator):
    """An XGBoost Booster, saved as UBJSON."""

    kind = "xgboost"
    file = "estimator.ubj"

    def __init__(self, booster: Any) -> None:
        booster.set_param({"nthread": 1})
        self._booster = booster

    def score(self, features: Any, classes: int) -> Floats:
        """See `FittedEstimator`."""
        return as_table(self._booster.inplace_predict(features).astype(np.float64), classes)

    def save(self, folder: Path, trusted: Sequence[str] = ()) -> None:  # noqa: ARG002  holds data only
        """See `FittedEstimator`."""
        self._booster.save_model(folder / self.file)

    @classmethod
    def load(cls, folder: Path, trusted: Sequence[str] = ()) -> Self:  # noqa: ARG003  holds data only
        """See `FittedEstimator`."""
        try:
            from xgboost import Booster
        except ImportError:
            raise ConfigError("this model needs XGBoost", remedy="pip install 'retrain[xgboost]'") from None
        booster = Booster()
        booster.load_model(folder / cls.file)
        return cls(booster)


class SkopsEstimator(FittedEstimator):
    """A scikit-learn estimator or Pipeline, saved by skops."""

    kind = "skops"
    file = "estimator.skops"

    def __init__(self, estimator: Any) -> None:
        from threadpoolctl import ThreadpoolController

        self._estimator = estimator
        # the libraries that the estimator brought are found once: looking for them takes longer than a row
        self._openmp = ThreadpoolController().select(user_api="openmp")
        _limit_blas()

    def score(self, features: Any, classes: int) -> Floats:
        """See `FittedEstimator`; a class that the estimator never saw has probability 0."""
        if len(features) <= SMALL_BATCH:
            with self._openmp.limit(limits=1):
                return self._score(features, classes)
        return self._score(features, classes)

    def _score(self, features: Any, classes: int) -> Floats:
        if not classes:
            return np.asarray(self._estimator.predict(features), dtype=np.float64).reshape(-1)
        known = np.asarray(self._estimator.predict_proba(features), dtype=np.float64)
        if known.shape[1] == classes:
            return known
        table = np.zeros((len(known), classes))
        table[:, np.asarray(self._estimator.classes_, dtype=np.int64)] = known
        return table

    def save(self, folder: Path, trusted: Sequence[str] = ()) -> None:
        """See `FittedEstimator`.

        Raises
        ------
        ConfigError
            When skops can't save it, or when it holds types that are not trusted; the findings name them.
        """
        import skops.io

        path = folder / self.file
        try:
            skops.io.dump(self._estimator, path)
        except Exception as error:
            raise self._unsaveable(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        nameless = [t for t in skops.io.get_untrusted_types(file=path) if "<" in t]  # <lambda>, <locals>
        if nameless:
            raise self._unsaveable(f"it holds {', '.join(plain_name(t) for t in nameless)}, which nobody can import")
        _check_types(path, trusted)

    def _unsaveable(self, why: str) -> ConfigError:
        name = plain_name(f"{type(self._estimator).__module__}.{type(self._estimator).__name__}")
        remedy = "hold only data, arrays, and classes and functions of a module; no lambdas, generators or open files"
        return ConfigError(f"{name} can't be saved without pickle: {why}", remedy=remedy)

    @classmethod
    def load(cls, folder: Path, trusted: Sequence[str] = ()) -> Self:
        """See `FittedEstimator`; modules of user code must have been made known before (`UserCode.register`)."""
        import skops.io

        path = folder / cls.file
        return cls(skops.io.load(path, trusted=_check_types(path, trusted)))


FORMATS: dict[str, type[FittedEstimator]] = {c.kind: c for c in (LightgbmEstimator, XgboostEstimator, SkopsEstimator)}


def _check_types(path: Path, trusted: Sequence[str]) -> list[str]:
    import skops.io

    needed: list[str] = skops.io.get_untrusted_types(file=path)
    unknown = sorted({plain_name(t) for t in needed} - SAFE_TYPES - set(trusted))
    if unknown:
        raise ConfigError(
            f"the estimator holds types that the pipeline file does not trust: {', '.join(unknown)}",
            findings=[
                Finding(where="training.trusted_types", what=f"lacks {t}", remedy="add it if you trust it")
                for t in unknown
            ],
            remedy=f"training: {{trusted_types: [{', '.join(unknown)}]}}",
        )
    return needed


def as_table(raw: Any, classes: int) -> Floats:
    """Turn a booster's answer into [rows, classes]: of two classes it gives only the second's probability."""
    values = np.asarray(raw, dtype=np.float64)
    if classes == 2 and values.ndim == 1:
        return np.column_stack((1.0 - values, values))
    return values if classes else values.reshape(-1)


def _limit_blas() -> None:
    """Keep BLAS on one thread in this process: sums then have one order, and one row is answered sooner."""
    from threadpoolctl import threadpool_limits

    with _ONE_BLAS_THREAD:
        threadpool_limits(limits=1, user_api="blas")
