"""A disk without room, for real: a small file system in a user namespace, filled to the brim."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from contracts.errors import CONFIG
from contracts.settings import desk, variable
from tests.faults.rehearsal import files
from tests.faults.small_desk import SmallDesk, write_rows

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
ON_A_FULL_DISK = """
mount -t tmpfs -o size=1m full "$0" || exit 1
cp -a "$0.before/." "$0/"
echo free >"$0/free"  # one page: a temporary folder where nothing at all can be written is not taken for one
cat /dev/zero >"$0/filler" 2>/dev/null
rm "$0/free"
"$@"
code=$?
rm "$0/filler"
cp -a "$0/." "$0.after/"
exit $code
"""
APPENDS = """
import sys
from datetime import UTC, datetime
from contracts.errors import StageError
from contracts.outcomes import State
from steps.ledger import Ledger
try:
    Ledger(sys.argv[1]).append(
        "churn", State.REGISTERED, version=1, run_id="r", workflow="w", by="b", reason="x" * 100_000, evidence={},
        after=None, at=datetime.now(UTC),
    )
except StageError as error:
    print(error.message, error.remedy, file=sys.stderr)
    sys.exit(error.row.exit_code)
"""
TAKES_ONE = """
import sys
from pathlib import Path
from steps.ledger import Ledger
print(len(Ledger(sys.argv[1]).entries("churn")), Ledger(sys.argv[1]).verify("churn"))
"""


@cache
def why_not() -> str:
    if shutil.which("unshare") is None:
        return "there is no unshare here"
    tried = subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, text=True, check=False
    )
    return tried.stderr.strip()


needs_namespace = pytest.mark.skipif(bool(why_not()), reason=f"no file system of our own: {why_not()}")


def on_a_full_disk(place: Path, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command while `place` is a full disk; what it held before is there, and afterwards what stayed of it."""
    before, after = place.with_name(f"{place.name}.before"), place.with_name(f"{place.name}.after")
    place.mkdir(parents=True, exist_ok=True)
    shutil.copytree(place, before)
    after.mkdir()
    return subprocess.run(
        [*NAMESPACE, "sh", "-c", ON_A_FULL_DISK, str(place), *command], env=environment, capture_output=True, text=True,
        check=False, cwd=place.parent,
    )  # fmt: skip


@needs_namespace
@pytest.mark.parametrize(
    "place", ["store", *(pytest.param(place, marks=pytest.mark.faults) for place in ("scratch", "outputs"))]
)
def test_ingest_without_room_says_so_is_not_retried_and_leaves_nothing(tmp_path: Path, place: str) -> None:
    small = SmallDesk.make(tmp_path)
    write_rows(small.folder / "churn.csv", seed=1, rows=20_000)
    home = small.folder / "home"
    (home / "scratch").mkdir(parents=True)
    environment = small.environment() | desk(home, small.folder)
    environment |= {
        variable("pipeline"): str(small.folder / "churn.yaml"), variable("outputs"): str(home / "outputs"),
        "TMPDIR": str(home / "scratch"),
    }  # fmt: skip
    command = [sys.executable, "-m", "steps", "ingest", "--as-of", "2026-03-01T00:00:00Z"]

    ended = on_a_full_disk(home / place, command, environment)

    assert ended.returncode == CONFIG.exit_code, ended.stderr
    assert "make room" in ended.stderr
    assert "Traceback" not in ended.stderr
    left = files(home / f"{place}.after")
    if place == "outputs":  # which nobody reads of a stage that failed
        assert len(left) < 6
    else:
        assert [name for name in left if not name.startswith("reports/")] == [], "but the report of the failure"


@needs_namespace
def test_a_ledger_without_room_stays_whole(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/disk/ledger.db"
    (tmp_path / "disk").mkdir()
    subprocess.run([sys.executable, "-c", TAKES_ONE, url], check=True, capture_output=True)
    small = SmallDesk.make(tmp_path)

    ended = on_a_full_disk(tmp_path / "disk", [sys.executable, "-c", APPENDS, url], small.environment())

    assert ended.returncode == CONFIG.exit_code, ended.stderr
    assert "free disk" in ended.stderr
    url = f"sqlite:///{tmp_path}/disk.after/ledger.db"
    kept = subprocess.run([sys.executable, "-c", TAKES_ONE, url], check=True, capture_output=True, text=True)
    assert kept.stdout == "0 []\n"


@needs_namespace
@pytest.mark.faults
def test_a_home_without_room_is_one_clear_message(tmp_path: Path) -> None:
    small = SmallDesk.make(tmp_path)
    small.home.mkdir()
    command = [sys.executable, "-m", "workflows.cli.main", "run", "churn.yaml", "--no-warm"]

    ended = on_a_full_disk(small.home, command, small.environment())

    assert ended.returncode == CONFIG.exit_code, ended.stderr
    assert "no room" in ended.stderr
    assert "make room" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.glob("home.after/runs/*/state.json")) == []
