"""Start a `release` of a version that is there, on this machine or on a cluster.  Called by `approve` and `rollback`.

Here it runs by the pipeline file that a run was given, which is kept with it, and by today's settings; on a cluster by
the pipeline's template there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from contracts.errors import ConfigError
from contracts.names import PIPELINE_FILE, RELEASE
from contracts.pipeline import load_pipeline
from workflows.cli.request import run_name, run_parameters

if TYPE_CHECKING:
    from datetime import datetime

    from contracts.references import LedgerEntry
    from workflows.cluster.approvals import Said
    from workflows.cluster.connection import Namespace


def release_here(
    home: Path, word: LedgerEntry, *, run: str = "", again: str, require_promoted: bool, json_output: bool
) -> None:  # fmt: skip
    """Release a version on a person's word, or go on with the release that was begun on it; leave with its code.

    It runs by the pipeline file of `run`, or of the model's newest run; `again` is the command that goes on with it.

    Raises
    ------
    ConfigError
        No run of this model is kept here.
    """
    from workflows.cli.run import Desk, execute

    file = _pipeline_file(home, word.model, run, word.version)
    parameters = {**run_parameters(source="", as_of="", version=word.version, no_cache=False), "code": ""}
    execute(
        Desk.open(file, load_pipeline(file)), RELEASE, parameters, what=f"the release of version {word.version}",
        new=False, since=word.at, again=again, warm=True, require_promoted=require_promoted, json_output=json_output,
    )  # fmt: skip


def said_already(word: LedgerEntry, at: datetime) -> str:
    """Say of a word that was in the ledger before this moment that it stays as it is; nothing of a new one."""
    return f"; said already at {word.at:%F %T} UTC, and kept with that reason: {word.reason}" if word.at < at else ""


def release_there(
    cluster: Namespace, said: Said, context: str, *, wait: bool, require_promoted: bool, json_output: bool
) -> None:  # fmt: skip
    """Start the release on a cluster that enters a person's word and acts on it; follow it, leave with its code."""
    from workflows.cli.following import follow
    from workflows.cluster.approvals import release

    word = said.word
    how = "" if said.authenticated else "; nobody vouches for the name: kind/approvals.yaml is not installed there"
    typer.echo(f"{word.model} version {word.version}: {word.decision} by {word.by} ({said.name}){how}", err=json_output)
    name = run_name(word.model)
    release(cluster, said, name)
    follow(
        cluster, name, context, wait=wait, require_promoted=require_promoted, json_output=json_output,
        what=f"{word.model}: release of version {word.version}",
    )  # fmt: skip


def _pipeline_file(home: Path, model: str, run: str, version: int) -> Path:
    """Write the pipeline file of a run into the home by its hash, and return its path."""
    from workflows.local import runner, state

    for name in [kept.name for kept in state.list_runs(home) if kept.pipeline == model and run in ("", kept.name)]:
        manifests = json.loads((state.run_folder(home, name) / runner.FROZEN).read_text(encoding="utf-8"))
        key = Path(PIPELINE_FILE).name
        for text in (m["data"][key] for m in manifests if m["kind"] == "ConfigMap" and key in m.get("data", {})):
            path = home / "pipelines" / f"{model}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.yaml"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            state.write_private(path, text)
            return path
    raise ConfigError(
        f"no run of {model} is kept in {home}", remedy=f"`retrain run FILE --entrypoint release --version {version}`"
    )
