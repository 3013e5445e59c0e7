"""A run of the compiled manifest in this process whose retries wait a moment only: what is tried again, and how often.

Everything else is as `retrain run` has it: the graph, the strategies' limits and conditions, the stages as processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from contracts.pipeline import load_pipeline
from contracts.settings import PREFIX
from tests.faults.small_desk import SmallDesk
from workflows.cli.run import Desk
from workflows.cli.warm import warm_parent
from workflows.local import pods, runner
from workflows.local.state import RunState

MOMENT = {"duration": "100ms", "factor": 1, "cap": "100ms"}


def rehearse(
    desk: SmallDesk,
    monkeypatch: pytest.MonkeyPatch,
    *,
    on_change: Callable[[RunState], None] | None = None,
    variables: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
) -> RunState:
    """Return the run's last state; `on_change` is told of each, and may break or mend the world meanwhile."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in (desk.environment() | dict(variables or {})).items():
        monkeypatch.setenv(name, value)
    file = desk.folder / "churn.yaml"
    made = Desk.open(file, load_pipeline(file))
    manifests = made.manifests()
    for manifest in manifests:
        for template in manifest.get("spec", {}).get("templates", ()):
            if "retryStrategy" in template:
                template["retryStrategy"]["backoff"] = MOMENT
    given = {"source": "", "code": "", "cache": "use", "version": "", "requested-by": "test"} | dict(parameters or {})
    with warm_parent(wanted=True) as parent:
        return runner.execute(
            manifests, entrypoint="retrain", parameters=given, home=made.home, images=made.images(),
            on_change=on_change, spawn=parent.spawn if parent else pods.spawn,
        )  # fmt: skip


def exit_codes(run: RunState, stage: str) -> list[str | None]:
    """Return how each attempt of a stage ended, None where it has not."""
    attempts = [node for node in run.nodes.values() if node.template == stage and node.type == "Pod"]
    return [node.exit_code for node in sorted(attempts, key=lambda node: (node.started is None, node.started))]


def files(folder: Path) -> dict[str, int]:
    """Return name and size of each file below a folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
