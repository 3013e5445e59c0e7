"""`retrain approvals`, `review`, `approve`, `reject`: where the policy of the environment asks for a person."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from contracts.errors import ConfigError
from contracts.names import page_name
from contracts.outcomes import State
from contracts.references import LedgerEntry
from contracts.reports import Check
from workflows.cli.checks import checks_table, short
from workflows.cli.desk import desk_home, desk_settings
from workflows.cli.display import console
from workflows.cli.options import REASON, REQUIRE_PROMOTED, RESULT_AS_JSON
from workflows.cli.request import operating_user

if TYPE_CHECKING:
    from steps.archive import Archive
    from steps.lineage import Lineage

RUN = Annotated[str, typer.Argument(metavar="RUN|VERSION", help="The run that asked, or its version.")]
MODEL = Annotated[str, typer.Option(help="Which model; needed when a version is named and there are several.")]


def approvals(json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the versions that wait for a person: what asked, since when, until when.

    [bold]Example[/bold]

      retrain approvals
    """
    from steps.approvals import requests
    from steps.ledger import Ledger
    from steps.lifecycle import EXPIRES

    ledger, now = Ledger(desk_settings(desk_home(must_exist=True)).ledger.get_secret_value()), datetime.now(UTC)
    found = [(entry, why) for model in ledger.models() for entry, why in requests(ledger.entries(model), now)]
    if json_output:
        typer.echo(json.dumps([{**entry.model_dump(mode="json"), "lapsed": why} for entry, why in found], indent=2))
        return
    for entry, why in found:
        until = why or f"until {entry.evidence[EXPIRES][:16].replace('T', ' ')} UTC"
        asked = f"asked {entry.at:%Y-%m-%d %H:%M} UTC by {entry.by}"
        typer.echo(f"{entry.workflow}  {entry.model} version {entry.version}, {asked}; {until}")
    if not found:
        typer.echo("nothing waits for an approval")


def review(
    run: RUN,
    model: MODEL = "",
    page: Annotated[Path | None, typer.Option(help="Write the page that MLflow keeps of it to this file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a person is asked to decide on: gate by gate, and the challenger beside the champion.

    The MLflow run keeps more of it as one HTML page (artifact gates/review-VERSION.html): slices, calibration, what
    changed in the data.

    [bold]Example[/bold]

      retrain review adult-income-20261124-101500-1a2b
    """
    from steps.lineage import lineage

    archive, request = _asked(run, model)
    if page is not None:
        _write_page(archive, request, page)
    challenger = lineage(archive, str(request.version))
    before = request.evidence.get("from")
    champion = lineage(archive, str(before)) if before is not None else None
    if json_output:
        said = {"request": request, "challenger": challenger, "champion": champion}
        typer.echo(json.dumps({key: each and each.model_dump(mode="json") for key, each in said.items()}, indent=2))
        return
    console().print(_render(request, challenger, champion), soft_wrap=True)
    if page is not None:
        typer.echo(f"page: {page}")
    else:
        name = page_name(request.version)
        typer.echo(f"page: {name} of MLflow run {request.run_id}; --page FILE writes it")


def approve(
    run: RUN, reason: REASON = "", model: MODEL = "", require_promoted: REQUIRE_PROMOTED = False,
    json_output: RESULT_AS_JSON = False,
) -> None:  # fmt: skip
    """Say yes to what a run asks for, and release it.

    The ledger keeps your name as the operating system has it, and that nobody vouched for it.  The yes holds for this
    version, its package and the report of its gate, and for one release.

    [bold]Example[/bold]

      retrain approve adult-income-20261124-101500-1a2b --reason "reviewed with the risk team"
    """
    from workflows.cli.releases import release_here

    home, entry = _decide(run, model, State.APPROVED, reason)
    typer.echo(f"{entry.model} version {entry.version} approved by {entry.by}", err=json_output)
    asked = run if run != str(entry.version) else ""
    release_here(
        home, entry.model, entry.version, run=asked, require_promoted=require_promoted, json_output=json_output
    )  # fmt: skip


def reject(run: RUN, reason: REASON = "", model: MODEL = "") -> None:
    """Say no to what a run asks for.

    [bold]Example[/bold]

      retrain reject adult-income-20261124-101500-1a2b --reason "the sample of March is known to be wrong"
    """
    _, entry = _decide(run, model, State.REJECTED, reason)
    typer.echo(f"{entry.model} version {entry.version} rejected by {entry.by}")


def _write_page(archive: Archive, request: LedgerEntry, file: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
        kept = archive.registry.fetch(request.run_id, page_name(request.version), Path(folder))
        if kept is None:
            raise ConfigError(f"MLflow has no page of version {request.version}", remedy="promote it anew")
        try:
            shutil.copyfile(kept, file)
        except OSError as error:
            raise ConfigError(f"{file} can't be written: {error.strerror}") from None


def _decide(run: str, model: str, state: State, reason: str) -> tuple[Path, LedgerEntry]:
    from steps.approvals import Person, decide

    if not reason.strip():
        raise typer.BadParameter("say why; it is kept in the ledger", param_hint="--reason")
    archive, _ = _asked(run, model)
    person = Person(operating_user())
    entry = decide(
        archive.ledger, archive.model, run, state, person=person, reason=reason, at=datetime.now(UTC)
    )  # fmt: skip
    return desk_home(), entry


def _asked(run: str, model: str) -> tuple[Archive, LedgerEntry]:
    """Return the request that a run made, and the archive of its model."""
    from steps.approvals import request_of
    from steps.archive import Archive
    from steps.ledger import Ledger

    settings = desk_settings(desk_home(must_exist=True))
    if model or run.isdigit():
        archive = Archive.open(settings, model)
        return archive, request_of(archive.ledger.entries(archive.model), run)
    ledger = Ledger(settings.ledger.get_secret_value())
    for name in ledger.models():
        entries = ledger.entries(name)
        if any(entry.workflow == run for entry in entries):
            return Archive(settings, ledger, name), request_of(entries, run)
    raise ConfigError(f"the ledger knows no run {run}", remedy="`retrain approvals` lists those that ask")


def _render(request: LedgerEntry, challenger: Lineage, champion: Lineage | None) -> RenderableType:
    checks = [Check.model_validate(check) for check in request.evidence.get("checks", ())]
    parts: list[RenderableType] = [
        Text(f"{request.model} version {request.version}", style="bold"),
        Text(f"asked by {request.by}, run {request.workflow}, {request.at:%Y-%m-%d %H:%M} UTC"),
        Text(f"promotion gate: {short(request.reason)}"),
        checks_table(checks),
    ]
    if challenger.validation is not None and challenger.validation.checks:
        parts += [Text("validation gate"), checks_table(challenger.validation.checks)]
    parts += [Text(), _beside(challenger, champion)]
    parts += [Text(f"note: {note}", style="yellow") for note in (*request.evidence.get("notes", ()), *challenger.notes)]
    return Group(*parts)


def _beside(challenger: Lineage, champion: Lineage | None) -> Table:
    """Return challenger and champion in two columns; a mark where they differ."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", f"version {challenger.version}", f"version {champion.version}, serves" if champion else ""):
        grid.add_column(title, overflow="fold")
    ours, theirs = dict(_facts(challenger)), dict(_facts(champion)) if champion else {}
    for name in dict.fromkeys([*ours, *theirs]):
        a, b = ours.get(name, ""), theirs.get(name, "")
        grid.add_row(Text(name, style="dim"), Text(a, style="bold" if champion and a != b else ""), Text(b))
    return grid


def _facts(found: Lineage) -> Iterator[tuple[str, str]]:
    yield "dataset", found.dataset.sha256[:12]
    yield "  rows", f"{found.dataset.rows:,}" if found.dataset.rows is not None else ""
    yield "  as of", f"{found.dataset.as_of:%Y-%m-%d %H:%M}" if found.dataset.as_of else ""
    yield "  schema", found.dataset.schema_sha256[:12]
    yield "  read from", ", ".join(found.dataset.sources)
    yield "split", found.split_sha256[:12]
    yield "transform", found.transform_sha256[:12]
    yield "code", found.code.commit[:12]
    yield "  your modules", found.code.user_code[:12]
    yield "candidate", found.candidate
    for name, value in found.parameters.items():
        if name.startswith("parameters.") or name in ("seed", "rounds", "threshold"):
            yield f"  {name.removeprefix('parameters.')}", value
    for name, number in found.metrics.items():
        if name.startswith("test."):
            yield f"  {name.removeprefix('test.')}", f"{number:.4g}"
