"""Whether a failed attempt is tried again, when, and what the Retry node says.  Pure; called by `schedule`.

Order of the checks, as in Argo: the workflow's deadline, the backoff wait, policy, limit, expression.  All must pass;
the expression can only veto, and does so after the wait.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from workflows.local.expr import compile_expression
from workflows.local.pratt import LanguageError
from workflows.local.state import Node
from workflows.local.templating import Scope

POLICIES = {"Always": ("Failed", "Error"), "OnFailure": ("Failed",), "OnError": ("Error",), "OnTransientError": ()}
"""What is tried again; no failure of a process here is one of those that Argo calls transient."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1, None: 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Again:
    """Try again now."""


@dataclass(frozen=True)
class Wait:
    """Decide again at `until`."""

    until: datetime
    message: str


@dataclass(frozen=True)
class End:
    """The Retry node ends so."""

    phase: str
    message: str


def decide(
    strategy: Mapping[str, Any], attempts: Sequence[Node], *, now: datetime, deadline: datetime | None
) -> Again | Wait | End:
    """Decide after the last of `attempts` failed.

    Parameters
    ----------
    strategy
        The manifest's ``retryStrategy``, its tags replaced.
    attempts
        All attempts, the first one first; all have ended.
    now, deadline
        The time, and when the workflow must have ended.

    Raises
    ------
    LanguageError
        The expression cannot be evaluated.
    """
    last = attempts[-1]
    ended = last.finished or now
    if deadline is not None and now > deadline:
        return End(last.phase, f"retry exceeded workflow deadline {deadline:%Y-%m-%d %H:%M:%S +0000 UTC}")
    limit = None if strategy.get("limit") is None else int(strategy["limit"])
    if (backoff := strategy.get("backoff")) is not None:
        wait = backoff_wait(backoff, len(attempts))
        if backoff.get("maxDuration"):
            latest = (attempts[0].started or now) + parse_duration(backoff["maxDuration"])
            if now > latest:
                return End(last.phase, "Max duration limit exceeded")
            if ended + wait > latest:
                return End(last.phase, "Backoff would exceed max duration limit")
        if now < ended + wait and limit is not None and len(attempts) <= limit:
            return Wait(ended + wait, f"Backoff for {_spoken(wait)}")
    expression = strategy.get("expression", "")
    policy = strategy.get("retryPolicy") or ("Always" if expression else "OnFailure")
    if last.phase not in POLICIES[policy]:
        return End(last.phase, last.message)
    if limit is not None and len(attempts) > limit:
        return End(last.phase, "No more retries left")
    if expression:
        facts = variables(len(attempts) - 1, last) | {"lastRetry.exitCode": last.exit_code or "-1"}
        try:
            again = compile_expression(expression)(Scope(facts).names)
        except LanguageError as error:
            raise LanguageError(f"unable to evaluate expression '{expression}': {error}") from None
        if again is not True:
            return End(last.phase, "retryStrategy.expression evaluated to false")
    return Again()


def backoff_wait(backoff: Mapping[str, Any], attempts: int) -> timedelta:
    """Return how long to wait after so many attempts: duration x factor^(attempts - 1), at most the cap."""
    wait = parse_duration(backoff["duration"])
    factor = int(backoff.get("factor") or 0)
    cap = parse_duration(backoff["cap"]) if backoff.get("cap") else timedelta.max
    try:
        return min(wait * factor ** (attempts - 1) if factor > 0 else wait, cap)
    except OverflowError:
        return cap


def variables(retries: int, last: Node | None) -> dict[str, str]:
    """Return what a template may say of the attempt that starts now: its number and how the last one ended."""
    took = (last.finished - last.started).total_seconds() if last and last.finished and last.started else 0
    return {
        "retries": str(retries),
        "lastRetry.exitCode": (last.exit_code if last else None) or "0",
        "lastRetry.status": last.phase if last else "",
        "lastRetry.duration": f"{took:g}",
        "lastRetry.message": last.message if last else "",
    }


def parse_duration(text: str | int) -> timedelta:
    """Read Go's durations (``90s``, ``1h30m``) and a plain number of seconds.

    Raises
    ------
    ValueError
        The text is neither.
    """
    parts = list(_DURATION.finditer(str(text)))
    if not parts or "".join(part[0] for part in parts) != str(text):
        raise ValueError(f"{text!r} is no duration")
    return timedelta(seconds=sum(float(part[1]) * _SECONDS[part[2]] for part in parts))


def _spoken(wait: timedelta) -> str:
    seconds = int(wait.total_seconds())
    hours, minutes, rest = seconds // 3600, seconds % 3600 // 60, seconds % 60
    units = [(hours, "hour"), (minutes, "minute"), (rest, "second")]
    shown = units if hours else units[1:] if minutes else units[2:]
    return " ".join(f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in shown)
