"""Does a cluster do the whole of it: ``python -m workflows.cluster.smoke FILE -n NAMESPACE``.  Called by `make smoke`.

It submits a pipeline, waits for the run, asks the served version for a prediction and for where it is from.  One line
a step; the exit code is that of the class of what failed, 3 where the run ended without a version that serves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from contracts.commands import where
from contracts.errors import BY_EXIT_CODE, CODE, StageError, error_type
from workflows.cli.main import show_error
from workflows.cli.options import CONTEXT, NAMESPACE
from workflows.cli.summary import example
from workflows.cluster.connection import Namespace

T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """What answers."""

    model: str
    version: int
    url: str


def main(
    file: Annotated[str, typer.Argument(help="The pipeline file.")] = "adult.yaml",
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Submit, wait, predict, ask for the lineage; stop at the first that fails."""
    try:
        place = Namespace.connect(namespace, context)
        options = [word for word in where(place.namespace, context).split(" ") if word]
        run = _told("submit", lambda: submitted(file, options), lambda run: f"{run['workflow']}: {run['outcome']}")
        served = left_serving(run, options)
        _told("predict", lambda: predicted(place, served), lambda label: f"{served.url} answers {label}")
        _told("lineage", lambda: explained(served, options), str)
    except StageError as error:
        show_error(error)
        raise typer.Exit(error.row.exit_code) from None


def submitted(file: str, options: list[str]) -> Mapping[str, Any]:
    """Run a pipeline to its end and return its result."""
    return dict(_retrain("submit", file, *options, "--json"))


def left_serving(run: Mapping[str, Any], options: list[str]) -> Served:
    """Return what serves after a run: its version, or the one that stayed; leaves with 3 where none does."""
    if run["outcome"] in ("promoted", "unchanged"):
        return Served(str(run["pipeline"]), int(run["version"]), str(run["url"]))
    try:
        found = _retrain("lineage", f"{run['pipeline']}@production", *options, "--json")
    except StageError:
        found = {"serving": None}
    if not found["serving"]:
        typer.echo(f"submit   {run['workflow']} ended as {run['outcome']}, and no version serves", err=True)
        raise typer.Exit(3)
    return Served(str(run["pipeline"]), int(found["version"]), str(found["serving"]["url"]))


def predicted(place: Namespace, served: Served) -> str:
    """Return what the version answers to the example that its server documents, through the API server.

    Raises
    ------
    NetworkError
        Nothing answers.
    StageError
        Another version answers.
    """
    base = place.service(served.url)
    described = json.loads(place.fetch(f"{base}/openapi.json"))
    answer = json.loads(place.send(f"{base}/v1/predict", {"instances": [example(described)]}))
    if answer["model"]["version"] != served.version:
        raise StageError(f"version {answer['model']['version']} answers, not {served.version}")
    return json.dumps({key: value for key, value in answer["predictions"][0].items() if key != "id"})


def explained(served: Served, options: list[str]) -> str:
    """Return a line of where the version is from.

    Raises
    ------
    StageError
        The lineage is not that of a version that serves and answers.
    """
    found = _retrain("lineage", f"{served.model}@{served.version}", *options, "--json")
    serving = found["serving"] or {}
    if found["state"] != "serving" or serving.get("answers") is False:
        raise StageError(f"the ledger says {found['state']} of version {served.version}; {'; '.join(found['notes'])}")
    data, code = found["dataset"]["sha256"][:12], found["code"]["commit"][:12]
    return f"version {served.version} of {served.model}: dataset {data}, commit {code or 'unknown'}"


def _told(what: str, step: Callable[[], T], says: Callable[[T], str]) -> T:
    began = time.monotonic()
    done = step()
    typer.echo(f"{what:<8} {time.monotonic() - began:6.1f} s  {says(done)}")
    return done


def _retrain(*words: str, passes: tuple[int, ...] = (0,)) -> Any:
    """Run the command as a person would, and read its JSON."""
    command = [sys.executable, "-m", "workflows.cli.main", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode in passes:
        return json.loads(done.stdout)
    raise error_type(BY_EXIT_CODE.get(done.returncode, CODE))(
        f"`retrain {' '.join(words)}` ended with {done.returncode}", remedy="its own message above"
    )


if __name__ == "__main__":
    typer.run(main)
