"""The gates are pure functions of evidence and policy: tables of cases, and what must hold for all of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.metrics import Task
from contracts.outcomes import Promotion, Verdict
from contracts.pipeline.gates import Bootstrap, Comparison, Latency, PromotionGate, SliceRule, Threshold, ValidationGate
from contracts.references import ColumnSpec
from contracts.reports import Interval
from steps.gates import latency, promotion, validation
from steps.gates.bounds import Measurement, check, measure
from steps.gates.compatibility import refusals
from steps.metrics import Judged

BY_INTERVAL, BY_POINT = Bootstrap(), Bootstrap(decide="point")


def measured(value: float, low: float | None = None, high: float | None = None, rows: int = 500) -> Measurement:
    found = None if low is None or high is None else Interval(low=low, high=high, confidence=0.95, resamples=1000)
    return Measurement(value, found, rows)


def judged(correct: int, wrong: int) -> Judged:
    """Rows of a binary task with that many right and wrong answers, both classes occurring."""
    rows = correct + wrong
    truth = np.arange(rows) % 2
    predicted = np.where(np.arange(rows) < correct, truth, 1 - truth)
    return Judged(Task.BINARY, truth, predicted, np.eye(2)[predicted] * 0.8 + 0.1)


# A bound


@pytest.mark.parametrize(
    ("number", "bounds", "decide", "verdict", "reason"),
    [
        (measured(0.92, 0.91, 0.93), {"minimum": 0.88}, "interval", "passed", "m 0.920 [0.910, 0.930] >= 0.88"),
        (measured(0.80, 0.78, 0.82), {"minimum": 0.88}, "interval", "rejected", "m 0.800 [0.780, 0.820] < 0.88"),
        (measured(0.89, 0.87, 0.91), {"minimum": 0.88}, "interval", "inconclusive", "straddles minimum 0.88"),
        (measured(0.89, 0.87, 0.91), {"minimum": 0.88}, "point", "passed", ">= 0.88"),
        (measured(0.87, 0.86, 0.91), {"minimum": 0.88}, "point", "rejected", "< 0.88"),
        (measured(0.88, 0.88, 0.90), {"minimum": 0.88}, "interval", "passed", ">= 0.88"),
        (measured(0.30, 0.28, 0.32), {"maximum": 0.35}, "interval", "passed", "<= 0.35"),
        (measured(0.40, 0.38, 0.42), {"maximum": 0.35}, "interval", "rejected", "> 0.35"),
        (measured(0.34, 0.32, 0.36), {"maximum": 0.35}, "interval", "inconclusive", "straddles maximum 0.35"),
        (measured(0.35), {"maximum": 0.35}, "point", "passed", "m 0.350 <= 0.35"),
        (measured(0.92), {"minimum": 0.88}, "interval", "inconclusive", "no interval"),
        (measured(float("nan")), {"minimum": 0.88}, "point", "inconclusive", "has no value on 500 rows"),
    ],
)
def test_a_bound_is_judged(number: Measurement, bounds: dict[str, float], decide: str, verdict: str, reason: str):
    result = check("m", number, **bounds, decide=decide)
    assert result.verdict == verdict
    assert reason in result.reason


@given(value=st.floats(-10, 10), low=st.floats(-10, 10), high=st.floats(-10, 10), bound=st.floats(-10, 10))
def test_a_maximum_is_a_minimum_of_the_negated_number(value: float, low: float, high: float, bound: float):
    low, high = min(low, high), max(low, high)
    above = check("m", measured(value, low, high), minimum=bound, decide="interval")
    below = check("m", measured(-value, -high, -low), maximum=-bound, decide="interval")
    assert above.verdict is below.verdict


# The validation gate


def test_one_rejection_outweighs_all_that_passes():
    gate = ValidationGate(thresholds=(Threshold(metric="roc_auc", min=0.8), Threshold(metric="log_loss", max=0.4)))
    decision = validation.decide(validation.Evidence((measured(0.9, 0.88, 0.92), measured(0.5, 0.45, 0.55))), gate)
    assert decision.verdict is Verdict.REJECTED
    assert decision.reason == "log_loss 0.500 [0.450, 0.550] > 0.4"


def test_a_rejection_outweighs_a_doubt_and_a_doubt_a_pass():
    gate = ValidationGate(thresholds=(Threshold(metric="roc_auc", min=0.8),) * 3)
    good, doubt, bad = measured(0.9, 0.85, 0.95), measured(0.8, 0.75, 0.85), measured(0.7, 0.65, 0.75)
    verdicts = [
        validation.decide(validation.Evidence(numbers), gate).verdict
        for numbers in ((good, good, good), (good, doubt, good), (good, doubt, bad))
    ]
    assert verdicts == [Verdict.PASSED, Verdict.INCONCLUSIVE, Verdict.REJECTED]


def test_a_composite_is_the_weighted_sum_with_an_interval_of_its_own():
    rows = judged(80, 20)
    mix = Threshold(composite={"accuracy": 1.0, "log_loss": -0.5}, min=0.1)
    single, loss, both = measure(
        rows, [Threshold(metric="accuracy", min=0), Threshold(metric="log_loss", min=0), mix], BY_INTERVAL
    )
    assert both.value == pytest.approx(single.value - 0.5 * loss.value)
    assert both.interval is not None
    # the two move against each other, so the composite varies more than the accuracy alone
    assert both.interval.high - both.interval.low > single.interval.high - single.interval.low
    assert mix.label == "1 accuracy + -0.5 log_loss"


def test_one_class_in_the_test_rows_is_inconclusive_with_its_reason():
    rows = judged(50, 10)
    gate = ValidationGate(thresholds=(Threshold(metric="roc_auc", min=0.8),))
    decision = validation.decide(validation.collect(rows.take(rows.truth == 1), gate, ()), gate)
    assert decision.verdict is Verdict.INCONCLUSIVE
    assert "has no value on 30 rows: 1 of 2 classes do not occur" in decision.reason


def test_a_model_that_answers_nan_is_rejected():
    rows = judged(50, 10)
    rows.scores[:3] = np.nan
    gate = ValidationGate(thresholds=(Threshold(metric="roc_auc", min=0.1),))
    decision = validation.decide(validation.collect(rows, gate, ()), gate)
    assert decision.verdict is Verdict.REJECTED
    assert "3 test rows" in decision.reason


def slice_gate(**fields: object) -> ValidationGate:
    rule = SliceRule(column="region", metric="accuracy", min=0.75, **fields)
    return ValidationGate(thresholds=(Threshold(metric="accuracy", min=0.1),), slices=(rule,), bootstrap=BY_POINT)


def judge_slices(gate: ValidationGate, regions: list[str | None], rows: Judged, *, sensitive: bool = False):
    groups = validation.grouped(regions, gate.slices[0], sensitive=sensitive)
    return validation.decide(validation.collect(rows, gate, [groups]), gate)


def test_one_bad_slice_rejects_a_model_that_is_good_on_the_whole():
    decision = judge_slices(slice_gate(min_rows=10), ["north"] * 80 + ["south"] * 20, judged(85, 15))
    assert decision.verdict is Verdict.REJECTED
    assert decision.reason.startswith("accuracy of region=south 0.250 [")


def test_a_slice_below_min_rows_is_reported_and_not_judged():
    decision = judge_slices(slice_gate(min_rows=50), ["north"] * 80 + ["south"] * 20, judged(85, 15))
    assert decision.verdict is Verdict.PASSED
    (small,) = [c for c in decision.checks if c.verdict is None]
    assert (small.rows, small.reason) == (20, "region=south has 20 test rows, fewer than 50: not judged")


def test_missing_cells_are_a_slice_and_listed_values_without_rows_are_reported():
    decision = judge_slices(slice_gate(min_rows=5), [None] * 20 + ["south"] * 80, judged(100, 0))
    assert [c.name for c in decision.checks[1:]] == ["accuracy of region=south", "accuracy of region=null"]
    listed = judge_slices(slice_gate(min_rows=5, values=("west",)), ["south"] * 100, judged(100, 0))
    assert listed.checks[1].reason == "region=west has 0 test rows, fewer than 5: not judged"


def test_values_of_a_sensitive_column_are_numbered_not_named():
    gate = slice_gate(min_rows=50)
    decision = judge_slices(gate, ["secret-a"] * 80 + ["secret-b"] * 20, judged(85, 15), sensitive=True)
    said = " ".join(c.name + c.reason for c in decision.checks)
    assert "secret" not in said
    assert "region=(2 of 2, masked) has 20 test rows" in said


def test_thousands_of_small_groups_do_not_flood_the_report():
    decision = judge_slices(slice_gate(min_rows=5), [str(i) for i in range(100)], judged(100, 0))
    assert len(decision.checks) == 1 + validation.MAX_SMALL_GROUPS + 1
    assert decision.checks[-1].reason == "80 further groups of region have fewer than 5 test rows: not judged"


# The promotion gate

GATE = PromotionGate(
    thresholds=(Threshold(metric="roc_auc", min=0.85),),
    comparison=Comparison(metric="roc_auc", margin=0.01, non_inferior_after="30d", min_rows=100),
    max_calibration_error=0.05,
    max_size_mib=10,
    latency=Latency(max_ms=20, max_ratio=2),
)
CHAMPION = promotion.Champion(
    version=3,
    age=timedelta(days=5),
    rows=400,
    difference=promotion.Difference(0.92, 0.90, 0.02, Interval(low=0.01, high=0.03, confidence=0.95, resamples=1000)),
    latency_ms=4.0,
)
EVIDENCE = promotion.Evidence(
    thresholds=(measured(0.92, 0.90, 0.94),),
    calibration_error=measured(0.03),
    size_mib=1.5,
    latency_ms=5.0,
    champion=CHAMPION,
)


def gain(value: float, low: float, high: float) -> promotion.Difference:
    return promotion.Difference(0.9 + value, 0.9, value, Interval(low=low, high=high, confidence=0.95, resamples=1000))


def against(**fields: object) -> promotion.Evidence:
    return replace(EVIDENCE, champion=replace(CHAMPION, **fields))


OLD = timedelta(days=31)


@pytest.mark.parametrize(
    ("case", "evidence", "decision", "reason"),
    [
        ("all is well", EVIDENCE, "approved", "better by +0.0200 [+0.0100, +0.0300] on 400 rows unseen by both"),
        ("no champion", replace(EVIDENCE, champion=None), "approved", "nothing serves yet; roc_auc 0.920"),
        ("weak", replace(EVIDENCE, thresholds=(measured(0.8, 0.78, 0.82),)), "rejected", "< 0.85"),
        ("weak, alone", replace(EVIDENCE, thresholds=(measured(0.8, 0.78, 0.82),), champion=None), "rejected", "<"),
        ("in doubt", replace(EVIDENCE, thresholds=(measured(0.86, 0.84, 0.88),)), "inconclusive", "straddles"),
        ("badly calibrated", replace(EVIDENCE, calibration_error=measured(0.2, 0.1, 0.3)), "rejected", "> 0.05"),
        ("calibration by point", replace(EVIDENCE, calibration_error=measured(0.04, 0.03, 0.09)), "approved", ""),
        ("too large", replace(EVIDENCE, size_mib=11), "rejected", "size 11.000 MiB > 10"),
        ("too slow", replace(EVIDENCE, latency_ms=21, champion=None), "rejected", "latency 21.000 ms a row > 20"),
        ("slower than it", against(latency_ms=2.0), "rejected", "latency ratio 2.500 x that of version 3 > 2"),
        ("champion not timed", against(latency_ms=None), "approved", ""),
        ("tie", against(difference=gain(0, 0, 0)), "rejected", "a tie: version 3 stays"),
        ("worse", against(difference=gain(-0.05, -0.06, -0.04)), "rejected", "version 3 stays"),
        ("not shown", against(difference=gain(0.005, -0.005, 0.015)), "inconclusive", "not shown: version 3 stays"),
        ("old champion", against(difference=gain(0.0, -0.005, 0.005), age=OLD), "approved", "non_inferior"),
        ("old, tie within margin", against(difference=gain(0, 0, 0), age=OLD), "approved", "older than 30d"),
        ("old, worse than margin", against(difference=gain(-0.03, -0.04, -0.02), age=OLD), "rejected", "-0.01"),
        ("old, exactly the margin", against(difference=gain(-0.01, -0.01, -0.01), age=OLD), "rejected", "stays"),
        ("too few rows", against(rows=7, difference=None), "inconclusive", "7 rows are unseen by both, fewer than 100"),
        ("not scored", against(not_scored="version 3 can't be scored", difference=None), "inconclusive", "can't be"),
        ("no value", against(difference=None), "inconclusive", "has no value on the 400 rows"),
        ("refuses requests", against(refusals=("column a is asked for anew",)), "rejected", "release.contract is 1"),
        ("NaN answers", replace(EVIDENCE, non_finite=2, thresholds=()), "rejected", "for 2 test rows"),
    ],
)  # fmt: skip
def test_promotion_table(case: str, evidence: promotion.Evidence, decision: str, reason: str):
    found = promotion.decide(evidence, GATE, BY_INTERVAL)
    assert found.promotion == decision, found.reason
    assert reason in found.reason


def test_a_raised_contract_lets_an_incompatible_version_pass_and_says_so():
    evidence = replace(against(refusals=("column a is known no more",)), contract=2)
    found = promotion.decide(evidence, GATE, BY_INTERVAL)
    assert found.promotion is Promotion.APPROVED
    assert "contract is raised from 1 to 2" in found.reason


def test_every_check_is_made_whatever_the_ones_before_it_say():
    evidence = replace(against(difference=gain(0, 0, 0)), thresholds=(measured(0.5, 0.4, 0.6),), size_mib=99)
    found = promotion.decide(evidence, GATE, BY_INTERVAL)
    assert [c.name for c in found.checks] == [
        "roc_auc", "calibration_error", "size", "latency", "latency ratio", "input compatibility", "comparison",
    ]  # fmt: skip
    assert [c.name for c in found.checks if c.verdict is Verdict.REJECTED] == ["roc_auc", "size", "comparison"]


def test_an_empty_policy_approves():
    found = promotion.decide(replace(EVIDENCE, thresholds=()), PromotionGate(), BY_INTERVAL)
    assert found.promotion is Promotion.APPROVED


def test_a_model_compared_with_itself_ties_exactly():
    found = promotion.compare(judged(80, 20), judged(80, 20), Comparison(metric="roc_auc"))
    assert (found.gain, found.interval.low, found.interval.high) == (0, 0, 0)


def test_less_log_loss_is_a_gain():
    found = promotion.compare(judged(90, 10), judged(70, 30), Comparison(metric="log_loss"))
    assert found.gain > 0
    assert found.interval.low > 0


# Input compatibility


def spec(name: str = "a", type_: str = "integer", *, nullable: bool = False) -> ColumnSpec:
    return ColumnSpec(name=name, type=type_, nullable=nullable)


@pytest.mark.parametrize(
    ("candidate", "champion", "said"),
    [
        ([spec()], [spec()], None),
        ([spec("a"), spec("b")], [spec("a")], "column b is asked for anew"),
        ([spec("a")], [spec("a"), spec("b")], "column b is known no more"),
        ([spec(type_="integer")], [spec(type_="number")], "column a was number, is integer"),
        ([spec(type_="number")], [spec(type_="integer")], None),
        ([spec(type_="string")], [spec(type_="integer")], "column a was integer, is string"),
        ([spec()], [spec(nullable=True)], "column a may be null no more"),
        ([spec(nullable=True)], [spec()], None),
        ([spec("b"), spec("a")], [spec("a"), spec("b")], None),
    ],
)
def test_refused_requests(candidate: list[ColumnSpec], champion: list[ColumnSpec], said: str | None):
    assert refusals(candidate, champion) == ((said,) if said else ())


# Latency


def test_two_models_take_turns_and_each_gets_its_median():
    now, calls = [0], []

    def model(name: str, milliseconds: int):
        def call() -> None:
            calls.append(name)
            now[0] += milliseconds * 1_000_000

        return call

    found = latency.interleaved({"a": model("a", 3), "b": model("b", 7)}, calls=50, clock=lambda: now[0])
    assert found == {"a": 3.0, "b": 7.0}
    assert calls.count("a") == calls.count("b")
    assert calls[:4] in (["a", "b", "b", "a"], ["b", "a", "a", "b"])
