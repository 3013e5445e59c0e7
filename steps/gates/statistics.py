"""Bootstrap intervals of the metrics, paired where two models answer the same rows.  Pure; seeded.

A resample is a vector of how often each row was drawn (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapters 13 and 16), so every metric is computed with those counts as weights, for many resamples at once, by matrix
products and cumulative sums.  Tests compare each with scikit-learn on the drawn rows.

Rows of one group resemble each other, so they are no independent draws: where rows have groups, whole groups are drawn
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8), and a row counts as its group.

Which quantiles of the resamples are the ends of an interval, `interval` says; tests/steps/test_gate_levels.py holds
the promotion rules to their level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from contracts.metrics import Task
from contracts.pipeline.gates import Bootstrap
from contracts.reports import Interval
from steps.metrics import BINS, Floats, Judged, calibration_bins, confidence_and_hit

_BLOCK = 250_000
"""Cells of one block of counts: bounds memory (2 MB a work array) and stays in the cache."""
MIN_USABLE = 0.9
"""An interval stands on at least this share of the resamples; on fewer the number counts as not computable."""
MIN_GROUPS = 15
"""On fewer groups there is no interval: too few to see from how unlike they are."""
MOST_PARTS = 200
"""Rows (or groups) are left out one by one, or in so many parts where there are more of them."""

Kernel = Callable[[Floats], Floats]
"""Counts [resamples, rows] -> metric [resamples]; NaN where it has no value."""
Tails = tuple[float, float]
"""Probabilities that the number lies below the low end of an interval, and above its high end."""


@dataclass(frozen=True)
class Sample:
    """A number, and what it is when rows (or groups) are left out and when they are drawn anew."""

    whole: float
    left_out: Floats
    """Without each part of the rows, [parts]."""
    drawn: Floats
    """Of each resample, [resamples]; NaN where it has no value."""
    units: int
    """Rows, or groups, that were drawn from."""

    def __rmul__(self, weight: float) -> Sample:
        return Sample(weight * self.whole, weight * self.left_out, weight * self.drawn, self.units)

    def __add__(self, other: Sample) -> Sample:
        whole, left_out = self.whole + other.whole, self.left_out + other.left_out
        return Sample(whole, left_out, self.drawn + other.drawn, self.units)


def resample(judged: Sequence[Judged], metrics: Iterable[str], bootstrap: Bootstrap) -> list[dict[str, Sample]]:
    """Draw rows, or whole groups of rows, with replacement and compute metrics on every draw.

    All of `judged` speak of the same rows, whose groups are those of the first, and get the same draws, so sums and
    differences of their samples are paired.

    Returns
    -------
    For each of `judged`, metric -> sample; NaN everywhere without rows, and on fewer than `MIN_GROUPS` groups.
    """
    names = tuple(dict.fromkeys(metrics))
    units, unit_of_row = judged[0].rows, None
    if judged[0].groups is not None:
        found, unit_of_row = np.unique(judged[0].groups, return_inverse=True)
        units = len(found) if len(found) >= MIN_GROUPS else 0
    parts = _parts(units) if units else 0
    results = [{name: np.full(1 + parts + bootstrap.resamples, np.nan) for name in names} for _ in judged]
    kernels = [{name: _KERNELS[name](j) for name in names} for j in judged] if units else []
    at = 0
    for counts in _counts(units, judged[0].rows, bootstrap) if units else ():
        of_rows = counts if unit_of_row is None else np.take(counts, unit_of_row, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            for result, kernel in zip(results, kernels, strict=True):
                for name in names:
                    result[name][at : at + len(counts)] = kernel[name](of_rows)
        at += len(counts)
    return [
        {name: Sample(float(v[0]), v[1 : 1 + parts], v[1 + parts :], units) for name, v in result.items()}
        for result in results
    ]


def interval(sample: Sample, bootstrap: Bootstrap, tails: Tails | None = None) -> Interval | None:
    """Return the interval of a number, None when too few resamples have a value.

    Each end is the farther of two, within what the resamples show: that of the bias-corrected and accelerated bootstrap
    (BCa; Efron, Better Bootstrap Confidence Intervals, 1987), and that of Student's t on the standard error of the
    jackknife.  The first follows a skewed number, the second what resamples of a few rows are too narrow for.

    Parameters
    ----------
    tails
        By default half of what `confidence` leaves, twice.
    """
    usable = sample.drawn[np.isfinite(sample.drawn)]
    if len(usable) < MIN_USABLE * bootstrap.resamples or not math.isfinite(sample.whole) or sample.units < 2:
        return None
    jackknife = _jackknife(sample)
    below = (usable < sample.whole).mean() + (usable == sample.whole).mean() / 2
    least = 1 / (len(usable) + 1)
    bias = float(ndtri(np.clip(below, least, 1 - least)))

    def end(probability: float, farther: Callable[[float, float], float]) -> float:
        shifted = bias + float(ndtri(probability))
        shrink = 1 - jackknife.acceleration * shifted
        accelerated = float(ndtr(bias + shifted / shrink)) if shrink > 0 else float(shifted > 0)
        by_t = sample.whole + jackknife.error * float(stdtrit(jackknife.freedom, probability))
        return farther(float(np.quantile(usable, accelerated)), float(np.clip(by_t, usable.min(), usable.max())))

    low, high = tails or ((1 - bootstrap.confidence) / 2,) * 2
    confidence = round(1 - low - high, 6)
    return Interval(low=end(low, min), high=end(1 - high, max), confidence=confidence, resamples=len(usable))


class _Jackknife(NamedTuple):
    """What leaving out parts of the rows says of a number."""

    error: float
    """Standard error."""
    acceleration: float
    """How much the error grows with the number (Efron, 1987)."""
    freedom: float
    """Degrees of freedom of the error: 2n / (kurtosis of the influences - 1), at most n - 1 (after Satterthwaite,
    1946); few where a few rows decide, such as the positive ones of a rare class."""


def _jackknife(sample: Sample) -> _Jackknife:
    influence = sample.left_out[np.isfinite(sample.left_out)]
    influence = influence.mean() - influence
    n, square = len(influence), float((influence**2).sum())
    if n < 2 or square == 0:  # the same without any of them
        return _Jackknife(0.0, 0.0, 1.0)
    kurtosis = n * float((influence**4).sum()) / square**2
    freedom = min(2 * n / (kurtosis - 1), n - 1) if kurtosis > 1 else n - 1
    acceleration = float((influence**3).sum()) / (6 * square**1.5)
    return _Jackknife(math.sqrt(square * (n - 1) / n), acceleration, max(1.0, freedom))


def _parts(units: int) -> int:
    """Return into how many parts rows or groups are cut: of equal size, but for one row more or less."""
    size = -(-units // MOST_PARTS)
    return -(-units // size)


def _counts(units: int, rows: int, bootstrap: Bootstrap) -> Iterator[Floats]:
    """Yield how often each row or group counts, [some, units]: all once, then without each part, then the draws."""
    step, parts = max(1, _BLOCK // rows), _parts(units)
    yield np.ones((1, units))
    part_of_unit = np.arange(units) % parts
    for start in range(0, parts, step):
        yield (part_of_unit != np.arange(start, min(start + step, parts))[:, None]).astype(np.float64)
    yield from _draws(bootstrap, units, step)


def _draws(bootstrap: Bootstrap, units: int, step: int) -> Iterator[Floats]:
    """Yield the counts of `step` resamples at a time; the next are drawn by a thread while these are used."""
    generator = np.random.default_rng(bootstrap.seed)
    sizes = [min(step, bootstrap.resamples - start) for start in range(0, bootstrap.resamples, step)]
    with ThreadPoolExecutor(1) as drawer:
        coming = drawer.submit(_draw, generator, sizes[0], units)
        for size in sizes[1:]:
            counts = coming.result()
            coming = drawer.submit(_draw, generator, size, units)
            yield counts
        yield coming.result()


def _draw(generator: np.random.Generator, resamples: int, units: int) -> Floats:
    drawn = generator.integers(units, size=(resamples, units), dtype=np.int64)
    drawn += np.arange(resamples, dtype=np.int64)[:, None] * units
    return np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float64)


def _mean(values: Floats) -> Kernel:
    return lambda counts: (counts @ values) / counts.sum(axis=1)


def _accuracy(j: Judged) -> Kernel:
    return _mean((j.truth == j.predicted).astype(np.float64))


def _confusion(j: Judged) -> Callable[[Floats], tuple[Floats, Floats, Floats]]:
    """Counts -> hits, true and predicted rows of each class, each [resamples, classes]."""
    classes = np.arange(j.classes)
    truth = (j.truth[:, None] == classes).astype(np.float64)
    predicted = (j.predicted[:, None] == classes).astype(np.float64)
    hits = truth * predicted
    return lambda counts: (counts @ hits, counts @ truth, counts @ predicted)


def _balanced_accuracy(j: Judged) -> Kernel:
    confusion = _confusion(j)

    def kernel(counts: Floats) -> Floats:
        hits, truth, _ = confusion(counts)
        return np.asarray(np.nanmean(hits / truth, axis=1))

    return kernel


def _of_classes(value: Callable[[Floats, Floats, Floats], Floats]) -> Callable[[Judged], Kernel]:
    def make(j: Judged) -> Kernel:
        confusion = _confusion(j)

        def kernel(counts: Floats) -> Floats:
            hits, truth, predicted = confusion(counts)
            each = np.nan_to_num(value(hits, truth, predicted), nan=0.0)
            if j.task is Task.BINARY:
                return np.asarray(each[:, j.positive])
            occurs = truth + predicted > 0
            return np.asarray((each * occurs).sum(axis=1) / occurs.sum(axis=1))

        return kernel

    return make


def _log_loss(j: Judged) -> Kernel:
    tiny = np.finfo(np.float64).eps
    given = j.probabilities[np.arange(j.rows), j.truth]
    return _mean(-np.log(np.clip(given, tiny, 1 - tiny)))


def _brier(j: Judged) -> Kernel:
    if j.task is Task.BINARY:
        positive, probability = j.positive_scores()
        return _mean((probability - positive) ** 2)
    return _mean(((j.probabilities - (j.truth[:, None] == np.arange(j.classes))) ** 2).sum(axis=1))


def _calibration_error(j: Judged) -> Kernel:
    probability, hit = confidence_and_hit(j)
    gaps = (calibration_bins(probability)[:, None] == np.arange(BINS)) * (probability - hit)[:, None]
    return lambda counts: np.abs(counts @ gaps).sum(axis=1) / counts.sum(axis=1)


def _auc(scores: Floats, positive: NDArray[np.bool_]) -> Kernel:
    """Area under the ROC curve as the Mann-Whitney statistic, ties counted half (Hanley and McNeil, 1982)."""
    order = np.argsort(scores, kind="stable")
    wins, losses = order[positive[order]], order[~positive[order]]
    below = np.searchsorted(scores[losses], scores[wins], side="left")
    not_above = np.searchsorted(scores[losses], scores[wins], side="right")
    ties = bool((below != not_above).any())

    def kernel(counts: Floats) -> Floats:
        beaten = np.zeros((len(counts), len(losses) + 1))
        np.cumsum(np.take(counts, losses, axis=1), axis=1, out=beaten[:, 1:])
        ranks = np.take(beaten, below, axis=1)
        if ties:
            ranks = (ranks + np.take(beaten, not_above, axis=1)) / 2
        drawn = np.take(counts, wins, axis=1)
        won = np.einsum("ij,ij->i", drawn, ranks)
        return np.asarray(won / (drawn.sum(axis=1) * beaten[:, -1]))

    return kernel


def _roc_auc(j: Judged) -> Kernel:
    if j.task is Task.BINARY:
        positive, probability = j.positive_scores()
        return _auc(probability, positive)
    kernels = [_auc(j.probabilities[:, k], j.truth == k) for k in range(j.classes)]
    return lambda counts: np.mean([kernel(counts) for kernel in kernels], axis=0)


def _average_precision(j: Judged) -> Kernel:
    positive, probability = j.positive_scores()
    order = np.argsort(-probability, kind="stable")
    hit, ranked = positive[order].astype(np.float64), probability[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    ties = len(ends) < len(ranked)

    def kernel(counts: Floats) -> Floats:
        drawn = np.take(counts, order, axis=1)
        chosen = np.cumsum(drawn, axis=1)
        hits = np.cumsum(np.multiply(drawn, hit, out=drawn), axis=1)
        if ties:
            chosen, hits = np.take(chosen, ends, axis=1), np.take(hits, ends, axis=1)
        total = hits[:, -1].copy()  # hits is written over below
        mixed = (total > 0) & (total < chosen[:, -1])
        gained = np.diff(hits, axis=1, prepend=0.0)
        precision = np.divide(hits, np.maximum(chosen, 1.0, out=chosen), out=hits)
        area = np.einsum("ij,ij->i", gained, precision)
        return np.where(mixed, area / total, np.nan)

    return kernel


def _rmse(j: Judged) -> Kernel:
    mean = _mean((j.truth - j.predicted) ** 2)
    return lambda counts: np.sqrt(mean(counts))


def _median_absolute_error(j: Judged) -> Kernel:
    errors = np.abs(j.truth - j.predicted)
    order = np.argsort(errors, kind="stable")
    ranked = errors[order]

    def kernel(counts: Floats) -> Floats:
        reached = np.cumsum(counts[:, order], axis=1)
        total = reached[:, -1:]
        lower = ranked[(reached > (total - 1) // 2).argmax(axis=1)]
        upper = ranked[(reached > total // 2).argmax(axis=1)]
        return np.asarray((lower + upper) / 2)

    return kernel


def _r2(j: Judged) -> Kernel:
    error = (j.truth - j.predicted) ** 2
    centred = j.truth - j.truth.mean()  # keeps the difference of squares below from cancelling

    def kernel(counts: Floats) -> Floats:
        spread = counts @ centred**2 - (counts @ centred) ** 2 / counts.sum(axis=1)
        return np.where(spread > 0, 1 - (counts @ error) / spread, np.nan)

    return kernel


_KERNELS: dict[str, Callable[[Judged], Kernel]] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1": _of_classes(lambda hits, truth, predicted: 2 * hits / (truth + predicted)),
    "precision": _of_classes(lambda hits, _, predicted: hits / predicted),
    "recall": _of_classes(lambda hits, truth, _: hits / truth),
    "log_loss": _log_loss,
    "brier": _brier,
    "calibration_error": _calibration_error,
    "rmse": _rmse,
    "mae": lambda j: _mean(np.abs(j.truth - j.predicted)),
    "median_absolute_error": _median_absolute_error,
    "r2": _r2,
}
