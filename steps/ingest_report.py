"""The validation report that `ingest` leaves in the store, read by whoever reports a run."""

from __future__ import annotations

from pydantic import AwareDatetime

from contracts.base import Contract, Sha256
from contracts.references import Violation


class IngestReport(Contract):
    """``<store>/reports/<workflow>/ingest.json``.

    `violations` holds every rule that some row broke: level ``warn``, or ``tolerated`` where the share stayed within
    what the rule tolerates.  Rules of level error leave no report but the stage's error.
    """

    dataset: str
    dataset_sha256: Sha256
    schema_sha256: Sha256
    rows: int
    sources: tuple[str, ...]
    as_of: AwareDatetime
    violations: tuple[Violation, ...] = ()

    @property
    def warnings(self) -> tuple[Violation, ...]:
        """The broken rules of level warn."""
        return tuple(violation for violation in self.violations if violation.level == "warn")
