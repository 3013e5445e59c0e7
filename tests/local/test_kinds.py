"""Steps, scripts, fan-outs, suspension, limits, references: what `test_graph` is for DAGs, and that each kind resumes.

What Argo makes of these is in `tests.conformance`; here is what the desk adds: kills, answers, answers after kills.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from tests.local.small_manifests import (
    IMAGES,
    Manifest,
    counted,
    node,
    phases,
    pod,
    starts,
    task,
    wait_for,
    waits,
    workflow,
)
from workflows.local import runner, state

Execute = Callable[..., state.RunState]
Spawn = Callable[..., "subprocess.Popen[str]"]


def steps(*groups: list[Manifest], **more: object) -> Manifest:
    return {"name": "main", "steps": [list(group) for group in groups], **more}


def echo() -> Manifest:
    return pod("echo", "printf '%s' '{{inputs.parameters.v}}' >/out/v", inputs=["v"], outputs=["v"])


def from_steps(*templates: Manifest, main: Manifest, **spec: object) -> Manifest:
    graph = workflow(*templates, main, **spec)
    graph["spec"]["entrypoint"] = "main"
    return graph


def test_steps_run_group_after_group_and_hand_on_what_they_left(execute: Execute) -> None:
    last = task("last", "echo", given={"v": "{{steps.a.outputs.parameters.v}}+{{steps.b.outputs.parameters.v}}"})
    both = [task("a", "echo", given={"v": "1"}), task("b", "echo", given={"v": "2"})]
    run = execute(from_steps(echo(), main=steps(both, [last])))
    assert run.phase == "Succeeded"
    assert node(run, "last").outputs == {"v": "1+2"}
    first, second = node(run, "[0]"), node(run, "[1]")
    assert (first.type, first.name, first.boundary) == ("StepGroup", "wf[0]", "wf")
    assert first.children == (node(run, "a").id, node(run, "b").id)
    assert node(run, "a").children == node(run, "b").children == (second.id,)


def test_a_failed_step_fails_its_group_and_starts_no_other(execute: Execute) -> None:
    bad, good = pod("bad", "exit 2"), pod("good", "true")
    run = execute(from_steps(bad, good, main=steps([task("bad")], [task("good")])))
    assert (run.phase, run.message) == ("Failed", f"child '{node(run, 'bad').id}' failed")
    assert "good" not in phases(run)


def test_a_fan_out_collects_outputs_and_results_in_the_order_of_its_items(execute: Execute) -> None:
    script = {"name": "double", "inputs": {"parameters": [{"name": "n"}]}}
    script["script"] = {
        "image": "sh",
        "command": ["sh"],
        "source": "echo $(({{inputs.parameters.n}} * 2)); echo no >&2",
    }
    graph = workflow(
        script,
        echo(),
        tasks=[
            task("all", "double", given={"n": "{{item.n}}"}, withItems=[{"n": 1}, {"n": 2}, {"n": 3}]),
            task("sum", "echo", depends="all", given={"v": "{{tasks.all.outputs.result}}"}),
            task("each", "echo", depends="sum", given={"v": "{{item}}"}, withParam="{{tasks.all.outputs.result}}"),
            task("end", "echo", depends="each", given={"v": "{{tasks.each.outputs.parameters.v}}"}),
            task("none", "echo", withParam="[]", given={"v": "{{item}}"}),
        ],
    )
    run = execute(graph)
    assert node(run, "sum").outputs == {"v": "[2,4,6]"}
    assert json.loads(node(run, "end").outputs["v"]) == ["2", "4", "6"]
    assert [run.nodes[child].display_name for child in node(run, "all").children] == [
        "all(0:n:1)", "all(1:n:2)", "all(2:n:3)",
    ]  # fmt: skip
    assert (node(run, "all").type, node(run, "none").message) == ("TaskGroup", "Skipped, empty params")


@pytest.mark.parametrize("where", ["workflow", "template", "this machine"])
def test_no_more_run_at_once_than_parallelism_allows(execute: Execute, mark: Path, where: str) -> None:
    body = f"mkdir {mark}/one || exit 1; sleep 0.05; rmdir {mark}/one"
    graph = workflow(pod("a", body), tasks=[task("a", withItems=[1, 2, 3, 4])])
    of_workflow, of_template = graph["spec"], graph["spec"]["templates"][-1]
    (of_workflow if where == "workflow" else of_template)["parallelism"] = 4 if where == "this machine" else 1
    here = {"at_once": {"main": 1} if where == "this machine" else {"main": 8}}
    assert execute(graph, **here).phase == "Succeeded"
    assert len(node(execute(graph, name="wf2", **here), "a").children) == 4


APPROVE = {
    "name": "approve",
    "suspend": {},
    "outputs": {"parameters": [{"name": "v", "valueFrom": {"supplied": {}, "default": "no"}}]},
}


def approval(mark: Path) -> Manifest:
    given = {"v": "{{tasks.approve.outputs.parameters.v}}"}
    return workflow(
        counted("a", mark),
        APPROVE,
        echo(),
        tasks=[task("a"), task("approve", depends="a"), task("echo", depends="approve", given=given)],
    )


@pytest.mark.parametrize(("answer", "said"), [({}, "no"), ({"v": "yes"}, "yes")])
def test_a_suspended_run_ends_its_runner_and_goes_on_with_an_answer(
    execute: Execute, home: Path, mark: Path, answer: dict[str, str], said: str
) -> None:
    run = execute(approval(mark))
    assert (run.finished, list(run.suspended), node(run, "approve").type) == (None, ["approve"], "Suspend")
    assert not state.is_running(home, "wf")
    with pytest.raises(ConfigError, match="no suspended node nobody"):
        runner.resume(home, "wf", images=IMAGES, answers={"nobody": {}})
    assert runner.resume(home, "wf", images=IMAGES).suspended.keys() == {"approve"}
    with pytest.raises(ConfigError, match="approve has no output w") as caught:
        runner.resume(home, "wf", images=IMAGES, answers={"approve": {"w": "yes"}})
    assert caught.value.remedy == "it has v"
    end = runner.resume(home, "wf", images=IMAGES, answers={"approve": answer})
    assert (end.phase, node(end, "echo").outputs, starts(mark, "a")) == ("Succeeded", {"v": said}, 1)


def test_an_answer_is_for_one_node_and_for_no_later_one(execute: Execute, home: Path) -> None:
    inner = {"name": "inner", "dag": {"tasks": [task("approve")]}}
    both = [task("one", "inner"), task("two", "inner"), task("three", "inner", depends="one")]
    run = execute(workflow(APPROVE, inner, tasks=both))
    assert run.suspended.keys() == {"wf.one.approve", "wf.two.approve"}
    with pytest.raises(ConfigError, match="no suspended node approve"):
        runner.resume(home, "wf", images=IMAGES, answers={"approve": {}})
    run = runner.resume(home, "wf", images=IMAGES, answers={"wf.one.approve": {}})
    assert run.suspended.keys() == {"wf.two.approve", "wf.three.approve"}
    run = runner.resume(home, "wf", images=IMAGES, answers={"wf.three.approve": {}})
    assert run.suspended.keys() == {"approve"}
    assert runner.resume(home, "wf", images=IMAGES, answers={"approve": {}}).phase == "Succeeded"


def test_a_suspended_run_with_a_deadline_waits_for_its_answer_all_the_same(execute: Execute, home: Path) -> None:
    graph = workflow(APPROVE, tasks=[task("approve")], activeDeadlineSeconds=2)
    run = execute(graph)
    assert (run.finished, run.suspended.keys()) == (None, {"approve"})
    wait_for(lambda: run.started is not None and datetime.now(UTC) > run.started + timedelta(seconds=2))
    late = runner.resume(home, "wf", images=IMAGES, answers={"approve": {}})
    assert (late.phase, node(late, "approve").message) == ("Failed", "Step exceeded its deadline")


def test_a_long_chain_is_walked_to_its_end(execute: Execute) -> None:
    never = [task(f"t{n}", "a", depends=f"t{n - 1}" if n else "approve", when="false") for n in range(1500)]
    run = execute(workflow(APPROVE, pod("a", "true"), tasks=[task("approve"), *never]))
    assert run.suspended.keys() == {"approve"}


def test_a_suspension_with_a_duration_goes_on_by_itself(execute: Execute) -> None:
    run = execute(workflow({"name": "wait", "suspend": {"duration": "1"}}, tasks=[task("wait")]))
    waited = node(run, "wait")
    assert waited.finished is not None
    assert waited.started is not None
    assert (run.phase, (waited.finished - waited.started).total_seconds() >= 1) == ("Succeeded", True)


def kinds(mark: Path) -> dict[str, Manifest]:
    """Workflows whose pod `b` waits in the middle of each kind, after `a`."""
    a, b, c = counted("a", mark), counted("b", mark, waits(mark)), counted("c", mark)
    script = {"name": "b", "script": {"image": "sh", "command": ["sh"], "source": ""}}
    script["script"]["source"] = f"echo x >>{mark}/b; " + waits(mark).replace("$$$$", "$$") + "; echo out"
    fan = counted("b", mark, f"[ '{{{{inputs.parameters.i}}}}' = 0 ] || {{ {waits(mark)}; }}", inputs=["i"])
    use = [task("a"), task("b", depends="a"), task("c", depends="b", when="'{{tasks.b.outputs.result}}' == 'out'")]
    chain = [task("a"), task("b", depends="a"), task("c", depends="b")]
    fanned = [task("a"), task("b", depends="a", withItems=[0, 1], given={"i": "{{item}}"}), task("c", depends="b")]
    return {
        "steps": from_steps(a, b, c, main=steps([task("a")], [task("b")], [task("c")])),
        "script": workflow(a, script, c, tasks=use),
        "fan-out": workflow(a, fan, c, tasks=fanned),
        "retry": workflow(a, b | {"retryStrategy": {"limit": 1}}, c, tasks=chain),
        "exit": workflow(a, b, tasks=[task("a")], onExit="b"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["steps", "script", "fan-out", "retry", "exit"])
def test_a_killed_runner_goes_on_in_the_middle_of_every_kind(spawn: Spawn, home: Path, mark: Path, kind: str) -> None:
    process = spawn(kinds(mark)[kind])
    wait_for((mark / "child").exists)
    wait_for(lambda: kind != "fan-out" or phases(state.load(home, "wf")).get("b(0:0)") == "Succeeded")
    process.send_signal(signal.SIGKILL)
    process.wait()
    (mark / "go").touch()
    end = runner.resume(home, "wf", images=IMAGES)
    assert end.phase == "Succeeded"
    assert (starts(mark, "a"), starts(mark, "b"), starts(mark, "c")) == (
        1, 3 if kind == "fan-out" else 2, 0 if kind == "exit" else 1,
    )  # fmt: skip


def test_volumes_are_gone_when_the_runner_is_killed(spawn: Spawn, home: Path, mark: Path) -> None:
    mounts = [{"name": "s", "mountPath": "/secret"}]
    step = counted("a", mark, waits(mark), mounts=mounts, volumes=[{"name": "s", "secret": {"secretName": "s"}}])
    secret = {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"p": "planted-secret"}}
    process = spawn(workflow(step), secret)
    wait_for((mark / "child").exists)
    assert list(state.run_folder(home, "wf").glob("volumes-*/**/p"))
    process.kill()
    process.wait()
    wait_for(lambda: not list(state.run_folder(home, "wf").glob("volumes-*")))


def test_a_template_of_another_object_brings_its_own_neighbours(execute: Execute, home: Path) -> None:
    library = workflow(pod("inner", "true"), {"name": "outer", "steps": [[task("inner")]]})
    library["metadata"]["name"] = "lib"
    use = {"name": "use", "templateRef": {"name": "lib", "template": "outer"}}
    main = {"kind": "Workflow", "metadata": {"name": "wf"}}
    main["spec"] = {"entrypoint": "main", "templates": [{"name": "main", "dag": {"tasks": [use]}}]}
    run = execute(main, library)
    assert run.phase == "Succeeded"
    written = json.loads(state.to_json(run))["status"]["nodes"]
    by_name = {written[key]["displayName"]: written[key] for key in written}
    assert by_name["use"]["templateRef"] == {"name": "lib", "template": "outer"}
    assert (by_name["inner"]["templateName"], by_name["inner"]["templateScope"]) == ("inner", "namespaced/lib")
    assert state.load(home, "wf") == run
    pointed = {**main, "spec": {"workflowTemplateRef": {"name": "lib"}, "entrypoint": "outer"}}
    assert execute(pointed, library, name="wf2").phase == "Succeeded"
    with pytest.raises(ConfigError, match="cannot run here"):
        execute(main, name="wf3")
