"""One question to an OpenAI-compatible chat server: what is sent, and what each way of failing means."""

import asyncio
import base64
import contextlib
import datetime
import io
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from mf2face.captions.journal import CaptionError
from mf2face.captions.prompts import answer_schema
from processing_mf2.image_io import read_image


OPENAI_URL = "https://api.openai.com/v1"
_NEVER_SENT = {"ConnectError", "ConnectTimeout", "PoolTimeout"}
_NO_KEY = "no-key-needed"
_FORMS = ("json_schema", "json_object", "text")


class KeyMissingError(CaptionError):
    pass


class KeyRejectedError(CaptionError):
    pass


class QuotaSpentError(CaptionError):
    """The account has no money left, or no more requests today."""


class ServerRefusesError(CaptionError):
    """The server does not know the model, or answers nothing but errors."""


class TryAgainError(Exception):
    """Another attempt may work. wait: seconds the server asked for. crowded: a rate limit. lost: the answer may have
    been written, and billed, all the same."""

    def __init__(self, reason: str, wait: float | None = None, *, crowded: bool = False, lost: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.crowded, self.lost = reason, wait, crowded, lost


class RowRefusedError(Exception):
    """The server will not answer this row, however often it is asked."""


@dataclass(frozen=True)
class Usage:
    """Tokens as the server billed them."""

    input: int = 0
    output: int = 0
    cached: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.input + other.input, self.output + other.output, self.cached + other.cached)


def as_data_url(image: Any, side: int, name: str = "image") -> tuple[str, tuple[int, int]]:
    """The image as it is sent (pixels only, no EXIF; the longer side is `side` at most), and its height and width."""
    pixels = read_image(image, name=name).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", (picture.height, picture.width)


def usage_of(body: Mapping[str, Any]) -> Usage | None:
    """None if the server does not say."""
    usage = body.get("usage") or {}
    given, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(given, int) or not isinstance(written, int):
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(given, written, min(cached, given))


def content_of(body: Any) -> str:
    """The text of an answer. A refusal, or one that was cut off before it could be read, is an empty object."""
    try:
        choice = body["choices"][0]
        content, ended = choice["message"].get("content"), choice.get("finish_reason")
        refused = choice["message"].get("refusal") or ended == "content_filter"
    except (TypeError, KeyError, IndexError, AttributeError):
        raise TryAgainError("the server's answer is no chat completion", lost=True) from None
    if refused or (ended == "length" and not str(content or "").rstrip().endswith("}")):
        return "{}"
    return content if isinstance(content, str) else ""


def _scheme_and_place(address: str) -> tuple[str, bool]:
    """https or http, and whether the server is this machine."""
    host = None
    with contextlib.suppress(ValueError):
        host, scheme = urlsplit(address).hostname, urlsplit(address).scheme
    if not host or scheme not in ("https", "http"):
        raise ValueError(f"base_url: got {address!r}, expected https://HOST/v1, or http://127.0.0.1:PORT/v1")
    try:
        return scheme, ipaddress.ip_address(host).is_loopback
    except ValueError:
        return scheme, host == "localhost"


class ChatClient:
    """The `openai` client without its own retries: each attempt is in the journal and the budget before it is sent, and
    a rate limit stops all workers. No error text contains the key."""

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_tokens: int = 1000,
        temperature: float | None = None,
    ) -> None:
        self.model, self.timeout, self.max_tokens = model, timeout, max_tokens
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self._key = api_key or os.environ.get("OPENAI_API_KEY") or ""
        if not self._key and "api.openai.com" in self.base_url:
            advice = "or give base_url, the address of a server of your own that needs none"
            raise KeyMissingError(f"api key: got none; put it into the environment variable OPENAI_API_KEY, {advice}")
        if re.search(r"[^\x21-\x7e]", self._key):
            got = "characters that no key has (a space, a line break, a quote?)"
            raise KeyRejectedError(f"api key: got {got}; set OPENAI_API_KEY again")
        if "@" in self.base_url.split("//")[-1].split("/")[0]:
            raise ValueError("base_url: got an address with a password in it, expected one without; use the API key")
        scheme, self._is_local = _scheme_and_place(self.base_url)
        if self._key and scheme != "https" and not self._is_local:
            expected = "https, or a server on this machine: the API key would be sent unencrypted"
            advice = "Use https or a tunnel to 127.0.0.1, or unset OPENAI_API_KEY if none is needed"
            raise ValueError(f"base_url: got {self.base_url!r}, expected {expected}. {advice}")
        self.temperature, self._forms = temperature, list(_FORMS)
        self._token_field, self._proven = "max_tokens", False

    async def __aenter__(self) -> "ChatClient":
        try:
            import openai
        except ImportError:
            raise ImportError("captions by a chat model need the openai package: pip install openai") from None
        self._openai = openai
        # The question, and perhaps a face, goes to the given address only; if that is this machine, past every proxy.
        http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not self._is_local)
        options = {"base_url": self.base_url, "timeout": self.timeout, "max_retries": 0, "http_client": http}
        self.api = openai.AsyncOpenAI(api_key=self._key or _NO_KEY, **options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.api.close()

    def body(self, messages: Sequence[Mapping[str, Any]], asked: Sequence[str]) -> dict[str, Any]:
        """A request, in the form that this server is known to understand."""
        body = {"model": self.model, "messages": list(messages), self._token_field: self.max_tokens}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self._forms[0] == "json_schema":
            schema = {"name": "captions", "strict": True, "schema": answer_schema(asked)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self._forms[0] == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    async def ask(self, messages: Sequence[Mapping], asked: Sequence[str], key: str) -> tuple[str, Usage | None]:
        """The answer's text and its bill. key: by which a gateway may answer a repeated question without the model."""
        while True:
            try:
                async with asyncio.timeout(self.timeout * 1.5):  # of the whole answer, however slowly it trickles in
                    # The plain JSON: typed questions and answers would cost a third more of the processor.
                    options = {"headers": {"Idempotency-Key": key}}
                    body = self.body(messages, asked)
                    answer = await self.api.post("/chat/completions", body=body, cast_to=object, options=options)
                content = content_of(answer)
                self._proven = True
                return content, usage_of(answer)
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                text = self.clean(error)
                if self._simplify(text):
                    continue
            except TryAgainError:
                raise
            except Exception as error:
                raise self.meaning(error) from None
            if not self._proven:  # the row was refused, not the form
                self._forms = list(_FORMS)
            raise RowRefusedError(text)

    def _simplify(self, text: str) -> bool:
        """Whether the request can be put in an older form, for a server that does not know all of it."""
        low = text.lower()
        if self._token_field == "max_tokens" and "max_completion_tokens" in low:
            self._token_field = "max_completion_tokens"
        elif self.temperature is not None and "temperature" in low:
            self.temperature = None
        elif len(self._forms) > 1 and (not self._proven or re.search("response_format|json_schema|grammar", low)):
            self._forms.pop(0)
        else:
            return False
        return True

    def meaning(self, error: Exception) -> Exception:
        """The error of this module that a failure of the client stands for."""
        text, status = self.clean(error), getattr(error, "status_code", None)
        if isinstance(error, self._openai.APIConnectionError):
            return TryAgainError(text, lost=type(error.__cause__).__name__ not in _NEVER_SENT)
        if status is None:  # half an answer, or one that is no JSON: the model may have written it all the same
            return TryAgainError(f"{type(error).__name__}: {text}", lost=True)
        if status in (401, 403):
            advice = f"Set OPENAI_API_KEY to one that may use {self.model}"
            return KeyRejectedError(f"api key: {self.base_url} does not accept it ({text}). {advice}")
        if 300 <= status < 400:
            advice = "which is not followed; give that address"
            return ServerRefusesError(f"base_url: {self.base_url} sends elsewhere ({status}), {advice}")
        if status == 404:
            advice = "check the name, and that the address ends as the server's documentation says, mostly in /v1"
            return ServerRefusesError(f"model: {self.base_url} does not serve {self.model!r} ({text}); {advice}")
        if status == 429:
            if getattr(error, "code", None) == "insufficient_quota" or "insufficient_quota" in text:
                return QuotaSpentError(f"quota: {self.base_url} says that the account's money is spent ({text})")
            return TryAgainError(text, _retry_after(error), crowded=True)
        if status >= 500 or status in (408, 409):
            return TryAgainError(text, _retry_after(error))
        return RowRefusedError(text)

    def clean(self, error: object) -> str:
        """An error's text without the key, which some servers repeat."""
        text = " ".join(str(error).split())
        if self._key:
            text = text.replace(self._key, "[key]")
        return re.sub(r"\b(sk|key)-[\w*-]{6,}", "[key]", text)[:300]


def _retry_after(error: Exception) -> float | None:
    headers = error.response.headers
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        value = headers.get(name, "")
        with contextlib.suppress(ValueError):
            return max(0.0, float(value) / unit)
        with contextlib.suppress(ValueError):
            date = parsedate_to_datetime(value)
            return max(0.0, (date - datetime.datetime.now(date.tzinfo)).total_seconds())
    return None


__all__ = [
    *("ChatClient", "KeyMissingError", "KeyRejectedError", "QuotaSpentError", "RowRefusedError"),
    *("ServerRefusesError", "TryAgainError", "Usage", "as_data_url", "content_of", "usage_of"),
]
