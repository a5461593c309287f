"""A tower is trained from what it is given, and keeps nothing of its readout."""

import pytest
import torch

from configuration_mf2 import MF2Config
from mf2face.training.tower import MF2ForTowerTraining, hide_patches, patches_of


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


def test_without_labels_it_learns_to_fill_in_what_is_hidden(model):
    images, points = torch.randn(4, 3, 112, 112), 112 * torch.rand(4, 68, 2)
    assert model(images, points).pixel is None, "only while training"
    model.train()
    output = model(images, points)
    assert output.au is None and output.emotion is None
    torch.testing.assert_close(output.loss, 2 * output.landmark + output.pixel)
    output.loss.backward()
    assert model.pixels.weight.grad.any() and model.vision.backbone.convolutions[0].weight.grad.any()
    labelled = model(images, points, emotion_labels=torch.tensor([0, 1, 2, 3]))
    assert labelled.pixel is None


def test_whole_patches_are_hidden_and_the_rest_is_left():
    torch.manual_seed(0)
    images = torch.rand(64, 3, 48, 32) + 1
    hidden = hide_patches(images, 16)
    before, after = patches_of(images, 16), patches_of(hidden, 16)
    gone = (after == 0).all(-1)
    assert torch.equal(after[~gone], before[~gone])
    assert 0.2 < gone.double().mean() < 0.4  # of each image a share between none and 0.6
    assert gone.double().mean(1).std() > 0.15


def test_patches_stand_in_the_order_of_the_tokens():
    image = torch.zeros(1, 3, 48, 32)
    image[:, :, 16:32, 16:] = 1  # second row, second column, of two columns
    assert patches_of(image, 16).sum(-1).argmax() == 3
