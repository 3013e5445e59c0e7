"""The HTTP API of one version, in this process: what is answered, what is refused, and what is counted."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from fastapi.testclient import TestClient

from contracts.metrics import Task
from serving.app import INLINE_ROWS, create_app
from serving.model import PackagedModel, Predictions
from serving.schemas import MAX_BODY, MAX_ROWS, ModelAnswer, answer_model
from tests.model_packages import ROW, package

IDENTITY = ModelAnswer(
    name="tiny", version=7, run_id="run-7", dataset_sha256="d" * 64, since=datetime(2026, 1, 1, tzinfo=UTC)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PackagedModel:
    return PackagedModel.load(package(tmp_path_factory.mktemp("binary") / "model"))


@pytest.fixture
def client(model: PackagedModel) -> TestClient:
    return TestClient(create_app(model, IDENTITY))


def ask(client: TestClient, *rows: Any) -> Any:
    return client.post("/v1/predict", json={"instances": list(rows)})


def test_a_row_is_answered_with_class_probabilities_version_and_prediction_id(client: TestClient) -> None:
    answer = ask(client, ROW)
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"].startswith("tiny-7-")
    assert body["predictions"][0]["id"] == body["id"] + "-0"
    probabilities = body["predictions"][0]["probabilities"]
    assert set(probabilities) == {"no", "yes"}
    assert sum(probabilities.values()) == pytest.approx(1)
    assert body["predictions"][0]["label"] == ("yes" if probabilities["yes"] >= 0.5 else "no")
    assert body["model"] == client.get("/v1/model").json()
    assert (body["model"]["version"], body["model"]["run_id"], body["model"]["dataset_sha256"]) == (
        7,
        "run-7",
        "d" * 64,
    )
    assert body["warnings"] == []
    assert ask(client, ROW).json()["id"] != body["id"]


@pytest.mark.parametrize("task", list(Task))
def test_every_task_answers_as_its_schema_says(task: Task, tmp_path: Path) -> None:
    model = PackagedModel.load(package(tmp_path / "model", task=task))
    answer = ask(TestClient(create_app(model, IDENTITY)), ROW, ROW)
    answer_model(model.manifest).model_validate_json(answer.content)
    first = answer.json()["predictions"][0]
    if task is Task.REGRESSION:
        assert isinstance(first["value"], float)
    else:
        assert isinstance(first["label"], int if task is Task.MULTICLASS else str)


def test_a_batch_is_answered_like_its_rows_alone(client: TestClient) -> None:
    rows = [ROW | {"age": age} for age in range(INLINE_ROWS + 5)]
    together = ask(client, *rows).json()["predictions"]
    alone = [ask(client, row).json()["predictions"][0] for row in rows]
    assert [p["probabilities"] for p in together] == [p["probabilities"] for p in alone]


def test_null_is_answered_in_every_column_with_a_warning_where_training_had_none(client: TestClient) -> None:
    for column in ROW:
        answer = ask(client, ROW | {column: None})
        assert answer.status_code == 200
        warned = [(w["kind"], w["column"], w["instances"]) for w in answer.json()["warnings"]]
        assert warned == ([("unexpected_null", "age", [0])] if column == "age" else [])


def test_an_unseen_category_is_answered_warned_of_and_counted_without_its_value(client: TestClient) -> None:
    answer = ask(client, ROW, ROW | {"city": "Xanadu", "diagnosis": "planted-secret"})
    assert answer.status_code == 200
    warned = {(w["kind"], w["column"], *w["instances"]) for w in answer.json()["warnings"]}
    assert warned == {("unseen_category", "city", 1), ("unseen_category", "diagnosis", 1)}
    assert "Xanadu" not in answer.text
    assert "planted-secret" not in answer.text
    metrics = client.get("/metrics").text
    assert 'retrain_unseen_categories_total{column="city"} 1.0' in metrics
    assert "Xanadu" not in metrics


@pytest.mark.parametrize(
    ("change", "field", "what"),
    [
        ({"age": "41"}, "age", "valid integer"),
        ({"age": 41.5}, "age", "valid integer"),
        ({"age": True}, "age", "valid integer"),
        ({"age": 2**63}, "age", "out of range"),
        ({"income per year": "52000"}, "income per year", "valid number"),
        ({"income per year": 1e39}, "income per year", "out of range"),
        ({"member": 1}, "member", "valid boolean"),
        ({"city": 3}, "city", "valid string"),
        ({"since": "31.12.2020"}, "since", "valid date"),
        ({"since": 1577836800}, "since", "valid date"),
        ({"seen": 1577836800}, "seen", "ISO 8601"),
        ({"seen": "1577836800"}, "seen", "ISO 8601"),
        ({"seen": "0001-01-01T00:00:00+14:00"}, "seen", "out of range"),
        ({"diagnosis": ["planted-secret"]}, "diagnosis", "valid string"),
        ({"extra": 1}, "extra", "no column of this model"),
    ],
)
def test_what_does_not_fit_is_422_and_names_the_field_and_never_the_value(
    client: TestClient, change: dict[str, Any], field: str, what: str
) -> None:
    answer = ask(client, ROW, ROW | change)
    assert answer.status_code == 422
    (finding,) = answer.json()["findings"]
    assert finding["where"] == f"instances[1].{field}"
    assert what in finding["what"]
    assert "planted-secret" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_an_absent_key_is_422_and_named(client: TestClient) -> None:
    for column in ROW:
        answer = ask(client, {key: value for key, value in ROW.items() if key != column})
        assert answer.status_code == 422
        assert [f["where"] for f in answer.json()["findings"]] == [f"instances[0].{column}"]


NAN = json.dumps({"instances": [ROW]}).replace("52000.5", "NaN").encode()


@pytest.mark.parametrize(
    ("body", "kind", "status", "what"),
    [
        (b"", "application/json", 422, "Invalid JSON"),
        (b"{", "application/json", 422, "Invalid JSON"),
        (b'{"instances": "\xff"}', "application/json", 422, "Invalid JSON"),
        (b'{"instances": ' + b"[" * 100_000, "application/json", 422, "recursion limit"),
        (b'{"instances": [' + b"9" * 5000 + b"]}", "application/json", 422, "out of range"),
        (NAN, "application/json", 422, "finite number"),
        (NAN.replace(b"NaN", b"1e999"), "application/json", 422, "finite number"),
        (NAN.replace(b"NaN", b"1" + b"0" * 400), "application/json", 422, "finite number"),
        (b"[]", "application/json", 422, "object"),
        (b"{}", "application/json", 422, 'a request is {\\"instances\\": ['),
        (b'{"instances": []}', "application/json", 422, "holds no row"),
        (b'{"instances": [' + b"{}," * MAX_ROWS + b"{}]}", "application/json", 422, "more than 1000 rows"),
        (b'{"instances": [{}], "parameters": {}}', "application/json", 422, "no column"),
        (b"instances=1", "application/x-www-form-urlencoded", 415, "application/json"),
        (b" " * (MAX_BODY + 1), "application/json", 413, "at most"),
    ],
)
def test_broken_bodies_are_refused_with_the_reason(
    client: TestClient, body: bytes, kind: str, status: int, what: str
) -> None:
    answer = client.post("/v1/predict", content=body, headers={"content-type": kind})
    assert answer.status_code == status
    assert what in answer.text
    assert len(answer.content) < 10_000


def test_unknown_paths_and_methods_are_answered_alike(client: TestClient) -> None:
    assert client.get("/nothing").json()["message"].startswith("Not Found")
    answer = client.get("/v1/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert 'retrain_requests_total{code="404",route="other"} 1.0' in client.get("/metrics").text


def test_the_openapi_page_has_an_example_that_works(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    request = schemas["PredictRequest"]
    (example,) = request["examples"]
    answer = client.post("/v1/predict", json=example)
    assert answer.status_code == 200
    for name, instance in (("PredictRequest", example), ("PredictAnswer", answer.json())):
        schema = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
        jsonschema.Draft202012Validator(schema).validate(instance)
    assert set(schemas["Instance"]["required"]) == set(ROW)
    assert schemas["Instance"]["additionalProperties"] is False


def test_requests_and_predictions_are_counted(client: TestClient) -> None:
    ask(client, ROW, ROW)
    ask(client, {})
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    metrics = client.get("/metrics").text
    assert 'retrain_requests_total{code="200",route="/v1/predict"} 1.0' in metrics
    assert 'retrain_requests_total{code="422",route="/v1/predict"} 1.0' in metrics
    assert 'retrain_request_seconds_count{route="/v1/predict"} 2.0' in metrics
    assert 'retrain_model_info{model="tiny",run_id="run-7",version="7"} 1.0' in metrics


class Odd(PackagedModel):
    """A model whose estimator misbehaves once it serves."""

    misbehave = None

    def answer(self, features: Any) -> Predictions:
        if isinstance(self.misbehave, Exception):
            raise self.misbehave
        predictions = super().answer(features)
        if self.misbehave and predictions.scores is not None:
            return Predictions(predictions.labels, np.full_like(predictions.scores, np.nan))
        return predictions


@pytest.mark.parametrize(("error", "status"), [(ValueError("planted-secret"), 422), (KeyError("planted-secret"), 500)])
def test_a_model_that_raises_is_an_answer_whose_text_and_log_hold_no_cell(
    model: PackagedModel,
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    odd = Odd(model.manifest, model.recipe, model.estimator, model.folder)
    client = TestClient(create_app(odd, IDENTITY))
    monkeypatch.setattr(Odd, "misbehave", error)
    answer = ask(client, ROW)
    assert answer.status_code == status
    assert "planted-secret" not in answer.text
    assert "planted-secret" not in caplog.text
    assert "test_app.py" in caplog.text, "the log names the place"


def test_a_probability_that_is_no_number_becomes_null_and_a_warning(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Odd(model.manifest, model.recipe, model.estimator, model.folder)
    client = TestClient(create_app(odd, IDENTITY))
    monkeypatch.setattr(Odd, "misbehave", True)
    answer = ask(client, ROW).json()
    assert answer["predictions"][0]["probabilities"] == {"no": None, "yes": None}
    assert [w["kind"] for w in answer["warnings"]] == ["no_number"]


def test_a_model_that_cannot_answer_its_own_example_does_not_come_up(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, "misbehave", KeyError("broken"))
    with pytest.raises(KeyError):
        create_app(Odd(model.manifest, model.recipe, model.estimator, model.folder), IDENTITY)
