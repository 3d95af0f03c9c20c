"""As much of a W&B server as a run needs to start, to resume and to send its rows; and servers that are broken."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789" * 4
_PROJECT = {"id": "p", "name": "kd", "entity": {"id": "e", "name": "team"}}


@dataclass
class SentRun:
    """What the server has of one run."""

    config: dict[str, Any]
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Rows by their place in the file of the history, as wandb numbers them."""
    exit_codes: list[int] = field(default_factory=list)
    is_preempting: bool = False
    created: dict[str, str] = field(default_factory=dict)
    """Names of the artifacts that it sent and committed, with their types."""
    files_of: dict[str, list[str]] = field(default_factory=dict)
    """The files that it asked to upload, by the name of the artifact, over all runs of the server."""
    used: list[str] = field(default_factory=list)
    """Names of the artifacts that it declared as its inputs."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.lines[place] for place in sorted(self.lines)]

    @property
    def steps(self) -> list[int]:
        """W&B's own step of each row, in the order of the rows."""
        return [row["_step"] for row in self.rows]


class _Handler(BaseHTTPRequestHandler):
    status = 200
    runs: dict[str, SentRun]

    def do_POST(self) -> None:
        if self.path == "/vanish":
            assert isinstance(self.server, ThreadingHTTPServer)
            self.server.socket.close()
            threading.Thread(target=self.server.shutdown).start()
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.status != 200:
            self.answer(self.status, {"errors": [{"message": "told to fail"}]})
        elif self.path.endswith("/graphql"):
            self.answer(200, {"data": self.data_for(json.loads(body))})
        else:
            if self.path.endswith("/file_stream"):
                self.take(self.runs[self.path.split("/")[-2]], json.loads(body))
            self.answer(200, {})

    do_GET = do_PUT = do_POST

    def data_for(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        if "RunResumeStatus" in query:
            run = self.runs.get(variables["name"])
            return {"model": {**_PROJECT, "bucket": None if run is None else self.resumable(variables["name"], run)}}
        if "upsertBucket" in query:
            is_new = variables["name"] not in self.runs
            run = self.runs.setdefault(variables["name"], SentRun(json.loads(variables.get("config") or "{}")))
            bucket = {"id": "b", "name": variables["name"], "displayName": "student-a", "project": _PROJECT}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": len(run.lines)}, "inserted": is_new}}
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "team", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        if "createRunFiles" in query:
            url = f"http://{self.headers['host']}/upload"
            files = [{"name": name, "uploadUrl": url} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "query ArtifactType(" in query:  # of a table, before it is there
            return {"project": {"artifact": None}}
        if answer := self.data_of_artifacts(query, variables):
            return answer
        return {"model": None}

    def data_of_artifacts(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """What wandb is answered as it creates, fills, commits and uses artifacts, whose ids are their names here."""
        given = variables.get("input", variables)
        upload = {
            "uploadUrl": f"http://{self.headers['host']}/upload",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
        }
        for mutation in ("createArtifactManifest", "updateArtifactManifest"):
            if f"{mutation}(" in query:
                manifest = {"id": variables.get("artifactID", "m"), "file": {"id": "f", **upload}}
                return {mutation: {"artifactManifest": manifest}}
        if "createArtifactFiles(" in query:
            nodes = []
            for file in given["artifactFiles"]:
                id, name = file["artifactID"], file["name"]
                for run in self.runs.values():
                    run.files_of.setdefault(id, []).append(name)
                nodes.append({"id": "f", "name": name, "storagePath": name, "artifact": {"id": id}, **upload})
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        if "createArtifact(" in query:
            name = given["artifactCollectionName"]
            if given["runName"] is not None:  # else nobody's output: a run declares it as its input later on
                self.runs[given["runName"]].created[name] = given["artifactTypeName"]
            sequence = {"id": name, "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": sequence}}}
        if "commitArtifact(" in query:
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}
        if "useArtifact(" in query:
            self.runs[given["runName"]].used.append(given["artifactID"])
            return {"useArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}
        return None

    @staticmethod
    def resumable(name: str, run: SentRun) -> dict[str, Any]:
        last = run.rows[-1] if run.lines else {}
        counts = {"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(run.lines)}
        tails = {"eventsTail": "[]", "historyTail": json.dumps([json.dumps(last)] if last else [])}
        texts = {"summaryMetrics": json.dumps(last), "config": json.dumps(run.config), "wandbConfig": '{"t": 1}'}
        return {"id": "b", "name": name, "displayName": "student-a", "tags": [], **counts, **tails, **texts}

    @staticmethod
    def take(run: SentRun, sent: dict[str, Any]) -> None:
        history = sent.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
        for place, line in enumerate(history["content"], start=history["offset"]):
            run.lines[place] = json.loads(line)
        run.is_preempting = run.is_preempting or bool(sent.get("preempting"))
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])

    def answer(self, code: int, content: dict[str, Any]) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def wandb_server(status: int = 200) -> Iterator[tuple[dict[str, SentRun], dict[str, str]]]:
    """The runs that the server gets, by their ids, and the environment that leads to it; it answers `status`."""
    handler = type("OwnHandler", (_Handler,), {"status": status, "runs": {}})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield handler.runs, leading_to(httpd.server_port)  # type: ignore[attr-defined]
    finally:
        httpd.shutdown()
        httpd.server_close()


@contextmanager
def hanging_server() -> Iterator[dict[str, str]]:
    """The environment that leads to a server which takes every connection and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield leading_to(listener.getsockname()[1])


def leading_to(port: int) -> dict[str, str]:
    return {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": f"http://127.0.0.1:{port}"}
