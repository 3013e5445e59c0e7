"""The local runner does what Argo was seen to do: each case of ``cases/`` against the recording beside it.

The recordings are made by `tests.conformance.record`; what they hold and how it is made comparable is in
`tests.conformance.case`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError
from tests.conformance.case import Case, all_cases, normalise, read
from tests.fates import DELETED, evicted
from workflows.local import pods, runner, state
from workflows.retries import retry_strategy

IMAGES = {"python:3.11-slim": ()}
REFUSED = "invalid spec"
"""How the message of a workflow begins that Argo refused before its first node; the local runner raises ConfigError."""


def test_there_are_at_least_sixty_cases_and_each_was_recorded() -> None:
    cases = list(all_cases())
    assert len(cases) >= 60
    assert len({case.name for case in cases}) == len(cases)
    assert [case.name for case in cases if not case.recording.exists()] == []


def test_the_cases_of_our_own_retries_use_the_expression_that_is_deployed() -> None:
    ours = [case for case in all_cases() if case.path.stem.startswith("ours-")]
    expressions = {
        strategy["expression"]
        for case in ours
        for template in case.spec["templates"]
        if (strategy := template.get("retryStrategy"))
    }
    assert expressions == {retry_strategy().expression}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in all_cases()])
def test_the_local_runner_does_what_argo_did(case: Case, tmp_path: Path) -> None:
    recorded = read(case.recording)
    if recorded.get("message", "").startswith(REFUSED):
        with pytest.raises(ConfigError):
            run(case, tmp_path, recorded)
        return
    assert run(case, tmp_path, recorded) == recorded, case.shows


def run(case: Case, home: Path, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Run a case here, under the name that it had on the cluster; return what it came to."""

    def fate(node: state.Node) -> pods.Fate | None:
        injected = case.inject.get(node.display_name)
        if injected == "evicted":
            return evicted(recorded["nodes"][node.name]["message"])  # the kubelet's words, whatever they are
        return {"oom": pods.OOM_KILLED, "deleted": DELETED}.get(injected or "")

    ended = runner.execute(
        [case.workflow, *case.objects],
        home=home,
        name=case.name,
        parameters=case.parameters,
        entrypoint=case.entrypoint,
        images=IMAGES,
        grace=0.5,
        fate=fate,
    )
    while told := {name: case.answers[name] or {} for name in ended.suspended if name in case.answers}:
        ended = runner.resume(home, case.name, images=IMAGES, grace=0.5, fate=fate, answers=told)
    return normalise(json.loads(state.to_json(ended)))
