"""From dataset and split to what a learner reads: features, class codes, weights.  Called by `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from contracts.errors import ConfigError, DataError
from contracts.metrics import Task
from contracts.pipeline import Pipeline
from serving.model import features
from serving.transform import Recipe
from steps.candidates import Rows
from steps.metrics import label_text


@dataclass(frozen=True)
class Classes:
    """The classes in the order of the probability columns: sorted, but the positive one last (binary)."""

    values: tuple[Any, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The labels as text, as the manifest holds them."""
        return tuple(label_text(value) for value in self.values)


def find_classes(pipeline: Pipeline, target: Any) -> Classes:
    """Return the classes that occur in the target column, whatever the side: their names give no answer away.

    Raises
    ------
    DataError
        When a binary target has not its positive class and one other.
    """
    task = pipeline.target.task
    if task is Task.REGRESSION:
        return Classes()
    values = sorted(value for value in pc.unique(target).to_pylist() if value is not None)
    if task is Task.BINARY:
        positive = [v for v in values if label_text(v) == label_text(pipeline.target.positive)]
        if len(values) != 2 or not positive:
            raise DataError(
                f"the binary target {pipeline.target.column} has {len(values)} classes"
                + ("" if positive else ", and the positive one is none of them"),
                remedy="mend target.positive, or use task: multiclass",
            )
        values = [v for v in values if v not in positive] + positive
    return Classes(tuple(values))


def take_rows(
    pipeline: Pipeline, rows: Any, side: Literal["train", "validation"], recipe: Recipe, classes: Classes
) -> Rows:
    """Turn one side's table into rows.  Class weights count in training only, row weights on both sides.

    Raises
    ------
    DataError
        When a target is null, or a weight is null, negative or infinite.
    """
    target = _target(pipeline, rows.column(pipeline.target.column), classes)
    weight = _row_weights(pipeline, rows)
    if side == "train" and pipeline.training.class_weight:
        by_class = class_weights(pipeline.training.class_weight, target, classes, weight)
        weight = by_class[target] if weight is None else weight * by_class[target]
    return Rows(features(recipe, rows), target, weight)


def class_weights(
    rule: Literal["balanced"] | Mapping[str, float],
    target: NDArray[np.int64],
    classes: Classes,
    weight: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the weight of each class; balanced: rows / (classes * rows of the class), rows counted by their weight.

    Raises
    ------
    ConfigError
        When the rule names a class that does not occur.
    """
    if not isinstance(rule, str):
        if unknown := sorted(set(rule) - set(classes.texts)):
            raise ConfigError(
                f"training.class_weight names {', '.join(unknown)}, which is no class of the target",
                remedy=f"the classes are {', '.join(classes.texts)}",
            )
        return np.array([rule.get(text, 1.0) for text in classes.texts])
    counts = np.bincount(target, weights=weight, minlength=len(classes.values)).astype(np.float64)
    there = counts > 0
    balanced = np.ones(len(counts))
    np.divide(counts.sum(), there.sum() * counts, out=balanced, where=there)
    return balanced


def _target(pipeline: Pipeline, column: Any, classes: Classes) -> NDArray[Any]:
    name = pipeline.target.column
    if column.null_count:
        raise DataError(
            f"the target {name} is null in {column.null_count} rows", remedy="leave such rows out of the source"
        )
    if not classes.values:
        values = column.cast(pa.float64()).to_numpy()
        if not np.isfinite(values).all():
            raise DataError(f"the target {name} is infinite in {int((~np.isfinite(values)).sum())} rows")
        return np.ascontiguousarray(values)
    codes = pc.index_in(column, value_set=pa.array(classes.values, type=column.type))
    return np.ascontiguousarray(codes.to_numpy().astype(np.int64))


def _row_weights(pipeline: Pipeline, rows: Any) -> NDArray[np.float64] | None:
    name = pipeline.training.sample_weight
    if name is None:
        return None
    weight: NDArray[np.float64] = rows.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = int((~np.isfinite(weight) | (weight < 0)).sum())
    if wrong or not weight.sum() > 0:
        what = f"is null, negative or infinite in {wrong} rows" if wrong else "is 0 in all rows of a side"
        raise DataError(f"the sample weight {name} {what}", remedy="mend the column, or leave such rows out")
    return weight


def wanted_columns(pipeline: Pipeline) -> Sequence[str]:
    """Return the columns that training reads: features, target, weight."""
    more = [pipeline.target.column, *([pipeline.training.sample_weight] if pipeline.training.sample_weight else [])]
    return [*pipeline.feature_columns, *more]
