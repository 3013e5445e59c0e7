"""A run's parameters reach a step as they were given, through the arguments that the stages' templates are compiled to.

Kubernetes replaces ``$(NAME)`` in a container's arguments by its environment, and so does the local runner: a parameter
must not read a secret that way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from tests.local.small_manifests import Manifest, pod, task, workflow
from workflows.local.state import RunState
from workflows.stages import BRACE, argument

Execute = Callable[..., RunState]
IMAGES = {"py": [sys.executable]}
REPEAT = "import os, sys; open(os.environ['OUT'] + '/v', 'w').write(sys.argv[1])"


def step(word: str) -> Manifest:
    """A step that answers with its one argument, and holds a secret."""
    secret = {"name": "RETRAIN_LEDGER", "value": "planted-secret"}
    template = pod("a", "", inputs=["as-of"], outputs=["v"], env=[secret, {"name": BRACE.name, "value": BRACE.value}])
    template["container"].update(image="py", command=["python", "-c"], args=[REPEAT, word])
    return template


def answer(execute: Execute, word: str, value: str) -> str:
    given = {"as-of": "{{workflow.parameters.p}}"}
    graph = workflow(step(word), tasks=[task("a", given=given)], parameters={"p": ""})
    run = execute(graph, images=IMAGES, parameters={"p": value})
    return next(node.outputs["v"] for node in run.nodes.values() if node.display_name == "a")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "http://x/$(RETRAIN_LEDGER)",
        "$$(RETRAIN_LEDGER) $ $$ $$$",
        "{{=workflow.outputs.parameters['never']}}",
        "{{=sprig.replace('@', '$', inputs.parameters['as-of'])}}@(RETRAIN_LEDGER)",
        "{a} }} {{ $(RETRAIN_BRACE)",
        "quotes ' \" and \\ and ünicode",
    ],
)
def test_a_parameter_reaches_the_step_as_it_was_given(execute: Execute, value: str) -> None:
    assert answer(execute, argument("as-of"), value) == value


def test_a_plain_tag_would_let_it_read_the_containers_environment(execute: Execute) -> None:
    assert answer(execute, "{{inputs.parameters.as-of}}", "$(RETRAIN_LEDGER)") == "planted-secret"


def test_a_reference_reads_nothing_that_the_runner_itself_holds(
    execute: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONLY_THE_RUNNERS", "x")

    assert answer(execute, "$(ONLY_THE_RUNNERS)", "") == "$(ONLY_THE_RUNNERS)"
