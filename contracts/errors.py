"""The error classes, their exit codes and their retries: the one table that the wrapper, Argo and the docs read.

A step fails by raising one of the exceptions below.  Callers choose by type, never by message text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from contracts.base import Contract

EXIT_USAGE = 64
"""Wrong usage of a command line (sysexits.h EX_USAGE)."""
EXIT_NOT_PROMOTED = 3
"""``retrain run --require-promoted`` ended with another outcome than promoted or unchanged."""
EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C, as a shell reports SIGINT."""


@dataclass(frozen=True)
class ErrorClass:
    """One row of the table: how a failure looks, and how often it is tried again."""

    name: str
    exit_code: int
    sign: str
    examples: str
    remedy: str
    retries: int = 0
    backoff_seconds: int = 0
    backoff_factor: int = 1
    backoff_cap_seconds: int = 0


NETWORK = ErrorClass(
    "network", 75, "exit code 75", "refused, reset, DNS, timeout, HTTP 429/5xx from MLflow, S3, the API server",
    "check that the endpoint named in the message answers, then run again", 5, 2, 2, 60,
)  # fmt: skip
STORAGE = ErrorClass(
    "storage", 74, "exit code 74", "S3 SlowDown/503, database locked",
    "wait until the storage is less busy, then run again", 4, 2, 2, 60,
)  # fmt: skip
RESOURCES = ErrorClass(
    "resources", 71, "exit code 71, or the message contains OOMKilled", "out of memory",
    "raise the stage's memory in the settings, or give it less data", 2, 2, 2, 60,
)  # fmt: skip
INFRASTRUCTURE = ErrorClass(
    "infrastructure", 69, "exit code 69; node Error; evicted, node lost, shutdown", "pod deleted, node drained",
    "nothing to do when it passes; else look at the node's events", 3, 2, 2, 60,
)  # fmt: skip
DATA = ErrorClass(
    "data", 65, "exit code 65", "schema, range, empty file, target missing",
    "mend the data or the schema in the pipeline file, then run again",
)  # fmt: skip
CONFIG = ErrorClass(
    "config", 78, "exit code 78", "missing variable, no permission, unknown bucket, wrong image",
    "mend the setting or the pipeline file named in the message, then run again",
)  # fmt: skip
CODE = ErrorClass(
    "code", 70, "exit code 70", "any other exception",
    "read the stage's log (`retrain logs`); a defect of ours is worth an issue",
)  # fmt: skip

ERROR_CLASSES: tuple[ErrorClass, ...] = (NETWORK, STORAGE, RESOURCES, INFRASTRUCTURE, DATA, CONFIG, CODE)
BY_EXIT_CODE: dict[int, ErrorClass] = {row.exit_code: row for row in ERROR_CLASSES}
BY_NAME: dict[str, ErrorClass] = {row.name: row for row in ERROR_CLASSES}

MEMORY_GROWTH_CAP = 4
"""After an OOM kill, attempt n gets min(2^n, 4) times the base; an attempt that had 4 x is not tried again."""


OUT_OF_MEMORY_SIGN = "OOMKilled"
LOST_SIGNS = ("low on resource", "Evicted", "node shutdown", "Preempted", "Pod was rejected")
"""What the message of a node says that lost its machine, or that a machine refused; one whose pod was deleted has phase
Error."""


@dataclass(frozen=True)
class Interruption:
    """How Argo ends a stage from outside, whatever the stage was doing."""

    signs: tuple[str, ...]
    """What the message of its node says."""
    what: str
    remedy: str


STOPPED = Interruption(
    ("shutdown with strategy", "Stopped with strategy"), "was stopped by a person",
    "`argo retry` goes on from there; the next run takes what is there already",
)  # fmt: skip
OUT_OF_TIME = Interruption(
    ("its deadline", "specified deadline", "workflow deadline"), "was not done in its time",
    "its log and its pod's events say what it did or waited for",
)  # fmt: skip


def interruption(message: str) -> Interruption | None:
    """Return what ended a node from outside, by its message; None when it ended by itself."""
    return next((each for each in (STOPPED, OUT_OF_TIME) if any(sign in message for sign in each.signs)), None)


KANIKO_FAILED = 1
"""How Kaniko ends, whatever it failed at: it reads the store and pulls and pushes images, so that is class network.
Where the context runs a program, to install packages, and that fails, Kaniko ends with that program's exit code."""


def class_of_failure(phase: str, message: str, *, kaniko: bool = False) -> ErrorClass:
    """Return the class of a failed node from its phase and its message, which hides the exit code."""
    if OUT_OF_MEMORY_SIGN in message:
        return RESOURCES
    if kaniko and re.search(rf"exit code {KANIKO_FAILED}\b", message):
        return NETWORK
    if (code := re.search(r"exit code (\d+)", message)) and (row := BY_EXIT_CODE.get(int(code[1]))):
        return row
    if (ended := interruption(message)) is not None:
        return INFRASTRUCTURE if ended is STOPPED else CODE
    if any(sign in message for sign in LOST_SIGNS) or (code and code[1] == "143"):
        return INFRASTRUCTURE
    return INFRASTRUCTURE if phase == "Error" and not code else CODE


class Finding(Contract):
    """One thing that is wrong: where it stands, what it is, what to do."""

    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.remedy})" if self.remedy else "")


class ErrorReport(Contract):
    """What a failed step leaves for whoever reports it."""

    error_class: str
    stage: str
    message: str
    findings: tuple[Finding, ...] = Field(default=())
    remedy: str = ""


class StageError(Exception):
    """Base of all that a step may raise on purpose."""

    row: ClassVar[ErrorClass] = CODE

    def __init__(
        self, message: str, *, findings: Sequence[Finding] = (), remedy: str = "", outputs: Contract | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.findings = tuple(findings)
        self.remedy = remedy or self.row.remedy
        self.outputs = outputs
        """What the step hands on although it fails."""

    def report(self, stage: str) -> ErrorReport:
        """Return the serialisable form."""
        return ErrorReport(
            error_class=self.row.name, stage=stage, message=self.message, findings=self.findings, remedy=self.remedy
        )


class NetworkError(StageError):
    """Something on the other end of a connection did not answer as it should; retried."""

    row = NETWORK


class StorageError(StageError):
    """A store was busy or locked; retried."""

    row = STORAGE


class ResourcesError(StageError):
    """The step ran out of memory; retried with more."""

    row = RESOURCES


class InfrastructureError(StageError):
    """The machine went away under the step; retried."""

    row = INFRASTRUCTURE


class DataError(StageError):
    """The data breaks a rule; never retried."""

    row = DATA


class ConfigError(StageError):
    """The pipeline file, a setting or a permission is wrong; never retried."""

    row = CONFIG


_BY_ROW: dict[ErrorClass, type[StageError]] = {
    kind.row: kind for kind in (NetworkError, StorageError, ResourcesError, InfrastructureError, DataError, ConfigError)
}


def error_type(row: ErrorClass) -> type[StageError]:
    """Return the exception that a row of the table is raised as."""
    return _BY_ROW.get(row, StageError)
