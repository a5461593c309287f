import pytest
import torch
from compared_systems import SMALL, SMALL_SWIN
from conftest import shake, tiny_config

from configuration_mf2.baselines import VLFAUConfig
from modeling_mf2 import HSEmotionForFaceAnalysis, MF2Model
from modeling_mf2.baselines.base import FeatureMaps, load_backbone_weights


KINDS = {
    "conv": ({}, (32, 16, 8, 4)),
    "swin": ({"backbone_kwargs": SMALL_SWIN["backbone_kwargs"], "backbone": SMALL_SWIN["backbone"]}, (16, 8, 4, 2)),
    "cnn": ({"backbone": "mobilenetv3_small_050", "backbone_kwargs": {}}, (16, 8, 4, 2)),
    "vit": (
        {
            "backbone": "vit_tiny_patch16_224",
            "backbone_kwargs": {"embed_dim": 16, "depth": 4, "num_heads": 2},
        },
        (4, 4, 4, 4),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stages_and_tokens_have_the_channels_that_they_say(kind):
    fields, sizes = KINDS[kind]
    maps = FeatureMaps(VLFAUConfig(**{**SMALL, **fields})).eval()
    images = torch.randn(2, 3, 64, 64)
    stages, tokens = maps.stages(images), maps.tokens(images)
    assert [tuple(stage.shape) for stage in stages] == [
        (2, count, size, size) for count, size in zip(maps.channels, sizes, strict=True)
    ]
    assert tokens.shape == (2, sizes[-1] ** 2, maps.width)
    if kind in ("conv", "swin"):
        assert torch.allclose(stages[-1].flatten(2).transpose(1, 2), tokens, atol=1e-5)


def test_a_frozen_backbone_never_learns():
    maps = shake(FeatureMaps(VLFAUConfig(**SMALL, frozen=True))).train()
    before = {name: tensor.clone() for name, tensor in maps.state_dict().items()}
    stages = maps.stages(torch.randn(2, 3, 64, 64, requires_grad=True))
    assert not any(stage.requires_grad for stage in stages) and not any(p.requires_grad for p in maps.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in maps.state_dict().items())


def test_mf2s_own_tower_can_be_what_a_compared_system_starts_from(tmp_path):
    config = tiny_config(vision={"hidden_size": 16})
    mf2 = shake(MF2Model(config))
    mf2.save_pretrained(tmp_path)
    model = HSEmotionForFaceAnalysis(HSEmotionForFaceAnalysis.config_class(**SMALL)).eval()
    assert load_backbone_weights(model, tmp_path) == []
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.vision.tokens(images), mf2.eval().vision(images))


def test_weights_of_another_backbone_are_refused_and_nothing_is_changed(tmp_path):
    MF2Model(tiny_config(vision={"hidden_size": 32})).save_pretrained(tmp_path)
    model = HSEmotionForFaceAnalysis(HSEmotionForFaceAnalysis.config_class(**SMALL))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit backbone 'conv'.*of other shapes"):
        load_backbone_weights(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_is_no_backbone_or_no_image_is_refused():
    with pytest.raises(ValueError, match="backbone: got 'swin_bas', expected 'conv' or a name of timm"):
        FeatureMaps(VLFAUConfig(**{**SMALL, "backbone": "swin_bas", "backbone_kwargs": {}}))
    with pytest.raises(ValueError, match="backbone_kwargs: 'vit_tiny_patch16_224' does not take them"):
        FeatureMaps(VLFAUConfig(**{**SMALL, "backbone": "vit_tiny_patch16_224", "backbone_kwargs": {"deep": 1}}))
    with pytest.raises(ValueError, match=r"pixel_values: got \(2, 3, 32, 32\), expected \(batch, 3, 64, 64\)"):
        FeatureMaps(VLFAUConfig(**SMALL)).tokens(torch.randn(2, 3, 32, 32))
