"""Whether a failed attempt is tried again, when, and what the Retry node says.  Pure; called by `schedule`.

Order of the checks, as in Argo: the workflow's deadline, the backoff wait, policy, limit, expression.  All must pass;
the expression can only veto, and does so after the wait.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from workflows.local.expr import compile_expression
from workflows.local.pratt import LanguageError
from workflows.local.state import Node
from workflows.local.templating import Scope

# What is tried again; no failure of a process here is one of those that Argo calls transient.
POLICIES = {"Always": ("Failed", "Error"), "OnFailure": ("Failed",), "OnError": ("Error",), "OnTransientError": ()}
_DURATION = r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?"
_SECONDS = {"ms": 0.001, "s": 1, None: 1, "m": 60, "h": 3600, "d": 86400}


class Decision(NamedTuple):
    """The Retry node ends in `phase`; or this is decided again at `until`; or, with neither, it is tried again now."""

    phase: str = ""
    message: str = ""
    until: datetime | None = None


def decide(
    strategy: Mapping[str, Any], attempts: Sequence[Node], *, now: datetime, deadline: datetime | None
) -> Decision:
    """Decide after the last of `attempts`, which have all ended, failed; `strategy` has its tags replaced.

    Raises `LanguageError` where its expression cannot be evaluated, or a number or duration in it cannot be read.
    """
    last, limit = attempts[-1], None if strategy.get("limit") is None else whole_number(strategy["limit"])
    if deadline is not None and now > deadline:
        return Decision(last.phase, f"retry exceeded workflow deadline {deadline:%Y-%m-%d %H:%M:%S +0000 UTC}")
    if (backoff := strategy.get("backoff")) is not None:
        wait = _backoff_wait(backoff, len(attempts))
        until = (last.finished or now) + wait
        if backoff.get("maxDuration"):
            latest = (attempts[0].started or now) + parse_duration(backoff["maxDuration"])
            if now > latest:
                return Decision(last.phase, "Max duration limit exceeded")
            if until > latest:
                return Decision(last.phase, "Backoff would exceed max duration limit")
        if now < until and limit is not None and len(attempts) <= limit:
            return Decision("", f"Backoff for {_spoken(wait)}", until)
    expression = strategy.get("expression", "")
    policy = strategy.get("retryPolicy") or ("Always" if expression else "OnFailure")
    if last.phase not in POLICIES[policy]:
        return Decision(last.phase, last.message)
    if limit is not None and len(attempts) > limit:
        return Decision(last.phase, "No more retries left")
    if expression:
        facts = variables(len(attempts) - 1, last) | {"lastRetry.exitCode": last.exit_code or "-1"}
        try:
            again = compile_expression(expression)(Scope(facts).names)
        except LanguageError as error:
            raise LanguageError(f"unable to evaluate expression '{expression}': {error}") from None
        if again is not True:
            return Decision(last.phase, "retryStrategy.expression evaluated to false")
    return Decision()


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


def whole_number(text: str | int) -> int:
    """Read a number that may have come as text; raises `LanguageError` for another text."""
    try:
        return int(text)
    except ValueError:
        raise LanguageError(f"{text!r} is no whole number") from None


def parse_duration(text: str | int) -> timedelta:
    """Read Go's durations (``90s``, ``1h30m``) and plain numbers of seconds; raises `LanguageError` for other texts."""
    parts = list(re.finditer(_DURATION, str(text)))
    if not parts or "".join(part[0] for part in parts) != str(text):
        raise LanguageError(f"{text!r} is no duration")
    return timedelta(seconds=sum(float(part[1]) * _SECONDS[part[2]] for part in parts))


def _backoff_wait(backoff: Mapping[str, Any], attempts: int) -> timedelta:
    """Return duration x factor^(attempts - 1), at most the cap."""
    wait, factor = parse_duration(backoff["duration"]), whole_number(backoff.get("factor") or 0)
    cap = parse_duration(backoff["cap"]) if backoff.get("cap") else timedelta.max
    try:
        return min(wait * factor ** (attempts - 1) if factor > 0 else wait, cap)
    except OverflowError:
        return cap


def _spoken(wait: timedelta) -> str:
    minutes, seconds = divmod(int(wait.total_seconds()), 60)
    units = {"hour": minutes // 60, "minute": minutes % 60, "second": seconds}
    first = next((name for name, count in units.items() if count), "second")
    shown = list(units)[list(units).index(first) :]
    return " ".join(f"{units[name]} {name}{'' if units[name] == 1 else 's'}" for name in shown)
