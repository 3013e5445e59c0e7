"""What must hold between the sections of a pipeline file.  Called by the `Pipeline` model; checks yield mistakes."""

from __future__ import annotations

import difflib
import re
import zoneinfo
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from contracts.metrics import METRICS, Task, metrics_of
from contracts.pipeline.mistakes import Mistake
from contracts.pipeline.table import ColumnType
from contracts.stages import SIZED

if TYPE_CHECKING:
    from contracts.pipeline.file import Pipeline
    from contracts.pipeline.gates import GatePolicy, Threshold

BUILT_IN = ("lightgbm", "xgboost", "hist_gradient_boosting", "random_forest", "linear", "dummy")
_TIMES = (ColumnType.DATE, ColumnType.TIMESTAMP)
_NUMBERS = (ColumnType.INTEGER, ColumnType.NUMBER)
_CLASSES = (ColumnType.STRING, ColumnType.INTEGER, ColumnType.BOOLEAN)
_CRON_FIELD = re.compile(r"^(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*$")

Key = tuple[str | int, ...]


def mistakes(pipeline: Pipeline, whole: Collection[str] | None = None) -> Iterator[Mistake]:
    """Yield every mistake between sections; where not all could be read, `whole` names those that were."""
    for needs, check in CHECKS:
        if whole is None or all(section in whole for section in needs):
            yield from check(pipeline)


def target_column(pipeline: Pipeline) -> Iterator[Mistake]:
    """The target is a column."""
    yield from _unknown(pipeline, [(("target", "column"), pipeline.target.column)])


def feature_columns(pipeline: Pipeline) -> Iterator[Mistake]:
    """Policies are of columns."""
    named = ((("features", "columns", i, "column"), p.column) for i, p in enumerate(pipeline.features.columns))
    yield from _unknown(pipeline, named)


def split_columns(pipeline: Pipeline) -> Iterator[Mistake]:
    """Key, group and time are columns, and the last holds times."""
    split = pipeline.split
    yield from _unknown(pipeline, ((("split", "key", i), column) for i, column in enumerate(split.key)))
    yield from _unknown(pipeline, [(("split", "group"), split.group)])
    if split.time:
        yield from _unknown(pipeline, [(("split", "time", "column"), split.time.column)])
        if split.time.column in pipeline.table.names and pipeline.table.column(split.time.column).type not in _TIMES:
            yield Mistake(
                ("split", "time", "column"), f"{split.time.column} is no date or timestamp", "name one that is"
            )


def weight_column(pipeline: Pipeline) -> Iterator[Mistake]:
    """The sample weight is a column."""
    yield from _unknown(pipeline, [(("training", "sample_weight"), pipeline.training.sample_weight)])


def gate_columns(pipeline: Pipeline) -> Iterator[Mistake]:
    """Slices are made of columns, and what own functions read are some."""
    for at, policy in policies(pipeline):
        slices = enumerate(policy.validation.slices)
        yield from _unknown(pipeline, (((*at, "validation", "slices", i, "column"), s.column) for i, s in slices))
        for gate, thresholds in _thresholds(policy):
            for i, threshold in enumerate(thresholds):
                where: Key = (*at, gate, "thresholds", i, "columns")
                yield from _unknown(pipeline, (((*where, k), name) for k, name in enumerate(threshold.columns)))


def _unknown(pipeline: Pipeline, named: Iterable[tuple[Key, str | None]]) -> Iterator[Mistake]:
    known = pipeline.table.names
    for key, column in named:
        if column is not None and column not in known:
            yield Mistake(key, f"{column!r} is not in schema.columns", did_you_mean(column, known) or "correct it")


def target_type(pipeline: Pipeline) -> Iterator[Mistake]:
    """The target's column must hold what the task predicts."""
    if pipeline.target.column not in pipeline.table.names:
        return
    task, column = pipeline.target.task, pipeline.table.column(pipeline.target.column)
    fitting = _NUMBERS if task is Task.REGRESSION else _CLASSES
    if column.type not in fitting:
        what = f"a {task} target is {', '.join(fitting)}; {column.name} is {column.type}"
        yield Mistake(("target", "column"), what, "change the task, or the column's type in the schema")
    allowed = column.allowed.value if column.allowed else None
    positive = pipeline.target.positive
    if allowed is not None and positive is not None and positive not in allowed:
        yield Mistake(
            ("target", "positive"), f"{positive!r} is not among the column's allowed values", f"one of {allowed}"
        )


def training_metric(pipeline: Pipeline) -> Iterator[Mistake]:
    """The metric that chooses is defined for the task."""
    yield from _unfit(pipeline, [(("training", "metric"), pipeline.training.metric)])


def gate_metrics(pipeline: Pipeline) -> Iterator[Mistake]:
    """The gates' metrics are defined for the task."""
    named: list[tuple[Key, str]] = []
    for at, policy in policies(pipeline):
        for gate, thresholds in _thresholds(policy):
            for i, threshold in enumerate(thresholds):
                where: Key = (*at, gate, "thresholds", i)
                if threshold.metric:
                    named.append(((*where, "metric"), threshold.metric))
                named += [((*where, "composite", metric), metric) for metric in threshold.composite]
        named += [
            ((*at, "validation", "slices", i, "metric"), s.metric) for i, s in enumerate(policy.validation.slices)
        ]
        if policy.promotion.comparison:
            named.append(((*at, "promotion", "comparison", "metric"), policy.promotion.comparison.metric))
    yield from _unfit(pipeline, named)


def _unfit(pipeline: Pipeline, named: Iterable[tuple[Key, str]]) -> Iterator[Mistake]:
    task = pipeline.target.task
    fitting = ", ".join(metrics_of(task))
    for key, metric in named:
        if metric in METRICS and task not in METRICS[metric].tasks:
            yield Mistake(key, f"{metric} does not fit a {task} target", f"one of {fitting}")


def stratified_classes(pipeline: Pipeline) -> Iterator[Mistake]:
    """Only classes can be stratified."""
    if pipeline.target.task is Task.REGRESSION and pipeline.split.method == "stratified":
        yield Mistake(("split", "method"), "stratified is for classes, this target is regression", "use random")


def weighted_classes(pipeline: Pipeline) -> Iterator[Mistake]:
    """Only classes can be weighted as such."""
    if pipeline.target.task is Task.REGRESSION and pipeline.training.class_weight:
        yield Mistake(("training", "class_weight"), "is for classes, this target is regression", "remove it")


def estimators(pipeline: Pipeline) -> Iterator[Mistake]:
    """See `unknown_estimators`."""
    yield from unknown_estimators([c.estimator for c in pipeline.training.candidates])


def unknown_estimators(names: Iterable[object]) -> Iterator[Mistake]:
    """An estimator is built in, or a module's attribute.  `names` are all candidates', in order."""
    for i, name in enumerate(names):
        if isinstance(name, str) and ":" not in name and name not in BUILT_IN:
            remedy = did_you_mean(name, BUILT_IN) or f"one of {', '.join(BUILT_IN)}"
            key = ("training", "candidates", i, "estimator")
            yield Mistake(key, f"{name!r} is neither built in nor module:attribute", remedy)


def built_in_on_raw_columns(pipeline: Pipeline) -> Iterator[Mistake]:
    """Raw columns are read by the user's own Pipeline only."""
    for i, candidate in enumerate(pipeline.training.candidates):
        name, key = candidate.estimator, ("training", "candidates", i, "estimator")
        if pipeline.features.passthrough and name in BUILT_IN and name != "dummy":
            what = f"features.passthrough hands on raw columns, which only your own Pipeline reads; {name} is built in"
            yield Mistake(key, what, "name your own as module:attribute, or remove features.passthrough")


def resources(pipeline: Pipeline) -> Iterator[Mistake]:
    """Sizes are of stages."""
    known = [stage.name for stage in SIZED]
    for stage in pipeline.resources:
        if stage not in known:
            yield Mistake(
                ("resources", stage), "is not a stage", did_you_mean(stage, known) or f"one of {', '.join(known)}"
            )


def schedule(pipeline: Pipeline) -> Iterator[Mistake]:
    """Schedules are what Argo's CronWorkflow reads."""
    if pipeline.schedule:
        for i, line in enumerate(pipeline.schedule.cron):
            if len(line.split()) != 5 or not all(_CRON_FIELD.match(field) for field in line.split()):
                what = f"{line!r} is not a cron line"
                yield Mistake(("schedule", "cron", i), what, "minute hour day month weekday, in numbers: 0 3 * * 1")
        zone = pipeline.schedule.timezone
        try:
            zoneinfo.ZoneInfo(zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # listing them all takes longer than all else
            remedy = did_you_mean(zone, zoneinfo.available_timezones()) or "such as Europe/Berlin"
            yield Mistake(("schedule", "timezone"), f"{zone!r} is no time zone", remedy)


def shadow_records(pipeline: Pipeline) -> Iterator[Mistake]:
    """A shadow is compared by records."""
    if pipeline.release.shadow and not pipeline.records.share:
        what = "compares records, and none are kept"
        yield Mistake(("release", "shadow"), what, "keep some: records: {share: 0.1}")


def shadow_labels(pipeline: Pipeline) -> Iterator[Mistake]:
    """Only classes are labels."""
    shadow = pipeline.release.shadow
    if pipeline.target.task is Task.REGRESSION and shadow and shadow.max_label_changes is not None:
        what = "is for classes, this target is regression"
        yield Mistake(("release", "shadow", "max_label_changes"), what, "remove it: how far values differ is reported")


CHECKS: tuple[tuple[tuple[str, ...], Callable[[Pipeline], Iterator[Mistake]]], ...] = (
    (("table", "target"), target_column),
    (("table", "features"), feature_columns),
    (("table", "split"), split_columns),
    (("table", "training"), weight_column),
    (("table", "gates"), gate_columns),
    (("table", "target"), target_type),
    (("target", "training"), training_metric),
    (("target", "gates"), gate_metrics),
    (("target", "split"), stratified_classes),
    (("target", "training"), weighted_classes),
    (("training",), estimators),
    (("training", "features"), built_in_on_raw_columns),
    (("resources",), resources),
    (("schedule",), schedule),
    (("release", "records"), shadow_records),
    (("target", "release"), shadow_labels),
)
"""Each check with the sections that it reads."""


def _thresholds(policy: GatePolicy) -> Iterator[tuple[str, tuple[Threshold, ...]]]:
    yield "validation", policy.validation.thresholds
    yield "promotion", policy.promotion.thresholds


def policies(pipeline: Pipeline) -> Iterator[tuple[Key, GatePolicy]]:
    """Yield each gate policy with its key."""
    yield ("gates", "default"), pipeline.gates.default
    for name, policy in pipeline.gates.environments.items():
        yield ("gates", "environments", name), policy


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a remedy that names the nearest known word, empty when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""
