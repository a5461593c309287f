"""Which rows a run learns from, and which it is measured on."""

import pytest
from datasets import DatasetDict

from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.arguments import MF2Arguments
from mf2face.training.splits import load_splits


def test_splits_of_synthetic_faces_of_folders_and_of_their_mistakes(tmp_path):
    drawn = load_splits(MF2Arguments(num_images=160))
    assert {name: len(part) for name, part in drawn.items()}.keys() == {"train", "validation", "test"}
    assert not set(drawn["train"]["subject"]) & set(drawn["test"]["subject"])
    rows = MFASynthetic(160, seed=MF2Arguments().people_seed, cache_dir=tmp_path / "cache")
    rows.save_to_disk(tmp_path / "flat")
    flat = load_splits(MF2Arguments(dataset=str(tmp_path / "flat")))
    assert {name: part["video"][:] for name, part in flat.items()} == {n: p["video"][:] for n, p in drawn.items()}
    DatasetDict({"train": drawn["train"], "test": drawn["test"]}).save_to_disk(tmp_path / "dict")
    named = load_splits(MF2Arguments(dataset=str(tmp_path / "dict")))
    assert named["validation"] is named["test"]
    drawn["train"].save_to_disk(tmp_path / "train_only")
    with pytest.raises(ValueError, match=r"rows in the splits \['train'\], expected train, and validation or test"):
        load_splits(MF2Arguments(dataset=str(tmp_path / "train_only")))
