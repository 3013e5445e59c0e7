"""Whether the pipeline file fits what is there: own modules, candidates, libraries, column policies."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from contracts.errors import Finding
from contracts.pipeline.table import ColumnType
from contracts.stages import Probe
from steps.world import World

Findings = Iterator[Finding]


def check_code(inputs: Probe.Inputs, world: World) -> Findings:
    """Every module that the file names is packed, or installed; it has what is named, and takes the parameters."""
    from steps.candidates.checks import candidate_findings

    code = world.user_code(inputs.code)
    packed = {name.split(".")[0] for name in code.modules}
    for module in world.pipeline.user_modules:
        top = module.split(".")[0]
        if top not in packed and importlib.util.find_spec(top) is None:
            yield Finding(
                where=f"module {module}",
                what="is neither beside the pipeline file nor installed",
                remedy=f"put {top}.py beside the file",
            )
    yield from candidate_findings(world.pipeline, code)


def check_packages(_inputs: Probe.Inputs, world: World) -> Findings:
    """The packages that the file asks for are there, at their versions."""
    for pin in world.pipeline.packages:
        name, _, wanted = pin.partition("==")
        found = _installed(name.partition("[")[0])
        if not found or not _same(found, wanted):
            yield Finding(
                where=f"packages: {pin}",
                what=f"is installed as {found}" if found else "is not installed",
                remedy="start with `retrain run` or `retrain submit`, which bring it along",
            )


def check_features(_: Probe.Inputs, world: World) -> Findings:
    """The column policies fit the columns' types."""
    from steps.recipe import policy_findings

    yield from policy_findings(world.pipeline)


def check_libraries(inputs: Probe.Inputs, world: World) -> Findings:
    """At least one candidate's library can be loaded."""
    notes = list(library_notes(inputs, world))
    if notes and len(notes) == len(world.pipeline.training.candidates):
        yield from notes


def library_notes(_: Probe.Inputs, world: World) -> Findings:
    """Say which candidates cannot run here, and the command that mends it."""
    for candidate in world.pipeline.training.candidates:
        if candidate.estimator == "lightgbm":
            from steps.candidates.lightgbm import lightgbm_problem

            if problem := lightgbm_problem():
                yield problem
        elif candidate.estimator == "xgboost" and importlib.util.find_spec("xgboost") is None:
            yield Finding(
                where=f"candidate {candidate.name}",
                what="XGBoost is not installed",
                remedy="pip install 'retrain[xgboost]'",
            )


def environment_notes(_: Probe.Inputs, world: World) -> Findings:
    """The environment should have a gate policy of its own, or the file a default: the model demands one."""
    known, name = world.pipeline.gates.environments, world.settings.environment
    if known and name not in known and name != "desk":
        yield Finding(where=f"environment {name}", what="has no gate policy of its own; gates.default applies")


def sensitive_notes(_: Probe.Inputs, world: World) -> Findings:
    """Say which sensitive columns leave their values in the model."""
    if world.pipeline.features.passthrough:
        return
    for name in world.pipeline.feature_columns:
        column, policy = world.pipeline.table.column(name), world.pipeline.features.policy(name)
        if column.sensitive and (column.type is ColumnType.STRING or policy.categorical):
            yield Finding(
                where=f"column {name}",
                what="is sensitive and a feature: its categories will lie in the model",
                remedy="features.columns with drop: true leaves it out",
            )


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _same(found: str, wanted: str) -> bool:
    from packaging.version import Version

    return Version(found) == Version(wanted)
