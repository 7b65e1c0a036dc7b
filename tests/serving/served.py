"""A run that is served on a port of this machine, and what is asked of it."""

import json
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from llama_peft.inference.ask import LoadedRun


@dataclass(frozen=True)
class Served:
    """A run that is served on a port of this machine."""

    loaded: LoadedRun
    port: int
    kept: Path

    def ask(
        self,
        path: str,
        body: object = None,
        *,
        host: str = "127.0.0.1",
        kind: str = "application/json",
    ) -> tuple[int, dict[str, str], str]:
        """Return the status, the headers and the text of a reply; with a body it is posted."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        text = body if isinstance(body, str) else json.dumps(body)
        headers = {"Host": f"{host}:{self.port}", "Content-Type": kind}
        method, sent = ("GET", None) if body is None else ("POST", text)
        connection.request(method, path, sent, headers)
        reply = connection.getresponse()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read().decode()


INPUTS: dict[str, list[dict[str, str]]] = {
    "text": [{"text": "A warm film."}, {"text": "Not worth <b>the time</b>."}],
    "question": [{"question": "Who wrote it?", "context": "Ägnes 😀 wrote it in May."}],
}


def inputs_of(served: Served) -> list[dict[str, str]]:
    return INPUTS["text" if served.loaded.run.labels else "question"]
