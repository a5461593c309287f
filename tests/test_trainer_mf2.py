"""Which checkpoint is to be trusted."""

import json

from training_mf2.trainer_mf2 import damage, last_good_checkpoint


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
