"""The server: one model under several names, and faults that are planned ahead.

It speaks as vLLM does, or less: without token ids, without what vLLM has added, without the
log-probabilities of a prompt.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

EXTENSIONS = {"stop_token_ids", "repetition_penalty", "return_token_ids"}


@dataclass
class Fault:
    """What happens to the next `times` completions, after `skip` whole ones.

    how: an answer with the status and this text, a cut connection ("reset"), or a cut answer ("torn").
    """

    how: str = "answer"
    status: int = 500
    text: str = "<html>planned</html>"
    times: int = 1
    skip: int = 0


@dataclass
class Completions:
    model: Any
    tokenizer: Any
    names: tuple[str, ...] = ("served",)
    key: str | None = None
    takes_ids: bool = True
    extended: bool = True
    """Whether it takes what vLLM has added to the API; or else it refuses it."""
    tells_scores: bool = True
    adds_bos: bool = True
    counts: bool = True
    """Whether it tells how many tokens it read."""
    delay: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    """The body of every completion that was not a fault."""
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            begin = [self.tokenizer.bos_token_id] if self.adds_bos else []
            prompt = begin + self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        with self.lock, torch.inference_mode():
            written = self.generate(prompt, body)
            scores = self.scores(prompt + written) if body.get("echo") else None
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        for stop in body["stop"]:
            text = text.split(stop)[0]
        choice: dict[str, Any] = {"index": 0, "text": text}
        if self.extended and body.get("return_token_ids"):
            choice |= {"token_ids": written, "prompt_token_ids": prompt}
        if scores is not None and self.tells_scores:
            choice["logprobs"] = {"token_logprobs": scores, "tokens": []}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(written)}
        return {"choices": [choice], "system_fingerprint": "b1"} | (
            {"usage": usage} if self.counts else {}
        )

    def generate(self, prompt: list[int], body: dict[str, Any]) -> list[int]:
        def ended(ids: torch.Tensor, _: torch.Tensor, **__: Any) -> torch.Tensor:
            text = self.tokenizer.decode(ids[0, len(prompt) :])
            return torch.tensor([any(stop in text for stop in body["stop"])])

        ids = torch.tensor([prompt])
        bias = {(int(id_),): float(by) for id_, by in body.get("logit_bias", {}).items()}
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=body["max_tokens"],
            do_sample=False,
            eos_token_id=[self.tokenizer.eos_token_id, *body.get("stop_token_ids", ())],
            pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=[ended],
            sequence_bias=bias or None,
        )
        written: list[int] = output[0, len(prompt) :].tolist()
        return written

    def scores(self, ids: list[int]) -> list[float | None]:
        logits = self.model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
        found = logits.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
        return [None, *found.tolist()]

    def fault(self) -> Fault | None:
        for fault in self.faults:
            if fault.skip:
                fault.skip -= 1
            elif fault.times:
                fault.times -= 1
                return fault
        return None


@contextmanager
def serve(served: Completions, port: int = 0) -> Iterator[Completions]:
    """Serve until the block ends. port: 0 takes any."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"served": served}))
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Completions

    def do_GET(self) -> None:
        if self.path == "/version":
            self.answer(200, {"version": "0.33.0"})
        elif self.path == "/health":
            self.answer(200, {})
        elif self.path == "/v1/models" and self.is_known:
            names = [{"id": name, "owned_by": "loopback"} for name in self.served.names]
            self.answer(200, {"data": names})
        elif self.path == "/v1/models":
            self.answer(401, {"error": {"message": "Incorrect API key provided"}})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/completions":
            self.answer(404, {"detail": "Not Found"})
            return
        served = self.served
        served.at_once += 1
        served.most_at_once = max(served.most_at_once, served.at_once)
        time.sleep(served.delay)
        fault = served.fault()
        if fault is not None:
            self.fail(fault)
        elif not self.is_known:
            self.answer(401, {"error": {"message": "Incorrect API key provided"}})
        elif (isinstance(body["prompt"], list) and not served.takes_ids) or (
            EXTENSIONS & body.keys() and not served.extended
        ):
            self.answer(400, {"error": {"message": "Unrecognized request argument supplied"}})
        else:
            found = served.complete(body)
            served.asked.append(body)
            self.answer(200, found)
        served.at_once -= 1

    @property
    def is_known(self) -> bool:
        key = self.served.key
        return key is None or self.headers.get("Authorization") == f"Bearer {key}"

    def fail(self, fault: Fault) -> None:
        if fault.how == "reset":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self.send_response(fault.status if fault.how == "answer" else 200)
        self.send_header("Content-Length", str(len(fault.text) + 9 * (fault.how == "torn")))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(fault.text.encode())
        self.close_connection = fault.how == "torn"

    def answer(self, status: int, value: dict[str, Any]) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        pass
