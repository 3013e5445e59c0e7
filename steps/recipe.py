"""Fit the transform: one column at a time, on training rows only.  Called by `features` and `preflight`.

What it decides is written down as a `serving.transform.Recipe`; applying it is that module's duty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from contracts.errors import ConfigError, DataError, Finding
from contracts.pipeline import Pipeline
from contracts.pipeline.learning import FeaturePolicy, Features
from contracts.pipeline.table import Column, ColumnType
from serving.transform import Categorical, DateParts, Dropped, Matrix, Numeric, Raw, Recipe, Step, date_part

IDENTIFIER_SHARE = 0.9
"""A string column is an identifier when at least this share of its training cells occurs once."""
IDENTIFIER_ROWS = 50
"""With fewer training rows there is too little to tell."""
_TIMES = (ColumnType.DATE, ColumnType.TIMESTAMP)

Read = Callable[[str], Any]
"""Returns one column of the dataset, by name, as an Arrow chunked array."""


def fit(pipeline: Pipeline, read: Read, training: npt.NDArray[np.bool_]) -> Recipe:
    """Return the transform fitted to the rows that `training` marks.

    Raises
    ------
    ConfigError
        When a column's policy does not fit its type (see `policy_findings`).
    DataError
        When no column is left to learn from.
    """
    if findings := policy_findings(pipeline):
        raise ConfigError("column policies do not fit their columns", findings=findings)
    steps = tuple(_fit_column(pipeline, column, read, training) for column in _candidates(pipeline))
    recipe = Recipe(steps=steps)
    if not recipe.feature_names:
        whys = [Finding(where=name, what=reason) for name, reason in recipe.dropped.items()]
        raise DataError("no column is left to learn from", findings=whys, remedy="keep a column under features.columns")
    if doubles := sorted({n for n in recipe.feature_names if recipe.feature_names.count(n) > 1}):
        raise ConfigError(f"two features are called {doubles[0]}", remedy="rename or drop the column of that name")
    return recipe


def policy_findings(pipeline: Pipeline) -> list[Finding]:
    """Return what is wrong with the policies of single columns, before any data is read."""
    found: list[Finding] = []
    used = {column.name for column in _candidates(pipeline)}
    for index, policy in enumerate(pipeline.features.columns):
        where = f"features.columns[{index}] ({policy.column})"
        if policy.column not in used:
            found.append(
                Finding(
                    where=where, what="is the target or the sample weight, never a feature", remedy="remove the entry"
                )
            )
            continue
        column = pipeline.table.column(policy.column)
        wrong = _passthrough_mistakes(policy) if pipeline.features.passthrough else _mistakes(policy, column)
        found += [Finding(where=where, what=what) for what in wrong]
    return found


def _candidates(pipeline: Pipeline) -> tuple[Column, ...]:
    """Return all columns but the target and the sample weight, in the schema's order."""
    out = {pipeline.target.column, pipeline.training.sample_weight}
    return tuple(column for column in pipeline.table.columns if column.name not in out)


def _passthrough_mistakes(policy: FeaturePolicy) -> list[str]:
    said = policy.model_dump(exclude={"column", "drop"}, exclude_none=True)
    return [f"features.passthrough leaves {', '.join(said)} to your Pipeline"] if said else []


def _mistakes(policy: FeaturePolicy, column: Column) -> list[str]:
    kind, wrong = column.type, []
    codes = _is_categorical(policy, column)
    if policy.categorical and kind in (ColumnType.NUMBER, *_TIMES):
        wrong.append(f"categorical does not fit a {kind} column")
    if policy.categorical is False and kind is ColumnType.STRING:
        wrong.append("a string column can only be categorical or dropped")
    if policy.missing in ("median", "mean") and codes:
        wrong.append(
            f"{policy.missing} does not fit categories; a missing category has a code of its own, or `constant`"
        )
    if policy.indicator and codes:
        wrong.append("indicator does not fit categories: a missing one has a code of its own")
    if policy.max_categories is not None and not codes:
        wrong.append("max_categories is for categorical columns")
    if (policy.missing == "constant") != (policy.fill is not None):
        wrong.append("`fill` belongs to missing: constant, and is needed there")
    elif policy.fill is not None and not _fill_fits(policy.fill, column, codes):
        wrong.append(f"fill is no value of a {kind} column")
    return wrong


def _fill_fits(fill: Any, column: Column, codes: bool) -> bool:
    if column.type in _TIMES:
        try:
            _moment(fill)
        except (TypeError, ValueError):
            return False
        return True
    if column.type is ColumnType.STRING:
        return isinstance(fill, str)
    if column.type is ColumnType.BOOLEAN:
        return isinstance(fill, bool)
    if isinstance(fill, bool) or not isinstance(fill, (int, float)):
        return False
    return math.isfinite(fill) and (not codes or fill == int(fill))


def _is_categorical(policy: FeaturePolicy, column: Column) -> bool:
    return column.type is ColumnType.STRING or bool(policy.categorical)


def _fit_column(pipeline: Pipeline, column: Column, read: Read, training: npt.NDArray[np.bool_]) -> Step:
    defaults, policy = pipeline.features, pipeline.features.policy(column.name)
    if policy.drop:
        return Dropped(column=column.name, reason="dropped in the pipeline file")
    if defaults.passthrough:
        return Raw(column=column.name, type=column.type)
    cells = read(column.name).filter(pa.array(training))
    if cells.null_count == len(cells):
        return Dropped(column=column.name, reason="every training cell is missing")
    if defaults.drop_identifiers and _is_declared_identifier(cells, column, pipeline.split.key):
        return Dropped(column=column.name, reason="identifier: the row's key, and every training row has another")
    if _is_categorical(policy, column):
        return _fit_categories(column, policy, defaults, cells)
    if column.type in _TIMES:
        return _fit_dates(column, policy, defaults, cells)
    return _fit_numbers(column, policy, defaults, cells)


def _is_declared_identifier(cells: Any, column: Column, key: Sequence[str]) -> bool:
    if column.name not in key or column.type not in (ColumnType.STRING, ColumnType.INTEGER):
        return False
    return len(cells) >= IDENTIFIER_ROWS and pc.count_distinct(cells, mode="all").as_py() == len(cells)


def _fit_numbers(column: Column, policy: FeaturePolicy, defaults: Features, cells: Any) -> Step:
    values = _to_numpy(cells, np.float64)
    missing = np.isnan(values)
    present = values[~missing]
    how = policy.missing or defaults.numeric_missing
    fill = float(policy.fill) if how == "constant" and policy.fill is not None else _typical(present, how)
    indicator = _indicator(policy, defaults, how, bool(missing.any()))
    if (
        defaults.drop_constant
        and present.min() == present.max()
        and not (missing.any() and (indicator or fill != present[0]))
    ):
        return Dropped(column=column.name, reason="constant: one value in all training rows")
    return Numeric(column=column.name, type=column.type, fill=fill, indicator=indicator)


def _fit_dates(column: Column, policy: FeaturePolicy, defaults: Features, cells: Any) -> Step:
    moments = _to_numpy(cells, None)
    missing = np.isnat(moments)
    present = moments[~missing]
    how = policy.missing or defaults.numeric_missing
    constant = _moment(policy.fill) if how == "constant" else None
    indicator = _indicator(policy, defaults, how, bool(missing.any()))
    parts, fills = [], []
    for part in defaults.dates:
        if part == "hour" and column.type is ColumnType.DATE:
            continue
        values = date_part(present, part)
        if defaults.drop_constant and values.min() == values.max():
            continue
        parts.append(part)
        fills.append(
            float(date_part(constant, part)[0]) if constant is not None else _typical(values.astype(np.float64), how)
        )
    if not parts and not (indicator and missing.any()):
        return Dropped(column=column.name, reason="constant: no part of the date differs among training rows")
    return DateParts(column=column.name, type=column.type, parts=tuple(parts), fills=tuple(fills), indicator=indicator)


def _fit_categories(column: Column, policy: FeaturePolicy, defaults: Features, cells: Any) -> Step:
    if policy.missing == "constant":
        cells = cells.fill_null(pa.scalar(policy.fill, type=cells.type))
    counted = pc.value_counts(cells.drop_null())
    values, counts = counted.field("values"), counted.field("counts").to_numpy()
    rows = int(counts.sum())
    once = int((counts == 1).sum())
    asked_for = policy.categorical is True
    if defaults.drop_identifiers and not asked_for and rows >= IDENTIFIER_ROWS and once >= IDENTIFIER_SHARE * rows:
        return Dropped(column=column.name, reason=f"identifier: {once} of {rows} training cells occur once")
    if defaults.drop_constant and len(counts) == 1 and not cells.null_count:
        return Dropped(column=column.name, reason="constant: one value in all training rows")
    often = np.flatnonzero(counts >= defaults.min_category_rows)
    if defaults.drop_constant and not len(often) and not cells.null_count:
        return Dropped(
            column=column.name, reason=f"every category has fewer than {defaults.min_category_rows} training rows"
        )
    named = zip((_text(v) for v in values.take(pa.array(often)).to_pylist()), counts[often], strict=True)
    limit = policy.max_categories or defaults.max_categories
    kept = sorted(named, key=lambda item: (-item[1], item[0]))[:limit]
    # by name, not by count: the codes of two trainings differ only where their categories do
    categories = tuple(sorted(name for name, _ in kept))
    missing, other = len(categories), len(categories) + 1
    if policy.missing == "constant":
        missing, other = _code_of(_text(policy.fill), categories), len(categories)
    return Categorical(column=column.name, type=column.type, categories=categories, missing=missing, other=other)


def _code_of(fill: str, categories: tuple[str, ...]) -> int:
    return categories.index(fill) if fill in categories else len(categories)


def _indicator(policy: FeaturePolicy, defaults: Features, how: str, missing: bool) -> bool:
    if policy.indicator is not None:
        return policy.indicator
    return defaults.indicator and missing and how != "none"  # NaN already says that it was missing


def _typical(values: Matrix, how: str) -> float | None:
    """Return the median or mean of the finite values, the same to the bit on every machine; None for `none`."""
    finite = values[np.isfinite(values)]
    if how == "none" or not len(finite):
        return None
    return float(np.median(finite)) if how == "median" else math.fsum(finite) / len(finite)


def _to_numpy(cells: Any, dtype: Any) -> Any:
    return np.concatenate([np.asarray(chunk.to_numpy(zero_copy_only=False), dtype=dtype) for chunk in cells.chunks])


def _text(value: Any) -> str:
    return (
        str(value).lower() if isinstance(value, bool) else str(int(value)) if isinstance(value, float) else str(value)
    )


def _moment(value: Any) -> npt.NDArray[np.datetime64]:
    moment = datetime.fromisoformat(value)
    naive = moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    return np.array([naive], dtype="datetime64[us]")
