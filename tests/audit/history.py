"""A history of thirty runs at a desk, told by who made it: what was typed, fed and seen, not what was recorded.

Everything is done by the command line, but for the alias that a person moves with MLflow's client.  What `Told` keeps
comes from outside the ledger: the files that were written, the hash of `tests.steps.reference_hash`, the words that
were typed, MLflow's own numbers, and the server's answers.  Called by `tests.audit.test_questions`.
"""

from __future__ import annotations

import contextlib
import csv
import getpass
import json
import sqlite3
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx

from contracts.names import ALIAS_PRODUCTION
from contracts.settings import variable
from tests.faults.small_desk import NAME, SmallDesk, write_rows
from tests.steps.reference_hash import reference_hash

PIPELINE = """
apiVersion: retrain/v1
name: churn
source: {{uri: churn.csv}}
schema:
  columns:
    - {{name: age, type: integer, nullable: false}}
    - {{name: plan, type: string, nullable: false}}
    - {{name: churned, type: string, nullable: false}}
target: {{column: churned, task: binary, positive: "yes"}}
training:
  metric: roc_auc
  candidates:
    - {{name: small, estimator: lightgbm, parameters: {{num_leaves: {leaves}, n_estimators: 10}}}}
gates:
  default: &policy
    validation:
      thresholds: [{{metric: roc_auc, min: 0.6}}]
      bootstrap: {{resamples: 100, decide: point}}
    promotion:
      thresholds: [{{metric: roc_auc, min: 0.85}}]
      comparison:
        {{metric: roc_auc, rule: non_inferior, margin: 0.4, min_rows: 20, bootstrap: {{resamples: 100, decide: point}}}}
  environments:
    reviewed: {{<<: *policy, decision: approval, approval_expires: 1h}}
    hasty: {{<<: *policy, decision: approval, approval_expires: 1s}}
release: {{drain_timeout: 1s, ready_timeout: {ready}}}
"""
COMMITS = {name: name * 40 for name in "abc"}
CLEAR, BLURRED, NONSENSE = 4, 30, 1000
"""Noise of data from which much, little, and nothing can be learned: promoted, only registered, not even that."""
GATE, PERSON = "the gate", "a person"


def now() -> datetime:
    """Return this moment; a moment later than all that was done before it."""
    time.sleep(0.01)
    return datetime.now(UTC)


@dataclass(frozen=True)
class Made:
    """How a version was made."""

    at: datetime
    dataset_sha256: str
    commit: str
    leaves: int
    run_id: str
    roc_auc: float
    """MLflow's `test.roc_auc`, read when it was made."""


@dataclass(frozen=True)
class Event:
    """Something that befell a version, by when it was over."""

    at: datetime
    kind: str
    version: int
    why: str = ""
    """Words that were typed, or that must be in what is said of it."""
    before: int | None = None
    """The version that served."""


@dataclass(frozen=True)
class Seen:
    """A moment, and what could be seen from outside."""

    at: datetime
    serving: int
    prediction: str
    """An id that the server gave just then."""
    answered_by: int
    entries: int
    """Rows of the ledger's table."""
    waiting: tuple[str, ...]
    """Runs that asked for a person's word and have none."""


@dataclass
class Told:
    """The history as who made it would tell it."""

    made: dict[int, Made] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    moments: list[Seen] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0

    def before(self, at: datetime, *kinds: str) -> list[Event]:
        """Return the events of these kinds up to a moment."""
        return [event for event in self.events if event.kind in kinds and event.at <= at]

    def let_through(self, version: int, at: datetime) -> Event:
        """Return who or what let a version through last, by a moment."""
        return next(e for e in reversed(self.before(at, GATE, PERSON, "rollback")) if e.version == version)


class Keeper:
    """Makes the history, and tells it."""

    def __init__(self, desk: SmallDesk) -> None:
        self.desk, self.told = desk, Told()
        self.leaves = 4
        self.asked: dict[int, str] = {}
        """Version -> the run that asked for a person's word on it."""
        self.person = f"{getpass.getuser()} (unauthenticated)"
        self.key, self.heads = desk.folder / "keys" / "audit.pem", desk.folder / "heads"

    def run(
        self, seed: int, expected: str, *, noise: int = CLEAR, commit: str = "a", leaves: int = 0,
        environment: str = "desk", ready: str = "60s",
    ) -> dict[str, Any]:  # fmt: skip
        """Train on the data of a seed, and note what came of it."""
        self._prepare(seed, noise, leaves, ready)
        said = self._told("run", "churn.yaml", "--new", commit=commit, environment=environment)
        assert said["outcome"] == expected, said
        self._note_made(said, commit)
        return said

    def note(self, kind: str, version: int, why: str = "", before: int | None = None) -> None:
        """Keep what happened, as of now."""
        self.told.events.append(Event(now(), kind, version, why, before))

    def ask(self, seed: int, *, commit: str, environment: str = "reviewed", leaves: int = 0) -> int:
        """Train a version that waits for a person then, and return it."""
        said = self.run(seed, "awaiting-approval", commit=commit, environment=environment, leaves=leaves)
        for version in self.asked:
            self.note("superseded", version, f"version {said['version']} waits for a person now")
        self.asked = {said["version"]: said["workflow"]}
        return int(said["version"])

    def approve(self, version: int, reason: str) -> None:
        self._told("approve", self.asked.pop(version), "--reason", reason, "--require-promoted", environment="reviewed")
        self.note(PERSON, version, reason)

    def reject(self, version: int, reason: str) -> None:
        self.desk("reject", self.asked.pop(version), "--reason", reason)
        self.note("rejected", version, reason)

    def promote(self, seed: int, *, commit: str, leaves: int = 0) -> int:
        """Train a version that the gate lets through."""
        version = int(self.run(seed, "promoted", commit=commit, leaves=leaves)["version"])
        self.note(GATE, version, "roc_auc")
        return version

    def roll_back(self, to: int, reason: str, *options: str) -> None:
        before = self.desk.answering()
        said = self._told("rollback", *options, "--reason", reason)
        assert (said["outcome"], said["version"]) == ("promoted", to)
        self.note("rollback", to, reason, before)

    def move_alias(self, to: int) -> None:
        """Move MLflow's alias as a person does on its page."""
        from mlflow import MlflowClient

        store = f"sqlite:///{self.desk.home / 'mlflow.db'}"
        MlflowClient(store, registry_uri=store).set_registered_model_alias(NAME, ALIAS_PRODUCTION, str(to))
        self.note("moved", to, before=self.desk.answering())

    def release_that_is_killed(self, seed: int, *, commit: str, leaves: int) -> None:
        """Kill a run while it brings its version to serve."""
        self._prepare(seed, CLEAR, leaves, "60s")
        process = self.desk.start("run", "churn.yaml", "--new", **self._variables(commit, "desk"))
        under_way = "SELECT count(*) FROM ledger WHERE state = 'releasing'"
        [(before,)] = self._rows("ledger.db", under_way)
        deadline = time.monotonic() + 240
        while self._rows("ledger.db", under_way) == [(before,)]:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.communicate()
        self.told.runs += 1
        version = max(self.told.made) + 1
        [(run_id, sha256)] = self._rows(
            "mlflow.db",
            "SELECT v.run_id, t.value FROM model_versions v JOIN tags t ON t.run_uuid = v.run_id AND "
            f"t.key = 'retrain.dataset_sha256' WHERE v.version = {version}",
        )
        assert sha256 == self._sha256()
        self.told.made[version] = Made(now(), self._sha256(), COMMITS[commit], leaves, run_id, self._roc_auc(run_id))
        self.note("killed", version)

    def look(self) -> Seen:
        """Note what can be seen now, sign the ledger's heads, and return it."""
        record = json.loads((self.desk.home / "server" / NAME / "holder.json").read_text())
        url = f"http://{record['host']}:{record['port']}"
        answer = httpx.post(f"{url}/v1/predict", json={"instances": [{"age": 50, "plan": "basic"}]}, trust_env=False)
        said = answer.json()
        self.desk("audit", "sign", "--key", str(self.key), "--heads", str(self.heads))
        serving = self.desk.answering()
        assert serving is not None
        [(entries,)] = self._rows("ledger.db", "SELECT count(*) FROM ledger")
        seen = Seen(
            now(), serving, said["predictions"][0]["id"], int(said["model"]["version"]), entries,
            tuple(self.asked.values()),
        )  # fmt: skip
        self.told.moments.append(seen)
        time.sleep(0.01)
        return seen

    def _told(self, *words: str, commit: str = "a", environment: str = "desk") -> dict[str, Any]:
        self.told.runs += 1
        return dict(json.loads(self.desk(*words, "--json", **self._variables(commit, environment))))

    def _variables(self, commit: str, environment: str) -> dict[str, str]:
        return {variable("code_commit"): COMMITS[commit], variable("environment"): environment}

    def _prepare(self, seed: int, noise: int, leaves: int, ready: str) -> None:
        self.leaves = leaves or self.leaves
        (self.desk.folder / "churn.yaml").write_text(PIPELINE.format(leaves=self.leaves, ready=ready))
        write_rows(self.desk.folder / "churn.csv", seed=seed, noise=noise)

    def _sha256(self) -> str:
        with (self.desk.folder / "churn.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return reference_hash([
            ("age", "integer", [int(row["age"]) for row in rows]),
            ("plan", "string", [row["plan"] for row in rows]),
            ("churned", "string", [row["churned"] for row in rows]),
        ])  # fmt: skip

    def _note_made(self, said: dict[str, Any], commit: str) -> None:
        version = said["version"]
        if version is not None and version not in self.told.made:
            self.told.made[version] = Made(
                now(), self._sha256(), COMMITS[commit], self.leaves, said["run_id"], self._roc_auc(said["run_id"])
            )

    def _roc_auc(self, run_id: str) -> float:
        query = f"SELECT value FROM latest_metrics WHERE key = 'test.roc_auc' AND run_uuid = '{run_id}'"
        [(value,)] = self._rows("mlflow.db", query)
        return float(value)

    def _rows(self, database: str, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.desk.home / database)) as connection:
            return connection.execute(query).fetchall()


def make(keeper: Keeper) -> None:
    """Make the history.  Thirty runs: `retrain run`, `approve` and `rollback`."""
    began = time.monotonic()

    keeper.promote(1, commit="a")  # version 1
    keeper.run(1, "unchanged", commit="a")
    keeper.run(2, "rejected", noise=NONSENSE, commit="a")  # no version
    keeper.promote(3, commit="a", leaves=5)  # 2
    weak = keeper.run(22, "rejected", noise=BLURRED, commit="a")["version"]
    assert weak == 3, "registered, and not let through"
    keeper.note("rejected", weak, "roc_auc")
    fourth = keeper.ask(5, commit="b")
    keeper.approve(fourth, "looked at with the risk team")
    keeper.move_alias(2)
    keeper.run(5, "unchanged", commit="b")
    keeper.note("found", 2, before=4)
    keeper.look()

    fifth = keeper.ask(6, commit="b")
    keeper.reject(fifth, "the sample of March is known to be wrong")
    keeper.ask(7, commit="b", leaves=6)  # 6, superseded by 7
    seventh = keeper.ask(8, commit="b")
    keeper.approve(seventh, "newer data")
    keeper.roll_back(4, "complaints of new customers")
    ill = keeper.run(9, "rolled-back", commit="c", ready="0.001s")["version"]  # 8
    keeper.note(GATE, ill, "roc_auc")
    keeper.note("rolled-back", ill, "was not ready within")
    keeper.promote(9, commit="c")  # 8 once more, given the time that it needs
    keeper.look()

    late = keeper.ask(10, commit="c", environment="hasty")  # 9
    time.sleep(1.5)
    keeper.desk("approve", keeper.asked.pop(late), "--reason", "too late", code=78)
    keeper.note("expired", late, "its request held until")
    keeper.release_that_is_killed(11, commit="c", leaves=4)  # 10
    keeper.note(GATE, 10, "roc_auc")
    keeper.promote(12, commit="c")  # 11, which takes over
    keeper.note("failed", 10, "taken over")
    keeper.roll_back(2, "the last one before the move", NAME, "--to", "2")
    keeper.promote(1, commit="b", leaves=7)  # 12, of the first dataset
    keeper.run(13, "rejected", noise=NONSENSE, commit="b")
    keeper.ask(14, commit="b")  # 13
    keeper.look()

    by_hand = keeper._told(
        "run", "churn.yaml", "--entrypoint", "release", "--version", "13", commit="b", environment="reviewed"
    )
    assert by_hand["outcome"] == "not-approved"
    keeper.approve(13, "looked at")
    for seed in (15, 16, 17, 18, 19):
        keeper.promote(seed, commit="c")
    keeper.run(19, "unchanged", commit="c")
    keeper.told.seconds = time.monotonic() - began
