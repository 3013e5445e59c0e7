"""Tell how the run ended.  Called as the `notify` stage, the workflow's exit handler; changes nothing.

The message goes to the console, and to the Apprise URLs of the secret setting `notify_urls` where there are any.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import ValidationError

from contracts.errors import BY_EXIT_CODE, CODE, RESOURCES, ErrorReport, NetworkError
from contracts.outcomes import Outcome, Promotion
from contracts.stages import Notify
from steps.world import World

_EXIT_CODE = re.compile(r"exit code (\d+)")


def notify(inputs: Notify.Inputs, *, world: World) -> Notify.Outputs:
    """Send one message about the run.

    Raises
    ------
    NetworkError
        When a notification service did not take it.
    """
    outcome = conclude(inputs)
    failed = failed_stages(inputs.failures) if outcome is Outcome.FAILED else {}
    lines = [f"{world.pipeline.name}: {outcome.value}", *_facts(inputs, world)]
    for stage, message in failed.items():
        lines += _explain(stage, message, world)
    body = "\n".join(lines)
    world.log.info("%s", body)
    if _wanted(outcome, world) and (urls := world.settings.notify_urls.get_secret_value().split()):
        _send(urls, title=lines[0], body=body, failed=outcome is Outcome.FAILED)
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


def failed_stages(failures: str) -> dict[str, str]:
    """Read `workflow.failures` (JSON, quoted once more as a Go string) as stage -> message of its last attempt."""
    try:
        value: Any = json.loads(failures)
        while isinstance(value, str):
            value = json.loads(value)
    except ValueError:
        return {}
    return {str(f.get("templateName", "")): str(f.get("message", "")) for f in value or () if f.get("templateName")}


def _explain(stage: str, message: str, world: World) -> list[str]:
    report = _report(stage, world)
    if report is None:
        code = _EXIT_CODE.search(message)
        row = RESOURCES if "OOMKilled" in message else BY_EXIT_CODE.get(int(code[1]) if code else CODE.exit_code, CODE)
        return [f"{stage} failed ({row.name}): {message}", f"what to do: {row.remedy}"]
    lines = [f"{stage} failed ({report.error_class}): {report.message}"]
    lines += [f"  - {finding}" for finding in report.findings]
    return [*lines, f"what to do: {report.remedy}"]


def _report(stage: str, world: World) -> ErrorReport | None:
    from steps.reports import error_report_uri

    uri = error_report_uri(world, stage)
    try:
        return ErrorReport.model_validate_json(world.storage.read(uri)) if world.storage.exists(uri) else None
    except ValidationError:
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


def _send(urls: list[str], *, title: str, body: str, failed: bool) -> None:
    import apprise

    sender = apprise.Apprise()
    refused = [number for number, url in enumerate(urls, 1) if not sender.add(url)]
    if refused or not sender.notify(title=title, body=body, notify_type="failure" if failed else "info"):
        which = (
            f"URL {', '.join(map(str, refused))} of RETRAIN_NOTIFY_URLS is not one that Apprise knows"
            if refused
            else "a service of RETRAIN_NOTIFY_URLS did not take the message"
        )
        raise NetworkError(which, remedy="check the URLs in the secret; their text is not shown here")
