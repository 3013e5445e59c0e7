"""A desk with a run that is as short as a whole run can be, and what such a run leaves behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from contracts.names import ALIAS_PRODUCTION
from contracts.outcomes import State
from contracts.settings import PREFIX
from steps.ledger import Ledger
from tests import churn_table

NAME = "churn"
CLI = "workflows.cli.main"
PIPELINE = """
apiVersion: retrain/v1
name: churn
source: {uri: churn.csv}
schema:
  columns:
    - {name: age, type: integer, nullable: false}
    - {name: plan, type: string, nullable: false}
    - {name: churned, type: string, nullable: false}
target: {column: churned, task: binary, positive: "yes"}
training:
  metric: roc_auc
  candidates:
    - {name: small, estimator: lightgbm, parameters: {num_leaves: 4, n_estimators: 10}}
gates:
  default:
    validation:
      thresholds: [{metric: roc_auc, min: 0.6}]
      bootstrap: {resamples: 100}
release: {drain_timeout: 2s}
"""


write_rows = partial(churn_table.write_rows, rows=300, plans=["basic", "plus"])


@dataclass(frozen=True)
class EndState:
    """What has to be the same whatever was killed on the way."""

    versions: dict[int, str]
    """Version -> its state by the ledger."""
    contents: dict[int, dict[str, str]]
    """Version -> hashes of dataset, split, transform and of the model's files."""
    production: int | None
    serving: int | None
    """What answers at the front door."""


@dataclass(frozen=True)
class SmallDesk:
    """A folder with pipeline file, data and home, and the command line in it."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> SmallDesk:
        """Write the pipeline file and two months of data."""
        (folder / "churn.yaml").write_text(PIPELINE)
        write_rows(folder / "churn.csv", seed=1)
        write_rows(folder / "later.csv", seed=2)
        (folder / "tmp").mkdir()
        return cls(folder)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def environment(self, **more: str) -> dict[str, str]:
        """This process's own variables without settings, and those that keep the desk inside its folder."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) and k != "PYTHONDONTWRITEBYTECODE"}
        own = {
            "RETRAIN_HOME": str(self.home), "RETRAIN_SERVER_PORT": "0", "RETRAIN_THREADS": "1",
            "TMPDIR": str(self.folder / "tmp"),
        }  # fmt: skip
        return kept | own | more

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        """Start a command; `more` are variables."""
        return subprocess.Popen(
            [sys.executable, "-m", CLI, *words],
            cwd=self.folder, env=self.environment(**more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *words: str, code: int = 0, **more: str) -> str:
        """Run a command, expect its exit code, and return what it printed."""
        process = self.start(*words, **more)
        try:
            out, error = process.communicate(timeout=900)
        finally:
            process.kill()  # of no effect on one that has ended
        assert process.returncode == code, f"{process.returncode} {out}{error}"
        assert "Traceback" not in out + error, out + error
        return out or error

    def stages(self) -> dict[str, list[dict[str, Any]]]:
        """The attempts of the newest run, by stage."""
        found: dict[str, list[dict[str, Any]]] = {}
        for node in json.loads(self("status", "--json"))["status"]["nodes"].values():
            if node["type"] == "Pod":
                found.setdefault(node["templateName"], []).append(node)
        return found

    def holder(self) -> psutil.Process | None:
        """The process that holds the server's socket, while it lives."""
        try:
            record = json.loads((self.home / "server" / NAME / "holder.json").read_text())
            process = psutil.Process(record["pid"])
            alive = abs(process.create_time() - record["started"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except (FileNotFoundError, psutil.NoSuchProcess):
            return None
        return process if alive else None

    def server(self) -> psutil.Process | None:
        """The newest process that answers requests, while there is one."""
        holder = self.holder()
        try:
            children = [] if holder is None else [p for p in holder.children() if p.status() != psutil.STATUS_ZOMBIE]
            return max(children, key=lambda process: process.create_time(), default=None)
        except psutil.NoSuchProcess:
            return None

    def answering(self) -> int | None:
        """The version that answers at the front door, None when nobody does."""
        try:
            record = json.loads((self.home / "server" / NAME / "holder.json").read_text())
            answer = httpx.get(f"http://{record['host']}:{record['port']}/v1/model", timeout=5, trust_env=False)
            return int(answer.json()["version"])
        except (FileNotFoundError, httpx.HTTPError):
            return None

    def end_state(self) -> EndState:
        """Return what a run left, after checking that each part of it is whole.

        Not checked here but by `leftovers` and `strays`: what must not be there.
        """
        ledger = Ledger(f"sqlite:///{self.home / 'ledger.db'}")
        assert ledger.verify(NAME) == []
        standing = ledger.standing(NAME)
        registered = {e.version: e for e in ledger.entries(NAME) if e.state is State.REGISTERED}
        versions = self._mlflow("SELECT version, run_id, source FROM model_versions WHERE current_stage = 'None'")
        assert {number: run for number, run, _ in versions} == {v: entry.run_id for v, entry in registered.items()}
        assert len({run for _, run, _ in versions}) == len(versions), "one version a run"
        contents = {}
        for number, _, source in versions:
            model = source.removeprefix("models:/")
            package = self.home / f"artifacts/{NAME}/models/{model}/artifacts/artifacts/package"
            files = {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in package.iterdir()
                if path.name in ("estimator.txt", "recipe.json", "example.json")
            }
            assert len(files) == 3
            said = registered[number].evidence
            contents[number] = files | {k: said[k] for k in ("dataset_sha256", "split_sha256", "transform_sha256")}
        aliases = dict(self._mlflow("SELECT alias, version FROM registered_model_aliases"))
        return EndState(
            versions={version: entry.state.value for version, entry in standing.latest.items()},
            contents=contents,
            production=aliases.get(ALIAS_PRODUCTION),
            serving=self.answering(),
        )

    def _mlflow(self, query: str) -> list[Any]:
        # not by MLflow's client: it keeps its connection to a database that a test has put another in the place of
        with contextlib.closing(sqlite3.connect(self.home / "mlflow.db")) as connection:
            return connection.execute(query).fetchall()

    def leftovers(self) -> list[str]:
        """Name the files that something unfinished left: partial ones, scratch, volumes of pods that have ended."""
        partial = (p for p in self.home.rglob("*") if ".part" in p.name or p.suffix == ".tmp")
        volumes = (p for p in self.home.glob("runs/*/volumes/*/**/*") if p.is_file())
        temporary = (p for p in (self.folder / "tmp").rglob("*") if p.is_file())
        return sorted(str(p.relative_to(self.folder)) for found in (partial, volumes, temporary) for p in found)

    def strays(self, seconds: float = 20) -> list[str]:
        """Name the processes that still run on behalf of this desk, besides holder and server; wait for them a while.

        A version that drains may take until its drain timeout.  A command that somebody types here meanwhile is none.
        """
        deadline = time.monotonic() + seconds
        while found := list(self._strays()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return found

    def _strays(self) -> Iterator[str]:
        meant = {process.pid for process in (self.holder(), self.server()) if process is not None}
        for process in psutil.process_iter():
            try:
                if process.pid in meant or process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                words = process.cmdline()
                if str(self.home) in " ".join(process.environ().values()) and not _is_passing(words):
                    yield f"{process.pid} {' '.join(words)}"
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue

    def clear(self) -> None:
        """End the server and remove the home."""
        if self.home.exists():
            self("stop")
        shutil.rmtree(self.home, ignore_errors=True)


def _is_passing(words: list[str]) -> bool:
    """Whether these are the words of a command that ends by itself: `retrain stop`, `status` and such, not `run`."""
    typed = next((k for k, word in enumerate(words) if Path(word).name == "retrain" or word == CLI), None)
    return typed is not None and "run" not in words[typed + 1 :]
