"""What functions of the user's make of a model's answers on the test rows.  Called by `evaluate` and `promote`.

Only the number goes on: what a function sees of the rows is in no report.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence

from contracts.errors import ConfigError
from contracts.pipeline.gates import Threshold
from serving.user_code import blame
from steps.judging.assessment import Assessment
from steps.world import World


def own_columns(thresholds: Sequence[Threshold]) -> list[str]:
    """Return the columns that the thresholds' functions want to read besides."""
    return list(dict.fromkeys(column for threshold in thresholds for column in threshold.columns))


def own_numbers(world: World, code: str, thresholds: Sequence[Threshold], subject: Assessment) -> dict[str, float]:
    """Call each threshold's function with the test rows (an Arrow table) and the model's answers.

    Parameters
    ----------
    code
        URI of the packed modules.

    Returns
    -------
    Reference -> number; NaN is a number that has no value.

    Raises
    ------
    ConfigError
        There is no such function, it raised, or what it returned is no number.
    """
    functions = dict.fromkeys(threshold.function for threshold in thresholds if threshold.function)
    if not functions:
        return {}
    modules = world.user_code(code)
    found: dict[str, float] = {}
    for reference in functions:
        function = modules.resolve(reference)
        try:
            value = function(subject.rows, subject.answers)
        except Exception as error:
            raise ConfigError(f"the gate {reference} failed: {blame(error)}", remedy="mend it") from error
        if not isinstance(value, numbers.Real):
            what = type(value).__name__
            raise ConfigError(f"the gate {reference} returned no number ({what})", remedy="let it return a float")
        found[reference] = float(value)
    return found
