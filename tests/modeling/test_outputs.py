"""What generic code reads of an output: `hidden_states`, `attentions`, `loss` first."""

import pytest
import torch
from compared_systems import SMALL, SMALL_SWIN, small_batch
from conftest import shake, tiny_batch, tiny_config
from exp_blip_models import faces_and_captions, small_config

from modeling_mf2 import (
    ExpBlipForFaceAnalysis,
    ExpBlipForPreTraining,
    HSEmotionForFaceAnalysis,
    MEGraphAUForFaceAnalysis,
    MF2ForFaceAnalysis,
    MF2Model,
    VLFAUForFaceAnalysis,
)


VL_FAU = {"vocab_size": 40, "bos_token_id": 5, "hidden_size": 32}


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (HSEmotionForFaceAnalysis, {}),
        (HSEmotionForFaceAnalysis, {"backbone": "mobilenetv3_small_050", "backbone_kwargs": {}}),
        (MEGraphAUForFaceAnalysis, {"neighbors": 2, "hidden_size": 32}),
        (MEGraphAUForFaceAnalysis, {**SMALL_SWIN, "neighbors": 2, "hidden_size": 32}),
        (VLFAUForFaceAnalysis, VL_FAU),
        (VLFAUForFaceAnalysis, {**VL_FAU, "use_marl": False, "use_llga": False, "use_glga": False}),
    ],
)
def test_hidden_states_of_a_compared_system_are_its_stages(cls, fields):
    model = shake(cls(cls.config_class(**{**SMALL, **fields}))).eval()
    images = small_batch(model.config)["pixel_values"]
    usual, read = model(images), model(images, output_hidden_states=True)
    assert usual.hidden_states is None
    assert len(read.hidden_states) == 4
    assert all(map(torch.equal, read.hidden_states, model.vision.stages(images)))
    torch.testing.assert_close(read.au_logits, usual.au_logits)
    model.config.output_hidden_states = True
    assert len(model(images).hidden_states) == 4


@pytest.mark.parametrize("cls", [ExpBlipForFaceAnalysis, ExpBlipForPreTraining])
def test_exp_blip_returns_states_and_attentions_of_its_queries(cls):
    model = shake(cls(small_config(frozen_features=False))).eval()
    batch = faces_and_captions(model.config)
    if cls is ExpBlipForFaceAnalysis:
        batch = {"pixel_values": batch["pixel_values"]}
    read = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in read.hidden_states] == [(4, 3, 32)] * 4
    assert [tuple(weights.shape) for weights in read.attentions] == [(4, 4, 3, 3)] * 3


def test_a_tuple_begins_with_the_loss_and_the_answers():
    model = MF2ForFaceAnalysis(tiny_config()).eval()
    batch = {name: tensor for name, tensor in tiny_batch(model.config).items() if "input" not in name}
    batch = {name: tensor for name, tensor in batch.items() if "mask" not in name}
    loss, emotion_logits, au_logits, *_ = model(**batch, return_dict=False)
    assert loss.ndim == 0 and emotion_logits.shape == au_logits.shape == (4, 3)
    assert model.mf2(batch["pixel_values"], return_dict=False)[0].shape == (4, 3, 32)


def test_features_have_the_states_that_they_are_made_of():
    model = shake(MF2Model(tiny_config())).eval()
    batch = tiny_batch(model.config)
    asked = {"output_hidden_states": True, "output_attentions": True}
    image = model.get_image_features(batch["pixel_values"], batch["landmarks"], branch="au", **asked)
    assert torch.equal(image.last_hidden_state, image.hidden_states[-1])
    assert image.last_hidden_state.shape == (4, 3, 2, 32) and len(image.attentions) == 3
    assert torch.equal(model.au_vl.heads.image_features(image.last_hidden_state), image.pooler_output)
    text = model.get_text_features(batch["au_input_ids"], batch["au_attention_mask"], "au", **asked)
    assert text.last_hidden_state.shape == (4, 3, 5, 32) and text.pooler_output.shape == (4, 3, 8)
    assert torch.equal(text.last_hidden_state.flatten(0, 1), text.hidden_states[-1]) and len(text.attentions) == 3
    assert torch.equal(
        model.get_text_features(batch["input_ids"], return_dict=False)[1].norm(dim=-1).round(), torch.ones(4)
    )
