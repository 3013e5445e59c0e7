"""Kills, Ctrl-C, locks and refusals: finished stays finished, nothing outlives the runner, nothing unknown starts."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from tests.fates import DELETED, evicted
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
from workflows.local import guard, pods, runner, schedule, state
from workflows.local.locks import Lock

Spawn = Callable[..., "subprocess.Popen[str]"]
Execute = Callable[..., state.RunState]


def gone(pid: int) -> bool:
    return guard.process_start(pid) == "" or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def chain(mark: Path, middle: str) -> Manifest:
    return workflow(
        counted("a", mark, "echo 1 >/out/v", outputs=["v"]),
        counted("b", mark, middle),
        counted("c", mark),
        tasks=[task("a"), task("b", depends="a"), task("c", depends="b")],
    )


def test_a_killed_runner_takes_its_steps_along_and_a_resume_redoes_no_finished_one(
    spawn: Spawn, home: Path, mark: Path
) -> None:
    process = spawn(chain(mark, waits(mark)))
    wait_for((mark / "child").exists)
    wait_for(lambda: node(state.load(home, "wf"), "b").pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for name in ("pid", "child"):
        wait_for(lambda name=name: gone(int((mark / name).read_text())))
    cut = state.load(home, "wf")
    assert (phases(cut)["a"], phases(cut)["b"], cut.finished) == ("Succeeded", "Running", None)
    assert not state.is_running(home, "wf")
    (mark / "go").touch()
    end = runner.resume(home, "wf", images=IMAGES)
    assert end.phase == "Succeeded"
    assert [starts(mark, name) for name in "abc"] == [1, 2, 1]
    assert node(end, "b").id == node(cut, "b").id


def test_a_leftover_that_lost_its_guard_is_ended_by_the_resume(spawn: Spawn, home: Path, mark: Path) -> None:
    process = spawn(chain(mark, waits(mark)))
    wait_for((mark / "child").exists)
    wait_for(lambda: node(state.load(home, "wf"), "b").pid)
    guards = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    leftover = int((mark / "pid").read_text())
    for pid in (int(pid) for pid in guards if int(pid) != leftover):
        os.kill(pid, signal.SIGSTOP)  # the guard, while it cannot act
    process.kill()
    process.wait()
    time.sleep(0.1)
    assert not gone(leftover)
    (mark / "go").touch()
    assert runner.resume(home, "wf", images=IMAGES).phase == "Succeeded"
    assert gone(leftover)
    for pid in (int(pid) for pid in guards if int(pid) != leftover):
        os.kill(pid, signal.SIGKILL)


def test_a_killed_step_fails_as_argo_says_and_is_retried_only_when_the_strategy_says(
    execute: Execute, mark: Path
) -> None:
    run = execute(workflow(counted("a", mark, "kill -9 $$$$"), tasks=[task("a")]))
    assert (node(run, "a").phase, node(run, "a").message) == ("Failed", "main: Error (exit code 137)")
    again = execute(
        workflow(
            counted("b", mark, "[ {{retries}} = 1 ] || kill -9 $$$$", retryStrategy={"limit": 1}), tasks=[task("b")]
        ),
        name="wf2",
    )
    assert (again.phase, starts(mark, "b")) == ("Succeeded", 2)


@pytest.mark.parametrize(
    ("fate", "phase", "message", "code"),
    [
        (pods.OOM_KILLED, "Failed", "main: OOMKilled (exit code 137)", "137"),
        (evicted(), "Failed", "The node was low on resource: memory.", None),
        (DELETED, "Error", "pod deleted", None),
    ],
)
def test_an_injected_end_is_what_the_node_gets_and_a_retry_sees(
    execute: Execute, fate: pods.Fate, phase: str, message: str, code: str | None
) -> None:
    graph = workflow(pod("a", "sleep 5", retryStrategy={"limit": 1, "retryPolicy": "Always"}), tasks=[task("a")])
    run = execute(graph, fate=lambda _: fate)
    assert [(n.phase, n.message, n.exit_code) for n in (node(run, "a(0)"), node(run, "a(1)"))] == [
        (phase, message, code)
    ] * 2


def test_a_killed_guard_is_replaced(execute: Execute, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen[bytes]] = []
    spawn = guard.Guard._spawn
    monkeypatch.setattr(guard.Guard, "_spawn", lambda self: made.append(spawn(self)) or made[-1])

    def kill(run: state.RunState) -> None:
        if len(made) == 1 and phases(run).get("a") == "Running":
            made[0].kill()
            made[0].wait()

    run = execute(workflow(pod("a", "true"), tasks=[task("a"), task("b", "a", depends="a")]), on_change=kill)
    assert (run.phase, len(made)) == ("Succeeded", 2)


def test_ctrl_c_ends_the_steps_and_leaves_a_state_that_resumes(spawn: Spawn, home: Path, mark: Path) -> None:
    process = spawn(chain(mark, "trap '' TERM; " + waits(mark)))
    wait_for((mark / "child").exists)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out.splitlines()[-1] == "END Running True"
    assert gone(int((mark / "pid").read_text()))
    cut = state.load(home, "wf")
    assert (cut.interrupted, phases(cut)["a"], phases(cut)["b"]) == (True, "Succeeded", "Pending")
    (mark / "go").touch()
    end = runner.resume(home, "wf", images=IMAGES)
    assert (end.phase, end.interrupted, end.message) == ("Succeeded", False, "")
    assert [starts(mark, name) for name in "abc"] == [1, 2, 1]


def test_what_a_step_leaves_running_ends_with_it_but_a_session_of_its_own_goes_on(execute: Execute, mark: Path) -> None:
    alone = "import subprocess; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid)"
    script = f'sleep 60 & echo $! >{mark}/left; {sys.executable} -c "{alone}" >{mark}/own'
    assert execute(workflow(pod("a", script), tasks=[task("a")])).phase == "Succeeded"
    own = int((mark / "own").read_text())
    wait_for(lambda: gone(int((mark / "left").read_text())))
    assert not gone(own)
    os.kill(own, signal.SIGKILL)


@pytest.mark.parametrize("where", ["template", "workflow"])
def test_the_second_run_waits_for_the_mutex_and_says_so(spawn: Spawn, home: Path, mark: Path, where: str) -> None:
    lock = {"mutexes": [{"name": "only-{{workflow.parameters.p}}"}]}
    graph = workflow(
        counted("a", mark, f"while [ ! -e {mark}/go ]; do sleep 0.02; done"),
        tasks=[task("a")],
        parameters={"p": "x"},
        **({"synchronization": lock} if where == "workflow" else {}),
    )
    if where == "template":
        graph["spec"]["templates"][-1]["synchronization"] = lock
    first = spawn(graph, name="first")
    wait_for(lambda: starts(mark, "a") == 1)
    second = spawn(graph, name="second")
    assert second.stdout is not None
    line = second.stdout.readline()
    assert line.split(maxsplit=1)[1].strip() == "Waiting for default/Mutex/only-x lock. Lock status: 0/1"
    assert state.is_running(home, "second")
    time.sleep(0.2)
    assert starts(mark, "a") == 1
    (mark / "go").touch()
    assert first.wait(20) == 0
    second.communicate(timeout=20)
    assert [state.load(home, name).phase for name in ("first", "second")] == ["Succeeded", "Succeeded"]
    assert starts(mark, "a") == 2


def test_the_mutex_of_a_killed_run_is_free_and_a_resume_takes_it_again(spawn: Spawn, home: Path, mark: Path) -> None:
    graph = workflow(counted("a", mark, waits(mark)), tasks=[task("a")], synchronization={"mutexes": [{"name": "m"}]})
    process = spawn(graph)
    wait_for((mark / "child").exists)
    process.kill()
    process.wait()
    (mark / "go").touch()
    assert runner.resume(home, "wf", images=IMAGES).phase == "Succeeded"


CHANGES: dict[str, tuple[str, Manifest, str]] = {
    "spec.hooks": ("spec", {"hooks": {}}, "is not supported"),
    "spec.parallelism": ("spec", {"parallelism": "many"}, "whole number"),
    "spec.activeDeadlineSeconds": ("spec", {"activeDeadlineSeconds": "soon"}, "whole number"),
    "spec.entrypoint": ("spec", {"entrypoint": "nowhere"}, "nowhere"),
    "spec.arguments.parameters[p]": (
        "spec",
        {"arguments": {"parameters": [{"name": "p", "value": "x", "enum": ["a"]}]}},
        "'x' is none of a",
    ),
    "spec.arguments.parameters[q]": ("spec", {"arguments": {"parameters": [{"name": "q"}]}}, "no value"),
    "spec.templates[a]": ("template", {"script": {}}, "should have one of"),
    "spec.templates[a].resource": ("template", {"resource": {}}, "is not supported"),
    "spec.templates[a].retryStrategy.expression": ("template", {"retryStrategy": {"expression": "foo(1)"}}, "foo"),
    "spec.templates[a].retryStrategy.retryPolicy": (
        "template",
        {"retryStrategy": {"retryPolicy": "OnMonday"}},
        "is none of",
    ),
    "spec.templates[a].retryStrategy.backoff.duration": (
        "template",
        {"retryStrategy": {"backoff": {"duration": "soon"}}},
        "'soon' is no duration",
    ),
    "spec.templates[a].retryStrategy.limit": ("template", {"retryStrategy": {"limit": "many"}}, "no whole number"),
    "spec.templates[a].timeout": ("template", {"timeout": "soon"}, "'soon' is no duration"),
    "spec.templates[a].inputs.parameters[q]": (
        "template",
        {"inputs": {"parameters": [{"name": "q", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}},
        "no ConfigMap 'cm'",
    ),
    "spec.templates[main].timeout": ("main", {"timeout": "5s"}, "is a container's"),
    "spec.templates[main].activeDeadlineSeconds": ("main", {"activeDeadlineSeconds": 5}, "is a container's"),
    "spec.templates[a].outputs.parameters[o].valueFrom.path": (
        "template",
        {"outputs": {"parameters": [{"name": "o", "valueFrom": {"path": "/etc/passwd"}}]}},
        "no volumeMount",
    ),
    "spec.templates[a].container.livenessProbe": ("container", {"livenessProbe": {}}, "is not supported"),
    "spec.templates[a].container.image": ("container", {"image": "elsewhere"}, "'elsewhere'"),
    "spec.templates[a].container.command": ("container", {"command": []}, "written out"),
    "spec.templates[a].container.args[0]": ("container", {"args": ["{{inputs.parameters.q}}"]}, "inputs.parameters.q"),
    "spec.templates[a].container.workingDir": ("container", {"workingDir": "{{worklow.name}}"}, "names nothing"),
    "spec.templates[a].container.args[1]": ("container", {"args": ["true", "{{=eval('1')}}"]}, "eval"),
    "spec.templates[a].container.env[envFrom]": (
        "container",
        {"envFrom": [{"secretRef": {"name": "s"}}]},
        "no Secret 's'",
    ),
    "spec.templates[main].dag": ("task", {"depends": "a"}, "circle"),
    "spec.templates[main].dag.tasks[a].hooks": ("task", {"hooks": {}}, "is not supported"),
    "spec.templates[main].dag.target": ("dag", {"target": "a"}, "is not supported"),
    "spec.templates[main].dag.tasks[a].depends": ("task", {"depends": "b"}, "no task b"),
    "spec.templates[main].dag.tasks[a].withItems": ("task", {"withItems": "none"}, "should be a list"),
    "spec.templates[main].dag.tasks[a].template": ("task", {"template": "zz"}, "zz"),
    "spec.templates[main].dag.tasks[a].when": ("task", {"when": "'a' = 'b'"}, "Invalid token"),
}
"""Path of the finding to: which part of the manifest is changed, how, and what is said."""


@pytest.mark.parametrize("where", CHANGES)
def test_what_is_not_known_is_refused_by_its_path_before_anything_starts(
    execute: Execute, home: Path, mark: Path, where: str
) -> None:
    part, change, what = CHANGES[where]
    manifest = workflow(counted("a", mark), tasks=[task("a")])
    spec = manifest["spec"]
    parts = {
        "spec": spec,
        "template": spec["templates"][0],
        "container": spec["templates"][0]["container"],
        "task": spec["templates"][1]["dag"]["tasks"][0],
        "dag": spec["templates"][1]["dag"],
        "main": spec["templates"][1],
    }
    parts[part].update(change)
    with pytest.raises(ConfigError) as caught:
        execute(manifest)
    assert (where, True) in [(finding.where, what in finding.what) for finding in caught.value.findings]
    assert starts(mark, "a") == 0
    assert not home.exists()


def test_two_things_of_one_name_are_refused(execute: Execute) -> None:
    base, twice = workflow(pod("a", "true")), {"kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {}}
    for manifests in ([workflow(pod("a", "true"), pod("a", "false"))], [base, twice, dict(twice)]):
        with pytest.raises(ConfigError) as caught:
            execute(*manifests)
        assert [finding.what for finding in caught.value.findings] == ["stands twice"]


def test_a_parameter_that_the_workflow_has_not_is_refused(execute: Execute) -> None:
    with pytest.raises(ConfigError) as caught:
        execute(workflow(pod("a", "true")), parameters={"sauce": "x"})
    assert caught.value.findings[0].where == "sauce"


def test_an_argument_comes_from_a_config_map_that_bears_argos_label(execute: Execute) -> None:
    say = pod("a", "printf %s '{{workflow.parameters.p}}' >/out/v", outputs=["v"])
    graph = workflow(say, parameters={"p": {"name": "p", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}})
    plain = {"kind": "ConfigMap", "metadata": {"name": "cm"}, "data": {"k": "v"}}
    with pytest.raises(ConfigError) as caught:
        execute(graph, plain)
    assert "configmap-type" in caught.value.findings[0].what
    labelled = {**plain, "metadata": {"name": "cm", "labels": {"workflows.argoproj.io/configmap-type": "Parameter"}}}
    assert execute(graph, labelled).nodes["wf"].outputs == {"v": "v"}


def test_an_image_of_a_branch_that_never_runs_needs_no_local_command(execute: Execute) -> None:
    other = pod("other", "true")
    other["container"]["image"] = "elsewhere"
    graph = workflow(
        pod("a", "true"),
        other,
        tasks=[task("a"), task("o", "other", depends="a", when="'{{workflow.parameters.way}}' == 'other'")],
        parameters={"way": "here"},
    )
    assert phases(execute(graph))["o"] == "Skipped"
    with pytest.raises(ConfigError):
        execute(graph, parameters={"way": "other"}, name="wf2")


def test_the_word_of_a_command_gives_way_to_the_image_s_local_words(execute: Execute) -> None:
    step = pod("a", "", outputs=["v"])
    step["container"].update(
        image="py",
        command=["python", "-c"],
        args=["import os, sys; open(os.environ['OUT'] + '/v', 'w').write(sys.executable)"],
    )
    assert execute(workflow(step), images={"py": [sys.executable]}).nodes["wf"].outputs == {"v": sys.executable}


def test_no_secret_is_kept_and_a_resume_asks_for_it_again(spawn: Spawn, home: Path, mark: Path) -> None:
    step = counted(
        "a",
        mark,
        waits(mark),
        env=[{"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}}],
    )
    applied = {"kubectl.kubernetes.io/last-applied-configuration": '{"stringData":{"p":"planted-secret"}}'}
    named = {"name": "s", "annotations": applied}
    secret = {"kind": "Secret", "metadata": named, "data": {"p": "cGxhbnRlZC1zZWNyZXQ="}}
    process = spawn(workflow(step, tasks=[task("a")]), secret)
    wait_for((mark / "child").exists)
    process.kill()
    process.wait()
    wait_for(lambda: not list(state.run_folder(home, "wf").glob("volumes-*")))
    for path in (p for p in home.rglob("*") if p.is_file()):
        assert b"planted-secret" not in path.read_bytes()
        assert b"cGxhbnRlZC1zZWNyZXQ" not in path.read_bytes()
    with pytest.raises(ConfigError, match="needs its Secret s again"):
        runner.resume(home, "wf", images=IMAGES)
    (mark / "go").touch()
    assert runner.resume(home, "wf", images=IMAGES, secrets=[secret]).phase == "Succeeded"


def test_what_is_kept_of_a_run_is_for_its_owner_alone(execute: Execute, home: Path) -> None:
    execute(workflow(pod("a", "true")), parameters={})
    folder = state.run_folder(home, "wf")
    assert [(folder / name).stat().st_mode & 0o777 for name in ("state.json", "manifest.json")] == [0o600, 0o600]


def test_where_the_system_has_no_proc_the_same_holds(
    execute: Execute, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PROC", mark / "no-proc")
    run = execute(workflow(pod("a", f"sleep 60 & echo $! >{mark}/left; exit 3"), tasks=[task("a")]))
    monkeypatch.undo()
    assert node(run, "a").exit_code == "3"
    wait_for(lambda: gone(int((mark / "left").read_text())))


@pytest.mark.parametrize("system", ["linux", "other"])
def test_a_process_is_known_by_its_start_until_it_is_gone(
    system: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if system == "other":
        monkeypatch.setattr(guard, "PROC", tmp_path)
    process = subprocess.Popen(["sleep", "60"])
    assert guard.process_start(process.pid) == guard.process_start(process.pid) != ""
    process.kill()
    process.wait()
    assert guard.process_start(process.pid) == ""


def test_a_run_is_found_by_its_digest_only_while_it_is_cut_off(spawn: Spawn, execute: Execute, home: Path) -> None:
    def seen(run: state.RunState) -> None:
        assert state.find_unfinished(home, "d") is None  # at work, not cut off

    run = execute(workflow(pod("a", "true")), digest="d", on_change=seen)
    assert state.find_unfinished(home, "d") is None
    cut = run._replace(finished=None, phase="Running")
    state.StateFile(home, "wf").write(cut)
    assert state.find_unfinished(home, "d") == "wf"
    assert state.find_unfinished(home, "d", run.created) == "wf"
    assert state.find_unfinished(home, "d", run.created + timedelta(seconds=1)) is None


def test_a_run_is_not_resumed_twice_at_once(spawn: Spawn, home: Path, mark: Path) -> None:
    process = spawn(chain(mark, waits(mark)))
    wait_for((mark / "child").exists)
    with pytest.raises(ConfigError, match="running already"):
        runner.resume(home, "wf", images=IMAGES)
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def test_a_resume_goes_on_from_what_the_other_one_left(
    spawn: Spawn, home: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = spawn(chain(mark, waits(mark)))
    wait_for((mark / "child").exists)
    process.kill()
    process.wait()
    (mark / "go").touch()
    take, faster = Lock.take, [True]

    def late(lock: Lock, patience: float = 0.0) -> bool:
        if faster:
            faster.clear()
            assert runner.resume(home, "wf", images=IMAGES).phase == "Succeeded"
        return take(lock, patience)

    monkeypatch.setattr(Lock, "take", late)
    before = starts(mark, "b")
    assert runner.resume(home, "wf", images=IMAGES).phase == "Succeeded"
    assert (faster, starts(mark, "b")) == ([], before + 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"suspend": {"duration": "{{inputs.parameters.x}}"}}, "'soon' is no duration"),
        (pod("b", "false", retryStrategy={"limit": "{{inputs.parameters.x}}"}), "'soon' is no whole number"),
        (
            pod("b", "false", retryStrategy={"limit": 1, "backoff": {"duration": "{{inputs.parameters.x}}"}}),
            "'soon' is no duration",
        ),
        (pod("b", "false", timeout="{{inputs.parameters.x}}"), "'soon' is no duration"),
    ],
    ids=["suspend", "limit", "backoff", "timeout"],
)
def test_a_value_that_cannot_be_read_ends_its_node_and_not_the_runner(
    execute: Execute, mark: Path, broken: Manifest, message: str
) -> None:
    template = {**broken, "name": "b", "inputs": {"parameters": [{"name": "x", "value": "soon"}]}}
    run = execute(workflow(counted("a", mark), template, tasks=[task("a"), task("b", depends="a")]))
    assert (run.phase in ("Error", "Failed"), phases(run)["a"]) == (True, "Succeeded")
    assert message in next(n.message for n in run.nodes.values() if n.display_name == "b")


def test_what_has_ended_is_kept_even_when_the_runner_fails(
    execute: Execute, home: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = schedule.Walk.advance

    def fails(walk: schedule.Walk) -> schedule.Advance:
        if any(n.template == "a" and n.fulfilled for n in walk.nodes.values()):
            raise RuntimeError("a defect")
        return advance(walk)

    monkeypatch.setattr(schedule.Walk, "advance", fails)
    with pytest.raises(RuntimeError, match="a defect"):
        execute(workflow(counted("a", mark), pod("b", "true"), tasks=[task("a"), task("b", depends="a")]))
    monkeypatch.undo()
    assert runner.resume(home, "wf", images=IMAGES).phase == "Succeeded"
    assert starts(mark, "a") == 1


def test_who_waits_for_a_mutex_ends_with_the_workflow_s_time(
    execute: Execute, spawn: Spawn, home: Path, mark: Path
) -> None:
    holds = workflow(counted("a", mark, waits(mark)), tasks=[task("a")])
    holds["spec"]["templates"][0]["synchronization"] = {"mutexes": [{"name": "m"}]}
    spawn(holds)
    wait_for((mark / "child").exists)
    late = copy.deepcopy(holds)
    late["spec"]["activeDeadlineSeconds"] = 1
    run = execute(late, name="late")
    assert (run.phase, node(run, "a").message) == ("Failed", schedule.DEADLINE)
    assert starts(mark, "a") == 1
    assert state.is_running(home, "wf")


def test_the_state_file_holds_all_and_refuses_another_format(execute: Execute, home: Path) -> None:
    run = execute(
        workflow(
            pod("a", "echo hello; exit 2", retryStrategy={"limit": 1}),
            pod("b", "true"),
            tasks=[task("a"), task("b", depends="a.Failed")],
        )
    )
    assert state.load(home, "wf") == run
    assert [r.name for r in state.list_runs(home)] == ["wf"]
    first = node(run, "a(0)")
    assert state.log_path(home, "wf", first).read_text() == "hello\n"
    path = state.run_folder(home, "wf") / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ConfigError, match="format 99"):
        state.load(home, "wf")
    assert state.list_runs(home) == []
