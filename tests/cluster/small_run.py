"""A run on the cluster that is as short as a whole run can be, and what it has to leave behind.

Each has a pipeline of its own, so that runs do not meet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests import churn_table
from tests.cluster.conftest import ROOT, Cluster, run_as, take_away, until

PIPELINE = """
apiVersion: retrain/v1
name: {name}
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
    - {{name: small, estimator: linear}}
gates:
  default:
    validation:
      thresholds: [{{metric: roc_auc, min: 0.6}}]
      bootstrap: {{resamples: 100}}
release: {{drain_timeout: 2s, ready_timeout: 600s}}
triggers: {{webhook: {{}}}}
"""
APPROVAL = {"default": {**yaml.safe_load(PIPELINE.format(name="any"))["gates"]["default"], "decision": "approval"}}
"""The section `gates` of a pipeline that waits for a person."""
OF_PIPELINE, OF_WORKFLOW = "retrain/pipeline", "workflows.argoproj.io/workflow"
STAGES = (
    "preflight", "ingest", "features", "train", "evaluate", "register", "promote", "build", "deploy", "notify",
)  # fmt: skip
ENDED = ("Succeeded", "Failed", "Error")

_RECORDS = """
import json, os, sys
from contracts.outcomes import State
from contracts.settings import load_settings
from steps.ledger import Ledger
from steps.mlflow_connection import mlflow_client

settings, model = load_settings(), {model!r}
ledger = Ledger(settings.ledger.get_secret_value())
client = mlflow_client(settings)
versions = client.search_model_versions(f"name='{{model}}'")
print("RECORDS", json.dumps({{
    "chain": [(e.state, e.version) for e in ledger.entries(model) if isinstance(e.state, State)],  # notes aside
    "broken": [str(finding) for finding in ledger.verify(model)],
    "versions": sorted(int(version.version) for version in versions),
    "aliases": {{a: int(v) for a, v in client.get_registered_model(model).aliases.items()}} if versions else {{}},
}}))
"""


@dataclass
class SmallRun:
    """A pipeline with a folder, and its runs in the cluster's namespace."""

    cluster: Cluster
    name: str
    folder: Path
    said: dict[str, Any] = field(default_factory=dict)
    """What `retrain submit --json` said in the end."""
    following: subprocess.Popen[str] | None = None

    @classmethod
    def make(cls, cluster: Cluster, folder: Path, what: str, **sections: Any) -> SmallRun:
        """Write a pipeline file, with these sections in place of its own, and its data."""
        name = f"fault-{what}-{os.urandom(2).hex()}"
        (folder / "churn.yaml").write_text(yaml.safe_dump(yaml.safe_load(PIPELINE.format(name=name)) | sections))
        made = cls(cluster, name, folder)
        made.take_data(1, rows=300)
        return made

    def take_data(self, seed: int, *, rows: int = 400) -> None:
        """Write other data, so that the next run makes another version."""
        churn_table.write_rows(self.folder / "churn.csv", seed=seed, rows=rows, plans=["basic", "plus"])

    def command(self, *more: str) -> list[str]:
        """Return the words that submit it, with small requests."""
        small = [word for stage in STAGES for word in ("-p", f"{stage}-cpu=20")]
        return [
            sys.executable, "-m", "workflows.cli.main", "submit", "churn.yaml", "-n", self.cluster.namespace,
            *small, *more,
        ]  # fmt: skip

    def submit(self, *more: str) -> str:
        """Start a run and return its name, without waiting for its end."""
        return self._done(0, self.command("--no-wait", *more)).split()[0]

    def ends(self, code: int, *more: str) -> dict[str, Any]:
        """Submit, wait for the end, which must have this exit code, and return what `retrain submit --json` said."""
        return dict(json.loads(self._done(code, self.command("--json", *more))))

    def retrain(self, *words: str) -> str:
        """Call `retrain` on the namespace, which must succeed, and return what it printed."""
        return self._done(0, [sys.executable, "-m", "workflows.cli.main", *words, "-n", self.cluster.namespace])

    def retention(self, what: str) -> dict[str, Any]:
        """Return what `retrain retention plan` or `apply` says of the namespace."""
        return dict(json.loads(self.retrain("retention", what, "--json")))

    def _done(self, code: int, words: Sequence[str]) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, text=True, capture_output=True, check=False, timeout=900
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def followed(self, seconds: float = 1500) -> Iterator[None]:
        """Submit, let the block act meanwhile, and wait until `retrain submit` has seen the end."""
        words = self.command("--json")
        process = subprocess.Popen(
            words, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.following, collected = process, list[str]()
        reading = threading.Thread(target=lambda: collected.extend(process.communicate()), daemon=True)
        reading.start()
        try:
            yield
            reading.join(seconds)
            assert not reading.is_alive(), f"{self.name} did not end within {seconds:.0f} s"
        finally:
            self.following = None
            if process.poll() is None:
                process.terminate()
        assert process.returncode == 0, "".join(collected)
        self.said = json.loads(collected[0])

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ, "KUBECONFIG": self.cluster.kubeconfig, "PYTHONPATH": str(ROOT),
            "RETRAIN_HOME": str(self.folder / "home"),
        }  # fmt: skip

    def workflows(self) -> list[dict[str, Any]]:
        """Return the Workflows of this pipeline."""
        return list(self.cluster.get("workflows", "-l", f"{OF_PIPELINE}={self.name}"))

    def pod(self, stage: str, *, workflow: str = "", seconds: float = 1500) -> str:
        """Wait until a stage's container runs, or was too fast to be seen running, and return its pod.

        The test ends when the run does before.
        """
        selector = f"{OF_WORKFLOW}={workflow}" if workflow else OF_WORKFLOW

        def running() -> str:
            assert self.following is None or self.following.poll() is None, f"{self.name} ended before {stage}"
            for pod in self.cluster.get("pods", "-l", selector):
                name, owner = pod["metadata"]["name"], pod["metadata"]["labels"][OF_WORKFLOW]
                if not owner.startswith(f"{self.name}-") or name.rpartition("-")[0] != f"{owner}-{stage}":
                    continue
                for status in pod["status"].get("containerStatuses", ()):
                    if status["name"] == "main" and "waiting" not in status["state"]:
                        return str(name)
            return ""

        found = str(until(running, seconds, 0.2))
        assert found, f"{stage} of {self.name} did not run within {seconds:.0f} s"
        return found

    def ended(self, workflow: str, seconds: float = 1500) -> dict[str, Any]:
        """Wait for a run's end, its exit handler's too, and return its Workflow."""

        def over() -> dict[str, Any] | None:
            found = self.cluster.get("workflow", workflow)
            return found if found.get("status", {}).get("finishedAt") else None

        found = until(over, seconds, 2)
        assert found, f"{workflow} did not end within {seconds:.0f} s"
        return dict(found)

    def records(self) -> dict[str, Any]:
        """Return what ledger and MLflow hold: chain, broken, versions, aliases."""
        said = run_as(self.cluster, "ask", _RECORDS.format(model=self.name), secrets=True)
        [line] = [line for line in said.splitlines() if line.startswith("RECORDS ")]
        return dict(json.loads(line.removeprefix("RECORDS ")))

    def doctor(self) -> dict[str, str]:
        """Return what `retrain doctor` says of this model on the cluster: thing -> state."""
        words = [sys.executable, "-m", "workflows.cli.main", "doctor", "-n", self.cluster.namespace, "--json"]
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, text=True, capture_output=True, check=False, timeout=300
        )
        assert done.returncode in (0, 78), done.stderr
        lines = {line["what"]: line["state"] for line in json.loads(done.stdout)}
        return {
            what.removeprefix(f"{self.name} "): state for what, state in lines.items() if what.startswith(self.name)
        }

    def left(self) -> dict[str, Any]:
        """Return all that a run leaves: records, what serves, and what is under way still."""
        of_mine = f"{OF_PIPELINE}={self.name}"
        deployments = self.cluster.get("deployments", "-l", f"{of_mine},retrain/stage=serving")  # not a sensor's
        until(lambda: not self._busy(), 60)
        return self.records() | {
            "deployments": [d["metadata"]["annotations"]["retrain/version"] for d in deployments],
            "serves": self.served() if deployments else None,
            "under way": self._busy(),
        }

    def served(self) -> int:
        """Return the version that answers through the Service."""
        path = f"/api/v1/namespaces/{self.cluster.namespace}/services/{self.name}:80/proxy/v1/predict"
        asked = json.dumps({"instances": [{"age": 40, "plan": "basic"}]})

        def answer() -> str:
            return self.cluster.run("kubectl", "create", "--raw", path, "-f", "-", stdin=asked).stdout

        said = until(answer, 120)
        assert said, f"nothing answers for {self.name}"
        return int(json.loads(said)["model"]["version"])

    def _busy(self) -> list[str]:
        """Name workflows and pods of this pipeline that have not ended, and pods that no Workflow owns any more."""
        workflows = self.workflows()
        names = {w["metadata"]["name"] for w in workflows}
        busy = [w["metadata"]["name"] for w in workflows if w.get("status", {}).get("phase") not in ENDED]
        for pod in self.cluster.get("pods", "-l", OF_WORKFLOW):
            owner = pod["metadata"]["labels"][OF_WORKFLOW]
            if owner.startswith(f"{self.name}-") and (owner not in names or pod["status"]["phase"] not in ENDED[:2]):
                busy.append(pod["metadata"]["name"])
        return busy

    def remove(self) -> None:
        """Take away what serves and what ran; ledger and MLflow keep what they have."""
        take_away(self.cluster, self.name)


ONE_RELEASE = [["registered", 1], ["approved", 1], ["releasing", 1], ["serving", 1]]
RELEASED: dict[str, Any] = {
    "chain": ONE_RELEASE, "broken": [], "versions": [1], "aliases": {"production": 1, "staging": 1},
    "deployments": ["1"], "serves": 1, "under way": [],
}  # fmt: skip
