"""Checkpoints that can be trusted, a full disk, a second job in the same folder, and costs over interruptions."""

import json
import multiprocessing
import signal
import subprocess
import sys
from multiprocessing.synchronize import Event
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError
from short_runs import ROOT
from transformers import TrainingArguments

from mf2face.training.checkpoints import damage, disk_may_be_full, last_good_checkpoint, seal, sole_user, unseal
from mf2face.training.trainer import Cost, cpu_seconds


def checkpoint(folder: Path, step: int, content: bytes = b"weights") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(content)
    (path / "complete.json").write_text(json.dumps({"model.safetensors": 7}))
    return path


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert last_good_checkpoint(tmp_path) is None
    good = checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 100, b"weig")
    (checkpoint(tmp_path, 20) / "complete.json").unlink()
    (checkpoint(tmp_path, 30) / "model.safetensors").unlink()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_good_checkpoint(tmp_path) == str(good) and damage(good) is None
    for step, reason in ((100, "has 4 bytes, 7 were written"), (20, "complete.json is missing"), (30, "is missing")):
        assert any(f"checkpoint-{step} " in line and reason in line for line in caplog.messages), step


def test_a_seal_covers_all_files_also_those_in_folders(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-5"
    (path / "optimizer_0").mkdir(parents=True)
    (path / "optimizer_0" / "shard").write_bytes(b"12345")
    assert "complete.json" in damage(path)
    seal(path)
    assert damage(path) is None
    (path / "optimizer_0" / "shard").write_bytes(b"123")
    assert damage(path) == "optimizer_0/shard has 3 bytes, 5 were written"
    unseal(path)
    assert "complete.json" in damage(path)
    # What a killed process left is removed.
    code = "import os, sys\nfrom mf2face.files import whole_file\nwith whole_file(sys.argv[1]): os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(path / "weights")], cwd=ROOT, check=False)
    assert len(list(path.iterdir())) == 2
    seal(path)
    assert {part.name for part in path.iterdir()} == {"optimizer_0", "complete.json"} and damage(path) is None


FULL = "No space left on device"


@pytest.mark.parametrize("error", [OSError(28, FULL), SafetensorError(f"I/O error: {FULL} (os error 28)")])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(tmp_path: Path, error: Exception) -> None:
    good, new = checkpoint(tmp_path, 9), tmp_path / "checkpoint-18"
    message = "checkpoint-18 .*--save_total_limit.*continues from checkpoint-9"
    with pytest.raises(OSError, match=message) as raised, disk_may_be_full(lambda: new):
        new.mkdir()
        (new / "model.safetensors").write_bytes(b"half")
        raise error
    assert raised.value.errno == 28 and not new.exists() and damage(good) is None
    good.rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="starts anew"), disk_may_be_full(lambda: new):
        raise error
    new = checkpoint(tmp_path, 3)
    with pytest.raises(PermissionError), disk_may_be_full(lambda: new):
        raise PermissionError(13, "Permission denied")
    assert new.exists()


def hold(training: TrainingArguments, held: Event) -> None:
    with sole_user(training):
        held.set()
        signal.pause()


def test_a_second_job_is_refused_until_the_first_one_is_gone(tmp_path: Path) -> None:
    training, processes = TrainingArguments(str(tmp_path), use_cpu=True), multiprocessing.get_context("fork")
    job = processes.Process(target=hold, args=(training, held := processes.Event()))
    job.start()
    try:
        assert held.wait(60)
        with pytest.raises(BlockingIOError, match=rf"in use by process {job.pid} on .*--output_dir"):
            with sole_user(training):
                pass
    finally:
        job.kill()
        job.join()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), sole_user(training):
            raise ZeroDivisionError


def spend(seconds: float) -> None:
    until = cpu_seconds() + seconds
    while cpu_seconds() < until:
        sum(range(1000))


def test_a_resumed_run_counts_what_it_had_cost_before(tmp_path: Path) -> None:
    first, trainer = Cost(), SimpleNamespace(sealed=SimpleNamespace())
    spend(0.1)
    first.begin_training(trainer, None)
    spend(0.2)
    trainer.sealed.write_beside(tmp_path)
    kept = json.loads((tmp_path / "cost.json").read_text())
    assert 0.18 <= kept["training_cpu_seconds"] <= kept["cpu_seconds"] - 0.08  # a clock of hundredths
    spend(0.1)  # after the checkpoint: is done again, and counts then
    second = Cost()
    second.begin_training(trainer, str(tmp_path))
    assert second.training_cpu_seconds() == pytest.approx(kept["training_cpu_seconds"], abs=0.05)
    assert second.figures() == pytest.approx({name: kept[name] for name in ("cpu_seconds", "wall_seconds")}, abs=0.05)
    spend(0.1)
    assert second.training_cpu_seconds() >= kept["training_cpu_seconds"] + 0.08
