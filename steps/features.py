"""Decide which row is on which side, and fit the transform on the training side.  The `features` stage.

It writes ``<store>/splits/<sha256>/`` with rows.parquet, recipe.json and, last, split.json; it reads the dataset in
batches for the keys and one column at a time for the rest, so that memory follows the longest column, not the table.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.errors import ConfigError, DataError, Finding
from contracts.metrics import Task
from contracts.pipeline import Pipeline
from contracts.pipeline.table import Column
from contracts.references import RECIPE_FILE, SIDES, SPLIT_MANIFEST, SPLIT_ROWS, SplitManifest, class_text
from contracts.stages import Cache, Features
from serving.transform import Recipe
from steps.dataset import batches, opened, read_manifest
from steps.recipe import fit
from steps.reuse import lookup, remember, reuse_key
from steps.splitting import (
    Keys,
    Sides,
    SplitRows,
    key_scheme,
    row_keys,
    seal,
    sides_by_hash,
    sides_by_time,
    write_split,
)
from steps.training.key import is_remembered
from steps.world import World

BATCH_ROWS = 16_384
SECTIONS = ("name", "table", "target", "features", "split")
MODULES = ("serving.transform", "steps.features", "steps.recipe", "steps.splitting")


def features(inputs: Features.Inputs, *, world: World) -> Features.Outputs:
    """Return the split and the recipe of a dataset, made now or taken from an earlier run that read the same.

    Raises
    ------
    DataError
        When target, group or time have nulls, a side is empty, or the classes do not allow training and judging.
    ConfigError
        When a column's policy does not fit its type, or the dataset is another one than its hash says.
    """
    read = {"dataset": inputs.dataset_sha256, "sample_weight": world.pipeline.training.sample_weight}
    key = reuse_key(world, "features", SECTIONS, MODULES, read)
    if inputs.cache is Cache.USE:
        found = lookup(world, "features", key)
        if isinstance(found, Features.Outputs):
            _remember(world, key, found)  # retention sees by it that the split was used
            told = {"reused": True, "summary": f"reused: {found.summary}"}
            return found.model_copy(update=told | {"candidates": _to_fit(inputs, found.split_sha256, world)})
    if read_manifest(world, inputs.dataset).sha256 != inputs.dataset_sha256:
        raise ConfigError(f"the dataset at {inputs.dataset} is not the one asked for", remedy="run again from ingest")
    with opened(world, inputs.dataset, mapped=False) as file:
        rows, recipe = _prepare(world.pipeline, file, inputs.dataset_sha256)
    split = write_split(world, rows, recipe)
    outputs = Features.Outputs(
        split=split,
        split_sha256=rows.manifest.sha256,
        transform_sha256=recipe.sha256,
        reused=False,
        summary=_summary(rows.manifest, recipe),
    )
    _remember(world, key, outputs)
    return outputs.model_copy(update={"candidates": _to_fit(inputs, outputs.split_sha256, world)})


def _remember(world: World, key: str, outputs: Features.Outputs) -> None:
    files = [f"{outputs.split}/{name}" for name in (SPLIT_ROWS, RECIPE_FILE, SPLIT_MANIFEST)]
    remember(world, "features", key, outputs, files)


def _to_fit(inputs: Features.Inputs, split_sha256: str, world: World) -> str:
    """Return the candidates that are to be fitted; `train` itself makes sure that a training is there."""
    code = world.user_code(inputs.code)
    if inputs.cache is Cache.USE and is_remembered(inputs.dataset_sha256, split_sha256, code, world):
        return "[]"
    return json.dumps([candidate.name for candidate in world.pipeline.training.candidates])


def _prepare(pipeline: Pipeline, file: Any, dataset_sha256: str) -> tuple[SplitRows, Recipe]:
    """Return the split and the recipe of an open Parquet file."""
    split = pipeline.split
    columns = [pipeline.table.column(name) for name in split.key or pipeline.table.names]
    scheme = key_scheme(pipeline.name, columns)
    target = _column(file, pipeline.target.column)
    _require_whole("target", pipeline.target.column, target)
    keys = _keys(file, columns, scheme)
    sides = _sides(pipeline, file, keys)
    counts = {side: int((sides == index).sum()) for index, side in enumerate(SIDES)}
    if empty := [side for side, count in counts.items() if not count]:
        remedy = "move split.time's boundaries" if split.time else "use more rows or another seed, or change the shares"
        raise DataError(f"no row falls on the side {' and '.join(empty)} ({_listed(counts)})", remedy=remedy)
    tallies = {} if pipeline.target.task is Task.REGRESSION else class_tallies(target, sides)
    labels = _labels(pipeline, tallies)
    if findings := class_findings(pipeline, tallies, labels):
        raise DataError("the target's classes do not allow training and judging", findings=findings)
    del target  # it may be long
    recipe = fit(pipeline, lambda name: _column(file, name), sides == 0)
    manifest = SplitManifest(
        sha256="0" * 64,
        dataset_sha256=dataset_sha256,
        transform_sha256=recipe.sha256,
        method=split.method,
        seed=split.seed,
        key_scheme=scheme,
        counts=counts,
        class_shares={
            side: {labels[value]: tally[index] / counts[side] for value, tally in tallies.items()}
            for index, side in enumerate(SIDES)
            if tallies
        },
        notes=tuple(f"{column} is no feature: {reason}" for column, reason in recipe.dropped.items()),
    )
    return SplitRows(seal(manifest, keys, sides), keys, sides), recipe


def class_tallies(target: Any, sides: Sides) -> dict[Any, tuple[int, ...]]:
    """Return, for each class in order, how many of its rows are on each side."""
    tallies: dict[Any, list[int]] = {}
    for index in range(len(SIDES)):
        counted = pc.value_counts(target.filter(pa.array(sides == index)))
        for value, count in zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True):
            tallies.setdefault(value, [0] * len(SIDES))[index] = count
    return {value: tuple(tallies[value]) for value in sorted(tallies)}


def class_findings(pipeline: Pipeline, tallies: dict[Any, tuple[int, ...]], labels: dict[Any, str]) -> list[Finding]:
    """Return why these classes, so spread over the sides, can't be learned or judged; empty for a regression."""
    target, where, found = pipeline.target, f"target {pipeline.target.column}", []
    if target.task is Task.REGRESSION:
        return []
    if target.task is Task.BINARY and len(tallies) > 2:
        found.append(
            Finding(where=where, what=f"a binary target has {len(tallies)} classes", remedy="use task: multiclass")
        )
    if target.task is Task.BINARY and target.positive not in tallies:
        found.append(Finding(where=where, what="no row has the positive class", remedy="mend target.positive"))
    for index, side in enumerate(SIDES):
        if sum(tally[index] > 0 for tally in tallies.values()) < 2:
            found.append(Finding(where=where, what=f"the side {side} holds one class only", remedy=_MORE_ROWS))
    wanted = SIDES if pipeline.split.method == "stratified" else SIDES[:1]
    for value, tally in tallies.items():
        if absent := [side for side, count in zip(SIDES, tally, strict=True) if side in wanted and not count]:
            what = f"class {labels[value]} ({sum(tally)} rows) has no row on the side {' and '.join(absent)}"
            found.append(Finding(where=where, what=what, remedy=_MORE_ROWS))
    return found


_MORE_ROWS = "use more rows or another split.seed, or leave out so rare a class"


def _labels(pipeline: Pipeline, tallies: dict[Any, tuple[int, ...]]) -> dict[Any, str]:
    """Return the classes' names in reports; those of a sensitive target stay unsaid."""
    if pipeline.table.column(pipeline.target.column).sensitive:
        return {value: f"#{number}" for number, value in enumerate(tallies, start=1)}
    return {value: class_text(value) for value in tallies}


def _keys(file: Any, columns: list[Column], scheme: str) -> Keys:
    return row_keys(batches(file, BATCH_ROWS, [column.name for column in columns]), columns, scheme)


def _sides(pipeline: Pipeline, file: Any, keys: Keys) -> Sides:
    split = pipeline.split
    if split.time is not None:
        moments = _column(file, split.time.column)
        _require_whole("split.time", split.time.column, moments)
        return sides_by_time(moments.to_numpy(), split.time)
    if split.group is not None:
        _require_whole("split.group", split.group, _column(file, split.group))
        column = [pipeline.table.column(split.group)]
        keys = _keys(file, column, key_scheme(pipeline.name, column))
    return sides_by_hash(keys, split)


def _require_whole(role: str, name: str, cells: Any) -> None:
    if not cells.null_count:
        return
    first = np.flatnonzero(cells.is_null().to_numpy())[0] + 1
    raise DataError(
        f"{role} column {name} is null in {cells.null_count} of {len(cells)} rows, first in row {first}",
        remedy=f"leave such rows out of the source; `nullable: false` for {name} makes ingest report them all",
    )


def _column(file: Any, name: str) -> Any:
    parts = [file.read_row_group(n, columns=[name]).column(0) for n in range(file.num_row_groups)]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{side} {count}" for side, count in counts.items())


def _summary(manifest: SplitManifest, recipe: Recipe) -> str:
    line = f"{_listed(manifest.counts)}; {len(recipe.feature_names)} features of {len(recipe.columns)} columns"
    return f"{line}, without {', '.join(recipe.dropped)}" if recipe.dropped else line
