"""`retrain stop`: end the local servers that releases left running."""

from __future__ import annotations

from typing import Annotated

import typer

from workflows.cli.desk import desk_home, desk_settings


def stop(
    pipeline: Annotated[str, typer.Argument(help="Name of the pipeline; without it, every server here.")] = "",
) -> None:
    """Drain and end the servers of this home.  The next `retrain run` brings them back, on the same ports.

    [bold]Example[/bold]

      retrain stop adult-income
    """
    home = desk_home()
    if not home.is_dir():
        typer.echo("no server runs here")
        return
    from steps.rollout.process import servers

    wanted = [s for s in servers(desk_settings(home)) if pipeline in ("", s.home.name)]
    stopped = [(server.home.name, pid) for server in wanted if (pid := server.stop()) is not None]
    for name, pid in stopped:
        typer.echo(f"stopped the server of {name} (process {pid})")
    if not stopped:
        typer.echo(f"no server of {pipeline} runs here" if pipeline else "no server runs here")
