"""Where stages leave their reports in the store, and how others read them."""

from __future__ import annotations

from pydantic import ValidationError

from contracts.base import Contract
from contracts.errors import ErrorReport
from steps.ingest_report import IngestReport
from steps.world import World

INGEST_REPORT = "ingest.json"
RELEASE_REPORT = "release.json"


class ReleaseReport(Contract):
    """``<store>/reports/<workflow>/release.json``: why a version was taken back."""

    version: int
    reason: str


def run_report_uri(world: World, name: str) -> str:
    """Return the URI of a report of this workflow."""
    return world.storage.uri("reports", world.workflow, name)


def error_report_uri(world: World, stage: str) -> str:
    """Return where a failed stage of this workflow leaves its report."""
    return run_report_uri(world, f"{stage}.error.json")


def read_ingest_report(world: World) -> IngestReport | None:
    """Return what this workflow's `ingest` reported; None when it did not come so far."""
    uri = run_report_uri(world, INGEST_REPORT)
    return IngestReport.model_validate_json(world.storage.read(uri)) if world.storage.exists(uri) else None


def read_release_report(world: World) -> ReleaseReport | None:
    """Return why this workflow's `deploy` took a version back; None when it did not."""
    uri = run_report_uri(world, RELEASE_REPORT)
    return ReleaseReport.model_validate_json(world.storage.read(uri)) if world.storage.exists(uri) else None


def read_error_report(world: World, stage: str) -> ErrorReport | None:
    """Return what a failed stage of this workflow reported; None when it could not, or wrote something else."""
    uri = error_report_uri(world, stage)
    try:
        return ErrorReport.model_validate_json(world.storage.read(uri)) if world.storage.exists(uri) else None
    except ValidationError:
        return None
