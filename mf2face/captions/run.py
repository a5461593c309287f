"""A chat writer and its run: many requests at once, waits, retries, and never more than the budget."""

import asyncio
import logging
import operator
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from configuration_mf2.facs import LabelSet
from mf2face.captions.chat import ChatClient, RowRefusedError, ServerRefusesError, TryAgainError, Usage, as_data_url
from mf2face.captions.check import UnreadableAnswerError, judge, read_answer
from mf2face.captions.journal import CaptionError, CaptionJournal
from mf2face.captions.prices import PRICES, Budget, Estimate, Price, answer_tokens, most_text_tokens, text_tokens
from mf2face.captions.prompts import chat_prompt, correction_prompt, prompt_version
from mf2face.captions.styles import CaptionRow, Captions, CaptionStyle
from processing_mf2.image_io import image_size


logger = logging.getLogger(__name__)

_LONGEST_WAIT = 600.0
_CROWDED_LIMIT = 30
KEPT = "What was written is kept; run again"


class BudgetSpentError(CaptionError):
    pass


class BatchOpenError(CaptionError):
    """The journal has a batch job under way, whose rows must not be asked for a second time."""


@dataclass
class CaptionReport:
    """What a run did, in `unit`: rows, or captions that were asked for one by one.

    `usd` is None if the price is unknown; `usd_unsure` belongs to requests whose answer never came; `failed`: row ->
    why it was given up; the next run tries it again.
    """

    unit: str = "rows"
    written: int = 0
    kept: int = 0
    unlabelled: int = 0
    by_rule: int = 0
    requests: int = 0
    usd: float | None = 0.0
    usd_unsure: float = 0.0
    tokens: Usage = field(default_factory=Usage)
    failed: dict[str, str] = field(default_factory=dict)
    open_batches: int = 0

    def __str__(self) -> str:
        money = "" if self.usd is None else f", ${self.usd:,.4f}"
        money += f" and perhaps ${self.usd_unsure:,.4f} for answers that never came" if self.usd_unsure else ""
        text = (
            f"{self.written} {self.unit} written ({self.by_rule} with a caption by rule), {self.kept} kept from before"
        )
        text += f", {self.unlabelled} without labels, {self.requests} requests{money}"
        if self.open_batches:
            text += f", {self.open_batches} batch jobs under way"
        if self.failed:
            row, reason = next(iter(self.failed.items()))
            text += f"; {len(self.failed)} rows given up, among them {row}: {reason}"
        return text


class Run:
    """What one call of a writer shares, whether its requests are single or in batches."""

    def __init__(self, writer: "ChatWriter", client: ChatClient, book: CaptionJournal, rows: Iterable[CaptionRow]):
        self.writer, self.client, self.book, self.rows = writer, client, book, writer.questions(rows)
        self.report = CaptionReport(writer.unit, usd=0.0 if writer.price else None)

    def unwritten(self, report: CaptionReport) -> Iterator[CaptionRow]:
        """The rows that need a caption; counts the others into the report."""
        seen: set[int] = set()
        for row in self.rows:
            if (name := hash((row.id, row.caption))) in seen:
                raise ValueError(f"rows: the id {row.id!r} occurs twice, expected one id a row: give ids")
            seen.add(name)
            if not self.writer.style.asked_of(row):
                report.unlabelled += 1
            elif self.writer.key(row) in self.book:
                report.kept += 1
            else:
                yield row

    def judge(self, row: CaptionRow, answers: Sequence[str]) -> tuple[Captions | None, dict[str, str]]:
        return judge(self.writer.style, row, answers, self.writer.model) if answers else (None, {})

    def count(self, captions: Captions) -> None:
        self.report.written += 1
        self.report.by_rule += captions.writer != self.writer.model

    def bill(self, usage: Usage | None, at_most: float, *, batch: bool = False) -> float:
        """What an answer did cost; a server that does not say is taken to have asked the most."""
        price = self.writer.price
        usd = at_most if price is None or usage is None else price.usd(usage.input, usage.output, usage.cached, batch)
        self.report.tokens += usage or Usage()
        if self.report.usd is not None:
            self.report.usd += usd
        return usd


class CaptionRun(Run):
    """One call of `ChatWriter.write`."""

    def __init__(self, writer: "ChatWriter", client: ChatClient, book: CaptionJournal, rows: Iterable[CaptionRow]):
        super().__init__(writer, client, book, rows)
        self.todo = self.unwritten(self.report)
        self.budget = Budget(writer.budget, book.spent + book.unsure)
        self.stopped: BaseException | None = None
        self.not_before, self.failures_in_a_row = 0.0, 0

    async def go(self) -> CaptionReport:
        async with self.client:
            total = operator.length_hint(self.rows) or None
            with tqdm(
                total=total, desc="captions", unit=self.writer.unit[:-1], disable=not self.writer.progress
            ) as self.bar:
                # One row alone: a wrong key, an unknown model or an old server shows once, not `concurrency` times.
                await self._finish([asyncio.create_task(self._work(at_most=1))])
                if self.stopped is None:
                    await self._finish([asyncio.create_task(self._work()) for _ in range(self.writer.concurrency)])
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
            worker.result()

    async def _work(self, at_most: int | None = None) -> None:
        done = 0
        try:
            while self.stopped is None and done != at_most and (row := next(self.todo, None)) is not None:
                await self._write(row)
                done += 1
        except Exception as error:
            self.stopped = self.stopped or error

    async def _write(self, row: CaptionRow) -> None:
        writer, key, attempts, crowded = self.writer, self.writer.key(row), 0, 0
        answers = list(self.book.answers.get(key, []))
        captions, problems = self.judge(row, answers)
        if captions is not None:  # both answers of a batch are here already
            self.book.add_captions(None, key, captions, 0.0, **writer.identity)
            return await self._show(captions)
        try:
            messages, image_tokens = await asyncio.to_thread(writer.messages, row)
        except (ValueError, TypeError, OSError) as error:  # an image that cannot be read
            return self._give_up(row, str(error))
        while self.stopped is None:
            try:
                question = writer.corrected(messages, answers, problems)
                captions, problems = await self._ask(row, key, question, image_tokens, answers)
                if captions is not None:
                    self.failures_in_a_row = 0
                    return await self._show(captions)
            except TryAgainError as failure:
                crowded, attempts = crowded + failure.crowded, attempts + (not failure.crowded)
                if attempts >= writer.max_attempts or crowded >= _CROWDED_LIMIT:
                    return self._give_up(row, failure.reason)
                await self._wait(failure, attempts + crowded)
            except RowRefusedError as refusal:
                return self._give_up(row, str(refusal))
        return None

    async def _ask(
        self, row: CaptionRow, key: str, question: list[dict], image_tokens: int, answers: list[str]
    ) -> tuple[Captions | None, dict[str, str]]:
        """One request; its line is on the disk before it is sent."""
        at_most = self.writer.most_usd(question, image_tokens)
        if (held := await self.budget.hold(at_most)) is None:
            raise BudgetSpentError(
                f"{self.budget}, one more request may cost ${at_most:,.4f}. {KEPT} with a larger budget"
            )
        number, usd = None, 0.0
        try:
            await self._sleep_until(lambda: self.not_before)
            if self.stopped is not None:
                return None, {}
            number = self.book.open_request(held)
            await self.book.flushed()
            self.report.requests += 1
            asked = self.writer.style.asked_of(row)
            content, usage = await self.client.ask(question, asked, f"{key}-{len(answers)}")
            usd = self.bill(usage, at_most)
            return self._keep(row, key, number, content, usd, answers)
        except (TryAgainError, RowRefusedError, CaptionError) as failure:
            if getattr(failure, "lost", False):  # it stays open in the journal
                usd = held
                self.report.usd_unsure += held
            elif number is not None:
                self.book.close_request(number, usd)
            raise
        finally:
            self.budget.settle(held, usd)

    def _keep(
        self, row: CaptionRow, key: str, number: int, content: str, usd: float, answers: list[str]
    ) -> tuple[Captions | None, dict[str, str]]:
        try:
            read_answer(content, ())
        except UnreadableAnswerError as error:
            raise TryAgainError(f"the answer cannot be read: {error}") from None
        answers.append(content)
        captions, problems = self.judge(row, answers)
        if captions is None:
            self.book.add_answer(number, key, content, usd)
        else:
            self.book.add_captions(number, key, captions, usd, **self.writer.identity)
        return captions, problems

    async def _show(self, captions: Captions) -> None:
        await self.book.flushed()
        self.count(captions)
        if self.report.usd is not None:
            self.bar.set_postfix_str(f"${self.budget.spent:,.3f}", refresh=False)
        self.bar.update()

    def _give_up(self, row: CaptionRow, reason: str) -> None:
        self.report.failed[row.id] = reason
        self.failures_in_a_row += 1
        logger.warning("captions: row %s is given up for now: %s", row.id, reason)
        if self.failures_in_a_row > 10 + self.writer.concurrency:
            failures = f"the last {self.failures_in_a_row} rows all failed, the last one with: {reason}"
            raise ServerRefusesError(f"server: {failures}. {KEPT} when the server is well")

    async def _wait(self, failure: TryAgainError, attempts: int) -> None:
        delay = min(60.0, self.writer.backoff * 2 ** (attempts - 1)) * random.uniform(0.5, 1.0)
        if failure.wait is not None:
            if failure.wait > _LONGEST_WAIT:
                wait = f"it asks to wait {failure.wait:,.0f} s ({failure.reason})"
                raise ServerRefusesError(f"server: {wait}. {KEPT} then")
            delay = failure.wait + self.writer.backoff * random.random()
            if failure.crowded:  # the limit is the account's, not the row's: all wait
                self.not_before = max(self.not_before, time.monotonic() + failure.wait)
        until = time.monotonic() + delay
        await self._sleep_until(lambda: until)

    async def _sleep_until(self, moment: Callable[[], float]) -> None:
        """moment: called again and again, for a rate limit may be extended meanwhile."""
        while self.stopped is None and (left := moment() - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.5))


class OneByOne:
    """Rows as questions for one caption each, read as often as the rows can be."""

    def __init__(self, rows: Iterable[CaptionRow], captions: Sequence[str]) -> None:
        self.rows, self.captions = rows, captions

    def __len__(self) -> int:
        return len(self.rows) * len(self.captions)

    def __iter__(self) -> Iterator[CaptionRow]:
        return (replace(row, caption=caption) for row in self.rows for caption in self.captions)


def run_to_end(work: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run`, also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@dataclass
class ChatWriter:
    """Asks an OpenAI-compatible server (`base_url`; your own vLLM or llama.cpp too) for a style's captions.

    protocol: joint asks for all captions of an image at once; paper as the MFA paper did, three separate prompts of
    three stages each (role, worked example, cue), with the image. Answers are checked against the labels alike.
    send_images: faces are personal data, so only labels are sent unless this is set; then the longer side is
    `image_side` at most. concurrency: requests under way at once. max_attempts: failures after which a row is given up.
    budget: dollars, over all runs of a journal, that are never passed. price: for models that `PRICES` lacks; only a
    budget and an estimate need it. backoff: seconds before a second attempt; it doubles.
    """

    model: str = "gpt-4o"
    _: KW_ONLY
    style: Any = "mfa"
    protocol: Literal["joint", "paper"] = "joint"
    label_set: str | LabelSet = "mfa"
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    send_images: bool = False
    image_side: int = 512
    detail: str = "high"
    concurrency: int = 16
    max_attempts: int = 6
    timeout: float = 120.0
    max_tokens: int = 1000
    temperature: float | None = None
    budget: float | None = None
    price: Price | None = None
    backoff: float = 0.5
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.detail not in ("low", "high"):
            raise ValueError(f"detail: got {self.detail!r}, expected 'low' or 'high'")
        if self.protocol not in ("joint", "paper"):
            raise ValueError(f"protocol: got {self.protocol!r}, expected 'joint' or 'paper'")
        if self.protocol == "paper" and (self.style != "mfa" or not self.send_images):
            got = f"style {self.style!r}, send_images {self.send_images}"
            raise ValueError(f"protocol: got 'paper' with {got}, expected 'mfa' and True: GPT-4o saw the images")
        self.price = self.price or PRICES.get(self.model)
        if self.budget is not None and self.price is None:
            advice = "pass price=Price(input=..., output=...), in dollars for a million tokens"
            raise ValueError(f"budget: the price of {self.model!r} is not known, expected one for a budget; {advice}")
        Budget(self.budget)  # its checks
        self.style = CaptionStyle(self.style, self.label_set, seed=self.seed)
        self.prompt = prompt_version(self.style.asked, self.send_images)
        if self.send_images:
            self.prompt += f"-{self.detail}{self.image_side}"
        self.prompt += "-paper" if self.protocol == "paper" else ""

    @property
    def unit(self) -> str:
        return "captions" if self.protocol == "paper" else "rows"

    def questions(self, rows: Iterable[CaptionRow]) -> Iterable[CaptionRow]:
        return OneByOne(rows, self.style.asked) if self.protocol == "paper" else rows

    @property
    def identity(self) -> dict[str, str]:
        """What the journal keeps of this writer beside its captions."""
        return {"style": self.style.name, "model": self.model, "prompt": self.prompt}

    def client(self) -> ChatClient:
        names = ("base_url", "api_key", "timeout", "max_tokens", "temperature")
        return ChatClient(self.model, **{name: getattr(self, name) for name in names})

    def key(self, row: CaptionRow) -> str:
        return self.style.key(row, self.model, self.prompt)

    def messages(self, row: CaptionRow, *, image: bool = True) -> tuple[list[dict], int]:
        """The question, and its image's tokens. image: whether it is read; an estimate needs its header only."""
        asked, image_tokens = self.style.asked_of(row), (self.price or Price(0, 0)).image_tokens
        prompt = chat_prompt(asked, row.au_labels, row.emotion, self.style.label_set, with_image=self.send_images)
        if not self.send_images:
            return prompt, 0
        name = f"image of {row.id}"
        if row.image is None:
            raise ValueError(f"image: row {row.id} has none, expected one because send_images is set")
        if not image:
            height, width = image_size(row.image, name=name)
            scale = min(1.0, self.image_side / max(height, width))
            return prompt, image_tokens(height * scale, width * scale, self.detail)
        url, size = as_data_url(row.image, self.image_side, name)
        part = {"type": "image_url", "image_url": {"url": url, "detail": self.detail}}
        last = {**prompt[-1], "content": [{"type": "text", "text": prompt[-1]["content"]}, part]}
        return [*prompt[:-1], last], image_tokens(*size, self.detail)

    def corrected(self, messages: list[dict], answers: Sequence[str], problems: Mapping[str, str]) -> list[dict]:
        """The question again, with the first answer and what is wrong with it, if there is one."""
        if not answers:
            return messages
        again = {"role": "user", "content": correction_prompt(problems)}
        return [*messages, {"role": "assistant", "content": answers[0]}, again]

    def most_usd(self, messages: Sequence[Mapping], image_tokens: int, *, batch: bool = False) -> float:
        """What a request can cost at most; 0 if the price is unknown."""
        tokens = most_text_tokens(_texts(messages)) + 2 * image_tokens
        return self.price.usd(tokens, self.max_tokens, batch=batch) if self.price else 0.0

    def estimate(self, rows: Iterable[CaptionRow], *, batch: bool = False) -> Estimate:
        """Counts every row, also those that a journal may already have."""
        requests = tokens_in = tokens_out = 0
        at_most = 0.0
        for row in self.questions(rows):
            if not (asked := self.style.asked_of(row)):
                continue
            messages, image_tokens = self.messages(row, image=False)
            tokens_in += text_tokens(_texts(messages)) + image_tokens
            tokens_out += answer_tokens(asked)
            at_most += 2 * self.most_usd(messages, image_tokens, batch=batch)
            if self.price:  # the second question holds the first answer as well
                at_most += self.price.usd(self.max_tokens + 300, 0, batch=batch)
            requests += 1
        usd = self.price.usd(tokens_in, tokens_out, batch=batch) if self.price else None
        return Estimate(requests, tokens_in, tokens_out, usd, at_most if self.price else None)

    def write(self, rows: Iterable[CaptionRow], journal: str | os.PathLike) -> CaptionReport:
        """Writes what the journal lacks: after Ctrl-C, a kill or a `CaptionError` (its `report` says how far the run
        came), call it again with the same journal."""
        client = self.client()  # a missing key is reported before anything is read
        with CaptionJournal(journal) as book:
            if book.batches:
                advice = "collect them first, by write_by_batch with the same rows and journal"
                raise BatchOpenError(f"journal: {book.path} has {len(book.batches)} batch jobs under way; {advice}")
            book.warn_of_others(**self.identity)
            return run_to_end(CaptionRun(self, client, book, rows).go())

    def read(self, rows: Iterable[CaptionRow], journal: str | os.PathLike) -> Iterator[Captions | None]:
        """For each row what the journal has of this writer's: None for a row still to be written."""
        if not Path(journal).is_file():
            raise FileNotFoundError(f"journal: there is no file {str(journal)!r}; write the captions first")
        with CaptionJournal(journal) as book:
            for row in rows:
                keys = [self.key(one) for one in self.questions([row]) if self.style.asked_of(one)]
                yield self._joined(row, map(book.captions, keys)) if all(key in book for key in keys) else None

    def _joined(self, row: CaptionRow, parts: Iterable[Captions]) -> Captions:
        """A row's captions from the answers to its questions; none where nothing is known of it."""
        texts, writer, by_rule = dict.fromkeys(self.style.captions, ""), "", []
        for part in parts:
            written = {name: text for name, text in part.texts.items() if text}
            texts |= written
            writer = part.writer if self.protocol == "joint" else self.model
            by_rule += written if part.writer != self.model else []
        if self.protocol == "paper" and by_rule:
            writer = f"{self.model} (rule: {', '.join(by_rule)})"
        return Captions(row.id, texts, writer)


def _texts(messages: Sequence[Mapping]) -> list[str]:
    contents = [message["content"] for message in messages]
    return [content if isinstance(content, str) else content[0]["text"] for content in contents]


__all__ = ["BatchOpenError", "BudgetSpentError", "CaptionReport", "ChatWriter", "Run", "run_to_end"]
