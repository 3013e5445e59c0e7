"""Run the stages of a pipeline one after the other in this process, as their containers would: texts in, texts out.

The runner starts a process a stage, which costs seconds of imports each; tests/cli/test_run.py pays for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from contracts.names import parameter
from contracts.probes import PROBES
from contracts.stages import BY_NAME, STAGES, Probe, Stage
from steps.__main__ import main
from workflows.cli.desk import desk_environment, make_signing_key

WAY = tuple(stage.name for stage in STAGES if stage.name not in ("fit", "notify"))
"""`train` fits what nobody fitted before it."""
STEPS: dict[str, type[Stage]] = {**BY_NAME, **{probe.name: probe for probe in PROBES}}


def run_stages(file: Path, home: Path, environment: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what the stages said last, by parameter name."""
    make_signing_key(home)
    for name, value in desk_environment(home, file.parent).items():
        environment.setenv(name, value)
    environment.setenv("RETRAIN_PIPELINE", str(file))
    environment.setenv("RETRAIN_WORKFLOW", file.stem)
    environment.setenv("RETRAIN_SERVER_PORT", "0")
    said: dict[str, str] = {}
    found: list[str] = []
    for stage in (*(probe.name for probe in PROBES), *WAY):
        outputs = home / "outputs" / stage
        environment.setenv("RETRAIN_OUTPUTS", str(outputs))
        assert run_stage(stage, said) == 0, stage
        said |= said_in(outputs)
        if issubclass(STEPS[stage], Probe):
            found.append(said["found"])
            said["found"] = "\n".join(found)
    return said


def run_stage(stage: str, said: Mapping[str, str]) -> int:
    """Run a stage on what it takes of all that was said, and return its exit code."""
    wanted = [parameter(field) for field in STEPS[stage].Inputs.model_fields]
    return main([stage, *(word for name in wanted if name in said for word in (f"--{name}", said[name]))])


def said_in(outputs: Path) -> dict[str, str]:
    """Return the outputs in a folder by parameter name; none where no stage has made it."""
    return {path.name: path.read_text(encoding="utf-8") for path in outputs.iterdir()} if outputs.is_dir() else {}
