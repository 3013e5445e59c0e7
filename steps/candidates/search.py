"""The bounded random search: which parameters each trial has.  Pure; the same seed gives the same trials."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from contracts.pipeline.learning import Candidate, SearchSpace


def trials(candidate: Candidate) -> Iterator[dict[str, Any]]:
    """Yield the parameters of each trial: first as they stand in the file, then drawn from the space.

    A trial's draw depends on seed, number and parameter name only, so another trial or parameter more moves no other.
    """
    yield dict(candidate.parameters)
    if candidate.search is None:
        return
    for number in range(1, candidate.search.trials):
        drawn = {
            name: _draw(space, np.random.default_rng([candidate.search.seed, number, *name.encode()]))
            for name, space in candidate.search.space.items()
        }
        yield {**candidate.parameters, **drawn}


def _draw(space: SearchSpace, random: np.random.Generator) -> Any:
    if space.choices is not None:
        return space.choices[int(random.integers(len(space.choices)))]
    low, high = float(space.low or 0), float(space.high or 0)
    if space.integer and not space.log:
        return int(random.integers(math.ceil(low), math.floor(high) + 1))
    value = math.exp(random.uniform(math.log(low), math.log(high))) if space.log else random.uniform(low, high)
    value = min(max(value, low), high)  # exp(log(high)) may lie a bit above it
    return min(max(round(value), math.ceil(low)), math.floor(high)) if space.integer else value
