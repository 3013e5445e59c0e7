"""How a run looks: a live table for people, plain lines for pipes.  Called by `run` and `status`."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from contracts.access import KANIKO
from contracts.errors import ConfigError, class_of_failure
from contracts.probes import PROBES, is_silent
from contracts.stages import BY_NAME, STAGES, Build, Preflight

if TYPE_CHECKING:
    from workflows.local.state import Node, RunState

_PIPE_COLUMNS = 160
_BAD = ("Failed", "Error")
_NO_ITEMS = "Skipped, empty params"
"""Argo's words for a fan-out over an empty list."""
_EXPLAINED = ": "
"""In Argo's words on a pod that has not begun: more than the name of what every pod comes through."""
_PROBES = {probe.name for probe in PROBES}
_ROWS = [row for stage in STAGES for row in ((stage.name, KANIKO) if stage is Build else (stage.name,))]
"""What a run is shown as: Kaniko's container, which is no stage of ours, only where it had something to build."""
STAGE_NAMES = frozenset(BY_NAME) | {KANIKO}
_STYLES = {
    "Succeeded": ("✓", "green"), "Running": ("●", "cyan"), "Pending": ("○", "yellow"), "Failed": ("✗", "red"),
    "Error": ("✗", "red"), "Skipped": ("–", "dim"), "Omitted": ("–", "dim"), "": ("·", "dim"),
}  # fmt: skip


def console(*, stderr: bool = False) -> Console:
    """Return where people read; a file or a pipe has no width of its own, and gets one where nothing is cut off."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=_PIPE_COLUMNS)


def stage_nodes(state: RunState) -> dict[str, Node]:
    """Return the node that stands for each stage: the retry node where there is one, else the pod.

    For one that fans out it is the group of its pods; for preflight, which begins with its probes, it is one of those
    until they have ended.
    """
    found: dict[str, Node] = {}
    probes = [node for node in state.nodes.values() if node.template in _PROBES and not node.retried]
    if probes:
        found[Preflight.name] = next((node for node in probes if not node.fulfilled), probes[-1])
    for node in state.nodes.values():
        stage, known = node.template, found.get(node.template)
        if stage == KANIKO and node.phase in ("Skipped", "Omitted"):
            continue
        if stage not in STAGE_NAMES or (known is not None and known.type == "TaskGroup"):
            continue
        if known is None or known.template in _PROBES or node.type in ("TaskGroup", "Retry", "Skipped"):
            found[stage] = node
    if probes and found[Preflight.name].template not in _PROBES:
        began = min((node.started for node in probes if node.started), default=None)
        found[Preflight.name] = found[Preflight.name]._replace(started=began)
    return found


def silent_probes(state: RunState) -> list[Node]:
    """Return the last attempts of preflight's probes that ended without an answer."""
    failed = [n for n in state.nodes.values() if n.template in _PROBES and n.type == "Retry" and n.phase in _BAD]
    ended = [state.nodes[node.children[-1]] for node in failed if node.children]
    return [node for node in ended if is_silent(node.phase, node.message)]


def stage_pods(state: RunState, stage: str = "") -> list[Node]:
    """Return the pods of a run, or of one stage of it; preflight's probes are of preflight, and have names too.

    Raises
    ------
    ConfigError
        No such stage ran.
    """
    pods = [node for node in state.nodes.values() if node.type == "Pod"]
    also = _PROBES if stage == Preflight.name else ()
    if found := [node for node in pods if not stage or node.template == stage or node.template in also]:
        return found
    known = ", ".join(sorted({node.template for node in pods}))
    raise ConfigError(f"{state.name} has no stage {stage!r} that ran", remedy=f"one of {known}")


def shown_nodes(state: RunState) -> dict[str, Node]:
    """Return the nodes that a person follows: the stages', or all of a manifest that has no stages."""
    return stage_nodes(state) or {node.display_name: node for node in state.nodes.values()}


def attempts(state: RunState, node: Node) -> int:
    """Return how often a stage was started."""
    return sum(1 for child in node.children if state.nodes[child].type == "Pod") if node.type == "Retry" else 1


def seconds(node: Node, now: datetime) -> float | None:
    """Return how long a node has run, None when it has not."""
    if node.started is None or node.phase in ("Skipped", "Omitted", "Pending"):
        return None
    return ((node.finished or now) - node.started).total_seconds()


def result(state: RunState, node: Node | None) -> str:
    """Return the one line of a stage: its own summary, else why there is none."""
    if node is None:
        return ""
    if node.phase in ("Skipped", "Omitted"):
        return "nothing to do" if node.message == _NO_ITEMS else "not reached"
    tried = attempts(state, node)
    if node.phase in _BAD:
        return _failure(state, node) + (f", after {tried} attempts" if tried > 1 else "")
    of_items = [state.nodes[child].outputs.get("summary", "") for child in node.children] if _fans_out(node) else []
    line = node.outputs.get("summary", "") or "; ".join(filter(None, [*of_items, waits(state, node)]))
    return f"{line} (attempt {tried})" if tried > 1 and node.phase == "Running" else line


def waits(state: RunState, node: Node) -> str:
    """Return why pods of a stage have not begun, in Argo's words; empty when all have."""
    if node.phase == "Pending":
        return node.message
    around = _fans_out(node) or node.type == "Retry"
    inside = [state.nodes[child] for child in node.children if child in state.nodes] if around else []
    return "; ".join(dict.fromkeys(filter(None, (waits(state, each) for each in inside))))


def _fans_out(node: Node) -> bool:
    return node.type == "TaskGroup"


def _failure(state: RunState, node: Node) -> str:
    """Return the class and Argo's message of the last attempt."""
    if _fans_out(node):
        failed = [state.nodes[child] for child in node.children if state.nodes[child].phase in _BAD]
        return "; ".join(f"{each.display_name}: {_failure(state, each)}" for each in failed)
    last = last_attempt(state, node)
    return f"{class_of_failure(last.phase, last.message, kaniko=last.template == KANIKO).name}: {last.message}"


def last_attempt(state: RunState, node: Node) -> Node:
    """Return the pod that failed last of a stage's: what stands around it says only that it gave up."""
    inside = [state.nodes[child] for child in node.children if child in state.nodes]
    if _fans_out(node):
        failed = [each for each in inside if each.phase in _BAD]
        return last_attempt(state, failed[0]) if failed else node
    return inside[-1] if node.type == "Retry" and inside else node


def table(state: RunState, now: datetime) -> Table:
    """Return the stages as a table: state, duration, one line of result each."""
    grid = Table(box=None, pad_edge=False, show_header=True, header_style="dim", expand=True)
    grid.add_column("", width=1)
    grid.add_column("stage", no_wrap=True)
    grid.add_column("time", justify="right", no_wrap=True)
    grid.add_column("result", ratio=1, overflow="fold")
    nodes = shown_nodes(state)
    rows = [row for row in _ROWS if row != KANIKO or row in nodes] if nodes.keys() <= set(_ROWS) else nodes
    for name in rows:
        node = nodes.get(name)
        sign, style = _STYLES[node.phase if node else ""]
        took = seconds(node, now) if node else None
        row_style = "dim" if style == "dim" else ""
        line = Text(result(state, node), style="red" if style == "red" else row_style)
        grid.add_row(
            Text(sign, style=style),
            Text(name, style=row_style),
            f"{took:.1f} s" if took is not None else "",
            line,
        )
    return grid


class Progress:
    """Shows a run while it goes on.  Use as a context manager and hand `update` to the runner.

    When nobody reads any more (``retrain run ... | head``) the run goes on in silence.
    """

    def __init__(self, console: Console, file: TextIO) -> None:
        self._console = console
        self._file = file
        self._state: RunState | None = None
        self._said: dict[str, str] = {}
        self._waits: set[tuple[str, str]] = set()
        self._live: Live | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=8)
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def update(self, state: RunState) -> None:
        """Take a new state of the run."""
        with self._lock:
            self._state = state
        if self._live is None:
            with contextlib.suppress(BrokenPipeError):
                self._print_changes(state)

    def _render(self) -> RenderableType:
        with self._lock:
            return table(self._state, datetime.now(UTC)) if self._state else Text("")

    def _print_changes(self, state: RunState) -> None:
        if state.message and self._said.get("") != state.message:
            self._said[""] = state.message
            print(state.message, file=self._file, flush=True)
        for name, node in shown_nodes(state).items():
            line = f"{name:<10} {node.phase:<10}"
            if node.phase != "Running":
                took = seconds(node, datetime.now(UTC))
                line += (f" {took:6.1f} s  " if took is not None else " " * 11) + result(state, node)
            if node.phase not in ("", "Pending") and self._said.get(name) != node.phase:
                self._said[name] = node.phase
                print(line.rstrip(), file=self._file, flush=True)
            why = waits(state, node)
            if _EXPLAINED in why and (name, why) not in self._waits:
                self._waits.add((name, why))
                print(f"{name:<10} {'waits':<10} {' ' * 10}{why}", file=self._file, flush=True)
