"""Vision towers of MF² and backbones of the compared systems: places, freezing, and backbones that do not fit."""

import math

import pytest
import torch
from compared_systems import SMALL, SMALL_SWIN
from conftest import assert_same, shake, state_of, tiny_config

from configuration_mf2.baselines import HSEmotionConfig, VLFAUConfig
from modeling_mf2 import HSEmotionForFaceAnalysis, MF2Model
from modeling_mf2.baselines.base import FeatureMaps, load_backbone_weights
from modeling_mf2.vision import MF2VisionTower


def tower(kind="conv", **vision):
    return shake(MF2VisionTower(tiny_config(kind, vision=vision).vision_config))


@pytest.mark.parametrize(("kind", "length"), [("conv", 16), ("vit", 17)])
def test_tokens_stand_row_by_row_on_the_grid(kind, length):
    model = tower(kind).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = model(images)
    assert tokens.shape == (2, length, 32) and tokens.isfinite().all()
    assert torch.allclose(model(images[1:]), tokens[1:], atol=1e-5)


@pytest.mark.parametrize(("kind", "sides"), [("conv", [16, 8, 8, 4, 4, 4]), ("vit", [None] * 3)])
def test_what_adapters_may_read_ends_with_the_tokens(kind, sides):
    """Maps of the convolutions come first; what is seen in a corner stands in that corner of each."""
    model = tower(kind).eval()
    images = torch.randn(1, 3, 64, 64)
    tokens, states = model.look_deep(images)
    assert torch.equal(tokens, model(images)) and torch.equal(states[-1], tokens)
    assert len(states) == model.num_states
    if kind == "vit":
        return
    assert [state.shape[1] for state in states] == [side**2 for side in sides]
    assert {state.shape[-1] for state in states} == {tokens.shape[-1]}
    images[..., :8, -8:] += 1  # top right
    for state, changed in list(zip(states, model.look_deep(images)[1], strict=True))[:3]:
        moved = (changed - state).abs().sum(-1).view(math.isqrt(state.shape[1]), -1)
        assert moved[0, -1] > 0 and moved[-1, 0] == 0


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_frozen_tower_never_learns(kind):
    model = tower(kind)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    model.train()
    assert not any(module.training for module in model.modules())
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    before, tokens = state_of(model), model(images)
    assert not tokens.requires_grad and tokens.grad_fn is None
    assert_same(model.state_dict(), before)  # running statistics too
    parent = torch.nn.ModuleList([model]).train()
    assert not model.training and parent.training


@pytest.mark.parametrize(
    ("kind", "vision", "said"),
    [
        ("vit", {"backbone": "vit_tinny_patch16_224"}, "backbone: got 'vit_tinny_patch16_224'.*'vit_tiny_patch16_224'"),
        ("vit", {"hidden_size": 64}, "vision_config.hidden_size: got 64, expected 32"),
        ("vit", {"num_prefix_tokens": 0}, "vision_config.num_prefix_tokens: got 0, expected 1"),
        ("vit", {"patch_size": 32}, "vision_config.patch_size: got 32, expected 16"),
        ("vit", {"backbone": "resnet18", "backbone_kwargs": {}}, "backbone: got 'resnet18', expected .*patch tokens"),
        ("conv", {"patch_size": 32}, "patch_size.*got 32.*'conv'"),
        ("conv", {"hidden_size": 30}, "hidden_size: got 30, expected a multiple of 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_backbone_unlike_its_configuration_is_an_error(kind, vision, said):
    with pytest.raises(ValueError, match=said):
        tower(kind, **vision)


def test_an_image_of_another_shape_is_an_error_and_its_dtype_is_the_towers():
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 3, 32, 64), (1, 3, 224, 224)):
        with pytest.raises(ValueError, match=r"pixel_values: got .*expected \(batch, 3, 64, 64\).*processor"):
            tower()(torch.zeros(shape))
    assert tower("vit").to(torch.bfloat16)(torch.randn(1, 3, 64, 64)).dtype == torch.bfloat16


# Backbones of the compared systems


def hsemotion():
    return HSEmotionForFaceAnalysis(HSEmotionConfig(**SMALL)).eval()


SMALL_VIT = {"embed_dim": 16, "depth": 4, "num_heads": 2}
KINDS = {
    "conv": ({}, (32, 16, 8, 4)),
    "swin": (SMALL_SWIN, (16, 8, 4, 2)),
    "cnn": ({"backbone": "mobilenetv3_small_050", "backbone_kwargs": {}}, (16, 8, 4, 2)),
    "vit": ({"backbone": "vit_tiny_patch16_224", "backbone_kwargs": SMALL_VIT}, (4, 4, 4, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stages_and_tokens_have_the_channels_that_they_say(kind):
    fields, sizes = KINDS[kind]
    maps = FeatureMaps(VLFAUConfig(**{**SMALL, **fields})).eval()
    images = torch.randn(2, 3, 64, 64)
    stages, tokens = maps.stages(images), maps.tokens(images)
    expected = [(2, count, size, size) for count, size in zip(maps.channels, sizes, strict=True)]
    assert [tuple(stage.shape) for stage in stages] == expected
    assert tokens.shape == (2, sizes[-1] ** 2, maps.width)
    if kind in ("conv", "swin"):
        assert torch.allclose(stages[-1].flatten(2).transpose(1, 2), tokens, atol=1e-5)


def test_a_frozen_backbone_never_learns():
    maps = shake(FeatureMaps(VLFAUConfig(**SMALL, frozen=True))).train()
    before, stages = state_of(maps), maps.stages(torch.randn(2, 3, 64, 64, requires_grad=True))
    assert not any(stage.requires_grad for stage in stages) and not any(p.requires_grad for p in maps.parameters())
    assert_same(maps.state_dict(), before)


def test_a_compared_system_starts_from_mf2s_own_tower_if_it_fits(tmp_path):
    mf2, model = shake(MF2Model(tiny_config(vision={"hidden_size": 16}))).eval(), hsemotion()
    mf2.save_pretrained(tmp_path / "fits")
    assert load_backbone_weights(model, tmp_path / "fits") == []
    images, before = torch.randn(2, 3, 64, 64), state_of(model)
    assert torch.equal(model.vision.tokens(images), mf2.vision(images))
    MF2Model(tiny_config()).save_pretrained(tmp_path / "wider")
    with pytest.raises(ValueError, match=r"does not fit backbone 'conv'.*of other shapes"):
        load_backbone_weights(model, tmp_path / "wider")
    assert_same(model.state_dict(), before)


def test_what_is_no_backbone_or_no_image_is_refused():
    vit = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": {"deep": 1}}
    for said, fields in {
        "backbone: got 'swin_bas', expected 'conv' or a name of timm": {"backbone": "swin_bas", "backbone_kwargs": {}},
        "backbone_kwargs: 'vit_tiny_patch16_224' does not take them": vit,
        r"pixel_values: got \(2, 3, 32, 32\), expected \(batch, 3, 64, 64\)": {},
    }.items():
        with pytest.raises(ValueError, match=said):
            FeatureMaps(VLFAUConfig(**{**SMALL, **fields})).tokens(torch.randn(2, 3, 32, 32))
