"""What is stored is what the tower sees, and a store that is not of this tower and these rows is never read."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.stores import load_or_store_vision, store_fingerprint
from modeling_mf2.vision import MF2VisionTower
from processing_mf2 import MF2Processor


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    rows = MFASynthetic(10, size=64, cache_dir=tmp_path_factory.mktemp("faces"))
    return MF2Examples(rows, MF2Processor.for_model(MF2Config.from_size("tiny")), texts=False)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return MF2VisionTower(MF2Config.from_size("tiny").vision_config)


def test_rows_are_what_the_tower_sees(examples, tower, tmp_path):
    store = load_or_store_vision(tower, examples, tmp_path, batch_size=4)
    assert len(store) == 10
    for index in (0, 9):
        seen = tower(examples[index]["pixel_values"][None])[0]
        torch.testing.assert_close(store[index]["image_tokens"], seen, rtol=1e-3, atol=1e-3)
        assert torch.equal(store[index]["landmarks"], examples[index]["landmarks"])


def test_a_store_is_made_once_and_never_read_for_others(examples, tower, tmp_path, monkeypatch):
    load_or_store_vision(tower, examples, tmp_path)
    monkeypatch.setattr(MF2VisionTower, "forward", lambda *_: pytest.fail("the tower was asked again"))
    load_or_store_vision(tower, examples, tmp_path)
    monkeypatch.undo()
    before = store_fingerprint(tower, examples)
    fewer = MF2Examples(examples.dataset.select(range(9)), examples.processor, texts=False)
    assert store_fingerprint(tower, fewer) != before
    with torch.no_grad():
        tower.backbone.norm.bias[0] += 1e-3
    assert store_fingerprint(tower, examples) != before


def test_an_interrupted_store_leaves_nothing_that_could_be_read(examples, tower, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MF2VisionTower, "forward", fail)
    with pytest.raises(OSError, match="No space left"):
        load_or_store_vision(tower, examples, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.parametrize("name", ["image_tokens.npy", "landmarks.npy", "complete.json"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "empty"])
def test_a_damaged_store_is_refused_and_names_its_file(examples, tower, tmp_path, name, harm):
    load_or_store_vision(tower, examples, tmp_path)
    path = tmp_path / store_fingerprint(tower, examples) / name
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        content[-9] ^= 1
    path.write_bytes({"flipped": content, "cut": content[: len(content) // 2], "empty": b""}[harm])
    named = r"\.npy" if harm == "flipped" else name
    with pytest.raises(OSError, match=rf"{named}: .*damaged .*remove"):
        load_or_store_vision(tower, examples, tmp_path)


@pytest.mark.parametrize("text", ["null", "[]", '{"checksums": []}', '{"checksums": 3}', "[" * 100_000])
def test_checksums_that_are_none_are_named(examples, tower, tmp_path, text):
    load_or_store_vision(tower, examples, tmp_path)
    (tmp_path / store_fingerprint(tower, examples) / "complete.json").write_text(text)
    with pytest.raises(OSError, match=r"complete\.json: .*damaged"):
        load_or_store_vision(tower, examples, tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from filelock import FileLock
root, name = Path(sys.argv[1]), sys.argv[2]
FileLock(root / f".{name}.lock").acquire()
(root / f".part-{name}").mkdir()
(root / f".part-{name}" / "image_tokens.npy").write_bytes(b"half")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_build_left_goes_at_the_next_start_and_a_living_one_is_left_alone(examples, tower, tmp_path):
    ours = store_fingerprint(tower, examples)
    for name in (ours, "of-other-rows"):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), name])
        assert done.returncode == -signal.SIGKILL
    living = tmp_path / ".part-living"
    living.mkdir()
    with FileLock(tmp_path / ".living.lock"):
        load_or_store_vision(tower, examples, tmp_path)
        assert [path.name for path in tmp_path.glob(".part-*")] == [living.name]
    assert len(load_or_store_vision(tower, examples, tmp_path)) == 10
    assert list(tmp_path.glob(".part-*")) == []


def test_the_same_rows_read_again_by_another_process_are_the_same_store(examples, tower, tmp_path):
    code = (
        "import sys; from datasets import load_from_disk; from datasets.fingerprint import generate_fingerprint\n"
        "print(generate_fingerprint(load_from_disk(sys.argv[1])))"
    )
    examples.dataset.save_to_disk(tmp_path / "rows")
    root = str(Path(__file__).parents[2])
    pipe = {"capture_output": True, "text": True, "check": True, "env": {**os.environ, "PYTHONPATH": root}}
    command = [sys.executable, "-c", code, str(tmp_path / "rows")]
    first, second = (subprocess.run(command, **pipe).stdout for _ in range(2))
    assert first == second and first.strip()
