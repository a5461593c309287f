"""A small Hub on 127.0.0.1 for the real `huggingface_hub` client: repos live in memory, a commit is a snapshot.

Whatever went wrong on a real one goes wrong here when asked: `hub.fail(pattern, how)`, or from another process
`POST /loopback/fail`. how: a status, or "truncate" (half of the bytes), or "hang up" (no answer at all).
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


_NAME = re.compile(r"([\w.-]+/)?[\w.-]+")
_PIPELINE_TAGS = {"image-classification", "image-feature-extraction", "image-text-to-text", "image-to-text"}
_PIPELINE_TAGS |= {"zero-shot-image-classification"}


def card_problems(content: str) -> list[str]:
    """What the Hub refuses in a card's metadata, as its documentation has it (modelcard.md of hub-docs)."""
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---\s*(\n|$)", content, flags=re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(data, dict):
        return ["metadata: must be an object"]
    problems = []
    for field in ("tags", "metrics", "datasets", "base_model"):
        values = data.get(field, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            problems.append(f'"{field}" must be an array of strings')
        elif field in ("datasets", "base_model") and not all(_NAME.fullmatch(value) for value in values):
            problems.append(f'"{field}" with value {values} is not valid')
    choices = {"license": ("apache-2.0", "mit", "cc-by-4.0", "other"), "pipeline_tag": _PIPELINE_TAGS}
    problems += [f'"{key}" is {data[key]!r}' for key in choices if data.get(key) not in (None, *choices[key])]
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str) or not isinstance(model.get("results"), list):
            problems.append('"model-index" needs a name and a list of results')
            continue
        for result in model["results"]:
            for part, keys in {"task": ("type",), "dataset": ("type", "name")}.items():
                if not all(isinstance(result.get(part, {}).get(key), str) for key in keys):
                    problems.append(f'"model-index.results.{part}" needs {keys}')
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or metric.get("value") is None:
                    problems.append(f'"model-index.results.metrics" needs type and value, got {metric}')
    return problems


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class LoopbackHub:
    """`with LoopbackHub() as hub:` serves at `hub.url`; `hub.repos[name]` is a list of (commit, {file: bytes})."""

    token = "hf_loopback"

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.tags: dict[tuple[str, str], str] = {}
        self.private: set[str] = set()
        self.faults: dict[str, int | str] = {}
        self.log: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), vars(self)))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fail(self, pattern: str, how: int | str) -> None:
        """From now on every request ("GET /org/name/...") in which the pattern is found."""
        self.faults[pattern] = how

    def environment(self, home: object) -> dict[str, str]:
        """What a process needs so that its Hub is this one."""
        return {
            **{"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1"},
            **{"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1"},
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    token = LoopbackHub.token

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
            if self.fault() == "truncate":
                self.close_connection = True
                body = body[: len(body) // 2]
            self.wfile.write(body)

    def fault(self) -> int | str | None:
        request = f"{self.command} {unquote(self.path)}"
        return next((how for pattern, how in self.faults.items() if re.search(pattern, request)), None)

    def refused(self) -> bool:
        """A fault that was asked for, or a private repo and no token: then the answer is given here."""
        self.log.append(f"{self.command} {unquote(self.path)}")
        how = self.fault()
        if how == "hang up":
            self.close_connection = True
            self.connection.shutdown(2)
            return True
        if isinstance(how, int):
            code = {401: "RepoNotFound", 403: "GatedRepo", 404: "EntryNotFound"}.get(how)
            self.answer(how, {"error": f"asked for: {how}"}, **({"X_Error_Code": code} if code else {}))
            return True
        hidden = any(re.search(rf"/{re.escape(name)}(/|$)", unquote(urlsplit(self.path).path)) for name in self.private)
        if hidden and self.headers.get("Authorization") != f"Bearer {self.token}":
            self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
            return True
        return False

    def missing(self, code: str) -> None:
        self.answer(404, {"error": code}, X_Error_Code=code)

    def snapshot(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(commit, files), or None after an answer that says what is missing."""
        revision = self.tags.get((repo, revision), revision)
        for commit, files in reversed(self.repos.get(repo, [])):
            if revision in ("main", commit):
                return commit, files
        return self.missing("RevisionNotFound" if repo in self.repos else "RepoNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/loopback/fail":
            self.faults.clear()
            self.faults.update(json.loads(body))
            return self.answer(200, {})
        if self.refused():
            return None
        if path == "/api/repos/create":
            request = json.loads(body)
            name = "/".join(part for part in (request.get("organization"), request["name"]) if part)
            found = {"url": f"http://{self.headers['Host']}/{name}", "name": name}
            if name in self.repos:
                return self.answer(409, {**found, "error": "You already created this model repo"})
            self.repos[name] = [(sha1(name.encode()), {})]
            if request.get("private") or request.get("visibility") == "private":
                self.private.add(name)
            return self.answer(200, found)
        if path == "/api/validate-yaml":
            errors = [{"message": problem} for problem in card_problems(json.loads(body)["content"])]
            return self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer(200, {"files": [{"path": file["path"], **plain} for file in json.loads(body)["files"]]})
        if match := re.fullmatch(r"/api/models/(.+)/tag/(.+)", path):
            self.tags[match[1], json.loads(body)["tag"]] = self.snapshot(match[1], match[2])[0]
            return self.answer(200, {})
        if match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            return self.commit(match[1], match[2], body)
        return self.missing("RepoNotFound")

    def commit(self, repo: str, revision: str, body: bytes) -> None:
        if (snapshot := self.snapshot(repo, revision)) is None:
            return
        files = dict(snapshot[1])
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                files.pop(entry["value"]["path"], None)
        commit = sha1(snapshot[0].encode() + body)
        self.repos[repo].append((commit, files))
        url = f"http://{self.headers['Host']}/{repo}/commit/{commit}"
        self.answer(200, {"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""})

    def do_GET(self) -> None:
        if self.refused():
            return None
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.answer(200, {"type": "user", "name": "org", "orgs": [], "auth": {}})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path):
            if (snapshot := self.snapshot(match[1], match[3] or "main")) is None:
                return None
            commit, files = snapshot
            if match[2] == "tree":
                sizes = [{"type": "file", "path": name, "size": len(data)} for name, data in files.items()]
                return self.answer(200, [{**file, "oid": sha1(files[file["path"]])} for file in sizes])
            siblings = [{"rfilename": name} for name in files]
            info = {"id": match[1], "sha": commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            return self.answer(200, {**info, "modelId": match[1], "likes": 0})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (snapshot := self.snapshot(match[1], match[2])) is None:
                return None
            commit, files = snapshot
            if match[3] not in files:
                return self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            data = files[match[3]]
            return self.answer(200, data, ETag=f'"{sha1(data)}"', X_Repo_Commit=commit)
        return self.missing("RepoNotFound")

    do_HEAD = do_GET
