"""Which checkpoint is to be trusted, and what a full disk costs."""

import json

import pytest
from safetensors import SafetensorError

from mf2face.training.checkpoints import damage, disk_may_be_full, last_good_checkpoint, seal, unseal


def checkpoint(folder, step, content=b"weights"):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(content)
    (path / "complete.json").write_text(json.dumps({"model.safetensors": 7}))
    return path


def test_the_newest_whole_checkpoint_is_taken(tmp_path, caplog):
    assert last_good_checkpoint(tmp_path) is None
    good = checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 100, b"weig")
    (checkpoint(tmp_path, 20) / "complete.json").unlink()
    (checkpoint(tmp_path, 30) / "model.safetensors").unlink()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_good_checkpoint(tmp_path) == str(good)
    assert "checkpoint-100 is passed over: model.safetensors has 4 bytes, 7 were written" in caplog.text
    assert "checkpoint-20 is passed over: complete.json is missing" in caplog.text
    assert "checkpoint-30 is passed over: model.safetensors is missing" in caplog.text


def test_a_whole_checkpoint_has_no_damage(tmp_path):
    assert damage(checkpoint(tmp_path, 1)) is None


def test_all_files_count_also_those_in_folders(tmp_path):
    path = tmp_path / "checkpoint-5"
    (path / "optimizer_0").mkdir(parents=True)
    (path / "optimizer_0" / "shard").write_bytes(b"12345")
    assert "was not written to its end" in damage(path)
    seal(path)
    assert damage(path) is None
    (path / "optimizer_0" / "shard").write_bytes(b"123")
    assert damage(path) == "optimizer_0/shard has 3 bytes, 5 were written"
    unseal(path)
    assert "was not written to its end" in damage(path)


FULL = {
    "the system's": OSError(28, "No space left on device"),
    "safetensors'": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
}


@pytest.mark.parametrize("error", FULL.values(), ids=FULL)
def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(tmp_path, error):
    good, new = checkpoint(tmp_path, 9), tmp_path / "checkpoint-18"
    expected = r"is full: checkpoint-18 needs about 0 MB, \d+ MB are free.*then continues from checkpoint-9"
    with pytest.raises(OSError, match=expected) as raised, disk_may_be_full(lambda: new):
        new.mkdir()
        (new / "model.safetensors").write_bytes(b"half")
        raise error
    assert raised.value.errno == 28 and not new.exists() and damage(good) is None
    good.rename(tmp_path / "elsewhere")
    with (
        pytest.raises(OSError, match="starts anew, for there is no whole checkpoint yet"),
        disk_may_be_full(lambda: new),
    ):
        raise error


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    new = checkpoint(tmp_path, 3)
    with pytest.raises(PermissionError), disk_may_be_full(lambda: new):
        raise PermissionError(13, "Permission denied")
    assert new.exists()
