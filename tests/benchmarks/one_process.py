"""The baseline of the five stages: one script that does their work as one would write it with pandas and MLflow.

Read and check the CSV, hash it, keep it as Parquet, split by class, fit LightGBM, score all sides, log parameters,
metrics and model.  ``python -m tests.benchmarks.one_process TABLE.csv HOME`` prints the scores.  It draws no bootstrap
interval, which the stages do.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import lightgbm as lgb
import mlflow
import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import train_test_split

from tests.benchmarks.million import LEAVES, RATE, TREES

TARGET, POSITIVE, SEED = "bought", "yes", 7


def main() -> None:
    """Run."""
    table, home = Path(sys.argv[1]), Path(sys.argv[2])
    home.mkdir(parents=True, exist_ok=True)
    frame = read(table, home)
    y = (frame.pop(TARGET) == POSITIVE).astype(int)
    text = frame.select_dtypes("str").columns
    frame[text] = frame[text].astype("category")
    x_rest, x_test, y_rest, y_test = train_test_split(frame, y, test_size=0.2, stratify=y, random_state=SEED)
    x_train, x_valid, y_train, y_valid = train_test_split(
        x_rest, y_rest, test_size=0.25, stratify=y_rest, random_state=SEED
    )

    mlflow.set_tracking_uri(f"sqlite:///{home}/mlflow.db")
    mlflow.set_experiment("million")
    with mlflow.start_run():
        settings = {"n_estimators": TREES, "num_leaves": LEAVES, "learning_rate": RATE, "random_state": SEED}
        model = lgb.LGBMClassifier(**settings, n_jobs=os.cpu_count(), verbosity=-1).fit(x_train, y_train)
        mlflow.log_params(settings)
        sides = {"train": (x_train, y_train), "validation": (x_valid, y_valid), "test": (x_test, y_test)}
        for side, (x, truth) in sides.items():
            chance = model.predict_proba(x)[:, 1]
            found = scores(truth, chance)
            mlflow.log_metrics({f"{side}.{name}": value for name, value in found.items()})
        signature = mlflow.models.infer_signature(x_test.head(), chance[:5])
        needs = [f"lightgbm=={lgb.__version__}"]
        mlflow.lightgbm.log_model(model, name="model", signature=signature, pip_requirements=needs)
    print(json.dumps(found))


def read(table: Path, home: Path) -> pd.DataFrame:
    """Return the table, checked, after keeping it under its hash."""
    with table.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    frame = pd.read_csv(table, engine="pyarrow")
    numbers = frame.select_dtypes("number")
    if frame[TARGET].isna().any() or np.isinf(numbers).to_numpy().any():
        sys.exit("the table has nulls in its target, or infinities")
    frame.to_parquet(home / f"{sha256}.parquet")
    return frame


def scores(truth: pd.Series, chance: np.ndarray) -> dict[str, float]:
    """Return the metrics that the stages report."""
    answer = chance >= 0.5
    return {
        "accuracy": accuracy_score(truth, answer),
        "precision": precision_score(truth, answer),
        "recall": recall_score(truth, answer),
        "f1": f1_score(truth, answer),
        "roc_auc": roc_auc_score(truth, chance),
        "average_precision": average_precision_score(truth, chance),
        "log_loss": log_loss(truth, chance),
        "brier": brier_score_loss(truth, chance),
    }


if __name__ == "__main__":
    main()
