"""Exp-BLIP's models as a user comes by them: built, saved, and built upon one another."""

import json
import logging

import pytest
import torch
from conftest import shake, tiny_config
from exp_blip_models import small_opt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from configuration_mf2.facs import LABEL_SETS
from mf2face.training.exp_blip import (
    build_captioner,
    build_classifier,
    build_stage_one,
    caption_inputs,
    load_captioner,
    load_language_model,
    save_captioner,
)
from modeling_mf2 import MF2ForPreTraining
from modeling_mf2.baselines.exp_blip import generate_captions
from processing_mf2.processing_mf2 import MF2Processor


VIT = {**{"backbone": "vit_tiny_patch16_224", "num_prefix_tokens": 1, "image_size": 112, "hidden_size": 32}}
VIT["backbone_kwargs"] = {"embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    """A folder for each tower: the tiny size, and one with a vision transformer."""
    folder = tmp_path_factory.mktemp("stage_one")
    torch.manual_seed(0)
    for name, fields in (("conv", {}), ("vit", {"vision_config": VIT})):
        model, processor = build_stage_one("tiny", caption_set="au", **fields)
        shake(model).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    """A pretrained OPT as the Hub has them: byte pairs, one token for start and end, and rows that no word has."""
    folder = tmp_path_factory.mktemp("opt")
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>"))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)
    small_opt(len(words) + 8).save_pretrained(folder)
    return folder


def test_stage_one_is_built_as_named(caplog):
    with caplog.at_level(logging.WARNING):
        model, processor = build_stage_one("tiny", label_set="disfa", caption_set="mix", train_tower=True)
    assert "the vision tower has random weights" in caplog.text
    assert model.config.caption_set == "mix" and not model.config.vision_config.frozen
    assert tuple(processor.action_units) == LABEL_SETS["disfa"].action_units
    assert build_stage_one("tiny")[0].config.vision_config.frozen


def test_stage_one_starts_from_pretrained_parts(tmp_path):
    donor = shake(MF2ForPreTraining(tiny_config("vit")), seed=3)
    donor.mf2.vision.save_pretrained(tmp_path / "tower")
    model, _ = build_stage_one("tiny", vision_config=donor.config.vision_config.to_dict(), tower=tmp_path / "tower")
    theirs = donor.mf2.vision.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.mf2.vision.state_dict().items())


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_a_captioner_is_loaded_as_it_was_saved(tower, stage_one, tmp_path):
    captioner, processor, tokenizer = build_captioner(stage_one / tower, caption_set="au")
    save_captioner(tmp_path, captioner, processor, tokenizer)
    again, processor_again, tokenizer_again = load_captioner(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in captioner.state_dict().items())
    assert tokenizer_again.get_vocab() == tokenizer.get_vocab()
    assert processor_again.image_processor.size == processor.image_processor.size
    assert again.config.fresh_language_model and again.config.exp_blip["caption_set"] == "au"
    images = torch.randn(2, 3, 112, 112)
    settings = {"max_new_tokens": 4, "num_beams": 2}
    assert torch.equal(generate_captions(again, images, **settings), generate_captions(captioner, images, **settings))


def test_a_pretrained_opt_brings_its_words_and_keeps_its_weights(stage_one, opt, tmp_path):
    words, _ = load_language_model(opt)
    captioner, processor, tokenizer = build_captioner(stage_one / "conv", opt, max_new_tokens=12)
    for name, tensor in words.state_dict().items():
        assert torch.equal(captioner.language_model.state_dict()[name], tensor), name
    assert not captioner.config.fresh_language_model and captioner.config.image_token_index == len(tokenizer)
    inputs = caption_inputs(captioner, tokenizer, ["joy"])
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    *_, last = inputs["labels"][0].tolist()
    assert last == newline == captioner.generation_config.eos_token_id
    assert tokenizer.decode(inputs["labels"][0, -4:-1]) == "joy"
    save_captioner(tmp_path, captioner, processor, tokenizer)
    again, processor_again, tokenizer_again = load_captioner(tmp_path)
    assert tokenizer_again.get_vocab() == tokenizer.get_vocab() != processor_again.tokenizer.get_vocab()
    assert torch.equal(again.language_model.lm_head.weight, captioner.language_model.lm_head.weight)


def test_language_models_of_another_kind_or_in_pickles_are_refused(opt, tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"language_model: .* is a 'gpt2', expected an OPT"):
        load_language_model(tmp_path / "gpt2")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text((opt / "config.json").read_text())
    torch.save(small_opt().state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no model\.safetensors .*pickled weights are not read"):
        load_language_model(tmp_path / "pickled")


@pytest.mark.parametrize("features", ["vision", "qformer"])
@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_a_classifier_reads_the_features_of_either_stage(tower, features, stage_one, tmp_path):
    captioner, processor, tokenizer = build_captioner(stage_one / tower)
    save_captioner(tmp_path, shake(captioner, 0.02), processor, tokenizer)
    images = torch.randn(2, 3, 112, 112)
    found = {}
    for name, source in (("one", stage_one / tower), ("two", tmp_path)):
        model, processor = build_classifier(source, features=features, label_set="disfa")
        assert tuple(processor.action_units) == tuple(model.config.action_units) == LABEL_SETS["disfa"].action_units
        assert model.config.caption_set == "au" and model.config.emotions == []
        found[name] = model.features(images)
    assert not torch.allclose(found["one"], found["two"], atol=1e-3)
    with torch.no_grad():
        seen = captioner.eval().get_image_features(images, return_dict=True)
    tokens = seen.last_hidden_state[:, 1:] if tower == "vit" else seen.last_hidden_state
    expected = tokens if features == "vision" else seen.qformer_outputs.last_hidden_state
    assert torch.allclose(found["two"], expected.mean(dim=1), atol=1e-5)


@pytest.mark.parametrize("features", ["vision", "qformer"])
def test_fine_tuning_goes_down_to_the_image_and_a_probe_does_not(features, stage_one):
    for probe in (True, False):
        model, _ = build_classifier(stage_one / "conv", features=features, linear_probe=probe)
        below = [name for name, p in model.train().named_parameters() if p.requires_grad and ".vision." in name]
        assert bool(below) != probe and model.training


def test_a_trained_classifier_comes_back_with_its_heads_and_thresholds(stage_one, tmp_path):
    model, processor = build_classifier(stage_one / "conv")
    model.config.au_thresholds = [0.25] * len(model.config.action_units)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor = build_classifier(tmp_path)
    assert torch.equal(again.classifiers.units.weight, model.classifiers.units.weight)
    assert processor.au_thresholds == [0.25] * len(model.config.action_units)
    with pytest.raises(ValueError, match="features: got 'vision', but the heads of"):
        build_classifier(tmp_path, features="vision")


def test_what_is_no_checkpoint_of_exp_blip_is_refused(stage_one, opt, tmp_path):
    MF2ForPreTraining(tiny_config()).save_pretrained(tmp_path / "mf2")
    MF2Processor.for_model(build_stage_one("tiny")[0].config).save_pretrained(tmp_path / "mf2")
    foreign = {"model_type": "blip-2"}
    (tmp_path / "blip2").mkdir()
    (tmp_path / "blip2" / "config.json").write_text(json.dumps(foreign))
    cases = [
        (lambda: build_classifier(tmp_path / "mf2"), "is a checkpoint of 'mf2', expected one of Exp-BLIP"),
        (lambda: build_classifier(tmp_path / "blip2"), "is a checkpoint of 'blip-2', expected one of Exp-BLIP"),
        (lambda: build_captioner(tmp_path / "mf2"), "is a checkpoint of 'mf2', expected one of 'exp_blip'"),
        (lambda: load_captioner(stage_one / "conv"), "is a checkpoint of 'exp_blip', expected a captioner"),
        (lambda: load_captioner(tmp_path / "blip2"), "is a checkpoint of 'blip-2', expected a captioner"),
        (lambda: build_stage_one(checkpoint=tmp_path / "mf2"), "is a checkpoint of 'mf2'"),
        (lambda: build_stage_one(checkpoint=stage_one / "conv", caption_set="exp"), "trained with 'au'; name that"),
        (lambda: build_captioner(stage_one / "conv", caption_set="mix"), "caption_set: got 'mix', but .*conv"),
        (lambda: build_stage_one(label_set="nobody"), "label_set"),
    ]
    for attempt, message in cases:
        with pytest.raises(ValueError, match=message):
            attempt()
    assert build_stage_one(checkpoint=stage_one / "conv")[0].config.caption_set == "au"
