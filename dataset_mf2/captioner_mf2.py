"""Captions by a chat model, of any number of rows: many at once, paid once, checked against the labels."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from configuration_mf2.facs_mf2 import LabelSet
from processing_mf2.image_reading_mf2 import image_size
from processing_mf2.prompts_mf2 import chat_prompt, correction_prompt, prompt_version

from .caption_client_mf2 import ChatClient, Usage, as_data_url
from .caption_journal_mf2 import CaptionError, CaptionJournal
from .caption_prices_mf2 import (
    PRICES,
    Budget,
    Estimate,
    Price,
    answer_tokens,
    image_tokens,
    most_text_tokens,
    text_tokens,
)
from .caption_run_mf2 import CaptionReport, CaptionRun, run_to_end
from .caption_styles_mf2 import CaptionRow, Captions, CaptionStyle


class BatchOpenError(CaptionError):
    """The journal has a batch job under way, whose rows must not be asked for a second time."""


class ChatWriter:
    """Asks an OpenAI-compatible server (`base_url`; a vLLM or llama.cpp of your own too) for a style's captions.

    send_images: faces are personal data, so only labels are sent unless this is set; then the longer side is
    `image_side` at most. concurrency: requests under way at once. max_attempts: after so many failures a row is given
    up. budget: dollars, over all runs of a journal, that are never passed. price: for models that `PRICES` lacks;
    only a budget and an estimate need it. backoff: seconds before a second attempt; it doubles.
    """

    def __init__(
        self,
        model: str = "gpt-4o",
        *,
        style: str = "mfa",
        label_set: str | LabelSet = "mfa",
        base_url: str | None = None,
        api_key: str | None = None,
        send_images: bool = False,
        image_side: int = 512,
        detail: str = "high",
        concurrency: int = 16,
        max_attempts: int = 6,
        timeout: float = 120.0,
        max_tokens: int = 1000,
        temperature: float | None = None,
        budget: float | None = None,
        price: Price | None = None,
        backoff: float = 0.5,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        if concurrency < 1 or max_attempts < 1:
            raise ValueError(f"concurrency, max_attempts: got {concurrency} and {max_attempts}, expected 1 or more")
        if detail not in ("low", "high"):
            raise ValueError(f"detail: got {detail!r}, expected 'low' or 'high'")
        self.model, self.style = model, CaptionStyle(style, label_set, seed=seed)
        self.send_images, self.image_side, self.detail = send_images, image_side, detail
        self.concurrency, self.max_attempts, self.backoff = concurrency, max_attempts, backoff
        self.progress, self.max_tokens, self.limit = progress, max_tokens, budget
        self.price = price or PRICES.get(model)
        if budget is not None and self.price is None:
            raise ValueError(
                f"budget: the price of {model!r} is not known, so no budget can be kept; pass "
                "price=Price(input=..., output=...), in dollars for a million tokens"
            )
        Budget(budget)  # its checks
        self._client = {"base_url": base_url, "api_key": api_key, "timeout": timeout}
        self._client |= {"max_tokens": max_tokens, "temperature": temperature}
        self.prompt = prompt_version(self.style.asked, send_images)
        if send_images:
            self.prompt += f"-{detail}{image_side}"

    @property
    def told(self) -> dict[str, str]:
        """What the journal says of this writer's captions."""
        return {"style": self.style.name, "model": self.model, "prompt": self.prompt}

    def client(self) -> ChatClient:
        return ChatClient(self.model, **self._client)

    def key(self, row: CaptionRow) -> str:
        return self.style.key(row, self.model, self.prompt)

    def messages(self, row: CaptionRow, asked: Sequence[str], *, image: bool = True) -> tuple[list[dict], int]:
        """(the question, how many tokens its image has)."""
        told = chat_prompt(asked, row.au_labels, row.emotion, self.style.label_set, with_image=self.send_images)
        if not self.send_images:
            return told, 0
        if row.image is None:
            raise ValueError(f"image: row {row.id} has none, expected one because send_images is set")
        if not image:  # for an estimate the header is enough
            height, width = image_size(row.image, name=f"image of {row.id}")
            scale = min(1.0, self.image_side / max(height, width))
            return told, self._image_tokens(height * scale, width * scale)
        url, size = as_data_url(row.image, self.image_side, f"image of {row.id}")
        part = {"type": "image_url", "image_url": {"url": url, "detail": self.detail}}
        last = {**told[-1], "content": [{"type": "text", "text": told[-1]["content"]}, part]}
        return [*told[:-1], last], self._image_tokens(*size)

    def _image_tokens(self, height: float, width: float) -> int:
        return image_tokens(height, width, self.price or Price(0, 0), self.detail)

    def corrected(self, messages: list[dict], answer: str, problems: Mapping[str, str]) -> list[dict]:
        again = {"role": "user", "content": correction_prompt(problems)}
        return [*messages, {"role": "assistant", "content": answer}, again]

    def most_usd(self, messages: Sequence[Mapping], tokens_of_image: int, *, batch: bool = False) -> float:
        """What a request can cost at most; 0 if the price is unknown."""
        tokens = most_text_tokens(_texts(messages)) + 2 * tokens_of_image
        return self.price.usd(tokens, self.max_tokens, batch=batch) if self.price else 0.0

    def usd(self, usage: Usage | None, at_most: float, *, batch: bool = False) -> float:
        """What an answer did cost; a server that does not tell is taken to have asked the most."""
        if self.price is None or usage is None:
            return at_most
        return self.price.usd(usage.input, usage.output, usage.cached, batch=batch)

    def estimate(self, rows: Iterable[CaptionRow], *, batch: bool = False) -> Estimate:
        """Before anything is sent. Counts every row, also those that a journal may already have."""
        requests = tokens_in = tokens_out = 0
        at_most = 0.0
        for row in rows:
            if not (asked := self.style.asked_of(row)):
                continue
            messages, of_image = self.messages(row, asked, image=False)
            tokens_in += text_tokens(_texts(messages)) + of_image
            tokens_out += answer_tokens(asked)
            at_most += self.most_usd(messages, of_image, batch=batch)
            if self.price:  # the second question holds the first answer as well
                again = self.price.usd(self.max_tokens + 300, 0, batch=batch)
                at_most += self.most_usd(messages, of_image, batch=batch) + again
            requests += 1
        usd = self.price.usd(tokens_in, tokens_out, batch=batch) if self.price else None
        return Estimate(requests, tokens_in, tokens_out, usd, at_most if self.price else None)

    def write(self, rows: Iterable[CaptionRow], journal: str | os.PathLike) -> CaptionReport:
        """Writes what the journal does not have yet. After a kill or an error, call it again with the same journal.

        Ctrl-C once: no further request, those under way are kept. Errors are a `CaptionError` that says what to do; its
        `report` tells how far the run came.
        """
        client = self.client()  # a missing key is told before anything is read
        with CaptionJournal(journal) as book:
            if book.batches:
                raise BatchOpenError(
                    f"journal: {book.path} has {len(book.batches)} batch jobs under way; collect them first, by "
                    "write_by_batch with the same rows and journal"
                )
            book.warn_of_others(**self.told)
            return run_to_end(CaptionRun(self, client, book, rows).go())

    def read(self, rows: Iterable[CaptionRow], journal: str | os.PathLike) -> Iterator[Captions | None]:
        """For each row what the journal has of this writer's: None for a row still to be written."""
        if not Path(journal).is_file():
            raise FileNotFoundError(f"journal: there is no file {str(journal)!r}; write the captions first")
        with CaptionJournal(journal) as book:
            for row in rows:
                if not self.style.asked_of(row):
                    yield Captions(row.id, dict.fromkeys(self.style.captions, ""))
                else:
                    yield book.captions(self.key(row)) if self.key(row) in book else None


def _texts(messages: Sequence[Mapping]) -> list[str]:
    contents = [message["content"] for message in messages]
    return [content if isinstance(content, str) else content[0]["text"] for content in contents]


__all__ = ["BatchOpenError", "ChatWriter"]
