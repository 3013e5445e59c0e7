"""`retrain ui`: MLflow's own page on the desk's runs and registry."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated

import typer

from contracts.errors import ConfigError
from workflows.cli.desk import desk_environment, desk_home


def ui(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind.")] = 5000,
) -> None:
    """Open MLflow's page on the runs, metrics and versions of this home.  Ctrl-C ends it.

    [bold]Example[/bold]

      retrain ui --port 5001
    """
    home = desk_home(must_exist=True)
    settings = desk_environment(home, home.parent)
    uri = settings["RETRAIN_TRACKING_URI"]
    if uri.startswith(("http://", "https://")):
        raise ConfigError(f"MLflow runs at {uri}", remedy="open it in a browser")
    typer.echo(f"MLflow starts on http://{host}:{port}; it answers in about ten seconds (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
    ]
    command += ["--workers", "1"]
    if artifacts := settings.get("RETRAIN_ARTIFACTS"):
        command += ["--default-artifact-root", artifacts]
    raise typer.Exit(
        subprocess.run(command, env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}, check=False).returncode
    )
