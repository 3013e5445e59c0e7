"""The packaged model: what is saved is what answers; what is damaged or not trusted is refused."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sklearn.tree  # noqa: F401  brings OpenMP
from threadpoolctl import threadpool_info, threadpool_limits

from contracts.errors import ConfigError, DataError
from contracts.metrics import Task
from contracts.references import ColumnSpec, ModelManifest
from serving.estimators import SMALL_BATCH, SkopsEstimator
from serving.model import PackagedModel, save
from serving.transform import Numeric, Raw, Recipe, rows_to_table
from serving.user_code import UserCode
from tests.model_packages import COLUMNS, ROW, package

NUMBER = ColumnSpec(name="x", type="number", nullable=True)
MODULE = b"""
from sklearn.base import BaseEstimator, ClassifierMixin
import numpy as np

class Always(ClassifierMixin, BaseEstimator):
    def __init__(self, p=%s):
        self.p = p
    def fit(self, X, y):
        self.classes_ = np.array([0, 1])
        return self
    def predict_proba(self, X):
        return np.tile([1 - self.p, self.p], (len(X), 1))
"""


def manifest(**changes: object) -> ModelManifest:
    base = ModelManifest(
        pipeline="t", task=Task.BINARY, columns=(NUMBER,), classes=("no", "yes"), positive="yes", threshold=0.5,
        estimator="skops", dataset_sha256="0" * 64, transform_sha256="0" * 64, candidate="c",
    )  # fmt: skip
    return base.model_copy(update=changes)


def always(folder: Path, p: str, trusted: tuple[str, ...] = ("mine.Always",)) -> PackagedModel:
    code = UserCode({"mine.py": MODULE % p.encode()})
    estimator = SkopsEstimator(code.resolve("mine:Always")().fit(None, None))
    recipe = Recipe(steps=(Numeric(column="x", type="number"),))
    save(folder, manifest(trusted_types=trusted), recipe, estimator, code, [{"x": 1.0}])
    return PackagedModel.load(folder)


class CountsThreads:
    """Tells how many OpenMP threads it may use while it is asked."""

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        self.seen = [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "openmp"]
        return np.full((len(rows), 2), 0.5)


def test_few_rows_are_answered_on_one_thread_and_the_limit_ends_with_them() -> None:
    asked = CountsThreads()
    estimator = SkopsEstimator(asked)
    with threadpool_limits(limits=3, user_api="openmp"):
        estimator.score(np.zeros((1, 2)), 2)
        few = asked.seen
        estimator.score(np.zeros((SMALL_BATCH + 1, 2)), 2)
    assert few
    assert set(few) == {1}
    assert set(asked.seen) == {3}


def test_a_loaded_package_answers_rows_and_its_example(tmp_path: Path) -> None:
    model = PackagedModel.load(package(tmp_path))
    answer = model.predict(rows_to_table(COLUMNS, [ROW, dict.fromkeys(ROW)]))
    assert answer.scores is not None
    assert answer.scores.sum(axis=1) == pytest.approx([1, 1])
    assert set(answer.labels) <= {"no", "yes"}
    assert len(model.predict(rows_to_table(COLUMNS, model.example)).labels) == len(model.example)


@pytest.mark.parametrize(("task", "kind"), [(Task.MULTICLASS, np.int64), (Task.REGRESSION, np.float64)])
def test_labels_have_the_targets_own_type(tmp_path: Path, task: Task, kind: type) -> None:
    answer = PackagedModel.load(package(tmp_path, task=task)).predict(rows_to_table(COLUMNS, [ROW]))
    assert answer.labels.dtype == kind
    assert (answer.scores is None) == (task is Task.REGRESSION)


def test_the_threshold_of_the_package_decides(tmp_path: Path) -> None:
    model = always(tmp_path, "0.3")
    row = rows_to_table((NUMBER,), [{"x": None}])
    assert model.predict(row).labels.tolist() == ["no"]
    lower = PackagedModel(model.manifest.model_copy(update={"threshold": 0.3}), model.recipe, model.estimator)
    assert lower.predict(row).labels.tolist() == ["yes"]


@pytest.mark.parametrize("name", ["recipe.json", "estimator.txt", "example.json"])
def test_a_changed_or_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = package(tmp_path)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(DataError, match=f"{name} differs"):
        PackagedModel.load(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        PackagedModel.load(folder)


def test_another_format_a_damaged_manifest_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model package"):
        PackagedModel.load(tmp_path / "none")
    folder = package(tmp_path)
    path = folder / "package.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"format": 2}))
    with pytest.raises(ConfigError, match="another format"):
        PackagedModel.load(folder)
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        PackagedModel.load(folder)


def test_user_code_smuggled_into_a_package_is_refused(tmp_path: Path) -> None:
    folder = package(tmp_path)
    (folder / "user").mkdir(exist_ok=True)
    (folder / "user" / "evil.py").write_text("1 / 0")
    with pytest.raises(DataError, match=r"evil\.py"):
        PackagedModel.load(folder)


def test_two_versions_of_a_users_class_answer_side_by_side(tmp_path: Path) -> None:
    low, high = always(tmp_path / "low", "0.1"), always(tmp_path / "high", "0.9")
    row = rows_to_table((NUMBER,), [{"x": 1}])
    answers = [m.predict(row).scores for m in (low, high)]
    assert [a[0, 1] for a in answers if a is not None] == [0.1, 0.9]
    assert low.manifest.user_modules != high.manifest.user_modules


def test_a_type_that_the_file_does_not_trust_is_named_when_saving(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trust: mine\.Always") as error:
        always(tmp_path, "0.1", trusted=())
    assert "trusted_types: [mine.Always]" in error.value.remedy


def test_what_needs_pickle_can_not_be_saved(tmp_path: Path) -> None:
    from sklearn.preprocessing import FunctionTransformer

    estimator = SkopsEstimator(FunctionTransformer(lambda x: x))
    with pytest.raises(ConfigError, match="FunctionTransformer"):
        save(tmp_path, manifest(), Recipe(steps=()), estimator, UserCode({}), [])


def test_passthrough_hands_typed_columns_to_the_users_pipeline(tmp_path: Path) -> None:
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    columns = (NUMBER, ColumnSpec(name="c", type="string", nullable=False))
    recipe = Recipe(steps=(Raw(column="x", type="number"), Raw(column="c", type="string")))
    table = rows_to_table(columns, [{"x": i, "c": "ab"[i % 2]} for i in range(20)])
    pipeline = make_pipeline(
        ColumnTransformer([("c", OneHotEncoder(), ["c"]), ("x", "passthrough", ["x"])]), LogisticRegression()
    )
    pipeline.fit(table.to_pandas(), np.arange(20) % 2)
    trusted = tuple(SkopsTypes.of(pipeline, tmp_path))
    save(
        tmp_path / "p",
        manifest(columns=columns, passthrough=True, trusted_types=trusted),
        recipe,
        SkopsEstimator(pipeline),
        UserCode({}),
        [],
    )
    model = PackagedModel.load(tmp_path / "p")
    assert isinstance(model.features(table), pd.DataFrame)
    assert model.predict(table).labels.tolist() == ["no", "yes"] * 10


class SkopsTypes:
    """What a user would be told to trust."""

    @staticmethod
    def of(estimator: object, folder: Path) -> list[str]:
        import skops.io

        skops.io.dump(estimator, folder / "x.skops")
        return list(skops.io.get_untrusted_types(file=folder / "x.skops"))


def test_threads_that_ask_at_once_get_the_answers_of_one(tmp_path: Path) -> None:
    model = PackagedModel.load(package(tmp_path))
    tables = [rows_to_table(COLUMNS, [ROW | {"age": age}]) for age in range(40)]
    alone = [model.predict(t).scores for t in tables]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda t: model.predict(t).scores, tables * 5))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 5, together, strict=True))


def test_one_row_is_answered_within_milliseconds(tmp_path: Path) -> None:
    model = PackagedModel.load(package(tmp_path))
    features = model.features(rows_to_table(COLUMNS, [ROW]))
    times = []
    for _ in range(50):
        started = time.perf_counter()
        model.answer(features)
        times.append(time.perf_counter() - started)
    assert sorted(times)[25] < 0.005
