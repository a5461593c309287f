"""A chat writer against a server that fails in every way: nothing lost, nothing paid twice, budget and key kept."""

import asyncio
import json
import logging
import os
import resource
import runpy
import signal
import threading
import time
import traceback

import numpy as np
import pytest
from chat_server import FAULTS, LoopbackChat
from datasets import load_from_disk
from kill_points import ROOT

from mf2face.captions.batch import BatchFailedError, _BatchRun, write_by_batch
from mf2face.captions.chat import KeyMissingError, KeyRejectedError, QuotaSpentError, ServerRefusesError
from mf2face.captions.journal import CaptionJournal, JournalFullError
from mf2face.captions.prices import PRICES, Budget, Price, most_text_tokens, text_tokens
from mf2face.captions.run import BatchOpenError, BudgetSpentError, ChatWriter, run_to_end
from mf2face.captions.styles import STYLES, CaptionRow


ROWS = [CaptionRow(f"c/v/{n}", [n % 2, 1, *[0] * 10], n % 8, np.full((600, 300, 3), n, "uint8")) for n in range(6)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="module")
def chat():
    with LoopbackChat() as server:
        yield server


def rows(count=40):
    rng = np.random.default_rng(1)
    return [CaptionRow(f"c/v/{n}", rng.integers(0, 2, 12).tolist(), int(rng.integers(8))) for n in range(count)]


def writer(chat, **options):
    given = {"base_url": chat.url, "api_key": chat.key, "progress": False, "backoff": 0.01, "concurrency": 8}
    return ChatWriter(**{**given, **options})


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_written_and_read_back(tmp_path, chat, style):
    writing, given = writer(chat, style=style), [*ROWS, CaptionRow("none", [-1] * 12, -1)]
    report = writing.write(given, tmp_path / "j")
    assert (report.written, report.unlabelled, report.by_rule, report.requests) == (6, 1, 0, 6)
    captions = list(writing.read(given, tmp_path / "j"))
    assert [one.id for one in captions] == [row.id for row in given] and captions[-1].writer == ""
    assert all(list(one.texts) == list(STYLES[style]) and all(one.texts.values()) for one in captions[:-1])
    again = writing.write(given, tmp_path / "j")
    assert (again.written, again.kept, again.requests, again.usd) == (0, 6, 0, 0)


def test_the_paper_s_protocol_asks_for_each_caption_in_its_own_staged_prompt(tmp_path, chat):
    writing, given = (
        writer(chat, protocol="paper", send_images=True),
        [*ROWS, CaptionRow("c/v/aus", [1] * 12, -1, ROWS[0].image)],
    )
    chat.bodies.clear()
    assert writing.estimate(given).requests == 3 * 6 + 1
    report = writing.write(given, tmp_path / "j")
    assert (report.written, report.unlabelled, report.requests) == (19, 2, 19) and "19 captions written" in str(report)
    roles = {tuple(message["role"] for message in body["messages"]) for body in chat.bodies}
    assert roles == {("system", "user", "assistant", "user")}, "role, worked example, cue"
    asked = [list(body["response_format"]["json_schema"]["schema"]["properties"]) for body in chat.bodies]
    assert sorted(asked) == sorted([["au_caption"]] * 7 + [["emotion_caption"]] * 6 + [["key_au_caption"]] * 6)
    assert all("image_url" in json.dumps(body) for body in chat.bodies)
    *captions, without = writing.read(given, tmp_path / "j")
    assert [one.id for one in captions] == [row.id for row in ROWS] and {one.writer for one in captions} == {"gpt-4o"}
    assert all(list(one.texts) == list(STYLES["mfa"]) and all(one.texts.values()) for one in captions)
    assert without.texts["au_caption"] and not without.texts["emotion_caption"]
    assert writing.write(given, tmp_path / "j").kept == 19
    assert list(writer(chat, send_images=True).read(ROWS, tmp_path / "j")) == [None] * 6
    with pytest.raises(ValueError, match="protocol: got 'paper' with style 'mfa', send_images False"):
        writer(chat, protocol="paper")


def test_another_prompt_model_or_label_is_not_mixed_with_what_is_there(tmp_path, chat, caplog):
    writer(chat).write(ROWS, tmp_path / "j")
    assert not caplog.text
    assert writer(chat, model="gpt-4o-mini").write(ROWS[:2], tmp_path / "j").written == 2
    assert "has no caption of mfa gpt-4o-mini" in caplog.text and "it keeps 6 of mfa gpt-4o " in caplog.text
    assert writer(chat, send_images=True).write(ROWS[:2], tmp_path / "j").written == 2
    assert writer(chat).write([CaptionRow(ROWS[0].id, [1] * 12, 0)], tmp_path / "j").written == 1
    changed = writer(chat)
    changed.prompt = "another"
    assert list(changed.read(ROWS, tmp_path / "j")) == [None] * 6
    assert writer(chat).write(ROWS, tmp_path / "j").kept == 6


def test_an_image_is_sent_only_when_it_was_asked_for_and_the_bill_is_as_estimated(tmp_path, chat):
    for asked in (False, True):
        chat.bodies.clear()
        writing = writer(chat, send_images=asked, image_side=256)
        estimate, report = writing.estimate(ROWS), writing.write(ROWS, tmp_path / f"{asked}")
        sent = json.dumps(chat.bodies)
        assert ("image_url" in sent) == asked and ("No image comes" in sent) == (not asked)
        assert "base64" not in (tmp_path / f"{asked}").read_text()
        assert estimate.requests == 6 and 0.5 * report.usd < estimate.usd < 3 * report.usd
        assert estimate.usd_at_most > report.usd and "prices of" in str(estimate)
    assert estimate.input_tokens - writer(chat).estimate(ROWS).input_tokens > 6 * 200, "no image tokens"
    assert writing.estimate(ROWS, batch=True).usd == pytest.approx(estimate.usd / 2)


def test_an_unknown_price_means_no_estimate(tmp_path, chat):
    local = writer(chat, model="my-model")
    assert local.estimate(ROWS).usd is None and "no price is known" in str(local.estimate(ROWS))
    report = local.write(ROWS, tmp_path / "j")
    assert report.usd is None and report.tokens.input > 0 and report.written == 6
    assert writer(chat, model="my-model", price=Price(1, 2), budget=1.0).estimate(ROWS).usd > 0


def test_mistakes_are_named_before_anything_is_asked(tmp_path, chat, monkeypatch):
    for options, message in (
        ({"concurrency": 0}, "concurrency"),
        ({"detail": "auto"}, "detail: got 'auto'"),
        ({"style": "poem"}, "style: got 'poem'"),
        ({"budget": -1}, "budget: got -1"),
        ({"model": "my-model", "budget": 1.0}, r"the price of 'my-model' is not known.*price=Price"),
    ):
        with pytest.raises(ValueError, match=message):
            writer(chat, **options)
    with pytest.raises(ValueError, match="the id 'c/v/0' occurs twice"):
        writer(chat).write([*rows(3), rows(1)[0]], tmp_path / "twice")
    with CaptionJournal(tmp_path / "batch") as book:
        book.open_request(0.1, batch=3)
    with pytest.raises(BatchOpenError, match="1 batch jobs under way"):
        writer(chat).write(ROWS, tmp_path / "batch")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KeyMissingError, match="OPENAI_API_KEY"):
        ChatWriter(progress=False).write(ROWS, tmp_path / "j")
    assert not (tmp_path / "j").exists()
    with pytest.raises(FileNotFoundError, match="write the captions first"):
        list(ChatWriter(progress=False).read(ROWS, tmp_path / "j"))


def test_the_example_writes_by_rule_and_by_a_server(tmp_path, chat, monkeypatch, capsys):
    write = runpy.run_path(str(ROOT / "examples" / "write_captions.py"))["main"]
    monkeypatch.setenv("OPENAI_API_KEY", chat.key)
    write(["--out", str(tmp_path / "rule")])
    write(["--out", str(tmp_path / "chat"), "--writer", "chat", "--base_url", chat.url, "--send_images"])
    assert "64 rows written" in capsys.readouterr().out
    for name, mark in (("rule", "rule"), ("chat", "gpt-4o")):
        dataset = load_from_disk(tmp_path / name / "dataset")
        assert len(dataset) == 64 and set(dataset["caption_writer"]) == {mark}
    assert write(["--writer", "chat", "--estimate"]) is None
    assert "about $0." in capsys.readouterr().out


def test_with_faults_of_every_kind_all_rows_are_done_and_none_is_paid_twice(tmp_path):
    faults = dict.fromkeys(FAULTS, 0.2 / len(FAULTS))
    with LoopbackChat(0.005, faults=faults, hang=1.5) as chat:
        writing = writer(chat, timeout=1.0, max_attempts=12, concurrency=16)
        report = writing.write(rows(120), tmp_path / "j")
        assert report.written == 120 and not report.failed and report.by_rule == 0
        assert chat.asked > 130, "no faults were injected"
        assert chat.counts() | {"rows": 120, "most_paid": 1} == chat.counts()
        assert None not in list(writing.read(rows(120), tmp_path / "j"))
        # Every answer that came is in the bill, those of no use too; what never came is counted apart.
        assert report.usd <= writing.price.usd(*chat.usd_tokens) <= report.usd + report.usd_unsure


def test_a_false_caption_is_sent_back_once_with_the_reason(tmp_path):
    with LoopbackChat(mistakes=0.5) as chat:
        report = writer(chat).write(rows(), tmp_path / "j")
        again = [body["messages"] for body in chat.bodies if len(body["messages"]) == 6]
        assert report.written == 40 and report.by_rule == 0 and 5 < len(again) == chat.asked - 40
        assert "AU28" in again[0][4]["content"] and again[0][4]["role"] == "assistant"
        assert '"au_caption" names AU28 (Lip Suck), which is not active' in again[0][5]["content"]
    with LoopbackChat(mistakes=1.0, stubborn=True) as chat:
        writing = writer(chat)
        assert writing.write(rows(5), tmp_path / "stubborn").by_rule == 5 and chat.asked == 10
        marks = {one.writer for one in writing.read(rows(5), tmp_path / "stubborn")}
        assert marks == {"gpt-4o (rule: au_caption, key_au_caption)"}


def test_a_rate_limit_stops_all_workers(tmp_path):
    with LoopbackChat(faults={"429": 0.3}, retry_after="0.3") as chat:
        start = time.monotonic()
        report = writer(chat, max_attempts=1).write(rows(30), tmp_path / "j")
        assert report.written == 30 and time.monotonic() - start > 0.3
        assert chat.asked < 90, "asked on while it had to wait"
    with LoopbackChat(faults={"429": 1}, retry_after="86400") as chat:
        with pytest.raises(ServerRefusesError, match="asks to wait 86,400"):
            writer(chat).write(rows(3), tmp_path / "tomorrow")


def test_a_row_that_never_works_is_given_up_and_the_run_goes_on(tmp_path):
    bad = CaptionRow("bad", rows(1)[0].au_labels, "Fear", image=b"no picture")
    with LoopbackChat() as chat:
        writing = writer(chat, send_images=True)
        report = writing.write([ROWS[0], bad, *ROWS[1:]], tmp_path / "j")
        assert report.written == 6 and list(report.failed) == ["bad"] and "image of bad" in report.failed["bad"]
        chat.settings["faults"] = {"500": 1.0}
        report = writing.write([bad, CaptionRow("new", bad.au_labels, 1, ROWS[0].image)], tmp_path / "j")
        assert set(report.failed) == {"bad", "new"} and "had an error" in report.failed["new"]
        text = (tmp_path / "j").read_text()
        assert "base64" not in text and chat.key not in text, "an image or the key is in the journal"


@pytest.mark.parametrize(
    ("settings", "options", "kind"),
    [
        ({}, {"api_key": "sk-wrong-verysecret0123456789"}, KeyRejectedError),
        ({"status": (429, "no money", "insufficient_quota")}, {}, QuotaSpentError),
        ({"status": (404, "unknown model")}, {"model": "gpt-5o", "price": Price(1, 1)}, ServerRefusesError),
    ],
)
def test_what_no_retry_can_mend_is_asked_once_and_no_output_has_the_key(
    tmp_path, caplog, capfd, settings, options, kind
):
    with LoopbackChat(**settings) as chat, caplog.at_level(logging.DEBUG):
        with pytest.raises(kind) as caught:
            writer(chat, progress=True, **options).write(rows(), tmp_path / "j")
        assert chat.asked == 0
    with CaptionJournal(tmp_path / "j") as book:
        assert book.spent == book.unsure == 0
    everything = "".join(traceback.format_exception(caught.value)) + caplog.text + "".join(capfd.readouterr())
    everything += (tmp_path / "j").read_text() + repr(caught.value.report)
    assert "verysecret" not in everything and chat.key not in everything and "captions:" in everything


def test_a_server_that_only_fails_ends_the_run(tmp_path):
    with LoopbackChat(faults={"500": 1}) as chat:
        with pytest.raises(ServerRefusesError, match="rows all failed") as caught:
            writer(chat, max_attempts=2, concurrency=2, backoff=0.001).write(rows(200), tmp_path / "j")
        assert len(caught.value.report.failed) < 30


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


def test_requests_keep_to_the_concurrency(tmp_path):
    with LoopbackChat(0.02) as chat:
        writer(chat, concurrency=5).write(rows(40), tmp_path / "j")
        assert chat.most_at_once == 5


def test_ctrl_c_keeps_what_is_under_way(tmp_path):
    with LoopbackChat(0.3) as chat:
        threading.Timer(0.8, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            writer(chat).write(rows(500), tmp_path / "j")
        with CaptionJournal(tmp_path / "j") as book:
            assert len(book) == sum(chat.paid.values()) == chat.asked < 500 and book.unsure == 0


def test_a_server_that_names_no_tokens_is_taken_to_have_cost_the_most(tmp_path):
    with LoopbackChat(usage=False) as chat:
        report = writer(chat).write(rows(3), tmp_path / "j")
    lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert report.usd == pytest.approx(sum(line["usd"] for line in lines if line["event"] == "asked"))


def test_it_runs_where_a_loop_is_running_already():
    async def fails():
        raise KeyError

    async def notebook(work):
        return run_to_end(work)

    assert asyncio.run(notebook(asyncio.sleep(0, "done"))) == "done"
    with pytest.raises(KeyError):
        asyncio.run(notebook(fails()))


def test_prices_and_image_tokens_by_hand():
    price = PRICES["gpt-4o"]
    assert price.usd(1_000_000, 100_000) == pytest.approx(2.5 + 1.0)
    assert price.usd(1_000_000, 0, cached=400_000) == pytest.approx(0.6 * 2.5 + 0.4 * 1.25)
    assert Price(1, 2).usd(1_000_000, 0, cached=1_000_000) == 1, "no discount is assumed"
    assert text_tokens(["x" * 400]) < most_text_tokens(["x" * 400])
    # Fit into 2048, shorter side to 768, tiles of 512.
    tiles = {(1024, 1024): 4, (512, 512): 1, (4096, 2048): 6, (513, 100): 2}
    assert {size: price.image_tokens(*size) for size in tiles} == {size: 85 + 170 * n for size, n in tiles.items()}
    assert price.image_tokens(4096, 4096, "low") == 85


def test_held_money_is_waited_for_and_a_larger_bill_makes_later_requests_hold_more():
    async def wait() -> list:
        budget = Budget(1.0)
        first = await budget.hold(0.8)
        waiting = asyncio.create_task(budget.hold(0.8))
        await asyncio.sleep(0)
        assert not waiting.done()
        budget.settle(first, 0.1)
        second = await waiting
        budget.settle(second, 0.8)
        return [second, await budget.hold(0.2)]

    assert asyncio.run(wait()) == [0.8, None]
    budget = Budget(10.0)
    budget.settle(budget.try_hold(1.0), 2.0)
    assert budget.try_hold(1.0) == 2.0


BATCH = [CaptionRow(f"c/v/{n}", [n % 2, 1, n % 3 % 2, *[0] * 9], n % 8) for n in range(24)]


def write_jobs(writing, path, rows=BATCH, **options):
    return write_by_batch(writing, rows, path, **{"poll": 0.01, **options})


def test_a_batch_writes_what_single_requests_write_for_half_the_price(tmp_path):
    with LoopbackChat(mistakes=0.4) as chat:
        writing = writer(chat)
        report = write_jobs(writing, tmp_path / "batch", max_requests=10)
        assert report.written == 24 and report.by_rule == 0 and not report.failed and not report.open_batches
        assert len(chat.jobs) == 4, "three for the rows, one for the corrections"
        single = writing.write(BATCH, tmp_path / "single")
        assert list(writing.read(BATCH, tmp_path / "batch")) == list(writing.read(BATCH, tmp_path / "single"))
        assert report.usd == pytest.approx(single.usd / 2)
        again = write_jobs(writing, tmp_path / "batch")
        assert (again.written, again.kept, again.usd) == (0, 24, 0) and len(chat.jobs) == 4
        with CaptionJournal(tmp_path / "batch") as book:
            assert book.spent == pytest.approx(report.usd) and book.unsure == 0 and not book.batches


def test_it_can_be_left_and_collected_later(tmp_path):
    with LoopbackChat(batch_polls=2) as chat:
        report = write_jobs(writer(chat), tmp_path / "j", wait=False)
        assert report.open_batches == 1 and report.written == 0 and "1 batch jobs under way" in str(report)
        assert write_jobs(writer(chat), tmp_path / "j", wait=False).open_batches == 1
        report = write_jobs(writer(chat), tmp_path / "j")
        assert report.written == 24 and len(chat.jobs) == 1 and max(chat.paid.values()) == 1


@pytest.mark.parametrize("place", ["before the server has it", "after the server has it", "between the answers"])
def test_stopped_at_its_worst_moments_it_pays_nothing_again(tmp_path, monkeypatch, place):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with LoopbackChat() as chat, monkeypatch.context() as patch:
        if place == "before the server has it":
            patch.setattr(_BatchRun, "_token", kill)
        elif place == "after the server has it":
            patch.setattr(CaptionJournal, "name_batch", kill)
        else:
            real, seen = CaptionJournal.add_answer, []
            patch.setattr(
                CaptionJournal, "add_answer", lambda *a, **k: kill() if len(seen) > 7 else seen.append(real(*a, **k))
            )
        with pytest.raises(Killed):
            write_jobs(writer(chat), tmp_path / "j")
        patch.undo()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        report = write_jobs(writer(chat), tmp_path / "j")
        assert report.written == 24 and not report.failed
        assert len(chat.jobs) == 1 and len(chat.paid) == 24 and max(chat.paid.values()) == 1
        with CaptionJournal(tmp_path / "j") as book:
            assert book.spent == pytest.approx(writer(chat).price.usd(*chat.usd_tokens, batch=True))


def test_what_failed_or_expired_goes_into_another_job(tmp_path):
    with LoopbackChat(expire_after=9, faults={"500": 0.2}) as chat:
        report = write_jobs(writer(chat), tmp_path / "j", rounds=9)
        assert report.written == 24 and not report.failed and len(chat.jobs) >= 2
        assert max(chat.paid.values()) == 1
        chat.settings["faults"] = {"500": 1.0}
        report = write_jobs(writer(chat), tmp_path / "other", rounds=2)
        assert len(report.failed) == 24 and "server error" in report.failed["c/v/3"]
        bad = [CaptionRow("bad", [1] * 12, "Fear", image=b"no picture")]
        report = write_jobs(writer(chat, send_images=True), tmp_path / "unreadable", rows=bad)
        assert list(report.failed) == ["bad"] and "image of bad" in report.failed["bad"]


def test_a_budget_sends_what_it_can_pay(tmp_path):
    with LoopbackChat() as chat:
        with pytest.raises(BudgetSpentError, match="no further request fits") as caught:
            write_jobs(writer(chat, budget=0.02), tmp_path / "j", rounds=20)
        assert 3 < caught.value.report.written < 24
        assert writer(chat).price.usd(*chat.usd_tokens, batch=True) <= 0.02
        assert write_jobs(writer(chat, budget=1), tmp_path / "j").kept == caught.value.report.written


def test_a_job_that_failed_says_why_and_a_wrong_key_costs_nothing(tmp_path):
    with LoopbackChat() as chat:
        with pytest.raises(KeyRejectedError) as caught:
            write_jobs(writer(chat, api_key="sk-wrong-0123456789"), tmp_path / "j")
        assert "sk-wrong" not in str(caught.value) and chat.key not in (tmp_path / "j").read_text()
        write_jobs(writer(chat), tmp_path / "j", wait=False)
        (job,) = chat.jobs.values()
        errors = {"object": "list", "data": [{"code": "x", "message": "token limit reached"}]}
        job |= {"status": "failed", "errors": errors}
        with pytest.raises(BatchFailedError, match=r"failed \(token limit reached\).*smaller max_requests"):
            write_jobs(writer(chat), tmp_path / "j")
        assert write_jobs(writer(chat), tmp_path / "j").written == 24
    with pytest.raises(TypeError, match="rows: got an iterator"):
        write_jobs(writer(chat), tmp_path / "i", rows=iter(BATCH))


def test_a_job_keeps_to_the_limits_of_size(tmp_path):
    with LoopbackChat() as chat:
        write_jobs(writer(chat), tmp_path / "j", max_bytes=30_000)
        sizes = [len(chat.files[job["input_file_id"]]) for job in chat.jobs.values()]
        assert len(sizes) > 2 and max(sizes) <= 30_000
