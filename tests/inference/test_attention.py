"""Attention put back on the face: shares that sum to 1, in their region, and a model that is left as it was."""

import numpy as np
import pytest
import torch
from conftest import shake, tiny_batch, tiny_config

from configuration_mf2.facs import CANONICAL_FACE
from mf2face.inference.explain.attention import (
    attention_maps,
    maps_of,
    reading_weights,
    region_corners,
    to_pixels,
    watched,
)
from modeling_mf2.modeling_mf2 import MF2ForFaceAnalysis, MF2ForImageClassification
from modeling_mf2.pretraining import MF2ForPreTraining
from modeling_mf2.regions import MF2Regions


def _model(kind=MF2ForFaceAnalysis, **fields):
    return shake(kind(tiny_config(**fields))).eval()


def _inputs(config, rows=2):
    batch = tiny_batch(config, rows)
    return {name: batch[name] for name in ("pixel_values", "landmarks")}


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_maps_are_the_eager_weights_and_the_model_stays_as_it_was(tower: str) -> None:
    model = _model(tower=tower)
    model.set_attn_implementation("sdpa")
    inputs = _inputs(model.config)
    with torch.no_grad():
        before = model(**inputs)
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    maps, answer = attention_maps(model, **inputs)
    assert torch.equal(answer.au_logits, before.au_logits)
    assert torch.equal(answer.emotion_logits, before.emotion_logits)
    assert model.config._attn_implementation == "sdpa"
    assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} <= {"sdpa"}
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(**inputs, output_attentions=True)
    flat = [layer.flatten(0, 1) for layer in eager.au_cross_attentions]
    expected = maps_of(model.config, inputs["landmarks"], flat, list(eager.emo_cross_attentions))
    for name in ("units", "face", "nowhere"):
        assert torch.allclose(getattr(maps, name), getattr(expected, name), atol=1e-5)
    assert (maps.nowhere > 1e-3).all() == (tower == "vit"), "its class token has no place"


def test_shares_sum_to_one_and_lie_in_the_region_alone() -> None:
    model = _model(kind=MF2ForPreTraining)
    inputs = _inputs(model.config)
    maps, _ = attention_maps(model, **inputs)
    assert maps.units.shape == (2, 3, 4, 4) and maps.face.shape == (2, 4, 4)
    assert torch.allclose(maps.units.sum((-1, -2)), torch.ones(2, 3), atol=1e-5)
    assert torch.allclose(maps.face.sum((-1, -2)), torch.ones(2), atol=1e-5)
    read = reading_weights(model.config, inputs["landmarks"], 4).amax(2).unflatten(-1, (4, 4))
    assert (maps.units[read == 0] == 0).all() and (maps.units[read > 0.01] > 0).all()
    assert (read == 0).any((-1, -2)).all(), "the test means something"


def test_the_weights_are_those_that_the_model_reads_its_regions_with() -> None:
    config = tiny_config()
    regions = MF2Regions(config)
    torch.nn.init.normal_(regions.positions)
    landmarks, tokens = tiny_batch(config, 2)["landmarks"], torch.randn(2, 16, 32)
    expected = regions(tokens, landmarks) - regions.positions
    assert torch.allclose(reading_weights(config, landmarks, 4) @ tokens[:, None], expected, atol=1e-5)


def test_all_weight_on_one_token_is_a_bump_at_its_landmark() -> None:
    """AU25's second centre is point 57, below the lower lip; with one point a centre, token 1 is read there."""
    config = tiny_config(region_grid=1, vision={"image_size": 224, "patch_size": 16})
    landmarks = torch.tensor(CANONICAL_FACE)[None] * 224
    weights = torch.zeros(3, 4, 2, 2)
    weights[..., 0], weights[2, ..., 0], weights[2, ..., 1] = 1, 0, 1
    maps = maps_of(config, landmarks, [weights], [])
    heat = to_pixels(maps.units[0, 2].numpy(), 224)
    down, right = np.unravel_index(heat.argmax(), heat.shape)
    assert np.hypot(right + 0.5 - landmarks[0, 57, 0], down + 0.5 - landmarks[0, 57, 1]) <= 8, "half a patch"
    assert heat.sum() == pytest.approx(1, abs=1e-5) and heat.min() >= 0
    rows, columns = np.mgrid[:224, :224] + 0.5
    assert (heat * rows).sum() == pytest.approx(float(landmarks[0, 57, 1]), abs=0.5)
    assert (heat * columns).sum() == pytest.approx(float(landmarks[0, 57, 0]), abs=0.5)
    assert maps.face is None


def test_corners_are_squares_around_the_centres() -> None:
    config = tiny_config()
    landmarks = torch.tensor(CANONICAL_FACE)[None] * 64
    corners = region_corners(config, landmarks)
    assert corners.shape == (1, 3, 2, 4, 2)
    inner = landmarks[0, 42, 0] - landmarks[0, 39, 0]
    sides = (corners - corners.roll(1, dims=3)).norm(dim=-1)
    assert torch.allclose(sides, (config.region_window * inner).expand_as(sides), atol=1e-4)
    assert torch.allclose(corners[0, 2].mean(1), landmarks[0, [51, 57]], atol=1e-4)


def test_without_a_branch_its_maps_are_absent_and_other_models_are_refused() -> None:
    model = _model(use_au_branch=False)
    maps, _ = attention_maps(model, **_inputs(model.config))
    assert maps.units is None and maps.corners is None and maps.face is not None
    with pytest.raises(ValueError, match="got Linear, which has no queries"):
        attention_maps(torch.nn.Linear(2, 2), torch.zeros(1, 68, 2))
    classifier = _model(kind=MF2ForImageClassification)
    assert attention_maps(classifier, **_inputs(classifier.config))[0].units is not None


def test_the_watch_ends_also_when_the_model_fails() -> None:
    model = _model()
    branch = model.mf2.branch("emo")
    with pytest.raises(RuntimeError), watched(branch):
        raise RuntimeError
    assert not any(module._forward_hooks for module in branch.modules())
