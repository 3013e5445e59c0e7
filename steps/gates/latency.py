"""How long one row takes, two models side by side.  Called by `promote`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

_WARM_UP = 10


def interleaved(
    models: Mapping[str, Callable[[], object]], calls: int, clock: Callable[[], int] = time.perf_counter_ns
) -> dict[str, float]:
    """Return the median milliseconds of one call of each model.

    The models take turns, and every second round in reverse, so that whatever slows this process slows all alike.
    """
    taken: dict[str, list[int]] = {name: [] for name in models}
    names = list(models)
    for number in range(-_WARM_UP, calls):
        for name in names if number % 2 else reversed(names):
            start = clock()
            models[name]()
            if number >= 0:
                taken[name].append(clock() - start)
    return {name: median(times) / 1e6 for name, times in taken.items()}
