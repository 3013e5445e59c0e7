"""`retrain retention`: what the policy no longer keeps, and its removal."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer
from rich.table import Table
from rich.text import Text

from workflows.cli.desk import desk_home, desk_settings
from workflows.cli.display import console
from workflows.cli.options import CONTEXT, NAMESPACE, RESULT_AS_JSON, connected
from workflows.cli.request import operating_user

if TYPE_CHECKING:
    from rich.console import Console

    from steps.retention.sweep import Outlook

app = typer.Typer(no_args_is_help=True, help="Remove old versions, runs, datasets and images by policy.")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@app.command()
def plan(json_output: RESULT_AS_JSON = False, namespace: NAMESPACE = "", context: CONTEXT = "") -> None:
    """Say what would be removed and why, and change nothing.  With --json also what stays, and why.

    The policy is the environment's: RETRAIN_RETENTION_SERVED_YEARS, _UNSERVED_DAYS, _RECORDS_DAYS, _ARCHIVE.

    [bold]Examples[/bold]

      retrain retention plan

      RETRAIN_RETENTION_UNSERVED_DAYS=30 retrain retention plan

      retrain retention plan -n mlops --json
    """
    if namespace or context:
        from workflows.cluster.retention import look as look_there

        found = look_there(connected(namespace, context))
    else:
        from steps.retention.sweep import look

        found = look(desk_settings(desk_home(must_exist=True)), datetime.now(UTC))
    _show(found, json_output=json_output, done=False)


@app.command()
def apply(json_output: RESULT_AS_JSON = False, namespace: NAMESPACE = "", context: CONTEXT = "") -> None:
    """Enter in the ledger what goes, copy it to the archive where one is set, and remove it.

    Cut off, the next one goes on from there.  `retrain lineage` still answers for every version.

    [bold]Examples[/bold]

      retrain retention apply

      retrain retention apply -n mlops
    """
    if namespace or context:
        from workflows.cluster.retention import apply as apply_there

        found = apply_there(connected(namespace, context), lambda line: typer.echo(line, err=True))
    else:
        from steps.approvals import Person
        from steps.retention.sweep import apply as apply_here

        found = apply_here(
            desk_settings(desk_home(must_exist=True)), datetime.now(UTC), workflow="retention",
            by=str(Person(operating_user())),
        )  # fmt: skip
    _show(found, json_output=json_output, done=True)


def _show(found: Outlook, *, json_output: bool, done: bool) -> None:
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
        return
    out, goes, total, policy = console(), found.goes, found.total, found.policy
    if goes:
        table = Table("removed" if done else "goes", "size", "why", box=None, pad_edge=False)
        for decision in goes:
            table.add_row(Text(decision.key), _size(decision.size), Text(decision.reason))
        out.print(table)
        _say_rest(out, total.things - len(goes))
    kept = Counter(decision.kind.value for decision in found.decisions if decision.keep)
    out.print(
        f"policy: {policy.served_years} years where served, else {policy.unserved_days} days, "
        f"records {policy.records_days} days; "
        + (f"copies go to {found.archive} first" if found.archive else "no archive"),
        highlight=False,
    )  # fmt: skip
    much = ", ".join(filter(None, (f"{total.things} things", _size(total.size)))) if total.things else "nothing"
    stays = ", ".join(f"{count} {kind}" for kind, count in sorted(kept.items()))
    out.print(f"{'removed' if done else 'goes'}: {much}" + (f"; stays: {stays}" if stays else ""), highlight=False)
    for line in found.left:
        out.print(Text(f"note: {line}", style="yellow"))
    _say_rest(out, total.left - len(found.left))


def _say_rest(out: Console, count: int) -> None:
    """Say of how many things an answer from a cluster leaves out the names."""
    if count > 0:
        out.print(f"... and {count} more, which the log of that workflow names", highlight=False)


def _size(size: int) -> str:
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if size else ""
