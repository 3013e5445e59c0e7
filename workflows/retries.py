"""Turn the error table into the retry strategy that every container template carries.  Called by `workflows.stages`.

Argo evaluates the expression after each failed attempt; it can only veto.  It knows the last attempt's exit code,
phase and message, and `retries`, the number of that attempt counting from 0: over all attempts, whatever they died of.
Failures of one class cannot be counted apart.  So a class is tried again while `retries` is below *its own* number of
retries, which means:

- failures of one class alone are retried exactly as often as its row says, and never more often in any mixture;
- a mixture may end sooner than the sum of its rows, yet no class that asks for n retries is refused before n attempts
  have failed: the first three failures, whatever they are of, are all tried again;
- running out of memory is no matter of counting: attempt n had ``min(2^n, 4)`` times the base whatever the attempts
  before it died of, so it is tried again while that was less than 4 times.  A network failure before it starves
  nothing: the next attempt has more memory all the same.
"""

from __future__ import annotations

import math

from hera.workflows import RetryPolicy, RetryStrategy
from hera.workflows.models import Backoff

from contracts.errors import (
    ERROR_CLASSES,
    INFRASTRUCTURE,
    LOST_SIGNS,
    MEMORY_GROWTH_CAP,
    NETWORK,
    OUT_OF_MEMORY_SIGN,
    RESOURCES,
    STORAGE,
    ErrorClass,
)

OUT_OF_MEMORY = f"lastRetry.message contains '{OUT_OF_MEMORY_SIGN}'"

_LOST = (
    "lastRetry.status == 'Error'",  # pod deleted, or Argo's own containers failed
    *(f"lastRetry.message contains '{sign}'" for sign in LOST_SIGNS),
    "lastRetry.exitCode == '143' && not (lastRetry.message contains 'deadline')",  # drained, but not out of time
)
_SIGNS = {RESOURCES.name: (OUT_OF_MEMORY,), INFRASTRUCTURE.name: _LOST}
"""How a class looks to Argo besides its exit code."""


def retry_strategy(*, network: int | None = None, passing: bool = True) -> RetryStrategy:
    """Return the strategy: which failures are tried again, how often and how soon.

    `network` is another exit code of that class: that of a program which is not ours.  Without `passing`, what passes
    elsewhere is not waited for: the container only tells what others found, who have tried again themselves.
    """
    retried = [row for row in ERROR_CLASSES if row.retries and (passing or row not in (NETWORK, STORAGE))]
    told = () if passing else (INFRASTRUCTURE,)  # its exit code tells of others' pods; a lost one of its own has none
    never = ", ".join(f"'{row.exit_code}'" for row in ERROR_CLASSES if row not in retried or row in told)
    signs = {row.name: _signs(row) for row in retried}
    if network is not None:
        signs[NETWORK.name] += f" || lastRetry.exitCode == '{network}'"
    clauses = " || ".join(f"({signs[row.name]}) && asInt(retries) < {_limit(row)}" for row in retried)
    slowest = max(retried, key=lambda row: row.backoff_cap_seconds)
    return RetryStrategy(
        limit=max(row.retries for row in retried),
        retry_policy=RetryPolicy.always,
        expression=f"lastRetry.exitCode not in [{never}] && ({clauses})",
        backoff=Backoff(
            duration=str(slowest.backoff_seconds),
            factor=slowest.backoff_factor,
            cap=str(slowest.backoff_cap_seconds),
        ),
    )


def memory(base: str) -> str:
    """Return the Argo expression of an attempt's memory in MiB, from the expression of its base."""
    return f"asInt({base}) * min(2 ** asInt(retries), {MEMORY_GROWTH_CAP})"


def _limit(row: ErrorClass) -> int:
    if row is RESOURCES:
        return int(math.log2(MEMORY_GROWTH_CAP))  # attempt n had less than the cap while 2^n < cap
    return row.retries


def _signs(row: ErrorClass) -> str:
    return " || ".join(
        (f"lastRetry.exitCode == '{row.exit_code}'", *(f"({s})" if "&&" in s else s for s in _SIGNS.get(row.name, ())))
    )
