"""`retrain run` for a manifest that is not retrain's: any Workflow that the local runner supports.

Called by `run` for a file whose objects are Argo's.  ``docs/local-runner.md`` says what is supported.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
import yaml
from pydantic import TypeAdapter, ValidationError

from contracts.errors import EXIT_INTERRUPTED, ConfigError, class_of_failure
from contracts.settings import find_home, variable
from workflows.cli.display import Progress, console
from workflows.cli.options import pairs
from workflows.documents import documents

if TYPE_CHECKING:
    from workflows.local.state import RunState

EXIT_SUSPENDED = 4
"""The run waits for somebody's answer."""
_ARGO = "argoproj.io/"


def read_manifests(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of Argo's; none where it is something else, or is no YAML at all."""
    try:
        text = file.read_text(encoding="utf-8")
        if _ARGO not in text:
            return []
        found = documents(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    objects = [part for part in found if isinstance(part, dict)]
    argo = any(str(part.get("apiVersion", "")).startswith(_ARGO) for part in objects)
    return objects if argo and len(objects) == len(found) else []


def run_manifests(
    manifests: Sequence[dict[str, Any]], *, entrypoint: str | None, parameters: Sequence[str], answers: Sequence[str],
    new: bool, json_output: bool,
) -> NoReturn:  # fmt: skip
    """Run the objects of one file, or go on with the run of it that was cut off or suspended; leave with its exit code.

    Raises
    ------
    ConfigError
        Before anything starts, with a finding by its path for everything that is not supported; or there is an answer,
        and no run that waits for it.
    """
    from workflows.local import runner, state

    home = find_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    images, given, told = _local_images(home), pairs(parameters), _answers(answers)
    secrets = [m for m in manifests if m.get("kind") == "Secret"]
    facts = json.dumps([list(manifests), entrypoint, sorted(given.items())], sort_keys=True, default=str)
    digest = hashlib.sha256(facts.encode()).hexdigest()
    unfinished = None if new else state.find_unfinished(home, digest)
    if told and not unfinished:
        remedy = "leave --answer out to start one; a run is found by the same file and parameters"
        raise ConfigError(f"no run waits for an answer from {', '.join(told)}", remedy=remedy)
    out = console(stderr=json_output)
    with Progress(out, sys.stderr if json_output else sys.stdout) as progress:
        if unfinished:
            final = runner.resume(
                home, unfinished, images=images, secrets=secrets, answers=told, on_change=progress.update
            )
        else:
            final = runner.execute(
                manifests, home=home, images=images, entrypoint=entrypoint, parameters=given, digest=digest,
                on_change=progress.update,
            )  # fmt: skip
    if json_output:
        typer.echo(state.to_json(final))
    else:
        out.print(f"{final.name}  {final.phase}  {final.message}".rstrip(), markup=False)
    raise typer.Exit(_exit_code(final, out))


def _exit_code(final: RunState, out: Any) -> int:
    if final.interrupted:
        out.print(f"{final.name} was interrupted; the same command goes on with it")
        return EXIT_INTERRUPTED
    if final.finished is None:
        for node in final.suspended:
            out.print(f"{node} is suspended; the same command with --answer {node} goes on with it", markup=False)
        return EXIT_SUSPENDED
    bad = [node for node in final.nodes.values() if node.type == "Pod" and node.phase in ("Failed", "Error")]
    if final.phase == "Succeeded":
        return 0
    return class_of_failure(bad[-1].phase, bad[-1].message).exit_code if bad else ConfigError("").row.exit_code


def _local_images(home: Path) -> dict[str, list[str]]:
    """Return what stands for an image on this machine: words that take the place of a command's first word.

    From the JSON map in ``RETRAIN_IMAGES``, else from the file ``images.json`` in the home.

    Raises
    ------
    ConfigError
        It is no map of texts to lists of texts.
    """
    file = home / "images.json"
    where, text = variable("images"), os.environ.get(variable("images"), "")
    if not text:
        where, text = str(file), file.read_text(encoding="utf-8") if file.is_file() else "{}"
    try:
        return TypeAdapter(dict[str, list[str]]).validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: {error.errors()[0]['msg']}", remedy='a JSON map such as {"alpine:3.20": [], "py": ["python3"]}'
        ) from None


def _answers(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read NODE, or NODE:output=value, as often as there are outputs."""
    found: dict[str, dict[str, str]] = {}
    for word in words:
        head, mark, value = word.partition("=")
        node, colon, output = head.rpartition(":") if mark else (word, "", "")
        if mark and not colon:
            raise typer.BadParameter(f"{word} is neither NODE nor NODE:OUTPUT=VALUE", param_hint="--answer")
        found.setdefault(node, {}).update({output: value} if mark else {})
    return found
