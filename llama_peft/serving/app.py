"""The page and its JSON endpoints.

    GET  /api/run         what the run reads and says
    POST /api/predict     {"inputs": [...]} -> {"replies": [{"tuned": {...}, "base": {...}}]}
    POST /api/feedback    {"given": {...}, "right": ...} -> the row that was kept

An address of another machine, a page of another site and a body of more than a megabyte get no
answer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from llama_peft.data import Example
from llama_peft.errors import UserError
from llama_peft.inference.ask import LoadedRun, Reply, examples_of
from llama_peft.inference.predict import Prediction
from llama_peft.serving.feedback import Feedback, fields_of
from llama_peft.system.terminal import printable

MOST_BYTES = 1 << 20
MOST_INPUTS = 256
"""Inputs of one request: a page waits for them."""
_PAGES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Untouched = Callable[[Sequence[Example]], list[Prediction]]
"""Returns what the base without training says of examples, in any order."""


def make_app(tuned: LoadedRun, untouched: Untouched | None, feedback: Feedback) -> Starlette:
    """Return the application. untouched: None leaves the base out."""
    lock = Lock()  # one model, one request at a time

    def about() -> dict[str, object]:
        run = tuned.run
        return {
            "name": run.recipe.name,
            "folder": run.folder.name,
            "base": run.recipe.model.model_name_or_path,
            "has_base": untouched is not None,
            "side": run.recipe.kind.side,
            "fields": fields_of(run),
            "labels": run.labels,
        }

    def predict(body: Mapping[str, object]) -> dict[str, object]:
        inputs = body.get("inputs")
        if not isinstance(inputs, list) or not 0 < len(inputs) <= MOST_INPUTS:
            raise UserError(f"inputs is a list of 1 to {MOST_INPUTS} texts or questions")
        examples = list(examples_of(tuned.run, inputs))
        with lock:
            replies = tuned.predict(inputs)
            said = [] if untouched is None else untouched(examples)
        plain = {one.id: _plain(one, tuned.run.labels) for one in said}
        return {
            "replies": [
                {"tuned": shown(reply), "base": plain.get(example.id)}
                for reply, example in zip(replies, examples, strict=True)
            ]
        }

    def keep(body: Mapping[str, object]) -> dict[str, object]:
        given = body.get("given")
        if not isinstance(given, Mapping) or "right" not in body:
            raise UserError("a correction is an object with given and right")
        with lock:
            return feedback.keep(given, body["right"])

    def posted(
        answer: Callable[[Mapping[str, object]], dict[str, object]],
    ) -> Callable[..., object]:
        async def endpoint(request: Request) -> Response:
            try:
                body = await _body(request)
                return _json(await run_in_threadpool(answer, body))
            except UserError as error:
                return _json({"error": printable("; ".join(error.args))}, 400)

        return endpoint

    async def page(request: Request) -> Response:
        return FileResponse(Path(__file__).with_name(_PAGES[request.url.path]), headers=_HEADERS)

    async def run(_: Request) -> Response:
        return _json(about())

    return Starlette(
        routes=[
            *(Route(path, page) for path in _PAGES),
            Route("/api/run", run),
            Route("/api/predict", posted(predict), methods=["POST"]),
            Route("/api/feedback", posted(keep), methods=["POST"]),
        ],
        # The names of this machine only, so that no other site's name can lead here.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


async def _body(request: Request) -> Mapping[str, object]:
    """Return the JSON object of a request.

    A page of another site cannot send this type without asking first, and is never allowed to.
    """
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        raise UserError("send JSON, with the header Content-Type: application/json")
    read = bytearray()
    async for portion in request.stream():
        read += portion
        if len(read) > MOST_BYTES:
            raise UserError(f"a request holds at most {MOST_BYTES:,} bytes")
    try:
        body = json.loads(read)
    except (ValueError, RecursionError):
        raise UserError("this is not JSON") from None
    if not isinstance(body, dict):
        raise UserError("send a JSON object")
    return body


def _json(content: Mapping[str, object], status: int = 200) -> Response:
    return JSONResponse(content, status, headers=_HEADERS)


def shown(reply: Reply) -> dict[str, object]:
    """Return what the page is told of a reply."""
    return {
        "prediction": reply.prediction,
        "probabilities": reply.probabilities,
        "no_answer_probability": reply.no_answer_probability,
        "start": reply.start,
    }


def _plain(said: Prediction, labels: Sequence[str]) -> dict[str, object]:
    chances = zip(labels, said.probabilities or (), strict=bool(said.probabilities))
    return {
        "prediction": said.prediction,
        "probabilities": dict(chances),
        "no_answer_probability": said.no_answer_probability,
        "start": said.start if said.prediction else None,
    }
