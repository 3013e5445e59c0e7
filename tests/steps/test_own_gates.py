"""Gates by functions of the user's own: called with test rows and answers, and only the number is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import ConfigError
from contracts.outcomes import Promotion, Verdict
from contracts.pipeline import parse_pipeline
from contracts.reports import PromotionReport, ValidationReport
from contracts.stages import Evaluate, Probe, Promote
from serving.user_code import pack
from steps.evaluate import evaluate
from steps.probes.pipeline import check_code
from steps.promote import promote
from steps.register import register
from steps.world import World
from tests.steps.judged_runs import PIPELINE, churn_world, train_run, write_rows
from tests.steps.registered import to_register

GATES = '''
import pyarrow.compute as pc

def saved(rows, answers):
    """What a call to everyone who is said to leave saves: 10 for who would have left, -1 for who would not."""
    called = answers.labels == "yes"
    leaves = pc.equal(rows.column("churned"), "yes").to_numpy()
    return float((10.0 * (called & leaves) - 1.0 * (called & ~leaves)).mean())

def parity(rows, answers):
    called = answers.labels == "yes"
    one = pc.equal(rows.column("faith"), "hidden-one").to_numpy()
    return abs(float(called[one].mean()) - float(called[~one].mean()))

def undefined(rows, answers):
    return float("nan")

def text(rows, answers):
    return "hidden-one"

def broken(rows, answers):
    raise ValueError(f"no such faith: {rows.column('faith')[0]}")
'''


def own(gate: str, *thresholds: str) -> str:
    """Return the pipeline file with further thresholds in a gate."""
    old = f"    {gate}:\n      thresholds: [{{metric: roc_auc, min: 0.75}}"
    assert old in PIPELINE
    return PIPELINE.replace(old, f"{old}, {', '.join(thresholds)}")


SAVED = '{function: "own_gates:saved", min: 1}'
PARITY = '{function: "own_gates:parity", columns: [faith], max: 0.2}'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own-gates")
    write_rows(folder / "churn.csv")
    (folder / "own_gates.py").write_text(GATES)
    return folder


@pytest.fixture(scope="module")
def code(home: Path) -> str:
    world = churn_world(home)
    return world.storage.write(world.storage.uri("code.zip"), pack(home, ["own_gates"]))


@pytest.fixture(scope="module")
def run(home: Path) -> str:
    return train_run(churn_world(home), home)


def judged(world: World, run: str, code: str) -> ValidationReport:
    outputs = evaluate(Evaluate.Inputs(run_id=run, code=code), world=world)
    return ValidationReport.model_validate_json(world.storage.read(outputs.report))


def test_a_function_is_held_against_its_bounds(home: Path, run: str, code: str):
    report = judged(churn_world(home, own("validation", SAVED, PARITY)), run, code)
    saved, parity = report.checks[1:]
    assert report.verdict is Verdict.PASSED
    assert saved.name == "own_gates:saved"
    assert saved.value is not None
    assert 1 < saved.value < 10
    assert saved.interval is None
    assert parity.value is not None
    assert "hidden" not in report.model_dump_json()
    strict = judged(churn_world(home, own("validation", SAVED.replace("min: 1", "min: 9"))), run, code)
    assert strict.verdict is Verdict.REJECTED
    assert strict.reason.startswith("own_gates:saved ")


def test_one_that_has_no_value_is_inconclusive(home: Path, run: str, code: str):
    report = judged(churn_world(home, own("validation", '{function: "own_gates:undefined", min: 0}')), run, code)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "own_gates:undefined has no value on" in report.reason


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", r"the gate own_gates:broken failed: ValueError in own_gates\.py, line \d+"),
        ("text", r"returned no number \(str\)"),
        ("absent", "own_gates has no absent"),
    ],
)
def test_one_that_fails_is_told_without_a_cell(home: Path, run: str, code: str, name: str, says: str):
    world = churn_world(home, own("validation", f'{{function: "own_gates:{name}", columns: [faith], min: 0}}'))
    with pytest.raises(ConfigError, match=says) as error:
        judged(world, run, code)
    assert "hidden" not in str(error.value)


def test_promotion_asks_them_too(home: Path, run: str, code: str):
    strict = churn_world(home, own("promotion", SAVED.replace("min: 1", "min: 9")))
    evaluate(Evaluate.Inputs(run_id=run), world=churn_world(home))
    version = register(to_register(strict, run), world=strict).version
    outputs = promote(Promote.Inputs(version=version, code=code), world=strict)
    written = PromotionReport.model_validate_json(strict.storage.read(outputs.report))
    assert outputs.decision is Promotion.REJECTED
    assert [check.name for check in written.checks if check.verdict is Verdict.REJECTED] == ["own_gates:saved"]


def test_its_module_is_packed_and_preflight_looks_for_the_function(home: Path, code: str):
    world = churn_world(home, own("validation", '{function: "own_gates:savde", min: 1}'))
    assert world.pipeline.user_modules == ("own_gates",)
    (finding,) = check_code(Probe.Inputs(code=code), world)
    assert (finding.where, finding.remedy) == ("own_gates:savde", "did you mean 'saved'?")


@pytest.mark.parametrize(
    ("threshold", "says"),
    [
        ('{function: "own_gates", min: 0}', "function"),
        ('{function: "own_gates:saved", metric: mae, min: 0}', "give one of `metric`, `composite` and `function`"),
        ("{metric: roc_auc, columns: [faith], min: 0}", "`columns` are those of a `function`"),
        ('{function: "own_gates:saved", columns: [fiath], min: 0}', "'fiath' is not in schema.columns"),
    ],
)
def test_what_is_wrong_with_one_is_told(threshold: str, says: str):
    with pytest.raises(ConfigError) as error:
        parse_pipeline(own("validation", threshold))
    assert says in str([*error.value.findings, error.value.message])
