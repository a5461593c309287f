import pytest
from chat_server import LoopbackChat

from mf2face.captions.batch import BatchFailedError, _BatchRun, write_by_batch
from mf2face.captions.chat import KeyRejectedError
from mf2face.captions.journal import CaptionJournal
from mf2face.captions.run import BudgetSpentError, ChatWriter
from mf2face.captions.styles import CaptionRow


ROWS = [CaptionRow(f"c/v/{n}", [n % 2, 1, n % 3 % 2, *[0] * 9], n % 8) for n in range(24)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def writer(chat, **options):
    return ChatWriter(**{"base_url": chat.url, "api_key": chat.key, "progress": False, "backoff": 0.01, **options})


def write(writing, path, rows=ROWS, **options):
    return write_by_batch(writing, rows, path, **{"poll": 0.01, **options})


def test_a_batch_writes_what_single_requests_write_for_half_the_price(tmp_path):
    with LoopbackChat(mistakes=0.4) as chat:
        writing = writer(chat)
        report = write(writing, tmp_path / "batch", max_requests=10)
        assert report.written == 24 and report.by_rule == 0 and not report.failed and not report.open_batches
        assert len(chat.jobs) == 4, "three for the rows, one for the corrections"
        single = writing.write(ROWS, tmp_path / "single")
        assert list(writing.read(ROWS, tmp_path / "batch")) == list(writing.read(ROWS, tmp_path / "single"))
        assert report.usd == pytest.approx(single.usd / 2)
        again = write(writing, tmp_path / "batch")
        assert (again.written, again.kept, again.usd) == (0, 24, 0) and len(chat.jobs) == 4
        with CaptionJournal(tmp_path / "batch") as book:
            assert book.spent == pytest.approx(report.usd) and book.unsure == 0 and not book.batches


def test_it_can_be_left_and_collected_later(tmp_path):
    with LoopbackChat(batch_polls=2) as chat:
        report = write(writer(chat), tmp_path / "j", wait=False)
        assert report.open_batches == 1 and report.written == 0 and "1 batch jobs under way" in str(report)
        assert write(writer(chat), tmp_path / "j", wait=False).open_batches == 1
        report = write(writer(chat), tmp_path / "j")
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
            write(writer(chat), tmp_path / "j")
        patch.undo()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        report = write(writer(chat), tmp_path / "j")
        assert report.written == 24 and not report.failed
        assert len(chat.jobs) == 1 and len(chat.paid) == 24 and max(chat.paid.values()) == 1
        with CaptionJournal(tmp_path / "j") as book:
            assert book.spent == pytest.approx(writer(chat).price.usd(*chat.usd_tokens, batch=True))


def test_what_failed_or_expired_goes_into_another_job(tmp_path):
    with LoopbackChat(expire_after=9, faults={"500": 0.2}) as chat:
        report = write(writer(chat), tmp_path / "j", rounds=9)
        assert report.written == 24 and not report.failed and len(chat.jobs) >= 2
        assert max(chat.paid.values()) == 1
        chat.settings["faults"] = {"500": 1.0}
        report = write(writer(chat), tmp_path / "other", rounds=2)
        assert len(report.failed) == 24 and "server error" in report.failed["c/v/3"]


def test_a_budget_sends_what_it_can_pay(tmp_path):
    with LoopbackChat() as chat:
        with pytest.raises(BudgetSpentError, match="no further request fits") as caught:
            write(writer(chat, budget=0.02), tmp_path / "j", rounds=20)
        assert 3 < caught.value.report.written < 24
        assert writer(chat).price.usd(*chat.usd_tokens, batch=True) <= 0.02
        assert write(writer(chat, budget=1), tmp_path / "j").kept == caught.value.report.written


def test_a_job_that_failed_says_why_and_a_wrong_key_costs_nothing(tmp_path):
    with LoopbackChat() as chat:
        with pytest.raises(KeyRejectedError) as caught:
            write(writer(chat, api_key="sk-wrong-0123456789"), tmp_path / "j")
        assert "sk-wrong" not in str(caught.value) and chat.key not in (tmp_path / "j").read_text()
        write(writer(chat), tmp_path / "j", wait=False)
        (job,) = chat.jobs.values()
        errors = {"object": "list", "data": [{"code": "x", "message": "token limit reached"}]}
        job |= {"status": "failed", "errors": errors}
        with pytest.raises(BatchFailedError, match=r"failed \(token limit reached\).*smaller max_requests"):
            write(writer(chat), tmp_path / "j")
        assert write(writer(chat), tmp_path / "j").written == 24
    with pytest.raises(TypeError, match="rows: got an iterator"):
        write(writer(chat), tmp_path / "i", rows=iter(ROWS))


def test_a_job_keeps_to_the_limits_of_size(tmp_path):
    with LoopbackChat() as chat:
        write(writer(chat), tmp_path / "j", max_bytes=30_000)
        sizes = [len(chat.files[job["input_file_id"]]) for job in chat.jobs.values()]
        assert len(sizes) > 2 and max(sizes) <= 30_000
