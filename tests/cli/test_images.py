"""Images with a pipeline's own packages: what they are made from, by content; Kaniko itself is in tests/cluster."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from contracts.errors import CONFIG, RESOURCES, ConfigError
from contracts.pipeline import load_pipeline
from steps.own_packages import read_lock
from tests.wheels import wheel
from workflows.cluster import errand as errands
from workflows.cluster import images
from workflows.cluster.images import Target, context, own_images, tag, wheels, with_images, workflow
from workflows.compile import WORKFLOW_TEMPLATE, compile_pipeline

ADULT = Path(__file__).resolve().parents[2] / "adult.yaml"
BASE = "registry/steps@sha256:" + "1" * 64
TARGET = Target(python="3.11", machine="aarch64", libc="2.36")
LOCK = f"corners==2.1 ; python_full_version < '3.14' \\\n    --hash=sha256:{'a' * 64}\n"


def unpacked(packed: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {
            name: (tar.extractfile(name) or io.BytesIO()).read().decode(errors="replace") for name in tar.getnames()
        }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    wheel(made, "corners", "2.1", {"corners.py": "COUNT = 4\n"})
    return made


def test_a_context_installs_wheels_by_their_hash_without_an_index(folder: Path) -> None:
    found = unpacked(context(BASE, LOCK, folder, on_path=True))

    assert set(found) == {
        "Dockerfile",
        "packages.lock",
        "pip.zip",
        "wanted.txt",
        "wheels/corners-2.1-py3-none-any.whl",
    }
    assert found["packages.lock"] == LOCK
    assert found["wanted.txt"].startswith("/wheels/corners-2.1-py3-none-any.whl --hash=sha256:")
    lines = found["Dockerfile"].splitlines()
    assert lines[0] == f"FROM {BASE} AS installed"
    [install] = [line for line in lines if line.startswith("RUN ")]
    assert "--no-index" in install
    assert "--require-hashes" in install
    last = lines[lines.index(f"FROM {BASE}") :]
    assert not [line for line in last if line.startswith(("USER", "RUN"))], "what runs is the base's user"
    assert last[-2:] == ["ENV RETRAIN_PACKAGES=/opt/packages", "ENV PYTHONPATH=/opt/packages"]


def test_the_contexts_own_pip_installs_its_wheels(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(context(BASE, LOCK, folder, on_path=True))) as tar:
        tar.extractall(tmp_path / "built", filter="data")
    wanted = (tmp_path / "built" / "wanted.txt").read_text()
    (tmp_path / "wanted.txt").write_text(wanted.replace("/wheels", str(tmp_path / "built" / "wheels")))
    command = [sys.executable, "-I", "-S", str(tmp_path / "built" / "pip.zip" / "pip"), "install", "-q", "--no-index"]
    more = ["--require-hashes", "--target", str(tmp_path / "packages"), "-r", str(tmp_path / "wanted.txt")]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "packages" / "corners.py").read_text() == "COUNT = 4\n"


@pytest.mark.parametrize(
    ("python", "exit_code"),
    [
        ("exit 0", 0),
        (f'shift; {sys.executable} -I -S FOLDER/pip.zip/pip "$@"', CONFIG.exit_code),
        ("kill -9 $$", RESOURCES.exit_code),
    ],
    ids=["installs", "a wheel has another hash", "is killed"],
)
def test_the_installer_in_a_build_ends_it_with_its_class(
    python: str, exit_code: int, folder: Path, tmp_path: Path
) -> None:
    built = tmp_path / "built"
    with tarfile.open(fileobj=io.BytesIO(context(BASE, LOCK, folder, on_path=True))) as tar:
        tar.extractall(built, filter="data")
    wanted = (built / "wanted.txt").read_text().replace("/wheels", str(built / "wheels"))
    (built / "wanted.txt").write_text(re.sub("sha256:.{4}", "sha256:0000", wanted))
    (tmp_path / "python").write_text(f"#!/bin/sh\n{python.replace('FOLDER', str(built))}\n")
    (tmp_path / "python").chmod(0o755)
    [line] = [line for line in (built / "Dockerfile").read_text().splitlines() if line.startswith("RUN ")]
    line = line.removeprefix("RUN ").replace("/opt/packages", str(tmp_path / "opt")).replace(
        "/wanted.txt", str(built / "wanted.txt")
    )  # fmt: skip

    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(["sh", "-c", line], env=path, capture_output=True, check=False).returncode == exit_code


def test_an_image_is_named_by_base_and_wheels(folder: Path, tmp_path: Path) -> None:
    first = tag(context(BASE, LOCK, folder, on_path=False))

    assert tag(context(BASE, LOCK, folder, on_path=False)) == first
    assert tag(context(BASE.replace("1", "2"), LOCK, folder, on_path=False)) != first
    shutil.copytree(folder, tmp_path / "more")
    wheel(tmp_path / "more", "edges", "1.0", {})
    assert tag(context(BASE, LOCK, tmp_path / "more", on_path=False)) != first


def test_a_base_that_has_all_packages_gets_the_lock_alone(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    found = unpacked(context(BASE, LOCK, tmp_path / "none", on_path=False))

    assert set(found) == {"Dockerfile", "packages.lock"}
    assert found["Dockerfile"].splitlines() == [
        f"FROM {BASE}", "COPY packages.lock /opt/packages/packages.lock", "ENV RETRAIN_PACKAGES=/opt/packages",
    ]  # fmt: skip


def test_wheels_of_every_glibc_up_to_the_images_fit_and_markers_are_the_images() -> None:
    assert TARGET.platforms[0] == "manylinux_2_36_aarch64"
    assert "manylinux_2_17_aarch64" in TARGET.platforms
    assert not [name for name in TARGET.platforms if "x86" in name or "2_37" in name]
    wanted = [p.name for p in read_lock(
        f"{LOCK}only-on-windows==1 ; sys_platform == 'win32' \\\n    --hash=sha256:{'b' * 64}\n"
        f"later==1 ; python_full_version >= '3.12' \\\n    --hash=sha256:{'c' * 64}\n"
        f"arm==1 ; platform_machine == 'aarch64' \\\n    --hash=sha256:{'d' * 64}\n"
    ) if p.wanted(TARGET.markers)]  # fmt: skip

    assert wanted == ["corners", "arm"]


@pytest.mark.network
def test_wheels_are_fetched_for_another_machine_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steps.own_packages import resolve

    packages = read_lock(resolve(["rapidfuzz==3.10.1"], "3.11", tmp_path))
    folder = wheels(packages, TARGET, tmp_path)

    [found] = folder.iterdir()
    assert found.name.startswith("rapidfuzz-3.10.1-cp311-cp311-manylinux")
    assert "aarch64" in found.name
    monkeypatch.setenv("PATH", "/nonexistent")
    assert wheels(packages, TARGET, tmp_path) == folder
    with pytest.raises(ConfigError):
        wheels(packages, Target(python="2.7", machine="aarch64", libc="2.36"), tmp_path)


def test_every_trigger_of_the_template_gets_the_images() -> None:
    template = yaml.safe_load(compile_pipeline(ADULT)[WORKFLOW_TEMPLATE])
    changed = with_images(template, {"steps-image": "s@sha256:1", "serving-image": "v@sha256:2"})

    parameters = {p["name"]: p for p in changed["spec"]["arguments"]["parameters"]}
    assert parameters["steps-image"]["value"] == "s@sha256:1"
    assert "valueFrom" not in parameters["serving-image"]
    others = [
        p for p in template["spec"]["arguments"]["parameters"] if p["name"] not in ("steps-image", "serving-image")
    ]
    assert all(parameters[p["name"]] == p for p in others)
    assert with_images(template, {}) == template


def test_kaniko_runs_alone_as_the_compiled_template_has_it() -> None:
    template = yaml.safe_load(compile_pipeline(ADULT)[WORKFLOW_TEMPLATE])
    made = workflow("retrain-packages-x", template, {"context": "s3://c", "destination": "r:t", "plain-http": ""})

    assert made["spec"]["entrypoint"] == made["spec"]["templates"][0]["name"] == "kaniko"
    [built], [compiled] = made["spec"]["templates"], [t for t in template["spec"]["templates"] if t["name"] == "kaniko"]
    words = built["container"].pop("args")
    missing = [word for word in compiled["container"].pop("args") if word not in words]
    assert built == compiled
    assert [word.partition("=")[0] for word in missing] == ["--ignore-path"] * 3, "a program of the base is run"
    assert "onExit" not in made["spec"]
    given = {p["name"]: p.get("value") for p in made["spec"]["arguments"]["parameters"]}
    assert given.keys() == {"kaniko-image", "build-cpu", "build-memory", "context", "destination", "plain-http"}


def test_what_a_pod_writes_beside_its_answer_hides_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Place:
        settings: ClassVar = {
            "RETRAIN_IMAGE_REGISTRY": "registry/own", "RETRAIN_STEPS_IMAGE": BASE, "RETRAIN_SERVING_IMAGE": BASE,
        }  # fmt: skip

    def errand(_place: object, _duty: str, _program: str, *images: str, **_: object) -> str:
        found = dict.fromkeys(images, "sha256:" + "2" * 64) if images else asdict(TARGET)
        return f"a library warns of something\n{json.dumps(found)}\n"

    monkeypatch.setattr(errands, "errand", errand)
    monkeypatch.setattr(images, "resolve", lambda *_: "")  # all that is wanted is in the base
    pipeline = load_pipeline(ADULT).model_copy(update={"packages": ("corners==2.1",)})

    found = own_images(Place(), pipeline, {}, tmp_path, print)  # type: ignore[arg-type]

    assert found == {name: f"registry/own/{name[:-6]}@sha256:" + "2" * 64 for name in ("steps-image", "serving-image")}
