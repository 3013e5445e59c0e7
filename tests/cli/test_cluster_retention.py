"""Retention on a cluster from the command line: the plan's program runs here, over a real store, MLflow and ledger."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from steps.retention.sweep import look
from tests.cli.test_cluster_approvals import Place, here
from tests.steps.kept_things import make
from tests.steps.registered import make_world
from workflows.cluster import errand as errands
from workflows.cluster import retention
from workflows.retention import NAME


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(errands, "errand", here)
    return Place(tmp_path)


@pytest.mark.faults
def test_the_plan_asked_of_a_cluster_is_that_of_its_own_store(place: Place, tmp_path: Path) -> None:
    world = make_world(tmp_path)
    make(world, "a")
    place.objects["ServiceAccount", NAME] = {}

    found = retention.look(place)  # type: ignore[arg-type]

    assert found == look(world.settings, datetime.now(UTC))
    assert {decision.kind.value for decision in found.decisions} >= {"version", "run", "dataset", "split"}


@pytest.mark.parametrize("ask", [retention.look, lambda place: retention.apply(place, print)])
def test_a_platform_where_it_is_off_says_how_to_switch_it_on(place: Place, ask: object) -> None:
    with pytest.raises(ConfigError, match="retention is off there") as error:
        ask(place)  # type: ignore[operator]

    assert "retention.enabled=true" in error.value.remedy
    assert place.objects == {}, "nothing was made"
