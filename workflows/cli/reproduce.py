"""`retrain reproduce`: build a version again and compare."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from workflows.cli.desk import desk_home, desk_settings

EXIT_DIFFERS = 1
"""As `diff` and `cmp` have it: the question was answered, and the answer is no."""


def reproduce(
    version: Annotated[str, typer.Argument(metavar="[MODEL@]VERSION", help="A version, or production.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Build a version again from its kept dataset, code and parameters, and compare the answers on its test rows.

    Exit code 0: identical (within training.reproduce_tolerance); 1: it differs; else the error table's.

    [bold]Examples[/bold]

      retrain reproduce 3

      retrain reproduce adult-income@production --json
    """
    from steps.archive import Archive, Reference
    from steps.reproduce import reproduce as rebuild

    asked = Reference.parse(version)
    settings = desk_settings(desk_home(must_exist=True))
    with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
        found = rebuild(Archive.open(settings, asked.model), asked.name, Path(folder))
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
    else:
        console = Console(highlight=False, soft_wrap=True)
        word = "[green]identical[/green]" if found.identical else "[red]differs[/red]"
        console.print(f"{found.model} version {found.version}: {word}, on {found.rows:,} test rows")
        if found.largest_difference or not found.identical:
            console.print(
                f"  largest difference {found.largest_difference:.3g} (tolerance {found.tolerance:g}), "
                f"{found.labels_changed:,} labels changed"
            )
        for difference in found.differences:
            console.print(f"  - {difference}", markup=False)
        for warning in found.warnings:
            console.print(f"  warning: {warning}", style="yellow", markup=False)
    raise typer.Exit(0 if found.identical else EXIT_DIFFERS)
