"""Give a run that passed the validation gate a version number.  Called as the `register` stage; judges nothing.

Order of effects: signature, version (both under the ledger's lock), tags, ledger entry, alias.  Each is skipped when it
is there, so the stage can be killed anywhere and run again.
"""

from __future__ import annotations

import hashlib
from typing import Any

from contracts.errors import ConfigError, DataError
from contracts.names import ALIAS_STAGING, REFERENCES, tag
from contracts.outcomes import State
from contracts.reports import ValidationReport
from contracts.stages import Register
from steps.ledger import until_won
from steps.signing import signed
from steps.world import World

_SAID_ELSEWHERE = {"run_id", "pipeline", "dataset_sha256", "split_sha256"}
"""Of a validation report, what its entry says anyway."""


def register(inputs: Register.Inputs, *, world: World) -> Register.Outputs:
    """Return the run's version, registered in MLflow and entered in the ledger once.

    Raises
    ------
    ConfigError
        The run is not finished, or has no model or no report; or there is no key to sign it by.
    DataError
        Its package was altered since it was trained, or its report since it was judged.
    """
    model = world.pipeline.name
    run = world.tracking.record(inputs.run_id)
    if run.status != "FINISHED" or not run.model_uri:
        raise ConfigError(
            f"run {inputs.run_id} is {run.status.lower()} and has no model to register", remedy="train again"
        )
    report = world.storage.read(inputs.report)
    if hashlib.sha256(report).hexdigest() != inputs.report_sha256:
        raise DataError(f"the report {inputs.report} is not the one that evaluate wrote", remedy="run evaluate again")
    judged = ValidationReport.model_validate_json(report).model_dump(mode="json", exclude=_SAID_ELSEWHERE)
    references = {name: run.tags[tag(name)] for name in REFERENCES if tag(name) in run.tags} | {"pipeline": model}
    tags = {tag(name): value for name, value in references.items()} | {tag("validation_report"): inputs.report}
    with world.ledger.exclusively(model):
        signature = signed(run, world=world)
        version = world.registry.register(inputs.run_id, run.model_uri, tags)
    evidence = {
        **references, "report": inputs.report, "report_sha256": inputs.report_sha256, "validation": judged,
        "parameters": dict(run.params), **signature,
    }  # fmt: skip
    new = _enter(world, version, inputs, evidence)
    world.registry.set_alias(ALIAS_STAGING, version)
    return Register.Outputs(version=version, summary=f"version {version} of {model}" + ("" if new else ", as before"))


def _enter(world: World, version: int, inputs: Register.Inputs, evidence: dict[str, Any]) -> bool:
    model = world.pipeline.name

    def write() -> bool:
        head = world.ledger.head(model)
        if world.ledger.state(model, version) is not None:
            return False
        world.ledger.append(
            model, State.REGISTERED, version=version, run_id=inputs.run_id, workflow=world.workflow,
            by=world.workflow, reason="passed the validation gate", evidence=evidence, after=head, at=world.now(),
        )  # fmt: skip
        return True

    return until_won(write)
