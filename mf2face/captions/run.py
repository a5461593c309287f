"""How a chat writer gets through its rows: many requests at once, waits, retries, and never more than the budget."""

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from configuration_mf2.facs import LabelSet
from mf2face.captions.chat import ChatClient, RowRefusedError, ServerRefusesError, TryAgainError, Usage, as_data_url
from mf2face.captions.check import UnreadableAnswerError, judge, read_answer
from mf2face.captions.journal import CaptionError, CaptionJournal
from mf2face.captions.prices import (
    PRICES,
    Budget,
    Estimate,
    Price,
    answer_tokens,
    image_tokens,
    most_text_tokens,
    text_tokens,
)
from mf2face.captions.prompts import chat_prompt, correction_prompt, prompt_version
from mf2face.captions.styles import CaptionRow, Captions, CaptionStyle
from processing_mf2.image_io import image_size


logger = logging.getLogger(__name__)

_LONGEST_WAIT = 600.0
_CROWDED_LIMIT = 30


class BudgetSpentError(CaptionError):
    pass


@dataclass
class CaptionReport:
    """What a run did. `usd` is None if the price is unknown; `usd_unsure` belongs to requests whose answer never came;
    `failed`: row -> why it was given up; the next run tries it again."""

    written: int = 0
    kept: int = 0
    unlabelled: int = 0
    by_rule: int = 0
    requests: int = 0
    usd: float | None = 0.0
    usd_unsure: float = 0.0
    tokens: Usage = field(default_factory=lambda: Usage(0, 0))
    failed: dict[str, str] = field(default_factory=dict)
    open_batches: int = 0

    def __str__(self) -> str:
        money = "" if self.usd is None else f", ${self.usd:,.4f}"
        money += f" and perhaps ${self.usd_unsure:,.4f} for answers that never came" if self.usd_unsure else ""
        text = f"{self.written} rows written ({self.by_rule} with a caption by rule), {self.kept} kept from before"
        text += f", {self.unlabelled} without labels, {self.requests} requests{money}"
        if self.open_batches:
            text += f", {self.open_batches} batch jobs under way"
        if self.failed:
            row, reason = next(iter(self.failed.items()))
            text += f"; {len(self.failed)} rows given up, among them {row}: {reason}"
        return text


class UniqueRows:
    """The rows that need a caption, one after the other; counts the others into the report."""

    def __init__(self, writer: "ChatWriter", book: CaptionJournal, rows: Iterable[CaptionRow], report: CaptionReport):
        self.writer, self.book, self.rows, self.report = writer, book, rows, report
        self.seen: set[int] = set()

    def __iter__(self) -> Iterator[CaptionRow]:
        for row in self.rows:
            if (name := hash(row.id)) in self.seen:
                raise ValueError(f"rows: the id {row.id!r} occurs twice, expected one id a row: give ids")
            self.seen.add(name)
            if not self.writer.style.asked_of(row):
                self.report.unlabelled += 1
            elif self.writer.key(row) in self.book:
                self.report.kept += 1
            else:
                yield row


class CaptionRun:
    """One call of `ChatWriter.write`."""

    def __init__(self, writer: "ChatWriter", client: ChatClient, book: CaptionJournal, rows: Iterable[CaptionRow]):
        self.writer, self.client, self.book = writer, client, book
        self.report = CaptionReport(usd=0.0 if writer.price else None)
        self.rows = iter(UniqueRows(writer, book, rows, self.report))
        self.total = len(rows) if hasattr(rows, "__len__") else None
        self.budget = Budget(writer.limit, book.spent + book.unsure)
        self.slots = asyncio.Semaphore(writer.concurrency)
        self.stopped: BaseException | None = None
        self.not_before, self.failures_in_a_row = 0.0, 0
        self.random = random.Random()
        self.counting: set[asyncio.Task] = set()

    async def go(self) -> CaptionReport:
        async with self.client:
            with tqdm(total=self.total, desc="captions", unit="row", disable=not self.writer.progress) as self.bar:
                # One row alone: a wrong key, an unknown model or an old server shows once, not `concurrency` times.
                await self._finish([asyncio.create_task(self._work(at_most=1))])
                if self.stopped is None:
                    # Some more than requests under way: they get ready, and wait for the disk, while others are sent.
                    workers = self.writer.concurrency + max(2, self.writer.concurrency // 2)
                    await self._finish([asyncio.create_task(self._work()) for _ in range(workers)])
                await asyncio.gather(*self.counting)
                self.bar.update(self.report.kept + self.report.unlabelled)
        if self.stopped is not None:
            self.stopped.report = self.report
            raise self.stopped
        return self.report

    async def _finish(self, workers: list[asyncio.Task]) -> None:
        """Waits for all workers; Ctrl-C stops them after the requests that are under way."""
        try:
            await asyncio.wait(workers)
        except asyncio.CancelledError:
            self.stopped = self.stopped or KeyboardInterrupt()
            await asyncio.wait(workers)
            raise
        for worker in workers:
            if worker.exception() is not None:
                raise worker.exception()

    async def _work(self, at_most: int | None = None) -> None:
        done = 0
        try:
            while self.stopped is None and done != at_most:
                row = next(self.rows, None)
                if row is None:
                    return
                await self._write(row)
                done += 1
        except Exception as error:
            self.stopped = self.stopped or error

    async def _write(self, row: CaptionRow) -> None:
        asked, key, attempts, crowded = self.writer.style.asked_of(row), self.writer.key(row), 0, 0
        answers = list(self.book.answers.get(key, []))
        captions, problems = judge(self.writer.style, row, answers, self.writer.model) if answers else (None, {})
        if captions is not None:  # both answers of a batch are here already
            self.book.add_captions(None, key, captions, 0.0, **self.writer.told)
            return self._count(captions)
        try:
            if self.writer.send_images:
                messages, of_image = await asyncio.to_thread(self.writer.messages, row, asked)
            else:
                messages, of_image = self.writer.messages(row, asked)
        except (ValueError, TypeError, OSError) as error:  # an image that cannot be read
            return self._give_up(row, str(error))
        while self.stopped is None:
            question = self.writer.corrected(messages, answers[0], problems) if answers else messages
            try:
                captions, problems = await self._ask(row, key, question, of_image, answers)
                if captions is not None:
                    self.failures_in_a_row = 0
                    return self._count(captions)
            except TryAgainError as failure:
                crowded, attempts = crowded + failure.crowded, attempts + (not failure.crowded)
                if attempts >= self.writer.max_attempts or crowded >= _CROWDED_LIMIT:
                    return self._give_up(row, failure.reason)
                await self._wait(failure, attempts + crowded)
            except RowRefusedError as refusal:
                return self._give_up(row, str(refusal))
        return None

    async def _ask(
        self, row: CaptionRow, key: str, question: list[dict], of_image: int, answers: list[str]
    ) -> tuple[Captions | None, dict[str, str]]:
        """One request. Its line stands on the disk before it is sent, and its answer's line in the file before another
        one may take its place among those under way."""
        held, at_most = await self._hold(question, of_image)
        usd = 0.0
        try:
            if self.stopped is not None:
                return None, {}
            number = self.book.open_request(held)
            await self.book.flushed()
            async with self.slots:
                await self._not_yet()
                if self.stopped is not None:
                    self.book.close_request(number)
                    return None, {}
                self.report.requests += 1
                content, usage = await self._answer(row, key, question, number, len(answers))
                usd = self._bill(usage, at_most)
                return self._keep(row, key, number, content, usd, answers)
        except TryAgainError as failure:
            if failure.lost:  # it stays open in the journal
                usd = held
                self.report.usd_unsure += held
            raise
        finally:
            self.budget.settle(held, usd)

    async def _answer(
        self, row: CaptionRow, key: str, question: list[dict], number: int, turn: int
    ) -> tuple[str, Usage | None]:
        try:
            return await self.client.ask(question, self.writer.style.asked_of(row), f"{key}-{turn}")
        except (TryAgainError, RowRefusedError, CaptionError) as failure:
            if not getattr(failure, "lost", False):
                self.book.close_request(number)
            raise

    def _keep(
        self, row: CaptionRow, key: str, number: int, content: str, usd: float, answers: list[str]
    ) -> tuple[Captions | None, dict[str, str]]:
        try:
            read_answer(content, self.writer.style.asked_of(row))
        except UnreadableAnswerError as error:
            self.book.close_request(number, usd)
            raise TryAgainError(f"the answer cannot be read: {error}") from None
        answers.append(content)
        captions, problems = judge(self.writer.style, row, answers, self.writer.model)
        if captions is None:
            self.book.add_answer(number, key, content, usd)
        else:
            self.book.add_captions(number, key, captions, usd, **self.writer.told)
        return captions, problems

    async def _hold(self, question: list[dict], of_image: int) -> tuple[float, float]:
        at_most = self.writer.most_usd(question, of_image)
        held = await self.budget.hold(at_most)
        if held is None:
            raise BudgetSpentError(
                f"budget: ${self.budget.spent:,.4f} of ${self.budget.limit:,.4f} are spent, one more request may cost "
                f"${at_most:,.4f}. What was written is kept; run again with a larger budget"
            )
        return held, at_most

    def _bill(self, usage: Usage | None, at_most: float) -> float:
        usd = self.writer.usd(usage, at_most)
        if usage is not None:
            old = self.report.tokens
            self.report.tokens = Usage(old.input + usage.input, old.output + usage.output, old.cached + usage.cached)
        if self.report.usd is not None:
            self.report.usd += usd
        return usd

    def _count(self, captions: Captions) -> None:
        """The next row need not wait until this one is on the disk; the end of the run does."""
        task = asyncio.create_task(self._count_kept(captions))
        self.counting.add(task)
        task.add_done_callback(self.counting.discard)

    async def _count_kept(self, captions: Captions) -> None:
        try:
            await self.book.flushed()
        except CaptionError as error:
            self.stopped = self.stopped or error
            return
        self.report.written += 1
        self.report.by_rule += captions.writer != self.writer.model
        if self.report.usd is not None:
            self.bar.set_postfix_str(f"${self.budget.spent:,.3f}", refresh=False)
        self.bar.update()

    def _give_up(self, row: CaptionRow, reason: str) -> None:
        self.report.failed[row.id] = reason
        self.failures_in_a_row += 1
        logger.warning("captions: row %s is given up for now: %s", row.id, reason)
        if self.failures_in_a_row > 10 + self.writer.concurrency:
            raise ServerRefusesError(
                f"server: the last {self.failures_in_a_row} rows all failed, the last one with: {reason}. What was "
                "written is kept; run again when the server is well"
            )

    async def _wait(self, failure: TryAgainError, attempts: int) -> None:
        delay = min(60.0, self.writer.backoff * 2 ** (attempts - 1)) * self.random.uniform(0.5, 1.0)
        if failure.wait is not None:
            if failure.wait > _LONGEST_WAIT:
                raise ServerRefusesError(
                    f"server: it asks to wait {failure.wait:,.0f} s ({failure.reason}). What was written is kept; run "
                    "again then"
                )
            delay = failure.wait + self.writer.backoff * self.random.random()
            if failure.crowded:  # the limit is the account's, not the row's: nobody asks until then
                self.not_before = max(self.not_before, time.monotonic() + failure.wait)
        await self._sleep_until(time.monotonic() + delay)

    async def _not_yet(self) -> None:
        while self.stopped is None and (left := self.not_before - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))

    async def _sleep_until(self, moment: float) -> None:
        while self.stopped is None and (left := moment - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))


def run_to_end(work: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run`, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: dict[str, Any] = {}

    def run() -> None:
        try:
            found["value"] = asyncio.run(work)
        except BaseException as error:
            found["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if "error" in found:
        raise found["error"]
    return found["value"]


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


__all__ = [
    "BatchOpenError",
    "BudgetSpentError",
    "CaptionReport",
    "CaptionRun",
    "ChatWriter",
    "UniqueRows",
    "run_to_end",
]
