"""Follow a run on a cluster to its end and say what it came to.  Called by `submit`, and after a person's word."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

from contracts.commands import where
from contracts.errors import EXIT_INTERRUPTED
from workflows.cli.display import Progress, console

if TYPE_CHECKING:
    from workflows.cluster.connection import Namespace


def follow(
    cluster: Namespace, name: str, context: str, *, wait: bool, require_promoted: bool, json_output: bool, what: str
) -> None:  # fmt: skip
    """Show a run until it ends and leave with its code; or, without waiting, say how to look at it.

    Parameters
    ----------
    context
        As the user named it, for commands to paste.
    what
        What runs, for a log.
    """
    from workflows.cli.summary import conclude
    from workflows.cluster import runs

    options = where(cluster.namespace, context)
    out = console(stderr=json_output)
    if not wait:
        out.print(f"{name}  (retrain status {options}{name})", markup=False)
        return
    if not json_output and not out.is_terminal:
        print(f"{what} as {name} in {cluster.namespace}", flush=True)
    try:
        with Progress(out, sys.stderr if json_output else sys.stdout) as progress:
            final = runs.follow(cluster, name, progress.update)
    except KeyboardInterrupt:
        out.print(f"{name} goes on; `retrain status {options}{name}` shows it", markup=False)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    left = runs.records(cluster, options)
    conclude(final, left, out, require_promoted=require_promoted, json_output=json_output)
