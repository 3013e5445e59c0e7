"""`retrain approvals`, `review`, `approve`, `reject`: where the policy of the environment asks for a person."""

from __future__ import annotations

import json
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
from workflows.cli.checks import by_whom, checks_table, short
from workflows.cli.desk import desk_home, desk_settings
from workflows.cli.display import console
from workflows.cli.options import (
    AT,
    CONTEXT,
    NAMESPACE,
    REASON,
    REQUIRE_PROMOTED,
    RESULT_AS_JSON,
    WAIT,
    connected,
    rfc3339,
)
from workflows.cli.request import operating_user

if TYPE_CHECKING:
    from steps.lineage import Lineage

RUN = Annotated[str, typer.Argument(metavar="RUN|[MODEL@]VERSION", help="The run that asked, or its version.")]
MODEL = Annotated[str, typer.Option(help="Which model; needed when a version is named and there are several.")]


def approvals(
    at: AT = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """List the versions that wait for a person: what asked, since when, until when.

    [bold]Examples[/bold]

      retrain approvals

      retrain approvals --at 2026-11-01T12:00:00Z

      retrain approvals -n mlops
    """
    from steps.lifecycle import EXPIRES

    moment = rfc3339(at, "--at")
    found = _waiting_on_cluster(moment, namespace, context) if namespace or context else _waiting_here(moment)
    if json_output:
        typer.echo(json.dumps([{**entry.model_dump(mode="json"), "lapsed": why} for entry, why in found], indent=2))
        return
    for entry, why in found:
        until = why or f"until {entry.evidence[EXPIRES][:16].replace('T', ' ')} UTC"
        asked = f"asked {entry.at:%Y-%m-%d %H:%M} UTC {by_whom(entry)}"
        typer.echo(f"{entry.workflow}  {entry.model} version {entry.version}, {asked}; {until}")
    if not found:
        typer.echo("nothing waits for an approval")


def review(
    run: RUN,
    model: MODEL = "",
    page: Annotated[Path | None, typer.Option(help="Write the page that MLflow keeps of it to this file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Show what a person is asked to decide on: gate by gate, and the challenger beside the champion.

    The MLflow run keeps more of it as one HTML page (artifact gates/review-VERSION.html): slices, calibration, what
    changed in the data.

    [bold]Example[/bold]

      retrain review adult-income-20261124-101500-1a2b
    """
    run, model = _named(run, model)
    request, challenger, champion = (
        _reviewed_on_cluster(run, model, page, namespace, context)
        if namespace or context
        else _reviewed_here(run, model, page)
    )
    if json_output:
        said = {"request": request, "challenger": challenger, "champion": champion}
        typer.echo(json.dumps({key: each and each.model_dump(mode="json") for key, each in said.items()}, indent=2))
        return
    console().print(_render(request, challenger, champion), soft_wrap=True)
    kept = f"{page_name(request.version)} of MLflow run {request.run_id}; --page FILE writes it"
    typer.echo(f"page: {page if page is not None else kept}")


def approve(
    run: RUN,
    reason: REASON = "",
    model: MODEL = "",
    require_promoted: REQUIRE_PROMOTED = False,
    json_output: RESULT_AS_JSON = False,
    wait: WAIT = True,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Say yes to what a run asks for, and release it.

    At the desk the ledger keeps your name as the operating system has it, and that nobody vouched for it; on a cluster
    as the API server knows you.  The yes holds for this version, its package and the report of its gate, and for one
    release.

    [bold]Examples[/bold]

      retrain approve adult-income-20261124-101500-1a2b --reason "reviewed with the risk team"

      retrain approve adult-income-20261124-101500-1a2b --reason "reviewed" -n mlops
    """
    from workflows.cli.releases import release_here, release_there, said_already

    _say_why(reason)
    run, model = _named(run, model)
    if namespace or context:
        from workflows.cluster.approvals import decide

        there = connected(namespace, context)
        said = decide(there, run, model, approved=True, reason=reason)
        release_there(
            there, said, context, wait=wait, require_promoted=require_promoted, json_output=json_output
        )  # fmt: skip
        return
    now = datetime.now(UTC)
    home, word = _decide(run, model, State.APPROVED, reason, now)
    typer.echo(
        f"{word.model} version {word.version} approved by {word.by}{said_already(word, now)}", err=json_output
    )  # fmt: skip
    asked = run if run != str(word.version) else ""
    release_here(
        home, word, run=asked, again="the same command", require_promoted=require_promoted, json_output=json_output
    )  # fmt: skip


def reject(
    run: RUN,
    reason: REASON = "",
    model: MODEL = "",
    wait: WAIT = True,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Say no to what a run asks for.

    [bold]Example[/bold]

      retrain reject adult-income-20261124-101500-1a2b --reason "the sample of March is known to be wrong"
    """
    _say_why(reason)
    run, model = _named(run, model)
    if namespace or context:
        from workflows.cli.releases import release_there
        from workflows.cluster.approvals import decide

        there = connected(namespace, context)
        said = decide(there, run, model, approved=False, reason=reason)
        release_there(there, said, context, wait=wait, require_promoted=False, json_output=False)
        return
    _, entry = _decide(run, model, State.REJECTED, reason, datetime.now(UTC))
    typer.echo(f"{entry.model} version {entry.version} rejected by {entry.by}")


def _named(run: str, model: str) -> tuple[str, str]:
    """Take MODEL@VERSION apart."""
    before, mark, version = run.rpartition("@")
    return (version, before) if mark else (run, model)


def _say_why(reason: str) -> None:
    if not reason.strip():
        raise typer.BadParameter("say why; it is kept in the ledger", param_hint="--reason")


def _waiting_here(at: datetime | None) -> list[tuple[LedgerEntry, str]]:
    from steps.approvals import requests
    from steps.ledger import Ledger

    ledger = Ledger(desk_settings(desk_home(must_exist=True)).ledger.get_secret_value())
    now = at or datetime.now(UTC)
    return [found for model in ledger.models() for found in requests(ledger.entries(model, at), now)]


def _waiting_on_cluster(at: datetime | None, namespace: str, context: str) -> list[tuple[LedgerEntry, str]]:
    from workflows.cluster.approvals import requests

    return requests(connected(namespace, context), at)


def _reviewed_here(run: str, model: str, page: Path | None) -> tuple[LedgerEntry, Lineage, Lineage | None]:
    from steps.archive import asked
    from steps.lineage import lineage

    archive, request = asked(desk_settings(desk_home(must_exist=True)), run, model)
    if page is not None:
        with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
            kept = archive.registry.fetch(request.run_id, page_name(request.version), Path(folder))
            _write(page, kept.read_text(encoding="utf-8") if kept else "", request.version)
    before = request.evidence.get("from")
    champion = lineage(archive, str(before)) if before is not None else None
    return request, lineage(archive, str(request.version)), champion


def _reviewed_on_cluster(
    run: str, model: str, page: Path | None, namespace: str, context: str
) -> tuple[LedgerEntry, Lineage, Lineage | None]:
    from workflows.cluster import approvals as there

    place = connected(namespace, context)
    found = there.review(place, run, model)
    if page is not None:
        _write(page, there.page(place, run, model), found[0].version)
    return found


def _write(file: Path, text: str, version: int) -> None:
    if not text:
        raise ConfigError(f"MLflow has no page of version {version}", remedy="promote it anew")
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{file} can't be written: {error.strerror}", remedy="name another file after --page"
        ) from None


def _decide(run: str, model: str, state: State, reason: str, at: datetime) -> tuple[Path, LedgerEntry]:
    from steps.approvals import Person, decide
    from steps.archive import asked

    home = desk_home(must_exist=True)
    archive, _ = asked(desk_settings(home), run, model)
    person = Person(operating_user())
    try:
        return home, decide(archive.ledger, archive.model, run, state, person=person, reason=reason, at=at)
    except ConfigError as error:  # decided or lapsed: nothing that a setting could mend
        raise ConfigError(error.message, remedy="`retrain approvals` lists what waits now") from None


def _render(request: LedgerEntry, challenger: Lineage, champion: Lineage | None) -> RenderableType:
    checks = [Check.model_validate(check) for check in request.evidence.get("checks", ())]
    parts: list[RenderableType] = [
        Text(f"{request.model} version {request.version}", style="bold"),
        Text(f"asked {by_whom(request)}, {request.at:%Y-%m-%d %H:%M} UTC"),
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
