"""Run the stages of a pipeline one after the other in this process, as their containers would: texts in, texts out.

The runner starts a process a stage, which costs seconds of imports each; tests/cli/test_run.py pays for that.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.names import parameter
from contracts.settings import desk
from contracts.stages import BY_NAME
from steps.__main__ import main

WAY = ("preflight", "ingest", "features", "train", "evaluate", "register", "promote", "build", "deploy")


def run_stages(file: Path, home: Path, environment: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what the stages said last, by parameter name."""
    for name, value in desk(home, file.parent).items():
        environment.setenv(name, value)
    environment.setenv("RETRAIN_PIPELINE", str(file))
    environment.setenv("RETRAIN_WORKFLOW", file.stem)
    environment.setenv("RETRAIN_SERVER_PORT", "0")
    said: dict[str, str] = {}
    for stage in WAY:
        outputs = home / "outputs" / stage
        environment.setenv("RETRAIN_OUTPUTS", str(outputs))
        wanted = [parameter(field) for field in BY_NAME[stage].Inputs.model_fields]
        given = [word for name in wanted if name in said for word in (f"--{name}", said[name])]
        assert main([stage, *given]) == 0, stage
        said |= {path.name: path.read_text(encoding="utf-8") for path in outputs.iterdir()}
    return said
