import pytest
import torch
from compared_systems import (
    SMALL,
    check_every_parameter_learns,
    check_half_precision,
    check_saved_and_loaded,
    check_unknown_labels_do_not_matter,
    small_batch,
)
from conftest import shake
from safetensors.torch import save_file
from torch import nn

from configuration_mf2.baselines import AFFECTNET_ORDER, HSEmotionConfig
from modeling_mf2 import HSEmotionForFaceAnalysis, MEGraphAUForFaceAnalysis
from modeling_mf2.baselines.hsemotion import load_hsemotion_weights


def build(**fields) -> HSEmotionForFaceAnalysis:
    return HSEmotionForFaceAnalysis(HSEmotionConfig(**{**SMALL, **fields}))


def released(rows: int = 8, prefix: str = "classifier.", width: int = 16) -> dict[str, torch.Tensor]:
    """A state dict with the names that a release has, of a small backbone."""
    donor = shake(build(backbone_kwargs={"width": width, "num_blocks": 1}), seed=3)
    state = {name: tensor.clone() for name, tensor in donor.vision.backbone.state_dict().items()}
    return {**state, f"{prefix}weight": torch.randn(rows, width), f"{prefix}bias": torch.randn(rows)}


@pytest.mark.parametrize(
    ("rows", "prefix", "ending"),
    [(8, "classifier.", "pt"), (7, "classifier.0.", "safetensors"), (10, "classifier.", "safetensors")],
)
def test_emotions_are_taken_over_by_their_names(rows, prefix, ending, tmp_path):
    state = released(rows, prefix)
    torch.save(state, tmp_path / "w.pt") if ending == "pt" else save_file(state, tmp_path / "w.safetensors")
    model = build(emotions=["Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"])
    units = {name: tensor.clone() for name, tensor in model.units.state_dict().items()}
    report = load_hsemotion_weights(model, tmp_path / f"w.{ending}")
    assert report.copied == [name for name in model.config.emotions if name != "Other"]
    assert report.fresh == ["Other"] and report.unused == (["Contempt"] if rows != 7 else [])
    order = [name for name in AFFECTNET_ORDER if rows != 7 or name != "Contempt"]
    images = torch.randn(2, 3, 64, 64)
    model.eval()
    features = model.vision.tokens(images).mean(dim=1)
    theirs = nn.functional.linear(features, state[f"{prefix}weight"], state[f"{prefix}bias"])
    ours = model(images).emotion_logits
    for column, name in enumerate(model.config.emotions):
        expected = theirs[:, order.index(name)] if name in order else torch.zeros(2)
        assert torch.allclose(ours[:, column], expected, atol=1e-5), name
    assert all(torch.equal(tensor, units[name]) for name, tensor in model.units.state_dict().items())


def test_a_whole_pickled_model_is_refused_and_none_of_its_code_runs(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "enet_b0_8_best_afew.pt")
    with pytest.raises(ValueError, match=r"whole pickled model.*torch\.save\(model\.state_dict\(\)"):
        load_hsemotion_weights(build(), tmp_path / "enet_b0_8_best_afew.pt")


def test_weights_that_do_not_fit_are_refused_and_nothing_is_changed(tmp_path):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    headless = {name: tensor for name, tensor in released().items() if "classifier" not in name}
    for message, state in {
        "does not fit backbone 'conv'": released(width=32),
        "has no classifier.weight": headless,
        "got 5 outputs, expected 7, 8 or 10": released(5),
    }.items():
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match=message):
            load_hsemotion_weights(model, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="is no file"):
        load_hsemotion_weights(model, tmp_path / "missing.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_released_sizes_are_built_from_timm():
    with torch.device("meta"):
        model = HSEmotionForFaceAnalysis(HSEmotionConfig.from_size("base"))
    assert model.vision.width == 1280 and model.emotion.weight.shape == (8, 1280)
    assert {"conv_stem.weight", "conv_head.weight", "bn2.weight"} <= set(model.vision.backbone.state_dict())


def test_either_head_can_be_left_out():
    batch = small_batch(build().config, texts=False)
    assert build(use_au_head=False)(**batch).au_logits is None
    assert build(emotions=[])(**batch).emotion_logits is None


def test_every_parameter_learns():
    check_every_parameter_learns(build(), small_batch(build().config))


def test_unknown_labels_do_not_matter():
    check_unknown_labels_do_not_matter(build(), small_batch(build().config))


def test_half_precision():
    model = build()
    check_half_precision(model, small_batch(model.config))


def test_saved_and_loaded_bit_by_bit(tmp_path):
    check_saved_and_loaded(build(), tmp_path, MEGraphAUForFaceAnalysis)
