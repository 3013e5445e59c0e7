"""What MLflow's server lets a duty do, asked over HTTP: importing MLflow would take longer than all the asking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from contracts.access import ACCESS
from contracts.errors import Finding, NetworkError
from contracts.names import tag
from contracts.stages import Train
from steps.world import World

_FORBIDDEN = (401, 403)
_ABSENT = 404
_CREDENTIALS = "RETRAIN_MLFLOW_USERNAME"


def mlflow_findings(world: World) -> Iterator[Finding]:
    """Yield what stands in the way of the world's duty.

    Raises
    ------
    NetworkError
        MLflow does not answer, or not now.
    """
    server = _Server(world)
    status, _ = server.ask("POST", "experiments/search", max_results=1)
    if status in _FORBIDDEN:
        remedy = "check user, password and permissions"
        yield Finding(where=_CREDENTIALS, what=f"MLflow answers {status}", remedy=remedy)
        return
    if status >= 400:
        remedy = "is this MLflow, and its allowed hosts right?"
        yield Finding(where="RETRAIN_TRACKING_URI", what=f"MLflow answers {status}", remedy=remedy)
        return
    rights = set(ACCESS[world.duty].mlflow)
    if ("experiment", "EDIT") in rights:
        yield from _experiment(server, world)
    if ("registered_model", "MANAGE") in rights:
        yield from _registry(server, world, creates=("workspace", "USE") in rights)


def _experiment(server: _Server, world: World) -> Iterator[Finding]:
    """Tag the pipeline's experiment, which `train` makes where there is none, and take the tag back."""
    name = world.pipeline.name
    status, found = server.ask("GET", "experiments/get-by-name", experiment_name=name)
    experiment = found.get("experiment", {})
    if experiment.get("lifecycle_stage", "active") != "active":
        remedy = "restore it there, or rename the pipeline"
        yield Finding(where=f"experiment {name}", what="was deleted in MLflow", remedy=remedy)
        return
    identity = experiment.get("experiment_id")
    if status == _ABSENT and world.duty == Train.name:
        place = {"artifact_location": f"{world.settings.artifacts.rstrip('/')}/{name}"}
        status, made = server.ask(
            "POST", "experiments/create", name=name, **(place if world.settings.artifacts else {})
        )
        if status in _FORBIDDEN:
            yield _refused(f"create experiment {name}", status)
        identity = made.get("experiment_id")
    if identity:
        key = tag(f"preflight.{world.duty}")
        status, _ = server.ask(
            "POST", "experiments/set-experiment-tag", experiment_id=identity, key=key, value=world.workflow
        )
        if status in _FORBIDDEN:
            yield _refused(f"write to experiment {name}", status)
        else:
            server.ask("POST", "experiments/delete-experiment-tag", experiment_id=identity, key=key)


def _registry(server: _Server, world: World, *, creates: bool) -> Iterator[Finding]:
    """Tag the registered model and take the tag back; where there is none, make one of another name for a moment."""
    name, key = world.pipeline.name, tag(f"preflight.{world.duty}")
    status, _ = server.ask("GET", "registered-models/get", name=name)
    if status == _ABSENT and creates:
        trial = f"{name}-preflight-{world.workflow}"
        status, _ = server.ask("POST", "registered-models/create", name=trial)
        if status in _FORBIDDEN:
            yield _refused("create registered models", status)
        else:
            server.ask("DELETE", "registered-models/delete", name=trial)
    elif status in _FORBIDDEN:
        yield _refused(f"read registered model {name}", status)
    elif status < 400:
        status, _ = server.ask("POST", "registered-models/set-tag", name=name, key=key, value=world.workflow)
        if status in _FORBIDDEN:
            yield _refused(f"write to registered model {name}", status)
        else:
            server.ask("DELETE", "registered-models/delete-tag", name=name, key=key)


def _refused(what: str, status: int) -> Finding:
    return Finding(
        where=_CREDENTIALS,
        what=f"MLflow does not let its user {what}: {status}",
        remedy="give it what docs/rights.md says of this stage",
    )


@dataclass(frozen=True)
class _Server:
    """MLflow's REST interface with the duty's credentials."""

    world: World

    def ask(self, method: str, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Return status and answer of a request; raises NetworkError where there is none, or none for now."""
        settings = self.world.settings
        user, password = settings.mlflow_username.get_secret_value(), settings.mlflow_password.get_secret_value()
        where = urlsplit(settings.tracking_uri)
        given: dict[str, Any] = {"params": fields} if method == "GET" else {"json": fields}
        try:
            answer = httpx.request(
                method, f"{settings.tracking_uri.rstrip('/')}/api/2.0/mlflow/{path}",
                auth=(user, password) if user else None, timeout=10, **given,
            )  # fmt: skip
        except httpx.HTTPError as error:
            raise NetworkError(
                f"RETRAIN_TRACKING_URI: {where.hostname}:{where.port or ''} does not answer ({type(error).__name__})",
                remedy="is the name right, and MLflow up?",
            ) from None
        if answer.status_code == 429 or answer.status_code >= 500:
            raise NetworkError(f"RETRAIN_TRACKING_URI: MLflow answers {answer.status_code}")
        try:
            body = answer.json()
        except ValueError:
            body = {}
        return answer.status_code, body if isinstance(body, dict) else {}
