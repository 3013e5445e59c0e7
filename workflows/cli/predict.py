"""`retrain predict`: batch scores of a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from contracts.names import ALIAS_PRODUCTION
from workflows.cli.desk import desk_home, desk_settings


def predict(
    file: Annotated[str, typer.Argument(help="CSV, CSV.gz or Parquet file with the model's columns; a path or a URI.")],
    model: Annotated[
        str, typer.Option(metavar="[MODEL@]production|VERSION", help="What scores; MODEL when there are several.")
    ] = ALIAS_PRODUCTION,
    out: Annotated[
        Path | None, typer.Option(help="A .csv, .csv.gz or .parquet file; else CSV on standard output.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print what was done as JSON; needs --out.")] = False,
) -> None:
    """Score a file: one line for each row, in order, with prediction, probabilities and the version that gave them.

    The target may be absent, other columns are left out.  Exit code 65 when a column is missing or does not fit.

    [bold]Examples[/bold]

      retrain predict new-customers.csv > scores.csv

      retrain predict s3://bucket/day.parquet --model churn@12 --out scores.parquet
    """
    from steps.archive import Archive
    from steps.predict import predict as score

    if json_output and out is None:
        raise typer.BadParameter("standard output holds the scores", param_hint="--json")
    archive, name = Archive.named(desk_settings(desk_home(must_exist=True), Path.cwd()), model)
    with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
        scored = score(archive, name, file, out, Path(folder))
    for column, rows in scored.unseen.items():
        typer.echo(f"warning: {rows:,} rows hold a value of {column} that training did not see", err=True)
    if json_output:
        typer.echo(scored.model_dump_json(indent=2))
    else:
        where = f" to {out}" if out else ""
        typer.echo(f"{scored.rows:,} rows scored by {scored.model} version {scored.version}{where}", err=True)
