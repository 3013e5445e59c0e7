"""A Workflow of its own, beside the runs of pipelines: it is followed to its end, and how it failed is raised.

Called to build a version again, to remove what retention no longer keeps, and to build images.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from contracts.errors import class_of_failure, error_type
from workflows.cluster import runs
from workflows.cluster.connection import Namespace
from workflows.local.state import RunState

_LONGEST = 500


def unique(prefix: str) -> str:
    """Return a name for one, with the moment in it."""
    return f"{prefix}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"


def succeeded(
    namespace: Namespace, name: str, look: Callable[[RunState], None] = lambda _: None, *,
    what: str = "", remedy: str = "", telling: tuple[str, ...] = ("",), kaniko: bool = False,
) -> RunState:  # fmt: skip
    """Follow it to its end, and return it as it was then.

    Parameters
    ----------
    look
        Sees it each time that it changed; may raise.
    what
        Did not come about, in the message; by default its name.
    telling
        Patterns of a line of its log that says what is wrong: the last that fits the first of them is told.
    kaniko
        Whether its pod is Kaniko's.

    Raises
    ------
    StageError
        Of the class that its last pod ended with, with what that wrote.
    """
    ended = runs.follow(namespace, name, look)
    if ended.phase == "Succeeded":
        return ended
    pods = [node for node in ended.nodes.values() if node.type == "Pod"]
    last = max(pods, key=lambda node: node.started or ended.created, default=None)
    phase, message = (last.phase, last.message) if last else (ended.phase, ended.message)
    log = [line.partition(": ")[2] for line in runs.log_lines(namespace, runs.load(namespace, name))] if pods else []
    said = next((line[:_LONGEST] for sign in telling for line in reversed(log) if line and re.search(sign, line)), "")
    raise error_type(class_of_failure(phase, message, kaniko=kaniko))(
        f"{what or name}: {f'{said} ({message})' if said and message else said or message}",
        remedy=remedy or f"`retrain logs {name} -n {namespace.namespace}` has all of it",
    )
