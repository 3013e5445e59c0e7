"""`retrain init`: a data file and a target to a commented pipeline file."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from contracts.errors import ConfigError, DataError
from contracts.metrics import Task
from contracts.pipeline.source import CsvOptions

if TYPE_CHECKING:
    from steps.inference import Inferred, InferredColumn


def init(
    data: Annotated[Path, typer.Option(help="CSV, CSV.gz or Parquet file with the rows to learn from.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write, and so the model's name; default: <data>.yaml in this folder.")
    ] = None,
    task: Annotated[Task | None, typer.Option(help="Default: guessed from the column.")] = None,
    positive: Annotated[str, typer.Option(help="Binary: the positive class; default: the rarer one.")] = "",
    sensitive: Annotated[
        list[str] | None, typer.Option(help="A column whose cells are never shown; repeat it for more.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a pipeline file for a data file: inferred schema, candidates, and gates with comments.

    [bold]Examples[/bold]

      retrain init --data churn.csv --target churned && retrain run churn.yaml

      retrain init --data houses.parquet --target price --task regression --out houses.yaml
    """
    from contracts.pipeline import parse_pipeline
    from workflows.learning_choice import UnfitChoiceError, choose, notes, sensitive_notes
    from workflows.proposal import pipeline_file, pipeline_name

    path = out or Path(f"{data.name.split('.')[0]}.yaml")
    model = pipeline_name(path.name.split(".")[0])
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {path.parent}", remedy="make it, or name another file after --out")
    table, csv = look(data)
    column = next((c for c in table.columns if c.name == target), None)
    counts = class_counts(data, csv, column) if column is not None and column.values else {}
    try:
        learning = choose(table, target, counts, task or "", positive)
    except UnfitChoiceError as error:
        raise typer.BadParameter(f"{error} ({error.remedy})", param_hint=error.option) from None
    secluded = tuple(sensitive or ())
    if unknown := [name for name in secluded if name not in {c.name for c in table.columns}]:
        raise typer.BadParameter(f"there is no column {unknown[0]!r}", param_hint="--sensitive")
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already", remedy="--force overwrites it, --out FILE writes another")
    text = pipeline_file(model, source_uri(data, path), table, csv, learning, secluded)
    parse_pipeline(text, str(path))
    path.write_text(text, encoding="utf-8")
    typer.echo(f"{path}: {table.rows:,} rows, {len(table.columns)} columns; its versions are those of model {model}")
    said = [name for name, value in (("task", task), ("positive", positive)) if value]
    for note in [*notes(table, learning, said=said, sensitive=secluded), *sensitive_notes(table, learning, secluded)]:
        typer.echo(f"  {note}")
    typer.echo(f"next: look through it, then `retrain run {shlex.quote(str(path))}`")


def look(data: Path) -> tuple[Inferred, CsvOptions | None]:
    """Infer a file's schema; the CSV options are guessed, and None for Parquet.

    Raises
    ------
    ConfigError
        When there is no such file.
    DataError
        When it is not what its name says, or no table.
    """
    from steps.inference import infer, sniff_csv
    from steps.sources.uris import has_glob

    if data.is_dir():
        raise ConfigError(f"{data} is a folder", remedy="--data names one CSV, CSV.gz or Parquet file in it")
    if not data.is_file():
        if has_glob(str(data)):
            raise ConfigError(
                f"{data} is a pattern, and the schema is read from one file",
                remedy="--data names one of its files; then write the pattern into the pipeline file as source.uri",
            )
        raise ConfigError(f"no such file: {data}", remedy="--data names a CSV, CSV.gz or Parquet file")
    with data.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1":
        return infer(data), None
    if data.suffix in (".parquet", ".pq"):
        raise DataError(f"{data} is not a Parquet file", remedy="name it .csv if it is one, or fetch the file again")
    csv = CsvOptions() if magic[:2] == b"\x1f\x8b" else sniff_csv(data)
    return infer(data, csv), csv


def class_counts(data: Path, csv: CsvOptions | None, column: InferredColumn) -> dict[Any, int]:
    """Count the rows of each of a column's few values."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if csv is None:
        cells = pyarrow.parquet.read_table(data, columns=[column.name])[column.name]
    else:
        cells = pyarrow.csv.read_csv(
            data,
            read_options=pyarrow.csv.ReadOptions(encoding=csv.encoding),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=csv.delimiter, quote_char=csv.quote, newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=[column.name], column_types={column.name: pa.string()}
            ),
        )[column.name]
    found: Counter[str] = Counter()
    for item in cells.value_counts().to_pylist():
        found[str(item["values"]).lower()] += item["counts"]
    return {value: found[str(value).lower()] for value in column.values}


def source_uri(data: Path, pipeline_file: Path) -> str:
    """Return how the pipeline file names the data: relative to itself when the data lies beside or below it."""
    folder, target = pipeline_file.resolve().parent, data.resolve()
    return os.fspath(target.relative_to(folder) if target.is_relative_to(folder) else target)
