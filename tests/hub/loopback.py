"""A Hub in this process: what huggingface_hub asks of one to push and to load models, over HTTP on loopback."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_loopback"
Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> its commits, each with all of its files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[tuple[str, Files]]] = {}

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, changes: Files) -> str:
        """Add files to a repository, and return the id of the commit."""
        commits = self.repositories[name]
        files = {**(commits[-1][1] if commits else {}), **changes}
        oid = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        commits.append((oid, files))
        return oid

    def find(self, name: str, revision: str) -> tuple[str, Files] | None:
        """Return a commit by its id, or the last one as `main`."""
        commits = self.repositories[name]
        return next((each for each in reversed(commits) if revision in ("main", each[0])), None)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, body: bytes | dict | list, status: int = 200, **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def is_known(self) -> bool:
        """Whether the request carries the token; answers it where not."""
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.fail(401, "Unauthorized")
        return False

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            if self.is_known():
                self.answer({"name": "org", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?", path):
            self.describe(match[1], match[2] or "revision", match[3] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*match.groups())
        else:
            self.fail(404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def describe(self, name: str, kind: str, revision: str) -> None:
        if name not in self.server.repositories:
            return self.fail(404, "RepoNotFound")
        if (found := self.server.find(name, revision)) is None:
            return self.fail(404, "RevisionNotFound")
        oid, files = found
        if kind == "tree":
            tree = [{"type": "file", "path": path, "size": len(data), "oid": oid} for path, data in files.items()]
            return self.answer(tree)
        siblings = [{"rfilename": path} for path in files]
        return self.answer({"id": name, "modelId": name, "sha": oid, "private": False, "siblings": siblings})

    def send_file(self, name: str, revision: str, path: str) -> None:
        if name not in self.server.repositories:
            return self.fail(404, "RepoNotFound")
        if (found := self.server.find(name, revision)) is None:
            return self.fail(404, "RevisionNotFound")
        oid, files = found
        if path not in files:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=oid)
        etag = hashlib.sha1(files[path]).hexdigest()
        return self.answer(files[path], ETag=f'"{etag}"', X_Repo_Commit=oid)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.is_known():
            return
        if self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request.get('organization') or 'org'}/{request['name'].split('/')[-1]}"
            is_new = name not in self.server.repositories
            self.server.repositories.setdefault(name, [])
            self.answer({"url": f"{self.server.endpoint}/{name}"}, 200 if is_new else 409)
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/preupload/", self.path):
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
            entries = [json.loads(line) for line in body.splitlines()]
            values = [entry["value"] for entry in entries if entry["key"] == "file"]
            oid = self.server.commit(match[1], {v["path"]: base64.b64decode(v["content"]) for v in values})
            url = f"{self.server.endpoint}/{match[1]}/commit/{oid}"
            self.answer({"success": True, "commitOid": oid, "commitUrl": url})
        else:
            self.fail(404, "RepoNotFound")


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Context manager: a Hub that answers."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
