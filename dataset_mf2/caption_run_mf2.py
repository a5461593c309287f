"""How a chat writer gets through its rows: many requests at once, waits, retries, and never more than the budget."""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .caption_check_mf2 import UnreadableAnswerError, judge, read_answer
from .caption_client_mf2 import ChatClient, RowRefusedError, ServerRefusesError, TryAgainError, Usage
from .caption_journal_mf2 import CaptionError, CaptionJournal
from .caption_prices_mf2 import Budget
from .caption_styles_mf2 import CaptionRow, Captions


if TYPE_CHECKING:
    from .captioner_mf2 import ChatWriter

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


__all__ = ["BudgetSpentError", "CaptionReport", "CaptionRun", "UniqueRows", "run_to_end"]
