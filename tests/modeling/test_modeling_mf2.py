"""The models of MF²: their shapes, independence of rows, branches and labels, losses, states on request, export."""

import pytest
import torch
from conftest import IMAGE, LABELS, assert_same, pick, rows_of, shake, state_of, tiny_batch, tiny_config

from configuration_mf2 import MF2Config
from modeling_mf2 import (
    MF2ForCaptioning,
    MF2ForFaceAnalysis,
    MF2ForImageClassification,
    MF2ForPreTraining,
    MF2ForZeroShotImageClassification,
    MF2Model,
)
from modeling_mf2.heads import MF2Classifiers


TEXT = ("input_ids", "attention_mask")
INPUTS = {
    **dict.fromkeys((MF2Model, MF2ForFaceAnalysis, MF2ForImageClassification), IMAGE),
    MF2ForPreTraining: (*IMAGE, *TEXT, "au_input_ids", "au_attention_mask"),
    **dict.fromkeys((MF2ForZeroShotImageClassification, MF2ForCaptioning), ("input_ids", "pixel_values", TEXT[1])),
}
CLASSES = [cls for cls in INPUTS if cls is not MF2ForZeroShotImageClassification]
CLOSE = {"rtol": 0, "atol": 2e-5}


def build(cls, tower="conv", **fields):
    torch.manual_seed(0)
    return shake(cls(tiny_config(tower, **fields))).eval()


def inputs_of(model, rows=4):
    return pick(tiny_batch(model.config, rows), *INPUTS[type(model)])


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_a_branch_has_its_states_and_does_not_know_the_other(tower):
    both = build(MF2Model, tower)
    batch = inputs_of(both)
    read = both(**batch)
    assert read.image_tokens.shape == (4, 17 if tower == "vit" else 16, 32)
    assert read.emo_states.shape == (4, 3, 32) and read.au_states.shape == (4, 3, 2, 32)
    for gone, name, other in (
        ("use_au_branch", "emo_states", "au_states"),
        ("use_emo_branch", "au_states", "emo_states"),
    ):
        alone = build(MF2Model, tower, **{gone: False})
        alone.load_state_dict(both.state_dict(), strict=False)
        assert getattr(alone(**batch), other) is None
        torch.testing.assert_close(alone(**batch)[name], read[name], rtol=0, atol=1e-6)


LABEL_SETS = [{}, {"emotions": []}, {"action_units": ["AU12", "AU4"]}]


@pytest.mark.parametrize(
    "fields",
    [
        *({**labels, **branches} for labels in LABEL_SETS for branches in ({}, {"use_emo_branch": False})),
        *({**labels, "use_au_branch": False} for labels in (*LABEL_SETS, {"action_units": []})),
    ],
    ids=str,
)
def test_analysis_of_every_label_set_uses_every_parameter(fields):
    model = build(MF2ForFaceAnalysis, **fields)
    config, batch = model.config, tiny_batch(model.config)
    read = model(**pick(batch, *IMAGE, *LABELS))
    for logits, names in ((read.emotion_logits, config.emotions), (read.au_logits, config.action_units)):
        assert (logits is None) == (not names)
        assert logits is None or (logits.shape == (4, len(names)) and logits.isfinite().all())
    assert read.loss > 0 and model(**pick(batch, *IMAGE)).loss is None
    read.loss.backward()
    assert [name for name, parameter in model.classifiers.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("cls", [MF2Model, MF2ForFaceAnalysis, MF2ForImageClassification, MF2ForPreTraining])
@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_image_tokens_stand_for_the_image(cls, tower):
    model = build(cls, tower)
    batch = pick(tiny_batch(model.config), *IMAGE)
    tokens = getattr(model, "mf2", model).vision(batch["pixel_values"])
    direct, stored = model(**batch), model(landmarks=batch["landmarks"], image_tokens=tokens)
    assert set(stored) == set(direct)
    assert_same(stored, direct)
    with pytest.raises(ValueError, match="got both"):
        model(**batch, image_tokens=tokens)
    with pytest.raises(ValueError, match="got neither"):
        model(landmarks=batch["landmarks"])


def test_a_row_does_not_know_the_other_rows_and_there_may_be_none():
    model = build(MF2ForFaceAnalysis, "vit")
    batch = inputs_of(model)
    together = model(**batch)
    for row in range(4):
        alone = model(**rows_of(batch, slice(row, row + 1)))
        for name in ("au_logits", "emotion_logits", "au_states"):
            torch.testing.assert_close(alone[name], together[name][row : row + 1], **CLOSE)
    for other in (model, build(MF2ForPreTraining)):
        none = other(**rows_of(batch, slice(0)))
        assert none.au_logits.shape[0] == none.emotion_logits.shape[0] == 0
    batch["landmarks"][1] = torch.nan
    broken = model(**batch)
    assert torch.equal(broken.au_logits[[0, 2, 3]], together.au_logits[[0, 2, 3]])
    assert broken.au_logits[1].isnan().all()  # said by the result, never a silent guess


def test_order_of_the_action_units_is_only_an_order():
    names = ["AU1", "AU6", "AU25"]
    model, other = build(MF2Model, action_units=names), build(MF2Model, action_units=names[::-1])
    state = model.state_dict()
    other.load_state_dict({**state, "au_embedding": state["au_embedding"].flip(0)})
    batch = inputs_of(model)
    torch.testing.assert_close(other(**batch).au_states.flip(1), model(**batch).au_states, **CLOSE)


def test_landmarks_move_only_the_action_units_and_the_class_token_only_emotions():
    model = build(MF2Model, "vit")
    batch = inputs_of(model)
    here, there = model(**batch), model(batch["pixel_values"], batch["landmarks"] + 8)
    assert torch.equal(here.emo_states, there.emo_states) and (here.au_states - there.au_states).abs().max() > 1e-3
    assert model(batch["pixel_values"]).au_states.isfinite().all()
    changed = model.vision(batch["pixel_values"])
    changed[:, 0] += 1
    there = model(landmarks=batch["landmarks"], image_tokens=changed)
    assert torch.equal(here.au_states, there.au_states) and (here.emo_states - there.emo_states).abs().max() > 1e-3


@pytest.mark.parametrize(("target", "name"), [("emotion", "emotion"), ("action_units", "au")])
def test_image_classification_agrees_with_face_analysis(target, name):
    analysis = build(MF2ForFaceAnalysis, au_class_weights=[1.0, 2.0, 0.5])
    classifier = build(MF2ForImageClassification, classification_target=target, au_class_weights=[1.0, 2.0, 0.5])
    classifier.load_state_dict(analysis.state_dict())
    batch = tiny_batch(analysis.config)
    expected = analysis(**pick(batch, *IMAGE, f"{name}_labels"))
    found = classifier(**pick(batch, *IMAGE), labels=batch[f"{name}_labels"])
    assert torch.equal(found.logits, expected[f"{name}_logits"]) and torch.equal(found.loss, expected.loss)
    assert classifier.num_labels == found.logits.shape[1] == len(classifier.config.id2label)
    assert classifier(**pick(batch, *IMAGE)).loss is None
    assert torch.equal(classifier(**batch).loss, found.loss), "labels by the collator's names"


def test_loss_is_the_weighted_sum():
    model = build(MF2ForFaceAnalysis, loss_weights={"au": 0.25, "emotion": 3})
    batch = tiny_batch(model.config)
    au, emotion, both = (model(**pick(batch, *IMAGE, *names)).loss for names in (LABELS[:1], LABELS[1:], LABELS))
    torch.testing.assert_close(both, au + emotion)
    model.config.loss_weights = {}
    torch.testing.assert_close(model(**pick(batch, *IMAGE, *LABELS)).loss, 4 * au + emotion / 3)


def test_a_share_of_the_label_losses_is_that_of_the_aus_alone():
    """In training alone, and exactly the mean that the config names."""
    losses = {}
    for share in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        model = shake(MF2ForFaceAnalysis(MF2Config.from_size("tiny", au_only_loss_weight=share)))
        torch.manual_seed(1)
        batch = {"pixel_values": torch.randn(3, 3, 112, 112), "au_labels": torch.randint(0, 2, (3, 12))}
        batch["emotion_labels"] = torch.tensor([1, -1, 4])
        losses[share] = {True: model.train()(**batch), False: model.eval()(**batch)}
    for name in ("au", "emotion"):
        full, mixed, alone = (losses[share][True][name] for share in (0.0, 0.25, 1.0))
        torch.testing.assert_close(mixed, 0.75 * full + 0.25 * alone)
        assert (full - alone).abs() > 1e-3
        torch.testing.assert_close(losses[1.0][False][name], losses[0.0][False][name])


@pytest.mark.parametrize("units", [["AU6"], ["AU1", "AU6", "AU25"]])
def test_attentions_are_returned_whatever_their_implementation_and_have_an_axis_of_aus(units):
    model = build(MF2ForFaceAnalysis, action_units=units)
    batch, count, asked = inputs_of(model), len(units), {"output_attentions": True, "output_hidden_states": True}
    assert model.config._attn_implementation == "sdpa"
    usual, read = model(**batch), model(**batch, **asked)
    assert usual.emo_cross_attentions is usual.emo_hidden_states is usual.attentions is usual.hidden_states is None
    model.set_attn_implementation("eager")
    assert all(map(torch.equal, read.au_cross_attentions, model(**batch, **asked).au_cross_attentions))
    torch.testing.assert_close(read.emo_states, usual.emo_states, **CLOSE)
    assert [tuple(w.shape) for w in read.attentions] == [(4, 4, 3, 3)] * 3
    assert [tuple(w.shape) for w in read.emo_cross_attentions] == [(4, 4, 3, 16)] * 2
    assert [tuple(w.shape) for w in read.au_cross_attentions] == [(4, count, 4, 2, 8)] * 2
    for weights in (*read.emo_cross_attentions, *read.au_cross_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert read.hidden_states is read.emo_hidden_states
    assert [tuple(state.shape) for state in read.emo_hidden_states] == [(4, 3, 32)] * 4
    assert [tuple(state.shape) for state in read.au_hidden_states] == [(4, count, 2, 32)] * 4
    assert torch.equal(read.au_hidden_states[-1], read.au_states)
    alone = build(MF2Model, action_units=units, use_emo_branch=False)(**batch, **asked)
    assert alone.hidden_states is alone.au_hidden_states
    assert [tuple(w.shape) for w in alone.attentions] == [(4, count, 4, 2, 2)] * 3


def test_bfloat16_learns_nearly_what_float32_learns():
    model = build(MF2ForFaceAnalysis).train()
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(**tiny_batch(model.config)).loss
        loss.backward()
        gradients.append({n: p.grad.flatten() for n, p in model.named_parameters() if p.grad is not None})
    exact, rounded = (torch.cat([grads[n] for n in gradients[0]]) for grads in gradients)
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99


@pytest.mark.parametrize("cls", INPUTS)
def test_hidden_states_and_attentions_of_every_class_keep_a_gradient(cls):
    def on_request(name):
        return "hidden_states" in name or "attentions" in name

    model = build(cls)
    model.set_attn_implementation("eager")
    batch = inputs_of(model)
    plain, told = model(**batch), model(**batch, output_hidden_states=True, output_attentions=True)
    assert torch.allclose(next(iter(plain.values())), next(iter(told.values())), atol=1e-5)
    assert any(map(on_request, told)) and not any(map(on_request, plain))
    states = {f"{name}[{i}]": state for name in filter(on_request, told) for i, state in enumerate(told[name])}
    for state in states.values():
        state.retain_grad()
    sum((value**3).sum() for name, value in told.items() if not on_request(name) and value.requires_grad).backward()
    assert [name for name, state in states.items() if state.grad is None or not state.grad.any()] == []


def test_features_share_a_space_of_unit_vectors():
    model = build(MF2Model)
    batch = tiny_batch(model.config)
    shapes = {"emo": ((4, 3, 8), (4, 8)), "au": ((4, 3, 2, 8), (4, 3, 8))}
    asked = {"output_hidden_states": True, "output_attentions": True}
    for branch, prefix in (("emo", ""), ("au", "au_")):
        ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}attention_mask"]
        image = model.get_image_features(**pick(batch, *IMAGE), branch=branch, **asked)
        text = model.get_text_features(ids, mask, branch=branch, **asked)
        assert (tuple(image.pooler_output.shape), tuple(text.pooler_output.shape)) == shapes[branch]
        for features in (image, text):
            norm = features.pooler_output.norm(dim=-1)
            torch.testing.assert_close(norm, torch.ones_like(norm))
            states = features.last_hidden_state.flatten(0, -3)
            assert torch.equal(states, features.hidden_states[-1].flatten(0, -3)) and len(features.attentions) == 3
        assert torch.equal(model.branch(branch).heads.image_features(image.last_hidden_state), image.pooler_output)
        pad = torch.nn.functional.pad
        padded = model.get_text_features(pad(ids, (0, 3), value=7), pad(mask, (0, 3)), branch=branch)
        torch.testing.assert_close(padded.pooler_output, text.pooler_output, **CLOSE)
        given = {"landmarks": batch["landmarks"], "image_tokens": model.vision(batch["pixel_values"])}
        stored = model.get_image_features(**given, branch=branch, **asked)
        assert torch.equal(stored.pooler_output, image.pooler_output)
    ids = batch["input_ids"][:, :3]
    masked = model.get_text_features(ids, torch.ones(4, 3), return_dict=False)
    assert torch.equal(model.get_text_features(ids).pooler_output, masked[1])


def test_what_a_model_cannot_take_is_named():
    model, one_branch = build(MF2ForFaceAnalysis), build(MF2Model, use_au_branch=False)
    batch = tiny_batch(model.config)
    model(**batch)  # texts are no business of this model, and do no harm
    for said, wrong in {
        "emotion_labels: got -100": {"emotion_labels": torch.full((4,), -100)},
        "emotion_labels: got 9": {"emotion_labels": torch.full((4,), 9)},
        "au_labels: got 2": {"au_labels": torch.full((4, 3), 2)},
        "au_labels: got shape": {"au_labels": torch.zeros((4, 5), dtype=torch.long)},
        "'landmark'; did you mean 'landmarks'": {"landmark": batch["landmarks"]},
    }.items():
        with pytest.raises((ValueError, TypeError), match=said):
            model(batch["pixel_values"], **wrong)
    with pytest.raises(ValueError, match=r"branch: got 'au', expected one of \['emo'\]"):
        one_branch.get_image_features(**pick(batch, *IMAGE), branch="au")
    with pytest.raises(ValueError, match="branch: got 'emotion', expected one of"):
        one_branch.get_text_features(torch.ones(1, 3, dtype=torch.long), branch="emotion")
    with pytest.raises(ValueError, match="use_emo_branch: got False"):
        build(MF2ForZeroShotImageClassification, use_emo_branch=False)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_fresh_model_is_finite_its_seed_decides_it_and_its_queries_differ(cls):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        model = cls(tiny_config("vit", initializer_range=0.02)).eval()
        states.append(state_of(model))
    assert_same(*states)
    assert all(value.isfinite().all() and value.abs().max() < 3 for value in states[0].values())
    base = getattr(model, "mf2", model)
    assert model.get_input_embeddings() is base.emo_vl.qformer.word_embeddings
    for branch in (base.emo_vl, base.au_vl):
        assert torch.pdist(branch.queries[0]).min() > 0.05
        assert branch.queries.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.pdist(base.branch_queries("au").flatten(1)).min() > 0.05
    assert torch.pdist(base(**pick(tiny_batch(model.config), *IMAGE)).emo_states[0]).min() > 1e-3


@pytest.mark.parametrize("cls", CLASSES)
def test_a_tuple_on_request_and_half_precision_that_stays_near(cls):
    model = build(cls, "vit")
    batch = inputs_of(model)
    usual, by_argument = model(**batch), model(**batch, return_dict=False)
    model.config.return_dict = False
    for found in (by_argument, model(**batch)):
        assert isinstance(found, tuple)
        assert all(torch.equal(one, other) for one, other in zip(found, usual.to_tuple(), strict=True))
    if cls is MF2ForFaceAnalysis:
        loss, emotion_logits, au_logits, *_ = model(**batch, **pick(tiny_batch(model.config), *LABELS))
        assert loss.ndim == 0 and emotion_logits.shape == au_logits.shape == (4, 3)
    for name, value in model.to(torch.bfloat16)(**batch, return_dict=True).items():
        assert value.isfinite().all(), name
        if not name.startswith(("itm", "loss")):  # another hardest negative may be chosen
            error = (value.float() - usual[name]).abs().mean() / usual[name].abs().mean().clamp_min(1e-3)
            assert error < 0.1, name


@pytest.mark.parametrize("cls", [cls for cls in INPUTS if cls not in (MF2Model, MF2ForFaceAnalysis)])
def test_every_class_is_exported_saved_and_loaded(cls, tmp_path):
    """The two others are parts of what is exported here, and of the ONNX files."""
    model = build(cls, qformer={"num_hidden_layers": 2})
    batch = inputs_of(model)
    if cls is MF2ForPreTraining:  # which captions are negatives depends on their content
        batch = pick(batch, *IMAGE)
    rows = {name: {0: torch.export.Dim.AUTO} for name in batch} if "input_ids" not in batch else None
    torch.export.save(torch.export.export(model, (), batch, dynamic_shapes=rows, strict=False), tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    for given in (batch, rows_of(batch, slice(3))) if rows else (batch,):
        expected, found = model(**given), again(**given)
        for name, value in expected.items():
            assert not isinstance(value, torch.Tensor) or torch.allclose(found[name], value, atol=1e-5), name


def classifiers(config):
    module = MF2Classifiers(config)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    width, units = config.emo_config.hidden_size, len(config.action_units)
    emo = torch.randn(2, config.emo_config.num_query_tokens, width)
    return module, emo, torch.randn(2, units, config.au_config.num_query_tokens, width)


def test_logits_are_those_of_a_loop():
    module, emo, au = classifiers(tiny_config())
    emotion_logits, au_logits = module(emo, au)[:2]
    face, units = module.norm_emo(emo).flatten(1), module.norm_au(au)
    for row in range(2):
        for unit in range(3):
            own = sum(units[row, unit, query] @ module.au_weight[unit, query] for query in range(2))
            whole = module.au_from_face.weight[unit] @ face[row] + module.au_from_face.bias[unit]
            torch.testing.assert_close(au_logits[row, unit], own + module.au_bias[unit] + whole, rtol=1e-4, atol=1e-4)
        seen = torch.cat([face[row], *[units[row, unit].mean(0) for unit in range(3)]])
        expected = module.emotion.weight @ seen + module.emotion.bias
        torch.testing.assert_close(emotion_logits[row], expected, rtol=1e-4, atol=1e-4)


def test_without_the_face_the_aus_answer_alone():
    """What the AUs alone say depends on nothing that Emo-VL saw, and on all that AU-VL did."""
    module, emo, au = classifiers(MF2Config.from_size("tiny"))
    alone = module(None, au)[:2]
    for found, whole, other in zip(
        alone, module(emo, au)[:2], module(None, au + torch.randn_like(au))[:2], strict=True
    ):
        assert found.shape == whole.shape and not torch.allclose(found, whole) and not torch.allclose(found, other)
    with torch.no_grad():
        for layer in (module.emotion, module.au_from_face):
            layer.weight[:, : module.emo_width] = 0
    for found, whole in zip(alone, module(emo, au)[:2], strict=True):
        torch.testing.assert_close(found, whole)
