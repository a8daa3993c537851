"""A server on this machine that speaks the hub's protocol, with faults on demand."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pth")  # as the hub's own .gitattributes


class HubServer(ThreadingHTTPServer):
    """Serves `repos`, {owner/name: {file: bytes}}, each at one commit.

    gated: repositories that only those with the token "good" may read; break_after: ends each
    answer on a large file after so many bytes; says: answers everything with these bytes; serves:
    the content of large files, whatever was promised. requests: (method, path, Range, token).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.gated, self.requests = {}, set(), []
        self.break_after = self.says = self.serves = None
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo):
        files = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in repo.items())
        return hashlib.sha1(repr(files).encode()).hexdigest()

    def asked(self, method="GET", ending=""):
        return [r for r in self.requests if r[0] == method and r[1].endswith(ending)]


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        server, path = self.server, unquote(urlsplit(self.path).path)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        server.requests.append((self.command, path, self.headers["Range"], token))
        if server.says is not None:
            return self.send(200, server.says, {"Content-Type": "text/html"})
        api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        files = server.repos.get(f"{owner}/{name}")
        if files is None:
            return self.refuse(401, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", server.commit(files)):
            return self.refuse(404, "RevisionNotFound")
        if api:
            return self.describe(f"{owner}/{name}", files)
        if f"{owner}/{name}" in server.gated and token != "good":
            return self.refuse(403 if token else 401, "GatedRepo")
        if rest[2] not in files:
            return self.refuse(404, "EntryNotFound")
        return self.file(rest[2], files)

    def describe(self, repo, files):
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
        told = {"id": repo, "sha": self.server.commit(files), "siblings": siblings}
        told |= {"modelId": repo, "private": False, "gated": repo in self.server.gated}
        self.send(200, json.dumps(told | {"tags": [], "downloads": 0, "likes": 0}).encode())

    def file(self, name, files):
        data, server = files[name], self.server
        large = name.endswith(LARGE)
        etag = (hashlib.sha256 if large else hashlib.sha1)(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": server.commit(files)}
        if large:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            data = data if server.serves is None else server.serves
        start = int((self.headers["Range"] or "bytes=0-")[6:].split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = server.break_after if large else None
        self.send(206 if start else 200, data[start:], headers, cut)

    def refuse(self, status, code):
        self.send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def send(self, status, body, headers=(), cut=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    def log_message(self, *_):
        pass
