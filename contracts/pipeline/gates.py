"""What a model must show before it is registered, and before it may serve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from contracts.base import Contract, Duration, parse_duration
from contracts.metrics import METRICS
from contracts.pipeline.mistakes import Mistake, refuse
from contracts.pipeline.table import Scalar

FINITE = ConfigDict(allow_inf_nan=False)
"""For numbers that are compared: with NaN, no comparison says what its writer meant."""


def _known(metric: str, *at: str) -> None:
    if metric not in METRICS:
        refuse([Mistake(at or ("metric",), f"unknown metric {metric!r}", f"one of {', '.join(METRICS)}")])


Reference = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
"""What a module of the user's defines, ``module:attribute``."""


class Threshold(Contract):
    """A bound on a metric, a weighted composite of metrics, or what a function of yours makes of the test rows."""

    model_config = FINITE

    metric: str = ""
    composite: dict[str, float] = Field({}, description="Weights; metrics where less is better enter negated.")
    function: Reference | None = Field(
        None, description="`module:attribute`, called with test rows and answers; returns a number. The point decides.",
        examples=["my_gates:cost"],
    )  # fmt: skip
    columns: tuple[str, ...] = Field((), description="What `function` reads beside the model's columns and the target.")
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _checks(self) -> Threshold:
        if [bool(self.metric), bool(self.composite), bool(self.function)].count(True) != 1:
            raise ValueError("give one of `metric`, `composite` and `function`")
        if self.columns and not self.function:
            raise ValueError("`columns` are those of a `function`")
        if self.metric:
            _known(self.metric)
        for name in self.composite:
            _known(name, "composite", name)
        if (self.min is None) == (self.max is None):
            raise ValueError("give `min` or `max`")
        return self

    @property
    def label(self) -> str:
        """How reports call it."""
        return self.metric or self.function or " + ".join(f"{w:g} {m}" for m, w in self.composite.items())


class SliceRule(Contract):
    """A bound on every group of `column`'s values (or the listed ones) with at least `min_rows` test rows."""

    model_config = FINITE

    column: str
    metric: str
    min: float | None = None
    max: float | None = None
    values: tuple[Scalar, ...] | None = None
    min_rows: int = Field(100, ge=1)

    @model_validator(mode="after")
    def _checks(self) -> SliceRule:
        _known(self.metric)
        if (self.min is None) == (self.max is None):
            raise ValueError("give `min` or `max`")
        return self


class Bootstrap(Contract):
    """How intervals are made: bootstrap over rows, over groups where the split is by group; docs/gates.md says more."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(1000, ge=100, le=100_000)
    seed: int = 0
    decide: Literal["interval", "point"] = Field(
        "interval",
        description="interval: passed when the whole interval is inside the bound, inconclusive when it straddles.",
    )


class ValidationGate(Contract):
    """On test rows, before a version is registered."""

    thresholds: tuple[Threshold, ...] = Field(min_length=1)
    slices: tuple[SliceRule, ...] = ()
    bootstrap: Bootstrap = Bootstrap()


class Comparison(Contract):
    """Challenger against champion, paired, on rows in neither one's train or validation side."""

    metric: str
    rule: Literal["superior", "non_inferior"] = "superior"
    margin: float = Field(0.0, ge=0, description="non_inferior: how much worse the challenger may be.")
    non_inferior_after: Duration | None = Field(
        None, description="A champion older than this is judged by non_inferior."
    )
    min_rows: int = Field(200, ge=1, description="Fewer shared unseen rows: the champion stays.")
    bootstrap: Bootstrap = Bootstrap()

    @model_validator(mode="after")
    def _checks(self) -> Comparison:
        _known(self.metric)
        return self


class Latency(Contract):
    """Single-row prediction time, challenger and champion interleaved in one process."""

    max_ms: float | None = Field(None, gt=0)
    max_ratio: float | None = Field(None, gt=0, description="To the champion's median.")
    calls: int = Field(200, ge=20)


class PromotionGate(Contract):
    """Stricter, before a version may serve."""

    thresholds: tuple[Threshold, ...] = ()
    comparison: Comparison | None = None
    max_calibration_error: float | None = Field(None, gt=0, lt=1)
    max_size_mib: float | None = Field(None, gt=0)
    latency: Latency | None = None


class GatePolicy(Contract):
    """Both gates of one environment, and who has the last word."""

    validation: ValidationGate
    promotion: PromotionGate = PromotionGate()
    decision: Literal["automatic", "approval"] = Field(
        "automatic",
        description="automatic: what passes the promotion gate is released; approval: a person says so, or not.",
    )
    approval_expires: Duration = Field(
        parse_duration("7d"), description="How long a request waits for a person, and an approval for its release."
    )


class Gates(Contract):
    """The default policy, and whole policies by environment that replace it."""

    default: GatePolicy
    environments: dict[str, GatePolicy] = {}

    def policy(self, environment: str) -> GatePolicy:
        """Return what applies in `environment`."""
        return self.environments.get(environment, self.default)

    @property
    def functions(self) -> Iterator[str]:
        """The user's functions that thresholds name, ``module:attribute``."""
        for policy in (self.default, *self.environments.values()):
            for threshold in (*policy.validation.thresholds, *policy.promotion.thresholds):
                if threshold.function is not None:
                    yield threshold.function
