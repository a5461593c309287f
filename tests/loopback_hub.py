"""A small Hub on 127.0.0.1 for the real `huggingface_hub` client: repos live in memory, a commit is a snapshot."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves at `hub.url`; `hub.repos[name]` is a list of (commit, {file: bytes})."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        hub = self

        class Handler(_Handler):
            repos = hub.repos

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: object) -> dict[str, str]:
        """What a process needs so that its Hub is this one."""
        return {
            **{"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": "hf_loopback", "HF_HUB_DISABLE_XET": "1"},
            **{"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1"},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos: dict[str, list[tuple[str, dict[str, bytes]]]]

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes | dict | list = b"", **headers: str) -> None:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self, code: str) -> None:
        self.answer(404, {"error": code}, X_Error_Code=code)

    def snapshot(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for commit, files in reversed(self.repos.get(repo, [])):
            if revision in ("main", commit):
                return commit, files
        return None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(part for part in (request.get("organization"), request["name"]) if part)
            found = {"url": f"http://{self.headers['Host']}/{name}", "name": name}
            if name in self.repos:
                return self.answer(409, {**found, "error": "You already created this model repo"})
            self.repos[name] = [(hashlib.sha1(name.encode()).hexdigest(), {})]
            return self.answer(200, found)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer(200, {"files": [{"path": file["path"], **plain} for file in json.loads(body)["files"]]})
        if match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            return self.commit(match[1], match[2], body)
        return self.missing("RepoNotFound")

    def commit(self, repo: str, revision: str, body: bytes) -> None:
        snapshot = self.snapshot(repo, revision)
        if snapshot is None:
            return self.missing("RepoNotFound")
        files = dict(snapshot[1])
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                files.pop(entry["value"]["path"], None)
        commit = hashlib.sha1(snapshot[0].encode() + body).hexdigest()
        self.repos[repo].append((commit, files))
        url = f"http://{self.headers['Host']}/{repo}/commit/{commit}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.answer(200, {"type": "user", "name": "org", "orgs": [], "auth": {}})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path):
            snapshot = self.snapshot(match[1], match[3] or "main")
            if snapshot is None:
                return self.missing("RevisionNotFound" if match[1] in self.repos else "RepoNotFound")
            commit, files = snapshot
            if match[2] == "tree":
                return self.answer(
                    200,
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for name, data in files.items()
                    ],
                )
            siblings = [{"rfilename": name} for name in files]
            info = {"id": match[1], "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            return self.answer(200, {**info, "modelId": match[1], "likes": 0})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            snapshot = self.snapshot(match[1], match[2])
            if snapshot is None:
                return self.missing("RevisionNotFound" if match[1] in self.repos else "RepoNotFound")
            commit, files = snapshot
            if match[3] not in files:
                return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            data = files[match[3]]
            return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit)
        return self.missing("RepoNotFound")
