"""Where stages leave their reports in the store."""

from __future__ import annotations

from steps.world import World


def run_report_uri(world: World, name: str) -> str:
    """Return the URI of a report of this workflow."""
    return world.storage.uri("reports", world.workflow, name)


def error_report_uri(world: World, stage: str) -> str:
    """Return where a failed stage of this workflow leaves its report."""
    return run_report_uri(world, f"{stage}.error.json")
