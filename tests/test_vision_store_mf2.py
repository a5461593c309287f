"""What is stored is what the tower sees, and a store that is not of this tower and these rows is never read."""

import pytest
import torch

from configuration_mf2 import MF2Config
from dataset_mf2.examples_mf2 import MF2Examples
from dataset_mf2.synthetic_faces import MFASynthetic
from modeling_mf2.vision_mf2 import MF2VisionTower
from processing_mf2 import MF2Processor
from training_mf2.vision_store_mf2 import load_or_store_vision, store_fingerprint


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
