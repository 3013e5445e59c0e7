"""`retrain lineage`: which data, code and parameters made a version, and who or what let it through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from workflows.cli.checks import by_whom, checks_table, short, why
from workflows.cli.desk import desk_home, desk_settings
from workflows.cli.display import console
from workflows.cli.options import AT, CONTEXT, NAMESPACE, rfc3339

if TYPE_CHECKING:
    from steps.lineage import Lineage


def lineage(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL@]production|VERSION|...",
            help="What to explain: a version, or its run, workflow, dataset hash, commit or image digest, or a "
            "prediction's id; MODEL when there are several.",
        ),
    ] = "production",
    at: AT = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Say which dataset, code and parameters made a version, how the gates decided, and who or what let it through.

    [bold]Examples[/bold]

      retrain lineage

      retrain lineage adult-income@12

      retrain lineage production --at 2026-11-01T12:00:00Z

      retrain lineage 3fa9c01d --json

      retrain lineage adult-income@12 -n mlops
    """
    moment = rfc3339(at, "--at")
    found = _on_cluster(reference, moment, namespace, context) if namespace or context else _at_desk(reference, moment)
    if json_output:
        typer.echo(found.model_dump_json(indent=2))
        return
    console().print(render(found), soft_wrap=True)


def _at_desk(reference: str, at: datetime | None) -> Lineage:
    from steps.archive import Archive
    from steps.lineage import lineage as answer

    archive, name = Archive.named(desk_settings(desk_home(must_exist=True)), reference)
    return answer(archive, name, at)


def _on_cluster(reference: str, at: datetime | None, namespace: str, context: str) -> Lineage:
    from workflows.cluster.archive import lineage as answer
    from workflows.cluster.connection import Namespace

    return answer(Namespace.connect(namespace, context), reference, at)


def render(found: Lineage) -> RenderableType:
    """Return a lineage for people."""
    parts: list[RenderableType] = [Text(f"{found.model} version {found.version}", style="bold"), _facts(found)]
    for title, gate in (("validation gate", found.validation), ("promotion gate", found.promotion)):
        if gate is not None:
            parts += [
                Text(),
                Text(f"{title}: {gate.decision}", style="bold"),
                checks_table(gate.checks) if gate.checks else Text(gate.reason),
            ]
    parts += [Text(), Text("history", style="bold"), _history(found)]
    parts += [Text(f"note: {note}", style="yellow") for note in found.notes]
    return Group(*parts)


def _facts(found: Lineage) -> Text:
    return Text("\n").join(Text.assemble((f"{label:<16} ", "dim"), value) for label, value in _lines(found) if value)


def _lines(found: Lineage) -> Iterator[tuple[str, str]]:
    data, code = found.dataset, found.code
    yield "state", found.state.value if found.state else "not in the ledger"
    if serving := found.serving:
        answers = {True: "answers", False: "does not answer", None: ""}[serving.answers]
        place = ", ".join(part for part in (serving.url, answers, serving.image) if part)
        yield "serves since", f"{serving.since:%Y-%m-%d %H:%M:%S %Z}" + (f" ({place})" if place else "")
    if approval := found.approval:
        who = {
            "gate": f"by the gate, for {approval.claimed_requester} (not verified)",
            "person": f"by {approval.by}",
            "rollback": f"to go back, by {approval.by}",
        }[approval.word]
        reason = short(approval.reason) if approval.word == "gate" else approval.reason
        yield "let through", f"{approval.at:%Y-%m-%d %H:%M:%S %Z} {who}: {reason}"
    yield "signed by", f"key {found.signature.key}" if found.signature else ""
    if gone := found.removal:
        copies = f"; copies in {gone.archive}" if gone.archive else ""
        yield "not kept", f"removed {gone.at:%Y-%m-%d %H:%M:%S %Z} by {gone.by}: {gone.reason}{copies}"
    yield "dataset", data.uri
    yield "  sha256", data.sha256
    yield "  rows", f"{data.rows:,}" if data.rows is not None else ""
    yield "  schema", data.schema_sha256
    yield "  read from", ", ".join(data.sources)
    yield "split", found.split_sha256
    yield "transform", found.transform_sha256
    yield "code", " ".join(part for part in (f"retrain {code.version}", code.commit) if part)
    yield "  your modules", " ".join(part for part in (code.user_code, code.user_commit) if part)
    yield "  packages", ", ".join(package.pin for package in code.packages if package.wanted())
    yield "    lock", code.packages_sha256
    yield "  lock file", code.lock_sha256
    yield "  image", code.steps_image
    yield "  pipeline file", code.pipeline_sha256
    yield "  architecture", code.architecture
    yield "candidate", found.candidate
    yield "  parameters", ", ".join(f"{name}={value}" for name, value in _chosen(found.parameters))
    yield "  on test rows", ", ".join(f"{name} {value:.4g}" for name, value in _of_test(found.metrics))
    yield "MLflow run", found.run_id
    yield "workflows", ", ".join(found.workflows)


def _chosen(parameters: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The estimator's own parameters and what else decides the fit; `--json` has all."""
    for name, value in parameters.items():
        if name.startswith("parameters.") or name in ("seed", "rounds", "threshold"):
            yield name.removeprefix("parameters."), value


def _of_test(metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    return ((name.removeprefix("test."), value) for name, value in metrics.items() if name.startswith("test."))


def _history(found: Lineage) -> Text:
    return Text("\n").join(
        Text.assemble(
            (f"{entry.at:%Y-%m-%d %H:%M:%S}  ", "dim"),
            f"{entry.state.value:<11} {by_whom(entry)}: {why(entry)}  ",
            (entry.id[:12], "dim"),
        )
        for entry in found.history
    )
