"""How a version is released, when runs start, and who hears of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from contracts import names
from contracts.base import Contract, Duration, format_duration, parse_duration
from contracts.pipeline.mistakes import Mistake, refuse

MAX_RELEASE = timedelta(hours=5)
"""A gradual release must fit into the time that the stage `deploy` has."""


class CanaryStep(Contract):
    """One part of the way of a canary."""

    weight: int = Field(ge=1, le=99, description="Percent of the requests that the new version gets.")
    hold: Duration = Field(parse_duration("2m"), description="How long every measurement must be good at this weight.")


class Analysis(Contract):
    """What a new version must show on real requests, in Prometheus; what is null is not judged."""

    interval: Duration = Field(parse_duration("15s"), description="How often it is measured.")
    window: Duration = Field(parse_duration("1m"), description="Over how long; several scrapes of Prometheus.")
    min_requests: int = Field(
        100, ge=1, description="Requests in a window, of each of the versions compared, below which nothing is judged."
    )  # fmt: skip
    patience: Duration = Field(
        parse_duration("10m"),
        description="How long in all a step may lack requests, and begin its hold anew after each lack; then the new "
        "version is taken back.",
    )
    failures: int = Field(
        0, ge=0, le=20, description="Bad measurements of one kind that a step bears, and begins its hold anew after."
    )  # fmt: skip
    hold: Duration = Field(
        parse_duration("2m"), description="blue-green: how long every measurement must be good after the switch."
    )
    max_error_rate: float | None = Field(0.01, ge=0, le=1, description="Share of answers with status 5xx.")
    max_latency_ratio: float | None = Field(
        3.0, gt=0, description="95th percentile of its seconds to that of the version that serves."
    )
    latency_floor_ms: float = Field(
        20.0, ge=0, description="A percentile below this counts as this: what nobody notices is no reason to go back."
    )
    max_score_distance: float | None = Field(
        0.25, ge=0, le=1, description="Kolmogorov-Smirnov distance of its scores to those of the version that serves."
    )
    max_label_distance: float | None = Field(
        0.2, ge=0, le=1,
        description="Half the sum of differences of the shares of labels: with two labels, that of the positive share.",
    )  # fmt: skip

    @property
    def lacking(self) -> int:
        """How many measurements of a step may lack requests."""
        return math.ceil(self.patience / self.interval)

    @model_validator(mode="after")
    def _fits(self) -> Analysis:
        refuse(self._mistakes())
        return self

    def _mistakes(self) -> Iterator[Mistake]:
        if self.interval.total_seconds() < 1:
            yield Mistake(("interval",), "is shorter than Prometheus reads", "1s or more")
        if self.window < self.interval:
            yield Mistake(("window",), "is shorter than the interval: requests between would not be judged", "raise it")


class Shadow(Contract):
    """A time in which a new version answers a copy of the requests, before any caller gets its answers."""

    hold: Duration = Field(parse_duration("10m"), description="How long.")
    percent: int = Field(100, ge=1, le=100, description="Percent of the requests that are copied.")
    max_label_changes: float | None = Field(
        None, ge=0, le=1, description="Share of rows whose label may differ from the champion's; null: only reported."
    )
    min_rows: int = Field(
        100, ge=1, description="Rows that both answered, below which max_label_changes is undecided: it is taken back."
    )


class Release(Contract):
    """How an approved version comes to serve."""

    strategy: Literal["rolling", "recreate", "canary", "blue-green"] = Field(
        "rolling",
        description="canary and blue-green need Argo Rollouts, Traefik and Prometheus; at the desk a version always "
        "replaces the one before at once.",
    )
    steps: tuple[CanaryStep, ...] = Field(
        (), description="canary: the way to all requests; without any 10 %, then 50 %, 2 minutes each.",
        examples=[[{"weight": 10, "hold": "5m"}]],
    )  # fmt: skip
    analysis: Analysis = Analysis()
    shadow: Shadow | None = Field(
        None,
        description="canary and blue-green: first answer a copy of the requests. Needs `records`, which both keep.",
    )
    ready_timeout: Duration = Field(parse_duration("60s"), description="Not healthy by then: the old version stays.")
    drain_timeout: Duration = Field(
        parse_duration("15s"), description="How long the old version may finish its answers."
    )
    contract: int = Field(
        1, ge=1, description="Raise it when requests that production accepts need no longer be accepted."
    )

    @property
    def gradual(self) -> bool:
        """Whether a version is judged by its own metrics while it begins to serve."""
        return self.strategy in ("canary", "blue-green")

    @property
    def canary_steps(self) -> tuple[CanaryStep, ...]:
        """The steps of a canary, those that hold without any in the file included."""
        return self.steps or (CanaryStep(weight=10), CanaryStep(weight=50))

    @property
    def planned(self) -> timedelta:
        """The time that a gradual release must have: that of its shadow, and of each step's hold and patience."""
        return sum((hold + self.analysis.patience + self.ready_timeout for hold in self._holds), self._before)

    @property
    def longest(self) -> timedelta:
        """How long it may take, after its shadow, until its steps were good: each begun anew as often as it may be."""
        times = 1 + self.analysis.lacking + self.analysis.failures
        steps = (max(hold, self.analysis.interval) * times + self.ready_timeout for hold in self._holds)
        return min(sum(steps, timedelta()), MAX_RELEASE - self._before)

    @property
    def _holds(self) -> list[timedelta]:
        return [step.hold for step in self.canary_steps] if self.strategy == "canary" else [self.analysis.hold]

    @property
    def _before(self) -> timedelta:
        return self.shadow.hold + self.ready_timeout if self.shadow else timedelta()

    @model_validator(mode="after")
    def _fits(self) -> Release:
        refuse(self._mistakes())
        return self

    def _mistakes(self) -> Iterator[Mistake]:
        if self.steps and self.strategy != "canary":
            yield Mistake(("steps",), f"are of strategy canary, this is {self.strategy}", "remove them")
        if self.shadow and not self.gradual:
            yield Mistake(("shadow",), f"is of strategies canary and blue-green, this is {self.strategy}", "remove it")
        weights = [step.weight for step in self.steps]
        for i, (one, following) in enumerate(pairwise(weights), start=1):
            if following <= one:
                yield Mistake(("steps", i, "weight"), "is not more than that of the step before", "raise it")
        if self.gradual and self.planned > MAX_RELEASE:
            what = f"may take {format_duration(self.planned)}, a release ends within {format_duration(MAX_RELEASE)}"
            yield Mistake(("steps",) if self.steps else ("analysis",), what, "shorten hold or patience")


class Records(Contract):
    """Which predictions the server keeps, under `predictions/<pipeline>` of the store: id, time, version, scores."""

    share: float = Field(
        0.0, ge=0, le=1, description="Share of the requests, by a hash of X-Request-Id, else of the body.",
        examples=[0.1],
    )  # fmt: skip
    inputs: bool = Field(False, description="Keep the rows too, but for the cells of sensitive columns.")


class Schedule(Contract):
    """Cron lines in one time zone; one run at a time."""

    cron: tuple[str, ...] = Field(min_length=1, examples=[["0 3 * * 1"]])
    timezone: str = "UTC"
    starting_deadline: Duration = parse_duration("1h")
    keep_successful: int = Field(3, ge=0)
    keep_failed: int = Field(3, ge=0)


class Objects(Contract):
    """A new object in a bucket starts a run on it; the store tells POST /<pipeline name>/objects, as MinIO can."""

    bucket: str = Field(pattern="^[a-z0-9][a-z0-9.-]{2,62}$")
    prefix: str = Field("", pattern="^[A-Za-z0-9._~/=+:,-]*$", description="What its key starts with.")
    suffix: str = Field("", pattern="^[A-Za-z0-9._~/=+:,-]*$", description="What its key ends with.")


class Webhook(Contract):
    """POST /<pipeline name> with a bearer token starts a run."""

    port: int = Field(12000, gt=0, lt=65536)
    token_secret: str = Field(names.WEBHOOK_SECRET, description="Secret whose key `token` holds the bearer token.")
    objects: Objects | None = None


class Triggers(Contract):
    """What starts a run besides a person."""

    webhook: Webhook | None = None


class Notifications(Contract):
    """When to tell; where to, says the secret setting `notify_urls` (Apprise), else the console."""

    on: tuple[Literal["promoted", "rejected", "inconclusive", "unchanged", "failed", "other"], ...] = (
        "promoted", "rejected", "inconclusive", "unchanged", "failed", "other",
    )  # fmt: skip


class Resources(Contract):
    """Default sizes of a stage's container, in MiB and millicores; what is not here the environment's settings say."""

    memory_mib: int = Field(1024, ge=64)
    cpu_millicores: int = Field(500, ge=10)
