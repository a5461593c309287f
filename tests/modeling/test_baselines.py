"""VL-FAU, ME-GraphAU and HSEmotion: what each has to keep, and what is its own."""

import json
import math

import pytest
import torch
from compared_systems import SMALL, SMALL_SWIN, small_batch
from conftest import assert_close, assert_same, gradients, rows_of, shake, state_of, tiny_config
from exp_blip_models import TOKENS, faces_and_captions, small_config, small_opt
from safetensors.torch import save_file
from strangers import ALONE, run
from torch import nn
from transformers import AutoModel, AutoModelForPreTraining, TrainingArguments, default_data_collator

from configuration_mf2.baselines import ABLATIONS, AFFECTNET_ORDER, HSEmotionConfig, VLFAUConfig
from mf2face.training.grad_cache import micro_batches
from mf2face.training.trainer import MF2Trainer
from modeling_mf2 import (
    ExpBlipForFaceAnalysis,
    ExpBlipForPreTraining,
    HSEmotionForFaceAnalysis,
    MEGraphAUForFaceAnalysis,
    MF2ForFaceAnalysis,
    MF2ForPreTraining,
    VLFAUForFaceAnalysis,
)
from modeling_mf2.baselines.base import occurrence_weights
from modeling_mf2.baselines.exp_blip import to_blip2
from modeling_mf2.baselines.hsemotion import load_hsemotion_weights


SIZES = {
    VLFAUForFaceAnalysis: {
        **{"hidden_size": 32, "scale_channels": 8, "reduction": 4, "word_size": 8, "vocab_size": 40, "bos_token_id": 5},
        **{"eos_token_id": 3, "local_max_length": 6, "global_max_length": 9, "num_beams": 2},
    },
    MEGraphAUForFaceAnalysis: {"hidden_size": 32, "neighbors": 2},
    HSEmotionForFaceAnalysis: {},
}
SYSTEMS = list(SIZES)
FINE = {"width": 16, "num_blocks": 1, "patch_size": 8, "in_channels": 1}
"""MF²'s small tower with 8 x 8 tokens for 64 pixels."""


def build(kind, swin=False, **fields):
    sizes = SMALL_SWIN if swin else SMALL
    return kind(kind.config_class(**{**sizes, **SIZES[kind], **fields}))


def vl_fau(**fields):
    return shake(build(VLFAUForFaceAnalysis, **fields)).eval()


def assert_every_parameter_learns(model):
    found = gradients(model, shake(model).train()(**small_batch(model.config)).loss)
    assert [name for name, _ in model.named_parameters() if not (name in found and found[name].any())] == []


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((kind, {}) for kind in SYSTEMS),
        (VLFAUForFaceAnalysis, {"swin": True}),
        (VLFAUForFaceAnalysis, {"backbone_kwargs": FINE}),
        (MEGraphAUForFaceAnalysis, {"use_edges": False}),
    ],
)
def test_every_parameter_learns(kind, fields):
    assert_every_parameter_learns(build(kind, **fields))


def exp_blip(features):
    config = small_config(vision={"frozen": False}, frozen_features=False, features=features)
    return shake(ExpBlipForFaceAnalysis(config))


@pytest.mark.parametrize(
    "make",
    [
        *(lambda kind=kind: build(kind) for kind in SYSTEMS),
        lambda: build(MEGraphAUForFaceAnalysis, swin=True),
        lambda: build(VLFAUForFaceAnalysis, swin=True),
        lambda: exp_blip("vision"),
        lambda: exp_blip("qformer"),
    ],
)
def test_unknown_labels_do_not_matter_and_half_precision_is_near(make):
    """What is unknown leaves no trace in the loss, and where nothing is known the loss is 0 and finite."""
    model = make().eval()
    if isinstance(model, ExpBlipForFaceAnalysis):
        labels = {"au_labels": torch.randint(0, 2, (4, 3)), "emotion_labels": torch.tensor([0, 1, 2, -1])}
        batch = {**faces_and_captions(model.config), **labels}
    else:
        batch = small_batch(model.config)
    known = model(**batch)
    assert known.au.isfinite() and known.emotion.isfinite()
    nothing = {name: torch.full_like(batch[name], -1) for name in ("au_labels", "emotion_labels")}
    unknown, without = model(**{**batch, **nothing}), model(**rows_of(batch, slice(-1, None)))
    assert unknown.au == unknown.emotion == without.emotion == 0 and unknown.loss.isfinite() and without.loss.isfinite()
    with pytest.raises(ValueError, match="au_labels: got shape"):
        model(batch["pixel_values"], au_labels=batch["au_labels"][:, :2])
    with pytest.raises(TypeError, match=r"au_label.*did you mean 'au_labels'"):
        model(batch["pixel_values"], au_label=batch["au_labels"])
    half = model.to(torch.bfloat16)(**batch)
    assert half.au_logits.isfinite().all()
    assert torch.allclose(half.loss.float(), known.loss, rtol=0.1), (half.loss, known.loss)
    assert all(gradient.isfinite().all() for gradient in gradients(model, half.loss).values())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((kind, {}) for kind in SYSTEMS),
        (HSEmotionForFaceAnalysis, {"backbone": "mobilenetv3_small_050", "backbone_kwargs": {}}),
        (MEGraphAUForFaceAnalysis, {"swin": True}),
        (VLFAUForFaceAnalysis, {"use_marl": False, "use_llga": False, "use_glga": False}),
    ],
)
def test_hidden_states_are_the_stages_of_the_backbone(kind, fields):
    model = shake(build(kind, **fields)).eval()
    images = small_batch(model.config)["pixel_values"]
    usual, read = model(images), model(images, output_hidden_states=True)
    assert usual.hidden_states is None and len(read.hidden_states) == 4
    assert all(map(torch.equal, read.hidden_states, model.vision.stages(images)))
    torch.testing.assert_close(read.au_logits, usual.au_logits)
    model.config.output_hidden_states = True
    assert len(model(images).hidden_states) == 4


@pytest.mark.parametrize("kind", SYSTEMS)
def test_saved_and_loaded_bit_by_bit_as_no_other_system_and_with_no_other_labels(kind, tmp_path):
    model = shake(build(kind, swin=kind is VLFAUForFaceAnalysis)).eval()
    model.config.au_thresholds = [0.4, 0.5, 0.6]
    model.save_pretrained(tmp_path)
    for again in (kind.from_pretrained(tmp_path), AutoModelForPreTraining.from_pretrained(tmp_path)):
        assert type(again) is kind and again.config.au_thresholds == [0.4, 0.5, 0.6]
        assert_same(again.state_dict(), model.state_dict())
    images, name = torch.randn(2, 3, 64, 64), kind.config_class.model_type
    with torch.no_grad():
        assert torch.equal(model(images).au_logits, AutoModel.from_pretrained(tmp_path)(images).au_logits)
    for other in (SYSTEMS[SYSTEMS.index(kind) - 1], MF2ForFaceAnalysis, ExpBlipForPreTraining):
        with pytest.raises(ValueError, match=f"checkpoint of '{name}', expected one of"):
            other.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"action_units: got .* but the checkpoint"):
        kind.from_pretrained(tmp_path, action_units=["AU1", "AU2", "AU25"])
    with pytest.raises(ValueError, match="unknown field 'hiden_size'"):
        kind.from_pretrained(tmp_path, config=kind.config_class(**SMALL, hiden_size=3))
    (file := tmp_path / "model.safetensors").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OSError, match="damaged or cut short"):
        kind.from_pretrained(tmp_path)


def test_mf2s_checkpoints_are_no_compared_systems(tmp_path):
    MF2ForPreTraining(tiny_config()).save_pretrained(tmp_path)
    for kind in (HSEmotionForFaceAnalysis, ExpBlipForPreTraining, ExpBlipForFaceAnalysis):
        with pytest.raises(ValueError, match="is a checkpoint of 'mf2', expected one of"):
            kind.from_pretrained(tmp_path)


STRANGER = f"""{ALONE}
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForPreTraining

images, remote = torch.load("images.pt"), {{"trust_remote_code": True}}
for source in sys.argv[1:]:
    if source.endswith("captioner"):
        model = AutoModelForImageTextToText.from_pretrained(source, **remote).eval()
        answers = [model.generate(images, generation_config=model.generation_config)]
    else:
        model = AutoModel.from_pretrained(source, **remote).eval()
        assert type(model.config) is type(AutoConfig.from_pretrained(source, **remote))
        with torch.no_grad():
            answers = [model(images).au_logits, model(images).emotion_logits]
        model = AutoModelForPreTraining.from_pretrained(source, **remote)
    model.save_pretrained(source + "_again")
    torch.save(answers, source + "/answers.pt")
"""


@torch.no_grad()
def test_checkpoints_carry_their_code(tmp_path):
    """A process without our packages loads them, and what it saves in turn carries the same code."""
    models = {kind.config_class.model_type: shake(build(kind, kind is VLFAUForFaceAnalysis)).eval() for kind in SYSTEMS}
    stage_one = shake(ExpBlipForPreTraining(small_config())).eval()
    captioner = to_blip2(stage_one, small_opt(), **TOKENS, max_new_tokens=6)
    models |= {"exp_blip": exp_blip("qformer").eval(), "captioner": captioner}
    torch.save(images := torch.randn(2, 3, 64, 64), tmp_path / "images.pt")
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    run(STRANGER, *(tmp_path / name for name in models), cwd=tmp_path, HF_HOME=tmp_path / "home")
    for name, model in models.items():
        if name == "captioner":
            expected = [model.generate(images, generation_config=model.generation_config)]
        else:
            expected = [model(images).au_logits, model(images).emotion_logits]
        assert all(map(torch.equal, torch.load(tmp_path / name / "answers.pt"), expected)), name
        places = [tmp_path / name, tmp_path / f"{name}_again"]
        code = [{path.name: path.read_text() for path in place.glob("*.py")} for place in places]
        file = f"baselines_{name.replace('captioner', 'exp_blip')}.py"
        assert code[0] == code[1] and list(code[0]) == [file], "no checkpoint carries another system"
        configs = [json.loads((place / "config.json").read_text()) for place in places]
        assert configs[0]["auto_map"] == configs[1]["auto_map"]


@pytest.mark.parametrize("pieces", [1, 2])
def test_our_trainer_logs_each_part_of_the_loss_by_its_name(pieces, tmp_path):
    model = VLFAUForFaceAnalysis(VLFAUConfig(**SMALL, vocab_size=40, bos_token_id=5))
    rows = [rows_of(small_batch(model.config), row) for row in range(4)]
    settings = {"per_device_train_batch_size": 4 // pieces, "gradient_accumulation_steps": pieces, "max_steps": 1}
    settings |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    training = TrainingArguments(str(tmp_path), **settings)
    trainer = MF2Trainer(model=model, args=training, train_dataset=rows, data_collator=default_data_collator)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert set(model.loss_names) <= set(logged)
    assert logged["loss"] == pytest.approx(sum(logged[name] for name in model.loss_names), abs=1e-3)


@pytest.mark.parametrize("kind", [VLFAUForFaceAnalysis, MEGraphAUForFaceAnalysis])
def test_several_micro_batches_make_the_step_of_one(kind):
    """Also where unequally many descriptions are missing. In evaluation mode: batch norm knows its batch."""
    model = shake(build(kind)).eval()
    batch, cut = small_batch(model.config, texts=kind is VLFAUForFaceAnalysis), 2
    if kind is MEGraphAUForFaceAnalysis:
        batch["au_labels"].clamp_(min=0)
        cut = 3
    expected = gradients(model, model(**batch).loss)
    model.zero_grad()
    parts = [rows_of(batch, slice(cut)), rows_of(batch, slice(cut, 4))]
    for part in micro_batches(model, parts, compares_rows=False):
        with part.entered():
            (model(**part.inputs).loss / 2).backward()
    assert_close({name: p.grad for name, p in model.named_parameters()}, expected)


def test_weights_are_inverse_to_how_often_an_action_unit_occurs():
    """VL-FAU's equation 9, times the number of AUs: 1/2, 1/4 and 1/4 of the known labels are active."""
    labels = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 0], [-1, -1, -1]])
    assert occurrence_weights(labels) == pytest.approx([3 * part / 10 for part in (2.0, 4.0, 4.0)])
    for silent in (0, -1):
        assert occurrence_weights(torch.tensor([[1, silent], [0, silent], [0, silent]])) == [1.0, 1.0]
        assert occurrence_weights(torch.full((3, 2), silent)) == [1.0, 1.0]
        three = torch.cat([torch.randint(0, 2, (20, 2)), torch.full((20, 1), silent)], dim=1)
        found = occurrence_weights(three)
        assert found[2] == 1 and found[:2] == pytest.approx(occurrence_weights(three[:, :2]))


# VL-FAU


@pytest.mark.parametrize("row", ABLATIONS)
def test_each_row_of_table_4_has_its_own_losses_and_leaves_no_parameter_unused(row):
    switches = ABLATIONS[row]
    model = build(VLFAUForFaceAnalysis, **switches)
    batch = small_batch(model.config)
    output = model(**batch)
    expected = {"au", "emotion"} | ({"local_text"} if switches["use_llga"] else set())
    expected |= {"global_text", "global_au"} if switches["use_glga"] else set()
    assert {name for name in model.loss_names if output.get(name) is not None} == expected
    assert torch.allclose(output.loss, sum(output[name] for name in expected)), "equation 12"
    assert_every_parameter_learns(model)
    written = model.eval().explain(batch["pixel_values"])
    assert (written.local_ids is not None) == switches["use_llga"]
    assert (written.global_ids is not None) == switches["use_glga"]


def test_explanations_need_no_text_and_are_one_an_action_unit():
    model = vl_fau()
    images = small_batch(model.config)["pixel_values"]
    found, answers = model.explain(images), model(images)
    assert found.local_ids.shape[:2] == (4, 3) and found.global_ids.shape[0] == 4
    assert found.local_ids.shape[2] <= 6 and found.global_ids.shape[1] <= 9
    assert (found.local_ids[..., 0] == 5).all() and (found.global_ids[:, 0] == 5).all()
    assert torch.equal(found.au_logits, answers.au_logits)
    assert torch.equal(found.emotion_logits, answers.emotion_logits) and answers.loss is None


def test_global_au_loss_reads_what_the_global_decoder_looked_at_and_losses_have_weights():
    weights = {"au": 2.0, "local_text": 0.0, "global_text": 0.5}
    model = vl_fau(au_class_weights=[0.5, 2.0, 0.5], loss_weights=weights)
    batch = small_batch(model.config)
    face, _ = model.look(batch["pixel_values"])
    ids, mask = batch["input_ids"][:, None], batch["attention_mask"][:, None]
    logits = model.global_units(model.global_decoder(face, ids, mask).seen[:, 0]).detach()
    terms = []
    for row, unit in torch.cartesian_prod(torch.arange(4), torch.arange(3)).tolist():
        label, p = batch["au_labels"][row, unit].item(), 1 / (1 + math.exp(-logits[row, unit].item()))
        if label >= 0:
            terms.append(-[0.5, 2.0, 0.5][unit] * (math.log(p) if label else math.log(1 - p)))
    output = model(**batch)
    assert math.isclose(output.global_au.item(), sum(terms) / len(terms), rel_tol=1e-5)
    expected = sum(weights.get(name, 1.0) * output[name] for name in output if name in VLFAUConfig.losses)
    assert torch.allclose(output.loss, expected)


def test_word_accuracy_is_the_share_of_all_words_of_all_batches():
    model = vl_fau()
    batch = small_batch(model.config)
    whole, found = model(**batch), model.word_accuracy([rows_of(batch, slice(1)), rows_of(batch, slice(1, 4))])
    assert math.isclose(found["local_top5"], (whole.local_hits / whole.local_words).item(), rel_tol=1e-6)
    assert math.isclose(found["global_top5"], (whole.global_hits / whole.global_words).item(), rel_tol=1e-6)
    assert model.word_accuracy([{"pixel_values": batch["pixel_values"]}]) == {}


def test_texts_for_other_action_units_and_no_beam_are_refused():
    model = vl_fau()
    batch = small_batch(model.config)
    for name, wrong, said in (
        ("au_input_ids", batch["au_input_ids"][:, :2], r"au_input_ids: got texts for \(4, 2\), expected \(4, 3\)"),
        ("input_ids", batch["input_ids"][:3], r"input_ids: got texts for \(3,\), expected \(4,\)"),
    ):
        with pytest.raises(ValueError, match=said):
            model(**{**batch, name: wrong})
    with pytest.raises(ValueError, match="num_beams: got 0"):
        model.explain(batch["pixel_values"], num_beams=0)


# ME-GraphAU


def test_logits_are_of_the_probabilities_that_the_loss_reads_and_lambda_weighs_the_edges():
    model = shake(build(MEGraphAUForFaceAnalysis, loss_weights={"edge": 0.5})).eval()
    batch = small_batch(model.config)
    _, nodes, _ = model.look(batch["pixel_values"])
    output = model(**batch)
    assert torch.allclose(output.au_logits.sigmoid(), model.classifiers(nodes), atol=2e-6)
    assert torch.allclose(output.loss, output.au + output.emotion + 0.5 * output.edge)


def test_the_second_stage_begins_with_what_the_first_has_learned(tmp_path):
    first = shake(build(MEGraphAUForFaceAnalysis, use_edges=False))
    batch = small_batch(first.config)
    assert first(**batch).edge is first(**batch).edge_logits is None
    first.save_pretrained(tmp_path)
    second = MEGraphAUForFaceAnalysis.from_pretrained(tmp_path, use_edges=True)
    assert second.config.use_edges and second(**batch).edge.isfinite()
    known = second.state_dict()
    assert_same(known, {name: tensor for name, tensor in first.state_dict().items() if name in known})
    assert all(tensor.isfinite().all() for tensor in second.state_dict().values())


# HSEmotion


def released(rows=8, prefix="classifier.", width=16):
    """A state dict with the names that a release has, of a small backbone."""
    donor = shake(build(HSEmotionForFaceAnalysis, backbone_kwargs={"width": width, "num_blocks": 1}), seed=3)
    head = {f"{prefix}weight": torch.randn(rows, width), f"{prefix}bias": torch.randn(rows)}
    return {**state_of(donor.vision.backbone), **head}


@pytest.mark.parametrize(
    ("rows", "prefix", "ending"),
    [(8, "classifier.", "pt"), (7, "classifier.0.", "safetensors"), (10, "classifier.", "safetensors")],
)
def test_emotions_are_taken_over_by_their_names(rows, prefix, ending, tmp_path):
    state = released(rows, prefix)
    (torch.save if ending == "pt" else save_file)(state, tmp_path / f"w.{ending}")
    emotions = ["Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other"]
    model = build(HSEmotionForFaceAnalysis, emotions=emotions).eval()
    units = state_of(model.units)
    report = load_hsemotion_weights(model, tmp_path / f"w.{ending}")
    assert report.copied == emotions[:-1] and report.fresh == ["Other"]
    assert report.unused == (["Contempt"] if rows != 7 else [])
    order = [name for name in AFFECTNET_ORDER if rows != 7 or name != "Contempt"]
    images = torch.randn(2, 3, 64, 64)
    features = model.vision.tokens(images).mean(dim=1)
    theirs = nn.functional.linear(features, state[f"{prefix}weight"], state[f"{prefix}bias"])
    ours = model(images).emotion_logits
    for column, name in enumerate(emotions):
        expected = theirs[:, order.index(name)] if name in order else torch.zeros(2)
        assert torch.allclose(ours[:, column], expected, atol=1e-5), name
    assert_same(model.units.state_dict(), units)


def test_weights_that_do_not_fit_or_are_a_pickled_model_are_refused_and_change_nothing(tmp_path):
    model = build(HSEmotionForFaceAnalysis)
    before = state_of(model)
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "whole.pt")
    save_file(released(width=32), tmp_path / "wide.safetensors")
    save_file({name: t for name, t in released().items() if "classifier" not in name}, tmp_path / "none.safetensors")
    save_file(released(5), tmp_path / "five.safetensors")
    for name, said in {
        "whole.pt": r"whole pickled model.*torch\.save\(model\.state_dict\(\)",
        "wide.safetensors": "does not fit backbone 'conv'",
        "none.safetensors": "has no classifier.weight",
        "five.safetensors": "got 5 outputs, expected 7, 8 or 10",
        "missing.pt": "is no file",
    }.items():
        with pytest.raises(ValueError, match=said):
            load_hsemotion_weights(model, tmp_path / name)
    assert_same(model.state_dict(), before)


def test_released_sizes_are_built_from_timm():
    with torch.device("meta"):
        model = HSEmotionForFaceAnalysis(HSEmotionConfig.from_size("base"))
    assert model.vision.width == 1280 and model.emotion.weight.shape == (8, 1280)
    assert {"conv_stem.weight", "conv_head.weight", "bn2.weight"} <= set(model.vision.backbone.state_dict())


@pytest.mark.parametrize("kind", SYSTEMS)
def test_heads_can_be_left_out(kind):
    batch = small_batch(build(kind).config)
    output = build(kind, emotions=[])(**batch)
    assert output.emotion_logits is None and output.emotion is None and output.loss.isfinite()
    if kind is HSEmotionForFaceAnalysis:
        assert build(kind, use_au_head=False)(**batch).au_logits is None
