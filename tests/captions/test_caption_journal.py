import asyncio
import json
import os
import random
import time

import pytest

from mf2face.captions import journal as caption_journal
from mf2face.captions.journal import CaptionError, CaptionJournal, JournalFullError, JournalInUseError
from mf2face.captions.styles import Captions


def fill(path, rows=3):
    with CaptionJournal(path) as book:
        for row in range(rows):
            number = book.open_request(0.5)
            book.add_captions(number, f"key{row}", Captions(f"r{row}", {"au_caption": "ä" * 40}, "m"), 0.25)
        lost = book.open_request(0.5)
        book.add_answer(book.open_request(0.5), "half", "{}", 0.125)
        asyncio.run(book.flushed())
        assert book.unsure == 0.5 and lost == rows + 1


def test_everything_is_back_after_it_was_closed(tmp_path):
    path = tmp_path / "new" / "journal.jsonl"
    fill(path)
    with CaptionJournal(path) as book:
        assert len(book) == 3 and "key2" in book and "half" not in book
        assert book.captions("key1") == Captions("r1", {"au_caption": "ä" * 40}, "m")
        assert book.spent == 0.75 + 0.125 and book.unsure == 0.5, "what was asked and never answered may be paid"
        assert book.answers == {"half": ["{}"]} and book.requests == 5
        book.add_captions(None, "half", Captions("h", {}, "m"), 0.0)
        assert book.answers == {} and "half" in book


def test_cut_off_at_any_byte_it_opens_and_loses_at_most_the_line_that_was_cut(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    fill(path, rows=2)
    whole = path.read_bytes()
    for size in range(0, len(whole), 29):
        caplog.clear()
        path.write_bytes(whole[:size])
        complete = [json.loads(line) for line in whole[:size].splitlines(keepends=True) if line.endswith(b"\n")]
        with CaptionJournal(path) as book:
            least = sum(line["event"] == "captions" for line in complete)
            assert least <= len(book) <= least + 1
            assert size in (0, len(whole)) or "the last line of" in caplog.text or whole[:size].endswith((b"\n", b"}"))
            book.add_captions(None, "later", Captions("l", {}, "m"), 0.0)
        with CaptionJournal(path) as book:
            assert "later" in book, size
            assert path.read_bytes().endswith(b"\n")


def test_all_that_wait_for_the_disk_share_one_write(tmp_path, monkeypatch):
    calls = []

    async def close(book, number):
        book.close_request(number)
        target = book._written
        await book.flushed()
        assert book._synced >= target, "came back before the line was on the disk"

    async def many(book):
        await asyncio.gather(*(close(book, number) for number in range(50)))

    with CaptionJournal(tmp_path / "j") as book:
        monkeypatch.setattr(os, "fsync", lambda _: (calls.append(1), time.sleep(0.02)))
        asyncio.run(many(book))
    assert len(calls) <= 6


def test_one_run_at_a_time(tmp_path):
    with CaptionJournal(tmp_path / "j"), pytest.raises(JournalInUseError, match="is in use by another run"):
        CaptionJournal(tmp_path / "j").__enter__()
    fill(tmp_path / "j")


def test_with_little_room_on_the_disk_nothing_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_journal, "MIN_FREE_BYTES", 1 << 62)
    with CaptionJournal(tmp_path / "j") as book, pytest.raises(JournalFullError, match="the disk is full"):
        book.open_request(0.1)


def test_every_flipped_bit_is_found(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    fill(path)
    whole, rng = path.read_bytes(), random.Random(0)
    with CaptionJournal(path) as book:
        expected = {key: book.captions(key) for key in ("key0", "key1", "key2")}
    header = whole.index(b"\n")
    for place in [*range(header), *(rng.randrange(header, len(whole)) for _ in range(200))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        caplog.clear()
        with CaptionJournal(path) as book:
            assert "expected a line as it was written" in caplog.text, place
            assert all(book.captions(key) == value for key, value in expected.items() if key in book)
            assert set(book._places) <= set(expected) and book.spent <= 0.875


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "line 2: got no JSON object"),
        ('{"event": "paid"}', "line 2: got the event 'paid'"),
        ('{"event": []}', r"line 2: got the event []"),
        ('{"event": "journal", "version": 1, "id": "y"}', "line 2: got the first line of a journal again"),
        ("[" * 100_000, "line 2: got maximum recursion depth"),
        ('{"event": "captions", "key": "k", "id": 3, "usd": 0, "texts": {}, "writer": "m"}', "line 2: got id: 3"),
        ('{"event": "captions", "key": "k", "id": "i", "usd": 0, "texts": "", "writer": "m"}', "got texts: ''"),
        ('{"event": "asked", "n": "1", "usd": 0.5}', "got n: '1'"),
        ('{"event": "asked", "n": 1, "usd": 1e999}', "got usd: inf"),
        ('{"event": "asked", "n": 1, "usd": NaN}', "got usd: nan"),
        ('{"event": "batch", "n": 7, "id": "b"}', "got 7"),
    ],
)
def test_a_line_of_an_older_journal_is_checked_by_its_fields(tmp_path, caplog, line, message):
    (tmp_path / "j").write_text(f'{{"event": "journal", "version": 1, "id": "x"}}\n{line}\n')
    with CaptionJournal(tmp_path / "j") as book:
        assert message in caplog.text and book.spent == 0 and len(book) == 0 and not book.batches
        book.add_captions(None, "new", Captions("n", {}, "m"), 0.0)
    with CaptionJournal(tmp_path / "j") as book:
        assert "new" in book


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "expected a journal of captions") for text in ("null", "my notes", '{"a": 1')),
        ('{"event":"journal","version":9,"id":"x"}\n', "is of version 9, expected 2"),
    ],
)
def test_another_file_is_left_as_it_is(tmp_path, text, message):
    (tmp_path / "j").write_text(text)
    with pytest.raises(CaptionError, match=message):
        CaptionJournal(tmp_path / "j").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["j"] and (tmp_path / "j").read_text() == text
