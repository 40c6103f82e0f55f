"""A small fake of the Hugging Face Hub, because tests must not depend on the real one.

It answers the requests of `hf download` (huggingface_hub 0.36.2 and 2.4.0) to a Hub without Xet storage, as in that
client's source (hf_api.py `model_info`, `list_repo_tree`; file_download.py `get_hf_file_metadata`, `http_get`;
utils/_http.py `hf_raise_for_status`):

    GET  /api/models/REPO[/revision/REV][?blobs=true]   commit, names; sizes and hashes with blobs=true
    GET  /api/models/REPO/tree/REV                      the same as a tree
    HEAD|GET /REPO/resolve/REV/FILE                     small file: content; large file: 302 to the CDN
    GET  /SHA256 on the CDN's own port                  content, with Range; rejects an Authorization header

A gated model's file list is public and its files are not. Unknown repositories answer 401 without a token, else 404.
`fail` and `cut` inject faults; `requests` records every request. In a container:

    python3 standin.py --port 8000 --cdn-port 8001 --model org/name=/folder    (log: GET /_requests)
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHUNK = 64 * 1024
LARGE = 256 * 1024


@dataclasses.dataclass
class Request:
    """One request as the fake received it; `sent` is the number of body bytes that were sent."""

    where: str  # "hub" or "cdn"
    method: str
    path: str
    range: str
    authorized: bool
    status: int = 0
    sent: int = 0


@dataclasses.dataclass
class Fault:
    """The next `times` requests whose path contains `path` get `status`, or are cut after `after` bytes."""

    path: str
    status: int = 0
    after: int = 0
    times: int = 1
    headers: dict[str, str] = dataclasses.field(default_factory=dict)


class File:
    """One file of a snapshot, with its two ids on the Hub: the git hash and, for large files, the SHA-256."""

    def __init__(self, path: Path, name: str) -> None:
        data = path.read_bytes()
        self.path, self.name, self.size = path, name, len(data)
        self.blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        self.large = len(data) > LARGE or path.suffix in {".safetensors", ".bin", ".pth", ".gguf"}
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.etag = self.sha256 if self.large else self.blob

    def entry(self) -> dict[str, object]:
        lfs = {"lfs": {"oid": self.sha256, "size": self.size, "pointerSize": 134}} if self.large else {}
        return {"type": "file", "oid": self.blob, "size": self.size, "path": self.name, **lfs}


class Snapshot:
    def __init__(self, folder: Path) -> None:
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        self.files = {str(p.relative_to(folder)): File(p, str(p.relative_to(folder))) for p in paths}
        listing = "\n".join(f"{name} {file.blob}" for name, file in self.files.items())
        self.commit = hashlib.sha1(listing.encode()).hexdigest()


class Hub:
    """The two servers: the Hub and its CDN.

    - `models`: repository id -> folder, or -> {branch: folder}.
    - `gated`: ids that need a token with access.
    - `tokens`: token -> whether its account accepted the licenses.
    """

    def __init__(
        self,
        models: Mapping[str, Path | Mapping[str, Path]],
        gated: tuple[str, ...] = (),
        tokens: Mapping[str, bool] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        cdn_port: int = 0,
    ) -> None:
        self.gated, self.tokens = gated, dict(tokens or {})
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.rate = 0  # bytes per second, 0 = unlimited
        self.repos: dict[str, dict[str, Snapshot]] = {}
        for repo, folders in models.items():
            self.publish(repo, folders)
        self._lock = threading.Lock()
        self._servers = [
            self._listen(host, port, type("HubHandler", (_HubHandler,), {"hub": self})),
            self._listen(host, cdn_port, type("CdnHandler", (_CdnHandler,), {"hub": self})),
        ]
        self.port, self.cdn_port = (server.server_address[1] for server in self._servers)
        self.url = f"http://{host}:{self.port}"

    @staticmethod
    def _listen(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer((host, port), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def publish(self, repo: str, folders: Path | Mapping[str, Path]) -> None:
        """Adds a repository, or pushes new commits to it; older commits stay available by their hash."""
        branches = folders if isinstance(folders, Mapping) else {"main": folders}
        known = self.repos.setdefault(repo, {})
        for branch, folder in branches.items():
            snapshot = Snapshot(folder)
            known[branch] = known[snapshot.commit] = snapshot

    def commit(self, repo: str, revision: str = "main") -> str:
        return self.repos[repo][revision].commit

    def fail(self, status: int, path: str = "", times: int = 1, **headers: str) -> None:
        self.faults.append(Fault(path, status=status, times=times, headers=headers))

    def cut(self, after: int, path: str = "", times: int = 1) -> None:
        self.faults.append(Fault(path, after=after, times=times))

    def sent(self, where: str = "cdn") -> int:
        return sum(request.sent for request in self.requests if request.where == where)

    def note(self, request: Request) -> Fault | None:
        """Records a request and returns the fault to inject, if any."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                wants_body = fault.status or (request.method == "GET" and request.where == "cdn")
                if fault.times and wants_body and fault.path in request.path:
                    fault.times -= 1
                    return fault
        return None

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    where = "hub"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/_requests":
            return self.send_json([dataclasses.asdict(request) for request in self.hub.requests])
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        range_header = self.headers.get("Range", "")
        self.seen = Request(self.where, self.command, unquote(self.path), range_header, bool(self.token))
        self.fault = self.hub.note(self.seen)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.fault and self.fault.status:
                return self.refuse(self.fault.status, "", "injected fault", self.fault.headers)
            self.answer()

    do_HEAD = do_GET

    def answer(self) -> None:
        raise NotImplementedError

    def head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        if hasattr(self, "seen"):
            self.seen.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_json(self, data: object) -> None:
        self.reply(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        error_headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.reply(
            status, json.dumps({"error": message}).encode(), {"Content-Type": "application/json", **error_headers}
        )

    def send_file(self, file: File, headers: Mapping[str, str]) -> None:
        first = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", self.seen.range)) else 0
        extra = {"Content-Range": f"bytes {first}-{file.size - 1}/{file.size}"} if match else {}
        self.head(206 if match else 200, file.size - first, {"Accept-Ranges": "bytes", **headers, **extra})
        if self.command == "HEAD":
            return
        left = self.fault.after if self.fault else file.size
        with file.path.open("rb") as source:
            source.seek(first)
            while chunk := source.read(min(CHUNK, left)):
                self.wfile.write(chunk)
                self.seen.sent += len(chunk)
                left -= len(chunk)
                if self.hub.rate:
                    time.sleep(len(chunk) / self.hub.rate)
        if self.fault:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        pass


class _HubHandler(_Handler):
    def answer(self) -> None:
        url = urlsplit(self.path)
        path = url.path.strip("/")
        if match := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            repo, kind, revision = match[1], match[2], unquote(match[3] or "main")
            if snapshot := self.snapshot(repo, revision):
                tree = [file.entry() for file in snapshot.files.values()]
                self.send_json(tree if kind == "tree" else self.info(repo, snapshot, "blobs" in url.query))
        elif match := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if snapshot := self.snapshot(match[1], unquote(match[2])):
                self.resolve(match[1], snapshot, unquote(match[3]))
        else:
            self.refuse(404, "", "Sorry, we can't find the page you are looking for.")

    def snapshot(self, repo: str, revision: str) -> Snapshot | None:
        """The requested snapshot; None if an error was sent instead."""
        if self.token and self.token not in self.hub.tokens:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo not in self.hub.repos:
            # without a token, private and missing repositories answer alike ("401 is misleading", utils/_http.py)
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
        elif revision not in self.hub.repos[repo]:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return self.hub.repos[repo][revision]
        return None

    def info(self, repo: str, snapshot: Snapshot, blobs: bool) -> dict[str, object]:
        siblings = []
        for file in snapshot.files.values():
            sizes: dict[str, object] = {"size": file.size, "blobId": file.blob}
            if file.large:
                sizes["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            siblings.append({"rfilename": file.name, **(sizes if blobs else {})})
        return {"id": repo, "sha": snapshot.commit, "gated": repo in self.hub.gated, "siblings": siblings}

    def resolve(self, repo: str, snapshot: Snapshot, name: str) -> None:
        commit = {"X-Repo-Commit": snapshot.commit}
        if repo in self.hub.gated and not self.hub.tokens.get(self.token):
            message = f"Access to model {repo} is restricted"
            return self.refuse(403 if self.token else 401, "GatedRepo", message, commit)
        if name not in snapshot.files:
            return self.refuse(404, "EntryNotFound", "Entry not found", commit)
        file = snapshot.files[name]
        if not file.large:
            return self.send_file(file, {"ETag": f'"{file.etag}"', **commit})
        host = self.headers.get("Host", "127.0.0.1").rpartition(":")[0]  # the host name that the client used
        linked = {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        self.reply(302, b"", {"Location": f"http://{host}:{self.hub.cdn_port}/{file.sha256}", **linked, **commit})


class _CdnHandler(_Handler):
    where = "cdn"

    def answer(self) -> None:
        if self.token:  # a signed URL needs none, and a token must not leave the Hub's own host
            return self.refuse(400, "", "Only one auth mechanism allowed")
        snapshots = [snapshot for branches in self.hub.repos.values() for snapshot in branches.values()]
        files = {file.sha256: file for snapshot in snapshots for file in snapshot.files.values()}
        file = files[self.path.strip("/")]
        self.send_file(file, {"ETag": f'"{file.sha256}"'})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--cdn-port", type=int, default=8001)
    parser.add_argument("--model", action="append", required=True, help="REPO=FOLDER")
    parser.add_argument("--gated", action="append", default=[])
    parser.add_argument("--token", action="append", default=[], help="a token whose account accepted all licenses")
    args = parser.parse_args()
    served = {repo: Path(folder) for repo, _, folder in (model.partition("=") for model in args.model)}
    tokens = dict.fromkeys(args.token, True)
    Hub(served, tuple(args.gated), tokens, "0.0.0.0", args.port, args.cdn_port)
    threading.Event().wait()
