"""What a stage may reach is what it declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.pipeline import load_pipeline
from contracts.settings import Settings
from contracts.stages import Need, Notify
from steps.world import World

ADULT = Path(__file__).parents[2] / "adult.yaml"


def test_a_stage_is_refused_what_it_did_not_declare(tmp_path: Path) -> None:
    settings = Settings(store=tmp_path.as_uri(), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    world = World(settings=settings, pipeline=load_pipeline(ADULT), pipeline_path=ADULT, needs=Notify.needs)

    for part, need in (("tracking", Need.TRACKING), ("registry", Need.TRACKING), ("ledger", Need.LEDGER)):
        with pytest.raises(RuntimeError, match=f"does not declare that it reaches the {need.value}"):
            getattr(world, part)
    assert world.storage
