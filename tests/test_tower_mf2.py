"""A tower is trained from what it is given, and keeps nothing of its readout."""

import pytest
import torch

from configuration_mf2 import MF2Config
from modeling_mf2.tower_mf2 import MF2ForTowerTraining


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MF2ForTowerTraining(MF2Config.from_size("tiny", vision_config={"frozen": False})).eval()


def test_the_loss_is_the_weighted_sum_of_what_is_given(model):
    given = {
        "pixel_values": torch.randn(3, 3, 112, 112),
        "landmarks": 112 * torch.rand(3, 68, 2),
        "au_labels": torch.randint(-1, 2, (3, 12)),
        "emotion_labels": torch.tensor([1, -1, 7]),
    }
    output = model(**given)
    expected = 2 * output.au + 0.5 * output.emotion + 2 * output.landmark
    torch.testing.assert_close(output.loss, expected)
    places = 2 * given["landmarks"] / 112 - 1
    torch.testing.assert_close(output.landmark, (output.landmark_points - places).square().mean())
    without = model(given["pixel_values"], given["landmarks"])
    assert without.au is None and without.emotion is None
    torch.testing.assert_close(without.loss, 2 * output.landmark)


def test_gradients_reach_the_whole_tower(model):
    for block in model.vision.backbone.blocks:  # their outputs start at zero
        torch.nn.init.normal_(block.attention_out.weight, std=0.1)
        torch.nn.init.normal_(block.mlp_out.weight, std=0.1)
    model(torch.randn(2, 3, 112, 112), 112 * torch.rand(2, 68, 2)).loss.backward()
    assert [name for name, p in model.vision.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_frozen_tower_is_refused():
    with pytest.raises(ValueError, match=r"vision_config.frozen: got True"):
        MF2ForTowerTraining(MF2Config.from_size("tiny"))
