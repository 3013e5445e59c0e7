"""`retrain submit`: bring a pipeline file and what lies beside it to a cluster, and follow its run there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from contracts.pipeline import load_pipeline
from contracts.settings import variable
from contracts.stages import Cache
from workflows.cli.display import Progress, console
from workflows.cli.foreign import pairs
from workflows.cli.run import check_options, conclude, packed_code, requester, run_name

NAMESPACE = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", envvar=variable("namespace"), help="A namespace of a cluster; that of KUBECONFIG."
    ),
]
CONTEXT = Annotated[str, typer.Option(help="A context of KUBECONFIG; the current one.")]


def submit(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")],
    entrypoint: Annotated[
        str, typer.Option(help="retrain (the whole way) or release (a version already there).")
    ] = "retrain",
    source: Annotated[str, typer.Option(help="Read this instead of the file's source.")] = "",
    as_of: Annotated[str, typer.Option("--as-of", help="The moment the run stands for, RFC 3339; default: now.")] = "",
    version: Annotated[int | None, typer.Option(help="With --entrypoint release: the version to release.")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Take nothing from earlier runs.")] = False,
    require_promoted: Annotated[
        bool, typer.Option("--require-promoted", help="Exit 3 unless the outcome is promoted or unchanged.")
    ] = False,
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Another parameter of the template: train-memory=4096."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run to its end.")] = True,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a pipeline on a cluster; a source and modules of this machine go to its buckets.

    The run goes on when this command is interrupted.  Exit codes as of `retrain run`.

    [bold]Examples[/bold]

      retrain submit adult.yaml -n mlops

      retrain submit churn.yaml -n mlops --source exports/2026-11.csv --no-wait

      retrain submit churn.yaml -n mlops --entrypoint release --version 12
    """
    from workflows.cluster import runs, submission
    from workflows.cluster.connection import Namespace
    from workflows.compile import WORKFLOW_TEMPLATE, compile_pipeline

    pipeline = load_pipeline(file)
    check_options(entrypoint, source=source, as_of=as_of, version=version, no_cache=no_cache)
    manifests = compile_pipeline(file)
    given = {
        "source": source,
        "cache": (Cache.REFUSE if no_cache else Cache.USE).value,
        "version": "" if version is None else str(version),
        "requested-by": requester(),
        **({"as-of": as_of} if as_of else {}),
        **pairs(parameter or ()),
    }
    submission.check(given, yaml.safe_load(manifests[WORKFLOW_TEMPLATE]))
    retraining = entrypoint == "retrain"
    data = submission.local_source(given["source"], file, pipeline) if retraining else None
    code = packed_code(file.resolve(), pipeline) if retraining else b""

    cluster = Namespace.connect(namespace, context)
    store = cluster.settings[variable("store")]  # asked for before anything is made there
    ready = submission.apply(cluster, manifests)
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


def where(namespace: str, context: str) -> str:
    """Return the options that name a cluster's namespace, with a space at their end."""
    return "".join(f"{option} {value} " for option, value in (("-n", namespace), ("--context", context)) if value)
