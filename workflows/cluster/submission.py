"""Bring a pipeline file, its modules and a local source to a cluster, and start a run.  Called by `retrain submit`.

Everything is known by its content: the pipeline file is an immutable ConfigMap, modules and data are objects in the
buckets, each named by its hash; what is there already stays.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts import names
from contracts.access import SUBMIT
from contracts.errors import ConfigError, Finding, NetworkError
from contracts.pipeline import Pipeline
from contracts.pipeline.source import SECRET
from contracts.stages import Parameters, decode, findings
from steps.rollout.cluster import Conflict
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import errand

_BUCKET = "retrain/data-bucket"
"""Annotation of the settings."""
_FOLLOWS_SECONDS = 60.0
"""The controller reads templates from a copy that follows: for so long a run may find none there, or the one before."""
_LOOK_SECONDS = 0.5
_SEVERAL = ("*", "?", "[", "{{")
"""In a path: a pattern, or another file each day."""

_UPLOAD = """
from pathlib import Path
from contracts.settings import load_settings
from steps.storage import Storage
storage = Storage(load_settings())
for uri, size in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    part = Path("/tmp/part")
    with part.open("wb") as file:
        while size and (chunk := sys.stdin.buffer.read(min(size, 1 << 20))):
            size -= file.write(chunk)
    if size:
        sys.exit(f"{size} bytes of {uri} are missing")
    patiently(lambda: storage.upload(part, uri))
"""


def check(given: Mapping[str, str], template: Mapping[str, Any]) -> None:
    """Check a run's parameters against the contracts of the stages and the template's own, which Argo does not.

    Raises
    ------
    ConfigError
        With a finding by every wrong one.
    """
    known = {p["name"]: p for p in template["spec"]["arguments"]["parameters"]}
    own = {names.parameter(field) for field in Parameters.model_fields}
    wrong = [
        Finding(where=name, what="is no parameter of this pipeline", remedy=f"one of {', '.join(known)}")
        for name in given if name not in known
    ]  # fmt: skip
    try:
        decode(Parameters, {name: value for name, value in given.items() if name in own})
    except ValidationError as error:
        wrong += findings(error)
    for name in given.keys() & known.keys() - own:
        allowed = known[name].get("enum")
        if allowed and given[name] not in allowed:
            wrong.append(Finding(where=name, what=f"is {given[name]!r}", remedy=f"one of {', '.join(allowed)}"))
        if name.endswith(("-memory", "-cpu")) and not (given[name].isascii() and given[name].isdigit()):
            wrong.append(Finding(where=name, what=f"is {given[name]!r}", remedy="a whole number"))
    if wrong:
        raise ConfigError("the run's parameters are wrong", findings=wrong)


def apply(namespace: Namespace, manifests: Iterable[dict[str, Any]]) -> str:
    """Make the pipeline's ConfigMap, if it is missing, and its WorkflowTemplate as compiled.

    Return the template's hash, by which `start` sees whether a run found it; empty when it was there as it is.
    """
    new = ""
    for wanted in manifests:
        if wanted["kind"] == "ConfigMap" and namespace.get("ConfigMap", wanted["metadata"]["name"]) is None:
            with contextlib.suppress(Conflict):  # someone submits the same file; its name is its hash
                namespace.create(wanted)
        elif wanted["kind"] == "WorkflowTemplate":
            digest = hashlib.sha256(json.dumps(wanted["spec"], sort_keys=True).encode()).hexdigest()
            stamped = copy.deepcopy(wanted)
            stamped["spec"].setdefault("workflowMetadata", {})["annotations"] = {names.ANNOTATION_TEMPLATE: digest}
            before = namespace.get("WorkflowTemplate", wanted["metadata"]["name"])
            after = namespace.apply(stamped)
            if before is None or before["metadata"]["generation"] != after["metadata"]["generation"]:
                new = digest
    return new


def local_source(given: str, file: Path, pipeline: Pipeline) -> Path | None:
    """Return the file that a run is to read and only this machine has, None when the cluster reads the source itself.

    Raises
    ------
    ConfigError
        It is several files, a pattern, or not there.
    """
    uris = (given,) if given else pipeline.source.uris
    local = [uri for uri in uris if not uri.startswith(("sql:", "python:")) and _path(uri)]
    if not local:
        return None
    if len(uris) > 1 or any(mark in local[0] for mark in _SEVERAL):
        raise ConfigError(
            f"the source {', '.join(uris)} is more than one file of this machine",
            remedy="bring them to a bucket, and name them with --source s3://...",
        )
    path = Path(_path(local[0])).expanduser()
    path = path if path.is_absolute() else (Path.cwd() if given else file.resolve().parent) / path
    if not path.is_file():
        raise ConfigError(f"no such file: {path}", remedy="name a file, or an s3:// URI with --source")
    return path


def upload(namespace: Namespace, store: str, data: Path | None, code: bytes) -> dict[str, str]:
    """Bring a source and packed modules into the buckets and return the parameters that name them there."""
    given: dict[str, str] = {}
    files: dict[str, Path | bytes] = {}
    if data is not None:
        with data.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        given["source"] = f"s3://{_data_bucket(namespace)}/{digest}{data.suffix}"
        files[given["source"]] = data
    if code:
        given["code"] = f"{store.rstrip('/')}/code/{hashlib.sha256(code).hexdigest()}.zip"
        files[given["code"]] = code
    if files:
        put(namespace, files)
    return given


def put(namespace: Namespace, files: Mapping[str, Path | bytes]) -> None:
    """Write objects into the buckets: URI -> a file, or its content."""
    sizes = {
        uri: len(content) if isinstance(content, bytes) else content.stat().st_size for uri, content in files.items()
    }
    words = [word for uri, size in sizes.items() for word in (uri, str(size))]
    errand(namespace, SUBMIT, _UPLOAD, *words, files=list(files.values()))


def start(
    namespace: Namespace, name: str, template: str, entrypoint: str, given: Mapping[str, str], new: str = ""
) -> None:
    """Create the Workflow of a run of a template, which is the pipeline's name.

    Parameters
    ----------
    new
        What `apply` returned.  A run that found another template, or none, is taken away and started again.

    Raises
    ------
    NetworkError
        The controller does not get to see the template.
    """
    spec: dict[str, Any] = {
        "workflowTemplateRef": {"name": template},
        "entrypoint": entrypoint,
        "arguments": {"parameters": [{"name": key, "value": value} for key, value in given.items()]},
    }
    metadata = {"name": name, "labels": {names.LABEL_PIPELINE: template}}
    workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "spec": spec}
    until = time.monotonic() + _FOLLOWS_SECONDS
    namespace.create(workflow)
    while new and _began(namespace, name, until) not in (new, None):
        namespace.delete("Workflow", name)
        if time.monotonic() > until:
            raise NetworkError(
                f"Argo's controller does not see the new template {template}",
                remedy="look whether it runs: `kubectl get pods -A -l app=workflow-controller`; then submit again",
            )
        while namespace.get("Workflow", name) is not None:
            time.sleep(_LOOK_SECONDS)
        namespace.create(workflow)


def _began(namespace: Namespace, name: str, until: float) -> str | None:
    """Wait until the controller took a run up and return the hash of the template that it found there, empty for none.

    None when it has not come to it in time: by then it reads what is there now.
    """
    while True:
        found = namespace.get("Workflow", name) or {}
        if found.get("status", {}).get("phase"):
            return str(found["metadata"].get("annotations", {}).get(names.ANNOTATION_TEMPLATE, ""))
        if time.monotonic() > until:
            return None
        time.sleep(_LOOK_SECONDS)


def _path(uri: str) -> str:
    """Return the path of a file URI or of a plain path, empty for what is elsewhere."""
    if uri.startswith("file://"):
        return uri.removeprefix("file://")
    return "" if "://" in uri or SECRET.match(uri) else uri


def _data_bucket(namespace: Namespace) -> str:
    """Return the bucket of sources, which the platform's jobs made."""
    found = namespace.get("ConfigMap", names.SETTINGS_CONFIGMAP)
    bucket = (found or {}).get("metadata", {}).get("annotations", {}).get(_BUCKET, "")
    if not bucket:
        raise ConfigError(
            f"the platform in {namespace.namespace} names no bucket for sources",
            remedy="bring the file to a bucket yourself, and name it with --source s3://...",
        )
    return str(bucket)
