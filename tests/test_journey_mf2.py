"""What the journey does before and after training; test_train.py goes all the way."""

import pytest
from datasets import DatasetDict

from dataset_mf2.synthetic_faces import MFASynthetic
from training_mf2.arguments_mf2 import MF2Arguments
from training_mf2.journey_mf2 import build_model, load_splits


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


def test_models_of_every_task_and_branch(caplog):
    model, _ = build_model(MF2Arguments(branches="au", vision_name_or_path="none"))
    assert model.mf2.emo_vl is None and model.mf2.au_vl is not None
    assert "the vision tower has random weights" in caplog.text
    model, _ = build_model(MF2Arguments(task="full", branches="emo", label_set="affectnet"))
    assert model.mf2.au_vl is None
    tower, _ = build_model(MF2Arguments(task="tower"))
    assert all(parameter.requires_grad for parameter in tower.vision.parameters())
    with pytest.raises(ValueError, match="model_name_or_path: got none"):
        build_model(MF2Arguments(task="evaluate"))
