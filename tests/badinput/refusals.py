"""A malformed input, and what the stage that meets it first must answer.  Used by the tables and tests beside it.

Every case goes through `steps.__main__`, the wrapper that a container runs: exit code, log and report are real.
"""

from __future__ import annotations

import gc
import json
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.errors import ErrorReport
from contracts.settings import desk
from serving.user_code import pack
from tests.datasets.desk_stages import run_stage, said_in

AS_OF = "2026-03-01T12:00:00+00:00"
SECRET = "swordfish-4711"
"""Stands in credentials of every kind; no answer may hold it."""
CELL = "cell-0815"
"""Stands in cells of sensitive columns; no answer may hold it."""
OUTSIDE = (74, 75)
"""Exit codes of what may pass: a store or a network that does not answer as it should."""

Columns = tuple[Mapping[str, Any], ...]
PLAIN: Columns = ({"name": "k", "type": "integer"}, {"name": "a", "type": "string"})


@dataclass(frozen=True)
class Case:
    """One malformed input.

    `data` is the content of `file`, or lays out what the case needs in the folder it is given; what it yields, when it
    is a generator, are settings.  `says` are the words that the answer must hold, rule, column and row among them.
    """

    cause: str
    name: str
    data: bytes | Callable[[Path], Any]
    says: tuple[str, ...]
    file: str = "t.csv"
    exit_code: int = 65
    columns: Columns = PLAIN
    schema: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    pipeline: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    as_of: str = AS_OF
    stages: tuple[str, ...] = ("ingest",)

    def __str__(self) -> str:
        return f"{self.cause}: {self.name}".replace(" ", "_")


def pipeline_of(case: Case) -> dict[str, Any]:
    """Return the pipeline file of a case; the target is its first column."""
    first = case.columns[0]
    classes = first["type"] in ("string", "integer", "boolean")
    metric = "accuracy" if classes else "rmse"
    positive = {"string": "yes", "integer": 1, "boolean": True}
    target = {"column": first["name"], "task": "binary", "positive": positive[first["type"]]} if classes else None
    return {
        "apiVersion": "retrain/v1",
        "name": "bad",
        "source": {"uri": case.file, **case.source},
        "schema": {"columns": [dict(c) for c in case.columns], **case.schema},
        "target": target or {"column": first["name"], "task": "regression"},
        "training": {"metric": metric, "candidates": [{"name": "one", "estimator": "dummy"}]},
        "gates": {"default": {"validation": {"thresholds": [{"metric": metric, "min": 0}]}}},
        **case.pipeline,
    }


@dataclass(frozen=True)
class Answer:
    """What a stage left: exit code, report, and everything that it said."""

    exit_code: int
    report: ErrorReport | None
    said: str


@contextmanager
def laid_out(case: Case, folder: Path, environment: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make files, pipeline file and settings of a case; yield the desk's home."""
    data, home = folder / "data", folder / "home"
    data.mkdir()
    more: Any = None
    if isinstance(case.data, bytes):
        (data / case.file).write_bytes(case.data)
    else:
        more = case.data(data)
    values = next(more) if isinstance(more, Iterator) else more
    (folder / "bad.yaml").write_text(yaml.safe_dump(pipeline_of(case), sort_keys=False), encoding="utf-8")
    settings = desk(home, data) | {
        "RETRAIN_PIPELINE": str(folder / "bad.yaml"),
        "RETRAIN_WORKFLOW": "bad-1",
        "RETRAIN_OUTPUTS": str(folder / "outputs"),
        "RETRAIN_MIN_FREE_MIB": "0",
        "TMPDIR": str(folder),
        **(values or {}),
    }
    for name, value in settings.items():
        environment.setenv(name, value)
    environment.setattr("tempfile.tempdir", str(folder))
    try:
        yield home
    finally:
        if isinstance(more, Iterator):
            next(more, None)


def answer(case: Case, folder: Path, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Answer:
    """Run the case's stages one after the other, and check what holds for every refusal.

    No output, nothing in the store but the report, no scratch left, no traceback, no secret and no sensitive cell.
    """
    with laid_out(case, folder, environment) as home, caplog.at_level(logging.INFO), _no_traceback(environment):
        given = {"as-of": case.as_of} | packed(case, folder)
        *before, last = case.stages
        kept: set[str] = set()
        for stage in before:
            assert run_stage(stage, given) == 0, caplog.text
            given |= said_in(folder / "outputs")
            kept = _objects(home)
        outputs = said_in(folder / "outputs")
        exit_code = run_stage(last, given)
        error = home / "store" / "reports" / "bad-1" / f"{last}.error.json"
        report = ErrorReport.model_validate(json.loads(error.read_text())) if error.exists() else None
        said = caplog.text + (str(report) if report else "")
        if exit_code:
            assert _objects(home) - kept <= {f"reports/bad-1/{last}.error.json"}, "something was written"
            assert said_in(folder / "outputs") == outputs, "outputs were written"
        gc.collect()  # a world that an error's frames still hold goes with them
        assert not list(folder.glob("retrain-*")), "scratch was left"
        assert "Traceback" not in said
        assert SECRET not in said
        assert CELL not in said
    return Answer(exit_code, report, said)


def packed(case: Case, folder: Path) -> dict[str, str]:
    """Pack the case's modules; return the parameter that names them, if there are any."""
    for name, text in case.modules.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    if not case.modules:
        return {}
    (folder / "code.zip").write_bytes(pack(folder, tuple(case.modules)))
    return {"code": (folder / "code.zip").as_uri()}


def _objects(home: Path) -> set[str]:
    store = home / "store"
    return {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file()}


@contextmanager
def _no_traceback(environment: pytest.MonkeyPatch) -> Iterator[None]:
    """Let what the wrapper would print as a traceback fail the test with it."""

    def refuse() -> None:
        pytest.fail(f"a traceback was printed:\n{traceback.format_exc()}")

    environment.setattr("steps.__main__.traceback.print_exc", refuse)
    yield
