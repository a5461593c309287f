import pytest
import torch
from conftest import shake, tiny_config
from exp_blip_models import small_config
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from configuration_mf2 import MF2Config
from modeling_mf2 import (
    ExpBlipForFaceAnalysis,
    MF2ForCaptioning,
    MF2ForFaceAnalysis,
    MF2ForImageClassification,
    MF2ForPreTraining,
    MF2ForZeroShotImageClassification,
    MF2Model,
)


CLASSES = [MF2Model, MF2ForPreTraining, MF2ForFaceAnalysis, MF2ForImageClassification, MF2ForCaptioning]
SUBSETS = [{}, {"use_au_branch": False}, {"use_emo_branch": False}]
IMAGE = ("pixel_values", "landmarks")
LABELS = ("au_labels", "emotion_labels")


@pytest.fixture
def build(make_config, shaken):
    def build(cls, tower="conv", **fields):
        torch.manual_seed(0)
        return shaken(cls(make_config(tower, **fields))).eval()

    return build


def pick(batch, *names):
    return {name: batch[name] for name in names}


def weights(model):
    return {name.removeprefix("mf2."): value for name, value in model.state_dict().items()}


def text_only(cls):
    return cls is MF2ForCaptioning


@pytest.mark.parametrize("tower", ["conv", "vit"])
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_states_of_every_subset_of_branches(build, make_batch, tower, subset):
    model = build(MF2Model, tower, **subset)
    read = model(**pick(make_batch(model.config), *IMAGE))
    assert read.image_tokens.shape == (4, 17 if tower == "vit" else 16, 32)
    assert (read.emo_states is None) == ("use_emo_branch" in subset)
    assert (read.au_states is None) == ("use_au_branch" in subset)
    if read.emo_states is not None:
        assert read.emo_states.shape == (4, 3, 32)
    if read.au_states is not None:
        assert read.au_states.shape == (4, 3, 2, 32)


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_a_branch_does_not_know_the_other(build, make_batch, tower):
    both = build(MF2Model, tower)
    batch = pick(make_batch(both.config), *IMAGE)
    for subset, name in (({"use_au_branch": False}, "emo_states"), ({"use_emo_branch": False}, "au_states")):
        alone = build(MF2Model, tower, **subset)
        alone.load_state_dict(both.state_dict(), strict=False)
        torch.testing.assert_close(alone(**batch)[name], both(**batch)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [*SUBSETS, {"emotions": []}, {"action_units": [], "use_au_branch": False}, {"action_units": ["AU12", "AU4"]}],
    ids=str,
)
def test_analysis_of_every_label_set(build, make_batch, fields):
    model = build(MF2ForFaceAnalysis, **fields)
    config, batch = model.config, make_batch(model.config)
    read = model(**pick(batch, *IMAGE, *LABELS))
    for logits, names in ((read.emotion_logits, config.emotions), (read.au_logits, config.action_units)):
        assert (logits is None) == (not names)
        assert logits is None or (logits.shape == (4, len(names)) and logits.isfinite().all())
    assert read.loss.isfinite() and read.loss > 0
    assert model(**pick(batch, *IMAGE)).loss is None


@pytest.mark.parametrize("cls", [MF2Model, MF2ForFaceAnalysis, MF2ForImageClassification, MF2ForPreTraining])
@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_image_tokens_stand_for_the_image(build, make_batch, cls, tower):
    model = build(cls, tower)
    batch = pick(make_batch(model.config), *IMAGE)
    base = model if cls is MF2Model else model.mf2
    tokens = base.vision(batch["pixel_values"])
    direct = model(**batch)
    stored = model(landmarks=batch["landmarks"], image_tokens=tokens)
    assert set(stored) == set(direct)
    for name, value in direct.items():
        assert torch.equal(stored[name], value), name
    with pytest.raises(ValueError, match="one of the two, got both"):
        model(**batch, image_tokens=tokens)
    with pytest.raises(ValueError, match="one of the two, got neither"):
        model(landmarks=batch["landmarks"])


def test_a_row_does_not_know_the_other_rows(build, make_batch):
    model = build(MF2ForFaceAnalysis, "vit")
    batch = pick(make_batch(model.config), *IMAGE)
    together = model(**batch)
    for row in range(4):
        alone = model(**{name: value[row : row + 1] for name, value in batch.items()})
        torch.testing.assert_close(alone.au_logits, together.au_logits[row : row + 1], rtol=0, atol=2e-5)
        torch.testing.assert_close(alone.emotion_logits, together.emotion_logits[row : row + 1], rtol=0, atol=2e-5)
        torch.testing.assert_close(alone.au_states, together.au_states[row : row + 1], rtol=0, atol=2e-5)


def test_all_action_units_in_one_pass(build, make_batch):
    model = build(MF2ForFaceAnalysis)
    batch = pick(make_batch(model.config), *IMAGE)
    calls = {"emo": 0, "au": 0, "vision": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    model.mf2.emo_vl.qformer.register_forward_hook(count("emo"))
    model.mf2.au_vl.qformer.register_forward_hook(count("au"))
    model.mf2.vision.register_forward_hook(count("vision"))
    model(**batch)
    assert calls == {"emo": 1, "au": 1, "vision": 1}


def test_order_of_the_action_units_is_only_an_order(build, make_batch):
    names = ["AU1", "AU6", "AU25"]
    model, other = build(MF2Model, action_units=names), build(MF2Model, action_units=names[::-1])
    state = model.state_dict()
    state["au_embedding"] = state["au_embedding"].flip(0)
    other.load_state_dict(state)
    batch = pick(make_batch(model.config), *IMAGE)
    torch.testing.assert_close(other(**batch).au_states.flip(1), model(**batch).au_states, rtol=0, atol=2e-5)


def test_landmarks_move_only_the_action_units(build, make_batch):
    model = build(MF2Model)
    batch = make_batch(model.config)
    here, there = model(**pick(batch, *IMAGE)), model(batch["pixel_values"], batch["landmarks"] + 8)
    assert torch.equal(here.emo_states, there.emo_states)
    assert (here.au_states - there.au_states).abs().max() > 1e-3
    canonical = model(batch["pixel_values"])
    assert canonical.au_states.isfinite().all()


def test_regions_are_read_from_the_patches_alone(build, make_batch):
    model = build(MF2Model, "vit")
    batch = make_batch(model.config)
    tokens = model.vision(batch["pixel_values"])
    changed = tokens.clone()
    changed[:, 0] += 1  # the class token
    here, there = (model(landmarks=batch["landmarks"], image_tokens=found) for found in (tokens, changed))
    assert torch.equal(here.au_states, there.au_states)
    assert (here.emo_states - there.emo_states).abs().max() > 1e-3


def test_unknown_landmarks_stay_in_their_row(build, make_batch):
    model = build(MF2ForFaceAnalysis)
    batch = pick(make_batch(model.config), *IMAGE)
    read = model(**batch)
    batch["landmarks"][1] = torch.nan
    broken = model(**batch)
    rows = [0, 2, 3]
    assert torch.equal(broken.au_logits[rows], read.au_logits[rows])
    assert broken.au_logits[1].isnan().all()  # said by the result, never a silent guess


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_frozen_tower_has_no_graph_and_no_gradient(build, make_batch, tower):
    model = build(MF2ForFaceAnalysis, tower).train()
    assert model.training and not model.mf2.vision.training
    assert model.mf2.emo_vl.training and model.mf2.au_vl.training
    batch = make_batch(model.config)
    batch["pixel_values"].requires_grad_()
    read = model(**pick(batch, *IMAGE, *LABELS))
    assert not read.image_tokens.requires_grad and read.image_tokens.grad_fn is None
    read.loss.backward()
    assert batch["pixel_values"].grad is None
    assert all(parameter.grad is None for parameter in model.mf2.vision.parameters())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not any("vision" in name for name in trained)


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_thawed_tower_learns(build, make_batch, tower):
    model = build(MF2ForFaceAnalysis, tower, vision={"frozen": False}).train()
    batch = make_batch(model.config)
    model(**pick(batch, *IMAGE, *LABELS)).loss.backward()
    assert model.mf2.vision.training
    for name, parameter in model.mf2.vision.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert any(parameter.grad.any() for parameter in model.mf2.vision.parameters())


@pytest.mark.parametrize("target", ["emotion", "action_units"])
def test_image_classification_agrees_with_face_analysis(build, make_batch, target):
    analysis = build(MF2ForFaceAnalysis, au_class_weights=[1.0, 2.0, 0.5])
    classifier = build(MF2ForImageClassification, classification_target=target, au_class_weights=[1.0, 2.0, 0.5])
    classifier.load_state_dict(analysis.state_dict())
    batch = make_batch(analysis.config)
    name = {"emotion": "emotion", "action_units": "au"}[target]
    expected = analysis(**pick(batch, *IMAGE, f"{name}_labels"))
    found = classifier(**pick(batch, *IMAGE), labels=batch[f"{name}_labels"])
    assert torch.equal(found.logits, expected[f"{name}_logits"]) and torch.equal(found.loss, expected.loss)
    assert classifier.num_labels == found.logits.shape[1] == len(classifier.config.id2label)
    assert classifier(**pick(batch, *IMAGE)).loss is None


def test_loss_is_the_weighted_sum(build, make_batch):
    model = build(MF2ForFaceAnalysis, loss_weights={"au": 0.25, "emotion": 3})
    batch = make_batch(model.config)
    au = model(**pick(batch, *IMAGE, "au_labels")).loss
    emotion = model(**pick(batch, *IMAGE, "emotion_labels")).loss
    torch.testing.assert_close(model(**pick(batch, *IMAGE, *LABELS)).loss, au + emotion)
    model.config.loss_weights = {}
    torch.testing.assert_close(model(**pick(batch, *IMAGE, *LABELS)).loss, 4 * au + emotion / 3)


@pytest.mark.parametrize("cls", [MF2Model, MF2ForFaceAnalysis])
def test_attentions_are_returned_whatever_the_attention_implementation(build, make_batch, cls):
    model = build(cls)
    batch = pick(make_batch(model.config), *IMAGE)
    assert model.config._attn_implementation == "sdpa"
    usual = model(**batch)
    assert usual.emo_cross_attentions is usual.emo_hidden_states is usual.attentions is usual.hidden_states is None
    read = model(**batch, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("eager")
    eager = model(**batch, output_attentions=True)
    assert all(map(torch.equal, read.au_cross_attentions, eager.au_cross_attentions))
    assert read.hidden_states is read.emo_hidden_states
    assert [tuple(w.shape) for w in read.attentions] == [(4, 4, 3, 3)] * 3
    torch.testing.assert_close(read.emo_states, usual.emo_states, rtol=0, atol=2e-5)
    assert [tuple(w.shape) for w in read.emo_cross_attentions] == [(4, 4, 3, 16)] * 2
    assert [tuple(w.shape) for w in read.au_cross_attentions] == [(4, 3, 4, 2, 8)] * 2
    for found in (*read.emo_cross_attentions, *read.au_cross_attentions):
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    assert {tuple(state.shape) for state in read.emo_hidden_states[1:]} == {(4, 3, 32)}
    assert {tuple(state.shape) for state in read.au_hidden_states[1:]} == {(4, 3, 2, 32)}
    assert len(read.emo_hidden_states) == len(read.au_hidden_states) == 4
    assert torch.equal(read.au_hidden_states[-1], read.au_states)


def test_a_single_au_has_its_axis_too(build, make_batch):
    model = build(MF2Model, action_units=["AU6"])
    model.set_attn_implementation("eager")
    batch = pick(make_batch(model.config), *IMAGE)
    read = model(**batch, output_attentions=True, output_hidden_states=True)
    assert {tuple(state.shape) for state in (*read.au_hidden_states, read.au_states)} == {(4, 1, 2, 32)}
    alone = build(MF2Model, use_emo_branch=False)(**batch, output_attentions=True, output_hidden_states=True)
    assert alone.hidden_states is alone.au_hidden_states
    assert {tuple(weights.shape) for weights in alone.attentions} == {(4, 3, 4, 2, 2)}
    assert {tuple(weights.shape) for weights in read.au_cross_attentions} == {(4, 1, 4, 2, 8)}


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_hidden_states_of_every_image_before_the_first_block_too(build, make_batch, batch_rows):
    model = build(MF2Model)
    batch = pick(make_batch(model.config, batch_rows), *IMAGE)
    read = model(**batch, output_hidden_states=True)
    assert {tuple(state.shape) for state in read.emo_hidden_states} == {(batch_rows, 3, 32)}
    assert {tuple(state.shape) for state in read.au_hidden_states} == {(batch_rows, 3, 2, 32)}


def test_features_share_a_space_of_unit_vectors(build, make_batch):
    model = build(MF2Model)
    batch = make_batch(model.config)
    shapes = {"emo": ((4, 3, 8), (4, 8)), "au": ((4, 3, 2, 8), (4, 3, 8))}
    for branch, ids in (("emo", "input_ids"), ("au", "au_input_ids")):
        mask = batch[ids.replace("input_ids", "attention_mask")]
        image = model.get_image_features(**pick(batch, *IMAGE), branch=branch).pooler_output
        text = model.get_text_features(batch[ids], mask, branch=branch).pooler_output
        assert (tuple(image.shape), tuple(text.shape)) == shapes[branch]
        for features in (image, text):
            torch.testing.assert_close(features.norm(dim=-1), torch.ones(features.shape[:-1]))
        longer = torch.nn.functional.pad(batch[ids], (0, 3), value=7)
        padded = model.get_text_features(longer, torch.nn.functional.pad(mask, (0, 3)), branch=branch)
        torch.testing.assert_close(padded.pooler_output, text, rtol=0, atol=2e-5)
        stored = model.get_image_features(
            landmarks=batch["landmarks"], image_tokens=model.vision(batch["pixel_values"]), branch=branch
        )
        assert torch.equal(stored.pooler_output, image)
    assert torch.equal(
        model.get_text_features(batch["input_ids"][:, :3]).pooler_output,
        model.get_text_features(batch["input_ids"][:, :3], torch.ones(4, 3)).pooler_output,
    )


def test_a_missing_branch_is_named(build, make_batch):
    model = build(MF2Model, use_au_branch=False)
    with pytest.raises(ValueError, match=r"branch: got 'au', expected one of \['emo'\]"):
        model.get_image_features(**pick(make_batch(model.config), *IMAGE), branch="au")
    with pytest.raises(ValueError, match="branch: got 'emotion', expected one of"):
        model.get_text_features(torch.ones(1, 3, dtype=torch.long), branch="emotion")


def test_queries_and_action_units_differ_at_the_start(make_config, make_batch):
    model = MF2Model(make_config(initializer_range=0.02)).eval()
    for branch in (model.emo_vl, model.au_vl):
        queries = branch.queries[0]
        assert torch.pdist(queries).min() > 0.05
        assert queries.std().item() == pytest.approx(0.02, rel=0.3)
    assert torch.pdist(model.branch_queries("au").flatten(1)).min() > 0.05
    read = model(**pick(make_batch(model.config), *IMAGE))
    assert torch.pdist(read.emo_states[0]).min() > 1e-3
    assert model.emo_vl.temperature.item() == pytest.approx(0.07)


@pytest.mark.parametrize("cls", CLASSES)
def test_half_precision_stays_finite_and_near(build, make_batch, cls):
    model = build(cls, "vit")
    batch = make_batch(model.config)
    inputs = pick(batch, "pixel_values", "landmarks")
    if text_only(cls):
        inputs["input_ids"] = batch["input_ids"]
    if cls is MF2ForPreTraining:
        inputs = batch
    exact = model(**inputs)
    half = model.to(torch.bfloat16)(**inputs)
    for name, value in half.items():
        if isinstance(value, torch.Tensor):
            assert value.isfinite().all(), name
            if not name.startswith(("itm", "loss")):  # another hardest negative may be chosen
                error = (value.float() - exact[name]).abs().mean() / exact[name].abs().mean().clamp_min(1e-3)
                assert error < 0.1, name


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("through", ["argument", "config"])
def test_a_tuple_on_request(build, make_batch, cls, through):
    model = build(cls)
    batch = make_batch(model.config)
    inputs = pick(batch, *IMAGE)
    if text_only(cls):
        inputs["input_ids"] = batch["input_ids"]
    usual = model(**inputs)
    if through == "config":
        model.config.return_dict = False
        found = model(**inputs)
    else:
        found = model(**inputs, return_dict=False)
    assert isinstance(found, tuple)
    for a, b in zip(found, usual.to_tuple(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from conftest import shake, tiny_config

    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = shake(MF2ForPreTraining(tiny_config("vit")))
    model.save_pretrained(folder)
    return folder, weights(model)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_loads_every_tensor_of_one_checkpoint(checkpoint, cls, make_batch):
    folder, saved = checkpoint
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = cls.from_pretrained(folder)
        for name, value in weights(model).items():
            assert torch.equal(value, saved[name]), name
        assert not model.training
        assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "vision" in name)
    batch = make_batch(model.config)
    if cls is MF2ForPreTraining:
        again = MF2ForPreTraining(model.config).eval()
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(**batch).loss, model(**batch).loss)


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_saving_and_loading_changes_no_output(build, make_batch, tmp_path, tower):
    model = build(MF2ForFaceAnalysis, tower)
    if tower == "conv":  # running statistics are part of a tower
        for module in model.mf2.vision.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    model.save_pretrained(tmp_path)
    again = MF2ForFaceAnalysis.from_pretrained(tmp_path)
    assert weights(again).keys() == weights(model).keys()
    for name, value in weights(model).items():
        assert torch.equal(weights(again)[name], value), name
    batch = pick(make_batch(model.config), *IMAGE)
    for name, value in model(**batch).items():
        assert torch.equal(again(**batch)[name], value), name
    half = MF2ForFaceAnalysis.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    eager = MF2ForFaceAnalysis.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager(**batch, output_attentions=True).au_cross_attentions is not None


def test_heads_that_a_checkpoint_lacks_are_new_and_the_rest_is_loaded(build, tmp_path):
    model = build(MF2Model)
    model.save_pretrained(tmp_path)
    again, info = MF2ForFaceAnalysis.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] and all(name.startswith("classifiers.") for name in info["missing_keys"])
    for name, value in weights(model).items():
        assert torch.equal(weights(again)[name], value), name
    inputs = again.classifiers.au_weight[0].numel()
    assert again.classifiers.au_weight.std().item() == pytest.approx(0.1 * inputs**-0.5, rel=0.3)
    assert all(value.isfinite().all() for value in again.state_dict().values())


def test_auto_classes_answer_with_ours(checkpoint):
    folder, _ = checkpoint
    for auto, cls in (
        (AutoModel, MF2Model),
        (AutoModelForPreTraining, MF2ForPreTraining),
        (AutoModelForImageClassification, MF2ForImageClassification),
    ):
        assert type(auto.from_pretrained(folder)) is cls


def test_a_label_set_unlike_the_checkpoints_is_an_error(checkpoint):
    """Also one of the same length: what was learned for AU10 must not answer for AU14."""
    folder, _ = checkpoint
    saved = MF2Config.from_pretrained(folder)
    turned = {"action_units": saved.action_units[::-1]}
    for other in ({"label_set": "disfa"}, turned, {"config": MF2Config.from_pretrained(folder, **turned)}):
        with pytest.raises(ValueError, match=r"action_units: got \[.*but the checkpoint .* has \["):
            MF2ForFaceAnalysis.from_pretrained(folder, **other)
    kept = MF2ForFaceAnalysis.from_pretrained(folder)
    anew = MF2ForFaceAnalysis.from_pretrained(folder, ignore_mismatched_sizes=True, **turned)
    assert torch.equal(anew.mf2.au_vl.queries, kept.mf2.au_vl.queries)
    for name in ("mf2.au_embedding", "classifiers.au_weight"):
        assert not torch.equal(anew.get_parameter(name), kept.get_parameter(name)), name


HEADS = {"classifiers.au_weight", "classifiers.au_bias", "classifiers.au_from_face.weight", "au_embedding"}
EMOTION = {"classifiers.emotion.weight", "classifiers.emotion.bias"}


@pytest.mark.parametrize("cls", [MF2ForFaceAnalysis, ExpBlipForFaceAnalysis])
@pytest.mark.parametrize(("field", "forgets", "keeps"), [("emotions", EMOTION, HEADS), ("action_units", HEADS, set())])
def test_what_was_learned_for_labels_that_stay_is_kept(tmp_path, shaken, cls, field, forgets, keeps):
    """An emotion of MF2 is read from the AUs by their place: with other AUs it is learned anew."""
    config = tiny_config("vit") if cls is MF2ForFaceAnalysis else small_config("vit")
    model = shaken(cls(config))
    if cls is ExpBlipForFaceAnalysis:
        units = {"classifiers.units.weight", "classifiers.units.bias"}
        forgets, keeps = (EMOTION, units) if field == "emotions" else (units, EMOTION)
    model.save_pretrained(tmp_path)
    turned = {field: getattr(config, field)[::-1]}
    anew = cls.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **turned)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, weights(anew)[name])}
    assert forgets <= moved and not keeps & moved
    assert moved <= EMOTION | HEADS | {"classifiers.au_from_face.bias"} | forgets


def test_no_face_at_all_gives_no_answers(build, make_batch):
    for cls in (MF2ForFaceAnalysis, MF2ForPreTraining):
        for tower in ("conv", "vit"):
            model = build(cls, tower).eval()
            batch = {name: tensor[:0] for name, tensor in pick(make_batch(model.config), *IMAGE).items()}
            output = model(**batch)
            assert output.au_logits.shape[0] == output.emotion_logits.shape[0] == 0


def test_labels_that_cannot_be_are_errors(build, make_batch):
    model = build(MF2ForFaceAnalysis)
    images = pick(make_batch(model.config), *IMAGE)
    count = len(images["pixel_values"])
    for labels, said in (
        ({"emotion_labels": torch.full((count,), -100)}, "emotion_labels: got -100, expected -1"),
        ({"emotion_labels": torch.full((count,), 9)}, "emotion_labels: got 9, expected -1"),
        ({"au_labels": torch.full((count, 3), 2)}, "au_labels: got 2, expected -1"),
        ({"au_labels": torch.zeros((count, 5), dtype=torch.long)}, "au_labels: got shape"),
    ):
        with pytest.raises(ValueError, match=said):
            model(**images, **labels)


def test_a_classifier_takes_its_labels_from_a_batch_of_ours(build, make_batch):
    batch = make_batch(build(MF2Model).config)
    for target, name in (("emotion", "emotion_labels"), ("action_units", "au_labels")):
        model = build(MF2ForImageClassification, classification_target=target).eval()
        loss = model(**pick(batch, *IMAGE), labels=batch[name]).loss
        assert torch.equal(model(**batch).loss, loss)


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_damaged_checkpoint_names_its_file(checkpoint, tmp_path, damage):
    folder, _ = checkpoint
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    content = (folder / "model.safetensors").read_bytes()
    if damage != "missing":
        (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(Exception, match=r"model\.safetensors"):
        MF2Model.from_pretrained(tmp_path)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_fresh_model_is_finite_and_its_seed_decides_it(make_config, cls):
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(cls(make_config("vit", initializer_range=0.02)).state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert value.isfinite().all() and value.abs().max() < 3, name


def test_words_of_the_embeddings_are_written_with(build):
    for cls in CLASSES:
        model = build(cls)
        base = model if cls is MF2Model else model.mf2
        assert model.get_input_embeddings() is base.emo_vl.qformer.word_embeddings
    assert build(MF2Model, use_emo_branch=False).get_input_embeddings().weight.shape == (40, 32)


def test_a_misspelt_input_is_an_error_and_not_taken_for_a_missing_one(build, make_batch):
    model = build(MF2ForFaceAnalysis)
    batch = make_batch(model.config)
    with pytest.raises(TypeError, match="unknown input 'landmark'; did you mean 'landmarks'"):
        model(batch["pixel_values"], landmark=batch["landmarks"])
    model(**batch)  # texts are no business of this model, and do no harm


def test_reentrant_checkpointing_becomes_the_other_with_a_warning(build, make_batch):
    model = build(MF2ForPreTraining).train()
    with pytest.warns(UserWarning, match="use_reentrant"):
        model.activation_checkpointing_enable({"use_reentrant": True})
    batch = make_batch(model.config)
    torch.manual_seed(1)  # wrong pairs are drawn
    model(**batch).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.gradient_checkpointing_disable()
    model.zero_grad()
    torch.manual_seed(1)
    model(**batch).loss.backward()
    for name, gradient in found.items():
        assert torch.allclose(model.get_parameter(name).grad, gradient, atol=1e-5), name


INPUTS = {
    MF2Model: ("pixel_values", "landmarks"),
    MF2ForFaceAnalysis: ("pixel_values", "landmarks"),
    MF2ForImageClassification: ("pixel_values", "landmarks"),
    MF2ForPreTraining: (
        "pixel_values",
        "landmarks",
        "input_ids",
        "attention_mask",
        "au_input_ids",
        "au_attention_mask",
    ),
    MF2ForZeroShotImageClassification: ("input_ids", "pixel_values", "attention_mask"),
    MF2ForCaptioning: ("input_ids", "pixel_values", "attention_mask"),
}


@pytest.mark.parametrize("cls", INPUTS)
def test_every_class_tells_its_hidden_states_and_attentions(build, make_batch, cls):
    model = build(cls).eval()
    model.set_attn_implementation("eager")
    batch = {name: value for name, value in make_batch(model.config).items() if name in INPUTS[cls]}
    plain = model(**batch)
    told = model(**batch, output_hidden_states=True, output_attentions=True)
    names = [name for name in told if "hidden_states" in name or "attentions" in name]
    assert names and not any("hidden_states" in name or "attentions" in name for name in plain)
    assert all(isinstance(state, torch.Tensor) for name in names for state in told[name])
    assert torch.allclose(next(iter(plain.values())), next(iter(told.values())), atol=1e-5)


@pytest.mark.parametrize("cls", INPUTS)
def test_hidden_states_and_attentions_of_every_class_keep_a_gradient(build, make_batch, cls):
    model = build(cls).eval()
    model.set_attn_implementation("eager")
    batch = {name: value for name, value in make_batch(model.config).items() if name in INPUTS[cls]}
    told = model(**batch, output_hidden_states=True, output_attentions=True)
    names = filter(is_told, told)
    states = {f"{name}[{place}]": state for name in names for place, state in enumerate(told[name])}
    for state in states.values():
        state.retain_grad()
    sum((value**3).sum() for name, value in told.items() if not is_told(name) and value.requires_grad).backward()
    assert [name for name, state in states.items() if state.grad is None or not state.grad.any()] == []


def is_told(name):
    return "hidden_states" in name or "attentions" in name


@pytest.mark.parametrize("cls", INPUTS)
def test_every_class_is_exported_saved_and_loaded(build, make_batch, cls, tmp_path):
    model = build(cls).eval()
    batch = {name: value for name, value in make_batch(model.config).items() if name in INPUTS[cls]}
    if cls is MF2ForPreTraining:  # which captions are negatives depends on their content
        batch = {name: value for name, value in batch.items() if name in IMAGE}
    rows = {name: {0: torch.export.Dim.AUTO} for name in batch} if "input_ids" not in batch else None
    program = torch.export.export(model, (), batch, dynamic_shapes=rows, strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    expected, found = model(**batch), again(**batch)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(found[name], value, atol=1e-5), name
    if rows:
        fewer = {name: value[:3] for name, value in batch.items()}
        assert torch.allclose(next(iter(again(**fewer).values())), next(iter(model(**fewer).values())), atol=1e-5)


def test_a_share_of_the_label_losses_is_that_of_the_aus_alone() -> None:
    """In training alone, and exactly the mean that the config names."""
    losses = {}
    for share in (0.0, 0.25, 1.0):
        torch.manual_seed(0)
        model = shake(MF2ForFaceAnalysis(MF2Config.from_size("tiny", units_alone_share=share)))
        torch.manual_seed(1)
        batch = {"pixel_values": torch.randn(3, 3, 112, 112), "au_labels": torch.randint(0, 2, (3, 12))}
        batch["emotion_labels"] = torch.tensor([1, -1, 4])
        losses[share] = {True: model.train()(**batch), False: model.eval()(**batch)}
    for name in ("au", "emotion"):
        full, mixed, alone = (losses[share][True][name] for share in (0.0, 0.25, 1.0))
        torch.testing.assert_close(mixed, 0.75 * full + 0.25 * alone)
        assert (full - alone).abs() > 1e-3
        torch.testing.assert_close(losses[1.0][False][name], losses[0.0][False][name])
