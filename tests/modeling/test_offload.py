"""Weights that accelerate keeps in memory or on disk until their layer runs give the same answers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from compared_systems import SMALL, SMALL_SWIN, small_batch
from conftest import shake, tiny_batch, tiny_config
from exp_blip_models import SMALL_TOWERS, small_config
from transformers import PreTrainedModel

from configuration_mf2.baselines import HSEmotionConfig, MEGraphAUConfig, VLFAUConfig
from modeling_mf2 import (
    ExpBlipForFaceAnalysis,
    HSEmotionForFaceAnalysis,
    MEGraphAUForFaceAnalysis,
    MF2ForCaptioning,
    MF2ForFaceAnalysis,
    MF2ForPreTraining,
    MF2ForZeroShotImageClassification,
    MF2Model,
    VLFAUForFaceAnalysis,
)


VIT = {
    **{"backbone": "vit_tiny_patch16_224", "backbone_kwargs": {"embed_dim": 16, "depth": 4, "num_heads": 2}},
    **{name: SMALL[name] for name in ("image_size", "action_units", "emotions")},
}
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "base": lambda: MF2Model(tiny_config()),
    "pretraining": lambda: MF2ForPreTraining(tiny_config()),
    "face_vit": lambda: MF2ForFaceAnalysis(tiny_config("vit")),
    "face_eva": lambda: MF2ForFaceAnalysis(tiny_config(vision=SMALL_TOWERS["eva"])),
    "captioning": lambda: MF2ForCaptioning(tiny_config()),
    "zero_shot": lambda: MF2ForZeroShotImageClassification(tiny_config()),
    "vl_fau": lambda: VLFAUForFaceAnalysis(VLFAUConfig(**SMALL_SWIN, hidden_size=16, scale_channels=4)),
    "vl_fau_vit": lambda: VLFAUForFaceAnalysis(VLFAUConfig(**VIT, hidden_size=16, scale_channels=4)),
    "me_graph_au": lambda: MEGraphAUForFaceAnalysis(MEGraphAUConfig(**SMALL, hidden_size=16, neighbors=2)),
    "hsemotion": lambda: HSEmotionForFaceAnalysis(HSEmotionConfig(**VIT)),
    "exp_blip": lambda: ExpBlipForFaceAnalysis(small_config("vit")),
}


def build(name: str) -> PreTrainedModel:
    return shake(MODELS[name]()).eval()


@torch.no_grad()
def answers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    compared = not hasattr(model.config, "vision_config")
    batch = small_batch(model.config) if compared else tiny_batch(model.config)
    texts = [name for name in batch if name.endswith("input_ids") or name.endswith("attention_mask")]
    if isinstance(model, MF2Model | MF2ForFaceAnalysis | ExpBlipForFaceAnalysis):
        batch = {name: batch[name] for name in batch if name not in texts}
    if isinstance(model, MF2ForCaptioning | MF2ForZeroShotImageClassification):
        batch = {name: batch[name] for name in ("pixel_values", "landmarks", *texts[:2])}
    torch.manual_seed(0)
    found = {name: value for name, value in model(**batch).items() if isinstance(value, torch.Tensor)}
    if isinstance(model, MF2ForCaptioning):
        for branch in ("emo", "au"):
            found[f"written_{branch}"] = model.generate(batch["pixel_values"], batch["landmarks"], branch=branch)
    return found


def assert_same_answers(offloaded: PreTrainedModel, expected: dict[str, torch.Tensor]) -> None:
    moved = [name for name, parameter in offloaded.named_parameters() if not parameter.is_meta]
    found = answers(offloaded)
    assert found.keys() == expected.keys() and len(found) > 0
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    still = [name for name, parameter in offloaded.named_parameters() if not parameter.is_meta]
    assert still == moved, "what was offloaded before is so again"


@pytest.mark.parametrize("name", MODELS)
def test_offloaded_by_accelerate(name: str, tmp_path: Path) -> None:
    model = build(name)
    expected = answers(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert_same_answers(model, expected)
    again = build(name)
    disk_offload(again, tmp_path, execution_device=torch.device("cpu"))
    assert_same_answers(again, expected)


@pytest.mark.parametrize("name", MODELS)
def test_loaded_with_a_device_map(name: str, tmp_path: Path) -> None:
    model = build(name)
    expected = answers(model)
    model.save_pretrained(tmp_path / "saved")
    settings = {"offload_folder": tmp_path / "offloaded"}
    whole = type(model).from_pretrained(tmp_path / "saved", device_map={"": "disk"}, **settings)
    assert all(parameter.is_meta for parameter in whole.parameters())
    assert_same_answers(whole.eval(), expected)
    size = model.get_memory_footprint()
    for share in (0.3, 0.7):
        limits = {"max_memory": {"cpu": int(share * size)}}
        partly = type(model).from_pretrained(tmp_path / "saved", device_map="auto", **limits, **settings).eval()
        places = set(partly.hf_device_map.values())
        assert places <= {"cpu", "disk"} and "disk" in places
        assert_same_answers(partly, expected)


@torch.no_grad()
def test_a_bare_model_finds_its_own_offloaded_weights_outside_of_forward() -> None:
    model = build("base")
    batch = tiny_batch(model.config)
    images = batch["pixel_values"], batch["landmarks"]
    expected = model.get_image_features(*images, branch="au").pooler_output
    cpu_offload(model)
    assert torch.equal(model.get_image_features(*images, branch="au").pooler_output, expected)
