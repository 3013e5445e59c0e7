"""Everything that training reads, checked and whole.  Called by `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from contracts.errors import ConfigError
from contracts.pipeline.table import ColumnType
from contracts.references import ColumnSpec, DatasetManifest
from contracts.stages import Train
from serving.transform import Categorical, Recipe
from serving.user_code import UserCode
from steps.candidates import Rows
from steps.dataset import read_manifest, read_table
from steps.example_rows import real_rows, synthetic_row
from steps.splitting import SplitRows, read_recipe, read_split
from steps.training_rows import Classes, find_classes, take_rows, wanted_columns
from steps.world import World

_EXAMPLE_ROWS = 3


@dataclass(frozen=True)
class Material:
    """Dataset, split and transform as learners read them.  Test rows are not among it."""

    inputs: Train.Inputs
    code: UserCode
    dataset: DatasetManifest
    split: SplitRows
    recipe: Recipe
    classes: Classes
    columns: tuple[ColumnSpec, ...]
    train: Rows
    validation: Rows
    example: list[dict[str, Any]]
    """Made-up rows, for the package."""
    mlflow_example: list[dict[str, Any]]
    """The same, or real rows where the settings allow it."""


def read_material(inputs: Train.Inputs, code: UserCode, world: World) -> Material:
    """Read dataset and split, and bring training and validation rows to the form that learners read.

    Raises
    ------
    ConfigError
        When dataset, split and their hashes do not belong together.
    DataError
        When target or weights can't be learned from.
    """
    pipeline = world.pipeline
    dataset, split = read_manifest(world, inputs.dataset), read_split(world, inputs.split)
    if dataset.sha256 != inputs.dataset_sha256 or split.manifest.sha256 != inputs.split_sha256:
        raise ConfigError("dataset or split is not the one asked for", remedy="run again from ingest")
    if split.manifest.dataset_sha256 != dataset.sha256:
        raise ConfigError("the split is of another dataset", remedy="run again from ingest")
    recipe = read_recipe(world, inputs.split)
    columns = model_columns(world, recipe)
    table = read_table(world, inputs.dataset, wanted_columns(pipeline))
    classes = find_classes(pipeline, table.column(pipeline.target.column))
    train = table.filter(split.mask("train"))
    example = [synthetic_row(columns, train)]
    real = real_rows(columns, train, _EXAMPLE_ROWS) if world.settings.allow_input_example else example
    learned = take_rows(pipeline, train, "train", recipe, classes)
    del train  # a copy of most of the table
    checked = take_rows(pipeline, table.filter(split.mask("validation")), "validation", recipe, classes)
    return Material(inputs, code, dataset, split, recipe, classes, columns, learned, checked, example, real)


def model_columns(world: World, recipe: Recipe) -> tuple[ColumnSpec, ...]:
    """Return the model's signature: the raw columns of a request, in the schema's order."""
    categories = {s.column: s.categories for s in recipe.steps if isinstance(s, Categorical)}
    specs = []
    for name in world.pipeline.feature_columns:
        column = world.pipeline.table.column(name)
        shown = categories.get(name) if column.type is ColumnType.STRING and not column.sensitive else None
        nullable = column.nullable.value or column.nullable.level == "warn"
        specs.append(
            ColumnSpec(name=name, type=column.type, nullable=nullable, sensitive=column.sensitive, categories=shown)
        )
    return tuple(specs)
