"""A pod that does one thing with the rights of one duty, where a person's machine reaches neither store nor ledger.

Called to bring data and code into the buckets (`SUBMIT`), and to read reports and lineage (`ASK`).  Its program is a
few lines of Python on the steps image; it answers on standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts import names
from contracts.access import ACCESS
from contracts.errors import BY_EXIT_CODE, ErrorReport, NetworkError, StageError, class_of_failure, error_type
from contracts.settings import variable
from steps.rollout.objects import RESTRICTED_CONTAINER, RESTRICTED_POD
from workflows.cluster.connection import Namespace

_PATIENCE_SECONDS = 180
_TOLD_SECONDS = 5.0
"""A kubelet tells of the end of a container within that."""
_CHUNK = 256 * 1024
_SIZES = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}

# A network policy takes hold a moment after its pod has an address.
_FRAME = """
import sys, time
from contracts.errors import NetworkError, StageError

def patiently(action):
    for left in range(30, -1, -1):
        try:
            return action()
        except NetworkError:
            if not left:
                raise
            time.sleep(1)

def main():
{program}

try:
    main()
except StageError as error:
    print(error.report("").model_dump_json())
    sys.exit(error.row.exit_code)
except ImportError as error:
    print(f"the platform's image has another retrain than this command: {error} (`make images push platform`)")
    sys.exit(78)  # class config
"""


def answer(
    namespace: Namespace, duty: str, program: str, *arguments: str, patience: float = _PATIENCE_SECONDS,
    resources: Mapping[str, Any] = _SIZES,
) -> Any:  # fmt: skip
    """Run a program that prints JSON on its last line, and return what that says; raises as `errand`."""
    said = errand(namespace, duty, program, *arguments, patience=patience, resources=resources)
    return json.loads(said.strip().splitlines()[-1])


def errand(
    namespace: Namespace, duty: str, program: str, *arguments: str, files: Sequence[Path | bytes] = (),
    patience: float = _PATIENCE_SECONDS, resources: Mapping[str, Any] = _SIZES,
) -> str:  # fmt: skip
    """Run a program in a pod of a duty, hand it files on its standard input one after the other; return its answer.

    Parameters
    ----------
    patience
        Seconds that it may take.
    resources
        Requests and limits of its container.

    Raises
    ------
    StageError
        Of the class that the program ended with, with what it said; or of that of how its pod was ended.
    NetworkError
        The pod did not start, or did not end.
    """
    name = f"retrain-{duty}-{os.urandom(4).hex()}"
    namespace.create(_pod(namespace, duty, name, program, arguments, resources, stdin=bool(files)))
    try:
        if files and _wait(namespace, name, "Running", "Succeeded", "Failed")["status"]["phase"] == "Running":
            _feed(namespace, name, files)
        ended = _wait(namespace, name, "Succeeded", "Failed", patience=patience)
        said = "\n".join(namespace.log(name, "main", previous=False, lines=1_000_000))
    finally:
        namespace.delete("Pod", name)
    if ended["status"]["phase"] == "Failed":
        raise failure(duty, said, ended["status"])
    return said


def failure(duty: str, said: str, status: Mapping[str, Any]) -> StageError:
    """Return what became of a program, from what it wrote and the status of its pod."""
    containers = status.get("containerStatuses", ())
    ended = next((each["state"]["terminated"] for each in containers if "terminated" in each["state"]), None)
    why = [status.get("reason"), status.get("message")]
    if ended:
        why.append(f"{ended.get('reason', 'Error')} (exit code {ended['exitCode']})")
    how = ": ".join(filter(None, why)) or "it ended without a word"
    row = class_of_failure("Failed" if ended else "Error", how)
    last = (said.strip().splitlines() or [""])[-1]
    if not (ended and ended["exitCode"] in BY_EXIT_CODE):
        return error_type(row)(f"{duty} on the cluster: {f'{last} ({how})' if last else how}")
    try:
        report = ErrorReport.model_validate_json(last)
    except ValidationError:
        return error_type(row)(f"{duty} on the cluster: {last or how}")
    return error_type(row)(report.message, findings=report.findings, remedy=report.remedy)


def _feed(namespace: Namespace, name: str, files: Sequence[Path | bytes]) -> None:
    try:
        namespace.feed(name, (chunk for file in files for chunk in _chunks(file)))
    except StageError:
        with contextlib.suppress(NetworkError):  # one that ended meanwhile has said why
            _wait(namespace, name, "Succeeded", "Failed", patience=_TOLD_SECONDS)
            return
        raise


def _pod(
    namespace: Namespace,
    duty: str,
    name: str,
    program: str,
    arguments: tuple[str, ...],
    resources: Mapping[str, Any],
    *,
    stdin: bool,
) -> dict[str, Any]:
    indented = "\n".join(f"    {line}" for line in program.strip().splitlines())
    container = {
        "name": "main",
        "image": namespace.settings[variable("steps_image")],
        "command": ["python", "-c", _FRAME.replace("{program}", indented), *arguments],
        "stdin": stdin,
        "stdinOnce": stdin,
        "envFrom": [
            {"configMapRef": {"name": names.SETTINGS_CONFIGMAP}},
            {"secretRef": {"name": names.STAGE_SECRET.format(stage=duty), "optional": True}},  # or a workload identity
        ],
        "resources": resources,
        "securityContext": RESTRICTED_CONTAINER,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  in the container
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {names.LABEL_STAGE: duty}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": names.STEP_SERVICE_ACCOUNT.format(stage=duty),
            "automountServiceAccountToken": ACCESS[duty].token,
            "activeDeadlineSeconds": 3600,
            "securityContext": RESTRICTED_POD,
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def _wait(
    namespace: Namespace, name: str, *phases: str, patience: float = _PATIENCE_SECONDS
) -> dict[str, Any]:  # fmt: skip
    deadline = time.monotonic() + patience
    while True:
        pod = namespace.get("Pod", name)
        if pod is None:
            raise NetworkError(f"the pod {name} was removed before it answered", remedy="try again")
        if pod["status"].get("phase") in phases:
            return pod
        if time.monotonic() > deadline:
            raise NetworkError(f"the pod {name} did not come to {phases[0]}: {_reason(pod)}")
        time.sleep(0.3)


def _reason(pod: dict[str, Any]) -> str:
    waiting = [s.get("state", {}).get("waiting") for s in pod["status"].get("containerStatuses", [])]
    found = [f"{w.get('reason')}: {w.get('message', '')}" for w in waiting if w]
    return "; ".join([*found, *(c["message"] for c in pod["status"].get("conditions", []) if c.get("message"))])


def _chunks(file: Path | bytes) -> Iterator[bytes]:
    if isinstance(file, bytes):
        for start in range(0, len(file), _CHUNK):
            yield file[start : start + _CHUNK]
        return
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            yield chunk
