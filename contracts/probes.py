"""Preflight's tasks: one for every duty of the graph, in a pod that has that duty's account, Secret and network policy.

Which there are follows from the stages and from what each may do.
"""

from __future__ import annotations

from contracts.access import ACCESS, KANIKO
from contracts.base import Contract
from contracts.errors import CODE, INFRASTRUCTURE, RESOURCES, Finding, class_of_failure
from contracts.stages import BY_NAME, Preflight, Probe

DUTIES: tuple[str, ...] = tuple(
    name for name in ACCESS if name != Preflight.name and (name in BY_NAME or name == KANIKO)
)


class Found(Contract):
    """One finding, its error class, and whether it is of the duty's own rights: another duty may find otherwise."""

    finding: Finding
    error_class: str
    own: bool = False


class Examined(Contract):
    """What one duty's probe came to."""

    duty: str
    checks: int
    found: tuple[Found, ...] = ()
    notes: tuple[Finding, ...] = ()


def probe_name(duty: str) -> str:
    """Return the name of a duty's task and container template."""
    return f"{Preflight.name}-{duty}"


def is_silent(phase: str, message: str) -> bool:
    """Whether a probe that failed so could not answer: its node says why, and whoever joins the answers can't know."""
    return class_of_failure(phase, message) in (RESOURCES, INFRASTRUCTURE, CODE)


def _declared(duty: str) -> type[Probe]:
    fields = {
        "__doc__": f"What {duty} will need.",
        "name": probe_name(duty),
        "account": duty,
        "duty": f"preflight as {duty}: {', '.join(sorted(need.value for need in ACCESS[duty].needs))}",
        "needs": ACCESS[duty].needs,
    }
    return type(f"Probe{duty.title()}", (Probe,), fields)


PROBES: tuple[type[Probe], ...] = tuple(_declared(duty) for duty in DUTIES)
