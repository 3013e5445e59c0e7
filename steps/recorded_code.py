"""The code that trained a version, laid out in a folder of its own.  Called by `steps.reproduce`.

A commit comes out of the repository that holds the running code by `git archive`: nothing is checked out, so neither
the user's tree nor the repository's list of worktrees changes, no hook of theirs runs, and nothing has to be taken back
when the process is killed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from contracts.errors import ConfigError
from steps.own_environment import last_line
from steps.provenance import CODE, HOME, LARGEST_DIFF, CodeState

HERE = "`retrain reproduce --here` rebuilds with today's code and libraries instead"
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_DIRTY = "-dirty"
_GIT_SECONDS = 300


@dataclass(frozen=True)
class Code:
    """Code that can run: ``python -m steps`` in `folder`."""

    folder: Path
    commit: str
    """As `CodeState.commit`; of the code that is there, so without ``-dirty`` where the changes are not."""
    today: bool
    note: str = ""
    """What of the recorded code is not kept, and what follows."""


def today_code(now: CodeState, folder: Path) -> Code:
    """Copy the running code, so that nothing else that lies beside it can be imported."""
    folder.mkdir(parents=True)
    for name in CODE:
        source = HOME / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        elif source.is_file():
            shutil.copy2(source, folder / name)
    return Code(folder, now.commit, today=True)


def recorded_code(recorded: CodeState, now: CodeState, folder: Path, home: Path = HOME) -> Code:
    """Lay out what a run recorded: today's code where that is the same, else the commit with the kept changes.

    Parameters
    ----------
    recorded, now
        Commit and kept diff of the run, and of the running code.
    folder
        A folder that does not exist yet.
    home
        Where the running code lies.

    Raises
    ------
    ConfigError
        There is no git, no repository, or the commit is not in it.
    """
    if not recorded.commit:
        code = today_code(now, folder)
        return Code(code.folder, code.commit, code.today, "the run names no commit; today's code was taken")
    if recorded == now and not _new_files(recorded.diff):
        return today_code(now, folder)
    commit, dirty, _ = recorded.commit.partition(_DIRTY)
    _unpack(home, _checked(home, commit), folder)
    lost = (_apply(home, recorded.diff, folder) or _new_files(recorded.diff)) if dirty else ""
    note = f"the tree was dirty and not all of its code is kept ({lost}); a difference may come from that"
    return Code(folder, commit if lost else recorded.commit, today=False, note=note if lost else "")


def _new_files(diff: bytes) -> str:
    """Name the files that `git status`, which stands before a kept diff, calls untracked: they are not in the diff."""
    status = diff[: max(diff.find(b"diff --git "), 0) or len(diff)].decode(errors="replace")
    new = [line[3:] for line in status.splitlines() if line.startswith("??")]
    return f"new files: {', '.join(new[:5])}{', ...' if new[5:] else ''}" if new else ""


def _checked(home: Path, commit: str) -> str:
    if not _COMMIT.fullmatch(commit):
        raise ConfigError(f"the run names {commit!r} as its commit, which is none", remedy=HERE)
    if shutil.which("git") is None:
        raise ConfigError(f"git was not found, which fetches commit {commit[:12]}", remedy=f"install git; {HERE}")
    found = _git(home, "rev-parse", "--is-shallow-repository")
    if found.returncode:
        raise ConfigError(
            f"the version was trained by commit {commit[:12]}, and {home} is in no git repository that git can read",
            remedy=f"run this in a clone of retrain; {HERE}",
        )
    if _git(home, "cat-file", "-e", f"{commit}^{{commit}}").returncode:
        shallow = found.stdout.strip() == "true"
        raise ConfigError(
            f"commit {commit[:12]} is not in the repository of {home}" + (", a shallow clone" if shallow else ""),
            remedy=f"`git fetch{' --unshallow' if shallow else ''}` there, if it still exists; {HERE}",
        )
    return commit


def _unpack(home: Path, commit: str, folder: Path) -> None:
    packed = folder.with_suffix(".zip")
    done = _git(home, "archive", "--format=zip", "-o", str(packed), commit)
    if done.returncode:
        raise ConfigError(f"git archive of commit {commit[:12]} failed: {last_line(done.stderr)}", remedy=HERE)
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    packed.unlink()


def _apply(home: Path, diff: bytes, folder: Path) -> str:
    """Apply the kept changes; say why where that is impossible."""
    if not diff:
        return "no diff is kept"
    if len(diff) >= LARGEST_DIFF:
        return "its diff is too long"
    start = diff.find(b"diff --git ")
    if start < 0:
        return ""  # new files only
    patch = folder.with_suffix(".diff")
    patch.write_bytes(diff[start:])
    depth = _git(home, "rev-parse", "--show-prefix").stdout.count("/")  # of retrain in a larger repository
    # the ceiling: a temporary folder may lie in some repository, which `git apply` would take for its own
    ceiling = {"GIT_CEILING_DIRECTORIES": str(folder.parent)}
    done = _git(folder, "apply", f"-p{1 + depth}", "--whitespace=nowarn", str(patch), variables=ceiling)
    return f"its diff does not apply: {last_line(done.stderr)}" if done.returncode else ""


def _git(
    folder: Path, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", check=False,
        timeout=_GIT_SECONDS, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", **variables},
    )  # fmt: skip
