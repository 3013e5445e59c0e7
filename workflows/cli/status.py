"""`retrain status` and `retrain logs`: what runs, what ran, and what its stages said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from contracts.commands import where
from contracts.errors import ConfigError
from contracts.settings import find_home
from workflows.cli.display import STAGE_NAMES, console, stage_pods
from workflows.cli.options import CONTEXT, NAMESPACE

if TYPE_CHECKING:
    from workflows.cli.summary import Records
    from workflows.local.state import RunState

_PICTURE_COLUMNS = 118
WORKFLOW = Annotated[str, typer.Argument(help="Name of a run; the newest when left out.")]


def status(
    workflow: WORKFLOW = "",
    all_runs: Annotated[bool, typer.Option("--all", "-a", help="List all runs.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON: Argo's own node status.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Write the same as a picture, for a report or a README.")] = None,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Show a run's stages and what it came to, at the desk or, with -n or --context, on a cluster.

    [bold]Examples[/bold]

      retrain status

      retrain status --all

      retrain status adult-income-20261124-101500-1a2b --json

      retrain status --svg run.svg

      retrain status -n mlops
    """
    from workflows.local import state

    out = console()
    look = _on_cluster(namespace, context) if namespace or context else _at_desk()
    if all_runs:
        _list(look.all(), out, json_output=json_output)
        return
    run = look.one(workflow)
    if json_output:
        typer.echo(state.to_json(run))
        return
    if svg is None:
        _show(run, look, out)
        return
    canvas = Console(highlight=False, record=True, width=_PICTURE_COLUMNS, file=StringIO(), force_terminal=True)
    _show(run, look, canvas)
    canvas.save_svg(str(svg), title=f"retrain status {run.name}")


def logs(
    workflow: WORKFLOW = "",
    stage: Annotated[str, typer.Argument(help="A stage; all of them when left out.")] = "",
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Print what the stages of a run wrote, stage by stage; with -n or --context, of a run on a cluster.

    [bold]Examples[/bold]

      retrain logs

      retrain logs train

      retrain logs adult-income-20261124-101500-1a2b train
    """
    if workflow in STAGE_NAMES and not stage:
        workflow, stage = "", workflow
    if namespace or context:
        from workflows.cluster import runs
        from workflows.cluster.connection import Namespace

        cluster = Namespace.connect(namespace, context)
        for line in runs.log_lines(cluster, runs.load(cluster, workflow), stage):
            typer.echo(line)
        return
    from workflows.local import state

    home = find_home()
    run = state.load(home, workflow or newest(home))
    for node in stage_pods(run, stage):
        path = state.log_path(home, run.name, node)
        for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
            typer.echo(f"{node.display_name}: {line}")


@dataclass(frozen=True)
class _Look:
    """Runs somewhere, and what they left."""

    all: Callable[[], list[RunState]]
    one: Callable[[str], RunState]
    """By its name; the newest by an empty one."""
    records: Callable[[], Records]


def _at_desk() -> _Look:
    from workflows.cli.summary import at_desk
    from workflows.local import state

    home = find_home()

    def said(run: RunState) -> RunState:
        """Say of a run that nobody works on why it goes no further."""
        why = "" if run.message else state.standstill(home, run)
        more = "" if run.suspended else "; the same command goes on with it"
        return run._replace(message=why + more) if why else run

    return _Look(
        lambda: [said(run) for run in state.list_runs(home)],
        lambda name: said(state.load(home, name or newest(home))),
        lambda: at_desk(home),
    )


def _on_cluster(namespace: str, context: str) -> _Look:
    from workflows.cluster import runs
    from workflows.cluster.connection import Namespace

    cluster = Namespace.connect(namespace, context)
    return _Look(
        lambda: [runs.run_state(workflow) for workflow in runs.find(cluster)],
        lambda name: runs.run_state(runs.load(cluster, name)),
        lambda: runs.records(cluster, where(cluster.namespace, context)),
    )


def _show(run: RunState, look: _Look, out: Console) -> None:
    from workflows.cli.display import stage_nodes, table
    from workflows.cli.summary import show, summarise

    out.print(f"{run.name}  {run.phase}  {run.message}", markup=False)
    out.print(table(run, datetime.now(UTC)))
    if run.finished and stage_nodes(run):
        records = look.records()
        show(summarise(run, records), out, records.options)


def newest(home: Path) -> str:
    """Return the name of the newest run.

    Raises
    ------
    ConfigError
        When there is none.
    """
    from workflows.local import state

    runs = state.list_runs(home)
    if not runs:
        raise ConfigError(f"no runs in {home}", remedy="`retrain run FILE` makes one; RETRAIN_HOME names another home")
    return runs[0].name


def _list(runs: list[RunState], out: Console, *, json_output: bool) -> None:
    import json

    if json_output:
        typer.echo(
            json.dumps(
                [{"name": r.name, "phase": r.phase, "started": r.started and r.started.isoformat()} for r in runs]
            )
        )
        return
    grid = Table(box=None, header_style="dim", pad_edge=False)
    for column in ("run", "phase", "started", "message"):
        grid.add_column(column)
    for run in runs:
        grid.add_row(run.name, run.phase, f"{run.started:%Y-%m-%d %H:%M:%S}" if run.started else "", run.message)
    out.print(grid)
