import torch
from compared_systems import as_linear
from torch import nn

from configuration_mf2.baselines import VLFAUConfig
from modeling_mf2.baselines.vl_fau import (
    Attended,
    DualLevelRefinement,
    MultiScaleCombination,
    UnitClassifiers,
    largest_channel,
)


CONFIG = VLFAUConfig(hidden_size=64, scale_channels=6, reduction=4, vocab_size=40, bos_token_id=5)
UNITS, SIZE = 3, (4, 5)


def stirred(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5)
    return module.double()


def face() -> torch.Tensor:
    return torch.randn(2, SIZE[0] * SIZE[1], CONFIG.hidden_size, dtype=torch.float64, requires_grad=True)


def test_refinement_is_what_one_branch_after_the_other_computes():
    """Equations 2 and 3 as they are written, an AU at a time, in values and in gradients."""
    refine, images = stirred(DualLevelRefinement(UNITS, CONFIG)), face()
    refined = refine(images, SIZE).maps()
    whole = images.transpose(1, 2).unflatten(2, SIZE)
    branches = []
    for unit in range(UNITS):
        down = as_linear(refine.down_weight[unit], refine.down_bias[unit])
        up = as_linear(refine.up_weight[unit], refine.up_bias[unit])
        largest, average = (up(down(pooled).relu()) for pooled in (whole.amax(dim=(2, 3)), whole.mean(dim=(2, 3))))
        attended = torch.sigmoid(largest + average)[:, :, None, None] * whole
        pooled = torch.stack([attended.amax(dim=1), attended.mean(dim=1)], dim=1)
        weight, bias = refine.spatial_weight[unit : unit + 1], refine.spatial_bias[unit : unit + 1]
        branches.append(nn.functional.conv2d(pooled, weight, bias, padding=1) * attended)
    expected = torch.stack(branches, dim=1).flatten(3).transpose(2, 3)
    assert torch.allclose(refined, expected, rtol=0, atol=1e-9)
    direction = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(maps, images, direction)[0] for maps in (refined, expected))
    assert torch.allclose(found, wanted, rtol=0, atol=1e-9)


def test_untrained_spatial_attention_lets_everything_through():
    refine = DualLevelRefinement(UNITS, CONFIG)
    refine.init_weights()
    attended = refine(face().float(), SIZE)
    assert (attended.spatial - 1).abs().max() < 0.5


def test_the_largest_channel_is_found_in_any_width():
    for width in (64, 30, 1):
        channel, images = torch.rand(2, UNITS, width), torch.randn(2, 7, width)
        products = channel[:, :, None] * images[:, None]
        assert torch.equal(largest_channel(channel, images), products.argmax(dim=-1))


def test_factors_answer_as_the_maps_that_they_stand_for():
    images = face()
    for attended in (Attended(images), stirred(DualLevelRefinement(UNITS, CONFIG))(images, SIZE)):
        maps = attended.maps()
        weights = torch.rand(maps.shape[:3], dtype=torch.float64)
        assert torch.allclose(attended.weighted(weights), torch.einsum("bqp,bqpc->bqc", weights, maps), atol=1e-9)
        assert torch.allclose(attended.mean(), maps.mean(dim=2), atol=1e-9)
        assert torch.equal(attended.repeated(2).maps(), maps.repeat_interleave(2, dim=1))


def test_gradients_through_written_out_maps_are_exact():
    factors = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 4), (2, 2, 4), (2, 2, 3))
    ]
    assert torch.autograd.gradcheck(lambda *parts: Attended(*parts).maps(), factors)


def test_scales_are_combined_as_equation_1_says_whatever_their_sizes():
    channels, sizes = [3, 4, 5, 6], [(28, 20), (14, 10), (7, 5), (4, 3)]
    combine = stirred(MultiScaleCombination(channels, CONFIG))
    stages = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(channels, sizes, strict=True)]
    combined, size = combine(stages)
    assert size == (4, 3) and combined.shape == (2, 12, CONFIG.hidden_size)
    joined = []
    for stage, layer, strides in zip(stages, combine.convolutions, ((7, 7), (4, 4), (2, 2), (1, 1)), strict=True):
        joined.append(nn.functional.conv2d(stage, layer.weight, layer.bias, strides, padding=1))
    joined = torch.cat(joined, dim=1)
    for row, column in ((0, 0), (3, 2), (1, 1)):
        expected = joined[:, :, row, column] @ combine.join.weight.T + combine.join.bias
        assert torch.allclose(combined[:, row * 3 + column], expected, atol=1e-9)


def test_each_unit_has_its_own_classifier():
    classify = stirred(UnitClassifiers(UNITS, 5))
    features = torch.randn(2, UNITS, 5, dtype=torch.float64)
    for unit in range(UNITS):
        expected = features[:, unit] @ classify.weight[unit] + classify.bias[unit]
        assert torch.allclose(classify(features)[:, unit], expected)
