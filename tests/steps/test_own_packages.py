"""A user's packages: what they need besides retrain's libraries is resolved once, locked, and lies in one folder."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from contracts.pipeline import parse_pipeline
from contracts.settings import Settings
from steps.own_packages import bring, current, install, lock_sha256, read_lock, resolve, without
from steps.reuse import LOCK_FILE
from tests.wheels import only_from, stand_ins, wheel

ADULT = Path(__file__).parents[2] / "adult.yaml"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "shapes", "1.0", {"shapes.py": "from corners import COUNT\n"}, ["corners>=2", "numpy"])
    wheel(folder, "corners", "2.1", {"corners.py": "COUNT = 4\n"})
    stand_ins(folder, "numpy", "pandas")
    only_from(folder, monkeypatch)
    return folder


def locked(home: Path) -> str:
    return resolve(["shapes==1.0"], "3.11", home)


def test_the_lock_holds_what_is_needed_besides_retrains_libraries_with_hashes(index: Path, tmp_path: Path) -> None:
    own = read_lock(locked(tmp_path))

    assert [package.pin for package in own] == ["corners==2.1", "shapes==1.0"]
    assert all(len(package.hashes) == 1 and package.hashes[0].startswith("sha256:") for package in own)


def test_what_stages_have_and_the_server_has_not_is_locked_at_retrains_version(index: Path, tmp_path: Path) -> None:
    version = importlib.metadata.version("pandas")
    lock = resolve([f"pandas=={version}"], "3.11", tmp_path)

    assert f"pandas=={version}" in [package.pin for package in read_lock(lock)]
    assert "pandas==" not in without(lock, LOCK_FILE.read_text())
    assert [file.name for file in install(lock, tmp_path).iterdir()] == ["packages.lock"], "the stages have it"


def test_what_was_resolved_before_needs_no_index(index: Path, tmp_path: Path) -> None:
    first = locked(tmp_path)
    for file in index.glob("*.whl"):
        file.unlink()

    assert locked(tmp_path) == first


def test_packages_are_installed_into_a_folder_of_their_lock_and_importable_from_there(
    index: Path, tmp_path: Path
) -> None:
    lock = locked(tmp_path)
    folder = install(lock, tmp_path)
    for file in index.glob("*.whl"):
        file.unlink()

    assert install(lock, tmp_path) == folder, "by its hash, without the index"
    assert folder.name == lock_sha256(lock)
    program = """
import sys
from steps.own_packages import activate
activate(sys.argv[1])
import numpy, shapes
print(shapes.COUNT, numpy.__file__.startswith(sys.argv[1]))
"""
    command = [sys.executable, "-c", program, str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["4", "False"], "retrain's own numpy"
    settings = Settings(store="file:///s", tracking_uri="sqlite:///m", packages=str(folder))
    assert current(settings) == lock


def test_a_kept_models_packages_are_those_of_the_run_or_brought_beside_them(index: Path, tmp_path: Path) -> None:
    lock = locked(tmp_path)
    settings = Settings(store="file:///s", tracking_uri="sqlite:///m", packages=str(tmp_path / "packages" / "none"))

    assert (current(settings), bring(settings, "")) == ("", "")
    folder = bring(settings, lock)
    assert folder == str(install(lock, tmp_path))
    in_an_image = settings.model_copy(update={"packages": str(tmp_path / "elsewhere")})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "packages.lock").write_text(lock)
    assert bring(in_an_image, lock) == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("pin", "says"),
    [
        ("numpy==1.0", r"you require numpy==1.0 and numpy==.*unsatisfiable"),
        ("shapes==9.9", "no version of shapes==9.9"),
        ("nothing-of-that-name==1.0", "nothing-of-that-name was not found"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(pin: str, says: str, index: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        resolve([pin], "3.11", tmp_path)

    assert "\n" not in refused.value.message
    assert not list((tmp_path / "packages" / "locks").iterdir()), "nothing half-written is left"


@pytest.mark.parametrize(
    "pin", ["holidays", "holidays>=1", "holidays==1 ; x", "--index-url=x", "a==1 b==2", "x @ file:///"]
)
def test_only_exact_versions_are_packages_of_a_pipeline_file(pin: str) -> None:
    with pytest.raises(ConfigError, match="has mistakes"):
        parse_pipeline(f"{ADULT.read_text()}\npackages: [{pin!r}]\n", "adult.yaml")
