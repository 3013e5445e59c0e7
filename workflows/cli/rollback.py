"""`retrain rollback`: back to a version that served."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from contracts import commands
from contracts.outcomes import Outcome
from workflows.cli.desk import desk_home, desk_settings
from workflows.cli.options import CONTEXT, NAMESPACE, REASON, RESULT_AS_JSON, WAIT, connected
from workflows.cli.request import operating_user


def rollback(
    model: Annotated[str, typer.Argument(help="Which model; needed when there are several.")] = "",
    to: Annotated[
        int | None, typer.Option(help="A version that served; default: the last before the one that serves now.")
    ] = None,
    reason: REASON = "",
    json_output: RESULT_AS_JSON = False,
    wait: WAIT = True,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Let a version serve again that served before.

    It is a release like any other: entered in the ledger with your name, watched, and taken back when the version does
    not come up, which exits with 3.  The promotion gate is not asked again, since what serves now won against that
    version there.

    [bold]Examples[/bold]

      retrain rollback --reason "wrong answers for new customers"

      retrain rollback adult-income --to 12 --reason "the last one before the move"

      retrain rollback --reason "wrong answers for new customers" -n mlops
    """
    from steps.approvals import Person, WayBack, roll_back, way_back
    from steps.archive import Archive
    from workflows.cli.releases import release_here, release_there, said_already

    if model.isdigit():
        raise typer.BadParameter(f"a version goes with --to: --to {model}", param_hint="MODEL")
    if not reason.strip():
        raise typer.BadParameter("say why; it is kept in the ledger", param_hint="--reason")
    if namespace or context:
        from workflows.cluster import approvals as there

        place = connected(namespace, context)
        said = there.roll_back(place, model, to, reason)
        if isinstance(said, WayBack):
            _serves_already(said.about.model, said.to, json_output=json_output)
            return
        release_there(place, said, context, wait=wait, require_promoted=True, json_output=json_output)
        return
    home = desk_home(must_exist=True)
    archive = Archive.open(desk_settings(home), model)
    if (way := way_back(archive.ledger.entries(archive.model), to)).serves:
        _serves_already(archive.model, way.to, json_output=json_output)
        return
    now = datetime.now(UTC)
    word = roll_back(archive.ledger, archive.model, to, person=Person(operating_user()), reason=reason, at=now)
    typer.echo(
        f"{word.model}: back to version {word.version}, by {word.by}{said_already(word, now)}", err=json_output
    )  # fmt: skip
    again = f"`{commands.go_back(word.model, word.version)}`"  # without --to it may mean another, once this one serves
    release_here(home, word, again=again, require_promoted=True, json_output=json_output)


def _serves_already(model: str, version: int, *, json_output: bool) -> None:
    said = {"pipeline": model, "version": version, "outcome": Outcome.UNCHANGED.value}
    typer.echo(json.dumps(said) if json_output else f"{model}: version {version} serves already")
