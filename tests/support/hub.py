"""A stand-in for the Hub's HTTP API: what `create_repo`, `list_repo_files` and `upload_folder` of huggingface_hub call.

POST /api/repos/create, GET /api/models/REPO/tree/main, POST /api/validate-yaml, POST
/api/models/REPO/preupload/main, POST /REPO.git/info/lfs/objects/batch, PUT of each large file where the batch says,
POST /api/models/REPO/commit/main. The official client does the rest: it is told of this server by HF_ENDPOINT.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_LARGE = (".safetensors", ".onnx")


@dataclass
class Hub:
    """What arrived: every call, the repositories that were made, the files that were committed, by name."""

    address: str = ""
    token: str = "hf_standInTokenOfATest"
    calls: list[str] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """With it a process takes this for the Hub."""
        return {
            "HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip


@contextmanager
def hub() -> Iterator[Hub]:
    """A server on a port of this machine, for as long as the block runs."""
    state = Hub()

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self.hub.calls.append(f"GET {self._path}")
        if "/tree/" in self._path:
            self._answer(200, [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.hub.files])
        else:
            self._answer(404, {"error": "not found"})

    def do_PUT(self) -> None:
        self.hub.calls.append("PUT blob")
        self.hub.blobs[self._path.rpartition("/")[2]] = self._body()
        self._answer(200, {})

    def do_POST(self) -> None:
        path, body = self._path, self._body()
        self.hub.calls.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            # As some proxies do, it gives back what it was sent.
            self._answer(401, {"error": f"Invalid credentials {self.headers.get('Authorization')}"})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            self.hub.made.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            self._answer(200, {"url": f"{self.hub.address}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            modes = [
                {
                    "path": file["path"], "shouldIgnore": False, "oid": None,
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                }
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self._answer(200, {"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**entry, "actions": {"upload": {"href": f"{self.hub.address}/blobs/{entry['oid']}", "header": {}}}}
                for entry in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": "not found"})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.hub.files[value["path"]]
        repository = self._path.removeprefix("/api/models/").partition("/commit/")[0]
        self._answer(
            200,
            {"commitUrl": f"{self.hub.address}/{repository}/commit/abc", "commitOid": "abc", "success": True},
        )

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""
