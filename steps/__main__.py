"""Run one stage: ``python -m steps STAGE --parameter value ...``.  Every container's main process.

This is the one wrapper: it reads typed inputs, runs the stage's function, writes its outputs, and turns what the
function raises into the exit code of the error table and a report for `notify`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from contracts import names
from contracts.base import Contract
from contracts.errors import EXIT_USAGE, ConfigError, ResourcesError, StageError
from contracts.pipeline import load_pipeline
from contracts.probes import PROBES
from contracts.settings import load_settings, variable
from contracts.stages import STAGES, Stage, choices, decode, encode, findings, type_name
from steps.own_packages import activate
from steps.reports import error_report_uri
from steps.storage import NO_ROOM
from steps.world import World

LOG = logging.getLogger("retrain")


def main(argv: list[str] | None = None) -> int:
    """Run one stage and return its exit code."""
    share_processors()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    # they log whole URLs, with credentials and signatures; Apprise those that it cannot read, as errors
    for library, level in (("httpx", logging.WARNING), ("httpcore", logging.WARNING), ("apprise", logging.CRITICAL)):
        logging.getLogger(library).setLevel(level)
    words = sys.argv[1:] if argv is None else argv
    options = vars(_parser(words[0] if words else "").parse_args(words))
    stage: type[Stage] = options.pop("stage")
    world: World | None = None
    try:
        settings = load_settings()
        activate(settings.packages)
        path = Path(os.environ.get(variable("pipeline"), names.PIPELINE_FILE))
        workflow = os.environ.get(variable("workflow"), "local")
        world = World(
            settings=settings, pipeline=load_pipeline(path), pipeline_path=path, workflow=workflow, needs=stage.needs,
            duty=stage.account,
        )  # fmt: skip
        texts = {names.parameter(field): text for field, text in options.items() if text is not None}
        inputs = decode(stage.Inputs, texts)
        outputs = getattr(importlib.import_module(f"steps.{stage.step}"), stage.step)(inputs, world=world)
        _hand_on(outputs)
    except Exception as error:  # noqa: BLE001  the table's last row: any other exception is class code
        return _fail(world, stage, _of_the_table(error, world))
    LOG.info("%s", outputs.summary)
    return 0


def _hand_on(outputs: Contract) -> None:
    """Write each output where the manifest reads it as a parameter."""
    folder = Path(os.environ.get(variable("outputs"), names.OUTPUTS_MOUNT))
    folder.mkdir(parents=True, exist_ok=True)
    for field in type(outputs).model_fields:
        (folder / names.parameter(field)).write_text(encode(getattr(outputs, field)), encoding="utf-8")


def share_processors() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    Spinning, they take the processors from each other: on a busy machine, or under a container's quota, a fit took four
    times as long.  Libraries read this when they are loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _of_the_table(error: Exception, world: World | None) -> StageError:
    """Return the error of the table that stands for whatever was raised; print a traceback of what nobody expected."""
    match error:
        case StageError():
            return error
        case ValidationError():
            return ConfigError("parameters do not fit", findings=findings(error))
        case MemoryError():
            traceback.print_exc()
            return ResourcesError("out of memory")
        case OSError() if error.errno in NO_ROOM:
            return ConfigError(f"no room: {error}", remedy="make room on that disk, then run again")
        case _:
            return StageError(_unexpected(error, world))


def _unexpected(error: Exception, world: World | None) -> str:
    """Print a traceback and return what the error says; its place alone where its text may hold a sensitive cell."""
    if world is None or not any(column.sensitive for column in world.pipeline.table.columns):
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    # "could not convert string to float: 'Smith'" is how libraries speak
    traceback.print_tb(error.__traceback__)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}, line {last.lineno}"
    return f"{type(error).__name__} in {place}; its text may hold cells of sensitive columns, and is not shown"


def _fail(world: World | None, stage: type[Stage], error: StageError) -> int:
    report = error.report(stage.name)
    if error.outputs is not None:
        _hand_on(error.outputs)
    LOG.error("%s: %s", report.error_class, report.message)
    for finding in report.findings:
        LOG.error("  %s", finding)
    if report.remedy:
        LOG.error("  what to do: %s", report.remedy)
    if world is not None:
        try:
            world.storage.write(error_report_uri(world, report.stage), report.model_dump_json().encode())
        except StageError as another:
            LOG.warning("the report could not be stored: %s", another.message)
    return error.row.exit_code


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return a parser of all stages, with the options of the chosen one only: of all they would take half a start."""
    parser = _Parser(prog="python -m steps", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(required=True, metavar="STAGE")
    for stage in (*STAGES, *PROBES):
        command = commands.add_parser(stage.name, help=stage.duty, description=stage.duty)
        command.set_defaults(stage=stage)
        for field, info in stage.Inputs.model_fields.items() if stage.name == chosen else ():
            help_text = info.description or ""
            allowed = choices(stage.Inputs, field)
            command.add_argument(
                f"--{names.parameter(field)}",
                metavar=type_name(stage.Inputs, field).upper() if not allowed else None,
                help=help_text,
            )
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse, with the exit code that sysexits.h has for wrong usage."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and leave with 64."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
