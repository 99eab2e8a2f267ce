"""The part of the Hugging Face hub's HTTP interface that fetches and uploads models, over a folder.

As on the real hub, weights go by Git LFS to a store of their own, whose objects the commit then names by hash.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0" * 40
TOKEN = "hf_test"


class _Hub(BaseHTTPRequestHandler):
    folder: Path
    store: dict[str, bytes]

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _files(self, name: str) -> list[str]:
        root = self.folder / name
        return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/revision/[^/]+(\?.*)?", self.path):
            names = self._files(found[1])
            if not names:
                return self._answer({"error": "no such repository"}, 404, {"X-Error-Code": "RepoNotFound"})
            siblings = [{"rfilename": name} for name in names]
            return self._answer({"id": found[1], "modelId": found[1], "sha": COMMIT, "siblings": siblings})
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/[^/?]+(\?.*)?", self.path):
            rows = [
                {
                    "type": "file",
                    "path": name,
                    "size": (self.folder / found[1] / name).stat().st_size,
                    "oid": COMMIT,
                }
                for name in self._files(found[1])
            ]
            return self._answer(rows)
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)", self.path):
            path = self.folder / found[1] / found[2]
            if not path.is_file():
                return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
            data = path.read_bytes()
            tag = f'"{hashlib.sha256(data).hexdigest()}"'
            return self._answer(data, headers={"ETag": tag, "X-Repo-Commit": COMMIT})
        self._answer({"error": "not here"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            return self._answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        if re.fullmatch(r"/api/models/[\w.-]+/[\w.-]+/preupload/main(\?.*)?", self.path):
            files = [
                {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/commit/main(\?.*)?", self.path):
            for line in body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    path = self.folder / found[1] / row["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(base64.b64decode(row["value"]["content"]))
                if row["key"] == "lfsFile":
                    path = self.folder / found[1] / row["value"]["path"]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(self.store[row["value"]["oid"]])
            return self._answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/{found[1]}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if re.fullmatch(r"/[\w.-]+/[\w.-]+\.git/info/lfs/objects/batch", self.path):
            address = f"http://{self.headers['Host']}/store"
            objects = [
                {**item, "actions": {"upload": {"href": f"{address}/{item['oid']}", "header": {}}}}
                for item in json.loads(body)["objects"]
            ]
            return self._answer({"transfer": "basic", "objects": objects})
        self._answer({"error": "not here"}, 404)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        name = self.path.removeprefix("/store/")
        if hashlib.sha256(data).hexdigest() != name:
            return self._answer({"error": "other bytes"}, 400)
        self.store[name] = data
        self._answer({})


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".model")) else "regular"


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Yields the address (HF_ENDPOINT) of a hub whose repositories are folders below `folder`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folder": folder, "store": {}}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
