"""A pod that does one thing with the rights of one duty, where a person's machine reaches neither store nor ledger.

Called to bring data and code into the buckets (`SUBMIT`), and to read reports and lineage (`ASK`).  Its program is a
few lines of Python on the steps image; it answers on standard output.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from contracts import names
from contracts.access import ACCESS
from contracts.errors import BY_EXIT_CODE, CODE, NetworkError, error_type
from contracts.settings import variable
from steps.rollout.objects import RESTRICTED_CONTAINER, RESTRICTED_POD
from workflows.cluster.connection import Namespace

_PATIENCE_SECONDS = 180
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
    print(error.message + (" (" + error.remedy + ")" if error.remedy else ""))
    sys.exit(error.row.exit_code)
except ImportError as error:
    print(f"the platform's image has another retrain than this command: {error} (`make images push platform`)")
    sys.exit(78)  # class config
"""


def answer(namespace: Namespace, duty: str, program: str, *arguments: str, patience: float = _PATIENCE_SECONDS) -> Any:
    """Run a program that prints JSON on its last line, and return what that says; raises as `errand`."""
    return json.loads(errand(namespace, duty, program, *arguments, patience=patience).strip().splitlines()[-1])


def errand(
    namespace: Namespace, duty: str, program: str, *arguments: str, files: Sequence[Path | bytes] = (),
    patience: float = _PATIENCE_SECONDS,
) -> str:  # fmt: skip
    """Run a program in a pod of a duty, hand it files on its standard input one after the other; return its answer.

    Parameters
    ----------
    patience
        Seconds that it may take.

    Raises
    ------
    StageError
        Of the class that the program ended with, with what it said.
    NetworkError
        The pod did not start, or did not end.
    """
    name = f"retrain-{duty}-{os.urandom(4).hex()}"
    namespace.create(_pod(namespace, duty, name, program, arguments, stdin=bool(files)))
    try:
        if files:
            _wait(namespace, name, "Running", "Succeeded", "Failed")
            namespace.feed(name, (chunk for file in files for chunk in _chunks(file)))
        ended = _wait(namespace, name, "Succeeded", "Failed", patience=patience)
        said = "\n".join(namespace.log(name, "main", previous=False, lines=1_000_000))
    finally:
        namespace.delete("Pod", name)
    if ended["status"]["phase"] == "Failed":
        codes = [s["state"].get("terminated", {}).get("exitCode") for s in ended["status"].get("containerStatuses", ())]
        last = said.strip().splitlines()[-1:] or ["it ended without a word"]
        raise error_type(BY_EXIT_CODE.get(codes[0] if codes else 0, CODE))(f"{duty} on the cluster: {last[0]}")
    return said


def _pod(
    namespace: Namespace, duty: str, name: str, program: str, arguments: tuple[str, ...], *, stdin: bool
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
        "resources": _SIZES,
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
