import asyncio
import base64
import io
import json
import sys

import numpy as np
import pytest
from aiohttp import web
from chat_server import LoopbackChat
from PIL import Image

from mf2face.captions.chat import (
    ChatClient,
    KeyMissingError,
    KeyRejectedError,
    QuotaSpentError,
    RowRefusedError,
    ServerRefusesError,
    TryAgainError,
    as_data_url,
    content_of,
    usage_of,
)
from mf2face.captions.prompts import chat_prompt


ASKED = ("emotion_caption",)
QUESTION = chat_prompt(ASKED, None, "Fear")


@pytest.fixture(scope="module")
def chat():
    with LoopbackChat() as server:
        yield server


@pytest.fixture(autouse=True)
def fresh(chat, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    before = dict(chat.settings)
    yield
    chat.settings.clear()
    chat.settings.update(before)
    chat.bodies.clear()


def ask(chat, times=1, question=QUESTION, **options):
    async def work():
        url = chat.settings.get("url", chat.url)
        async with ChatClient("gpt-4o", base_url=url, **{"api_key": chat.key, **options}) as client:
            for _ in range(times - 1):
                await client.ask(question, ASKED, "k")
            return await client.ask(question, ASKED, "k")

    return asyncio.run(work())


def test_a_question_is_answered_with_its_bill(chat):
    content, usage = ask(chat)
    assert json.loads(content) == {"emotion_caption": "The features together convey fear."}
    assert usage.input > 200 and usage.output > 5 and usage.cached == 0
    form = chat.bodies[-1]["response_format"]["json_schema"]
    assert form["strict"] and form["schema"]["required"] == list(ASKED)
    assert chat.bodies[-1]["max_tokens"] == 1000 and "temperature" not in chat.bodies[-1]


def test_an_older_or_a_newer_server_is_asked_in_its_own_form_and_that_is_found_out_once(chat):
    chat.settings |= {"structured": False, "old_tokens": False}
    asked = chat.asked
    assert json.loads(ask(chat, times=3)[0])
    assert chat.asked - asked == 3
    assert "response_format" not in chat.bodies[-1] and chat.bodies[-1]["max_completion_tokens"] == 1000


@pytest.mark.parametrize(
    ("settings", "kind", "fields"),
    [
        ({"status": (429, "slow down")}, TryAgainError, {"crowded": True, "lost": False, "wait": None}),
        ({"faults": {"429": 1}, "retry_after": "7"}, TryAgainError, {"crowded": True, "wait": 7.0}),
        ({"faults": {"429": 1}, "retry_after": "Fri, 01 Jan 2021 00:00:00 GMT"}, TryAgainError, {"wait": 0.0}),
        ({"faults": {"500": 1}}, TryAgainError, {"crowded": False, "lost": False}),
        ({"faults": {"timeout": 1}, "hang": 1.0}, TryAgainError, {"lost": True}),
        ({"faults": {"drop": 1}}, TryAgainError, {"lost": True}),
        ({"url": "http://127.0.0.1:9/v1"}, TryAgainError, {"lost": False}),
        ({"faults": {"half": 1}}, TryAgainError, {"lost": True}),
        ({"faults": {"garbage_body": 1}}, TryAgainError, {"lost": True}),
        ({"status": (429, "no money", "insufficient_quota")}, QuotaSpentError, {}),
        ({"status": (404, "no such model")}, ServerRefusesError, {}),
        ({"status": (403, "not you")}, KeyRejectedError, {}),
        ({"status": (400, "your image is bad")}, RowRefusedError, {}),
        ({"status": (413, "too large")}, RowRefusedError, {}),
    ],
)
def test_each_failure_means_something(chat, settings, kind, fields):
    chat.settings |= settings
    with pytest.raises(kind) as caught:
        ask(chat, timeout=0.3)
    assert {name: getattr(caught.value, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("address", "key", "kind", "message"),
    [
        (None, None, KeyMissingError, "OPENAI_API_KEY"),
        (None, "sk-secret\n", KeyRejectedError, "api key: got characters that no key has"),
        ("http://me:secret@host/v1", None, ValueError, "an address with a password"),
        *(
            (address, None, ValueError, "base_url: got .*expected https://")
            for address in ("ftp://127.0.0.1/v1", "127.0.0.1:8000/v1", "http:///v1", "http://[::1/v1")
        ),
        *(  # a key is not sent in the open
            (address, "sk-secret", ValueError, "base_url: got .*expected https")
            for address in ("http://192.168.0.7/v1", "http://127.0.0.1.example.org/v1", "HTTP://host:1/v1")
        ),
    ],
)
def test_errors_before_anything_is_sent(address, key, kind, message, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    for given in ({"api_key": key}, {}):
        with pytest.raises(kind, match=message) as caught:
            ChatClient("gpt-4o", base_url=address, **given)
        assert "secret" not in str(caught.value)
        if key is None:
            break
        monkeypatch.setenv("OPENAI_API_KEY", key)


def test_servers_that_may_be_asked():
    ChatClient("m", base_url="http://192.168.0.7/v1")  # your own server that needs no key
    for address in ("https://host/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1"):
        ChatClient("m", base_url=address, api_key="sk-0123456789")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r"pip install openai$"):
        asyncio.run(ChatClient("m", api_key="k").__aenter__())


def test_an_image_is_sent_small_and_without_what_the_camera_wrote():
    picture, exif = Image.fromarray(np.full((300, 200, 3), 80, "uint8")), Image.Exif()
    exif[0x010E] = "taken at home"
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    url, size = as_data_url(file.getvalue(), 150)
    sent = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
    assert size == (150, 100) and Image.open(io.BytesIO(sent)).size == (100, 150)
    assert b"taken at home" in file.getvalue() and b"taken at home" not in sent
    assert as_data_url(picture, 512)[1] == (300, 200), "never enlarged"


def test_refusals_and_cut_answers_are_empty_objects():
    def body(**choice):
        return {"choices": [{"message": {"content": '{"a": "b'}, **choice}]}

    assert content_of(body(finish_reason="length")) == "{}"
    assert content_of(body(message={"content": None, "refusal": "I cannot"})) == "{}"
    assert content_of(body(finish_reason="stop")) == '{"a": "b'
    with pytest.raises(TryAgainError, match="no chat completion"):
        content_of({"choices": []})
    assert usage_of({"usage": {"prompt_tokens": None}}) is None and usage_of({}) is None


def test_a_key_for_this_machine_passes_no_proxy(chat, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    assert json.loads(ask(chat)[0])


def test_a_redirection_is_not_followed(chat):
    class Elsewhere(LoopbackChat):
        async def chat(self, request):
            raise web.HTTPTemporaryRedirect(chat.url + "/chat/completions")

    before = chat.asked
    with Elsewhere() as server, pytest.raises(ServerRefusesError, match="sends elsewhere"):
        ask(server)
    assert chat.asked == before
