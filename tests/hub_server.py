"""A small loopback Hub: what the real client asks before a download, answered over HTTP on 127.0.0.1."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextmanager
def loopback_hub(models: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Serve `models` (name -> {"gated": bool, "files": {name: bytes count}}); yields the endpoint's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.split("?")[0].removeprefix("/api/models/").split("/")
            model = models.get("/".join(parts[:2]))
            rest = parts[2:]
            if model is None:
                self.answer(404, {"error": "not found"}, "RepoNotFound")
            elif rest == ["auth-check"]:
                gated = model.get("gated", False)
                self.answer(403 if gated else 200, {}, "GatedRepo" if gated else None)
            elif rest[:1] == ["revision"] and rest[1:] != ["main"]:
                self.answer(404, {"error": "no such revision"}, "RevisionNotFound")
            else:
                self.answer(200, self.info("/".join(parts[:2]), model))

        def info(self, name: str, model: dict[str, Any]) -> dict[str, Any]:
            files = [{"rfilename": file, "size": size} for file, size in model["files"].items()]
            return {"id": name, "sha": "0" * 40, "siblings": files, "private": False}

        def answer(self, status: int, body: dict[str, Any], code: str | None = None) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *words: Any) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
