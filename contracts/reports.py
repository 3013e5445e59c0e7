"""The reports of both gates: what `evaluate` and `promote` decided, on which numbers, and why."""

from __future__ import annotations

from pydantic import Field

from contracts.base import Contract, Sha256
from contracts.outcomes import Promotion, Verdict


class Interval(Contract):
    """A bootstrap interval; of a slice, corrected for their number."""

    low: float
    high: float
    confidence: float
    resamples: int = Field(description="Resamples on which the number has a value.")


class Check(Contract):
    """One thing that a gate looked at: number, bound, answer."""

    name: str
    verdict: Verdict | None = Field(description="None: reported, not judged.")
    value: float | None = Field(None, description="None: it could not be computed.")
    interval: Interval | None = None
    min: float | None = None
    max: float | None = None
    rows: int | None = None
    reason: str

    @property
    def measured(self) -> str:
        """The number and its interval, for people; empty where there is none."""
        if self.value is None:
            return ""
        interval = f" [{self.interval.low:.4g}, {self.interval.high:.4g}]" if self.interval else ""
        return f"{self.value:.4g}{interval}"

    def __str__(self) -> str:
        return self.reason


class ValidationReport(Contract):
    """``reports/<run_id>/validation.json``: the same bytes whenever the same run is judged by the same policy."""

    run_id: str
    pipeline: str
    environment: str
    verdict: Verdict
    reason: str
    checks: tuple[Check, ...]
    metrics: dict[str, float | None] = Field(description="All metrics of the task on the test rows.")
    test_rows: int
    dataset_sha256: Sha256
    split_sha256: Sha256
    policy_sha256: Sha256


class PromotionReport(Contract):
    """``reports/<run_id>/promotion-<version>-<hash>.json``."""

    model: str
    version: int
    run_id: str
    environment: str
    workflow: str
    champion: int | None = Field(description="The version that served when this was decided.")
    champion_run_id: str = ""
    decision: Promotion
    reason: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = Field((), description="How the comparison was made, where that is not the usual way.")
    test_rows: int
    compared_rows: int | None = Field(None, description="Rows in neither model's train or validation side.")
    dataset_sha256: Sha256
    split_sha256: Sha256
    policy_sha256: Sha256
    requested_by: str = Field(description="Who asked for the run, as its parameter says; nobody verified it.")
