"""Write a data set to try the pipeline on: ``python tests/datasets/make.py NAME OUT.csv``.

Real ones come out of packages (scikit-learn, palmerpenguins, vega-datasets); the large ones are generated, seeded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets
from vega_datasets import data as vega

Frame = pd.DataFrame


def breast_cancer() -> Frame:
    """Binary, 569 rows, 30 numbers (Wolberg, Street & Mangasarian 1995)."""
    bunch = datasets.load_breast_cancer(as_frame=True)
    frame = bunch.frame.rename(columns=lambda name: name.replace(" ", "_"))
    return frame.assign(target=np.where(frame["target"] == 0, "malignant", "benign"))


def penguins() -> Frame:
    """Multiclass, 344 rows, numbers, categories and missing values (Gorman, Williams & Fraser 2014)."""
    from palmerpenguins import load_penguins

    return load_penguins()


def diabetes() -> Frame:
    """Regression, 442 rows (Efron et al. 2004)."""
    return datasets.load_diabetes(as_frame=True, scaled=False).frame


def weather() -> Frame:
    """Multiclass with dates, 1,461 days of Seattle (NOAA)."""
    frame = vega.seattle_weather()
    return frame.assign(date=frame["date"].dt.strftime("%Y-%m-%d"))


def categories(rows: int = 60_000, count: int = 5_000) -> Frame:
    """Regression with 5,000 categories in one column, generated."""
    generator = np.random.default_rng(5)
    effect = generator.normal(0, 3, count)
    shop = np.minimum(generator.zipf(1.3, rows) - 1, count - 1)
    shop[:count] = np.arange(count)
    price = generator.gamma(2.0, 10.0, rows).round(2)
    sold = 20 + effect[shop] - 0.2 * price + generator.normal(0, 1, rows)
    return Frame({"shop": [f"shop-{number:04d}" for number in shop], "price": price, "sold": sold.round(3)})


def million(rows: int = 1_000_000, columns: int = 30) -> Frame:
    """Binary, a million rows and 30 columns, generated: numbers, integers, categories, missing values."""
    generator = np.random.default_rng(1)
    score = np.zeros(rows)
    table: dict[str, object] = {}
    for number in range(columns - 1):
        if number % 5 == 4:
            codes = generator.integers(0, 20, rows)
            table[f"category_{number:02d}"] = np.char.add("c", codes.astype(str))
            score += np.sin(codes + number) * 0.3
        elif number % 5 == 3:
            counts = generator.poisson(5, rows)
            table[f"count_{number:02d}"] = counts
            score += (counts - 5) * 0.05
        else:
            values = generator.normal(0, 1, rows)
            score += values * np.cos(number) * 0.3
            table[f"number_{number:02d}"] = np.where(generator.random(rows) < 0.02, np.nan, values.round(6))
    chance = 1 / (1 + np.exp(-score + 1))
    table["bought"] = np.where(generator.random(rows) < chance, "yes", "no")
    return Frame(table)


DATA_SETS: dict[str, tuple[Callable[[], Frame], str]] = {
    "breast-cancer": (breast_cancer, "target"),
    "penguins": (penguins, "species"),
    "diabetes": (diabetes, "target"),
    "weather": (weather, "weather"),
    "categories": (categories, "sold"),
    "million": (million, "bought"),
}
"""Name -> (how to make it, its target column)."""


def main() -> None:
    """Write one data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(DATA_SETS))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    frame = DATA_SETS[arguments.name][0]()
    frame.to_csv(arguments.out, index=False)
    print(f"{arguments.out}: {len(frame):,} rows, target {DATA_SETS[arguments.name][1]}")


if __name__ == "__main__":
    main()
