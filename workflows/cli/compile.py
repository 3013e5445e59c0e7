"""`retrain compile`: a pipeline file to the manifests that Argo runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import ConfigError
from contracts.pipeline import load_pipeline

EXAMPLES = """
[bold]Examples[/bold]

  retrain compile adult.yaml                     (the shipped pipeline: into argo/adult-income/)

  retrain compile churn.yaml                     (beside the file: churn.argo/)

  retrain compile churn.yaml --out - | kubectl apply -f -
"""


def compile_file(
    file: Annotated[Path, typer.Argument(help="The pipeline file.")],
    out: Annotated[str, typer.Option(help="Folder to write to; - for standard output.")] = "",
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 when what is there differs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing when all is well.")] = False,
) -> None:
    """Compile a pipeline file to its WorkflowTemplate, CronWorkflow and Argo Events objects."""
    from workflows.compile import compile_pipeline, compiled

    pipeline = load_pipeline(file)
    manifests = compile_pipeline(file)
    if out == "-":
        typer.echo("---\n".join(manifests.values()), nl=False)
        return
    folder = Path(out) if out else output_folder(file, pipeline.name)
    differing = [n for n, text in manifests.items() if not (folder / n).is_file() or (folder / n).read_text() != text]
    stale = sorted(p.name for p in folder.glob("*.yaml") if p.name not in manifests and compiled(p))
    if check:
        for name in [*differing, *stale]:
            typer.echo(f"{folder / name} is not what {file} compiles to", err=True)
        raise typer.Exit(1 if differing or stale else 0)
    if foreign := [name for name in differing if (folder / name).exists() and not compiled(folder / name)]:
        raise ConfigError(f"{folder / foreign[0]} is a file of your own", remedy="name another folder by --out")
    folder.mkdir(parents=True, exist_ok=True)
    for name in differing:
        (folder / name).write_text(manifests[name])
    for name in stale:
        (folder / name).unlink()
    if not quiet:
        typer.echo(f"{folder}: {len(manifests)} manifests, {len(differing)} written, {len(stale)} removed")


def output_folder(file: Path, name: str) -> Path:
    """Return where a file's manifests go: ``argo/<name>`` where an argo folder lies beside it, else ``<stem>.argo``."""
    shared = file.resolve().parent / "argo"
    return shared / name if shared.is_dir() else file.with_suffix(".argo")


compile_file.__doc__ = (compile_file.__doc__ or "") + "\n" + EXAMPLES
