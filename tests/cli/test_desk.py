"""What the desk gives its stages: sizes, and the key that models are signed by."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts.errors import MEMORY_GROWTH_CAP, ConfigError
from contracts.settings import size, variable
from contracts.stages import SIZED
from serving.model_keys import fingerprint
from steps.audit.key import private_key
from steps.signing import signing_key
from workflows.cli.desk import SIGNING_KEY, desk_environment, desk_settings, make_signing_key

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("gib", [1, 64])
def test_the_last_attempt_of_a_stage_fits_the_machine_unless_the_stage_declares_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: int
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gib * 2**18}.__getitem__)

    environment = desk_environment(tmp_path / "home", tmp_path)

    for stage in SIZED:
        base = int(environment[size(stage.name, "memory")])
        assert base >= stage.memory_mib
        assert base == stage.memory_mib or base * MEMORY_GROWTH_CAP == gib * 1024 * 3 // 4


def test_of_many_who_make_the_signing_key_at_once_all_have_the_same(tmp_path: Path) -> None:
    program = "import sys, pathlib, workflows.cli.desk as desk; desk.make_signing_key(pathlib.Path(sys.argv[1]))"
    started = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "home")], cwd=ROOT) for _ in range(4)]
    seen = set()
    while any(process.poll() is None for process in started):
        with contextlib.suppress(FileNotFoundError):
            seen.add((tmp_path / "home" / SIGNING_KEY).read_bytes())
        time.sleep(0.002)
    assert [process.returncode for process in started] == [0, 0, 0, 0]

    key = tmp_path / "home" / SIGNING_KEY
    assert seen <= {key.read_bytes()}, "it is there whole, or not at all, and never another"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(path.name for path in key.parent.iterdir()) == ["signing.pem", "signing.pub"]
    environment = desk_environment(key.parent, tmp_path)
    assert signing_key(desk_settings(key.parent)).curve.name == "secp256r1"
    assert environment[variable("signing_key")].encode() == key.read_bytes()


def readable_by_others(home: Path) -> None:
    (home / SIGNING_KEY).chmod(0o644)


def no_key(home: Path) -> None:
    (home / SIGNING_KEY).write_text("nonsense")


def a_folder(home: Path) -> None:
    (home / SIGNING_KEY).unlink()
    (home / SIGNING_KEY).mkdir(mode=0o700)


def of_another_kind(home: Path) -> None:
    (home / SIGNING_KEY).unlink()
    private_key(home / SIGNING_KEY)


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        (readable_by_others, "can be read by others"),
        (no_key, "holds no elliptic-curve key in PEM"),
        (a_folder, "cannot use the key .*: Is a directory"),
        (of_another_kind, "holds no elliptic-curve key in PEM"),
    ],
)
def test_a_signing_key_that_cannot_be_used_is_told_before_a_run(
    tmp_path: Path, deed: Callable[[Path], None], says: str
) -> None:
    make_signing_key(tmp_path)
    deed(tmp_path)
    with pytest.raises(ConfigError, match=says) as refused:
        make_signing_key(tmp_path)
    assert "\n" not in refused.value.message
    assert "nonsense" not in refused.value.message


def test_doctor_says_by_which_key_models_are_signed_or_that_there_is_none(tmp_path: Path) -> None:
    def told() -> dict[str, str]:
        command = [sys.executable, "-m", "workflows.cli.main", "doctor", "--json"]
        done = subprocess.run(
            command, env=os.environ | {"RETRAIN_HOME": str(tmp_path)}, cwd=ROOT, capture_output=True, check=False
        )
        return next(line for line in json.loads(done.stdout) if line["what"] == "signing key")

    assert (told()["state"], told()["remedy"]) == ("note", "the next run makes one, and signs what it registers")
    make_signing_key(tmp_path)
    assert (
        told()["found"] == f"models are signed by {fingerprint(signing_key(desk_settings(tmp_path)).public_key())[:16]}"
    )
    (tmp_path / "signing.pub").write_text("")
    assert (told()["state"], "no key is trusted" in told()["found"]) == ("wrong", True)
