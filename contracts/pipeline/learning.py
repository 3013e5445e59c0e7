"""Target, features, split and candidates: what is learned from the table, and how."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from contracts.base import Contract, Name
from contracts.metrics import METRICS, Task
from contracts.pipeline.mistakes import Mistake, refuse
from contracts.pipeline.table import Scalar


class Costs(Contract):
    """What a wrong answer costs, in any unit."""

    false_positive: float = Field(1.0, ge=0)
    false_negative: float = Field(1.0, ge=0)


class ThresholdRule(Contract):
    """How the decision threshold of a binary model is chosen, on validation rows."""

    rule: Literal["half", "metric", "cost"] = Field("half", description="0.5, the best `metric`, or the least cost.")
    metric: Literal["f1", "balanced_accuracy", "accuracy"] = "f1"
    cost: Costs = Costs()


class Target(Contract):
    """What is predicted."""

    column: str
    task: Task
    positive: Scalar | None = Field(None, description="Binary: the class that counts as positive.")
    threshold: ThresholdRule = ThresholdRule()

    @model_validator(mode="after")
    def _binary_names_positive(self) -> Target:
        if self.task is Task.BINARY and self.positive is None:
            refuse([Mistake(("positive",), "is missing: a binary target names its positive class", "add it")])
        if self.task is not Task.BINARY and self.positive is not None:
            refuse([Mistake(("positive",), f"belongs to a binary target, this one is {self.task}", "remove it")])
        return self


class FeaturePolicy(Contract):
    """How one column becomes features.  Unset fields follow `Features`' defaults."""

    column: str
    drop: bool = False
    missing: Literal["median", "mean", "constant", "none"] | None = None
    fill: Scalar | None = Field(None, description="The constant.")
    indicator: bool | None = Field(None, description="Add a 0/1 feature: was it missing?")
    categorical: bool | None = Field(None, description="Treat an integer or boolean column as categories.")
    max_categories: int | None = Field(None, ge=2)


class Features(Contract):
    """The transform.  Fitted on training rows only; part of the model."""

    passthrough: bool = Field(False, description="Hand the typed columns on as they are, to your own Pipeline.")
    numeric_missing: Literal["median", "mean", "none"] = Field(
        "median", description="none leaves NaN to the estimator."
    )
    indicator: bool = Field(True, description="Add a was-missing feature to numeric columns with nulls in training.")
    max_categories: int = Field(1000, ge=2, description="Rarer ones share one code.")
    min_category_rows: int = Field(2, ge=1, description="Categories with fewer training rows share one code.")
    drop_constant: bool = True
    drop_identifiers: bool = Field(True, description="Drop string columns where almost every value occurs once.")
    dates: tuple[Literal["year", "month", "day", "weekday", "hour", "epoch_days"], ...] = (
        "year",
        "month",
        "weekday",
        "epoch_days",
    )
    columns: tuple[FeaturePolicy, ...] = ()

    def policy(self, column: str) -> FeaturePolicy:
        """Return the policy of one column, an empty one when the file has none."""
        return next((p for p in self.columns if p.column == column), FeaturePolicy(column=column))


class TimeBounds(Contract):
    """Rows before `validation` train; before `test` validate; later ones test (UTC unless said).  Only move forward."""

    column: str
    validation: datetime
    test: datetime

    @field_validator("validation", "test")
    @classmethod
    def _utc_unless_said(cls, value: datetime) -> datetime:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value

    @model_validator(mode="after")
    def _in_order(self) -> TimeBounds:
        if self.validation >= self.test:
            refuse([Mistake(("validation",), "does not lie before `test`", "move one of them")])
        return self


class Split(Contract):
    """Which row is on which side.  It depends on the seed and the row's key, never on the dataset's hash."""

    method: Literal["random", "stratified", "group", "time"] = "random"
    validation: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)
    seed: int = 0
    key: tuple[str, ...] = Field((), description="Columns that identify a row; empty: its whole content.")
    group: str | None = Field(None, description="For group: no value of this column is on two sides.")
    time: TimeBounds | None = None

    @model_validator(mode="after")
    def _method_has_its_fields(self) -> Split:
        if self.validation + self.test >= 1:
            refuse([Mistake(("validation",), "with `test` leaves nothing to train on", "lower one of them")])
        for method, given in (("group", self.group), ("time", self.time)):
            if self.method == method and given is None:
                refuse([Mistake((method,), f"is missing, method: {method} needs it", "add it")])
            if self.method != method and given is not None:
                refuse([Mistake((method,), f"belongs to method: {method}, this is {self.method}", "remove it")])
        return self


class SearchSpace(Contract):
    """One parameter's range or choices."""

    model_config = ConfigDict(allow_inf_nan=False)

    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    choices: tuple[Scalar, ...] | None = None

    @model_validator(mode="after")
    def _range_or_choices(self) -> SearchSpace:
        if (self.choices is None) == (self.low is None or self.high is None):
            raise ValueError("give `low` and `high`, or `choices`")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("`low` lies below `high`")
        if self.log and (self.low or 0) <= 0:
            raise ValueError("a log range starts above 0")
        return self


class Search(Contract):
    """A bounded random search with its own seed; the first trial is the parameters as they stand."""

    trials: int = Field(ge=1, le=1000)
    seed: int = 0
    max_seconds: float | None = Field(None, gt=0, description="Start no new trial after this time.")
    space: dict[str, SearchSpace] = Field(min_length=1)


class Candidate(Contract):
    """One way to learn.  The best one on validation rows goes on to the gates."""

    name: Name
    estimator: str = Field(
        description="`lightgbm`, `xgboost`, `hist_gradient_boosting`, `random_forest`, `linear` or `dummy`; "
        "or `module:attribute`, a scikit-learn estimator, Pipeline, or a function that returns one.",
        examples=["lightgbm", "linear", "my_model:make_pipeline"],
    )
    parameters: dict[str, Any] = {}
    search: Search | None = None
    early_stopping: int | None = Field(None, ge=1, description="Rounds without improvement on validation rows.")


class Training(Contract):
    """What all candidates share."""

    metric: str = Field(description="Chooses the candidate, the trial and the round, on validation rows.")
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    seed: int = 0
    sample_weight: str | None = Field(None, description="Column of row weights; not a feature.")
    class_weight: Literal["balanced"] | dict[str, float] | None = None
    trusted_types: tuple[str, ...] = Field((), description="Types that skops may load, for your own estimators.")
    parallel: int = Field(
        4, ge=1, exclude=True, description="Candidates that are fitted at once; at the desk, as `threads` leaves room."
    )
    """Left out of the section's hash: it decides nothing of what is trained."""
    reproduce_tolerance: float = Field(0.0, ge=0, description="Largest difference that `reproduce` calls identical.")

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in METRICS:
            refuse([Mistake((), f"unknown metric {metric!r}", f"one of {', '.join(METRICS)}")])
        return metric

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Training:
        names = [c.name for c in self.candidates]
        doubles = (i for i, name in enumerate(names) if name in names[:i])
        refuse(
            Mistake(("candidates", i, "name"), f"{names[i]} stands twice", "give it a name of its own") for i in doubles
        )
        return self
