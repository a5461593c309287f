"""The Batch API: half the price for an answer within a day. A job is resumed by its id, which the journal keeps."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from tqdm.auto import tqdm

from mf2face.captions.chat import ServerRefusesError, TryAgainError, content_of, usage_of
from mf2face.captions.check import UnreadableAnswerError, read_answer
from mf2face.captions.journal import CaptionError, CaptionJournal
from mf2face.captions.prices import Budget
from mf2face.captions.run import KEPT, BudgetSpentError, CaptionReport, ChatWriter, Run, run_to_end
from mf2face.captions.styles import CaptionRow


_ENDPOINT = "/v1/chat/completions"
_ENDED = ("completed", "failed", "expired", "cancelled")


class BatchFailedError(CaptionError):
    pass


@dataclass(frozen=True)
class BatchLimits:
    """poll: seconds between two looks at a job. rounds: jobs that correct or repeat others. max_requests, max_bytes: of
    one job; the API's own limits are 50,000 and 200 MB."""

    poll: float = 60.0
    rounds: int = 4
    max_requests: int = 50_000
    max_bytes: int = 190 * 2**20


def write_by_batch(
    writer: ChatWriter, rows: Iterable[CaptionRow], journal: str | os.PathLike, *, wait: bool = True, **limits: Any
) -> CaptionReport:
    """As `ChatWriter.write`, by batch jobs; corrections, and what failed or expired, go into further jobs.

    wait: else it returns once jobs are under way (`report.open_batches`), and a later call collects them. rows: read
    several times, so a list or `CaptionRows(dataset)`. limits: fields of `BatchLimits`.
    """
    if iter(rows) is rows:
        raise TypeError("rows: got an iterator, expected something that can be read again, such as a list")
    client = writer.client()
    with CaptionJournal(journal) as book:
        book.warn_of_others(**writer.identity)
        return run_to_end(_BatchRun(writer, client, book, rows).go(wait, BatchLimits(**limits)))


class _BatchRun(Run):
    async def go(self, wait: bool, limits: BatchLimits) -> CaptionReport:
        self.limits, self.reasons, self.first = limits, {}, True
        try:
            async with self.client:
                for _ in range(limits.rounds):
                    if not await self._collect(wait) or not await self._send():
                        break
                else:
                    await self._collect(wait)
                left = list(self._todo())
        except BaseException as error:
            error.report = self.report
            raise
        self.report.open_batches = len(self.book.batches)
        if not self.book.batches:
            self.report.failed = {row.id: self.reasons.get(key, "no usable answer") for row, key in left}
        return self.report

    def _todo(self) -> Iterator[tuple[CaptionRow, str]]:
        """The rows that still need the model, and their keys. Captions whose answers are all here are written."""
        report = CaptionReport()
        for row in self.unwritten(report):
            key = self.writer.key(row)
            captions, _ = self.judge(row, self.book.answers.get(key, []))
            if captions is None:
                yield row, key
            else:
                self.book.add_captions(None, key, captions, 0.0, **self.writer.identity)
                self.count(captions)
        self.report.unlabelled = report.unlabelled
        if self.first:  # later passes also count what this run wrote
            self.report.kept, self.first = report.kept, False

    async def _send(self) -> bool:
        """Sends the rows that are left, as far as the budget goes, in as many jobs as it takes; whether any were."""
        todo, sent = self._todo(), False
        budget = Budget(self.writer.budget, self.book.spent + self.book.unsure)
        item = next(todo, None)
        while item is not None:
            with tempfile.TemporaryFile() as file:  # it holds the images; on the disk it has no name
                item, count, usd = self._fill(file, item, todo, budget)
                await self.book.flushed()
                if item is not None and not count and not sent:
                    raise BudgetSpentError(f"{budget}, and no further request fits. {KEPT} with a larger budget")
                if not count:
                    break
                await self._start(file, count, usd)
                sent = True
        await self.book.flushed()
        return sent

    def _fill(
        self, file: IO[bytes], item: tuple[CaptionRow, str] | None, todo: Iterator, budget: Budget
    ) -> tuple[tuple[CaptionRow, str] | None, int, float]:
        """Writes one job's requests: the first row that has no place in it, how many have one, what they may cost."""
        count, usd = 0, 0.0
        while item is not None and count < self.limits.max_requests:
            try:
                line, at_most = self._line(*item)
            except (ValueError, TypeError, OSError) as error:  # an image that cannot be read
                self.reasons[item[1]] = str(error)
                item = next(todo, None)
                continue
            if count and file.tell() + len(line) > self.limits.max_bytes:
                break
            if (held := budget.try_hold(at_most)) is None:
                break
            file.write(line)
            count, usd, item = count + 1, usd + held, next(todo, None)
        return item, count, usd

    def _line(self, row: CaptionRow, key: str) -> tuple[bytes, float]:
        messages, image_tokens = self.writer.messages(row)
        answers = self.book.answers.get(key, [])
        messages = self.writer.corrected(messages, answers, self.judge(row, answers)[1])
        body = self.client.body(messages, self.writer.style.asked_of(row))
        line = {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}
        return json.dumps(line).encode() + b"\n", self.writer.most_usd(messages, image_tokens, batch=True)

    async def _start(self, file: IO[bytes], count: int, usd: float) -> None:
        """The journal knows of the job before the server does; should its id get lost, the server's list has it."""
        number, attempts = self.book.open_request(usd, batch=count), 0
        await self.book.flushed()
        file.seek(0)
        content = file.read()

        async def create() -> str:
            nonlocal attempts
            attempts += 1
            if attempts > 1 and (batch_id := await self._find(number)):
                return batch_id
            options = {"completion_window": "24h", "metadata": {"mf2": self._token(number)}}
            job = await self.client.api.batches.create(input_file_id=uploaded.id, endpoint=_ENDPOINT, **options)
            return job.id

        try:
            upload = self.client.api.files.create
            uploaded = await self._try(lambda: upload(file=("captions.jsonl", content), purpose="batch"))
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
                if not (batch_id := await self._try(lambda number=number: self._find(number))):
                    self.book.close_request(number)  # the kill came before the server had it
                    continue
                self.book.name_batch(number, batch_id)
            job = await self._ended(known["id"], known["count"], wait)
            if job is None:
                return False
            for file_id in filter(None, (job.output_file_id, job.error_file_id)):
                await self._try(lambda number=number, file_id=file_id: self._download(number, file_id))
            await self.book.flushed()
            self.book.close_request(number)
            await self.book.flushed()
            if job.status in ("failed", "cancelled"):
                problems = "; ".join(self.client.clean(e.message) for e in (job.errors and job.errors.data) or [])
                got = f"{job.id} {job.status}{f' ({problems})' if problems else ''}. What it answered is kept"
                advice = "run again; if the account's limit for waiting jobs is the reason, with a smaller max_requests"
                raise BatchFailedError(f"batch: {got}; {advice}")
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
                await asyncio.sleep(self.limits.poll)

    async def _download(self, number: int, file_id: str) -> None:
        """Answers go into the journal as they come; a second download passes over those that are there."""
        async with self.client.api.files.with_streaming_response.content(file_id) as response:
            async for line in response.iter_lines():
                if line.strip():
                    self._take(number, json.loads(line))

    def _take(self, number: int, line: dict[str, Any]) -> None:
        key, response = line["custom_id"], line.get("response") or {}
        if key in self.book.batches[number]["keys"]:
            return
        body = response.get("body") or {}
        if response.get("status_code") != 200:
            error = line.get("error") or body.get("error") or response
            self.reasons[key] = self.client.clean(error.get("message", error) if isinstance(error, dict) else error)
            return
        usage, content = usage_of(body), None
        try:
            content = content_of(body)
            read_answer(content, ())
        except (TryAgainError, UnreadableAnswerError) as error:
            self.reasons[key], content = f"the answer cannot be read: {error}", None
        self.book.add_answer(number, key, content, self.bill(usage, 0.0, batch=True), batch=True)

    async def _try(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """The client's own retries would create a job twice, and cannot go on with half a download."""
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
        raise ServerRefusesError(f"server: {meaning.reason}. {KEPT} when it is well")


__all__ = ["BatchFailedError", "BatchLimits", "write_by_batch"]
