"""Look at what one duty will need, with that duty's own account, secrets and network.  Preflight's tasks.

Every check returns findings; none of them stops the others.  `preflight` joins what the probes found into one report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from contracts.errors import BY_NAME, CONFIG, NETWORK, STORAGE, ErrorClass, Finding, StageError, error_type
from contracts.probes import PROBES, Examined, Found
from contracts.stages import Probe
from steps.probes import Check, checks_of, notes_of, own_checks_of
from steps.world import World

_PASSING = (NETWORK, STORAGE)


def probe(inputs: Probe.Inputs, *, world: World) -> Probe.Outputs:
    """Run the checks of the world's duty.

    Raises
    ------
    NetworkError, StorageError
        When all that was found may pass: something did not answer, or was busy.  What was found is handed on even so.
    """
    examined = examine(inputs, world)
    rows = {BY_NAME[found.error_class] for found in examined.found}
    outputs = Probe.Outputs(found=as_line(examined), summary=_summary(examined))
    for each in (*(found.finding for found in examined.found), *examined.notes):
        world.log.warning("%s", each)
    if rows and rows <= set(_PASSING):
        kind = error_type(next(row for row in _PASSING if row in rows))
        raise kind(outputs.summary, findings=[found.finding for found in examined.found], outputs=outputs)
    return outputs


def examine(inputs: Probe.Inputs, world: World) -> Examined:
    """Return what the checks of the world's duty found."""
    checks = [(check, True) for check in own_checks_of(world.duty)]
    checks += [(check, False) for check in checks_of(world.duty)]
    found = [
        Found(finding=finding, error_class=row.name, own=own)
        for check, own in checks
        for row, finding in _collect(check, inputs, world)
    ]
    notes = tuple(note for notes in notes_of(world.duty) for note in notes(inputs, world))
    return Examined(duty=world.duty, checks=len(checks), found=tuple(found), notes=notes)


def examine_all(inputs: Probe.Inputs, world: World) -> Iterator[Examined]:
    """Run all duties' checks in this process, with this process's own rights."""
    for each in PROBES:
        yield examine(inputs, replace(world, needs=each.needs, duty=each.account))


def as_line(examined: Examined) -> str:
    """Return a line of JSON without Argo's opening tag: who pastes it reads it more than once."""
    return examined.model_dump_json().replace("{{", "{\\u007b")


def _collect(check: Check, inputs: Probe.Inputs, world: World) -> list[tuple[ErrorClass, Finding]]:
    name = check.__name__.removeprefix("check_")
    try:
        return [(CONFIG, finding) for finding in check(inputs, world)]
    except StageError as error:
        found = [*error.findings] or [Finding(where=name, what=error.message, remedy=error.remedy)]
        return [(error.row, finding) for finding in found]
    except OSError as error:
        finding = Finding(where=name, what=f"{type(error).__name__}: {error}", remedy="check path and permissions")
        return [(CONFIG, finding)]


def _summary(examined: Examined) -> str:
    found = len(examined.found)
    return f"{examined.checks} checks, {found} finding{'' if found == 1 else 's'}"
