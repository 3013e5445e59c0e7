"""Join what the duties' probes found into one report, before anything is written.  The `preflight` stage."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NoReturn

from pydantic import ValidationError

from contracts.errors import (
    BY_NAME,
    CONFIG,
    INFRASTRUCTURE,
    NETWORK,
    STORAGE,
    ErrorClass,
    Finding,
    error_type,
)
from contracts.probes import DUTIES, Examined, probe_name
from contracts.settings import variable
from contracts.stages import Parameters, Preflight, contract, decode, findings
from contracts.stages import encode as text
from steps.world import World

Found = tuple[ErrorClass, Finding]
_PASSING = (NETWORK, STORAGE, INFRASTRUCTURE)


def preflight(inputs: Preflight.Inputs, *, world: World) -> Preflight.Outputs:
    """Check the parameters and gather what the probes found.

    Raises
    ------
    ConfigError
        With every finding of every check.
    NetworkError, StorageError, InfrastructureError
        When all that was found may pass: something did not answer, or was busy.
    """
    wrong, parameters = check_parameters(inputs)
    examined = [Examined.model_validate_json(line) for line in inputs.found.splitlines() if line]
    found = [(CONFIG, finding) for finding in (*wrong, *contract_findings(world))]
    found += [*joined(examined), *silent(examined)]
    if found:
        _raise(found)
    as_of = parameters.as_of if parameters and parameters.as_of else world.now()
    notes = [note for each in examined for note in each.notes]
    for note in notes:
        world.log.warning("%s", note)
    checks = sum(each.checks for each in examined) + 2
    return Preflight.Outputs(
        as_of=as_of,
        summary=f"{checks} checks passed, as of {text(as_of)}" + (f", {len(notes)} notes" if notes else ""),
    )


def check_parameters(inputs: Preflight.Inputs) -> tuple[list[Finding], Parameters | None]:
    """Check the submitted values against their declaration: Argo itself checks neither types nor enums."""
    texts = {field.replace("_", "-"): value for field, value in inputs.model_dump(exclude={"found"}).items()}
    try:
        return [], decode(Parameters, texts)
    except ValidationError as error:
        return findings(error), None


def contract_findings(world: World) -> list[Finding]:
    """The template was compiled for the stages that this image has: else one would fail for it after hours."""
    wanted = os.environ.get(variable("contract"), "")
    if not wanted or wanted == contract():
        return []
    return [
        Finding(
            where=variable("steps_image"),
            what=f"the image has stages {contract()} of retrain {world.settings.code_commit[:12] or 'at the desk'}, "
            f"the template was compiled for stages {wanted}",
            remedy="compile and apply the pipeline with the image's retrain, or name the image of the template's",
        )
    ]


def joined(examined: Iterable[Examined]) -> list[Found]:
    """Return every finding once; of one that comes of a duty's own rights, with the duties that it was seen as."""
    seen: dict[tuple[str, Finding], list[str]] = {}
    for each in examined:
        for found in each.found:
            duties = seen.setdefault((found.error_class, found.finding), [])
            duties += [each.duty] if found.own else []
    return [
        (BY_NAME[row], finding.model_copy(update={"what": f"{finding.what}, as {', '.join(duties)}"} if duties else {}))
        for (row, finding), duties in seen.items()
    ]


def silent(examined: Iterable[Examined]) -> list[Found]:
    """Return the duties whose probe ended without an answer, as infrastructure that failed."""
    answered = {each.duty for each in examined}
    return [
        (
            INFRASTRUCTURE,
            Finding(
                where=probe_name(duty),
                what="ended without an answer",
                remedy=f"its pod's message and `retrain logs` of {probe_name(duty)} say why",
            ),
        )
        for duty in DUTIES
        if duty not in answered
    ]


def _raise(found: list[Found]) -> NoReturn:
    """Raise what was found: passing faults alone keep the class of the first kind; with any other it is config."""
    message = f"{len(found)} finding{'s' if len(found) > 1 else ''} before the start"
    rows = {row for row, _ in found}
    row = next(row for row in _PASSING if row in rows) if rows <= set(_PASSING) else CONFIG
    raise error_type(row)(message, findings=[finding for _, finding in found])
