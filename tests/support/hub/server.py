"""A small Hub on 127.0.0.1, which answers the real client before and during downloads and pushes.

Repositories are lists of commits, a commit a map from names to bytes. Large files go the LFS way
(batch, PUT), commits come as NDJSON. Faults are planned ahead: the next requests to a path are
refused, answered late, or cut off.
"""

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

File = bytes | int
"""The bytes of a file; for files that nobody reads, only their number."""


@dataclass
class Commit:
    sha: str
    files: dict[str, File]


@dataclass
class Repo:
    commits: list[Commit]
    gated: bool = False
    private: bool = False

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.head
        return next((one for one in self.commits if one.sha == revision), None)

    def add(self, files: dict[str, File]) -> Commit:
        number = len(self.commits)
        told = json.dumps([number, sorted((name, str(file)[:99]) for name, file in files.items())])
        self.commits.append(Commit(hashlib.sha1(told.encode()).hexdigest(), files))
        return self.head


@dataclass
class Fault:
    """A fault of the next `times` requests that name `path` in their path, or as the name in their
    body.

    how: an answer, silence ("hang"), a cut ("reset"), or a commit by somebody else just before
    ("meddle").
    """

    path: str
    status: int = 0
    times: int = 1
    how: str = "answer"
    headers: dict[str, str] = field(default_factory=dict)
    late: bool = False
    """Whether the request is carried out before its answer is lost."""


@dataclass
class Hub:
    endpoint: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    users: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By token: {"name", "role", "may_read": gated or private repositories of others}."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""

    def add(self, name: str, files: dict[str, File], **settings: Any) -> Commit:
        self.repos[name] = Repo([], **settings)
        return self.repos[name].add(dict(files))

    def add_folder(self, name: str, folder: Path) -> Commit:
        return self.add(name, {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()})


def size(file: File) -> int:
    return file if isinstance(file, int) else len(file)


def etag(name: str, file: bytes) -> str:
    """Git's id of a file; the sha256 of a large one."""
    if is_large(name):
        return hashlib.sha256(file).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(file) + file).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve the hub's repositories until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def loopback_hub(models: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Serve `models` (name -> {"gated": bool, "files": {name: bytes or their number}}); yields the
    endpoint's address.
    """
    hub = Hub()
    for name, model in models.items():
        hub.add(name, model["files"], gated=model.get("gated", False))
        hub.repos[name].head.sha = "0" * 40
    with serve(hub):
        yield hub.endpoint


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.handle_one()

    def do_GET(self) -> None:
        self.handle_one()

    def do_POST(self) -> None:
        self.handle_one()

    def do_PUT(self) -> None:
        self.handle_one()

    def handle_one(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.body = self.read()
        self.hub.asked.append(f"{self.command} {path}")
        fault = self.fault(path)
        if fault is not None and fault.how == "meddle":
            repo = next(repo for name, repo in self.hub.repos.items() if name in path)
            repo.add(repo.head.files | {"README.md": b"somebody else's"})
            fault = None
        if fault is None:
            self.route(path.split("/"))
            return
        if fault.late:
            self.muted = True
            self.route(path.split("/"))
            self.muted = False
        if fault.how == "hang":
            time.sleep(20)
        if fault.how in ("hang", "reset"):
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.raw(fault.status, b"<html>planned</html>", **fault.headers)

    muted = False

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while length := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            where = path + (
                f" {json.loads(self.body)['name']}" if path == "api/repos/create" else ""
            )
            if fault.times and fault.path in where:
                fault.times -= 1
                return fault
        return None

    def route(self, parts: list[str]) -> None:
        if self.hub.users and "Authorization" in self.headers and self.user is None:
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
        elif parts == ["api", "whoami-v2"]:
            self.whoami()
        elif parts == ["api", "repos", "create"]:
            self.create()
        elif parts == ["api", "validate-yaml"]:
            self.answer(200, {"errors": [], "warnings": []})
        elif parts[:2] == ["api", "models"]:
            self.model("/".join(parts[2:4]), parts[4:])
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            self.batch("/".join(parts[:2]).removesuffix(".git"))
        elif parts[0] == "lfs":
            self.hub.blobs[parts[1]] = self.body
            self.answer(200, {})
        elif "resolve" in parts[:3]:
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.answer(404, {"error": "no such page"})

    @property
    def user(self) -> dict[str, Any] | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.hub.users.get(token)

    def may_read(self, name: str, repo: Repo) -> bool:
        user = self.user
        known = user is not None and (
            name.split("/")[0] == user["name"] or name in user.get("may_read", ())
        )
        return known or not (repo.gated or repo.private)

    def may_write(self, name: str) -> bool:
        user = self.user
        return user is not None and user["role"] == "write" and name.split("/")[0] == user["name"]

    def whoami(self) -> None:
        user = self.user
        if user is None:
            self.answer(401, {"error": "Invalid credentials in Authorization header"})
            return
        auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": user["role"]}}
        self.answer(200, {"type": "user", "name": user["name"], "orgs": [], "auth": auth})

    def create(self) -> None:
        asked = json.loads(self.body)
        user = self.user
        owner = asked.get("organization") or (user or {}).get("name")
        name = f"{owner}/{asked['name']}"
        if user is None or not self.may_write(name):
            self.answer(403 if user else 401, {"error": "no right to create here"})
        elif name in self.hub.repos:
            self.answer(
                409, {"error": "You already created this model repo", "url": self.url(name)}
            )
        else:
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
            self.answer(200, {"url": self.url(name), "name": name})

    def url(self, name: str) -> str:
        return f"{self.hub.endpoint}/{name}"

    def refused(self, name: str) -> bool:
        """Whether the repository is not there, or not for this user; answers if so."""
        repo = self.hub.repos.get(name)
        if repo is None:
            self.answer(404, {"error": "not found"}, **{"X-Error-Code": "RepoNotFound"})
        elif not self.may_read(name, repo):
            gated = repo.gated and not repo.private
            status = 404 if not gated else 403 if self.user or self.command == "GET" else 401
            code = "GatedRepo" if gated else "RepoNotFound"
            self.answer(status, {"error": "no access"}, **{"X-Error-Code": code})
        else:
            return False
        return True

    def model(self, name: str, rest: list[str]) -> None:
        repo = self.hub.repos.get(name)
        if repo is not None and repo.gated and not rest:
            self.answer(
                200, self.info(name, repo.head)
            )  # what a gated repository is called, all may see
            return
        if self.refused(name):
            return
        assert repo is not None
        if rest[:1] == ["auth-check"]:
            may = rest == ["auth-check"] or self.may_write(name)
            self.answer(200 if may else 403, {})
            return
        commit = repo.at(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            self.answer(404, {"error": "none"}, **{"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"] and len(rest) == 2:
            self.answer(200, [entry(path, file) for path, file in sorted(commit.files.items())])
        elif rest[:1] == ["tree"]:
            self.answer(404, {"error": "none"}, **{"X-Error-Code": "EntryNotFound"})
        elif rest[:1] == ["preupload"]:
            self.preupload(commit)
        elif rest[:1] == ["commit"]:
            self.commit(name, repo)
        else:
            self.answer(200, self.info(name, commit))

    def info(self, name: str, commit: Commit) -> dict[str, Any]:
        files = [
            {"rfilename": path, "size": size(file)} for path, file in sorted(commit.files.items())
        ]
        private = self.hub.repos[name].private
        return {"id": name, "sha": commit.sha, "siblings": files, "private": private}

    def preupload(self, commit: Commit) -> None:
        found = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            known = commit.files.get(name)
            one = {
                "path": name,
                "uploadMode": "lfs" if is_large(name) else "regular",
                "shouldIgnore": False,
            }
            if isinstance(known, bytes):
                one["oid"] = etag(name, known)
            found.append(one)
        self.answer(200, {"files": found})

    def batch(self, name: str) -> None:
        if not self.may_write(name):
            self.answer(403, {"error": "no right to write"})
            return
        objects = []
        for one in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/lfs/{one['oid']}"
            known = {} if one["oid"] in self.hub.blobs else {"actions": {"upload": {"href": href}}}
            objects.append(one | known)
        self.answer(200, {"transfer": "basic", "objects": objects})

    def commit(self, name: str, repo: Repo) -> None:
        if not self.may_write(name):
            self.answer(403, {"error": "no right to write"})
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent and not repo.head.sha.startswith(parent):
            self.answer(
                412, {"error": "A commit has happened since. Please refresh and try again."}
            )
            return
        files = dict(repo.head.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                del files[value["path"]]
        made = repo.add(files)
        url = f"{self.url(name)}/commit/{made.sha}"
        self.answer(200, {"success": True, "commitOid": made.sha, "commitUrl": url})

    def resolve(self, name: str, revision: str, path: str) -> None:
        if self.refused(name):
            return
        commit = self.hub.repos[name].at(revision)
        if commit is None:
            self.answer(404, {"error": "none"}, **{"X-Error-Code": "RevisionNotFound"})
            return
        headers = {"X-Repo-Commit": commit.sha}
        file = commit.files.get(path)
        if not isinstance(file, bytes):
            self.answer(404, {"error": "none"}, **headers, **{"X-Error-Code": "EntryNotFound"})
            return
        self.raw(200, file, **headers, ETag=f'"{etag(path, file)}"')

    def answer(self, status: int, body: Any, **headers: str) -> None:
        self.raw(
            status, json.dumps(body).encode(), **{"Content-Type": "application/json"}, **headers
        )

    def raw(self, status: int, body: bytes, **headers: str) -> None:
        if self.muted:
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Nothing on the terminal."""


def entry(path: str, file: File) -> dict[str, Any]:
    """A line of a tree."""
    found: dict[str, Any] = {"type": "file", "path": path, "size": size(file), "oid": "0" * 40}
    if isinstance(file, bytes):
        found["oid"] = etag(path, file) if not is_large(path) else "0" * 40
        if is_large(path):
            found["lfs"] = {"oid": etag(path, file), "size": len(file), "pointerSize": 130}
    return found
