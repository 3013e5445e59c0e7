"""What images/build does with git and a builder (a stand-in here), and in which order the Dockerfiles do their work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("steps", "serving", "mlflow")
DIGEST = f"printf registry@sha256:{'0' * 64}"
Make = Callable[..., str]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository with what images/build needs."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "images", folder / "images", ignore=shutil.ignore_patterns("commit"))
    for name in (".gitignore", "Makefile"):
        shutil.copy(ROOT / name, folder)
    (folder / "kind").mkdir()
    commit(folder)
    return folder


@pytest.fixture
def make(project: Path, tmp_path: Path) -> Make:
    """Call make with a builder that notes, in `built`, the tag, the argument COMMIT and the file that it would copy."""
    builder = tmp_path / "builder"
    builder.write_text(f"""#!/bin/sh
for word; do case $word in COMMIT=*) commit=${{word#COMMIT=}} ;; */*:*) tag=$word ;; esac; done
echo "$tag $commit $(cat images/commit)" >> {tmp_path}/built
""")
    builder.chmod(0o755)

    def call(*targets: str) -> str:
        line = ["make", "--no-print-directory", *targets, f"BUILD={builder}", "PUSH=true", f"DIGEST={DIGEST}"]
        return subprocess.run(line, cwd=project, capture_output=True, text=True, check=True).stdout

    return call


def commit(folder: Path) -> str:
    """Commit all that is there; return the commit."""
    who = {f"GIT_{role}_{what}": "t@t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for line in ("init -q", "add -A", "commit -q --allow-empty -m all"):
        subprocess.run(["git", *line.split()], cwd=folder, check=True, env={**os.environ, **who})
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()  # fmt: skip


def test_tag_label_and_the_file_that_a_cache_compares_name_the_commit(make: Make, project: Path) -> None:
    first = commit(project)
    make("images")
    second = commit(project)
    make("images")
    (project / "images" / "steps" / "Dockerfile").write_text("FROM scratch\n")
    make("images")

    built = [line.split() for line in (project.parent / "built").read_text().splitlines()]
    assert [(tag.split(":")[-1], argument, file) for tag, argument, file in built] == [
        (name, name, name) for name in (first, second, f"{second}-dirty") for _ in IMAGES
    ]


def test_each_image_is_told_before_it_is_built_and_with_its_seconds_afterwards(make: Make, project: Path) -> None:
    tag = commit(project)
    lines = make("images", "push").splitlines()

    assert [re.sub(r"\d+ s\b", "N s", line) for line in lines if line.startswith("serving: ")] == [
        f"serving: building localhost:5001/mlops/serving:{tag}",
        "serving: built in N s",
        f"serving: pushing localhost:5001/mlops/serving:{tag}",
        f"serving: pushed in N s, localhost:5001/mlops/serving@sha256:{'0' * 64}",
    ]
    assert [line.split(":")[0] for line in lines] == [name for _ in range(2) for name in IMAGES for _ in range(2)]


@pytest.mark.parametrize("image", IMAGES)
def test_what_names_the_commit_comes_after_the_file_and_that_after_the_code(image: str) -> None:
    text = (ROOT / "images" / image / "Dockerfile").read_text(encoding="utf-8")
    last_stage = text[text.rindex("\nFROM ") :].replace("\\\n", "").splitlines()
    [file] = [number for number, line in enumerate(last_stage) if line.startswith("COPY images/commit ")]
    uses = [number for number, line in enumerate(last_stage) if re.search(r"\bCOMMIT\b", line) and line[0] != "#"]
    work = [number for number, line in enumerate(last_stage) if line.startswith(("COPY ", "RUN "))]

    assert uses, "the image names no commit"
    assert min(uses) > file
    assert file == max(work), "a commit that changes no code rebuilds nothing but its name"
    assert "COMMIT" not in text[: text.rindex("\nFROM ")]
