"""Retention on a cluster from the command line: the plan's program runs here, over a real store, MLflow and ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from steps.retention.plan import Decision, Kind, Policy
from steps.retention.sweep import Outlook, look
from tests.cli.test_cluster_approvals import Place, here
from tests.steps.kept_things import make
from tests.steps.registered import make_world
from workflows.cli.retention import _show
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


@pytest.mark.parametrize("json_output", [False, True])
def test_an_answer_that_names_a_part_is_shown_with_the_total_of_all(
    json_output: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    old = datetime(2020, 1, 1, tzinfo=UTC)
    things = [
        Decision(key=f"datasets/{number}", kind=Kind.DATASET, keep=False, reason="old", since=old, size=1024)
        for number in range(300)
    ]
    policy = Policy(served_years=10, unserved_days=90, records_days=180)
    full = Outlook(
        policy=policy, archive="", decisions=tuple(things), left=tuple(f"image {n}: yours" for n in range(9))
    )

    _show(Outlook.model_validate_json(full.shortened(4).model_dump_json()), json_output=json_output, done=True)

    said = capsys.readouterr().out
    if json_output:
        assert json.loads(said)["total"] == {"things": 300, "size": 300 * 1024, "left": 9}
        return
    assert "removed: 300 things, 300 KiB" in said
    assert [line.split()[2] for line in said.splitlines() if line.startswith("... and")] == ["296", "5"]
