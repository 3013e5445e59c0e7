"""`retrain submit`: bring a pipeline file and what lies beside it to a cluster, and follow its run there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from contracts import names
from contracts.pipeline import load_pipeline
from contracts.settings import find_home, variable
from workflows.cli.display import Progress, console
from workflows.cli.options import (
    AS_OF,
    CONTEXT,
    NAMESPACE,
    NO_CACHE,
    REQUIRE_PROMOTED,
    RESULT_AS_JSON,
    SOURCE,
    VERSION,
    check_options,
    pairs,
    where,
)
from workflows.cli.request import packed_code, run_name, run_parameters
from workflows.documents import documents


def submit(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")],
    entrypoint: Annotated[
        str, typer.Option(help="retrain (the whole way) or release (a version already there).")
    ] = names.RETRAIN,
    source: SOURCE = "",
    as_of: AS_OF = "",
    version: VERSION = None,
    no_cache: NO_CACHE = False,
    require_promoted: REQUIRE_PROMOTED = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Another parameter of the template: train-memory=4096."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")] = True,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
    json_output: RESULT_AS_JSON = False,
) -> None:
    """Run a pipeline on a cluster; a source and modules of this machine go to its buckets.

    The run goes on when this command is interrupted.  Exit codes as of `retrain run`.

    [bold]Examples[/bold]

      retrain submit adult.yaml -n mlops

      retrain submit churn.yaml -n mlops --source exports/2026-11.csv --no-wait

      retrain submit churn.yaml -n mlops --entrypoint release --version 12
    """
    from workflows.cli.summary import conclude
    from workflows.cluster import images, runs, submission
    from workflows.cluster.connection import Namespace
    from workflows.compile import WORKFLOW_TEMPLATE, compile_pipeline

    pipeline = load_pipeline(file)
    check_options(entrypoint, source=source, as_of=as_of, version=version, no_cache=no_cache)
    manifests = {name: documents(text)[0] for name, text in compile_pipeline(file).items()}
    given = {
        **run_parameters(source=source, as_of=as_of, version=version, no_cache=no_cache),
        **pairs(parameter or ()),
    }
    submission.check(given, manifests[WORKFLOW_TEMPLATE])
    retraining = entrypoint == names.RETRAIN
    data = submission.local_source(given["source"], file, pipeline) if retraining else None
    code = packed_code(file.resolve(), pipeline) if retraining else b""

    cluster = Namespace.connect(namespace, context)
    store = cluster.settings[variable("store")]  # asked for before anything is made there
    template = manifests[WORKFLOW_TEMPLATE]
    own = images.own_images(cluster, pipeline, template, find_home(), lambda line: typer.echo(f"{line} ...", err=True))
    manifests[WORKFLOW_TEMPLATE] = images.with_images(template, own)
    ready = submission.apply(cluster, manifests.values())
    given |= submission.upload(cluster, store, data, code)
    name = run_name(pipeline.name)
    submission.start(cluster, name, pipeline, entrypoint, given, ready)
    options = where(namespace or cluster.namespace, context)
    out = console(stderr=json_output)
    if not wait:
        out.print(f"{name}  (retrain status {options}{name})", markup=False)
        return
    if not json_output and not out.is_terminal:
        print(f"{pipeline.name}: runs {file} as {name} in {cluster.namespace}", flush=True)
    try:
        with Progress(out, sys.stderr if json_output else sys.stdout) as progress:
            final = runs.follow(cluster, name, progress.update)
    except KeyboardInterrupt:
        out.print(f"{name} goes on; `retrain status {options}{name}` shows it", markup=False)
        raise typer.Exit(130) from None
    left = runs.records(cluster, options)
    conclude(final, left, out, require_promoted=require_promoted, json_output=json_output)
