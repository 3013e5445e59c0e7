"""`retrain run` from the outside: what a person at the desk types, sees, and breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from contracts.settings import PREFIX
from tests import churn_table

pytestmark = pytest.mark.slow

PIPELINE = """
apiVersion: retrain/v1
name: churn
source: {uri: churn.csv}
schema:
  columns:
    - {name: age, type: integer, nullable: false, min: 0, max: {value: 90, level: warn}}
    - {name: plan, type: string}
    - {name: churned, type: string, nullable: false}
target: {column: churned, task: binary, positive: "yes"}
training:
  metric: roc_auc
  candidates:
    - {name: mine, estimator: "own_model:make"}
gates:
  default:
    validation:
      thresholds: [{metric: roc_auc, min: 0.75}]
      bootstrap: {resamples: 100}
"""
MODULE = """
from sklearn.linear_model import LogisticRegression


def make(**parameters):
    return LogisticRegression(**parameters)
"""


@dataclass(frozen=True)
class Desk:
    """A folder with a pipeline, and the command line in it."""

    folder: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX) and k != "PYTHONDONTWRITEBYTECODE"}
        environment = kept | {"RETRAIN_HOME": str(self.folder / "home"), "RETRAIN_SERVER_PORT": "0"}
        return subprocess.Popen(
            [sys.executable, "-m", "workflows.cli.main", *words],
            cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run a command, expect its exit code, and return what it printed; errors when there is one."""
        process = self.start(*words)
        out, error = process.communicate(timeout=300)
        assert process.returncode == code, out + error
        assert "Traceback" not in out + error
        return out or error

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self(*words, "--json", code=code))

    def stages(self) -> dict[str, Any]:
        """The pods of the newest run, by stage."""
        nodes = self.json("status")["status"]["nodes"].values()
        return {node["templateName"]: node for node in nodes if node["type"] == "Pod"}

    def files(self, part: str) -> set[Path]:
        return {p for p in (self.folder / "home" / "store" / part).rglob("*") if p.is_file()}


# three plans, and a customer who is older than the schema allows
write_rows = partial(churn_table.write_rows, rows=500, plans=["basic", "plus", "team"], more=["95,team,yes"])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    made = Desk(folder)
    write_rows(folder / "churn.csv", seed=1)
    (folder / "churn.yaml").write_text(PIPELINE)
    (folder / "own_model.py").write_text(MODULE)
    yield made
    made("stop")


def test_a_day_at_the_desk(desk: Desk) -> None:
    # killed in the middle, the same command goes on and redoes nothing
    process = desk.start("run", "churn.yaml")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("train") and "Running" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = desk.stages()
    assert before["features"]["phase"] == "Succeeded"
    assert "was cut off" in desk("doctor")

    text = desk("run", "churn.yaml", "--require-promoted")

    after = desk.stages()
    assert "goes on with churn.yaml" in text
    for stage in ("preflight", "ingest", "features"):
        assert after[stage]["startedAt"] == before[stage]["startedAt"]
    for part in ("outcome    promoted", "age: max broken by 1 rows", "roc_auc", "version    churn 1", "sha256"):
        assert part in text
    assert len(list((desk.folder / "home" / "artifacts").rglob("warnings.json"))) == 1
    assert "warning: age: max broken by 1 rows" in desk("logs", after["notify"]["id"].rsplit("-", 1)[0], "notify")

    # the printed line works when pasted
    [curl] = [line for line in text.splitlines() if line.startswith("curl ")]
    answer = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)
    assert len(json.loads(answer.stdout)["predictions"]) == 1
    url = curl.split()[2].removesuffix("/v1/predict")

    # nothing changed; the server, killed with its holder, is brought back where it was, though the key that its model
    # was signed by is lost: what the ledger knows the hash of is signed by a new one
    signed = desk.json("lineage")["signature"]
    assert f"signed by        key {signed['key']}" in desk("lineage")
    kill_server(desk)
    (desk.folder / "home" / "signing.pem").unlink()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
    again = desk.json("run", "churn.yaml")
    assert (again["outcome"], again["version"], again["url"]) == ("unchanged", 1, url)
    assert again["reused"] == ["features", "train"]
    assert httpx.get(f"{url}/v1/model").json()["version"] == 1
    assert not any(line["found"].endswith(signed["key"][:16]) for line in desk.json("doctor"))

    # doctor sees an alias that was moved by hand
    assert all(line["state"] != "wrong" for line in desk.json("doctor"))
    move_alias(desk)
    [wrong] = [line for line in desk.json("doctor", code=78) if line["state"] == "wrong"]
    assert wrong["what"] == "churn alias"
    assert "moved by other means, from version 1 to no version" in wrong["found"]
    told = next(line for line in desk.json("doctor", code=78) if line["what"] == "churn alias")
    assert "moved by other means" not in told["found"], "entered once"
    mended = next(line for line in desk.json("doctor", "--mend") if line["what"] == "churn alias")
    assert mended["state"] == "ok"
    assert desk("lineage").count("alias-") == 4, "set, moved, recalled, set"

    # other data, another decision: what serves stays
    write_rows(desk.folder / "noise.csv", seed=2, noise=1000)
    rejected = desk.json("run", "churn.yaml", "--source", "noise.csv", "--require-promoted", code=3)
    assert rejected["outcome"] == "rejected"
    assert rejected["validation"]["decision"] == "rejected"
    assert rejected["version"] is None
    assert httpx.get(f"{url}/v1/model").json()["version"] == 1
    assert "rejected" in desk("status", rejected["workflow"])
    assert desk.json("run", "churn.yaml", "--source", "noise.csv")["outcome"] == "rejected", "an outcome is no failure"

    # other customers leave now: what was learned from them is promoted, and lineage and server say so
    write_rows(desk.folder / "churn.csv", seed=3, noise=2, leaving="team")
    second = desk.json("run", "churn.yaml", "--require-promoted")
    assert (second["outcome"], second["version"], second["url"]) == ("promoted", 2, url)
    assert second["dataset_sha256"] != again["dataset_sha256"]
    known, serves = desk.json("lineage"), httpx.get(f"{url}/v1/model").json()
    assert (known["version"], known["state"], known["serving"]["answers"]) == (2, "serving", True)
    assert (serves["version"], serves["run_id"]) == (2, known["run_id"])
    assert known["dataset"]["sha256"] == serves["dataset_sha256"] == second["dataset_sha256"]
    first = desk.json("lineage", "1")
    assert (first["state"], first["promotion"]["decision"]) == ("retired", "approved")
    assert first["validation"]["checks"]
    assert [run["phase"] for run in desk.json("status", "--all")] == ["Succeeded"] * 5

    assert "stopped the server of churn" in desk("stop")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")
    assert "no server runs here" in desk("stop")


def kill_server(desk: Desk) -> None:
    record = json.loads((desk.folder / "home" / "server" / "churn" / "holder.json").read_text())
    holder = psutil.Process(record["pid"])
    processes = [holder, *holder.children(recursive=True)]
    for process in processes:
        process.kill()
    psutil.wait_procs(processes, timeout=10)


def move_alias(desk: Desk) -> None:
    from mlflow import MlflowClient

    store = f"sqlite:///{desk.folder / 'home' / 'mlflow.db'}"
    client = MlflowClient(store, registry_uri=store)  # another test of this process may have set a registry
    client.delete_registered_model_alias("churn", "production")


def test_bad_data_is_one_clear_message_and_nothing_half_written(desk: Desk) -> None:
    before = desk.files("datasets")
    (desk.folder / "bad.csv").write_text("age,plan,churned\n-1,basic,yes\n30,plus,no\nold,plus,no\n")

    text = desk("run", "churn.yaml", "--source", "bad.csv", code=65)

    assert "ingest (data): the data breaks 2 rules of the schema" in text
    assert "row 1: -1" in text
    assert "what to do mend the data" in text
    assert desk.files("datasets") == before
    summary = desk("status")
    assert "outcome    failed" in summary


def test_a_wrong_source_is_found_before_anything_is_written(desk: Desk) -> None:
    text = desk("run", "churn.yaml", "--source", "nowhere.csv", code=78)

    assert "preflight (config): 1 finding before the start" in text
    assert "nowhere.csv" in text


def test_a_wrong_file_names_line_and_key(desk: Desk) -> None:
    (desk.folder / "bad.yaml").write_text(PIPELINE.replace("training:", "trainings:"))

    text = desk("run", "bad.yaml", code=78)

    assert "trainings" in text
    assert "bad.yaml:" in text
    assert desk("run", "none.yaml", code=78)


@pytest.mark.parametrize(
    "words",
    [
        ["run"], ["run", "churn.yaml", "--colour"], ["fly"], ["run", "churn.yaml", "--entrypoint", "release"],
        ["run", "churn.yaml", "--as-of", "2024"], ["run", "churn.yaml", "--as-of", "2024-01-01T00:00:00"],
        ["rollback", "7", "--reason", "why"],
    ],
)  # fmt: skip
def test_wrong_usage_is_64(desk: Desk, words: list[str]) -> None:
    desk(*words, code=64)


def test_compile_check_tells_whether_manifests_are_current(desk: Desk) -> None:
    desk("compile", "churn.yaml")
    assert desk("compile", "churn.yaml", "--check") == ""
    manifest = desk.folder / "churn.argo" / "2-workflowtemplate.yaml"
    manifest.write_text(manifest.read_text() + "\n")

    assert "is not what churn.yaml compiles to" in desk("compile", "churn.yaml", "--check", code=1)


def test_compile_touches_no_file_that_it_did_not_make(desk: Desk) -> None:
    before = (desk.folder / "churn.yaml").read_text()
    assert "0 removed" in desk("compile", "churn.yaml", "--out", ".")
    assert (desk.folder / "churn.yaml").read_text() == before

    (desk.folder / "3-sensor.yaml").write_text("mine: 1\n")
    text = before + "triggers: {webhook: {}}\n"
    (desk.folder / "churn.yaml").write_text(text)
    assert "3-sensor.yaml is a file of your own" in desk("compile", "churn.yaml", "--out", ".", code=78)
    assert (desk.folder / "3-sensor.yaml").read_text() == "mine: 1\n"
    assert not (desk.folder / "3-eventsource.yaml").exists(), "nothing is half-written"
