"""`retrain submit`: bring a pipeline file and what lies beside it to a cluster, and follow its run there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contracts import names
from contracts.pipeline import load_pipeline
from contracts.settings import find_home, variable
from workflows.cli.following import follow
from workflows.cli.options import (
    AS_OF,
    CONTEXT,
    NAMESPACE,
    NO_CACHE,
    REQUIRE_PROMOTED,
    RESULT_AS_JSON,
    SOURCE,
    VERSION,
    WAIT,
    check_options,
    pairs,
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
    wait: WAIT = True,
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
    from steps.sources.opening import check_file
    from workflows.cluster import images, submission
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
    if data:
        check_file(data, pipeline)
    code = packed_code(file.resolve(), pipeline) if retraining else b""

    cluster = Namespace.connect(namespace, context)
    store = cluster.settings[variable("store")]  # asked for before anything is made there
    template = manifests[WORKFLOW_TEMPLATE]
    own = images.own_images(cluster, pipeline, template, find_home(), lambda line: typer.echo(f"{line} ...", err=True))
    manifests[WORKFLOW_TEMPLATE] = images.with_images(template, own)
    new = submission.apply(cluster, manifests.values())
    given |= submission.upload(cluster, store, data, code)
    name = run_name(pipeline.name)
    submission.start(cluster, name, pipeline.name, entrypoint, given, new)
    follow(
        cluster, name, context, wait=wait, require_promoted=require_promoted, json_output=json_output,
        what=f"{pipeline.name}: runs {file}",
    )  # fmt: skip
