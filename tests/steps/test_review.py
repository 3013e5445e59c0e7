"""The page on which a person decides: what it shows, that it stands alone, and that nothing gets into it unescaped."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from sklearn.calibration import calibration_curve

from contracts.names import page_name
from contracts.outcomes import Promotion, Verdict
from contracts.reports import Check, Interval, PromotionReport
from contracts.stages import Evaluate, Promote
from steps.evaluate import evaluate
from steps.mlflow_connection import mlflow_client
from steps.promote import promote
from steps.review.contents import Bin, Change, Review, Side, Values, calibration, changes
from steps.review.page import render
from steps.tracking import RunRecord
from steps.world import World
from tests.steps.judged_runs import PIPELINE, churn_world, dataset_inputs, registered, serve, train_run, write_rows
from tests.steps.registered import NOW

SLICES = PIPELINE.replace(
    "    validation:\n",
    "    validation:\n      slices: [{column: region, metric: roc_auc, min: 0.6, min_rows: 50}]\n",
)
HOSTILE = '"><script>alert(1)</script><img src=x onerror=y>'


class Reader(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "rect", "circle", "polyline"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.elements}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose version 1 serves, and whose version 2 learned from later data."""
    home = tmp_path_factory.mktemp("review")
    world = churn_world(home, SLICES, workflow="earlier")
    write_rows(home / "churn.csv")
    judged(world, train_run(world, home, name="weak", rounds=8, noise=0.2))
    promote(Promote.Inputs(version=1), world=world)
    serve(world, 1)
    write_rows(home / "churn.csv", rows=2500)
    table = pa.csv.read_csv(home / "churn.csv")
    moved = pa.array(np.where(np.arange(len(table)) % 2 == 0, "south", "north"))
    pa.csv.write_csv(table.set_column(table.schema.get_field_index("region"), "region", moved), home / "churn.csv")
    later = churn_world(home, SLICES, workflow="later")
    judged(later, train_run(later, home, name="good", rounds=60))
    return home


def judged(world: World, run: str) -> None:
    evaluate(Evaluate.Inputs(run_id=run), world=world)
    registered(world, run)


@pytest.fixture(scope="module")
def world(home: Path) -> World:
    return churn_world(home, SLICES, workflow="w-2")


@pytest.fixture(scope="module")
def page(world: World) -> bytes:
    outputs = promote(Promote.Inputs(version=2), world=world)
    assert outputs.decision is Promotion.APPROVED, outputs.summary
    run = world.registry.run_of(2)
    return Path(mlflow_client(world.settings).download_artifacts(run, page_name(2))).read_bytes()


def test_the_page_in_mlflow_shows_challenger_beside_champion(page: bytes) -> None:
    read = Reader(page)
    assert read.headings == [
        "Promotion gate", "Validation gate", "Slices", "Numbers", "Calibration", "Size and latency",
        "What changed in the data", "What they were made of",
    ]  # fmt: skip
    said = "\n".join(read.texts)
    for part in ("churn version 2", "against version 1, which serves", "rows that neither has seen", "roc_auc"):
        assert part in said
    assert "not measured" not in said
    assert len([name for name, _ in read.elements if name == "svg"]) > 4
    assert len([name for name, _ in read.elements if name == "polyline"]) == 2


def test_it_stands_alone_and_is_made_for_a_phone_too(page: bytes) -> None:
    read = Reader(page)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in read.elements
    assert not read.names & {"script", "link", "img", "iframe", "object", "form"}
    attributes = {key for _, attrs in read.elements for key in attrs}
    assert not {name for name in attributes if name.startswith("on") or name in ("href", "src", "srcset")}
    assert b"url(" not in page
    assert b"@import" not in page
    assert b"prefers-color-scheme: dark" in page
    assert len(page) < 100_000


def test_no_cell_of_a_sensitive_column_is_in_it(page: bytes) -> None:
    assert b"faith" in page  # that it is there, and how many cells are missing
    assert b"hidden" not in page


def test_what_moved_in_the_data_is_what_was_moved(home: Path, world: World) -> None:
    now = dataset_inputs(world).dataset
    before = world.tracking.record(world.registry.run_of(1)).tags["retrain.dataset"]
    found = {change.column: change for change in changes(world, now, before)}
    region = found["region"]
    assert region.now is not None
    assert region.before is not None
    assert region.now.shares == pytest.approx({"north": 0.5, "south": 0.5}, abs=0.01)
    assert region.before.shares == pytest.approx({"north": 0.75, "south": 0.25}, abs=0.01)
    assert region.shift == pytest.approx(0.25 * np.log(3), abs=0.02)  # sum of (p - q) ln(p / q) of those shares
    assert found["usage"].shift is not None
    assert found["usage"].shift < 0.05
    assert found["age"].now is not None
    assert found["age"].now.quantiles[2] == pytest.approx(50, abs=1)
    faith = found["faith"]
    assert faith.now == Values(2500, 0.0)
    assert faith.shift is not None


def test_calibration_is_that_of_scikit_learn(world: World) -> None:
    from steps.judging.assessment import assess, trained

    judged = assess(world, trained(world, world.registry.run_of(2))).judged
    positive, probability = judged.positive_scores()
    share, said = calibration_curve(positive, probability, n_bins=10)
    found = calibration(judged)
    np.testing.assert_allclose([one.share for one in found], share)
    np.testing.assert_allclose([one.probability for one in found], said)
    assert sum(one.rows for one in found) == judged.rows


def test_hostile_names_and_values_are_text(tmp_path: Path) -> None:
    check = Check(
        name=f"auc of {HOSTILE}", verdict=Verdict.REJECTED, value=0.5, min=0.6, rows=9, reason=HOSTILE,
        interval=Interval(low=0.4, high=0.6, confidence=0.95, resamples=100),
    )  # fmt: skip
    report = PromotionReport(
        model="m", version=2, run_id="r", environment=HOSTILE, workflow=HOSTILE, champion=1, champion_run_id="s",
        decision=Promotion.REJECTED, reason=HOSTILE, checks=(check,), notes=(HOSTILE,), test_rows=9, compared_rows=9,
        dataset_sha256="0" * 64, split_sha256="0" * 64, policy_sha256="0" * 64, requested_by=HOSTILE,
    )  # fmt: skip
    run = RunRecord(
        HOSTILE, "FINISHED", NOW, {f"parameters.{HOSTILE}": HOSTILE}, {}, {"retrain.candidate": HOSTILE}, ""
    )
    values = Values(9, 0.0, (), {HOSTILE: 1.0})
    side = Side(2, run, 1.0, 1.0, {"roc_auc": 0.5}, (Bin(0.5, 0.5, 9),))
    read = Reader(
        render(Review(report, side, replace(side, version=1), 9, (Change(HOSTILE, values, values, 0.0),), (HOSTILE,)))
    )
    assert not read.names & {"script", "img"}
    assert not [key for _, attrs in read.elements for key in attrs if key.startswith("on")]
    assert read.texts.count(HOSTILE) >= 6


def test_without_a_champion_one_side_is_shown(home: Path) -> None:
    world = churn_world(home, SLICES, workflow="earlier")
    run = world.registry.run_of(1)
    read = Reader(Path(mlflow_client(world.settings).download_artifacts(run, page_name(1))).read_bytes())
    said = "\n".join(read.texts)
    assert "nothing serves yet" in said
    assert "What changed in the data" not in said
