import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from chat_server import LoopbackChat

from mf2face.captions.chat import KeyMissingError
from mf2face.captions.journal import CaptionJournal
from mf2face.captions.prices import Price
from mf2face.captions.run import BatchOpenError, ChatWriter
from mf2face.captions.styles import STYLES, CaptionRow


EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = [CaptionRow(f"c/v/{n}", [n % 2, 1, *[0] * 10], n % 8, np.full((600, 300, 3), n, "uint8")) for n in range(6)]


def load(name):
    path = EXAMPLES / f"{name}.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(path.parent))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def chat():
    with LoopbackChat() as server:
        yield server


def writer(chat, **options):
    return ChatWriter(**{"base_url": chat.url, "api_key": chat.key, "progress": False, "concurrency": 4, **options})


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_written_and_read_back(tmp_path, chat, style):
    writing, rows = writer(chat, style=style), [*ROWS, CaptionRow("none", [-1] * 12, -1)]
    report = writing.write(rows, tmp_path / "j")
    assert (report.written, report.unlabelled, report.by_rule, report.requests) == (6, 1, 0, 6)
    found = list(writing.read(rows, tmp_path / "j"))
    assert [row.id for row in found] == [row.id for row in rows] and found[-1].writer == ""
    assert all(list(row.texts) == list(STYLES[style]) and all(row.texts.values()) for row in found[:-1])
    again = writing.write(rows, tmp_path / "j")
    assert (again.written, again.kept, again.requests, again.usd) == (0, 6, 0, 0)


def test_another_prompt_model_or_label_is_not_mixed_with_what_is_there(tmp_path, chat, caplog):
    writer(chat).write(ROWS, tmp_path / "j")
    assert not caplog.text
    assert writer(chat, model="gpt-4o-mini").write(ROWS[:2], tmp_path / "j").written == 2
    assert "has no caption of mfa gpt-4o-mini" in caplog.text and "it keeps 6 of mfa gpt-4o " in caplog.text
    assert writer(chat, send_images=True).write(ROWS[:2], tmp_path / "j").written == 2
    other = CaptionRow(ROWS[0].id, [1] * 12, 0)
    assert writer(chat).write([other], tmp_path / "j").written == 1
    changed = writer(chat)
    changed.prompt = "another"
    assert list(changed.read(ROWS, tmp_path / "j")) == [None] * 6
    assert writer(chat).write(ROWS, tmp_path / "j").kept == 6


def test_an_image_is_sent_only_when_it_was_asked_for(tmp_path, chat):
    for asked in (False, True):
        chat.bodies.clear()
        writer(chat, send_images=asked, image_side=256).write(ROWS[:2], tmp_path / f"{asked}")
        sent = json.dumps(chat.bodies)
        assert ("image_url" in sent) == asked and ("No image comes" in sent) == (not asked)
        assert "base64" not in (tmp_path / f"{asked}").read_text()


def test_the_estimate_is_near_the_bill_and_never_below_it_at_most(tmp_path, chat):
    for options in ({}, {"send_images": True}):
        writing = writer(chat, **options)
        told = writing.estimate(ROWS)
        report = writing.write(ROWS, tmp_path / f"j{len(options)}")
        assert told.requests == 6 and 0.5 * report.usd < told.usd < 3 * report.usd
        assert told.usd_at_most > report.usd and "prices of" in str(told)
    assert writing.estimate(ROWS).input_tokens - writer(chat).estimate(ROWS).input_tokens > 6 * 200, "no image tokens"
    assert writing.estimate(ROWS, batch=True).usd == pytest.approx(writing.estimate(ROWS).usd / 2)


def test_an_unknown_price_means_no_estimate_and_no_budget(tmp_path, chat):
    local = writer(chat, model="my-model")
    assert local.estimate(ROWS).usd is None and "no price is known" in str(local.estimate(ROWS))
    report = local.write(ROWS, tmp_path / "j")
    assert report.usd is None and report.tokens.input > 0 and report.written == 6
    with pytest.raises(ValueError, match=r"the price of 'my-model' is not known.*pass price=Price"):
        writer(chat, model="my-model", budget=1.0)
    assert writer(chat, model="my-model", price=Price(1, 2), budget=1.0).estimate(ROWS).usd > 0


def test_an_open_batch_is_not_asked_for_a_second_time(tmp_path, chat):
    with CaptionJournal(tmp_path / "j") as book:
        book.open_request(0.1, batch=3)
    with pytest.raises(BatchOpenError, match="1 batch jobs under way"):
        writer(chat).write(ROWS, tmp_path / "j")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency, max_attempts: got 0"),
        ({"detail": "auto"}, "detail: got 'auto'"),
        ({"style": "poem"}, "style: got 'poem'"),
        ({"budget": -1}, "budget: got -1"),
    ],
)
def test_errors(chat, options, message):
    with pytest.raises(ValueError, match=message):
        writer(chat, **options)


def test_a_missing_key_is_told_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(KeyMissingError, match="OPENAI_API_KEY"):
        ChatWriter(progress=False).write(ROWS, tmp_path / "j")
    assert not (tmp_path / "j").exists()
    with pytest.raises(FileNotFoundError, match="write the captions first"):
        list(ChatWriter(progress=False).read(ROWS, tmp_path / "j"))


def test_killed_processes_neither_lose_nor_repay(tmp_path):
    """Few kills here; the benchmark does fifty. Before the last, no more than 200 answers can have come."""
    found = load("benchmark/data").measure_kills(tmp_path, rows=320, kills=3, latency=0.1, longest=0.6)
    assert found["kills_lost"] == found["kills_paid_twice"] == 0 and found["kills"] == 3
    assert found["kills_in_flight"] > 0, "no kill met a request"


def test_the_example_writes_by_rule_and_by_a_server(tmp_path, chat, monkeypatch, capsys):
    example = load("write_captions")
    monkeypatch.setenv("OPENAI_API_KEY", chat.key)
    example.main(["--out", str(tmp_path / "rule")])
    example.main(["--out", str(tmp_path / "chat"), "--writer", "chat", "--base_url", chat.url, "--send_images"])
    assert "64 rows written" in capsys.readouterr().out
    from datasets import load_from_disk

    from mf2face.data.schema import validate_examples

    for name, mark in (("rule", "rule"), ("chat", "gpt-4o")):
        dataset = load_from_disk(tmp_path / name / "dataset")
        assert validate_examples(dataset) == 64 and set(dataset["caption_writer"]) == {mark}
    assert example.main(["--writer", "chat", "--estimate"]) is None
    assert "about $0." in capsys.readouterr().out
