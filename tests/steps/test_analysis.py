"""What a new version is judged by: real servers read by a real Prometheus, and what AnalysisRuns came to."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.metrics import Task
from contracts.pipeline.operation import MAX_RELEASE, Analysis, CanaryStep, Release
from serving.app import create_app
from serving.metrics import CONTENT_TYPE, PREDICT, SLOWEST_SECONDS, Metrics
from serving.model import PackagedModel, Predictions, decide
from serving.schemas import ModelAnswer
from serving.server import DrainingServer, listen
from steps.rollout.analysis import COUNT, GOOD, NEW, OLD, Metric, failed, last_values, measurements, metrics, template
from tests.loopback import Handler, free_port, serving
from tests.model_packages import ROW, package

HASHES = {NEW: "7b9f", OLD: "55cd"}
MEASURED = [Metric("error-rate", "q", 0.01, "share of its answers with status 5xx"), Metric("latency", "q", 3, "slow")]


def run(*results: dict[str, Any], created: str = "2026-11-28T12:00:00Z", step: str = "") -> dict[str, Any]:
    labels = {"step-index": step} if step else {}
    return {"metadata": {"creationTimestamp": created, "labels": labels}, "status": {"metricResults": list(results)}}


def result(name: str, phase: str, *taken: tuple[str, str], message: str = "") -> dict[str, Any]:
    measured = [{"value": value, "phase": of} for value, of in taken]
    return {"name": name, "phase": phase, "measurements": measured, "message": message}


def test_the_metric_that_did_it_is_named_with_value_and_limit() -> None:
    good = result("latency", "Successful", ("[1.1]", "Successful"))
    bad = result("error-rate", "Failed", ("[0.001]", "Successful"), ("[0.43]", "Failed"))
    found = failed([run(good, bad, step="3")], MEASURED)
    assert found is not None
    assert (found.metric, found.value, found.at_most, found.step) == ("error-rate", 0.43, 0.01, 3)
    assert found.reason == "error-rate is 0.43, at most 0.01 is allowed (share of its answers with status 5xx)"
    assert found.measurements == ("error-rate: [0.001] Successful", "error-rate: [0.43] Failed")


def test_too_few_requests_and_a_prometheus_that_does_not_answer_are_told_apart() -> None:
    undecided = failed([run(result("latency", "Inconclusive", ("[]", "Inconclusive")))], MEASURED)
    assert undecided is not None
    assert undecided.reason == "latency could not be judged: too few requests"
    broken = result("latency", "Error", message="")
    broken["measurements"] = [{"phase": "Error", "message": "connection refused"}]
    dead = failed([run(broken)], MEASURED)
    assert dead is not None
    assert dead.reason == "latency could not be measured: connection refused"
    slow = failed([run(result("latency", "Failed", ("[+Inf]", "Failed")))], MEASURED)
    assert slow is not None
    assert slow.reason == "latency is more than can be measured, at most 3 is allowed (slow)"
    assert json.dumps([undecided.value, dead.value, slow.value]) == "[null, null, null]"


def test_nothing_failed_while_all_goes_well_and_the_last_values_are_evidence() -> None:
    first = run(result("latency", "Successful", ("[1.5]", "Successful")), created="2026-11-28T12:00:00Z")
    later = run(
        result("latency", "Running", ("[1.25]", "Successful"), ("[NaN]", "Inconclusive")),
        created="2026-11-28T12:05:00Z",
    )
    assert failed([first, later, {"metadata": {}}], MEASURED) is None
    assert last_values([later, first]) == {"latency": 1.25}


@pytest.mark.parametrize(("seconds", "good"), [(0, 1), (15, 1), (120, 8), (100, 7)])
def test_a_hold_is_so_many_good_measurements_in_a_row(seconds: int, good: int) -> None:
    analysis = Analysis.model_validate({"interval": "15s", "patience": "10m"})
    assert measurements(analysis, timedelta(seconds=seconds))[0] == good


def ends(taken: Iterable[str], minutes: float, failures: int = 0) -> tuple[str, int]:
    """Return how Argo Rollouts 1.10.1 ends an analysis of these measurements (good, bad, lacking), and after how many.

    As its `assessMetricStatus` does: failureLimit and inconclusiveLimit may be reached, not passed, before all else.
    """
    analysis = Analysis.model_validate({"interval": "15s", "patience": "10m", "failures": failures})
    [metric] = template(MEASURED[:1], analysis, "http://prometheus:9090")["metrics"]
    arguments = dict(zip((GOOD, COUNT), measurements(analysis, timedelta(minutes=minutes)), strict=True))
    names = ("failureLimit", "inconclusiveLimit", "consecutiveSuccessLimit", "count")
    bad, lacking, good, count = (
        arguments[limit.strip("{}").removeprefix("args.")] if isinstance(limit := metric[name], str) else limit
        for name in names
    )
    assert count >= max(bad + good, lacking), "else Argo Rollouts refuses the metric"
    seen: Counter[str] = Counter()
    row = 0
    for number, measured in enumerate(taken, start=1):
        seen[measured] += 1
        row = row + 1 if measured == "good" else 0
        if seen["bad"] > bad:
            return "Failed", number
        if seen["lacking"] > lacking:
            return "Inconclusive", number
        if row >= good:
            return "Successful", number
        if number >= count:
            return "Inconclusive", number
    raise AssertionError("it goes on")


ROW_OF_19 = ["good"] * 19


@pytest.mark.parametrize(
    ("what", "taken", "how"),
    [
        ("5 minutes good", ["good"] * 20, ("Successful", 20)),
        ("10 minutes without, then good", ["lacking"] * 40 + ["good"] * 20, ("Successful", 60)),
        ("more than 10 minutes without", ["lacking"] * 41, ("Inconclusive", 41)),
        ("each 5 minutes one without, 40 in all", [*ROW_OF_19, "lacking"] * 40 + ["good"] * 20, ("Successful", 820)),
        ("each 5 minutes one without, and more", [*ROW_OF_19, "lacking"] * 41, ("Inconclusive", 820)),
        ("one bad", [*ROW_OF_19, "bad"], ("Failed", 20)),
    ],
)  # fmt: skip
def test_a_step_may_lack_requests_for_its_patience_in_all(what: str, taken: list[str], how: tuple[str, int]) -> None:
    assert ends(taken, minutes=5) == how, what


def test_no_measurement_is_missed_in_the_longest_way_that_a_step_may_take() -> None:
    worst = [*ROW_OF_19, "bad"] * 2 + [*ROW_OF_19, "lacking"] * 40 + ["good"] * 20
    assert ends(worst, minutes=5, failures=2) == ("Successful", len(worst))
    assert ends([*worst[:-1], "bad"], minutes=5, failures=2) == ("Failed", len(worst))


def test_deploy_waits_for_the_longest_way_of_all_steps_and_no_release_is_without_end() -> None:
    analysis, hold = Analysis(), timedelta(minutes=2)
    release = Release(strategy="canary", ready_timeout=timedelta(minutes=1))
    assert release.longest == 2 * (measurements(analysis, hold)[1] * analysis.interval + timedelta(minutes=1))
    day = Release(strategy="canary", steps=(CanaryStep(weight=10, hold=timedelta(hours=4)),))
    assert (day.longest, day.planned) == (MAX_RELEASE, timedelta(hours=4, minutes=11))


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (Task.BINARY, ["restarts", "error-rate", "latency", "score-distribution", "positive-share"]),
        (Task.MULTICLASS, ["restarts", "error-rate", "latency", "score-distribution", "label-shares"]),
        (Task.REGRESSION, ["restarts", "error-rate", "latency", "score-distribution"]),
    ],
)
def test_each_task_has_its_signs_and_what_is_null_is_not_judged(task: Task, names: list[str]) -> None:
    assert [metric.name for metric in metrics(Release(), task, "serving", "m")] == names
    errors_only = Analysis(max_latency_ratio=None, max_score_distance=None, max_label_distance=None)
    assert [metric.name for metric in metrics(Release(analysis=errors_only), task, "serving", "m")] == [
        "restarts",
        "error-rate",
    ]


def test_neither_good_nor_bad_without_a_result() -> None:
    spec = template(MEASURED, Analysis(failures=2), "http://prometheus:9090")
    error_rate = spec["metrics"][0]
    assert error_rate["successCondition"] == "len(result) > 0 && result[0] <= 0.01"
    assert error_rate["failureCondition"] == "len(result) > 0 && result[0] > 0.01"
    assert (error_rate["failureLimit"], error_rate["interval"]) == (2, "15s")
    assert (error_rate["consecutiveSuccessLimit"], error_rate["inconclusiveLimit"]) == ("{{args.good}}", 40)
    assert {argument["name"] for argument in spec["args"]} == {"new-hash", "old-hash", "good", "count"}


# with a real Prometheus

ANALYSIS = {"window": "60s", "interval": "1s", "min_requests": 40}


class Odd(PackagedModel):
    """A model whose answers are shifted, slow, or none."""

    raises: bool = False
    sleeps: float = 0.0
    flips: bool = False

    def answer(self, features: Any) -> Predictions:
        time.sleep(Odd.sleeps)
        if Odd.raises:
            raise KeyError("broken")
        found = super().answer(features)
        return decide(self.manifest, found.scores[:, ::-1]) if Odd.flips and found.scores is not None else found


@dataclass
class Watched:
    """Two servers, the one that serves and a new one, and what Prometheus says of them."""

    old: str
    new: str
    prometheus: str
    measured: Sequence[Metric]

    def ask(self, which: str, count: int) -> None:
        with httpx.Client(trust_env=False) as client:
            for number in range(count):
                row = ROW | {"age": 20 + number % 50, "income per year": 1000.0 * (number % 90)}
                client.post(f"{which}/v1/predict", json={"instances": [row]})

    def says(self, name: str) -> list[float]:
        query = next(metric.query for metric in self.measured if metric.name == name)
        for argument, value in HASHES.items():
            query = query.replace("{{args." + argument + "}}", value)
        return self.answers(query)

    def sum(self, series: str) -> float:
        return sum(self.answers(f"sum({series})"))

    def answers(self, query: str) -> list[float]:
        answer = httpx.get(f"{self.prometheus}/api/v1/query", params={"query": query}, trust_env=False).json()
        assert answer["status"] == "success", answer
        return [float(sample["value"][1]) for sample in answer["data"]["result"]]


@contextmanager
def server(model: PackagedModel, version: int) -> Iterator[str]:
    identity = ModelAnswer(name="m", version=version, run_id="r", dataset_sha256="d" * 64, since=datetime.now(UTC))
    ready, listener = threading.Event(), listen("127.0.0.1", 0)
    serving = DrainingServer(create_app(model, identity), drain_seconds=0, on_ready=ready.set)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        serving.should_exit = True
        thread.join(30)


@contextmanager
def read(folder: Path, old: str, new: str, task: Task) -> Iterator[Watched]:
    """Let a Prometheus read two servers, each by its URL, as those of the version that serves and of a new one."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    targets = [
        {
            "targets": [url.removeprefix("http://")],
            "labels": {"namespace": "serving", "pod": f"m-{HASHES[which]}-abc"},
        }
        for which, url in ((OLD, old), (NEW, new))
    ]
    jobs = [{"job_name": "serving", "static_configs": targets}]
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}
    (folder / "prometheus.json").write_text(json.dumps(config))
    port = free_port()
    command = [binary, f"--config.file={folder / 'prometheus.json'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "prometheus.log").open("wb"))
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )  # fmt: skip
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        release = Release.model_validate({"analysis": ANALYSIS})
        found = Watched(old, new, f"http://127.0.0.1:{port}", metrics(release, task, "serving", "m"))
        _until(lambda: _scraped(found), "both servers are read")
        yield found


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    for name in ("raises", "sleeps", "flips"):
        monkeypatch.setattr(Odd, name, getattr(Odd, name))
    plain = PackagedModel.load(package(tmp_path / "model"))
    odd = Odd(plain.manifest, plain.recipe, plain.estimator, plain.folder)
    with server(plain, 1) as old, server(odd, 2) as new, read(tmp_path, old, new, Task.BINARY) as found:
        yield found


@contextmanager
def metering(version: int, classes: Sequence[str], folder: Path) -> Iterator[tuple[str, Metrics]]:
    """Serve only a server's metrics, of which a test says what they count."""
    manifest = PackagedModel.load(package(folder)).manifest
    manifest = manifest.model_copy(update={"task": Task.MULTICLASS, "positive": None, "classes": tuple(classes)})
    identity = ModelAnswer(name="m", version=version, run_id="r", dataset_sha256="d" * 64, since=datetime.now(UTC))
    metered = Metrics(identity, manifest)

    class Page(Handler):
        def do_GET(self) -> None:
            text = metered.text()
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with serving(Page) as port:
        yield f"http://127.0.0.1:{port}", metered


@dataclass
class Metered:
    """Two servers' metrics, and what Prometheus says of them."""

    old: Metrics
    new: Metrics
    watched: Watched

    def count(self, of: Metrics, seconds: float, labels: Iterable[str]) -> None:
        """Count a request for each label, answered within so many seconds."""
        for label in labels:
            of.request(PREDICT, 200, seconds)
            of.predicted([{"label": label, "probabilities": {label: 0.9}}])


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[Metered]:
    """Two versions with labels a and b; d is known to the old one only, c to the new one."""
    with (
        metering(1, ["a", "b", "d"], tmp_path / "old") as (old, before),
        metering(2, ["a", "b", "c"], tmp_path / "new") as (new, after),
        read(tmp_path, old, new, Task.MULTICLASS) as found,
    ):
        yield Metered(before, after, found)


def _scraped(found: Watched) -> bool:
    try:
        answer = httpx.get(f"{found.prometheus}/api/v1/query", params={"query": "sum(up)"}, trust_env=False)
    except httpx.HTTPError:
        return False
    result = answer.json()["data"]["result"] if answer.status_code == 200 else []
    return bool(result) and float(result[0]["value"][1]) == 2


def _until(condition: Any, what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


@pytest.mark.slow
def test_a_version_like_the_one_that_serves_keeps_to_every_limit(watched: Watched) -> None:
    watched.ask(watched.new, 5)
    watched.ask(watched.old, 120)
    time.sleep(2)
    for name in ("error-rate", "latency", "score-distribution", "positive-share"):
        assert watched.says(name) == [], f"{name} is not judged on five requests"
    watched.ask(watched.new, 120)
    _until(lambda: watched.says("latency"), "enough requests are seen")
    limits = {metric.name: metric.at_most for metric in watched.measured}
    for name in ("restarts", "error-rate", "latency", "score-distribution", "positive-share"):
        assert watched.says(name)[0] <= limits[name], name


@pytest.mark.slow
def test_errors_slowness_and_shifted_scores_each_show_in_their_own_metric(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "flips", True)
    monkeypatch.setattr(Odd, "sleeps", 0.15)
    watched.ask(watched.old, 80)
    watched.ask(watched.new, 80)
    _until(lambda: watched.says("latency"), "enough requests are seen")
    assert watched.says("error-rate") == [0]
    assert watched.says("latency")[0] > 3
    assert watched.says("score-distribution")[0] > 0.25
    assert watched.says("positive-share")[0] > 0.2
    monkeypatch.setattr(Odd, "raises", True)
    watched.ask(watched.new, 40)
    _until(lambda: (watched.says("error-rate") or [0])[0] > 0.2, "a third of its answers are errors")


@pytest.mark.slow
def test_a_label_that_only_one_version_gives_counts_as_much_as_any_other(metered: Metered) -> None:
    metered.count(metered.old, 0.01, ["a", "b"] * 40 + ["d"] * 20)
    metered.count(metered.new, 0.01, ["a", "b"] * 25 + ["c"] * 50)
    _until(lambda: metered.watched.says("label-shares"), "enough requests are seen")
    _until(lambda: metered.watched.says("label-shares") == [pytest.approx(0.5)], "0.3 of a and b, 0.5 of c, 0.2 of d")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("usual", "now", "allowed"),
    [(20, 22, True), (2, 20, False), (20, 90, False), (40, 90, False), (90, 90, False), (90, 20, True)],
)
def test_slowness_shows_however_slow_the_version_that_serves_is(
    metered: Metered, usual: float, now: float, allowed: bool
) -> None:
    metered.count(metered.old, usual, ["a", "b"] * 50)
    metered.count(metered.new, now, ["a", "b"] * 50)
    _until(lambda: metered.watched.says("latency"), "enough requests are seen")
    [ratio] = metered.watched.says("latency")
    assert (ratio <= 3) is allowed
    assert (ratio == math.inf) is (now > SLOWEST_SECONDS)


@pytest.mark.slow
def test_after_blue_green_has_switched_the_old_version_is_known_by_what_it_did_before(metered: Metered) -> None:
    metered.count(metered.old, 0.1, ["a", "b"] * 50)
    _until(lambda: metered.watched.sum("retrain_requests_total") >= 100, "its requests are read")
    time.sleep(12)  # nobody asks it for a whole window
    metered.count(metered.new, 0.2, ["a", "b"] * 50)
    _until(lambda: metered.watched.sum("retrain_requests_total") >= 200, "those of the new version are read")
    said = {}
    for strategy in ("blue-green", "canary"):
        release = Release.model_validate({"strategy": strategy, "analysis": ANALYSIS | {"window": "10s"}})
        metered.watched.measured = metrics(release, Task.MULTICLASS, "serving", "m")
        said[strategy] = [metered.watched.says(name) for name in ("latency", "score-distribution", "label-shares")]
    assert said == {"blue-green": [[pytest.approx(2, abs=0.6)], [0], [0]], "canary": [[], [], []]}
