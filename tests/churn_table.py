"""A small table from which churn can be told, as CSV; another seed gives other customers of the same kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path


def write_rows(
    file: Path, *, seed: int, rows: int, plans: Sequence[str], leaving: str = "basic", noise: float = 12,
    more: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write `rows` customers, of whom the old ones and those of the plan `leaving` churn, and the lines of `more`."""
    draw = random.Random(seed)
    lines = ["age,plan,churned"]
    for _ in range(rows):
        age, plan = draw.randint(18, 85), draw.choice(plans)
        churned = "yes" if age + 20 * (plan == leaving) + draw.gauss(0, noise) > 60 else "no"
        lines.append(f"{age},{plan},{churned}")
    file.write_text("\n".join([*lines, *more]) + "\n")
