"""Train a version again: `features` and `train` as processes of given code under a given interpreter.

Called by `steps.reproduce`.  The code may be older than this file, so it is driven by what every commit has because
Argo drives it by the same: ``python -m steps STAGE --parameter value``, settings as ``RETRAIN_*`` variables, answers
as files, failures as exit codes of the error table.  Store and MLflow are scratch ones in a folder: nothing is reused
from, and nothing is left in, the real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import (
    ConfigError,
    DataError,
    ErrorReport,
    InfrastructureError,
    NetworkError,
    ResourcesError,
    StageError,
    StorageError,
)
from contracts.names import parameter
from contracts.settings import PREFIX, Settings, variable
from contracts.stages import Features, Stage, Train
from serving.model import MANIFEST_FILE
from steps.judging.assessment import References
from steps.own_environment import last_line
from steps.reports import read_error_report
from steps.tracking import MACHINE, PACKAGE
from steps.world import World

_KEPT_SETTINGS = ("environment", "s3_endpoint", "aws_access_key_id", "aws_secret_access_key")
"""What reading the dataset may need; everything else is the scratch one's, or no affair of a training."""
_OTHER_PYTHONS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_CLASSES = (NetworkError, StorageError, ResourcesError, InfrastructureError, DataError, ConfigError)


@dataclass(frozen=True)
class Rebuilt:
    """What training again came to."""

    package: Path
    references: Mapping[str, str]
    """``split_sha256``, ``transform_sha256`` and ``candidate``."""
    environment: Mapping[str, str]
    """As `steps.provenance.machine`, said by the process that trained."""


@dataclass(frozen=True)
class Trainer:
    """Code and interpreter."""

    code: Path
    interpreter: str
    commit: str
    threads: str
    """As the run recorded them; empty: all."""
    packages: str = ""
    """Folder of what the user's own modules need besides."""


def scratch_world(kept: World, folder: Path) -> World:
    """Return a world with store and MLflow in `folder`, under the kept pipeline file."""
    settings = kept.settings.model_copy(
        update={
            "store": (folder / "store").as_uri(),
            "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}",
            "artifacts": (folder / "artifacts").as_uri(),
        }
    )
    return World(settings=settings, pipeline=kept.pipeline, pipeline_path=kept.pipeline_path, workflow="reproduce")


def rebuild(world: World, trainer: Trainer, refers: References, user_code: str, folder: Path) -> Rebuilt:
    """Split and train again.

    Parameters
    ----------
    world
        Of `scratch_world`, in `folder`.
    refers
        The kept dataset.
    user_code
        URI of the user's packed modules; empty without any.

    Raises
    ------
    StageError
        Of the class that the failed stage's exit code names, with its message.
    """
    data = {"dataset": refers.dataset, "dataset_sha256": refers.dataset_sha256}
    split = _run(Features, data, world, trainer, folder)
    fed = {**data, "split": split["split"], "split_sha256": split["split_sha256"], "code": user_code}
    trained = _run(Train, fed, world, trainer, folder)
    # By their names rather than asked of MLflow, whose database may be of a version that today's does not read.
    artifacts = folder / "artifacts"
    package = next(artifacts.rglob(f"{PACKAGE}/{MANIFEST_FILE}"), None)
    if package is None:
        raise ConfigError("training again left no model package that this retrain reads")
    described = next(artifacts.rglob(MACHINE), None)
    return Rebuilt(
        package=package.parent,
        references={
            "split_sha256": split["split_sha256"],
            "transform_sha256": split["transform_sha256"],
            "candidate": trained["candidate"],
        },
        environment=json.loads(described.read_bytes()) if described else {},
    )


def _run(stage: type[Stage], inputs: Mapping[str, str], world: World, trainer: Trainer, folder: Path) -> dict[str, str]:
    outputs = folder / "outputs" / stage.name
    own = {"pipeline": str(world.pipeline_path), "outputs": str(outputs), "workflow": world.workflow}
    own |= {"code_commit": trainer.commit, "threads": trainer.threads, "packages": trainer.packages}
    given = [word for name, value in inputs.items() if value for word in (f"--{parameter(name)}", value)]
    done = subprocess.run(
        [trainer.interpreter, "-m", "steps", stage.name, *given],
        cwd=trainer.code, env=_environment(world.settings, own), capture_output=True, text=True, check=False,
        timeout=stage.deadline_seconds,
    )  # fmt: skip
    if done.returncode:
        raise _failure(stage.name, done.returncode, read_error_report(world, stage.name), done.stderr)
    return {path.name.replace("-", "_"): path.read_text(encoding="utf-8") for path in outputs.iterdir()}


def _environment(settings: Settings, own: Mapping[str, str]) -> dict[str, str]:
    """Return what a stage at the desk inherits, but no settings, no MLflow and no Python other than its own."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((PREFIX, "MLFLOW_")) and name not in _OTHER_PYTHONS
    }
    values = {name: getattr(settings, name) for name in (*_KEPT_SETTINGS, "store", "tracking_uri", "artifacts")}
    texts = {name: value if isinstance(value, str) else value.get_secret_value() for name, value in values.items()}
    return inherited | {variable(name): text for name, text in {**texts, **own}.items() if text}


def _failure(stage: str, code: int, report: ErrorReport | None, output: str) -> StageError:
    kind = next((kind for kind in _CLASSES if kind.row.exit_code == code), StageError)
    if report is None:
        return kind(f"training again: {stage} ended with {code}: {last_line(output)}")
    return kind(f"training again: {stage}: {report.message}", findings=report.findings, remedy=report.remedy)
