"""How DAGs go: dependencies, skipped and omitted chains, failures, outputs, retries, exit handlers; nodes as Argo's."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from contracts.errors import ConfigError
from tests.fates import DELETED
from tests.local.small_manifests import Manifest, node, phases, pod, task, workflow
from workflows.local.state import RunState

Execute = Callable[..., RunState]
NO = "'yes' == 'no'"


def echo(name: str = "say") -> Manifest:
    return pod(name, "printf '%s' \"{{inputs.parameters.text}}\" >/out/text", inputs=["text"], outputs=["text"])


def test_an_output_is_handed_on_and_nodes_are_named_as_argo_names_them(execute: Execute) -> None:
    run = execute(
        workflow(
            echo(),
            tasks=[
                task("a", "say", given={"text": "one"}),
                task("b", "say", given={"text": "{{tasks.a.outputs.parameters.text}} two"}, depends="a"),
            ],
        )
    )
    assert run.phase == "Succeeded"
    a, b = node(run, "a"), node(run, "b")
    assert b.outputs == {"text": "one two"}
    assert (a.name, a.id, a.type, a.template, a.boundary, a.exit_code) == (
        "wf.a",
        "wf-2962115457",
        "Pod",
        "say",
        "wf",
        "0",
    )
    assert run.nodes["wf"].children == (a.id,)
    assert a.children == (b.id,)
    assert a.started is not None
    assert a.finished is not None
    assert b.started is not None
    assert a.started <= a.finished <= b.started


@pytest.mark.parametrize(
    ("depends", "first", "phase"),
    [
        ("a", "exit 0", "Succeeded"),
        ("a", "exit 1", "Omitted"),
        ("a.Failed", "exit 1", "Succeeded"),
        ("a.Failed", "exit 0", "Omitted"),
        ("a.Succeeded || a.Failed", "exit 1", "Succeeded"),
        ("!a.Succeeded", "exit 1", "Succeeded"),
        ("a.Errored", "exit 1", "Omitted"),
    ],
)
def test_a_task_runs_when_its_depends_holds(execute: Execute, depends: str, first: str, phase: str) -> None:
    run = execute(workflow(pod("a", first), pod("b", "true"), tasks=[task("a"), task("b", depends=depends)]))
    assert phases(run)["b"] == phase
    assert node(run, "b").message == ("omitted: depends condition not met" if phase == "Omitted" else "")


def test_after_a_skipped_task_bare_dependents_run_and_others_are_omitted_down_the_chain(execute: Execute) -> None:
    run = execute(
        workflow(
            pod("p", "true"),
            tasks=[
                task("a", "p", when="'{{workflow.name}}' == 'other'"),
                task("bare", "p", depends="a"),
                task("strict", "p", depends="a.Succeeded"),
                task("later", "p", depends="strict"),
                task("omitted", "p", depends="strict.Omitted"),
            ],
        )
    )
    assert run.phase == "Succeeded"
    assert phases(run) == {
        "wf": "Succeeded",
        "a": "Skipped",
        "bare": "Succeeded",
        "strict": "Omitted",
        "later": "Omitted",
        "omitted": "Succeeded",
    }
    assert node(run, "a").message == "when ''wf' == 'other'' evaluated false"
    assert node(run, "a").type == "Skipped"


def test_outputs_of_a_skipped_task_are_empty_for_others_whatever_their_default(execute: Execute) -> None:
    maker = pod("make", "true", outputs=[{"name": "v", "valueFrom": {"path": "/out/v", "default": "unused"}}])
    run = execute(
        workflow(
            maker,
            echo(),
            tasks=[
                task("make", when=NO),
                task("b", "say", depends="make", given={"text": "<{{tasks.make.outputs.parameters.v}}>"}),
            ],
        )
    )
    assert node(run, "b").outputs == {"text": "<>"}


def test_a_failed_task_fails_the_dag_after_what_runs_has_ended(execute: Execute) -> None:
    run = execute(
        workflow(
            pod("bad", "exit 3"),
            pod("slow", "sleep 0.2"),
            tasks=[task("bad"), task("after", "slow", depends="bad"), task("slow")],
        )
    )
    assert run.phase == "Failed"
    assert phases(run) == {"wf": "Failed", "bad": "Failed", "after": "Omitted", "slow": "Succeeded"}
    assert node(run, "bad").message == "main: Error (exit code 3)"
    assert node(run, "bad").exit_code == "3"


def test_a_failure_that_was_taken_care_of_does_not_fail_the_dag(execute: Execute) -> None:
    run = execute(
        workflow(pod("bad", "exit 1"), pod("good", "true"), tasks=[task("bad"), task("good", depends="bad.Failed")])
    )
    assert run.phase == "Succeeded"


def test_who_joins_hears_of_a_failed_attempt_and_of_a_pod_that_was_lost(execute: Execute) -> None:
    """As preflight hears of its probes: by `get`, since Argo waits for ever for the output of a pod that left none."""
    names = ("fine", "failed", "lost")
    retries = {"retryStrategy": {"limit": 1}}
    probes = [
        pod(name, f"echo -n {name} >/out/found; exit {int(name == 'failed')}", outputs=["found"], **retries)
        for name in names
    ]
    ended = " && ".join(f"({name}.Succeeded || {name}.Failed || {name}.Errored)" for name in names)
    heard = ";".join(
        f"{{{{=get(get(get(tasks['{name}'], 'outputs'), 'parameters'), 'found') ?? ''}}}}" for name in names
    )
    joined = task("join", given={"heard": heard}, depends=ended)

    run = execute(
        workflow(*probes, pod("join", "true", inputs=["heard"]), tasks=[*map(task, names), joined]),
        fate=lambda started: DELETED if started.template == "lost" else None,
    )

    assert node(run, "join").inputs == {"heard": "fine;failed;"}
    assert (run.phase, phases(run)["failed"], phases(run)["lost"]) == ("Succeeded", "Failed", "Error")


@pytest.mark.parametrize("fail_fast", [True, False])
def test_fail_fast_and_not_end_alike_once_nothing_runs(execute: Execute, fail_fast: bool) -> None:
    run = execute(
        workflow(
            pod("bad", "exit 1"),
            pod("good", "true"),
            dag={"tasks": [task("bad"), task("x", "good"), task("y", "good", depends="x")], "failFast": fail_fast},
            tasks=[task("bad")],
        )
    )
    assert phases(run) == {"wf": "Failed", "bad": "Failed", "x": "Succeeded", "y": "Succeeded"}


def test_a_dag_is_a_task_of_another_and_gives_its_outputs(execute: Execute) -> None:
    inner = {
        "name": "inner",
        "inputs": {"parameters": [{"name": "v"}, {"name": "w", "default": "dflt"}]},
        "outputs": {"parameters": [{"name": "o", "valueFrom": {"parameter": "{{tasks.s.outputs.parameters.text}}"}}]},
        "dag": {"tasks": [task("s", "say", given={"text": "{{inputs.parameters.v}}-{{inputs.parameters.w}}"})]},
    }
    graph = workflow(
        echo(),
        inner,
        tasks=[
            task("i", "inner", given={"v": "x"}),
            task("z", "say", depends="i", given={"text": "{{tasks.i.outputs.parameters.o}}"}),
        ],
        parameters={"v": "from-workflow"},
    )
    run = execute(graph)
    assert node(run, "z").outputs == {"text": "x-dflt"}
    assert node(run, "s").name == "wf.i.s"
    assert node(run, "s").children == (node(run, "z").id,)
    alone = execute(graph, entrypoint="inner", name="wf2")
    assert node(alone, "s").outputs == {"text": "from-workflow-dflt"}


def test_an_input_that_nobody_supplies_is_refused(execute: Execute) -> None:
    with pytest.raises(ConfigError) as caught:
        execute(workflow(echo(), tasks=[task("a", "say")]))
    assert caught.value.findings[0].what == "inputs.parameters.text was not supplied"


def test_a_missing_output_takes_its_default_else_the_node_is_an_error(execute: Execute) -> None:
    with_default = pod("d", "true", outputs=[{"name": "v", "valueFrom": {"path": "/out/v", "default": "d"}}])
    run = execute(
        workflow(with_default, pod("e", "printf 'x\\n\\n' >/out/a", outputs=["a", "b"]), tasks=[task("d"), task("e")])
    )
    assert node(run, "d").outputs == {"v": "d"}
    assert (node(run, "e").phase, node(run, "e").message, node(run, "e").exit_code) == (
        "Error",
        "wait: Error (exit code 64): open /mainctrfs/out/b: no such file or directory",
        "0",
    )
    assert node(run, "e").outputs == {"a": "x\n"}  # one newline is dropped, as Argo does


def counting(codes: str, **more: object) -> Manifest:
    """A template whose attempts end with these exit codes, the attempt told by {{retries}}."""
    return pod(
        "t",
        f'set -- {codes}; shift {{{{retries}}}}; echo "{{{{lastRetry.exitCode}}}} {{{{lastRetry.status}}}}"; exit $1',
        **more,
    )


ALWAYS = {
    "limit": 5,
    "retryPolicy": "Always",
    "expression": "lastRetry.exitCode not in ['65'] && (lastRetry.exitCode == '75' && asInt(retries) < 2"
    " || lastRetry.message contains 'OOMKilled')",
}


@pytest.mark.parametrize(
    ("codes", "strategy", "attempts", "phase", "message"),
    [
        ("0", ALWAYS, 1, "Succeeded", ""),
        ("75 75 0", ALWAYS, 3, "Succeeded", ""),
        ("75 75 75 0", ALWAYS, 3, "Failed", "retryStrategy.expression evaluated to false"),
        ("65 0", ALWAYS, 1, "Failed", "retryStrategy.expression evaluated to false"),
        ("1 1 0", {"limit": "1"}, 2, "Failed", "No more retries left"),
        ("1 0", {"limit": 3, "retryPolicy": "OnError"}, 1, "Failed", "main: Error (exit code 1)"),
        ("75 0", {"limit": 3, "backoff": {"duration": "0.1", "factor": 2, "cap": "1"}}, 2, "Succeeded", ""),
    ],
)
def test_retries_go_as_argo_decides(
    execute: Execute, codes: str, strategy: dict[str, object], attempts: int, phase: str, message: str
) -> None:
    run = execute(workflow(counting(codes, retryStrategy=strategy), tasks=[task("t")]))
    retry = node(run, "t")
    assert (retry.type, retry.phase, retry.message) == ("Retry", phase, message)
    assert [run.nodes[child].display_name for child in retry.children] == [f"t({n})" for n in range(attempts)]
    assert run.phase == phase


def test_a_network_failure_before_does_not_starve_the_retry_after_running_out_of_memory(execute: Execute) -> None:
    eat = 'sleep 5 & python3 -c "import time; x = bytearray(90_000_000); time.sleep(3)"'
    script = f"[ {{{{retries}}}} = 0 ] && exit 75; [ {{{{retries}}}} = 1 ] && {eat}; true"
    memory = "{{=asInt(workflow.parameters['mem']) * min(2 ** asInt(retries), 4)}}Mi"
    patch = json.dumps({"containers": [{"name": "main", "resources": {"limits": {"memory": memory}}}]})
    run = execute(
        workflow(
            pod("t", script, retryStrategy=ALWAYS, podSpecPatch=patch), tasks=[task("t")], parameters={"mem": "32"}
        )
    )
    tried = [run.nodes[child] for child in node(run, "t").children]
    assert [(n.phase, n.message, n.exit_code) for n in tried] == [
        ("Failed", "main: Error (exit code 75)", "75"),
        ("Failed", "main: OOMKilled (exit code 137)", "137"),
        ("Succeeded", "", "0"),
    ]


def test_the_exit_handler_runs_after_a_failure_too_and_is_told(execute: Execute) -> None:
    handler = pod(
        "bye",
        "printf '%s' '{{workflow.status}}|{{=workflow.outputs.parameters.x}}|' >/out/s;"
        " printf '%s' '{{=workflow.outputs.parameters.never}}' >>/out/s; printf '%s' {{workflow.failures}} >/out/f",
        outputs=["s", "f"],
    )
    maker = pod("make", "echo 7 >/out/v", outputs=[{"name": "v", "globalName": "x", "valueFrom": {"path": "/out/v"}}])
    run = execute(
        workflow(maker, pod("bad", "exit 65"), handler, tasks=[task("make"), task("bad", depends="make")], onExit="bye")
    )
    said = node(run, "wf.onExit").outputs
    assert run.phase == "Failed"
    assert said["s"] == "Failed|7|{{=workflow.outputs.parameters.never}}"
    assert run.outputs == {"x": "7"}
    failures = json.loads(said["f"])
    assert [(f["displayName"], f["message"], f["templateName"]) for f in failures if f["displayName"] == "bad"] == [
        ("bad", "main: Error (exit code 65)", "bad")
    ]


def test_a_failed_exit_handler_fails_a_workflow_that_had_succeeded(execute: Execute) -> None:
    run = execute(workflow(pod("a", "true"), pod("bye", "exit 4"), onExit="bye"))
    assert (run.phase, run.message) == ("Failed", "main: Error (exit code 4)")


def test_a_step_that_outlives_its_deadline_is_ended_and_killed_when_it_ignores_that(execute: Execute) -> None:
    stubborn = "trap '' TERM; while :; do sleep 0.1; done"
    run = execute(
        workflow(
            pod("a", stubborn, activeDeadlineSeconds=1),
            pod("b", "sleep 30", timeout="1s"),
            tasks=[task("a"), task("b")],
        ),
        grace=0.3,
    )
    assert [(node(run, n).phase, node(run, n).message, node(run, n).exit_code) for n in "ab"] == [
        ("Failed", "Pod was active on the node longer than the specified deadline", None),
        ("Failed", "Pod was active on the node longer than the specified deadline", None),
    ]


def test_a_workflow_past_its_deadline_starts_nothing_more(execute: Execute) -> None:
    run = execute(
        workflow(
            pod("a", "sleep 30"),
            pod("bye", "true"),
            tasks=[task("a"), task("b", "a", depends="a")],
            activeDeadlineSeconds=1,
            onExit="bye",
        )
    )
    assert phases(run) == {"wf": "Failed", "a": "Failed", "b": "Omitted", "wf.onExit": "Succeeded"}
    assert node(run, "a").message == "Step exceeded its deadline"


def test_config_maps_secrets_and_empty_dirs_reach_the_step(execute: Execute) -> None:
    step = pod(
        "a",
        'cat "$CONF/k" >/out/r; printf \'%s\' "|$A|$B|$C|$D" >>/out/r',
        outputs=["r"],
        mounts=[{"name": "conf", "mountPath": "/etc/conf"}],
        volumes=[{"name": "conf", "configMap": {"name": "cm"}}],
        env=[
            {"name": "CONF", "value": "/etc/conf"},
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
            {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": True}}},
            {"name": "D", "value": "$(B) $$(B) /etc/conf"},
        ],
    )
    run = execute(
        workflow(step),
        {"kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"k": "/etc/conf"}},
        {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"p": "secret"}},
    )
    # a value of a ConfigMap is no text of the manifest: its path stays
    assert run.nodes["wf"].outputs == {"r": "/etc/conf|/etc/conf|secret||secret $(B) /etc/conf"}
