"""What the journey does before and after training; test_train.py goes all the way."""

import pytest

from mf2face.training.arguments import MF2Arguments
from mf2face.training.run import build_model


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
