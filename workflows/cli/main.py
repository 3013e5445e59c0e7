"""`retrain`: the command line.  Registers the commands; each one lives in its own module and imports what it needs."""

from __future__ import annotations

import errno
import os
import sys

import typer
from rich.console import Console

from contracts.errors import EXIT_INTERRUPTED, EXIT_USAGE, ConfigError, StageError
from workflows.cli import (
    approvals,
    audit,
    doctor,
    init,
    lineage,
    predict,
    reproduce,
    retention,
    rollback,
    run,
    schema,
    server,
    status,
    submit,
    ui,
)
from workflows.cli import compile as compile_command

app = typer.Typer(
    name="retrain",
    help="From raw data to a served, audited model version, at the desk and on Argo Workflows.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(rich_help_panel="Run")(init.init)
app.command(rich_help_panel="Run")(run.run)
app.command(rich_help_panel="Run")(submit.submit)
app.command("compile", rich_help_panel="Run")(compile_command.compile_file)
app.command(rich_help_panel="Run")(server.stop)
for command in (approvals.approvals, approvals.review, approvals.approve, approvals.reject, rollback.rollback):
    app.command(rich_help_panel="Decide")(command)
app.command(rich_help_panel="Look")(status.status)
app.command(rich_help_panel="Look")(status.logs)
app.command(rich_help_panel="Look")(ui.ui)
app.command(rich_help_panel="Look")(doctor.doctor)
app.command(rich_help_panel="Ask")(lineage.lineage)
app.command(rich_help_panel="Ask")(predict.predict)
app.command(rich_help_panel="Ask")(reproduce.reproduce)
app.add_typer(audit.app, name="audit", rich_help_panel="Ask")
app.add_typer(retention.app, name="retention", rich_help_panel="Decide")
app.add_typer(schema.app, name="schema", rich_help_panel="Run")


def main() -> None:
    """Run a command; a failure is one clear message and the exit code of its error class."""
    try:
        app()
    except StageError as error:
        show_error(error)
        sys.exit(error.row.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be said goes nowhere
        sys.exit(141)
    except OSError as error:
        told = _of_a_place(error)
        show_error(told)
        sys.exit(told.row.exit_code)
    except SystemExit as leaving:
        # Typer's own code for wrong usage is 2; sysexits.h, which the error table follows, has 64.
        sys.exit(EXIT_USAGE if leaving.code == 2 else leaving.code)


def _of_a_place(error: OSError) -> ConfigError:
    """Return what a full disk, or a place where nothing may be written or read, means to who gave it; else raise."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigError(f"no room: {error}", remedy="make room on that disk; the same command goes on from there")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR) and error.filename:
        return ConfigError(f"{error.filename}: {error.strerror}", remedy="name another place, or mend its permissions")
    raise error


def show_error(error: StageError) -> None:
    """Print what is wrong, where, and what to do."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[red]{error.row.name}:[/red] ", end="")
    console.print(error.message, markup=False)
    for finding in error.findings:
        console.print(f"  - {finding}", markup=False)
    if error.remedy and not error.findings:
        console.print(f"  what to do: {error.remedy}", markup=False)


if __name__ == "__main__":
    main()
