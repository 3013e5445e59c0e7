"""What a run came to: read from its nodes and the gates' reports, shown at its end and by `retrain status`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from pydantic import Field
from rich.console import Console

from contracts import commands
from contracts.access import KANIKO
from contracts.base import Contract
from contracts.errors import (
    BY_NAME,
    CODE,
    EXIT_NOT_PROMOTED,
    OUT_OF_TIME,
    ErrorReport,
    Finding,
    class_of_failure,
    interruption,
)
from contracts.outcomes import Note, Outcome, Promotion
from contracts.reports import Check, PromotionReport, ValidationReport
from workflows.cli.checks import checks_table, short
from workflows.cli.desk import desk_settings
from workflows.cli.display import last_attempt, silent_probes, stage_nodes

if TYPE_CHECKING:
    from steps.waiting import Waited
    from workflows.local.state import Node, RunState

R = TypeVar("R", bound=Contract)
_GOOD = (Outcome.PROMOTED, Outcome.UNCHANGED)


class Gate(Contract):
    """One gate's decision."""

    decision: str
    reason: str
    checks: tuple[Check, ...]


class Summary(Contract):
    """The end of a run."""

    workflow: str
    pipeline: str
    phase: str
    outcome: Outcome | None = Field(description="None while the run goes on.")
    dataset: str = ""
    dataset_sha256: str = ""
    rows: int | None = None
    warnings: tuple[str, ...] = ()
    candidate: str = ""
    run_id: str = ""
    reused: tuple[str, ...] = Field((), description="Stages whose earlier work was taken.")
    version: int | None = None
    validation: Gate | None = None
    promotion: Gate | None = None
    release: str = Field("", description="What deploy says of it: what serves, and why.")
    alias_moved: tuple[str, ...] = Field((), description="What this run found of the alias, moved by other means.")
    url: str = ""
    curl: str = Field("", description="A request that works when pasted.")
    errors: tuple[ErrorReport, ...] = ()


@dataclass(frozen=True)
class Records:
    """Where what a run left can be read: the desk's own store, or a cluster's."""

    store: str
    """URI of the store."""
    read: Callable[[Sequence[str]], Mapping[str, bytes]]
    """Objects by URI -> those that are there."""
    describe: Callable[[str], Any]
    """URL of a server -> its OpenAPI description; raises ValueError when it does not answer."""
    waited: Callable[[str], Waited | None] = lambda _node: None
    """Node id -> what its pod waited for until it was given up."""
    options: str = ""
    """With which the commands that look at a run find it, with a space at their end."""
    alias_moved: Callable[[str, str], Sequence[str]] = lambda _model, _workflow: ()
    """Model, workflow -> what the ledger's notes say of an alias that the workflow found moved."""


def at_desk(home: Path) -> Records:
    """Return the records of the runs on this machine."""
    from steps.ledger import Ledger
    from steps.storage import Storage

    settings = desk_settings(home)
    storage = Storage(settings)

    def alias_moved(model: str, workflow: str) -> list[str]:
        entries = Ledger(settings.ledger.get_secret_value()).entries(model)
        return [entry.reason for entry in entries if (entry.state, entry.workflow) == (Note.ALIAS_MOVED, workflow)]

    return Records(
        storage.root, lambda uris: {uri: storage.read(uri) for uri in uris if storage.exists(uri)}, _describe,
        alias_moved=alias_moved,
    )  # fmt: skip


def summarise(state: RunState, records: Records) -> Summary:
    """Gather what the stages of a run answered."""
    from steps.ingest_report import IngestReport

    out = {name: node.outputs for name, node in stage_nodes(state).items() if node.phase == "Succeeded"}

    def get(stage: str, parameter: str) -> str:
        return out.get(stage, {}).get(parameter, "")

    outcome: Outcome | None = None
    if state.phase in ("Failed", "Error"):
        outcome = Outcome.FAILED
    elif text := get("notify", "outcome"):
        outcome = Outcome(text)
    url = get("deploy", "url")
    failed = {stage: node for stage, node in stage_nodes(state).items() if node.phase in ("Failed", "Error")}
    told = {stage: f"{records.store}/reports/{state.name}/{stage}.error.json" for stage in failed}
    reports = [get("ingest", "report"), get("evaluate", "report"), get("promote", "report")]
    found = records.read([uri for uri in (*reports, *told.values()) if uri])
    ingested = _report(found, reports[0], IngestReport)
    validation = _report(found, reports[1], ValidationReport)
    promotion = _report(found, reports[2], PromotionReport)
    version = get("register", "version") or str(state.parameters.get("version", ""))
    return Summary(
        workflow=state.name,
        pipeline=state.pipeline,
        phase=state.phase,
        outcome=outcome,
        dataset=get("ingest", "dataset"),
        dataset_sha256=get("ingest", "dataset-sha256"),
        rows=int(get("ingest", "rows")) if get("ingest", "rows") else None,
        warnings=tuple(str(warning) for warning in ingested.warnings) if ingested else (),
        candidate=get("train", "candidate"),
        run_id=get("train", "run-id"),
        reused=tuple(stage for stage in ("features", "train") if get(stage, "reused") == "true"),
        version=int(version) if version else None,
        validation=Gate(decision=validation.verdict, reason=validation.reason, checks=validation.checks)
        if validation
        else None,
        promotion=_promotion(promotion, get("promote", "decision"), get("promote", "summary")),
        release=get("deploy", "summary"),
        alias_moved=tuple(records.alias_moved(state.pipeline, state.name)) if "promote" in {*out, *failed} else (),
        url=url,
        curl=_request(url, records.describe) if url else "",
        errors=tuple(
            ErrorReport.model_validate_json(found[uri])
            if (uri := told[stage]) in found
            else _error(state, stage, node, records)
            for stage, node in failed.items()
        )
        + tuple(_error(state, probe.template, probe, records) for probe in silent_probes(state)),
    )


def _promotion(report: PromotionReport | None, decision: str, said: str) -> Gate | None:
    """Return what let it through, or did not; the checks only where this run asked the gate."""
    if report is None:
        return None
    if decision == Promotion.UNCHANGED:  # the report is of the day when it was let through
        return Gate(decision=decision, reason=f"version {report.version} serves already", checks=report.checks)
    reason = said.partition(": ")[2]
    if reason and reason != report.reason:  # a person's word, or that there is none
        return Gate(decision=decision, reason=reason, checks=())
    return Gate(decision=report.decision, reason=report.reason, checks=report.checks)


def conclude(final: RunState, records: Records, out: Console, *, require_promoted: bool, json_output: bool) -> None:
    """Print what a run came to and leave with its exit code."""
    summary = summarise(final, records)
    if json_output:
        typer.echo(summary.model_dump_json(indent=2))
    else:
        show(summary, out, records.options)
    code = exit_code(summary)
    if code == 0 and require_promoted and summary.outcome not in _GOOD:
        code = EXIT_NOT_PROMOTED
    raise typer.Exit(code)


def exit_code(summary: Summary) -> int:
    """Return the exit code of a run: 0 for an outcome, the failed stage's error class otherwise."""
    if summary.outcome is not Outcome.FAILED:
        return 0 if summary.outcome is not None else CODE.exit_code
    return next((BY_NAME[report.error_class].exit_code for report in summary.errors), CODE.exit_code)


def curl_line(url: str, example: dict[str, Any]) -> str:
    """Return a request for the shell."""
    body = json.dumps({"instances": [example]}, ensure_ascii=False, separators=(",", ":"))
    return f"curl -s {url}/v1/predict -H 'content-type: application/json' -d {shlex.quote(body)}"


def show(summary: Summary, console: Console, options: str = "") -> None:
    """Print the summary for people; `options` are those with which commands find it."""

    wrap = not console.record  # a terminal wraps by itself, and what is copied stays whole; a picture can't

    def line(label: str, text: str) -> None:
        console.print(f"[dim]{label:<10}[/dim] ", end="")
        console.print(text, markup=False, soft_wrap=wrap)

    console.print()
    if summary.dataset_sha256:
        line("dataset", f"sha256 {summary.dataset_sha256}, {summary.rows:,} rows")
    for warning in summary.warnings:
        line("warning", warning)
    if summary.candidate:
        line(
            "candidate",
            f"{summary.candidate} (MLflow run {summary.run_id}{', reused' if 'train' in summary.reused else ''})",
        )
    for name, gate in (("validation", summary.validation), ("promotion", summary.promotion)):
        if gate is not None:
            reason = short(gate.reason) if gate.checks else gate.reason  # the checks below say the rest
            line(name, f"{gate.decision}: {reason}" if name == "promotion" else gate.decision)
            if gate.checks:
                console.print(checks_table(gate.checks, indent=11))
    for error in summary.errors:
        line("failed", f"{error.stage} ({error.error_class}): {error.message}")
        for finding in error.findings:
            line("", f"- {finding}")
        line("what to do", error.remedy)
    if summary.version is not None and summary.outcome is not Outcome.FAILED:
        line("version", f"{summary.pipeline} {summary.version}")
    if summary.outcome is not None:
        colour = {"promoted": "green", "unchanged": "green", "failed": "red"}.get(summary.outcome.value, "yellow")
        console.print(f"[dim]{'outcome':<10}[/dim] [bold {colour}]{summary.outcome.value}[/bold {colour}]", end="")
        console.print(f"  (retrain status {options}{summary.workflow})", markup=False, style="dim", soft_wrap=wrap)
    if summary.release and summary.outcome not in _GOOD:
        line("release", summary.release)
    for moved in summary.alias_moved:
        line("warning", moved)
    if summary.outcome is Outcome.AWAITING_APPROVAL:
        asked = f"{summary.pipeline}@{summary.version}"  # an earlier run may have made the request
        line("look", commands.look(asked, options))
        line("decide", commands.decide(asked, options))
    if summary.url and not summary.curl:
        again = "" if options else "; the next `retrain run` brings it back"
        line("served at", f"{summary.url}  (nothing answers there now{again})")
    elif summary.url:
        line("serves at", f"{summary.url}  (docs: {summary.url}/docs)")
        console.print()
        console.print(summary.curl, markup=False, soft_wrap=wrap)
        if options:
            line("outside", commands.reach(summary.url, options))


def _report(found: Mapping[str, bytes], uri: str, kind: type[R]) -> R | None:
    return kind.model_validate_json(found[uri]) if uri in found else None


def _describe(url: str) -> Any:
    import httpx

    try:
        return httpx.get(f"{url}/openapi.json", timeout=5).json()
    except httpx.HTTPError as error:
        raise ValueError(f"{url} does not answer") from error


def example(described: Any) -> Any:
    """Return the instance that a server's OpenAPI description shows; raises KeyError where it shows none."""
    body = described["paths"]["/v1/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    request = described["components"]["schemas"][body["$ref"].rsplit("/", 1)[-1]]
    return request["examples"][0]["instances"][0]


def _request(url: str, describe: Callable[[str], Any]) -> str:
    """Return a request with the example that the server itself documents, empty when it does not answer."""
    try:
        return curl_line(url, example(describe(url)))
    except (KeyError, ValueError):
        return ""


def _error(state: RunState, stage: str, node: Node, records: Records) -> ErrorReport:
    """Return what the nodes say of a stage that left no report."""
    last = last_attempt(state, node)
    row = class_of_failure(last.phase, last.message, kaniko=stage == KANIKO)
    ended, message = interruption(last.message), last.message
    where = Finding(where=f"log of {stage}", what=f"retrain logs {records.options}{state.name} {stage}")
    if ended is OUT_OF_TIME and (waited := records.waited(last.id)):
        row, ended, message = waited.row, None, str(waited)
    return ErrorReport(
        error_class=row.name, stage=stage, message=message, findings=(where,), remedy=(ended or row).remedy
    )  # fmt: skip
