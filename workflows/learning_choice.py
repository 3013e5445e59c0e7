"""Decide what is to be learned from a table: task and positive class.  Pure; called by `retrain init`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.errors import DataError
from contracts.metrics import Task
from contracts.pipeline.checks import did_you_mean
from contracts.pipeline.table import ColumnType
from contracts.references import class_text
from steps.inference import Inferred, InferredColumn

MOST_CLASSES = 20
"""An integer target with more different values than this is taken for a number, not for classes."""
TIMES = (ColumnType.DATE, ColumnType.TIMESTAMP)
NUMBERS = (ColumnType.INTEGER, ColumnType.NUMBER)


class UnfitChoiceError(ValueError):
    """What the user asked for does not fit the table: `option` of the command line says it wrongly."""

    def __init__(self, option: str, what: str, remedy: str) -> None:
        super().__init__(what)
        self.option = option
        self.remedy = remedy


@dataclass(frozen=True)
class Learning:
    """What is to be predicted."""

    column: InferredColumn
    task: Task
    positive: Any = None
    shares: tuple[float, ...] = ()
    """Shares of the classes, of the rows that have one; for regression none."""


def choose(table: Inferred, target: str, counts: Mapping[Any, int], task: str = "", positive: str = "") -> Learning:
    """Decide task and positive class, from the column where the user does not say.

    Raises
    ------
    DataError
        When the target holds one value only.
    UnfitChoiceError
        When there is no such target, or the task or the positive class does not fit it.
    """
    column = next((c for c in table.columns if c.name == target), None)
    if column is None:
        names = [c.name for c in table.columns]
        remedy = did_you_mean(target, names) or f"one of {', '.join(names)}"
        raise UnfitChoiceError("--target", f"there is no column {target!r}", remedy)
    if column.distinct < 2:
        raise DataError(
            f"the target {target!r} holds one value only: there is nothing to learn", remedy="name another target"
        )
    chosen = Task(task) if task else guess_task(column)
    _refuse_misfit(column, chosen)
    if chosen is Task.REGRESSION:
        if positive:
            raise UnfitChoiceError("--positive", "names a class, and the task is regression", "leave it out")
        return Learning(column, chosen)
    total = sum(counts.values())
    shares = tuple(sorted((count / total for count in counts.values()), reverse=True)) if total else ()
    if chosen is Task.MULTICLASS:
        if positive:
            raise UnfitChoiceError(
                "--positive", "belongs to a binary target, and the task is multiclass", "leave it out"
            )
        return Learning(column, chosen, shares=shares)
    classes = {class_text(value): value for value in column.values}
    if positive and positive not in classes:
        raise UnfitChoiceError("--positive", f"{positive!r} is no value of {target!r}", f"one of {', '.join(classes)}")
    rarer = min(column.values, key=lambda value: (counts.get(value, 0), class_text(value) in ("0", "false", "no")))
    return Learning(column, chosen, classes[positive] if positive else rarer, shares)


def guess_task(column: InferredColumn) -> Task:
    """Guess the task: numbers are regressed, unless they are few whole ones."""
    if column.type is ColumnType.NUMBER or (column.type is ColumnType.INTEGER and column.distinct > MOST_CLASSES):
        return Task.REGRESSION
    return Task.BINARY if column.distinct == 2 else Task.MULTICLASS


def notes(
    table: Inferred, learning: Learning, *, said: Sequence[str] = (), sensitive: Collection[str] = ()
) -> Iterator[str]:
    """Yield what a person should know about the choices: one line each.  `said` holds what the user chose."""
    guessed = "" if "task" in said else "  (a guess: --task says otherwise)"
    yield f"predicts {learning.column.name}: {learning.task}, {learning.column.distinct:,} different values{guessed}"
    if learning.task is Task.BINARY:
        why = "as you said" if "positive" in said else f"the rarer class, {min(learning.shares, default=0):.1%} of rows"
        yield f"positive class: {learning.positive!r}, {why}"
    if learning.column.nulls:
        empty = f"{learning.column.nulls:,} rows have no {learning.column.name}"
        yield f"{empty}: a run refuses them until they are gone or filled"
    yield from (
        misfit_note(column, table.rows) for column in table.columns if column.misfits and column.name not in sensitive
    )
    if dropped := [c.name for c in table.columns if c.identifier and c is not learning.column]:
        yield f"left out as identifiers: {', '.join(dropped)}"
    if dates := [c.name for c in table.columns if c.type in TIMES]:
        yield f"dates: {', '.join(dates)}; split by time if tomorrow is to be predicted"
    if table.missing_markers:
        yield f"cells that mean missing: {', '.join(map(repr, table.missing_markers))}"


def sensitive_notes(table: Inferred, learning: Learning, sensitive: Collection[str]) -> Iterator[str]:
    """Warn of sensitive columns that leave their values in the model: one line each."""
    for column in table.columns:
        feature = column is not learning.column and not column.identifier
        if feature and column.name in sensitive and column.type is ColumnType.STRING:
            yield (
                f"warning: {column.name} is sensitive and a feature: its categories will lie in the model; "
                "features.columns with drop: true leaves it out"
            )


def misfit_note(column: InferredColumn, rows: int) -> str:
    """Say which cells are not of a column's type."""
    cells = rows - column.nulls
    named = ", ".join(f"row {row:,} {shown(cell)}" for row, cell in column.named_misfits)
    more = column.misfits - len(column.named_misfits)
    return (
        f"{column.name}: {cells - column.misfits:,} of {cells:,} cells are {column.type}s; not: {named}"
        f"{f' and {more:,} more' if more else ''}; mend them, or `type_level: warn` makes them null"
    )


def shown(cell: str) -> str:
    """Quote a cell, the long ones shortened."""
    return repr(cell if len(cell) <= 40 else f"{cell[:37]}...")


def _refuse_misfit(column: InferredColumn, task: Task) -> None:
    if task is Task.REGRESSION and column.type not in NUMBERS:
        raise UnfitChoiceError(
            "--task", f"{column.name} is {column.type}, regression predicts numbers", "--task binary or multiclass"
        )
    if task is not Task.REGRESSION and column.type in (ColumnType.NUMBER, *TIMES):
        raise UnfitChoiceError(
            "--task",
            f"{column.name} is {column.type}, classes are text, whole numbers or true and false",
            "--task regression",
        )
    if task is Task.BINARY and column.distinct != 2:
        raise UnfitChoiceError(
            "--task", f"{column.name} has {column.distinct} values, a binary target has two", "--task multiclass"
        )
