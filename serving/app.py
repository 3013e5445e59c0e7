"""The HTTP API of one model version.  Called by `serving.server`, once a process."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from contracts.errors import DataError, Finding
from contracts.prediction_id import PredictionId
from serving.answer import answer
from serving.metrics import CONTENT_TYPE, PREDICT, Metrics
from serving.sampling import REQUEST_ID, is_sampled, request_key
from serving.schemas import MAX_BODY, ErrorAnswer, ModelAnswer, answer_model, findings, request_model

if TYPE_CHECKING:
    from serving.model import PackagedModel
    from serving.records import Records

LOG = logging.getLogger("retrain.server")

INLINE_ROWS = 32
"""Up to here a prediction is made on the event loop: handing it to a thread would cost more than it takes."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):  # noqa: N818  it is an answer
    """A request that gets no prediction."""

    def __init__(self, status: int, message: str, found: list[Finding] | None = None) -> None:
        super().__init__("; ".join((message, *map(str, found or ()))))
        self.status, self.message, self.findings = status, message, found or []


def create_app(model: PackagedModel, identity: ModelAnswer, records: Records | None = None) -> FastAPI:
    """Make the app of one model version; it has answered the package's example when this returns.

    Parameters
    ----------
    records
        What keeps sampled predictions; without it none is kept.

    Raises
    ------
    Exception
        Whatever loading or the first prediction raises: a model that cannot answer its own example must not serve.
    """
    requests, answers = request_model(model.manifest, model.example), answer_model(model.manifest)
    metrics = Metrics(identity, model.manifest, records)
    described = orjson.dumps(identity.model_dump(mode="json"))
    predicting = Predicting(model, identity, metrics, requests, records)
    predicting.answer(orjson.dumps({"instances": model.example}), predicting.new_id())

    # FastAPI's own page of docs comes from a CDN, which a closed network does not reach
    app = FastAPIOffline(
        title=identity.name,
        version=str(identity.version),
        description=f"Predictions of {identity.name}, version {identity.version}.",
    )
    app.add_middleware(Front, metrics=metrics, new_id=predicting.new_id)

    @app.post(PREDICT, summary="Predict rows", tags=["v1"])
    async def predict(request: Request) -> Response:
        body = await _body(request)
        key = None
        if records is not None:
            key = request_key(request.headers.get(REQUEST_ID), body)
            key = key if is_sampled(key, records.share) else None
        return Response(await predicting.respond(body, request.scope["retrain_id"], key), media_type="application/json")

    @app.get("/v1/model", summary="Which model answers", response_model=ModelAnswer, tags=["v1"])
    async def which() -> Response:
        return Response(described, media_type="application/json")

    @app.get("/healthz", summary="The process lives", tags=["operation"])
    @app.get("/readyz", summary="The model has answered its example and takes requests", tags=["operation"])
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Prometheus metrics", tags=["operation"])
    async def exposition() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _error(request.scope["retrain_id"], error.status, error.message, error.findings)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        response = _error(request.scope["retrain_id"], error.status_code, f"{error.detail}; see /docs")
        response.headers.update(error.headers or {})
        return response

    app.openapi = lambda: _openapi(app, requests, answers)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


class Predicting:
    """Bytes in, bytes out: parses, predicts, counts, and leaves what is sampled to be recorded."""

    def __init__(
        self,
        model: PackagedModel,
        identity: ModelAnswer,
        metrics: Metrics,
        request: type[Any],
        records: Records | None,
    ) -> None:
        self._model, self._identity, self._metrics, self._records = model, identity, metrics, records
        self._request: TypeAdapter[Any] = TypeAdapter(request)
        self._described = identity.model_dump(mode="json")
        # one thread: a user's own estimator need not bear two at once, and one core is what a request is worth
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._busy = 0

    def new_id(self) -> str:
        """Return a new prediction (and request) id: it holds the version, and no two are alike."""
        return str(PredictionId(self._identity.name, self._identity.version, uuid.uuid4().hex))

    async def respond(self, body: bytes, prediction_id: str, key: bytes | None = None) -> bytes:
        """Answer one request: small ones at once, large ones in the worker, so that the loop keeps answering others.

        Parameters
        ----------
        key
            Of a request that is to be recorded.
        """
        rows = self._parse(body)
        if len(rows) <= INLINE_ROWS and not self._busy:
            return self._predict(rows, prediction_id, key)
        self._busy += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, self._predict, rows, prediction_id, key)
        finally:
            self._busy -= 1

    def answer(self, body: bytes, prediction_id: str) -> bytes:
        """Answer one request here and now."""
        return self._predict(self._parse(body), prediction_id)

    def _parse(self, body: bytes) -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = self._request.validate_json(body).instances
        except ValidationError as error:
            count = error.error_count()
            message = "one thing does not fit" if count == 1 else f"{count} things do not fit"
            raise Refused(422, f"the request is not answered: {message}", findings(error)) from None
        return rows

    def _predict(self, rows: list[dict[str, Any]], prediction_id: str, key: bytes | None = None) -> bytes:
        try:
            result = answer(self._model, rows, prediction_id)
        except DataError as error:
            raise Refused(422, error.message, list(error.findings)) from None
        except (ValueError, ArithmeticError) as error:
            # such as "too large for float32" of a scaled feature; its text may hold cells, so only its place is told
            LOG.warning("%s: the model refused a request: %s", prediction_id, _place(error))
            raise Refused(422, f"the model cannot work with these values ({type(error).__name__})") from None
        self._metrics.predicted(result.predictions)
        if key is not None and self._records is not None:
            self._records.add(key, time.time(), result.predictions, rows)
        for column, cells in result.unseen.items():
            self._metrics.unseen(column, cells)
        return orjson.dumps(
            {
                "id": prediction_id,
                "predictions": result.predictions,
                "model": self._described,
                "warnings": [warning.model_dump(mode="json") for warning in result.warnings],
            }
        )


class Front:
    """Outermost ASGI layer: gives every answer its id, counts and times it, and turns a crash into an answer."""

    def __init__(
        self, app: Callable[[Message, Receive, Send], Awaitable[None]], *, metrics: Metrics, new_id: Callable[[], str]
    ) -> None:
        self._app, self._metrics, self._new_id = app, metrics, new_id

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        request_id = scope["retrain_id"] = self._new_id()

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, tell)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets an answer and the log its place
            LOG.error("%s: %s", request_id, _place(error))
            if not status:
                await _error(request_id, 500, "the server failed on this request; its log names the place")(
                    scope, receive, tell
                )
        route = scope.get("route")
        path = getattr(route, "path", "other")
        self._metrics.request(path, status, time.perf_counter() - started)


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(
            415, "content-type must be application/json", [Finding(where="content-type", what=f"is {kind[:100]}")]
        )
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY:
            body += part
        elif size > 16 * MAX_BODY:
            break
        # what is too much is read and dropped: closing over unread bytes would lose the answer
    if size > MAX_BODY:
        raise Refused(413, f"a request holds at most {MAX_BODY} bytes")
    return bytes(body)


def _error(request_id: str, status: int, message: str, found: list[Finding] | None = None) -> Response:
    content = ErrorAnswer(request_id=request_id, message=message, findings=tuple(found or ()))
    return Response(orjson.dumps(content.model_dump(mode="json")), status, media_type="application/json")


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames[-4:]))


def _openapi(app: FastAPI, request: type[Any], reply: type[Any]) -> dict[str, Any]:
    """Return FastAPI's document with the model's own request and answer in it; the server parses bodies itself."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        parts = document.setdefault("components", {}).setdefault("schemas", {})
        for kind in (request, reply, ErrorAnswer):
            schema = kind.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
            parts.update(schema.pop("$defs", {}))
            parts[kind.__name__] = schema
        operation = document["paths"]["/v1/predict"]["post"]
        operation["requestBody"] = {"required": True, "content": _json_content(request)}
        operation["responses"] = {
            "200": {"description": "Predictions, in the order of the instances", "content": _json_content(reply)},
            **{
                code: {"description": what, "content": _json_content(ErrorAnswer)}
                for code, what in (("413", "Too large"), ("415", "Not JSON"), ("422", "A field does not fit"))
            },
        }
        app.openapi_schema = document
    return app.openapi_schema


def _json_content(kind: type[Any]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}}
