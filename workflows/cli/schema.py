"""`retrain schema`: the schema of a data file, and the JSON schema of the pipeline file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Schemas: of a data file, and of the pipeline file itself.")


@app.command("infer")
def infer_schema(data: Annotated[Path, typer.Argument(help="CSV, CSV.gz or Parquet file.")]) -> None:
    """Print the schema section that fits a data file, to paste into a pipeline file.

    [bold]Example[/bold]

      retrain schema infer churn.csv
    """
    from workflows.cli.init import look
    from workflows.learning_choice import misfit_note
    from workflows.proposal import schema_section

    table, _ = look(data)
    typer.echo(schema_section(table), nl=False)
    for column in table.columns:
        if column.misfits:
            typer.echo(misfit_note(column, table.rows), err=True)


@app.command("file")
def file_schema() -> None:
    """Print the JSON schema of the pipeline file, for editors that complete and check YAML.

    [bold]Example[/bold]

      retrain schema file > pipeline.schema.json
    """
    from contracts.pipeline import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
