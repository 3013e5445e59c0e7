"""Retention on a cluster: the plan asked in a pod of the duty `retention`, the removal done by a Workflow.

Called by `retrain retention` with a namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from contracts.access import RETENTION
from contracts.errors import ConfigError
from workflows.cluster import job
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import answer
from workflows.duties import ANSWER
from workflows.retention import NAME, RESOURCES, workflow

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
    return Outlook.model_validate(answer(namespace, RETENTION, _PLAN, patience=_PATIENCE_SECONDS, resources=RESOURCES))


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
    name = job.unique(NAME)
    namespace.create(workflow(name, str(Person(namespace.user()))))
    tell(f"{name} removes what the policy of {namespace.namespace} no longer keeps")
    ended = job.succeeded(namespace, name, remedy="the next one goes on from there")
    return Outlook.model_validate_json(next(n.outputs[ANSWER] for n in ended.nodes.values() if n.outputs.get(ANSWER)))


def _on(namespace: Namespace) -> None:
    if namespace.get("ServiceAccount", NAME) is None:
        raise ConfigError(
            f"the platform in {namespace.namespace} keeps everything: retention is off there",
            remedy="set retention.enabled=true in its values; docs/retention.md says how",
        )
