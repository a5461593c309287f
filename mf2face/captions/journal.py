"""The journal of a caption run: what was asked, paid and written, one line each, so that a kill costs nothing.

A line is on the disk before a request is sent, and another one follows its answer: what was asked and never answered
may have been paid, and is counted so. Images and keys are never in it. Each line ends in its checksum: captions of a
line that the disk changed are asked for again.
"""

import asyncio
import contextlib
import json
import logging
import os
import re
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mf2face.captions.styles import Captions
from mf2face.files import append_whole, check_room, locked, private


logger = logging.getLogger(__name__)

MIN_FREE_BYTES = 8 * 2**20
"""With less room on the disk nothing is asked any more: what has been asked must still find a place."""

_VERSION = 2
"""1: lines without a checksum; such a journal is read, and goes on without."""

_CHECKSUM = re.compile(rb',"crc32":"([0-9a-f]{8})"}\s*\Z')
_FIRST = b'{"event":"journal",'
_KEPT = "Make room and start again: what stands in it is kept"
_NUMBER, _TEXT = (int, float), (str,)
# Event -> its fields and their types.
_FIELDS: Mapping[str, Mapping[str, tuple]] = {
    "journal": {"id": _TEXT},
    "asked": {"n": (int,), "usd": _NUMBER},
    "batch": {"n": (int,), "id": _TEXT},
    "closed": {"usd": _NUMBER},
    "answer": {"key": _TEXT, "content": (str, type(None)), "usd": _NUMBER},
    "captions": {"key": _TEXT, "id": _TEXT, "usd": _NUMBER, "texts": (dict,), "writer": _TEXT},
}


class CaptionError(RuntimeError):
    """Why a caption run stopped. What was written before is kept, and the next run goes on from there."""


class JournalInUseError(CaptionError):
    pass


class JournalFullError(CaptionError):
    pass


class CaptionJournal:
    """`with CaptionJournal(path) as journal:`; one process at a time. Captions are read back from the file, not kept in
    memory.

    spent: dollars for certain. unsure: dollars of requests whose answer never came. answers: raw answers by key that
    are paid but not yet captions. batches: open batch jobs, number -> what is known of them.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.spent, self.answers, self.batches = 0.0, {}, {}
        self.requests, self.identity, self._version = 0, uuid.uuid4().hex, _VERSION
        self._places: dict[str, int] = {}
        self._kinds: Counter[tuple] = Counter()
        self._open: dict[int, float] = {}
        self._size = self._written = self._synced = 0
        self._syncing: asyncio.Future | None = None

    def __enter__(self) -> "CaptionJournal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        busy = f"journal: {self.path} is in use by another run; wait for it, stop it, or choose another journal"
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(f"{self.path}.lock", JournalInUseError(busy)))
            self._file = private(os.fspath(self.path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
            stack.callback(os.close, self._file)
            self._pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="journal"))
            self._load()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack, contextlib.suppress(OSError):
            os.fsync(self._file)

    @property
    def unsure(self) -> float:
        return sum(self._open.values())

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def warn_of_others(self, **identity: str) -> None:
        """Warns that captions of another style, model or prompt stay, and that the new ones are paid."""
        if self._kinds and tuple(identity.values()) not in self._kinds:
            kept = ", ".join(f"{count} of {' '.join(map(str, kind))}" for kind, count in self._kinds.items())
            wanted = " ".join(identity.values())
            logger.warning("journal: %s has no caption of %s yet; it keeps %s", self.path, wanted, kept)

    def captions(self, key: str) -> Captions:
        with open(self._file, "rb", closefd=False) as file:
            file.seek(self._places[key])
            line = json.loads(file.readline())
        return Captions(line["id"], line["texts"], line["writer"])

    def open_request(self, usd: float, **more: Any) -> int:
        """Before a request is sent. Its number closes it again."""
        try:
            check_room(self.path.parent, MIN_FREE_BYTES, _KEPT)
        except OSError as error:
            raise JournalFullError(f"journal: {error}") from None
        number = self.requests + 1
        self._append({"event": "asked", "n": number, "usd": usd, **more})
        return number

    def close_request(self, number: int, usd: float = 0.0) -> None:
        """It brought nothing that can be kept; `usd` is what it cost all the same."""
        self._append({"event": "closed", "n": number, "usd": usd})

    def add_answer(self, number: int, key: str, content: str | None, usd: float, *, batch: bool = False) -> None:
        """A readable answer that is no caption yet; None for one that cost money only. A batch stays open until
        `close_request`, when all its answers are here."""
        self._append({"event": "answer", "batch" if batch else "n": number, "key": key, "content": content, "usd": usd})

    def add_captions(self, number: int | None, key: str, captions: Captions, usd: float, **identity: str) -> None:
        line = {"event": "captions", "n": number, "key": key, "id": captions.id, "usd": usd, **identity}
        self._append({**line, "texts": dict(captions.texts), "writer": captions.writer})

    def name_batch(self, number: int, batch_id: str) -> None:
        self._append({"event": "batch", "n": number, "id": batch_id})

    async def flushed(self) -> None:
        """Returns when every line so far is on the disk. All that wait share the next write."""
        target = self._written
        while self._synced < target:
            if self._syncing is None:
                self._syncing = asyncio.ensure_future(self._sync())
            await asyncio.shield(self._syncing)

    async def _sync(self) -> None:
        written = self._written
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, os.fsync, self._file)
            self._synced = written
        except OSError as error:
            raise JournalFullError(f"journal: {self.path} could not be written to the disk ({error})") from None
        finally:
            self._syncing = None

    def _append(self, line: dict) -> None:
        place = self._size
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode()
        if self._version > 1:
            data = data[:-1] + f',"crc32":"{zlib.crc32(data[:-1]):08x}"}}'.encode()
        try:
            self._size = append_whole(self._file, place, data + b"\n")
        except OSError as error:
            raise JournalFullError(f"journal: {self.path} cannot grow ({error}). {_KEPT}") from None
        self._written += 1
        self._take(line, place)

    def _load(self) -> None:
        for number, (place, content) in enumerate(self._lines(), start=1):
            try:
                line = json.loads(content)
                _check_sum(content, required=False)
                _check_fields(line)
                if line["event"] == "journal":
                    if number > 1:
                        raise ValueError("the first line of a journal again")
                    self._version = line.get("version")
                    if self._version not in (1, _VERSION):
                        got = f"journal: {self.path} is of version {self._version}"
                        raise CaptionError(f"{got}, expected {_VERSION}; choose another file")
                _check_sum(content, required=self._version > 1)
                self._take(line, place)
            except (ValueError, KeyError, RecursionError) as error:
                expected = "expected a line as it was written. It is passed over; its captions are asked for again"
                logger.warning("journal: %s, line %d: got %s, %s", self.path, number, error, expected)
        if self._size == 0:
            self._append({"event": "journal", "version": _VERSION, "id": self.identity})

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with open(self.path, "rb") as file:
            for line in file:
                is_cut = not line.endswith(b"\n")
                if is_cut and not self._complete(line):
                    return
                place, self._size = self._size, self._size + len(line) + is_cut
                yield place, line
                if is_cut:
                    return

    def _complete(self, line: bytes) -> bool:
        """A kill cut the last line: it goes on if only its end is missing, and is removed otherwise."""
        if self._size == 0 and not line.startswith(_FIRST[: len(line)]):
            expected = "expected a journal of captions, or an empty file; choose another file"
            raise CaptionError(f"journal: {self.path} starts with {line[:40]!r}, {expected}")
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(json.loads(line), dict):
                os.write(self._file, b"\n")
                return True
        os.ftruncate(self._file, self._size)
        logger.warning("journal: the last line of %s was cut off; what it held is asked for again", self.path)
        return False

    def _take(self, line: Mapping[str, Any], place: int) -> None:
        event, number = line["event"], line.get("n")
        if event == "journal":
            self.identity = line["id"]
        elif event == "asked":
            self.requests = max(self.requests, number)
            self._open[number] = line["usd"]
            if line.get("batch"):
                self.batches[number] = {"id": None, "keys": set(), "count": line["batch"]}
        elif event == "batch":
            self.batches[number]["id"] = line["id"]
        else:
            self.spent += line["usd"]
            self._open.pop(number, None)
            if event == "closed":
                self.batches.pop(number, None)
            elif event == "answer":
                if line["content"] is not None:
                    self.answers.setdefault(line["key"], []).append(line["content"])
                if line.get("batch") in self.batches:
                    self.batches[line["batch"]]["keys"].add(line["key"])
            else:
                self._places[line["key"]] = place
                self._kinds[line.get("style"), line.get("model"), line.get("prompt")] += 1
                self.answers.pop(line["key"], None)


def _check_fields(line: Any) -> None:
    if not isinstance(line, dict):
        raise ValueError("no JSON object")
    if not isinstance(event := line.get("event"), str) or event not in _FIELDS:
        raise ValueError(f"the event {event!r}")
    for name, kinds in _FIELDS[event].items():
        value = line.get(name)
        if not isinstance(value, kinds) or (kinds is _NUMBER and not 0 <= value < float("inf")):
            raise ValueError(f"{name}: {value!r}")


def _check_sum(line: bytes, required: bool) -> None:
    if (match := _CHECKSUM.search(line, max(0, len(line) - 40))) is None:
        if required:
            raise ValueError("no checksum")
    elif (actual := f"{zlib.crc32(line[: match.start()]):08x}") != match[1].decode():
        raise ValueError(f"a line of the checksum {actual}, which says {match[1].decode()} of itself")


__all__ = ["CaptionError", "CaptionJournal", "JournalFullError", "JournalInUseError"]
