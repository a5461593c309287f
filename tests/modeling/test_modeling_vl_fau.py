import math

import pytest
import torch
from compared_systems import (
    SMALL,
    SMALL_SWIN,
    check_every_parameter_learns,
    check_half_precision,
    check_saved_and_loaded,
    check_unknown_labels_do_not_matter,
    small_batch,
)
from conftest import shake
from transformers import AutoModel, AutoModelForPreTraining

from configuration_mf2.baselines import ABLATIONS, VLFAUConfig
from mf2face.training.grad_cache import micro_batches
from modeling_mf2 import HSEmotionForFaceAnalysis, VLFAUForFaceAnalysis


TEXT = {
    **{"hidden_size": 32, "scale_channels": 8, "reduction": 4, "word_size": 8, "vocab_size": 40, "bos_token_id": 5},
    **{"eos_token_id": 3, "local_max_length": 6, "global_max_length": 9, "num_beams": 2},
}


def build(swin: bool = False, **fields) -> VLFAUForFaceAnalysis:
    return VLFAUForFaceAnalysis(VLFAUConfig(**{**(SMALL_SWIN if swin else SMALL), **TEXT, **fields}))


@pytest.mark.parametrize("swin", [False, True])
def test_every_parameter_learns(swin):
    model = build(swin)
    check_every_parameter_learns(model, small_batch(model.config))


@pytest.mark.parametrize("row", ABLATIONS)
def test_each_row_of_table_4_has_its_own_losses_and_leaves_no_parameter_unused(row):
    model = build(**ABLATIONS[row])
    batch = small_batch(model.config)
    output = model(**batch)
    switches = ABLATIONS[row]
    expected = {"au", "emotion"} | ({"local_text"} if switches["use_llga"] else set())
    expected |= {"global_text", "global_au"} if switches["use_glga"] else set()
    assert {name for name in model.loss_names if output.get(name) is not None} == expected
    assert torch.allclose(output.loss, sum(output[name] for name in expected)), "equation 12"
    check_every_parameter_learns(model, batch)
    written = model.eval().explain(batch["pixel_values"])
    assert (written.local_ids is not None, written.global_ids is not None) == (
        switches["use_llga"],
        switches["use_glga"],
    )


def test_explanations_need_no_text_and_are_one_an_action_unit():
    model = shake(build()).eval()
    batch = small_batch(model.config)
    found, answers = model.explain(batch["pixel_values"]), model(batch["pixel_values"])
    assert found.local_ids.shape[:2] == (4, 3) and found.global_ids.shape[0] == 4
    assert found.local_ids.shape[2] <= 6 and found.global_ids.shape[1] <= 9
    assert (found.local_ids[..., 0] == 5).all() and (found.global_ids[:, 0] == 5).all()
    assert torch.equal(found.au_logits, answers.au_logits)
    assert torch.equal(found.emotion_logits, answers.emotion_logits)
    assert answers.loss is None
    with pytest.raises(ValueError, match="num_beams: got 0"):
        model.explain(batch["pixel_values"], num_beams=0)


def test_weights_of_losses_are_those_of_the_config():
    batch = small_batch(build().config)
    weights = {"au": 2.0, "local_text": 0.0, "global_text": 0.5}
    output = build(loss_weights=weights)(**batch)
    expected = sum(weights.get(name, 1.0) * output[name] for name in output if name in VLFAUConfig.losses)
    assert torch.allclose(output.loss, expected)


def test_global_au_loss_reads_what_the_global_decoder_looked_at():
    model = shake(build(au_class_weights=[0.5, 2.0, 0.5])).eval()
    batch = small_batch(model.config)
    face, _ = model.look(batch["pixel_values"])
    ids, mask = batch["input_ids"][:, None], batch["attention_mask"][:, None]
    logits = model.global_units(model.global_decoder(face, ids, mask).seen[:, 0]).detach()
    terms = []
    for row, unit in torch.cartesian_prod(torch.arange(4), torch.arange(3)).tolist():
        label, p = batch["au_labels"][row, unit].item(), 1 / (1 + math.exp(-logits[row, unit].item()))
        if label >= 0:
            terms.append(-[0.5, 2.0, 0.5][unit] * (math.log(p) if label else math.log(1 - p)))
    assert math.isclose(model(**batch).global_au.item(), sum(terms) / len(terms), rel_tol=1e-5)


def test_word_accuracy_is_the_share_of_all_words_of_all_batches():
    model = shake(build()).eval()
    batch = small_batch(model.config)
    parts = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 1), slice(1, 4))]
    whole = model(**batch)
    found = model.word_accuracy(parts)
    assert math.isclose(found["local_top5"], (whole.local_hits / whole.local_words).item(), rel_tol=1e-6)
    assert math.isclose(found["global_top5"], (whole.global_hits / whole.global_words).item(), rel_tol=1e-6)
    assert model.word_accuracy([{"pixel_values": batch["pixel_values"]}]) == {}


def test_several_micro_batches_make_the_step_of_one():
    """Also where unequally many descriptions and labels are missing. In evaluation mode: batch norm knows its batch."""
    model = shake(build()).eval()
    batch = small_batch(model.config)
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    parts = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    for part in micro_batches(model, parts, compares_rows=False):
        with part.entered():
            (model(**part.inputs).loss / 2).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, expected[name], rtol=1e-3, atol=1e-5), name


def test_texts_for_other_action_units_are_refused():
    model = build()
    batch = small_batch(model.config)
    with pytest.raises(ValueError, match=r"au_input_ids: got texts for \(4, 2\), expected \(4, 3\)"):
        model(**{**batch, "au_input_ids": batch["au_input_ids"][:, :2]})
    with pytest.raises(ValueError, match=r"input_ids: got texts for \(3,\), expected \(4,\)"):
        model(**{**batch, "input_ids": batch["input_ids"][:3]})


def test_emotions_can_be_left_out_as_in_the_paper():
    model = build(emotions=[])
    output = model(**small_batch(model.config))
    assert output.emotion_logits is None and output.emotion is None and output.loss.isfinite()


def test_unknown_labels_and_missing_texts_do_not_matter():
    check_unknown_labels_do_not_matter(build(), small_batch(build().config))


def test_half_precision():
    model = build(swin=True)
    check_half_precision(model, small_batch(model.config))


def test_saved_and_loaded_bit_by_bit_and_by_the_auto_classes(tmp_path):
    check_saved_and_loaded(build(swin=True), tmp_path / "swin", HSEmotionForFaceAnalysis)
    model = build()
    model.save_pretrained(tmp_path / "conv")
    for auto in (AutoModel, AutoModelForPreTraining):
        assert type(auto.from_pretrained(tmp_path / "conv")) is VLFAUForFaceAnalysis
