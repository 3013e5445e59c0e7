"""A malformed input gets one clear answer with the class of its cause, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.badinput.parquet_cases import PARQUET
from tests.badinput.place_cases import PLACES
from tests.badinput.refusals import OUTSIDE, SECRET, Case, answer, laid_out, packed
from tests.badinput.server_cases import SERVERS, serving
from tests.badinput.text_cases import TEXT
from tests.badinput.value_cases import VALUES

CASES: tuple[Case, ...] = (*TEXT, *VALUES, *PARQUET, *PLACES, *SERVERS)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving() as number:
        yield number


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_malformed_input_is_refused_clearly(
    case: Case, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = answer(at(case, port), tmp_path, monkeypatch, caplog)

    assert found.exit_code == case.exit_code, found.said
    said = found.said
    if found.report is not None:  # a wrong pipeline file or setting is only said: nothing tells where the store is
        assert found.report.remedy
        said = "\n".join([found.report.message, *map(str, found.report.findings), found.report.remedy])
    assert [words for words in case.says if words not in said] == [], said


def at(case: Case, port: int) -> Case:
    """The case, with the server's port where it stands for it."""
    if "PORT" not in case.file and case.cause != "S3":
        return case
    settings = case.data(Path()) or {} if not isinstance(case.data, bytes) else {}
    told = {name: value.replace("PORT", str(port)) for name, value in settings.items()}
    return replace(case, file=case.file.replace("PORT", str(port)), data=lambda _: told)


def test_the_table_is_as_wide_as_it_should_be() -> None:
    assert len(CASES) >= 100
    assert len({case.cause for case in CASES}) >= 35
    assert len({str(case) for case in CASES}) == len(CASES)
    assert {case.exit_code for case in CASES} <= {65, 78, *OUTSIDE}


ALONE = {"mixed types: a sensitive cell", "no plain file: a pipe", "Python: raises"}


@pytest.mark.parametrize("case", [c for c in CASES if f"{c.cause}: {c.name}" in ALONE], ids=str)
def test_a_process_ends_with_the_code_and_says_the_same(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laid_out(case, tmp_path, monkeypatch) as home:
        given = [word for name, text in packed(case, tmp_path).items() for word in (f"--{name}", text)]
        done = subprocess.run(
            [sys.executable, "-m", "steps", "ingest", "--as-of", case.as_of, *given],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert done.returncode == case.exit_code, done.stderr
    assert [words for words in case.says if words not in done.stderr] == []
    assert "Traceback" not in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert [p.name for p in (home / "store").rglob("*") if p.is_file()] == ["ingest.error.json"]
