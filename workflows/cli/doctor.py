"""`retrain doctor`: is this machine ready, and do all records of what serves agree?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from contracts import commands, names
from contracts.base import Contract
from contracts.errors import CONFIG, StageError
from contracts.pipeline import load_pipeline
from contracts.settings import find_home, variable
from workflows.cli.desk import SECRETS_FILE, desk_packages, desk_settings, release_turn
from workflows.cli.options import CONTEXT, NAMESPACE
from workflows.cli.request import operating_user

if TYPE_CHECKING:
    from contracts.settings import Settings
    from steps.ledger import Ledger
    from steps.registry import Registry
    from workflows.cluster.archive import Agreement
    from workflows.cluster.connection import Namespace
    from workflows.local.state import RunState

_LOOK_AT_EVENTS = "look at the Deployment's events; the next run releases it again"
_SIGNS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "wrong": ("✗", "red")}


class Line(Contract):
    """One thing that was looked at."""

    what: str
    state: Literal["ok", "note", "wrong"]
    found: str
    remedy: str = ""


def doctor(
    file: Annotated[Path | None, typer.Argument(help="Also check what this pipeline file needs.")] = None,
    mend: Annotated[
        bool, typer.Option("--mend", help="Let MLflow's alias follow the ledger again; entered with your name.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Check the machine, the home, and whether ledger, MLflow's aliases and the server say the same.

    With -n or --context it is a cluster that is checked, and nothing changed there.  At the desk an alias that was
    moved by other means is entered in the ledger as such, and stays where it is unless --mend is given.  Exits 78 when
    something is wrong.

    [bold]Examples[/bold]

      retrain doctor

      retrain doctor churn.yaml

      retrain doctor -n mlops
    """
    away = bool(namespace or context)
    if away and mend:
        raise typer.BadParameter("on a cluster the next version that serves lets the alias follow", param_hint="--mend")
    lines = [*_machine()]
    lines += _cluster(namespace, context) if away else [*_training(), *_home(find_home(), mend=mend)]
    if file is not None:
        lines += _pipeline(file)
    if json_output:
        typer.echo("[" + ",".join(line.model_dump_json() for line in lines) + "]")
    else:
        _show(lines)
    raise typer.Exit(CONFIG.exit_code if any(line.state == "wrong" for line in lines) else 0)


def _machine() -> Iterator[Line]:
    yield Line(
        what="python", state="ok", found=f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    argo = shutil.which("argo")
    yield Line(what="argo", state="ok", found=argo or "not here; `retrain submit` needs none")


def _training() -> Iterator[Line]:
    yield Line(what="cores", state="ok", found=str(os.cpu_count()))
    from steps.candidates.lightgbm import lightgbm_problem

    problem = lightgbm_problem()
    if problem:
        yield Line(what="lightgbm", state="note", found=problem.what, remedy=problem.remedy)
    else:
        yield Line(what="lightgbm", state="ok", found="its library loads")


def _home(home: Path, *, mend: bool) -> Iterator[Line]:
    if not home.is_dir():
        yield Line(what="home", state="note", found=f"{home} does not exist yet", remedy="`retrain run FILE` makes it")
        return
    free = shutil.disk_usage(home).free // 2**20
    yield Line(what="home", state="ok" if os.access(home, os.W_OK) else "wrong", found=f"{home}, {free} MiB free")
    yield Line(what="secrets", state="ok", found=SECRETS_FILE if (home / SECRETS_FILE).is_file() else "none")
    settings = desk_settings(home)
    yield _signing(settings)
    try:
        yield from _unfinished(home, settings)
        yield from _projections(settings, mend=mend)
    except StageError as error:
        yield Line(what="records", state="wrong", found=error.message, remedy=error.remedy)


def _signing(settings: Settings) -> Line:
    """Say by which key models are signed here; without it those that were signed before are not trusted any more."""
    from serving.model_keys import fingerprint
    from steps.signing import signing_key

    if not settings.signing_key.get_secret_value():
        return Line(
            what="signing key", state="note", found="none; a model signed by one that was lost does not serve again",
            remedy="the next run makes one, and signs what it registers",
        )  # fmt: skip
    try:
        key = fingerprint(signing_key(settings).public_key())
    except StageError as error:
        return Line(what="signing key", state="wrong", found=error.message, remedy=error.remedy)
    return Line(what="signing key", state="ok", found=f"models are signed by {key[:16]}")


def _unfinished(home: Path, settings: Settings) -> Iterator[Line]:
    from steps.ledger import Ledger
    from workflows.local import state

    ledger = Ledger(settings.ledger.get_secret_value())
    for run in state.list_runs(home):
        if (why := state.standstill(home, run)) and (again := _again(ledger, run)):
            yield Line(what="run", state="note", found=f"{run.name} {why}", remedy=f"{again} goes on with it")


def _again(ledger: Ledger, run: RunState) -> str:
    """Return the command that goes on with a run; empty for a release by a person's word that is in force no more."""
    from steps.approvals import ROLLBACK_FROM, in_force
    from steps.lifecycle import APPROVAL

    if run.entrypoint != names.RELEASE or not (asked := run.parameters.get("version", "")).isdigit():
        how = f" and --answer {next(iter(run.suspended))}" if run.suspended else ""
        return f"`retrain run` of the same file{how}"
    entries, version = ledger.entries(run.pipeline), int(asked)
    began_by = in_force([entry for entry in entries if entry.at <= run.created], version)
    if began_by is None:
        return f"`retrain run FILE --entrypoint release --version {version}`"
    if began_by != in_force(entries, version):
        return ""
    if ROLLBACK_FROM in began_by.evidence:
        return f"`{commands.go_back(began_by.model, version)}`"
    request = next(entry for entry in entries if entry.id == began_by.evidence[APPROVAL]["request"])
    return f"`{commands.approve(request.workflow, '')}`"


def _projections(settings: Settings, *, mend: bool) -> Iterator[Line]:
    """Compare the ledger, which is the truth, with what is derived from it."""
    from steps.approvals import unauthenticated
    from steps.ledger import Ledger
    from steps.registry import Registry

    ledger = Ledger(settings.ledger.get_secret_value())
    for model in ledger.models():
        broken, entries = ledger.verify(model), ledger.entries(model)
        yield _chain(model, len(entries), [str(finding) for finding in broken])
        yield _alias(settings, ledger, Registry(settings, model), mend=mend)
        yield from _words(model, *unauthenticated(entries))
        if (serving := ledger.serving(model)) is not None:
            yield _server(settings, model, serving.version)


def _alias(settings: Settings, ledger: Ledger, registry: Registry, *, mend: bool) -> Line:
    """Compare MLflow's alias with the ledger; enter it when it was moved by other means, and mend it when asked."""
    from steps.aliases import follow, recall

    me, now = operating_user(), datetime.now(UTC)
    moves = list(follow(ledger, registry, workflow="doctor", by=me, at=now, may_set=False))
    if mend:
        with release_turn(settings, registry.name):
            recall(ledger, registry, workflow="doctor", by=me, reason="recalled by `retrain doctor --mend`", at=now)
            moves += follow(ledger, registry, workflow="doctor", by=me, at=now, may_set=True)
    serving, alias = ledger.serving(registry.name), registry.alias(names.ALIAS_PRODUCTION)
    return _agreement(
        registry.name, serving.version if serving else None, alias, moves,
        remedy="`retrain doctor --mend` lets it follow; the next version that serves does too",
    )  # fmt: skip


def _chain(model: str, entries: int, broken: Sequence[str]) -> Line:
    return Line(
        what=f"{model} ledger", state="wrong" if broken else "ok",
        found="; ".join(broken) or f"{entries} entries, chain intact",
    )  # fmt: skip


def _agreement(model: str, serving: int | None, alias: int | None, moves: Sequence[str], *, remedy: str) -> Line:
    agrees = alias == serving
    found = f"ledger: {serving or 'none'} serves; MLflow's alias {names.ALIAS_PRODUCTION}: {alias or 'none'}"
    return Line(
        what=f"{model} alias", state="ok" if agrees else "wrong", found="; ".join([found, *moves]),
        remedy="" if agrees else remedy,
    )  # fmt: skip


def _words(model: str, given: int, doubtful: Sequence[str]) -> Iterator[Line]:
    """Say how far the ledger's approvals and rejections by people can be believed."""
    if doubtful:
        names = ", ".join(sorted(set(doubtful)))
        yield Line(
            what=f"{model} approvals", state="note",
            found=f"{len(doubtful)} of {given} are by names that nobody vouched for: {names}",
        )  # fmt: skip


def _never_said(place: Namespace, one: Agreement) -> Iterator[Line]:
    """Compare the words that the ledger holds with those that people left in the cluster."""
    from workflows.cluster.approvals import never_said

    try:
        found = never_said(place, one.model, one.vouched)
    except StageError as error:
        yield Line(what=f"{one.model} approvals", state="note", found=f"not compared with words here: {error.message}")
        return
    if found:
        yield Line(
            what=f"{one.model} approvals", state="note",
            found=f"in the ledger, but nobody said so in this namespace: {', '.join(found)}",
            remedy="is the ledger from another cluster? else somebody with a stage's Secret wrote it: docs/ledger.md",
        )  # fmt: skip


def _server(settings: Settings, model: str, version: int) -> Line:
    if settings.deploy_target == "process":
        from steps.rollout.process import serving_version

        remedy = "`retrain run` brings it back"
    else:
        from steps.rollout.kubernetes import serving_version

        remedy = _LOOK_AT_EVENTS
    return _answer(model, version, serving_version(settings, model), remedy)


def _answer(model: str, version: int, answers: int | None, remedy: str) -> Line:
    if answers == version:
        return Line(what=f"{model} server", state="ok", found=f"version {version} answers")
    found = (
        f"version {answers} answers, the ledger says {version}"
        if answers
        else f"nothing answers, the ledger says {version}"
    )
    return Line(what=f"{model} server", state="wrong" if answers else "note", found=found, remedy=remedy)


def _cluster(namespace: str, context: str) -> Iterator[Line]:
    """Look at the platform of a namespace, and at who runs its workflows."""
    from workflows.cluster.connection import Namespace

    try:
        place = Namespace.connect(namespace, context)
        environment = place.settings[variable("environment")]
        yield Line(what="platform", state="ok", found=f"{place.namespace} of {place.context}: {environment}")
        yield _trusted(place)
    except StageError as error:
        yield Line(what="platform", state="wrong", found=error.message, remedy=error.remedy)
        return
    yield from _controllers(place)
    yield _policy(place)
    yield _confinement(place)
    yield from _records(place)


def _controllers(place: Namespace) -> Iterator[Line]:
    """Say who runs the namespace's workflows, where whoever asks may look across the cluster."""
    from workflows.cluster.controller import controllers

    try:
        found = list(controllers(place))
    except StageError as error:
        yield Line(what="controller", state="note", found=f"not looked for: {error.message}")
        return
    for one in found:
        whose = "settings by this chart" if one.ours else "not ours: its settings are left alone"
        said = f"{one.image} in {one.namespace}, {'ready' if one.ready else 'not ready'}; {whose}"
        yield Line(what="controller", state="ok" if one.ready else "wrong", found=said)
    if not found:
        yield Line(what="controller", state="wrong", found="none in the cluster", remedy="kind/admin.yaml names it")


def _trusted(place: Namespace) -> Line:
    """Say by which keys a model must be signed to serve on the cluster; its private one nobody here may see."""
    from serving.model_keys import trusted

    try:
        keys = [key[:16] for key in trusted(place.settings.get(variable("model_keys"), ""))]
    except StageError as error:
        return Line(what="signing key", state="wrong", found=f"{variable('model_keys')}: {error.message}")
    return Line(what="signing key", state="ok", found=f"models serve when signed by {' or '.join(keys)}")


def _policy(place: Namespace) -> Line:
    """Say whether the cluster vouches for the names under which people approve."""
    from workflows.cluster.approvals import authenticates

    try:
        trusted = authenticates(place)
    except StageError as error:
        return Line(what="approvals", state="note", found=f"not looked for: {error.message}")
    if trusted:
        return Line(what="approvals", state="ok", found="an admission policy vouches for the names of who approves")
    return Line(
        what="approvals", state="note",
        found="are entered as unauthenticated: no admission policy that you may see vouches for names here",
        remedy="a cluster's administrator: kubectl apply -f kind/approvals.yaml",
    )  # fmt: skip


def _confinement(place: Namespace) -> Line:
    """Say what keeps `deploy` from the keys of the platform and of every other stage."""
    from workflows.cluster.confinement import confined, serving

    try:
        kept, where = confined(place), serving(place)
    except StageError as error:
        return Line(what="deploy", state="note", found=f"not looked for: {error.message}")
    if kept:
        found = "an admission policy keeps what it writes to serving's own Secret and accounts"
        return Line(what="deploy", state="ok", found=found)
    if where != place.namespace:
        return Line(what="deploy", state="ok", found=f"writes in {where}, where no key of ours is but serving's")
    return Line(
        what="deploy", state="note",
        found="who has its token reaches every Secret and account here: no admission policy that you may see keeps it",
        remedy="a cluster's administrator: kubectl apply -f kind/deploy-policy.yaml; or namespaces.serving of its own",
    )  # fmt: skip


def _records(place: Namespace) -> Iterator[Line]:
    """Compare what ledger, MLflow and serving say on a cluster, and find releases that nobody ends; changes nothing."""
    from workflows.cluster.archive import agreements
    from workflows.cluster.runs import find, run_state

    try:
        found = agreements(place)
        runs = [run_state(workflow) for workflow in find(place)]
    except StageError as error:
        yield Line(what="records", state="wrong", found=error.message, remedy=error.remedy)
        return
    under_way = {run.name for run in runs if run.finished is None}
    for one in found:
        yield _chain(one.model, one.entries, one.broken)
        yield from _words(one.model, one.given, one.doubtful)
        yield from _never_said(place, one)
        if one.releasing is not None and one.releasing_in not in under_way:
            again = commands.release(one.releasing, commands.where(place.namespace))
            yield Line(
                what=f"{one.model} release", state="wrong",
                found=f"{one.releasing_in} was cut off while it released version {one.releasing}",
                remedy=f"the next run, or `{again}`, takes it over",
            )  # fmt: skip
        elif one.releasing is None:
            remedy = "the next version that serves lets it follow"
            yield _agreement(one.model, one.serving, one.alias, [], remedy=remedy)
            if one.serving is not None:
                yield _answer(one.model, one.serving, one.answers, _LOOK_AT_EVENTS)


def _pipeline(file: Path) -> Iterator[Line]:
    """Run all checks of preflight on this machine."""
    from contracts.stages import Preflight, Probe
    from steps.own_packages import activate
    from steps.preflight import preflight
    from steps.probe import as_line, examine_all
    from steps.world import World

    try:
        pipeline = load_pipeline(file)
        settings = desk_settings(find_home(), file.resolve().parent)
        if packages := desk_packages(pipeline, find_home()):
            activate(packages)
            settings = settings.model_copy(update={"packages": packages})
        world = World(settings=settings, pipeline=pipeline, pipeline_path=file, workflow="doctor")
        found = "\n".join(as_line(examined) for examined in examine_all(Probe.Inputs(), world))
        answer = preflight(Preflight.Inputs(found=found), world=world)
    except StageError as error:
        for finding in error.findings:
            yield Line(what=finding.where, state="wrong", found=finding.what, remedy=finding.remedy)
        if not error.findings:
            yield Line(what=str(file), state="wrong", found=error.message, remedy=error.remedy)
    else:
        yield Line(what=str(file), state="ok", found=answer.summary)


def _show(lines: list[Line]) -> None:
    console = Console(file=sys.stdout, highlight=False)
    grid = Table(box=None, show_header=False, pad_edge=False)
    for line in lines:
        sign, colour = _SIGNS[line.state]
        remedy = f"  ({line.remedy})" if line.remedy else ""
        grid.add_row(f"[{colour}]{sign}[/{colour}]", line.what, (line.found + remedy).replace("[", r"\["))
    console.print(grid)
