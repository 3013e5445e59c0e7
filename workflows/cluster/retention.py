"""Retention on a cluster: the plan asked in a pod of the duty `retention`, the removal done by a Workflow.

Called by `retrain retention` with a namespace.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from contracts.access import RETENTION
from contracts.errors import ConfigError, class_of_failure, error_type
from workflows.cluster import runs
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import answer
from workflows.duties import ANSWER
from workflows.retention import NAME, workflow

if TYPE_CHECKING:
    from steps.retention.sweep import Outlook

_PLAN = """
from datetime import UTC, datetime
from contracts.settings import load_settings
from steps.retention.sweep import look
print(patiently(lambda: look(load_settings(), datetime.now(UTC))).model_dump_json())
"""
_PATIENCE_SECONDS = 1800
"""A large store takes a while to look at."""


def look(namespace: Namespace) -> Outlook:
    """Return what would be removed; raises as `errand`, and as `apply` where it is off."""
    from steps.retention.sweep import Outlook

    _on(namespace)
    return Outlook.model_validate(answer(namespace, RETENTION, _PLAN, patience=_PATIENCE_SECONDS))


def apply(namespace: Namespace, tell: Callable[[str], None]) -> Outlook:
    """Remove what goes by a Workflow; wait, and return what that was.

    Raises
    ------
    ConfigError
        The platform has nobody who may remove anything.
    StageError
        Of the class that it ended with.
    """
    from steps.approvals import Person
    from steps.retention.sweep import Outlook

    _on(namespace)
    name = f"{NAME}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"
    namespace.create(workflow(name, str(Person(namespace.user()))))
    tell(f"{name} removes what the policy of {namespace.namespace} no longer keeps")
    ended = runs.follow(namespace, name, lambda _: None)
    pods = [node for node in ended.nodes.values() if node.type == "Pod"]
    if ended.phase == "Succeeded":
        return Outlook.model_validate_json(next(node.outputs[ANSWER] for node in pods if node.outputs.get(ANSWER)))
    last = max(pods, key=lambda node: node.started or ended.created, default=None)
    lines = list(runs.log_lines(namespace, runs.load(namespace, name))) if pods else []
    said = lines[-1].partition(": ")[2] if lines else ended.message
    kind = error_type(class_of_failure(last.phase if last else ended.phase, last.message if last else ended.message))
    raise kind(f"{name}: {said[:500]}", remedy="the next one goes on from there")


def _on(namespace: Namespace) -> None:
    if namespace.get("ServiceAccount", NAME) is None:
        raise ConfigError(
            f"the platform in {namespace.namespace} keeps everything: retention is off there",
            remedy="set retention.enabled=true in its values; docs/retention.md says how",
        )
