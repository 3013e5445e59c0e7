"""MLflow's client and what its errors mean.  Used by `tracking` and `registry`, which are all that talks to MLflow.

MLflow takes credentials and timeouts from the environment only, so `mlflow_client` is where they are put there.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from contracts.errors import ConfigError, NetworkError, StageError, StorageError
from contracts.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FORBIDDEN = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}
_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND", "NOT_FOUND"}
_BUSY = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "INTERNAL_ERROR", "ABORTED"}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def mlflow_client(settings: Settings) -> MlflowClient:
    """Return a client of the settings' MLflow; a SQLite store is made when there is none.

    Processes that come at once wait for the one that makes it: MLflow's own migrations do not bear each other.  Nor do
    they bear an end in their middle, so a database is made under another name, and is there once it is whole.
    """
    _set_environment(settings)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it raises, with SQL parameters
    with _nothing_collected():
        import mlflow

        mlflow.set_tracking_uri(settings.tracking_uri)
        mlflow.set_registry_uri(settings.tracking_uri)
        with mlflow_errors(settings), _alone(settings.tracking_uri) as database:
            if database is not None and not database.exists():
                _make(database)
            client = mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)
            if database is not None:
                _upgrade(client)
    return client


def _make(database: Path) -> None:
    import mlflow

    part = database.with_name(f"{database.name}.part")
    for left in (part, part.with_name(f"{part.name}-journal")):
        left.unlink(missing_ok=True)
    _upgrade(mlflow.MlflowClient(f"sqlite:///{part}", f"sqlite:///{part}"))
    part.replace(database)


def _upgrade(client: MlflowClient) -> None:
    """Let both stores make or migrate their tables, which they do when they are first asked."""
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep the garbage collector still: what an import makes stays, and going through it is a fifth of its time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def mlflow_errors(settings: Settings, *, absent: bool = False) -> Iterator[None]:
    """Turn MLflow's errors into those of the table; with `absent`, ignore that something is not there.

    Raises
    ------
    NetworkError
        The server, its database or its artifact store did not answer.
    StorageError
        The SQLite database was locked.
    ConfigError
        No permission, no such object, no room, or a database that can't be opened or written.
    """
    try:
        yield
    except Exception as error:
        code = getattr(error, "error_code", "")
        if absent and code in _ABSENT:
            return
        translated = _translate(error, code, settings)
        if translated is None:
            raise
        raise translated from error


def _translate(error: Exception, code: str, settings: Settings) -> StageError | None:
    """Choose by error code and by the types of what lies beneath; message texts may hold secrets and are left out."""
    # here, where something was raised: a stage that works without S3 would import boto3 for nothing
    import requests
    import sqlalchemy.exc
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException

    from steps.storage import NO_ROOM, client_error

    kinds = (MlflowException, sqlalchemy.exc.SQLAlchemyError, ClientError, BotoCoreError, Boto3Error, OSError)
    if not isinstance(error, kinds):
        return None
    where = f"MLflow ({place(settings.tracking_uri)})"
    for cause in _causes(error):
        if isinstance(cause, sqlite3.Error):
            return _sqlite_error(cause, where)
        if isinstance(cause, ClientError):
            return client_error(cause, f"the artifacts of {where}")
        if isinstance(cause, (requests.RequestException, BotoCoreError, ConnectionError, TimeoutError)):
            return NetworkError(f"{where} did not answer: {type(cause).__name__}")
        if isinstance(cause, OSError) and cause.errno in NO_ROOM:
            return ConfigError(f"no room for the artifacts of {where}", remedy="make room on that disk")
    if isinstance(error, Boto3Error):
        return NetworkError(f"the artifacts of {where} did not answer: {type(error).__name__}")
    if code in _FORBIDDEN:
        remedy = "check RETRAIN_MLFLOW_USERNAME, RETRAIN_MLFLOW_PASSWORD and their permissions"
        return ConfigError(f"{where} refused: {code}", remedy=remedy)
    if code in _ABSENT:
        return ConfigError(
            f"{where} has not what was asked for: {code}", remedy="was it deleted? `retrain doctor` compares"
        )
    if code in _BUSY and not settings.tracking_uri.startswith("sqlite:"):
        return NetworkError(f"{where} could not serve the request: {code}")
    return None


def _sqlite_error(error: sqlite3.Error, where: str) -> StageError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED:
        return StorageError(f"{where} is locked by another process")
    return ConfigError(f"{where} can't be used: {error}", remedy="check path, permissions and free disk")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def place(uri: str) -> str:
    """Return a URI without credentials, for messages."""
    parts = urlsplit(uri)
    if not parts.hostname:
        return uri
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + parts.path


def _set_environment(settings: Settings) -> None:
    fixed = {
        "MLFLOW_TRACKING_USERNAME": settings.mlflow_username.get_secret_value(),
        "MLFLOW_TRACKING_PASSWORD": settings.mlflow_password.get_secret_value(),
        "MLFLOW_S3_ENDPOINT_URL": settings.s3_endpoint,
        "AWS_DEFAULT_REGION": settings.s3_region,
        "AWS_ACCESS_KEY_ID": settings.aws_access_key_id.get_secret_value(),
        "AWS_SECRET_ACCESS_KEY": settings.aws_secret_access_key.get_secret_value(),
    }
    os.environ.update({name: value for name, value in fixed.items() if value})
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(settings.timeout_seconds))
    set_defaults()
    if settings.s3_endpoint or settings.artifacts.startswith("s3:"):
        _bound_s3(settings)


def set_defaults() -> None:
    """Set what MLflow reads from the environment when it is imported, unless it is set already."""
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # our own retries are Argo's; MLflow's default of seven would wait for minutes inside one attempt
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _bound_s3(settings: Settings) -> None:
    """Let MLflow's clients for artifacts wait no longer and ask no more often than our own; they take no setting."""
    import boto3
    import botocore.session

    from steps.storage import s3_config

    session = botocore.session.get_session()
    session.set_default_client_config(s3_config(settings))
    boto3.setup_default_session(botocore_session=session)


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[Path | None]:
    """Hold a lock beside a SQLite database and yield its path; for others do nothing."""
    if not uri.startswith("sqlite:///"):
        yield None
        return
    path = Path(uri.removeprefix("sqlite:///"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f"{path.name}.lock").open("a")
    except OSError as error:
        raise ConfigError(
            f"MLflow ({uri}) can't be used: {error.strerror}", remedy="check path and permissions"
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield path
