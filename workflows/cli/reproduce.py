"""`retrain reproduce`: build a version again and compare."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from workflows.cli.desk import desk_home, desk_settings
from workflows.cli.options import CONTEXT, NAMESPACE

if TYPE_CHECKING:
    from steps.reproduce import Reproduction

EXIT_DIFFERS = 1
"""As `diff` and `cmp` have it: the question was answered, and the answer is no."""


def reproduce(
    version: Annotated[str, typer.Argument(metavar="[MODEL@]VERSION", help="A version, or production.")],
    here: Annotated[
        bool, typer.Option("--here", help="Train with today's code and libraries, whatever the version was trained by.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Build a version again from its kept dataset, commit, lock file and parameters, and compare the answers.

    Where retrain's commit or the lock file is not today's, the commit is taken from the git repository of retrain and
    an environment is made by uv, both in a temporary folder.  With -n or --context it runs as a workflow on a cluster,
    in the image that the version was trained in.  Exit code 0: identical, or within
    training.reproduce_tolerance; 1: it differs; else the error table's.

    [bold]Examples[/bold]

      retrain reproduce 3

      retrain reproduce adult-income@production --json

      retrain reproduce 3 --here

      retrain reproduce adult-income@12 -n mlops
    """
    from steps.reproduce import Answer

    if namespace or context:
        if here:
            raise typer.BadParameter("on a cluster the version's own image trains", param_hint="--here")
        found = _on_cluster(version, namespace, context)
    else:
        found = _at_desk(version, here=here)
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _show(found)
    raise typer.Exit(EXIT_DIFFERS if found.answer is Answer.DIFFERS else 0)


def _at_desk(reference: str, *, here: bool) -> Reproduction:
    from steps.archive import Archive
    from steps.reproduce import reproduce as rebuild

    archive, name = Archive.named(desk_settings(desk_home(must_exist=True)), reference)
    with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
        return rebuild(archive, name, Path(folder), here=here, tell=_tell)


def _on_cluster(reference: str, namespace: str, context: str) -> Reproduction:
    from workflows.cluster.archive import reproduce as rebuild
    from workflows.cluster.connection import Namespace

    return rebuild(Namespace.connect(namespace, context), reference, _tell)


def _tell(line: str) -> None:
    typer.echo(f"{line} ...", err=True)


def _show(found: Reproduction) -> None:
    console = Console(highlight=False, soft_wrap=True)
    colour = "red" if found.answer == "differs" else "green"
    said = f"[{colour}]{found.answer.value}[/{colour}]"
    console.print(f"{found.model} version {found.version}: {said}, on {found.rows:,} test rows")
    commit = f"commit {found.commit[:12]}" if found.commit else "an unknown commit"
    console.print(f"  trained again by {commit} in {found.environment} environment", markup=False)
    if found.columns:
        console.print(f"  the answers differ (tolerance {found.tolerance:g}):")
    for column in found.columns:
        console.print(f"  - {column}", markup=False)
    for difference in found.differences:
        console.print(f"  - {difference}", markup=False)
    for lost in found.not_restored:
        console.print(f"  not restored: {lost}", style="yellow", markup=False)
    for note in found.notes:
        console.print(f"  note: {note}", style="yellow", markup=False)
