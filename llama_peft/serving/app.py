"""The page and its JSON endpoints.

    GET  /api/run         what the run reads and says
    POST /api/predict     {"inputs": [...]} -> {"replies": [{"tuned": {...}, "base": {...}}]}
    POST /api/feedback    {"given": {...}, "right": ...} -> the row that was kept

An address of another machine, a page of another site and a body of more than a megabyte get no
answer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
    answers = _Answers(tuned, untouched, feedback)

    async def run(_: Request) -> Response:
        return _json(answers.about())

    return Starlette(
        routes=[
            *(Route(path, _page) for path in _PAGES),
            Route("/api/run", run),
            Route("/api/predict", _posted(answers.predict), methods=["POST"]),
            Route("/api/feedback", _posted(answers.keep), methods=["POST"]),
        ],
        # The names of this machine only, so that no other site's name can lead here.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    )


class _Answers:
    """What the page is told. There is one model, so one request is answered at a time."""

    def __init__(self, tuned: LoadedRun, untouched: Untouched | None, feedback: Feedback) -> None:
        self._tuned, self._untouched, self._feedback = tuned, untouched, feedback
        self._lock = Lock()

    def about(self) -> dict[str, object]:
        run = self._tuned.run
        return {
            "name": run.recipe.name,
            "folder": run.folder.name,
            "base": run.recipe.model.model_name_or_path,
            "has_base": self._untouched is not None,
            "side": run.recipe.kind.side,
            "fields": fields_of(run),
            "labels": run.labels,
        }

    def predict(self, body: Mapping[str, object]) -> dict[str, object]:
        inputs = body.get("inputs")
        if not isinstance(inputs, list) or not 0 < len(inputs) <= MOST_INPUTS:
            raise UserError(f"inputs is a list of 1 to {MOST_INPUTS} texts or questions")
        examples = list(examples_of(self._tuned.run, inputs))
        with self._lock:
            replies = self._tuned.predict(inputs)
            said = [] if self._untouched is None else self._untouched(examples)
        plain = replace(self._tuned, threshold=None)  # nothing was fitted for the base
        base = {one.id: shown(plain.reply(one)) for one in said}
        return {
            "replies": [
                {"tuned": shown(reply), "base": base.get(example.id)}
                for reply, example in zip(replies, examples, strict=True)
            ]
        }

    def keep(self, body: Mapping[str, object]) -> dict[str, object]:
        given = body.get("given")
        if not isinstance(given, Mapping) or "right" not in body:
            raise UserError("a correction is an object with given and right")
        with self._lock:
            return self._feedback.keep(given, body["right"])


def _posted(
    answer: Callable[[Mapping[str, object]], dict[str, object]],
) -> Callable[..., object]:
    """Return the endpoint that answers a JSON object with another one."""

    async def endpoint(request: Request) -> Response:
        try:
            body = await _body(request)
            return _json(await run_in_threadpool(answer, body))
        except UserError as error:
            return _json({"error": printable("; ".join(error.args))}, 400)

    return endpoint


async def _page(request: Request) -> Response:
    return FileResponse(Path(__file__).with_name(_PAGES[request.url.path]), headers=_HEADERS)


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
