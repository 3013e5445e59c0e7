"""A version of another commit and another lock file, with a real clone of this project and real environments of uv.

Today's code would give another model; the recorded commit gives the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError
from contracts.names import tag
from contracts.settings import PREFIX
from steps.mlflow_connection import mlflow_client
from steps.own_environment import find_uv
from steps.provenance import HOME
from tests.steps.registered import make_settings

pytestmark = pytest.mark.faults

TRAIN = "import sys, pathlib; from tests.steps.trained import make_version; make_version(pathlib.Path(sys.argv[1]))"
MEDIAN = "float(np.median(finite))"
LIBRARY, ANOTHER = "threadpoolctl", "3.5.0"
"""Small, recorded by every run, and of no influence on a prediction."""


@dataclass(frozen=True)
class Elsewhere:
    """A clone of this project that has moved on since it trained a version in `home`."""

    clone: Path
    home: Path
    commit: str

    def python(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        return subprocess.run(
            [sys.executable, *words], cwd=self.clone, capture_output=True, text=True, check=False,
            env=kept | {"RETRAIN_HOME": str(self.home)} | variables,
        )  # fmt: skip

    def reproduce(self, *words: str, code: int = 0, **variables: str) -> Any:
        done = self.python("-m", "workflows.cli.main", "reproduce", "1", *words, "--json", **variables)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    def git(self, *words: str) -> str:
        name = ("-c", "user.name=t", "-c", "user.email=t@t.invalid")
        return subprocess.run(
            ["git", "-C", str(self.clone), *name, *words], capture_output=True, text=True, check=True
        ).stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    if not (HOME / ".git").exists():
        pytest.skip("the code lies in no git repository")
    folder = tmp_path_factory.mktemp("elsewhere")
    clone, home = folder / "clone", folder / "home"
    home.mkdir()
    subprocess.run(["git", "clone", "-q", "--shared", str(HOME), str(clone)], check=True)
    made = Elsewhere(clone, home, "")
    made = Elsewhere(clone, home, made.git("rev-parse", "HEAD").strip())
    done = made.python("-c", TRAIN, str(home))
    assert done.returncode == 0, done.stderr
    recipe = clone / "steps" / "recipe.py"
    assert MEDIAN in recipe.read_text()
    recipe.write_text(recipe.read_text().replace(MEDIAN, f"{MEDIAN} + 25.0"))
    made.git("commit", "-q", "-a", "-m", "Missing numbers are filled otherwise")
    return made


def test_the_recorded_commit_gives_the_same_model_where_todays_gives_another(elsewhere: Elsewhere) -> None:
    before = elsewhere.git("status", "--porcelain"), elsewhere.git("worktree", "list"), elsewhere.git("rev-parse", "@")

    again = elsewhere.reproduce()
    here = elsewhere.reproduce("--here", code=1)

    assert (again["answer"], again["columns"], again["differences"]) == ("identical", [], [])
    assert (again["commit"], again["environment"], again["not_restored"]) == (elsewhere.commit, "today's", [])
    assert here["answer"] == "differs"
    assert {column["column"] for column in here["columns"]} >= {"probability_no", "probability_yes"}
    assert here["largest_difference"] > 0
    assert {difference["what"] for difference in here["differences"]} == {"split sha256", "transform sha256"}
    [lost] = here["not_restored"]
    assert (lost["what"], lost["kept"]) == ("commit", elsewhere.commit)
    after = elsewhere.git("status", "--porcelain"), elsewhere.git("worktree", "list"), elsewhere.git("rev-parse", "@")
    assert after == before


def test_a_shallow_clone_says_that_it_lacks_the_commit(elsewhere: Elsewhere, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth", "1", elsewhere.clone.as_uri(), str(shallow)], check=True)
    said = Elsewhere(shallow, elsewhere.home, "").reproduce(code=78)
    assert f"config: commit {elsewhere.commit[:12]} is not in the repository" in said
    assert "a shallow clone" in said
    assert "`git fetch --unshallow`" in said
    assert "--here" in said


@pytest.fixture(scope="module")
def other_lock(elsewhere: Elsewhere) -> Elsewhere:
    """Let the version have been trained with another release of one library, as its lock file says."""
    try:
        find_uv()
    except ConfigError:
        pytest.skip("there is no uv")
    artifacts = elsewhere.home / "artifacts"
    [lock], [described] = artifacts.rglob("code/requirements.lock"), artifacts.rglob("environment.json")
    pin = re.compile(rf"^{LIBRARY}==.*?\n(?=\S)", re.MULTILINE | re.DOTALL)
    assert pin.search(lock.read_text())
    lock.write_text(pin.sub(f"{LIBRARY}=={ANOTHER}\n", lock.read_text()))
    described.write_text(json.dumps(json.loads(described.read_text()) | {LIBRARY: ANOTHER}))
    client = mlflow_client(make_settings(elsewhere.home))
    run = client.get_model_version("churn", "1").run_id
    client.set_tag(run, tag("lock_sha256"), hashlib.sha256(lock.read_bytes()).hexdigest())
    return elsewhere


def test_the_recorded_lock_file_becomes_an_environment(other_lock: Elsewhere) -> None:
    again = other_lock.reproduce()
    assert (again["answer"], again["environment"], again["commit"]) == ("identical", "its own", other_lock.commit)
    assert again["not_restored"] == [], f"the process that trained says that it had {LIBRARY} {ANOTHER}"


def test_an_index_that_does_not_answer_is_named_and_is_class_network(other_lock: Elsewhere, tmp_path: Path) -> None:
    nowhere = {"UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple", "UV_CACHE_DIR": str(tmp_path), "UV_HTTP_RETRIES": "0"}
    said = other_lock.reproduce(code=75, **nowhere)
    assert "network: the version's environment can't be made: the package index did not answer" in said
    assert "--here" in said


def test_without_uv_the_message_says_so(other_lock: Elsewhere, tmp_path: Path) -> None:
    git = subprocess.run(["sh", "-c", "command -v git"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "git").symlink_to(git)
    said = other_lock.reproduce(code=78, PATH=str(tmp_path))
    assert "config: the version's environment can't be made: uv was not found" in said
    assert "install uv" in said
