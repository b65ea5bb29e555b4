"""A Hugging Face hub on this machine: as much of its HTTP interface as uploads and downloads of models use."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Repositories are dicts of file name -> bytes, in `server.repos`; requests are listed in `server.requests`."""

    def reply(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value, status: int = 200) -> None:
        self.reply(json.dumps(value).encode(), status, Content_Type="application/json")

    def missing(self) -> None:
        self.reply(b"{}", 404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(("POST", self.path))
        parts = self.path.split("/")
        if self.path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            self.server.repos.setdefault(repo, {})
            return self.json({"url": f"{self.server.address}/{repo}", "id": repo, "name": repo})
        if self.path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        repo = "/".join(parts[3:5])
        if "preupload" in parts:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return self.json({"files": files})
        if "commit" in parts:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.json({"commitUrl": f"{self.server.address}/{repo}/commit/{self.sha(repo)}",
                              "commitOid": self.sha(repo), "hookOutput": ""})  # fmt: skip
        return self.missing()

    def sha(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted(self.server.repos[repo].items())).encode()).hexdigest()

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path))
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo = "/".join(parts[2:4])
            if repo not in self.server.repos:
                return self.missing()
            if "tree" in parts:
                sizes = {name: len(data) for name, data in self.server.repos[repo].items()}
                return self.json([{"type": "file", "path": n, "oid": "0", "size": size} for n, size in sizes.items()])
            files = [{"rfilename": name} for name in self.server.repos[repo]]
            return self.json({"id": repo, "modelId": repo, "sha": self.sha(repo), "siblings": files})
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])
        if name not in self.server.repos.get(repo, {}):
            return self.missing()
        data = self.server.repos[repo][name]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.reply(data, ETag=etag, X_Repo_Commit=self.sha(repo))

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        """Nothing."""


@contextmanager
def fake_hub() -> Iterator[ThreadingHTTPServer]:
    """`with fake_hub() as hub`: `hub.address` is what HF_ENDPOINT has to be."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.repos, server.requests = {}, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
