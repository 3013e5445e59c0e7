"""Bringing a recorded commit back: from a real repository, without touching it; and what is said when it is gone."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from steps.provenance import CodeState, git_state
from steps.recorded_code import recorded_code


def git(folder: Path, *words: str) -> str:
    name = ["-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    return subprocess.run(["git", "-C", str(folder), *name, *words], check=True, capture_output=True, text=True).stdout


def state(home: Path) -> CodeState:
    return git_state(home, home / "train.py")


@pytest.fixture(params=["", "retrain"], ids=["a repository of its own", "a folder of a larger one"])
def home(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    top = tmp_path / "repository"
    home = top / request.param
    home.mkdir(parents=True)
    (home / "train.py").write_text("seed = 1\n")
    git(top, "init", "-q")
    git(top, "add", ".")
    git(top, "commit", "-q", "-m", "first")
    return home


def commit(home: Path, text: str) -> CodeState:
    (home / "train.py").write_text(text)
    git(home, "commit", "-q", "-a", "-m", "next")
    return state(home)


def test_an_earlier_commit_is_laid_out_and_the_repository_is_as_before(home: Path, tmp_path: Path) -> None:
    first = state(home)
    now = commit(home, "seed = 2\n")
    before = sorted(p for p in home.rglob("*") if p.is_file())
    code = recorded_code(first, now, tmp_path / "code", home)
    assert (code.folder / "train.py").read_text() == "seed = 1\n"
    assert (code.commit, code.today, code.note) == (first.commit, False, "")
    assert sorted(p for p in home.rglob("*") if p.is_file()) == before
    assert git(home, "worktree", "list").count("\n") == 1
    assert state(home) == now


def test_changes_of_a_dirty_tree_are_put_back(home: Path, tmp_path: Path) -> None:
    git(home, "config", "diff.noprefix", "true")
    (home / "train.py").write_text("seed = 3\n")
    dirty = state(home)
    assert dirty.commit.endswith("-dirty")
    now = commit(home, "seed = 2\n")
    code = recorded_code(dirty, now, tmp_path / "code", home)
    assert (code.folder / "train.py").read_text() == "seed = 3\n"
    assert (code.commit, code.note) == (dirty.commit, "")


def test_new_files_of_a_dirty_tree_are_lost_and_that_is_said(home: Path, tmp_path: Path) -> None:
    (home / "train.py").write_text("seed = 3\n")
    (home / "new.py").write_text("")
    dirty = state(home)
    code = recorded_code(dirty, dirty, tmp_path / "code", home)
    assert (code.folder / "train.py").read_text() == "seed = 3\n"
    assert not (code.folder / "new.py").exists()
    assert "not all of its code is kept (new files: " in code.note
    assert "new.py" in code.note
    assert code.commit == dirty.commit.removesuffix("-dirty")


@pytest.mark.parametrize(
    ("diff", "said"),
    [
        (b"", "no diff is kept"),
        (b"M train.py\n" * 100_000, "too long"),
        (b"M train.py\n\ndiff --git a/x b/x\n", "does not apply"),
    ],
    ids=["none", "cut off", "damaged"],
)
def test_without_the_changes_the_commit_alone_is_taken_and_that_is_said(
    home: Path, tmp_path: Path, diff: bytes, said: str
) -> None:
    dirty = CodeState(f"{state(home).commit}-dirty", diff)
    code = recorded_code(dirty, state(home), tmp_path / "code", home)
    assert (code.folder / "train.py").read_text() == "seed = 1\n"
    assert said in code.note


def test_todays_code_is_copied_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    now = CodeState("0123456")
    code = recorded_code(now, now, tmp_path / "code")
    assert code.today
    assert (code.folder / "steps" / "train.py").is_file()
    unnamed = recorded_code(CodeState(), now, tmp_path / "other")
    assert (unnamed.today, unnamed.note) == (True, "the run names no commit; today's code was taken")


def test_what_stands_in_the_way_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = state(home)
    now = commit(home, "seed = 2\n")
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", (home.parent / home.name).as_uri(), shallow], check=False)
    outside = tmp_path / "outside"
    outside.mkdir()
    cases = [
        (replace(first, commit="0" * 40), home, "commit 000000000000 is not in the repository of"),
        (replace(first, commit="--output=x"), home, "names '--output=x' as its commit"),
        (first, outside, "is in no git repository"),
        *([(first, shallow, "a shallow clone")] if shallow.exists() else []),
    ]
    for recorded, where, said in cases:
        with pytest.raises(ConfigError, match=said) as caught:
            recorded_code(recorded, now, tmp_path / "code", where)
        assert "--here" in caught.value.remedy
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="git was not found"):
        recorded_code(first, now, tmp_path / "code", home)
