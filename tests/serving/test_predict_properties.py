"""Whatever is sent to /v1/predict, the answer is a prediction or says what is wrong: never a 5xx, never broken JSON."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.app import create_app
from serving.model import PackagedModel
from serving.schemas import ModelAnswer
from tests.model_packages import ROW, package

IDENTITY = ModelAnswer(name="tiny", version=7, run_id="r", dataset_sha256="d" * 64, since=datetime.now(UTC))
GENTLE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fitting: dict[str, st.SearchStrategy[Any]] = {
    "age": st.integers(-(2**63), 2**63 - 1),
    "income per year": st.floats(-3.4e38, 3.4e38) | st.integers(-(10**30), 10**30),
    "member": st.booleans(),
    "city": st.text(),
    "diagnosis": st.text(),
    "since": st.dates().map(str),
    "seen": st.datetimes(timezones=st.just(UTC) | st.timezones()).map(lambda d: d.isoformat())
    | st.datetimes().map(str),
}
good_rows = st.fixed_dictionaries({name: st.none() | cell for name, cell in fitting.items()})
rows = good_rows | st.fixed_dictionaries(
    {}, optional={name: cell | anything for name, cell in fitting.items()} | {"extra": anything}
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    model = PackagedModel.load(package(tmp_path_factory.mktemp("properties") / "model"))
    return TestClient(create_app(model, IDENTITY), raise_server_exceptions=False)


def post(client: TestClient, body: bytes, kind: str = "application/json") -> Any:
    answer = client.post("/v1/predict", content=body, headers={"content-type": kind})
    content = orjson.loads(answer.content)  # strict JSON: no NaN, no broken UTF-8
    if answer.status_code == 200:
        assert content["id"].startswith("tiny-7-")
    else:
        assert answer.status_code in (413, 415, 422), answer.text
        assert content["message"]
        assert content["request_id"]
    return answer


@GENTLE
@given(instances=st.lists(good_rows, min_size=1, max_size=5))
def test_rows_that_fit_are_answered(client: TestClient, instances: list[dict[str, Any]]) -> None:
    answer = post(client, json.dumps({"instances": instances}).encode())
    if answer.status_code != 200:  # an offset may move a moment out of the years 1 to 9999
        assert all(f["where"].endswith("seen") for f in answer.json()["findings"]), answer.text
        return
    predictions = answer.json()["predictions"]
    assert len(predictions) == len(instances)
    assert all(math.isclose(sum(p["probabilities"].values()), 1) for p in predictions)


@GENTLE
@given(instances=st.lists(rows | anything, max_size=4) | anything)
def test_rows_of_any_shape_get_an_answer(client: TestClient, instances: Any) -> None:
    post(client, json.dumps({"instances": instances}).encode())


@GENTLE
@given(data=st.data())
def test_a_mangled_body_gets_an_answer(client: TestClient, data: st.DataObject) -> None:
    body = bytearray(json.dumps({"instances": [ROW]}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(at, len(body)))
        body[at:end] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b'"', b"{", b"NaN", b"\\ud800", b"\x00", b"1e999"])
        )
    post(client, bytes(body))


@GENTLE
@given(body=st.binary(max_size=50), kind=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_any_bytes_under_any_content_type_get_an_answer(client: TestClient, body: bytes, kind: str) -> None:
    post(client, body, kind.strip())


number = st.sampled_from(
    ["0", "-0", "1e400", "-1e400", "1" * 400, "NaN", "-Infinity", "0x1F", "01", "1.", ".5", "1e", "9" * 19, "2e-400"]
)
text = st.text(st.characters(codec="utf-8"), max_size=8).map(json.dumps) | st.sampled_from(
    ['"\\ud800"', '"\\u0000"', "'a'", '"\\x41"', '"a', '"\t"', "true", "nul", ""]
)
name = st.sampled_from([*fitting, "instances", "extra", ""]).map(json.dumps)


@st.composite
def spelled(draw: st.DrawFn) -> str:
    """A request as text: numbers and texts that JSON knows or not, names that stand twice, commas too many."""
    pair = st.tuples(name, number | text).map(": ".join)
    rows = draw(st.lists(st.lists(pair, max_size=12).map(lambda pairs: "{" + ", ".join(pairs) + "}"), max_size=4))
    comma = draw(st.sampled_from([",", ",", ",", ",,", ""]))
    body = '{"instances": [' + comma.join(rows) + "]}"
    return draw(st.sampled_from([body, body, body + body, body[:-1] + ', "instances": []}', f"// all\n{body}"]))


@GENTLE
@given(body=spelled(), encoding=st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32-le", "utf-7"]))
def test_text_that_is_nearly_json_gets_an_answer(client: TestClient, body: str, encoding: str) -> None:
    post(client, body.encode(encoding, errors="replace"))


DEEP = 100_000
EXTREME = {
    "no byte": b"",
    "lists in lists": b"[" * DEEP + b"]" * DEEP,
    "objects in objects": b'{"instances":' * DEEP + b"1" + b"}" * DEEP,
    "a deep cell": b'{"instances": [{"age": ' + b"[" * DEEP + b"]" * DEEP + b"}]}",
    "no instances": b'{"instances": []}',
    "many empty instances": b'{"instances": [' + b",".join([b"{}"] * 1000) + b"]}",
    "an instance too many": json.dumps({"instances": [ROW] * 1001}).encode(),
    "many columns": json.dumps({"instances": [{f"c{i}": i for i in range(50_000)}]}).encode(),
    "a name of a megabyte": json.dumps({"instances": [{"c" * 2**20: 1}]}).encode(),
    "a text of a megabyte": json.dumps({"instances": [ROW | {"city": "x" * 2**20}]}).encode(),
    "a number of a megabyte": b'{"instances": [{"age": ' + b"9" * 2**20 + b"}]}",
    "five megabytes": b" " * (5 * 2**20),
}


@pytest.mark.parametrize("body", EXTREME.values(), ids=list(EXTREME))
def test_what_is_deep_or_huge_gets_an_answer_of_a_few_kilobytes(client: TestClient, body: bytes) -> None:
    answer = post(client, body)

    assert answer.status_code in (200, 413, 422)
    assert len(answer.content) < 20_000 or answer.status_code == 200
