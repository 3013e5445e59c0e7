"""A malformed input gets one clear answer with the class of its cause, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.table.assembly import assemble
from tests.badinput.parquet_cases import PARQUET
from tests.badinput.place_cases import PLACES
from tests.badinput.refusals import OUTSIDE, SECRET, Case, answer, laid_out, packed
from tests.badinput.server_cases import SERVERS, Answers
from tests.badinput.text_cases import TEXT
from tests.badinput.value_cases import VALUES
from tests.loopback import serving

CASES: tuple[Case, ...] = (*TEXT, *VALUES, *PARQUET, *PLACES, *SERVERS)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(Answers) as number:
        yield number


def each_cause_once() -> Iterator[object]:
    """Return all cases; those after the first of a cause belong to `make test-faults`."""
    seen: set[str] = set()
    for case in CASES:
        yield pytest.param(case, id=str(case), marks=[pytest.mark.faults] if case.cause in seen else [])
        seen.add(case.cause)


@pytest.mark.parametrize("case", each_cause_once())
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


@pytest.mark.parametrize("first", ["", "|1x3 Cross validator\n"], ids=["a header", "a remark"])
def test_the_original_test_file_of_adult_breaks_the_shipped_schema(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As published, its first line is a remark and its labels end in a full stop."""
    head, *rows = (ROOT / "data" / "adult.csv").read_text().splitlines()[:21]
    header = first or f"{head}\n"
    adult = yaml.safe_load((ROOT / "adult.yaml").read_text())
    adult["source"]["uri"] = "adult-test.csv"
    text = header + "".join(f"{row}.\n" for row in rows)
    case = Case("Adult", "test", text.encode(), (), file="adult-test.csv", pipeline=adult)

    found = answer(case, tmp_path, monkeypatch, caplog)

    assert found.exit_code == 65
    if first:
        assert "column income: is missing" in found.said
        assert "column |1x3 Cross validator: is not in the schema" in found.said
        assert "delimiter" not in found.said
    else:
        assert "column income: allowed (one of" in found.said
        assert "20 rows break it, 100.00% of all; first row 1: '" in found.said


def test_a_file_that_vanishes_while_it_is_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def vanish(*given: Any) -> Any:
        (tmp_path / "data" / "t.csv").unlink()  # its header was read
        return assemble(*given)

    monkeypatch.setattr("steps.ingest.assemble", vanish)

    found = answer(Case("vanished", "t.csv", b"k,a\n1,x\n", ()), tmp_path, monkeypatch, caplog)

    assert found.exit_code in (74, 78), found.said
    assert "t.csv" in found.said


@pytest.mark.faults
@pytest.mark.parametrize("place", ["a header", "a number", "an open quote"])
def test_a_line_of_100_mb_is_refused_in_a_line(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = {"a header": b"k,a", "a number": b"k,a\n7", "an open quote": b'k,a\n1,"'}[place]
    case = Case("100 MB", place, before + b"7" * 100_000_000, ())

    found = answer(case, tmp_path, monkeypatch, caplog)

    assert found.exit_code == 65, found.said[:2000]
    assert "t.csv" in found.said or "row 1" in found.said
    assert len(found.said) < 3000


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
