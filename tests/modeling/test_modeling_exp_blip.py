"""Exp-BLIP: alignment, classifier on its features, and the captioner that BLIP-2's own class runs."""

import pytest
import torch
from conftest import QFORMER, assert_same, gradients, rows_of, shake, state_of, tiny_config
from exp_blip_models import SMALL_TOWERS, TOKENS, faces_and_captions, small_config, small_opt
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    Blip2ForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    TrainingArguments,
    default_data_collator,
)

from mf2face.training.trainer import MF2Trainer
from modeling_mf2 import ExpBlipForFaceAnalysis, ExpBlipForPreTraining, ExpBlipTowerCaptioner, MF2ForPreTraining
from modeling_mf2.baselines.exp_blip import generate_captions, load_from_captioner, to_blip2


CLOSE = {"atol": 1e-5, "rtol": 0}
LABELS = {
    "au_labels": torch.tensor([[-1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]]),
    "emotion_labels": torch.tensor([0, 2, 1, -1]),
}


def stage_one(tower="conv", **fields):
    return shake(ExpBlipForPreTraining(small_config(tower, **fields))).eval()


def classifier(tower="conv", **fields):
    probe = fields.setdefault("frozen_features", True)
    return shake(ExpBlipForFaceAnalysis(small_config(tower, vision={"frozen": probe}, **fields)))


def captioner_of(model, **settings):
    return to_blip2(model, small_opt(), **{**TOKENS, "max_new_tokens": 6, **settings})


# Stage 1


def test_stage_one_is_mf2s_alignment_of_faces_and_captions_but_for_labels():
    model = stage_one()
    batch = faces_and_captions(model.config)
    found, labelled = model(**batch), model(**batch, **LABELS, index=torch.arange(4))
    assert [name for name, value in found.items() if value.ndim == 0] == ["loss", *model.loss_names]
    assert torch.allclose(found.loss, found.itc_emo + found.itm_emo + found.itg_emo)
    mf2 = MF2ForPreTraining(tiny_config(use_au_branch=False, emotions=[], action_units=["AU1"])).eval()
    mf2.load_state_dict(model.state_dict(), strict=False)
    expected = mf2(**batch)
    for name in ("itc_emo", "itg_emo"):  # ITM draws its negatives
        assert torch.equal(found[name], expected[name]), name
    assert not [name for name in model.state_dict() if name.startswith("classifiers")]
    assert torch.equal(found.itc_emo, labelled.itc_emo), "faces of one emotion with other captions are negatives"
    mf2, same = MF2ForPreTraining(tiny_config(use_au_branch=False)).eval(), torch.zeros(4, dtype=torch.long)
    assert not torch.equal(mf2(**batch).itc_emo, mf2(**batch, emotion_labels=same).itc_emo), "else nothing is told"


@pytest.mark.parametrize("frozen", [True, False])
def test_micro_batches_are_one_step_and_the_tower_learns_or_does_not(frozen, tmp_path):
    """Without ITM, whose negatives are drawn."""
    steps = []
    for pieces in (1, 2):
        torch.manual_seed(0)
        # Not the small tower, whose norms follow their micro-batches.
        model = ExpBlipForPreTraining(small_config("vit", vision={"frozen": frozen}, loss_weights={"itm_emo": 0.0}))
        batch, before = faces_and_captions(model.config, rows=6), state_of(model)
        settings = {"per_device_train_batch_size": 6 // pieces, "gradient_accumulation_steps": pieces}
        settings |= {"use_cpu": True, "disable_tqdm": True, "max_steps": 1, "logging_steps": 1, "save_strategy": "no"}
        settings |= {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1.0}
        rows, training = [rows_of(batch, row) for row in range(6)], TrainingArguments(str(tmp_path), **settings)
        trainer = MF2Trainer(model=model, args=training, train_dataset=rows, data_collator=default_data_collator)
        trainer.train()
        assert set(model.loss_names) <= set(next(entry for entry in trainer.state.log_history if "loss" in entry))
        steps.append({name: before[name] - p.detach() for name, p in model.named_parameters()})
    for name, step in steps[0].items():
        assert torch.allclose(step, steps[1][name], atol=1e-4, rtol=1e-3), name
    assert any(step.any() for name, step in steps[0].items() if ".vision." in name) != frozen


# The classifier


@pytest.mark.parametrize("features", ["vision", "qformer"])
def test_a_probe_learns_its_heads_and_leaves_no_graph_below(features):
    model = classifier(features=features).train()
    assert not any(module.training for module in model.mf2.modules())
    images = faces_and_captions(model.config)["pixel_values"]
    read = model.features(images)
    assert not read.requires_grad and read.grad_fn is None
    found = gradients(model, model(images, **LABELS).loss)
    wanted = {f"classifiers.{head}.{kind}" for head in ("units", "emotion") for kind in ("weight", "bias")}
    assert {name for name in found if found[name].any()} == wanted
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted


@pytest.mark.parametrize("pooling", ["mean", "concat"])
@pytest.mark.parametrize("features", ["vision", "qformer"])
def test_fine_tuning_reaches_all_that_the_features_are_made_of_and_counts_nothing_else(features, pooling):
    model = classifier("vit", features=features, query_pooling=pooling, frozen_features=False).train()
    images = faces_and_captions(model.config)["pixel_values"]
    found = gradients(model, model(images, **LABELS).loss)
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    # The keys' bias shifts all scores of a query alike, and gets no gradient but rounding's.
    learned = {name for name in found if found[name].any()}
    assert {name for name in wanted if not name.endswith("k_proj.bias")} <= learned <= wanted
    assert any(name.startswith("mf2.vision.") for name in wanted)
    assert any(name.startswith("mf2.emo_vl.qformer.") for name in wanted) == (features == "qformer")


def test_features_are_the_mean_of_the_patches_or_the_queries():
    images = faces_and_captions(small_config("vit"))["pixel_values"]
    model = classifier("vit", features="vision").eval()
    assert torch.equal(model.features(images), model.mf2.vision(images)[:, 1:].mean(dim=1)), "no class token"
    for pooling in ("mean", "concat"):
        model = classifier("vit", query_pooling=pooling).eval()
        states = model.mf2(images).emo_states
        expected = states.mean(dim=1) if pooling == "mean" else states.flatten(1)
        assert torch.equal(model.features(images), expected)
        assert torch.equal(model.features(image_tokens=model.mf2.vision(images)), expected)


def test_fresh_heads_stand_on_what_stage_one_has_learned(tmp_path):
    first = stage_one(caption_set="au")
    first.save_pretrained(tmp_path)
    images = faces_and_captions(first.config)["pixel_values"]
    assert_same(ExpBlipForPreTraining.from_pretrained(tmp_path).state_dict(), first.state_dict())
    # Other labels are welcome: stage 1 has learned nothing for any.
    assert ExpBlipForPreTraining.from_pretrained(tmp_path, label_set="disfa").config.emotions == []
    model = ExpBlipForFaceAnalysis.from_pretrained(tmp_path, action_units=["AU4", "AU12"], query_pooling="concat")
    assert torch.equal(model.features(images), first.mf2(images).emo_states.flatten(1))
    assert model.config.caption_set == "au" and model(images).au_logits.shape == (4, 2)
    assert model.classifiers.units.weight.abs().sum() > 0 and model.classifiers.units.bias.abs().sum() == 0


def test_trained_heads_answer_for_no_other_labels_and_read_no_other_features(tmp_path):
    model = classifier().eval()
    model.config.au_thresholds = [0.4, 0.5, 0.6]
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, ExpBlipForFaceAnalysis) and again.config.au_thresholds == [0.4, 0.5, 0.6]
    images = faces_and_captions(model.config)["pixel_values"]
    assert torch.equal(again(images).au_logits, model(images).au_logits)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), ExpBlipForPreTraining)
    for said, fields in {
        r"action_units: got .* but the checkpoint": {"action_units": ["AU1", "AU2", "AU25"]},
        r"features: got 'vision', but the heads of .* were trained on 'qformer'": {"features": "vision"},
        "query_pooling: got 'concat', but the heads": {"query_pooling": "concat"},
    }.items():
        with pytest.raises(ValueError, match=said):
            ExpBlipForFaceAnalysis.from_pretrained(tmp_path, **fields)
    with pytest.raises(ValueError, match=r"vision_config\.frozen: got True, expected False"):
        ExpBlipForFaceAnalysis(small_config(features="vision", frozen_features=False))
    without = classifier(emotions=[])(images, **LABELS)
    assert without.emotion_logits is None and without.emotion is None and without.au_logits.shape == (4, 3)


@pytest.mark.parametrize("cls", [ExpBlipForFaceAnalysis, ExpBlipForPreTraining])
def test_states_and_attentions_of_the_queries_on_request(cls):
    model = shake(cls(small_config(frozen_features=False))).eval()
    batch = faces_and_captions(model.config)
    batch = {"pixel_values": batch["pixel_values"]} if cls is ExpBlipForFaceAnalysis else batch
    read = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in read.hidden_states] == [(4, 3, 32)] * 4
    assert [tuple(weights.shape) for weights in read.attentions] == [(4, 4, 3, 3)] * 3


# The captioner


@pytest.mark.parametrize("tower", SMALL_TOWERS)
@torch.no_grad()
def test_blip2_sees_what_stage_one_saw_and_what_stage_two_made_of_it_is_read_back(tower):
    model = stage_one(tower)
    captioner, images = captioner_of(model), faces_and_captions(model.config)["pixel_values"]
    assert type(captioner) is (ExpBlipTowerCaptioner if tower == "conv" else Blip2ForConditionalGeneration)
    tokens = model.mf2.look(images, None)
    states = model.mf2.read("emo", tokens).query_states
    seen = captioner.get_image_features(images, return_dict=True)
    assert torch.allclose(seen.last_hidden_state, tokens, **CLOSE)
    assert torch.allclose(seen.qformer_outputs.last_hidden_state, states, **CLOSE)
    assert torch.equal(captioner.query_tokens, model.mf2.emo_vl.queries)
    back = ExpBlipForFaceAnalysis(small_config(tower)).eval()
    if tower != "conv":  # every tensor has one place
        filled = load_from_captioner(back, captioner.state_dict())
        theirs = [name for name in captioner.state_dict() if not name.startswith("language_")]
        biases = sum(name.endswith("q_bias") for name in filled)  # of three of EVA's, one of BLIP-2's
        assert len(filled) - biases == len(theirs)
        assert_same(back.mf2.state_dict(), {name: model.mf2.state_dict()[name] for name in filled})
    shake(captioner, scale=0.02, seed=11).eval()
    load_from_captioner(back, captioner.state_dict())
    learned = captioner.get_image_features(images, return_dict=True).qformer_outputs.last_hidden_state
    assert torch.allclose(back.features(images), learned.mean(dim=1), **CLOSE)
    assert not torch.allclose(learned, states, atol=1e-3)
    other = ExpBlipForFaceAnalysis(small_config(tower, emo_config={**QFORMER, "num_query_tokens": 7}))
    with pytest.raises(ValueError, match=r"does not fit this model, which was left as it was: .*queries"):
        load_from_captioner(other, captioner.state_dict())


def asked(images, *words):
    ids = torch.tensor([[40, 40, 40, 5, *words, 3]])
    return {"pixel_values": images[:1], "input_ids": ids, "labels": torch.where(ids == 40, -100, ids)}


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_a_captioner_is_the_same_after_saving_and_writes_the_same(tower, tmp_path):
    model = stage_one(tower)
    captioner = shake(captioner_of(model), scale=0.02).eval()
    captioner.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is type(captioner)
    assert_same(again.state_dict(), captioner.state_dict())
    assert again.generation_config.num_beams == 5 and again.config.exp_blip["caption_set"] == "exp"
    images = faces_and_captions(model.config)["pixel_values"]
    assert torch.equal(generate_captions(again, images), generate_captions(captioner, images))
    assert torch.equal(again(**asked(images, 7)).loss, captioner(**asked(images, 7)).loss)


def test_a_language_model_is_taken_as_it_is_and_a_carried_tower_counts_its_loss_as_blip2_does():
    """The same model twice, once with BLIP-2's tower and once with ours in its place."""
    model, words = stage_one("vit"), small_opt(words=60)  # OPT has more rows than words
    before, (plain, carried) = state_of(words), (to_blip2(model, words, **TOKENS, carry_tower=c) for c in (False, True))
    carried.language_projection.load_state_dict(plain.language_projection.state_dict())
    batch = asked(faces_and_captions(model.config)["pixel_values"], 7, 9)
    assert torch.allclose(carried(**batch).loss, plain(**batch).loss, **CLOSE)
    assert plain.get_output_embeddings().weight is words.get_input_embeddings().weight
    assert plain.language_model is words and plain.config.text_config is words.config
    assert_same(words.state_dict(), before)


def test_five_beams_write_words_of_the_image_and_never_the_place_of_a_query():
    captioner, images = captioner_of(stage_one()), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        ids = torch.tensor([[40, 40, 40, 5]]).expand(2, -1)
        one, other = captioner(images[:2], input_ids=ids).logits[:, -1]
        assert not torch.allclose(one, other, atol=1e-4)
        # The likeliest token of all, were it allowed.
        captioner.language_model.get_input_embeddings().weight[40] = 5.0
    written = generate_captions(captioner, images)
    assert written.shape[0] == 3 and 3 <= written.shape[1] <= 6 and (written != 40).all()
    assert len(generate_captions(captioner, images, num_beams=1, min_new_tokens=1)) == 3
    assert len(generate_captions(captioner, images, num_return_sequences=2, output_scores=True)) == 6
    assert torch.equal(captioner.train() and generate_captions(captioner, images), written) and captioner.training


def test_models_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="model: got MF2ForPreTraining, expected a stage-1 model"):
        captioner_of(MF2ForPreTraining(tiny_config()))
    bloom = BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="language_model: got a 'bloom', expected an OPT"):
        to_blip2(stage_one(), bloom, **TOKENS)
