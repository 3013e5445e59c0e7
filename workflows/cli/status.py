"""`retrain status` and `retrain logs`: what runs, what ran, and what its stages said."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from contracts.errors import ConfigError
from contracts.settings import find_home
from workflows.cli.display import console

if TYPE_CHECKING:
    from workflows.local.state import RunState

_PICTURE_COLUMNS = 118
WORKFLOW = Annotated[str, typer.Argument(help="Name of a run; the newest when left out.")]


def status(
    workflow: WORKFLOW = "",
    all_runs: Annotated[bool, typer.Option("--all", "-a", help="List all runs.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON: Argo's own node status.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Write the same as a picture, for a report or a README.")] = None,
) -> None:
    """Show a run's stages and what it came to.

    [bold]Examples[/bold]

      retrain status

      retrain status --all

      retrain status adult-income-20261124-101500-1a2b --json

      retrain status --svg run.svg
    """
    from workflows.local import state

    home = find_home()
    out = console()
    if all_runs:
        _list(home, out, json_output=json_output)
        return
    name = workflow or newest(home)
    if json_output:
        typer.echo(state.to_json(state.load(home, name)))
        return
    run = state.load(home, name)
    if svg is None:
        _show(run, home, out)
        return
    canvas = Console(highlight=False, record=True, width=_PICTURE_COLUMNS, file=StringIO(), force_terminal=True)
    _show(run, home, canvas)
    canvas.save_svg(str(svg), title=f"retrain status {run.name}")


def logs(
    workflow: WORKFLOW = "",
    stage: Annotated[str, typer.Argument(help="A stage; all of them when left out.")] = "",
) -> None:
    """Print what the stages of a run wrote, stage by stage.

    [bold]Examples[/bold]

      retrain logs

      retrain logs adult-income-20261124-101500-1a2b train
    """
    from workflows.local import state

    home = find_home()
    run = state.load(home, workflow or newest(home))
    pods = [n for n in run.nodes.values() if n.type == "Pod" and (not stage or n.template == stage)]
    if not pods:
        known = ", ".join(sorted({n.template for n in run.nodes.values() if n.type == "Pod"}))
        raise ConfigError(f"{run.name} has no stage {stage!r} that ran", remedy=f"one of {known}")
    for node in pods:
        path = state.log_path(home, run.name, node)
        for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
            typer.echo(f"{node.display_name}: {line}")


def _show(run: RunState, home: Path, out: Console) -> None:
    from workflows.cli.display import stage_nodes, table
    from workflows.cli.summary import show, summarise

    out.print(f"{run.name}  {run.phase}  {run.message}", markup=False)
    out.print(table(run, datetime.now(UTC)))
    if run.finished and stage_nodes(run):
        show(summarise(run, home), out)


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


def _list(home: Path, out: Console, *, json_output: bool) -> None:
    import json

    from workflows.local import state

    runs = state.list_runs(home)
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
