"""The Batch API: half the price for an answer within a day. A job is resumed by its id, which the journal keeps."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import IO, Any

from tqdm.auto import tqdm

from mf2face.captions.chat import ChatClient, ServerRefusesError, TryAgainError, Usage, content_of, usage_of
from mf2face.captions.check import UnreadableAnswerError, judge, read_answer
from mf2face.captions.journal import CaptionError, CaptionJournal
from mf2face.captions.prices import Budget
from mf2face.captions.run import BudgetSpentError, CaptionReport, ChatWriter, UniqueRows, run_to_end
from mf2face.captions.styles import CaptionRow


MAX_REQUESTS, MAX_BYTES = 50_000, 190 * 2**20
"""Of one job; the API's own limits are 50,000 and 200 MB."""

_ENDPOINT = "/v1/chat/completions"
_ENDED = ("completed", "failed", "expired", "cancelled")


class BatchFailedError(CaptionError):
    pass


def write_by_batch(
    writer: ChatWriter,
    rows: Iterable[CaptionRow],
    journal: str | os.PathLike,
    *,
    wait: bool = True,
    poll: float = 60.0,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
    rounds: int = 4,
) -> CaptionReport:
    """As `ChatWriter.write`, by batch jobs. Corrections, and what failed or expired, go into another job, `rounds` at
    most. wait: else it returns once jobs are under way (`report.open_batches`), and a later call collects them.

    rows are read several times: a list, or `caption_rows(dataset)`.
    """
    if iter(rows) is rows:
        raise TypeError("rows: got an iterator, expected something that can be read again, such as a list")
    client = writer.client()
    with CaptionJournal(journal) as book:
        book.warn_of_others(**writer.told)
        run = _BatchRun(writer, client, book, rows, poll, max_requests, max_bytes)
        return run_to_end(run.go(wait, rounds))


class _BatchRun:
    def __init__(
        self,
        writer: ChatWriter,
        client: ChatClient,
        book: CaptionJournal,
        rows: Iterable[CaptionRow],
        poll: float,
        max_requests: int,
        max_bytes: int,
    ) -> None:
        self.writer, self.client, self.book, self.rows = writer, client, book, rows
        self.poll, self.max_requests, self.max_bytes = poll, max_requests, max_bytes
        self.report = CaptionReport(usd=0.0 if writer.price else None)
        self.reasons: dict[str, str] = {}
        self.kept: int | None = None

    async def go(self, wait: bool, rounds: int) -> CaptionReport:
        try:
            async with self.client:
                for _ in range(rounds):
                    if not await self._collect(wait):
                        break
                    if not await self._send():
                        break
                else:
                    await self._collect(wait)
                self._tell([row for row, _ in self._todo()])
        except BaseException as error:
            error.report = self.report
            raise
        return self.report

    def _todo(self) -> Iterator[tuple[CaptionRow, str]]:
        """The rows that still need the model. Captions whose answers are all here are written on the way."""
        seen = CaptionReport()
        for row in UniqueRows(self.writer, self.book, self.rows, seen):
            key = self.writer.key(row)
            answers = self.book.answers.get(key, [])
            captions = judge(self.writer.style, row, answers, self.writer.model)[0] if answers else None
            if captions is None:
                yield row, key
            else:
                self.book.add_captions(None, key, captions, 0.0, **self.writer.told)
                self.report.written += 1
                self.report.by_rule += captions.writer != self.writer.model
        self.report.unlabelled = seen.unlabelled
        if self.kept is None:
            self.kept = self.report.kept = seen.kept

    def _tell(self, left: list[CaptionRow]) -> None:
        self.report.open_batches = len(self.book.batches)
        if not self.book.batches:
            self.report.failed = {row.id: self.reasons.get(self.writer.key(row), "no usable answer") for row in left}

    async def _send(self) -> bool:
        """Sends the rows that are left, as far as the budget goes, in as many jobs as it takes; whether any were."""
        todo, sent = self._todo(), False
        budget = Budget(self.writer.limit, self.book.spent + self.book.unsure)
        row = next(todo, None)
        while row is not None:
            with tempfile.TemporaryFile() as file:  # it holds the images; on the disk it has no name
                row, count, usd = self._fill(file, row, todo, budget)
                await self.book.flushed()
                if not count and not sent:
                    raise BudgetSpentError(
                        f"budget: ${budget.spent:,.4f} of ${budget.limit:,.4f} are spent, and no further request fits. "
                        "What was written is kept; run again with a larger budget"
                    )
                if not count:
                    return True
                await self._start(file, count, usd)
                sent = True
        await self.book.flushed()
        return sent

    def _fill(
        self, file: IO[bytes], item: tuple[CaptionRow, str] | None, todo: Iterator, budget: Budget
    ) -> tuple[tuple[CaptionRow, str] | None, int, float]:
        """(the first row that has no place in this job, how many have one, what they may cost)."""
        count, usd = 0, 0.0
        while item is not None and count < self.max_requests:
            row, key = item
            try:
                line, at_most = self._line(row, key)
            except (ValueError, TypeError, OSError) as error:  # an image that cannot be read
                self.reasons[key] = str(error)
                item = next(todo, None)
                continue
            if count and file.tell() + len(line) > self.max_bytes:
                break
            if (held := budget.try_hold(at_most)) is None:
                break
            file.write(line)
            count, usd, item = count + 1, usd + held, next(todo, None)
        return item, count, usd

    def _line(self, row: CaptionRow, key: str) -> tuple[bytes, float]:
        asked = self.writer.style.asked_of(row)
        messages, of_image = self.writer.messages(row, asked)
        if answers := self.book.answers.get(key):
            problems = judge(self.writer.style, row, answers, self.writer.model)[1]
            messages = self.writer.corrected(messages, answers[0], problems)
        body = self.client.body(messages, asked)
        line = {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}
        return json.dumps(line).encode() + b"\n", self.writer.most_usd(messages, of_image, batch=True)

    async def _start(self, file: IO[bytes], count: int, usd: float) -> None:
        """The journal knows of the job before the server does; should its id get lost, the server's list has it."""
        number = self.book.open_request(usd, batch=count)
        await self.book.flushed()

        async def upload() -> Any:
            file.seek(0)
            return await self.client.api.files.create(file=("captions.jsonl", file.read()), purpose="batch")

        tried = False

        async def create() -> str:
            nonlocal tried
            if tried and (found := await self._find(number)):
                return found
            tried = True
            job = await self.client.api.batches.create(
                input_file_id=uploaded.id,
                endpoint=_ENDPOINT,
                completion_window="24h",
                metadata={"mf2": self._token(number)},
            )
            return job.id

        try:
            uploaded = await self._try(upload)
            self.book.name_batch(number, await self._try(create))
        except CaptionError:
            with contextlib.suppress(Exception):
                if not await self._find(number):
                    self.book.close_request(number)
            raise
        self.report.requests += count
        await self.book.flushed()

    def _token(self, number: int) -> str:
        return f"{self.book.identity}-{number}"

    async def _find(self, number: int) -> str | None:
        async for job in self.client.api.batches.list(limit=100):
            if (job.metadata or {}).get("mf2") == self._token(number):
                return job.id
        return None

    async def _collect(self, wait: bool) -> bool:
        """Whether no job is under way any more."""
        for number, known in sorted(self.book.batches.items()):
            if known["id"] is None:
                if not (found := await self._try(lambda number=number: self._find(number))):
                    self.book.close_request(number)  # the kill came before the server had it
                    continue
                self.book.name_batch(number, found)
            job = await self._ended(known["id"], known["count"], wait)
            if job is None:
                return False
            for file_id in (job.output_file_id, job.error_file_id):
                if file_id:
                    await self._try(lambda number=number, file_id=file_id: self._download(number, file_id))
            await self.book.flushed()
            self.book.close_request(number)
            await self.book.flushed()
            if job.status in ("failed", "cancelled"):
                problems = "; ".join(self.client.clean(e.message) for e in (job.errors and job.errors.data) or [])
                raise BatchFailedError(
                    f"batch: {job.id} {job.status}{f' ({problems})' if problems else ''}. What it answered is kept; "
                    "run again, and if the account's limit for waiting jobs is the reason, with a smaller max_requests"
                )
        return True

    async def _ended(self, batch_id: str, count: int, wait: bool) -> Any:
        with tqdm(total=count, desc="batch", unit="row", disable=not self.writer.progress) as bar:
            while True:
                job = await self._try(lambda: self.client.api.batches.retrieve(batch_id))
                if job.request_counts:
                    bar.update(job.request_counts.completed + job.request_counts.failed - bar.n)
                if job.status in _ENDED:
                    return job
                if not wait:
                    return None
                await asyncio.sleep(self.poll)

    async def _download(self, number: int, file_id: str) -> None:
        """Answers go into the journal as they come; a second download passes over those that are there."""
        async for line in self._lines(file_id):
            found = json.loads(line)
            key = found["custom_id"]
            if key in self.book.batches[number]["keys"]:
                continue
            response = found.get("response") or {}
            if response.get("status_code") != 200:
                told = found.get("error") or (response.get("body") or {}).get("error") or response
                self.reasons[key] = self.client.clean(told.get("message", told) if isinstance(told, dict) else told)
                continue
            self._take(number, key, response["body"])

    def _take(self, number: int, key: str, body: dict) -> None:
        usage, content = usage_of(body), None
        usd = self.writer.usd(usage, 0.0, batch=True)
        try:
            content = content_of(body)
            read_answer(content, ())
        except (TryAgainError, UnreadableAnswerError) as error:
            self.reasons[key], content = f"the answer cannot be read: {error}", None
        self.book.add_answer(number, key, content, usd, batch=True)
        if usage is not None:
            old = self.report.tokens
            self.report.tokens = Usage(old.input + usage.input, old.output + usage.output, old.cached + usage.cached)
        if self.report.usd is not None:
            self.report.usd += usd

    async def _lines(self, file_id: str) -> AsyncIterator[str]:
        async with self.client.api.files.with_streaming_response.content(file_id) as response:
            async for line in response.iter_lines():
                if line.strip():
                    yield line

    async def _try(self, call: Callable[[], Awaitable[Any]]) -> Any:
        for attempt in range(self.writer.max_attempts):
            try:
                return await call()
            except CaptionError:
                raise
            except Exception as error:
                meaning = self.client.meaning(error)
            if not isinstance(meaning, TryAgainError):
                raise meaning if isinstance(meaning, CaptionError) else BatchFailedError(f"batch: {meaning}")
            await asyncio.sleep(meaning.wait or min(60.0, self.writer.backoff * 2**attempt))
        raise ServerRefusesError(f"server: {meaning.reason}. What was written is kept; run again when it is well")


__all__ = ["MAX_BYTES", "MAX_REQUESTS", "BatchFailedError", "write_by_batch"]
