import asyncio
import json
import logging
import os
import resource
import signal
import threading
import time
import traceback

import numpy as np
import pytest
from chat_server import FAULTS, LoopbackChat

from mf2face.captions.chat import KeyRejectedError, QuotaSpentError, ServerRefusesError
from mf2face.captions.journal import CaptionJournal, JournalFullError
from mf2face.captions.prices import Price
from mf2face.captions.run import BudgetSpentError, ChatWriter, run_to_end
from mf2face.captions.styles import CaptionRow


def rows(count=40):
    rng = np.random.default_rng(1)
    return [CaptionRow(f"c/v/{n}", rng.integers(0, 2, 12).tolist(), int(rng.integers(8))) for n in range(count)]


def writer(chat, **options):
    given = {"base_url": chat.url, "api_key": chat.key, "progress": False, "backoff": 0.01, "concurrency": 8}
    return ChatWriter(**{**given, **options})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_with_faults_of_every_kind_all_rows_are_done_and_none_is_paid_twice(tmp_path):
    faults = dict.fromkeys(FAULTS, 0.2 / len(FAULTS))
    with LoopbackChat(0.005, faults=faults, hang=1.5) as chat:
        writing = writer(chat, timeout=1.0, max_attempts=12, concurrency=16)
        report = writing.write(rows(120), tmp_path / "j")
        assert report.written == 120 and not report.failed and report.by_rule == 0
        assert chat.asked > 130, "no faults were injected"
        assert chat.counts() | {"rows": 120, "most_paid": 1} == chat.counts()
        assert None not in list(writing.read(rows(120), tmp_path / "j"))
        # Every answer that came is in the bill, those of no use too; what never came is told apart.
        billed = writing.price.usd(*chat.usd_tokens)
        assert report.usd <= billed <= report.usd + report.usd_unsure


def test_a_false_caption_is_sent_back_once_with_the_reason(tmp_path):
    with LoopbackChat(mistakes=0.5) as chat:
        report = writer(chat).write(rows(), tmp_path / "j")
        again = [body for body in chat.bodies if len(body["messages"]) == 6]
        assert report.written == 40 and report.by_rule == 0 and 5 < len(again) == chat.asked - 40
        told = again[0]["messages"]
        assert "AU28" in told[4]["content"] and told[4]["role"] == "assistant"
        assert '"au_caption" names AU28 (Lip Suck), which is not active' in told[5]["content"]
    with LoopbackChat(mistakes=1.0, stubborn=True) as chat:
        writing = writer(chat)
        report = writing.write(rows(5), tmp_path / "stubborn")
        assert chat.asked == 10 and report.by_rule == 5
        found = list(writing.read(rows(5), tmp_path / "stubborn"))
        assert {row.writer for row in found} == {"gpt-4o (rule: au_caption, key_au_caption)"}


def test_no_more_requests_are_under_way_than_allowed(tmp_path):
    with LoopbackChat(0.02) as chat:
        writer(chat, concurrency=5).write(rows(40), tmp_path / "j")
        assert chat.most_at_once == 5


def test_a_rate_limit_is_waited_for_by_all(tmp_path):
    with LoopbackChat(faults={"429": 0.3}, retry_after="0.3") as chat:
        start = time.monotonic()
        report = writer(chat, max_attempts=1).write(rows(30), tmp_path / "j")
        assert report.written == 30 and time.monotonic() - start > 0.3
        assert chat.asked < 90, "asked on while it was told to wait"
    with (
        LoopbackChat(faults={"429": 1}, retry_after="86400") as chat,
        pytest.raises(ServerRefusesError, match="86,400"),
    ):
        writer(chat).write(rows(3), tmp_path / "tomorrow")


def test_a_row_that_never_works_is_given_up_and_the_run_goes_on(tmp_path):
    bad = CaptionRow("bad", rows(1)[0].au_labels, "Fear", image=b"no picture")
    images = [CaptionRow(row.id, row.au_labels, row.emotion, np.zeros((20, 20, 3), "uint8")) for row in rows(6)]
    with LoopbackChat() as chat:
        writing = writer(chat, send_images=True)
        report = writing.write([images[0], bad, *images[1:]], tmp_path / "j")
        assert report.written == 6 and list(report.failed) == ["bad"] and "image of bad" in report.failed["bad"]
        chat.settings["faults"] = {"500": 1.0}
        report = writing.write([bad, CaptionRow("new", bad.au_labels, 1, images[0].image)], tmp_path / "j")
        assert set(report.failed) == {"bad", "new"} and "had an error" in report.failed["new"]
        text = (tmp_path / "j").read_text()
        assert "base64" not in text and chat.key not in text, "an image or the key is in the journal"


def test_a_server_that_only_fails_ends_the_run(tmp_path):
    with LoopbackChat(faults={"500": 1}) as chat:
        with pytest.raises(ServerRefusesError, match="rows all failed") as caught:
            writer(chat, max_attempts=2, concurrency=2, backoff=0.001).write(rows(200), tmp_path / "j")
        assert len(caught.value.report.failed) < 30


@pytest.mark.parametrize(
    ("settings", "options", "kind"),
    [
        ({}, {"api_key": "sk-wrong-key-0123"}, KeyRejectedError),
        ({"status": (429, "no money", "insufficient_quota")}, {}, QuotaSpentError),
        ({"status": (404, "unknown model")}, {"model": "gpt-5o", "price": Price(1, 1)}, ServerRefusesError),
    ],
)
def test_what_no_retry_can_mend_is_asked_once(tmp_path, settings, options, kind):
    with LoopbackChat(**settings) as chat:
        with pytest.raises(kind):
            writer(chat, **options).write(rows(), tmp_path / "j")
        assert chat.asked == 0
    with CaptionJournal(tmp_path / "j") as book:
        assert book.spent == book.unsure == 0


def test_a_wrong_key_is_in_no_output_of_a_run(tmp_path, caplog, capfd):
    wrong = "sk-wrong-verysecret0123456789"
    with LoopbackChat() as chat, caplog.at_level(logging.DEBUG), pytest.raises(KeyRejectedError) as caught:
        writer(chat, api_key=wrong, progress=True).write(rows(), tmp_path / "j")
    everything = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    everything += (tmp_path / "j").read_text() + repr(caught.value.report)
    assert "verysecret" not in everything and "captions:" in everything


def test_the_budget_is_never_passed_and_work_so_far_is_kept(tmp_path):
    with LoopbackChat(0.005) as chat:
        writing = writer(chat, budget=0.1)
        with pytest.raises(BudgetSpentError, match=r"of \$0.1000 are spent, one more request may cost") as caught:
            writing.write(rows(80), tmp_path / "j")
        billed, written = writing.price.usd(*chat.usd_tokens), caught.value.report.written
        assert 0.07 < billed <= 0.1 and caught.value.report.usd == pytest.approx(billed) and written > 20
        with pytest.raises(BudgetSpentError):  # over all runs of the journal
            writing.write(rows(80), tmp_path / "j")
        assert writing.price.usd(*chat.usd_tokens) <= 0.1
        report = writer(chat, budget=1.0).write(rows(80), tmp_path / "j")
        assert report.kept >= written and report.kept + report.written == 80 and max(chat.paid.values()) == 1


def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with LoopbackChat() as chat:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(JournalFullError, match="Make room and start again"):
                writer(chat).write(rows(), tmp_path / "j")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        paid = sum(chat.paid.values())
        report = writer(chat).write(rows(), tmp_path / "j")
        assert 0 < report.kept < 40 and report.kept + report.written == 40
        assert sum(chat.paid.values()) - paid == report.written and paid - report.kept <= 8, "beyond those under way"


def test_ctrl_c_keeps_what_is_under_way(tmp_path):
    with LoopbackChat(0.3) as chat:
        threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            writer(chat).write(rows(500), tmp_path / "j")
        with CaptionJournal(tmp_path / "j") as book:
            assert len(book) == sum(chat.paid.values()) == chat.asked < 500 and book.unsure == 0


def test_ids_are_unique(tmp_path):
    with LoopbackChat() as chat, pytest.raises(ValueError, match="the id 'c/v/0' occurs twice"):
        writer(chat).write([*rows(3), rows(1)[0]], tmp_path / "j")


def test_a_server_that_tells_no_tokens_is_taken_to_have_cost_the_most(tmp_path):
    with LoopbackChat(usage=False) as chat:
        report = writer(chat).write(rows(3), tmp_path / "j")
        assert report.usd == pytest.approx(
            sum(json.loads(line)["usd"] for line in open(tmp_path / "j") if "asked" in line)
        )


def test_it_runs_where_a_loop_is_running_already():
    async def notebook():
        return run_to_end(asyncio.sleep(0, "done"))

    assert asyncio.run(notebook()) == "done"
    with pytest.raises(KeyError):

        async def fails():
            raise KeyError

        asyncio.run(_nested(fails))


async def _nested(work):
    return run_to_end(work())
