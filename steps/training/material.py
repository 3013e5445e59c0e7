"""Everything that training reads, checked and whole.  Called by `fit` and `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from contracts.errors import ConfigError
from contracts.pipeline.table import ColumnType
from contracts.references import ColumnSpec, DatasetManifest
from contracts.stages import Fit, Train
from serving.transform import Categorical, Recipe
from serving.user_code import UserCode
from steps.candidates import Rows
from steps.dataset import read_manifest, read_table
from steps.example_rows import real_rows, synthetic_row
from steps.splitting import SplitRows, read_recipe, read_split
from steps.training.rows import Classes, find_classes, take_rows, wanted_columns
from steps.world import World

_EXAMPLE_ROWS = 3


Inputs = Train.Inputs | Fit.Inputs


@dataclass(frozen=True)
class Material:
    """What a training is of: dataset, split and transform, checked; no rows yet."""

    inputs: Inputs
    code: UserCode
    dataset: DatasetManifest
    split: SplitRows
    recipe: Recipe
    classes: Classes
    columns: tuple[ColumnSpec, ...]


@dataclass(frozen=True)
class Sides:
    """The rows as learners read them.  Test rows are not among them."""

    train: Rows
    validation: Rows


@dataclass(frozen=True)
class Examples:
    """Rows that show what the model is asked."""

    made_up: list[dict[str, Any]]
    """For the package."""
    for_mlflow: list[dict[str, Any]]
    """The same, or real rows where the settings allow it."""


def read_material(inputs: Inputs, code: UserCode, world: World) -> Material:
    """Read what dataset and split say of themselves, and the target's classes.

    Raises
    ------
    ConfigError
        When dataset, split and their hashes do not belong together.
    DataError
        When the target can't be learned from.
    """
    dataset, split = read_manifest(world, inputs.dataset), read_split(world, inputs.split)
    if dataset.sha256 != inputs.dataset_sha256 or split.manifest.sha256 != inputs.split_sha256:
        raise ConfigError("dataset or split is not the one asked for", remedy="run again from ingest")
    if split.manifest.dataset_sha256 != dataset.sha256:
        raise ConfigError("the split is of another dataset", remedy="run again from ingest")
    recipe = read_recipe(world, inputs.split)
    target = world.pipeline.target.column
    classes = find_classes(world.pipeline, read_table(world, inputs.dataset, [target]).column(target))
    return Material(inputs, code, dataset, split, recipe, classes, model_columns(world, recipe))


def read_sides(material: Material, world: World) -> Sides:
    """Bring training and validation rows to the form that learners read.

    Raises
    ------
    DataError
        When target or weights can't be learned from.
    """
    pipeline, recipe, classes = world.pipeline, material.recipe, material.classes
    table = read_table(world, material.inputs.dataset, wanted_columns(pipeline))
    train = take_rows(pipeline, table.filter(material.split.mask("train")), "train", recipe, classes)
    validation = take_rows(pipeline, table.filter(material.split.mask("validation")), "validation", recipe, classes)
    return Sides(train, validation)


def read_examples(material: Material, world: World) -> Examples:
    """Make up a row from those that the model is trained on, and take real ones where the settings allow it."""
    table = read_table(world, material.inputs.dataset, [column.name for column in material.columns])
    train = table.filter(material.split.mask("train"))
    made_up = [synthetic_row(material.columns, train)]
    real = real_rows(material.columns, train, _EXAMPLE_ROWS) if world.settings.allow_input_example else made_up
    return Examples(made_up, real)


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
