import math

import pytest
import torch

from configuration_mf2.configuration_mf2 import MF2VisionConfig
from modeling_mf2.vision import MF2VisionTower


@pytest.fixture
def tower(make_config, shaken):
    def build(kind="conv", **vision):
        return shaken(MF2VisionTower(make_config(kind, vision=vision).vision_config))

    return build


@pytest.mark.parametrize(("kind", "length"), [("conv", 16), ("vit", 17)])
def test_tokens_stand_row_by_row_on_the_grid(tower, kind, length):
    model = tower(kind).eval()
    images = torch.randn(2, 3, 64, 64)
    tokens = model(images)
    assert tokens.shape == (2, length, 32) and tokens.isfinite().all()
    assert torch.allclose(model(images[1:]), tokens[1:], atol=1e-5)


def test_convolutional_tower_keeps_places():
    """Without its attention blocks, what changes in one corner reaches that corner's token, and not the far one's."""
    config = MF2VisionConfig(
        backbone="conv", backbone_kwargs={"num_blocks": 0}, image_size=128, hidden_size=16, num_prefix_tokens=0
    )
    model = MF2VisionTower(config)
    image = torch.randn(1, 3, 128, 128)
    changed = image.clone()
    changed[..., :8, -8:] += 1  # top right
    difference = (model(changed) - model(image)).abs().sum(-1).view(8, 8)
    assert difference[0, 7] > 0
    assert difference[7].sum() == 0 and difference[:, 0].sum() == 0


@pytest.mark.parametrize(("kind", "sides"), [("conv", [16, 8, 8, 4, 4, 4]), ("vit", [None] * 3)])
def test_what_adapters_may_read_ends_with_the_tokens(tower, kind, sides):
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
def test_frozen_tower_never_learns(tower, kind):
    model = tower(kind)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    model.train()
    assert not any(module.training for module in model.modules())
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = model(images)
    assert not tokens.requires_grad and tokens.grad_fn is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name  # running statistics too
    parent = torch.nn.ModuleList([model]).train()
    assert not model.training and parent.training


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_thawed_tower_learns(tower, kind):
    model = tower(kind, frozen=False).train()
    assert all(module.training for module in model.modules())
    model(torch.randn(2, 3, 64, 64)).pow(3).sum().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    with torch.no_grad():
        assert not model(torch.randn(2, 3, 64, 64)).requires_grad


@pytest.mark.parametrize(
    ("kind", "vision", "said"),
    [
        ("vit", {"backbone": "vit_tinny_patch16_224"}, "backbone: got 'vit_tinny_patch16_224'.*'vit_tiny_patch16_224'"),
        ("vit", {"hidden_size": 64}, "vision_config.hidden_size: got 64, expected 32"),
        ("vit", {"num_prefix_tokens": 0}, "vision_config.num_prefix_tokens: got 0, expected 1"),
        ("vit", {"patch_size": 32}, "vision_config.patch_size: got 32, expected 16"),
        ("vit", {"backbone": "resnet18", "backbone_kwargs": {}}, "backbone: got 'resnet18', expected .*patch tokens"),
        ("conv", {"patch_size": 8}, "patch_size: got 8, expected 16 .*'conv'"),
        ("conv", {"hidden_size": 30}, "hidden_size: got 30, expected a multiple of 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_backbone_unlike_its_configuration_is_an_error(tower, kind, vision, said):
    with pytest.raises(ValueError, match=said):
        tower(kind, **vision)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 32, 64), (1, 3, 224, 224)])
def test_an_image_of_another_shape_is_an_error(tower, shape):
    with pytest.raises(ValueError, match=r"pixel_values: got .*expected \(batch, 3, 64, 64\).*processor"):
        tower()(torch.zeros(shape))


def test_images_follow_the_towers_dtype(tower):
    model = tower("vit").to(torch.bfloat16)
    assert model(torch.randn(1, 3, 64, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["conv", "vit"])
def test_a_seed_gives_one_tower_and_a_fresh_one_is_initialised_once(tower, kind, make_config):
    config = make_config(kind, initializer_range=50.0).vision_config
    torch.manual_seed(3)
    first = MF2VisionTower(config).state_dict()
    torch.manual_seed(3)
    second = MF2VisionTower(config).state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name])
        assert value.isfinite().all()
    if kind == "conv":  # attention blocks start as the identity
        assert not first["backbone.blocks.0.attention_out.weight"].any()
        assert not first["backbone.blocks.0.mlp_out.weight"].any()
        assert first["backbone.positions"].std() == pytest.approx(0.02, rel=0.3)
