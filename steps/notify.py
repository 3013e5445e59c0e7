"""Tell how the run ended.  Called as the `notify` stage, the workflow's exit handler; changes nothing.

The message goes to the console, and to the Apprise URLs of the secret setting `notify_urls` where there are any.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from contracts import commands
from contracts.access import KANIKO
from contracts.errors import (
    BY_NAME,
    CODE,
    OUT_OF_TIME,
    STOPPED,
    ConfigError,
    NetworkError,
    StageError,
    class_of_failure,
    interruption,
)
from contracts.outcomes import Outcome, Promotion
from contracts.probes import PROBES, is_silent
from contracts.stages import STAGES, Notify
from steps.reports import read_error_report, read_ingest_report, read_release_report
from steps.rollout.cluster import Cluster
from steps.waiting import Waited, waited_for
from steps.world import World

_PROBES = {probe.name for probe in PROBES}
_TEMPLATES = {stage.name for stage in STAGES} | {KANIKO} | _PROBES
_CHECK_URLS = "check the URLs in the secret; their text is not shown here"
_ATTEMPT = re.compile(r"\((\d+)\)$")


def notify(inputs: Notify.Inputs, *, world: World) -> Notify.Outputs:
    """Send one message about the run.

    Raises
    ------
    NetworkError
        No notification service took it.
    ConfigError
        One of their URLs is not one that Apprise knows; the others were told.
    """
    outcome = conclude(inputs)
    stopped = any(_is_stop(node) for node in _decode(inputs.failures))
    said = f"{outcome.value}, stopped by a person" if stopped else outcome.value
    lines = [f"{world.pipeline.name}: {said}", *_facts(inputs, world)]
    try:
        if outcome is Outcome.FAILED:
            for failure in failed_stages(inputs.failures):
                lines += _explain(failure, world)
        if outcome is Outcome.AWAITING_APPROVAL:
            here = Cluster.inside()
            options = commands.where(here.namespace) if here else ""
            asked = f"{world.pipeline.name}@{_set(inputs.version)}"  # an earlier run may have made the request
            lines += [f"look: {commands.look(asked, options)}", f"then: {commands.decide(asked, options)}"]
        if outcome is Outcome.ROLLED_BACK and (taken_back := read_release_report(world)):
            lines.append(f"version {taken_back.version} was taken back: {taken_back.reason}")
        if report := read_ingest_report(world):
            lines += [f"warning: {warning}" for warning in report.warnings]
    except StageError as error:  # the store may be what the run failed of; the message goes out all the same
        lines.append(f"the stages' reports cannot be read: {error.message}")
    body = "\n".join(lines)
    world.log.info("%s", body)
    urls = world.settings.notify_urls.get_secret_value().split() if _wanted(outcome, world) else []
    if urls and (lost := _send(urls, title=lines[0], body=body, failed=outcome is Outcome.FAILED)):
        world.log.warning("%s did not take the message", _places(lost))
    return Notify.Outputs(outcome=outcome, summary="; ".join(lines[:2]))


def conclude(inputs: Notify.Inputs) -> Outcome:
    """Derive the run's outcome from what its stages said last."""
    if inputs.status != "Succeeded":
        return Outcome.FAILED
    if outcome := _set(inputs.outcome):
        return Outcome(outcome)
    if (decision := _set(inputs.decision)) and decision != Promotion.APPROVED.value:
        return Outcome(decision)
    if (verdict := _set(inputs.verdict)) and verdict in (Outcome.REJECTED.value, Outcome.INCONCLUSIVE.value):
        return Outcome(verdict)
    return Outcome.FAILED


@dataclass(frozen=True)
class Failure:
    """A stage that failed for good, and how its last attempt ended."""

    stage: str
    phase: str
    message: str
    pod: str = ""


def failed_stages(failures: str) -> list[Failure]:
    """Read `workflow.failures`: JSON, quoted once more as a Go string, of every node that failed.

    Among them are attempts of stages that came through in the end, the graphs around a failed stage, and its retries'
    parent, whose message says less than that of its last attempt, unless it tells of a stop between two attempts.  What
    a probe answered stands in preflight's report.
    """
    nodes = [node for node in _decode(failures) if node.get("templateName") in _TEMPLATES]
    parents = [node["templateName"] for node in nodes if not _ATTEMPT.search(node.get("displayName", ""))]
    found = []
    for stage in dict.fromkeys(parents or [node["templateName"] for node in nodes]):
        of_stage = [node for node in nodes if node["templateName"] == stage]
        attempts = [node for node in of_stage if _ATTEMPT.search(node.get("displayName", ""))]
        stops = [node for node in of_stage if _is_stop(node)]
        last = max(stops or attempts or of_stage, key=_order)
        found.append(Failure(stage, last.get("phase", ""), last.get("message", ""), last.get("podName", "")))
    return [each for each in found if each.stage not in _PROBES or is_silent(each.phase, each.message)]


def _order(node: dict[str, str]) -> tuple[str, int]:
    """Order attempts: Argo lists nodes in no order, and its times are whole seconds."""
    number = _ATTEMPT.search(node.get("displayName", ""))
    return node.get("finishedAt") or "", int(number[1]) if number else 0


def _is_stop(node: dict[str, str]) -> bool:
    return interruption(node.get("message", "")) is STOPPED


def _decode(failures: str) -> list[dict[str, str]]:
    value: Any = failures
    try:
        while isinstance(value, str):
            value = json.loads(value, strict=False)
    except ValueError:
        return []
    return [node for node in value if isinstance(node, dict)] if isinstance(value, list) else []


def _explain(failure: Failure, world: World) -> list[str]:
    ended = interruption(failure.message)
    if ended is OUT_OF_TIME and (waited := _waited(failure.pod, world)):
        return [f"{failure.stage} failed ({waited.row.name}): {waited}", f"what to do: {waited.row.remedy}"]
    if ended:
        return [f"{failure.stage} {ended.what}: {failure.message}", f"what to do: {ended.remedy}"]
    row = class_of_failure(failure.phase, failure.message, kaniko=failure.stage == KANIKO)
    report = read_error_report(world, failure.stage)
    # an attempt that was killed leaves no report: what lies there is of an attempt before it
    if report is None or (row not in (CODE, BY_NAME.get(report.error_class)) and failure.message):
        return [f"{failure.stage} failed ({row.name}): {failure.message}", f"what to do: {row.remedy}"]
    lines = [f"{failure.stage} failed ({report.error_class}): {report.message}"]
    lines += [f"  - {finding}" for finding in report.findings]
    return [*lines, f"what to do: {report.remedy}"]


def _waited(pod: str, world: World) -> Waited | None:
    here = Cluster.inside()
    try:
        return waited_for(here, pod) if here else None
    except StageError as error:
        world.log.warning("the events of %s cannot be read: %s", pod, error.message)
        return None


def _facts(inputs: Notify.Inputs, world: World) -> list[str]:
    facts = {
        "workflow": world.workflow,
        "version": _set(inputs.version),
        "run": _set(inputs.run_id),
        "serves at": _set(inputs.url),
        "MLflow": world.settings.mlflow_url,
    }
    return [", ".join(f"{name} {value}" for name, value in facts.items() if value)]


def _wanted(outcome: Outcome, world: World) -> bool:
    on = world.pipeline.notifications.on
    return outcome.value in on or (
        "other" in on and outcome.value not in ("promoted", "rejected", "inconclusive", "unchanged", "failed")
    )


def _set(value: str) -> str:
    """Return a global output, empty when it was never set: Argo leaves the tag as literal text then."""
    return "" if value.startswith("{{") else value


def _send(urls: list[str], *, title: str, body: str, failed: bool) -> list[int]:
    """Tell every service; return the places of those that did not take it, where others did.

    A service that is down does not fail the run, nor is anyone told twice for its sake.
    """
    import apprise

    unknown, lost = [], []
    for number, url in enumerate(urls, 1):
        sender = apprise.Apprise()
        if not sender.add(url):
            unknown.append(number)
        elif not sender.notify(title=title, body=body, notify_type="failure" if failed else "info"):
            lost.append(number)
    if unknown:
        raise ConfigError(f"{_places(unknown)} is not one that Apprise knows", remedy=_CHECK_URLS)
    if len(lost) == len(urls):
        raise NetworkError("no service of RETRAIN_NOTIFY_URLS took the message", remedy=_CHECK_URLS)
    return lost


def _places(numbers: list[int]) -> str:
    return f"URL {', '.join(map(str, numbers))} of RETRAIN_NOTIFY_URLS"
