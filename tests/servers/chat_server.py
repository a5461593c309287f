"""A chat server on 127.0.0.1 for the real `openai` client: chat completions, files, batches, and faults.

`with LoopbackChat(latency=0.2) as chat:` serves at `chat.url`; `python tests/servers/chat_server.py --latency 0.2` does
so for other processes, which ask `GET /loopback/counts`, `GET /loopback/keys` and `POST /loopback/settings`. Answers
depend on the question alone.
"""

import argparse
import asyncio
import collections
import hashlib
import json
import random
import re
import threading
import time
from typing import Any

from aiohttp import web


FAULTS = ("429", "500", "timeout", "drop", "half", "garbage_body", "garbage_content")
_TITLES = re.compile(r"AU\d+ \([^)]*\)")


class LoopbackChat:
    """faults: kind -> share of the requests. mistakes: share of questions whose first answer names an AU that is not
    active; stubborn: so does the second. structured, old_tokens: whether `response_format` and `max_tokens` are known.
    usage: whether answers name their tokens. paid: key -> good answers that were made, whether or not the client was
    still there."""

    key = "sk-loopback-0123456789abcdef"

    def __init__(self, latency: float = 0.0, **settings: Any) -> None:
        self.settings: dict[str, Any] = {
            **{"latency": latency, "faults": {}, "mistakes": 0.0, "stubborn": False, "structured": True},
            **{"old_tokens": True, "usage": True, "retry_after": "0.05", "batch_polls": 1, "expire_after": None},
            **{"status": None, "hang": 2.0},
            **settings,
        }
        self.asked = self.most_at_once = 0
        self.paid: collections.Counter[str] = collections.Counter()
        self.under_way: set[int] = set()
        self.arrived: list[str] = []
        self.bodies: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, dict] = {}
        self.random, self.usd_tokens = random.Random(0), [0, 0]
        self.url = ""

    def answer(self, body: dict) -> str:
        """Reads the truth out of the question, as a model would, and writes what was asked for."""
        messages = body["messages"]
        corrected = messages[-1]["content"] if len(messages) > 4 else None
        cue = messages[3]["content"]
        cue = cue if isinstance(cue, str) else cue[0]["text"]
        asked = re.findall(r'^- "(\w+)":', messages[0]["content"], flags=re.MULTILINE)
        active = _TITLES.findall(cue.partition("Active action units:")[2].partition("Inactive")[0])
        inactive = _TITLES.findall(cue.partition("Inactive action units:")[2])
        emotion = re.search(r"Emotion: (.*?)\.$", cue)
        emotion = emotion[1].lower() if emotion else ""
        draw = int(hashlib.sha256(cue.encode()).hexdigest()[:8], 16) / 16**8
        wrong = draw < self.settings["mistakes"] and (corrected is None or self.settings["stubborn"])
        items = [f"{n}. {title}: it shows in this face." for n, title in enumerate(active, start=1)]
        local = [f"{title}: active, it is there." for title in active]
        local += [f"{title}: inactive, it is not there." for title in inactive]
        texts = {
            "au_caption": "\n".join(items) if items else "The face is at rest.",
            "emotion_caption": f"The features together convey {emotion}.",
            "key_au_caption": f"Key action units: {', '.join(active) or 'none'}; the face shows {emotion}.",
            "exp_blip_au": f"The face moves {len(active)} muscles.",
            "exp_blip_emot": f"The face shows {emotion}.",
            "exp_blip_exp": f"The face moves {len(active)} muscles, which implies {emotion}.",
            "vl_fau_global": f"{len(active)} things move in the face.",
            "vl_fau_local": "\n".join(local),
        }
        if wrong:
            texts["au_caption"] += "\n9. AU28 (Lip Suck): the lips are sucked in."
            texts["key_au_caption"] += " AU28 (Lip Suck) is key."
        return json.dumps({name: texts[name] for name in asked})

    def completion(self, body: dict, content: str) -> dict:
        texts = [m["content"] if isinstance(m["content"], str) else m["content"][0]["text"] for m in body["messages"]]
        images = sum(not isinstance(m["content"], str) for m in body["messages"])
        tokens_in, tokens_out = sum(len(text) // 4 + 4 for text in texts) + 255 * images, len(content) // 4
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        answer = {"id": "chatcmpl-loopback", "object": "chat.completion", "created": int(time.time())}
        answer |= {"model": body["model"], "choices": [choice]}
        if self.settings["usage"]:
            self.usd_tokens = [self.usd_tokens[0] + tokens_in, self.usd_tokens[1] + tokens_out]
            total = tokens_in + tokens_out
            answer["usage"] = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": total}
        return answer

    def error(self, status: int, message: str, code: str | None = None, **headers: str) -> web.Response:
        body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
        return web.json_response(body, status=status, headers=headers)

    @web.middleware
    async def refuse(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if request.path.startswith("/v1"):
            if given != self.key:  # some real servers repeat the key in full
                return self.error(401, f"Incorrect API key provided: {given}.", "invalid_api_key")
            if self.settings["status"]:
                return self.error(*self.settings["status"])
        return await handler(request)

    def unknown_field(self, body: dict) -> web.Response | None:
        if "response_format" in body and not self.settings["structured"]:
            return self.error(400, "Unrecognized request argument supplied: response_format")
        if "max_tokens" in body and not self.settings["old_tokens"]:
            return self.error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
        except ConnectionError:  # the client is gone
            return web.Response()
        if (refusal := self.unknown_field(body)) is not None:
            return refusal
        self.asked += 1
        number, name = self.asked, request.headers.get("Idempotency-Key", "")
        self.under_way.add(number)
        self.arrived.append(name)
        self.most_at_once = max(self.most_at_once, len(self.under_way))
        if len(self.bodies) < 1000:
            self.bodies.append(body)
        draw, fault = self.random.random(), None
        for kind, share in self.settings["faults"].items():
            if draw < share:
                fault = kind
                break
            draw -= share
        try:
            return await self.respond(request, body, name, fault)
        except ConnectionError:
            return web.Response()
        finally:
            self.under_way.discard(number)

    async def respond(self, request: web.Request, body: dict, name: str, fault: str | None) -> web.StreamResponse:
        if fault == "429":
            return self.error(429, "Rate limit reached", "rate_limit", **{"Retry-After": self.settings["retry_after"]})
        if fault == "500":
            return self.error(500, "The server had an error")
        if fault == "timeout":
            await asyncio.sleep(self.settings["hang"])
            request.transport and request.transport.abort()
            return web.Response()
        await asyncio.sleep(self.settings["latency"])
        if fault == "drop":
            request.transport and request.transport.abort()
            return web.Response()
        content = self.answer(body)
        if fault == "garbage_content":
            content = "I am sorry, here are your captions: {" + content[5:40]
        data = json.dumps(self.completion(body, content)).encode()
        if fault == "garbage_body":
            return web.Response(body=b"<html>502 Bad Gateway</html>", content_type="text/html")
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
        if fault is None:
            self.paid[name] += 1
        await response.prepare(request)
        if fault == "half":
            await response.write(data[: len(data) // 2])
            request.transport and request.transport.abort()
            return response
        await response.write(data)
        await response.write_eof()
        return response

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read()
        assert form["purpose"] == "batch"
        facts = {"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": int(time.time())}
        return web.json_response({**facts, "filename": "captions.jsonl", "purpose": "batch", "status": "processed"})

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["name"]], content_type="application/octet-stream")

    async def create(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = f"batch_{len(self.jobs)}"
        job = {"id": name, "object": "batch", "endpoint": body["endpoint"], "status": "validating"}
        job |= {"input_file_id": body["input_file_id"], "completion_window": body["completion_window"]}
        job |= {"created_at": int(time.time()), "metadata": body.get("metadata"), "polls": 0}
        lines = self.files[body["input_file_id"]].splitlines()
        job["request_counts"] = {"total": len(lines), "completed": 0, "failed": 0}
        self.jobs[name] = job
        return web.json_response(job)

    async def jobs_list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": list(self.jobs.values()), "has_more": False})

    async def retrieve(self, request: web.Request) -> web.Response:
        job = self.jobs[request.match_info["name"]]
        job["polls"] += 1
        if job["polls"] > self.settings["batch_polls"] and job["status"] in ("validating", "in_progress"):
            self.run(job)
        elif job["status"] == "validating":
            job["status"] = "in_progress"
        return web.json_response(job)

    def run(self, job: dict) -> None:
        good, bad = [], []
        lines = [json.loads(line) for line in self.files[job["input_file_id"]].splitlines()]
        limit = self.settings["expire_after"] or len(lines)
        for line in lines:
            name = line["custom_id"]
            if len(good) + len(bad) >= limit:
                gone = {"code": "batch_expired", "message": "This request could not be executed in time."}
                bad.append({"id": name, "custom_id": name, "response": None, "error": gone})
                continue
            if self.random.random() < sum(self.settings["faults"].values()):
                failed = {"status_code": 500, "request_id": "r", "body": {"error": {"message": "server error"}}}
                bad.append({"id": name, "custom_id": name, "response": failed, "error": None})
                continue
            self.paid[f"{name}-{(len(line['body']['messages']) - 4) // 2}"] += 1
            body = self.completion(line["body"], self.answer(line["body"]))
            response = {"status_code": 200, "request_id": "r", "body": body}
            good.append({"id": name, "custom_id": name, "response": response, "error": None})
        for field, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                job[field] = f"file-{len(self.files)}"
                self.files[job[field]] = "".join(json.dumps(line) + "\n" for line in lines).encode()
        job["request_counts"] |= {"completed": len(good), "failed": len(bad)}
        job["status"] = "expired" if self.settings["expire_after"] else "completed"
        self.settings["expire_after"] = None

    def counts(self) -> dict:
        paid = {"paid": sum(self.paid.values()), "most_paid": max(self.paid.values(), default=0)}
        paid |= {"rows": len(self.paid), "most_at_once": self.most_at_once}
        return {"asked": self.asked, **paid}

    def keys(self) -> dict:
        """arrived: the keys of all requests, in their order. working: how many are under way."""
        return {"arrived": self.arrived, "working": len(self.under_way), "paid": dict(self.paid)}

    async def facts(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": self.keys, "counts": self.counts}[request.match_info["name"]]())

    async def settle(self, request: web.Request) -> web.Response:
        self.settings |= await request.json()
        return web.json_response({})

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30, middlewares=[self.refuse])
        app.add_routes(
            [
                web.post("/v1/chat/completions", self.chat),
                web.post("/v1/files", self.upload),
                web.get("/v1/files/{name}/content", self.content),
                web.post("/v1/batches", self.create),
                web.get("/v1/batches", self.jobs_list),
                web.get("/v1/batches/{name}", self.retrieve),
                web.get("/loopback/{name}", self.facts),
                web.post("/loopback/settings", self.settle),
            ]
        )
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"

    def __enter__(self) -> "LoopbackChat":
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self.start(), self.loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            await self.runner.cleanup()
            left = asyncio.all_tasks() - {asyncio.current_task()}
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds")
    arguments = parser.parse_args()

    async def serve() -> None:
        chat = LoopbackChat(arguments.latency)
        await chat.start()
        print(chat.url, flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
