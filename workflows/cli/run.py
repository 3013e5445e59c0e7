"""`retrain run`: compile a pipeline file and execute the compiled manifest on this machine."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from contracts import names
from contracts.access import ACCESS
from contracts.errors import EXIT_INTERRUPTED, ConfigError
from contracts.pipeline import Pipeline, load_pipeline
from contracts.settings import Settings, find_home, secret_fields, sizes, variable
from workflows.cli.desk import desk_environment, desk_packages, desk_settings, make_signing_key
from workflows.cli.display import Progress, console
from workflows.cli.options import (
    AS_OF,
    NO_CACHE,
    REQUIRE_PROMOTED,
    RESULT_AS_JSON,
    SOURCE,
    VERSION,
    check_options,
)
from workflows.cli.request import packed_code, run_name, run_parameters
from workflows.documents import documents

if TYPE_CHECKING:
    from workflows.local.state import RunState


def run(
    file: Annotated[Path, typer.Argument(help="The pipeline file, or any manifest of an Argo Workflow.")],
    entrypoint: Annotated[
        str, typer.Option(help="retrain (the whole way) or release (a version already there); a manifest's template.")
    ] = "",
    source: SOURCE = "",
    as_of: AS_OF = "",
    version: VERSION = None,
    no_cache: NO_CACHE = False,
    new: Annotated[bool, typer.Option("--new", help="Start anew even when a run of this file was cut off.")] = False,
    require_promoted: REQUIRE_PROMOTED = False,
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="Of a manifest: NAME=VALUE, as often as needed.")
    ] = None,
    answer: Annotated[
        list[str] | None, typer.Option(help="Of a suspended manifest: NODE or NODE:OUTPUT=VALUE to go on with.")
    ] = None,
    json_output: RESULT_AS_JSON = False,
    warm: Annotated[
        bool,
        typer.Option(envvar=variable("warm"), help="Fork the steps from a process that has the imports done (Linux)."),
    ] = True,
) -> None:
    """Run a pipeline on this machine, from raw data to a version that serves.

    A run that was cut off goes on where it stood.  Exit codes: 0 for every outcome (3 with --require-promoted),
    65 data, 78 configuration, 75 network, 74 storage, 70 a defect.

    [bold]Examples[/bold]

      retrain run adult.yaml

      retrain run churn.yaml --source exports/2026-11.csv --as-of 2026-11-30T00:00:00Z

      retrain run churn.yaml --entrypoint release --version 12

      retrain run workflow.yaml -p name=value
    """
    from workflows.cli.foreign import read_manifests, run_manifests

    if foreign := read_manifests(file):
        if source or as_of or version is not None or no_cache or require_promoted:
            raise typer.BadParameter("a manifest has -p and --answer only", param_hint=str(file))
        run_manifests(
            foreign, entrypoint=entrypoint or None, parameters=parameter or (), answers=answer or (), new=new,
            json_output=json_output,
        )  # fmt: skip
    if parameter or answer:
        raise typer.BadParameter(
            "go with a manifest of Argo's; a pipeline's run takes --source, --as-of, --no-cache and --version, "
            "and all else from the file",
            param_hint="-p, --answer",
        )
    entrypoint = entrypoint or names.RETRAIN
    pipeline = load_pipeline(file)
    check_options(entrypoint, source=source, as_of=as_of, version=version, no_cache=no_cache)
    desk = Desk.open(file, pipeline)
    parameters = {
        **run_parameters(source=_source(source), as_of=as_of, version=version, no_cache=no_cache),
        "code": desk.pack_code(),
    }
    execute(
        desk, entrypoint, parameters, what=str(file), new=new, warm=warm, require_promoted=require_promoted,
        json_output=json_output,
    )  # fmt: skip


def execute(
    desk: Desk, entrypoint: str, parameters: dict[str, str], *, what: str, new: bool, warm: bool,
    require_promoted: bool, json_output: bool, since: datetime | None = None, again: str = "the same command",
) -> None:  # fmt: skip
    """Run a pipeline by one of its ways in, or go on with such a run; print what came of it and leave with its code.

    A run that began before `since` is not gone on with; `again` is the command that goes on with this one.
    """
    from workflows.cli.warm import warm_parent
    from workflows.local import pods, runner, state

    out = console(stderr=json_output)
    manifests = desk.manifests()
    digest = hashlib.sha256(repr((manifests, entrypoint, sorted(parameters.items()))).encode()).hexdigest()
    unfinished = None if new else state.find_unfinished(desk.home, digest, since)
    if not json_output and not out.is_terminal:
        print(f"{desk.pipeline.name}: {'goes on with' if unfinished else 'runs'} {what}", flush=True)
    with Progress(out, sys.stderr if json_output else sys.stdout) as progress, warm_parent(wanted=warm) as parent:
        options: runner.Options = {
            "on_change": progress.update, "spawn": parent.spawn if parent else pods.spawn, "at_once": desk.at_once(),
        }  # fmt: skip
        if unfinished:
            secrets = [m for m in manifests if m["kind"] == "Secret"]
            final = runner.resume(desk.home, unfinished, secrets=secrets, images=desk.images(), **options)
        else:
            final = runner.execute(
                manifests, entrypoint=entrypoint, parameters=parameters, home=desk.home, digest=digest,
                name=run_name(desk.pipeline.name), images=desk.images(), **options,
            )  # fmt: skip
    finish(final, desk, out, again=again, require_promoted=require_promoted, json_output=json_output)


def finish(
    final: RunState, desk: Desk, out: Console, *, again: str, require_promoted: bool, json_output: bool
) -> None:  # fmt: skip
    """Print the summary and leave with the right exit code."""
    from workflows.cli.summary import at_desk, conclude

    if final.interrupted:
        out.print(f"{final.name} was interrupted; {again} goes on with it", markup=False, soft_wrap=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    conclude(final, at_desk(desk.home), out, require_promoted=require_promoted, json_output=json_output)


@dataclass(frozen=True)
class Desk:
    """One pipeline file on this machine: where its state lies, its manifests with the desk's settings beside them."""

    file: Path
    pipeline: Pipeline
    home: Path
    packages: str = ""
    """Folder of the packages that the pipeline's own modules need."""

    @classmethod
    def open(cls, file: Path, pipeline: Pipeline) -> Desk:
        """Find or make the home, private to its owner."""
        home = find_home()
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot create {home}: {error.strerror}", remedy="set RETRAIN_HOME to a folder you can write"
            ) from None
        return cls(file.resolve(), pipeline, home, desk_packages(pipeline, home))

    def pack_code(self) -> str:
        """Put the user's modules into the store by their hash and return the URI, empty when there are none."""
        data = packed_code(self.file, self.pipeline)
        if not data:
            return ""
        path = self.home / "store" / "code" / f"{hashlib.sha256(data).hexdigest()}.zip"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            part.write_bytes(data)
            part.replace(path)
        return path.as_uri()

    def manifests(self) -> list[dict[str, Any]]:
        """Return the compiled manifests, and the ConfigMap and Secret that this environment renders."""
        from workflows.compile import compile_pipeline

        compiled = [manifest for text in compile_pipeline(self.file).values() for manifest in documents(text)]
        wanted = [m for m in compiled if m["kind"] in ("WorkflowTemplate", "ConfigMap")]
        # whatever else stands in secrets.env is a secret too: a DSN, or what a URL's {{secret:...}} names
        plain = {variable(f) for f in Settings.model_fields if f not in secret_fields()} | sizes().keys()
        make_signing_key(self.home)
        desk_settings(self.home, self.file.parent)  # what is wrong with them is told before anything is written
        values = desk_environment(self.home, self.file.parent)
        if self.packages:
            values[variable("packages")] = self.packages
        return [
            *wanted,
            _object("ConfigMap", names.SETTINGS_CONFIGMAP, {k: v for k, v in values.items() if k in plain}),
            *(
                _object(
                    "Secret",
                    names.STAGE_SECRET.format(stage=stage),
                    {k: v for k, v in values.items() if k not in plain},
                )
                for stage in ACCESS
            ),
        ]

    def at_once(self) -> dict[str, int]:
        """Return how many candidates may be fitted at once: as many as have threads of their own."""
        from workflows.graph import CANDIDATES

        cores = os.cpu_count() or 1
        threads = desk_settings(self.home, self.file.parent).threads or cores
        return {CANDIDATES: max(1, cores // threads)}

    def images(self) -> dict[str, list[str]]:
        """Return what stands for each image on this machine."""
        return {names.STEPS_IMAGE: [sys.executable]}


def _object(kind: str, name: str, data: dict[str, str]) -> dict[str, Any]:
    field = "stringData" if kind == "Secret" else "data"
    # Argo reads parameters only from a ConfigMap with this label.
    labels = {"workflows.argoproj.io/configmap-type": "Parameter"}
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": labels}, field: data}


def _source(source: str) -> str:
    """Make a path of the caller absolute: a step does not run in the caller's folder."""
    return (
        source
        if not source or "://" in source or source.startswith(("sql:", "python:"))
        else str(Path(source).absolute())
    )
