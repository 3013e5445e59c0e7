"""From validated rows to predictions and warnings.  Called by `serving.app`, for each request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from contracts.references import class_text
from serving.schemas import Warned
from serving.transform import rows_to_table, unseen_in

if TYPE_CHECKING:
    from serving.model import PackagedModel, Predictions

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """What one request gets; `unseen` counts cells by column."""

    predictions: list[dict[str, Any]]
    warnings: list[Warned]
    unseen: dict[str, int]


def answer(model: PackagedModel, rows: Rows, prediction_id: str) -> Answer:
    """Predict rows that fit the request model.

    Raises
    ------
    DataError
        A value that no typed table can hold.
    Exception
        Whatever the estimator raises on values it cannot work with.
    """
    table = rows_to_table(model.manifest.columns, rows)
    features = model.features(table)
    predictions = _readable(model, model.answer(features), prediction_id)
    unseen = _unseen_raw(model, table) if model.recipe.passthrough else unseen_in(model.recipe, features)
    unknown = {column: np.flatnonzero(mask).tolist() for column, mask in unseen.items() if mask.any()}
    warnings = [
        Warned(kind="unseen_category", column=column, instances=at, message="this category was not seen in training")
        for column, at in unknown.items()
    ]
    warnings += _unexpected_nulls(model, rows)
    if broken := [i for i, prediction in enumerate(predictions) if _has_hole(prediction)]:
        message = "the model gave no finite number for this row"
        warnings.append(Warned(kind="no_number", instances=tuple(broken), message=message))
    return Answer(predictions, warnings, {column: len(at) for column, at in unknown.items()})


def _readable(model: PackagedModel, predictions: Predictions, prediction_id: str) -> list[dict[str, Any]]:
    labels = predictions.labels.tolist()
    ids = [f"{prediction_id}-{i}" for i in range(len(labels))]
    if predictions.scores is None:
        return [{"id": id_, "value": _finite(value)} for id_, value in zip(ids, labels, strict=True)]
    classes = model.manifest.classes
    return [
        {"id": id_, "label": label, "probabilities": dict(zip(classes, map(_finite, row), strict=True))}
        for id_, label, row in zip(ids, labels, predictions.scores.tolist(), strict=True)
    ]


def _unseen_raw(model: PackagedModel, table: Any) -> dict[str, npt.NDArray[np.bool_]]:
    """Say the same as `unseen_in` for a user's own Pipeline, which has no codes: by the manifest's lists of values."""
    found = {}
    for column in model.manifest.columns:
        if column.categories is not None:
            seen = {*column.categories, None}
            cells = table.column(column.name).to_pylist()
            found[column.name] = np.array([_text(cell) not in seen for cell in cells], dtype=bool)
    return found


def _text(cell: Any) -> str | None:
    return None if cell is None else class_text(cell)


def _unexpected_nulls(model: PackagedModel, rows: Rows) -> list[Warned]:
    warnings = []
    for column in model.manifest.columns:
        if not column.nullable and (at := tuple(i for i, row in enumerate(rows) if row[column.name] is None)):
            message = "null, where training had none: the model fills it in"
            warnings.append(Warned(kind="unexpected_null", column=column.name, instances=at, message=message))
    return warnings


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _has_hole(prediction: dict[str, Any]) -> bool:
    return prediction["value"] is None if "value" in prediction else None in prediction["probabilities"].values()
