"""Find everything that is wrong before anything is written.  Called as the `preflight` stage, and by `retrain doctor`.

Every check returns findings; none of them stops the others.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from contracts.errors import (
    CONFIG,
    NETWORK,
    STORAGE,
    ConfigError,
    ErrorClass,
    Finding,
    NetworkError,
    StageError,
    StorageError,
)
from contracts.pipeline.table import ColumnType
from contracts.settings import variable
from contracts.stages import Parameters, Preflight, contract, decode, findings
from contracts.stages import encode as text
from serving.user_code import UserCode, unpack
from steps.candidate_checks import candidate_findings
from steps.storage import local_path
from steps.world import World

Findings = Iterator[Finding]
Found = tuple[ErrorClass, Finding]


def preflight(inputs: Preflight.Inputs, *, world: World) -> Preflight.Outputs:
    """Check parameters, settings, endpoints, source, storage, disk and libraries.

    Raises
    ------
    ConfigError
        With every finding of every check.
    NetworkError, StorageError
        When all that was found may pass: something did not answer, or was busy.
    """
    wrong, parameters = check_parameters(inputs)
    found: list[Found] = [(CONFIG, finding) for finding in wrong]
    for check in CHECKS:
        found += _collect(check, inputs, world)
    if found:
        _raise(found)
    as_of = parameters.as_of if parameters and parameters.as_of else world.now()
    notes = [*library_notes(world), *sensitive_notes(world)]
    for note in notes:
        world.log.warning("%s", note)
    return Preflight.Outputs(
        as_of=as_of,
        summary=f"{len(CHECKS) + 1} checks passed, as of {text(as_of)}" + (f", {len(notes)} notes" if notes else ""),
    )


def check_parameters(inputs: Preflight.Inputs) -> tuple[list[Finding], Parameters | None]:
    """Check the submitted values against their declaration: Argo itself checks neither types nor enums."""
    texts = {field.replace("_", "-"): value for field, value in inputs.model_dump().items()}
    try:
        return [], decode(Parameters, texts)
    except ValidationError as error:
        return findings(error), None


def check_contract(_: Preflight.Inputs, world: World) -> Findings:
    """The template was compiled for the stages that this image has: else one would fail for it after hours."""
    wanted = os.environ.get(variable("contract"), "")
    if wanted and wanted != contract():
        yield Finding(
            where=variable("steps_image"),
            what=f"the image has stages {contract()} of retrain {world.settings.code_commit[:12] or 'at the desk'}, "
            f"the template was compiled for stages {wanted}",
            remedy="compile and apply the pipeline with the image's retrain, or name the image of the template's",
        )


def check_environment(_: Preflight.Inputs, world: World) -> Findings:
    """The environment should have a gate policy of its own, or the file a default: the model demands one."""
    known = world.pipeline.gates.environments
    name = world.settings.environment
    if known and name not in known and name != "desk":
        world.log.warning("environment %r has no gate policy of its own; gates.default applies", name)
    yield from ()


def check_store(_: Preflight.Inputs, world: World) -> Findings:
    """The store takes an object and gives it back."""
    uri = world.storage.uri("reports", world.workflow, "preflight.probe")
    world.storage.write(uri, b"probe")
    if world.storage.read(uri) != b"probe":
        yield Finding(where="RETRAIN_STORE", what=f"{world.settings.store} does not give back what was written")
    world.storage.delete(uri)


def check_disk(_: Preflight.Inputs, world: World) -> Findings:
    """There is room for work in progress, and for the store where it is a folder."""
    folders = {"scratch": Path(tempfile.gettempdir())}
    if store := local_path(world.settings.store):
        store.mkdir(parents=True, exist_ok=True)
        folders["store"] = store
    for name, folder in folders.items():
        free = shutil.disk_usage(folder).free // 2**20
        if free < world.settings.min_free_mib:
            yield Finding(
                where=name,
                what=f"{free} MiB free, {world.settings.min_free_mib} needed",
                remedy="make room, or lower RETRAIN_MIN_FREE_MIB",
            )


def check_tracking(_: Preflight.Inputs, world: World) -> Findings:
    """MLflow answers, and takes our credentials."""
    uri = world.settings.tracking_uri
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        user, password = (
            world.settings.mlflow_username.get_secret_value(),
            world.settings.mlflow_password.get_secret_value(),
        )
        try:
            answer = httpx.post(
                f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search",
                json={"max_results": 1}, auth=(user, password) if user else None, timeout=10,
            )  # fmt: skip
        except httpx.HTTPError as error:
            raise NetworkError(
                f"RETRAIN_TRACKING_URI: {parts.hostname}:{parts.port or ''} does not answer ({type(error).__name__})",
                remedy="is the name right, and MLflow up?",
            ) from None
        if answer.status_code in (401, 403):
            yield Finding(
                where="RETRAIN_MLFLOW_USERNAME",
                what=f"MLflow answers {answer.status_code}",
                remedy="check user, password and permissions",
            )
        elif answer.status_code == 429 or answer.status_code >= 500:
            raise NetworkError(f"RETRAIN_TRACKING_URI: MLflow answers {answer.status_code}")
        elif answer.status_code >= 400:
            yield Finding(
                where="RETRAIN_TRACKING_URI",
                what=f"MLflow answers {answer.status_code}",
                remedy="is this MLflow, and its allowed hosts right?",
            )
    elif parts.scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///")).parent
        if not folder.is_dir():
            yield Finding(where="RETRAIN_TRACKING_URI", what=f"the folder of {uri} does not exist", remedy="create it")
    elif parts.scheme not in ("postgresql", "mysql"):
        yield Finding(
            where="RETRAIN_TRACKING_URI",
            what=f"{parts.scheme or 'no scheme'} is not a tracking store with a registry",
            remedy="http(s)://, sqlite:///",
        )


def check_ledger(_: Preflight.Inputs, world: World) -> Findings:
    """The ledger can be read."""
    if not world.settings.ledger.get_secret_value():
        yield Finding(
            where="RETRAIN_LEDGER", what="is missing", remedy="set the ledger's SQLAlchemy URL in the secrets"
        )
        return
    world.ledger.head(world.pipeline.name)


def check_source(inputs: Preflight.Inputs, world: World) -> Findings:
    """The source is there and can be read; nothing of it is."""
    from steps.sources import probe

    yield from probe(inputs.source, inputs.as_of, world=world)


def check_code(inputs: Preflight.Inputs, world: World) -> Findings:
    """Every module that the file names is packed, or installed; it has what is named, and takes the parameters."""
    code = unpack(world.storage.read(inputs.code)) if inputs.code else UserCode({})
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


def check_features(_: Preflight.Inputs, world: World) -> Findings:
    """The column policies fit the columns' types."""
    from steps.recipe import policy_findings

    yield from policy_findings(world.pipeline)


def check_libraries(_: Preflight.Inputs, world: World) -> Findings:
    """At least one candidate's library can be loaded."""
    notes = list(library_notes(world))
    if notes and len(notes) == len(world.pipeline.training.candidates):
        yield from notes


def library_notes(world: World) -> Findings:
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


def check_server(_: Preflight.Inputs, world: World) -> Findings:
    """At the desk, the server's port is free, or ours."""
    settings = world.settings
    if settings.deploy_target == "process" and settings.server_home:
        from steps.rollout.process import Server

        if problem := Server.of(settings, world.pipeline.name).port_problem():
            yield problem


def sensitive_notes(world: World) -> Findings:
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


CHECKS: tuple[Callable[[Preflight.Inputs, World], Findings], ...] = (
    check_contract, check_environment, check_store, check_disk, check_tracking, check_ledger, check_source, check_code,
    check_features, check_libraries, check_server,
)  # fmt: skip


def _collect(
    check: Callable[[Preflight.Inputs, World], Findings], inputs: Preflight.Inputs, world: World
) -> list[Found]:
    name = check.__name__.removeprefix("check_")
    try:
        return [(CONFIG, finding) for finding in check(inputs, world)]
    except StageError as error:
        found = [*error.findings] or [Finding(where=name, what=error.message, remedy=error.remedy)]
        return [(error.row, finding) for finding in found]
    except OSError as error:
        finding = Finding(where=name, what=f"{type(error).__name__}: {error}", remedy="check path and permissions")
        return [(CONFIG, finding)]


def _raise(found: list[Found]) -> NoReturn:
    """Raise what was found: a passing fault alone keeps its class, so that it is tried again; else class config."""
    message = f"{len(found)} finding{'s' if len(found) > 1 else ''} before the start"
    rows = {row for row, _ in found}
    kind: type[StageError] = ConfigError
    if rows <= {NETWORK, STORAGE}:
        kind = NetworkError if NETWORK in rows else StorageError
    raise kind(message, findings=[finding for _, finding in found])
