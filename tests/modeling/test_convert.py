"""Sources are small models of the real libraries, saved as those save them; outputs, not names, are compared."""

import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerModel,
    Blip2VisionModel,
)

from configuration_mf2.configuration_mf2 import MF2Config
from modeling_mf2 import MF2ForFaceAnalysis, MF2Model
from modeling_mf2.convert import load_bert_weights, load_blip2_weights, load_vision_weights
from modeling_mf2.weights import read_weights


WORDS, WIDTH, QUERIES = 40, 32, 6
TEXT = {
    **{"vocab_size": WORDS + 1, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"intermediate_size": 48, "max_position_embeddings": 20},
}
EVA = {"depth": 2, "embed_dim": 24, "num_heads": 2, "mlp_ratio": 2.0}
CLOSE = {"atol": 2e-5, "rtol": 0}


def mf2(model_class=MF2Model, backbone="eva_giant_patch14_224", backbone_kwargs=EVA, vision=None, **text):
    branch = {**TEXT, "projection_dim": 16, "num_query_tokens": QUERIES, "bos_token_id": WORDS, **text}
    tower = {"backbone": backbone, "backbone_kwargs": backbone_kwargs, "image_size": 28, "patch_size": 14}
    config = MF2Config(
        vision_config={**tower, "hidden_size": 24, **(vision or {})},
        emo_config=branch,
        au_config={**branch, "num_query_tokens": 4},
        **{"emotion_max_length": 12, "au_max_length": 12},
    )
    return model_class(config).eval()


def shaken(model):
    """No zero biases and no equal rows, which would hide a tensor in the wrong place."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def blip2_config(text_input=True):
    return Blip2Config(
        vision_config={
            **{"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
            **{"image_size": 28, "patch_size": 14},
        },
        qformer_config={**TEXT, "encoder_hidden_size": 24, "use_qformer_text_input": text_input},
        text_config={
            **{"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16},
            **{"vocab_size": 30, "word_embed_proj_dim": 16, "max_position_embeddings": 16},
        },
        num_query_tokens=QUERIES,
        image_text_hidden_size=16,
    )


@pytest.fixture(scope="module")
def retrieval():
    return shaken(Blip2ForImageTextRetrieval(blip2_config()))


@pytest.fixture(scope="module")
def bert():
    return shaken(BertForPreTraining(BertConfig(**{**TEXT, "vocab_size": WORDS})))


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(2)
    ids = torch.randint(1, WORDS, (3, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    mask[2, 6:] = 0
    return {"pixel_values": torch.randn(3, 3, 28, 28), "input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def saved(retrieval, bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    retrieval.save_pretrained(folder / "blip2")
    bert.save_pretrained(folder / "bert")
    torch.save({"model": lavis_state(retrieval, bert), "epoch": 4}, folder / "lavis.pth")
    return folder


def lavis_state(retrieval, bert):
    """Stage 1 as LAVIS keeps it: BERT's names, EVA's names, a language head, a buffer, a temperature."""
    state = {"temp": torch.tensor(0.05), "Qformer.bert.embeddings.position_ids": torch.arange(20)[None]}
    for name, tensor in retrieval.state_dict().items():
        name = name.replace("qformer.encoder.layer", "Qformer.bert.encoder.layer")
        name = name.replace("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm")
        name = name.replace("attention.attention.", "attention.self.")
        name = re.sub(r"^embeddings\.", "Qformer.bert.embeddings.", name)
        name = name.replace("vision_projection", "vision_proj").replace("text_projection", "text_proj")
        name = name.replace("vision_model.post_layernorm", "ln_vision")
        if name.startswith("vision_model."):
            name = name.replace("vision_model.", "visual_encoder.").replace("embeddings.class_embedding", "cls_token")
            name = name.replace("embeddings.position_embedding", "pos_embed").replace("encoder.layers", "blocks")
            name = name.replace("embeddings.patch_embedding", "patch_embed.proj").replace("self_attn", "attn")
            name = name.replace("projection", "proj").replace("layer_norm", "norm")
            if name.endswith("qkv.bias"):
                state[name.replace("qkv.bias", "q_bias")], _, state[name.replace("qkv.bias", "v_bias")] = tensor.chunk(
                    3
                )
                continue
        state[name] = tensor
    for name, tensor in bert.cls.predictions.state_dict().items():
        state[f"Qformer.cls.predictions.{name}"] = tensor
    state["Qformer.cls.predictions.bias"] = torch.randn(WORDS + 1)
    state["Qformer.cls.predictions.decoder.bias"] = state["Qformer.cls.predictions.bias"]
    state["Qformer.cls.predictions.decoder.weight"] = state["Qformer.bert.embeddings.word_embeddings.weight"]
    return {name: tensor.clone() for name, tensor in state.items()}


@torch.no_grad()
def assert_answers_as(model, retrieval, inputs, branch="emo"):
    """Vision tokens, ITC, and queries, text and match logits of the joint pass."""
    pixels, ids, mask = inputs.values()
    module = model.branch(branch)
    count = module.queries.shape[1]
    tokens = model.vision(pixels)
    torch.testing.assert_close(tokens, retrieval.vision_model(pixels).last_hidden_state, **CLOSE)
    if count == QUERIES:
        theirs = retrieval(**inputs)
        image, text = model.get_image_features(image_tokens=tokens), model.get_text_features(ids, mask)
        similarity = (image.pooler_output @ text.pooler_output.T).amax(1)
        torch.testing.assert_close(similarity, theirs.logits_per_image, **CLOSE)
        joint = module.qformer(queries=module.queries, input_ids=ids, text_mask=mask, image=tokens)
        theirs = retrieval(**inputs, use_image_text_matching_head=True)
        torch.testing.assert_close(module.heads.itm(joint.query_states).mean(1), theirs.logits_per_image, **CLOSE)
    assert_same_qformer(module, retrieval.qformer, retrieval.embeddings, tokens, ids, mask)


@torch.no_grad()
def assert_same_qformer(module, qformer, embeddings, tokens, ids, mask):
    queries, count = module.queries.expand(len(tokens), -1, -1), module.queries.shape[1]
    alone = module.qformer(queries=module.queries, image=tokens).query_states
    theirs = qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
    torch.testing.assert_close(alone, theirs, **CLOSE)
    text = module.qformer(input_ids=ids, text_mask=mask, mode="unimodal").text_states
    theirs = qformer(query_embeds=embeddings(ids), query_length=0, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(text[mask > 0], theirs[mask > 0], **CLOSE)
    joint = module.qformer(queries=module.queries, input_ids=ids, text_mask=mask, image=tokens, mode="two_way")
    theirs = qformer(
        query_embeds=embeddings(ids, query_embeds=queries),
        query_length=count,
        attention_mask=torch.cat([mask.new_ones(len(mask), count), mask], dim=1),
        encoder_hidden_states=tokens,
    ).last_hidden_state
    torch.testing.assert_close(joint.query_states, theirs[:, :count], **CLOSE)
    torch.testing.assert_close(joint.text_states[mask > 0], theirs[:, count:][mask > 0], **CLOSE)


def test_blip2_from_transformers_answers_alike_in_both_branches(saved, retrieval, inputs):
    model = mf2()
    report = load_blip2_weights(model, saved / "blip2")
    assert_answers_as(model, retrieval, inputs)
    assert_answers_as(model, retrieval, inputs, branch="au")
    assert torch.equal(model.au_vl.queries, retrieval.query_tokens[:, :4])
    assert report.adapted == {"au_vl.queries": "the first 4 of 6"}
    assert report.unused == {}
    assert {re.sub(r"^\w+_vl\.", "", name) for name in report.fresh} == {
        *("heads.language.transform.weight", "heads.language.transform.bias", "heads.language.norm.weight"),
        *("heads.language.norm.bias", "heads.language.bias", "temperature"),
    }
    everything = {name for name in model.state_dict() if name.startswith(("vision.", "emo_vl.", "au_vl."))}
    assert {*report.loaded, *report.fresh} == everything
    assert "adapted au_vl.queries: the first 4 of 6" in str(report)


def test_blip2_from_lavis_answers_alike_and_brings_its_language_head(saved, retrieval, inputs):
    model = mf2(MF2ForFaceAnalysis)
    before = values(model.classifiers)
    report = load_blip2_weights(model, saved / "lavis.pth")
    assert_unchanged(model.classifiers, before)
    assert_answers_as(model.mf2, retrieval, inputs)
    assert report.fresh == []
    assert report.unused["Qformer.bert.embeddings.position_ids"] == "counts positions, no weight"
    assert report.unused["Qformer.cls.predictions.decoder.weight"].startswith("same as Qformer.bert.embeddings.word_")
    state = read_weights(saved / "lavis.pth")
    assert set(report.unused) == {name for name in state if re.search(r"decoder\.|position_ids", name)}
    head = shaken(BertForMaskedLM(BertConfig(**TEXT)))
    prefix = "Qformer.cls.predictions."
    head.cls.predictions.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if prefix in k})
    hidden = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(model.mf2.emo_vl.language_logits(hidden), head.cls(hidden), **CLOSE)
    assert model.mf2.au_vl.temperature.tolist() == pytest.approx([0.05])


def test_a_lavis_file_without_its_frozen_tower_leaves_ours(saved, tmp_path):
    state = {k: v for k, v in read_weights(saved / "lavis.pth").items() if not k.startswith("visual_encoder.")}
    torch.save({"model": state}, tmp_path / "trained.pth")
    model = mf2()
    before = values(model.vision)
    report = load_blip2_weights(model, tmp_path / "trained.pth", branches=("au",))
    assert {n for n in report.fresh if n.startswith("vision.")} == {
        n for n in model.state_dict() if n.startswith("vision.") and ".backbone.norm." not in n
    }
    assert torch.equal(model.vision.backbone.norm.weight, state["ln_vision.weight"])
    assert torch.equal(model.vision.backbone.cls_token, before["backbone.cls_token"])
    assert not any(name.startswith("emo_vl.") for name in [*report.loaded, *report.fresh])


def test_blip2_without_text_parts_keeps_what_bert_brought(saved, retrieval, inputs, tmp_path):
    captioner = shaken(Blip2ForConditionalGeneration(blip2_config(text_input=False)))
    captioner.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = mf2()
    load_bert_weights(model, saved / "bert")
    words = model.emo_vl.qformer.word_embeddings.weight.clone()
    text_net = values(model.emo_vl.qformer.layers[2].text_feed_forward)
    report = load_blip2_weights(model, tmp_path)
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        tokens = captioner.vision_model(pixels).last_hidden_state
        queries = captioner.query_tokens.expand(3, -1, -1)
        seen = captioner.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        torch.testing.assert_close(model(pixel_values=pixels).emo_states, seen, **CLOSE)
    assert torch.equal(model.emo_vl.qformer.word_embeddings.weight, words)
    assert_unchanged(model.emo_vl.qformer.layers[2].text_feed_forward, text_net)
    assert "emo_vl.qformer.layers.2.text_feed_forward.up_proj.weight" in report.fresh
    assert set(report.unused.values()) == {"language model"}


def test_a_bare_qformer_of_transformers(tmp_path, inputs):
    qformer = shaken(Blip2QFormerModel(blip2_config().qformer_config))
    qformer.save_pretrained(tmp_path)
    model = mf2()
    report = load_blip2_weights(model, tmp_path / "model.safetensors", vision=False)
    assert {"emo_vl.queries", "emo_vl.heads.itm.weight", "emo_vl.qformer.word_embeddings.weight"} <= set(report.fresh)
    own = model.emo_vl.qformer

    def embeddings(input_ids, query_embeds=None):
        text = own.word_embeddings(input_ids) + own.position_embeddings.weight[: input_ids.shape[1]]
        return text if query_embeds is None else torch.cat([query_embeds, text], dim=1)

    assert_same_qformer(model.emo_vl, qformer, embeddings, torch.randn(3, 5, 24), *list(inputs.values())[1:])


@pytest.mark.parametrize("kind", ["pretraining", "masked", "plain", "old names"])
@torch.no_grad()
def test_text_alone_is_bert(kind, saved, bert, inputs, tmp_path):
    source = saved / "bert"
    if kind in ("masked", "plain"):
        source = tmp_path
        other = (BertForMaskedLM if kind == "masked" else BertModel).from_pretrained(saved / "bert")
        other.save_pretrained(tmp_path)
    if kind == "old names":
        state = load_file(saved / "bert" / "model.safetensors")
        state = {re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", k): v for k, v in state.items()}
        state = {re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", k): v for k, v in state.items()}
        source = tmp_path / "pytorch_model.bin"
        torch.save(state, source)
    model = mf2()
    report = load_bert_weights(model, source)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    expected = bert.bert(ids, attention_mask=mask).last_hidden_state
    for branch in (model.emo_vl, model.au_vl):
        text = branch.qformer(input_ids=ids, text_mask=mask, mode="two_way").text_states
        torch.testing.assert_close(text[mask > 0], expected[mask > 0], atol=1e-5, rtol=0)
        if kind != "plain":
            logits = branch.language_logits(expected)[..., :WORDS]
            torch.testing.assert_close(logits, bert.cls.predictions(expected), atol=1e-5, rtol=0)
        for layer in branch.qformer.layers:
            assert_unchanged(layer.query_feed_forward, layer.text_feed_forward.state_dict())
        words = branch.qformer.word_embeddings.weight
        torch.testing.assert_close(words[WORDS], words[:WORDS].mean(0))
    assert report.adapted["emo_vl.qformer.word_embeddings.weight"] == "row 40 ([DEC]) is the others' mean"
    fresh = {"emo_vl.queries", "au_vl.heads.itm.bias", "emo_vl.qformer.layers.0.cross_attention.q_proj.weight"}
    assert fresh <= set(report.fresh)
    assert ("emo_vl.heads.language.bias" in report.fresh) == (kind == "plain")
    assert any(name.endswith("pooler.dense.weight") for name in report.unused) == (kind != "masked")


VITS = {
    "vit_base_patch16_224": {"depth": 2, "embed_dim": 24, "num_heads": 2},
    "eva_giant_patch14_224": EVA,
    "eva02_tiny_patch14_224": {"depth": 2, "embed_dim": 24, "num_heads": 2},
    "vit_small_patch16_dinov3": {"depth": 2, "embed_dim": 24, "num_heads": 2},
}


def tower_of(backbone, size=2):
    patch = 16 if "patch16" in backbone else 14
    prefix = 5 if "dinov3" in backbone else 1
    fields = {"image_size": size * patch, "patch_size": patch, "num_prefix_tokens": prefix}
    return mf2(backbone=backbone, backbone_kwargs=VITS[backbone], vision=fields)


@pytest.mark.parametrize("backbone", VITS)
@torch.no_grad()
def test_timm_files_give_timms_tokens(backbone, tmp_path):
    model = tower_of(backbone)
    side = model.config.vision_config.image_size
    theirs = shaken(timm.create_model(backbone, img_size=side, num_classes=7, global_pool="token", **VITS[backbone]))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    report = load_vision_weights(model, tmp_path)
    pixels = torch.randn(2, 3, side, side)
    torch.testing.assert_close(model.vision(pixels), theirs.forward_features(pixels), **CLOSE)
    assert report.fresh == []
    assert {"head.weight": "classifier head", "head.bias": "classifier head"}.items() <= report.unused.items()
    assert {*report.loaded} == {name for name in model.state_dict() if name.startswith("vision.")}


@torch.no_grad()
def test_another_grid_resizes_positions_as_timm_does(tmp_path):
    theirs = shaken(timm.create_model("vit_base_patch16_224", img_size=32, **VITS["vit_base_patch16_224"]))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    model = tower_of("vit_base_patch16_224", size=3)
    report = load_vision_weights(model, tmp_path / "vit.pth")
    assert report.adapted == {"vision.backbone.pos_embed": "(1, 5, 24) resized to (1, 10, 24)"}
    theirs.set_input_size((48, 48))
    pixels = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(model.vision(pixels), theirs.forward_features(pixels), **CLOSE)


def test_a_timm_name_goes_through_timms_own_loader(tmp_path, monkeypatch):
    name, create = "eva_giant_patch14_224.clip_ft_in1k", timm.create_model
    source = shaken(create(name, img_size=28, **{**EVA, "depth": 3}))  # pools: its final norm is an fc_norm
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    local = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.safetensors")}, "img_size": 28}

    def offline(name, pretrained=False, **kwargs):
        return create(name, pretrained, **kwargs, **({**EVA, "depth": 3, **local} if pretrained else {}))

    model = mf2()
    monkeypatch.setattr(timm, "create_model", offline)
    report = load_vision_weights(model, name)
    assert set(report.unused.values()) == {"the tower has 2 blocks", "classifier head"}
    assert all(key.startswith(("blocks.2.", "head.")) for key in report.unused)
    assert torch.equal(model.vision.backbone.norm.weight, source.fc_norm.weight)
    assert torch.equal(model.vision.backbone.blocks[1].attn.v_bias, source.blocks[1].attn.v_bias)


@torch.no_grad()
def test_vision_alone_from_transformers_from_lavis_and_from_ourselves(saved, retrieval, inputs, tmp_path):
    pixels = inputs["pixel_values"]
    expected = retrieval.vision_model(pixels).last_hidden_state
    retrieval.vision_model.save_pretrained(tmp_path / "alone")
    assert isinstance(retrieval.vision_model, Blip2VisionModel)
    for source in ("alone", saved / "blip2", saved / "lavis.pth"):
        model = mf2()
        report = load_vision_weights(model, tmp_path / source)
        torch.testing.assert_close(model.vision(pixels), expected, **CLOSE)
    assert report.unused["query_tokens"] == "not of a vision tower"
    raw = {k.removeprefix("visual_encoder."): v for k, v in read_weights(saved / "lavis.pth").items() if "visual_" in k}
    torch.save({"module": raw}, tmp_path / "eva.pth")
    assert load_vision_weights(mf2(), tmp_path / "eva.pth").fresh == [
        "vision.backbone.norm.weight",
        "vision.backbone.norm.bias",
    ]
    model.save_pretrained(tmp_path / "ours")
    model.vision.save_pretrained(tmp_path / "tower")
    for source in ("ours", "tower"):
        other = mf2()
        load_vision_weights(other, tmp_path / source)
        assert_unchanged(other.vision, model.vision.state_dict())


def test_the_convolutional_tower_from_its_own_file(tmp_path):
    kind = {
        "backbone": "conv",
        "backbone_kwargs": {},
        "vision": {"image_size": 32, "patch_size": 16, "num_prefix_tokens": 0},
    }
    first, second = mf2(**kind), mf2(**kind)
    save_file(first.vision.backbone.state_dict(), tmp_path / "tower.safetensors")
    assert load_vision_weights(second, tmp_path / "tower.safetensors").unused == {}
    assert_unchanged(second.vision, first.vision.state_dict())


def spoil(state, old, new):
    assert old in state
    return {new if key == old else key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    ("load", "source", "old", "new"),
    [
        (load_bert_weights, "bert", "bert.encoder.layer.1.output.dense.bias", "bert.encoder.layer.1.outputs.bias"),
        (load_bert_weights, "bert", "bert.embeddings.token_type_embeddings.weight", "bert.embeddings.types"),
        (load_blip2_weights, "blip2", "itm_head.weight", "itm_hed.weight"),
        (load_blip2_weights, "blip2", "vision_model.post_layernorm.bias", "vision_model.post_norm.bias"),
        (load_blip2_weights, "lavis", "Qformer.bert.encoder.layer.2.crossattention.self.key.weight", "Qformer.what"),
        (load_blip2_weights, "lavis", "visual_encoder.blocks.0.attn.q_bias", "visual_encoder.blocks.0.attn.qbias"),
        (load_vision_weights, "blip2", "vision_model.embeddings.class_embedding", "vision_model.embeddings.class"),
    ],
)
def test_a_key_nobody_knows_is_named_and_nothing_changes(load, source, old, new, saved, tmp_path):
    path = saved / "lavis.pth" if source == "lavis" else saved / source
    torch.save(spoil(read_weights(path), old, new), tmp_path / "spoiled.pth")
    model = mf2()
    before = values(model)
    with pytest.raises(ValueError, match="1 keys that nothing here is called after: " + re.escape(new)):
        load(model, tmp_path / "spoiled.pth")
    assert_unchanged(model, before)


def test_a_missing_tensor_and_a_wrong_shape_are_named(saved, tmp_path):
    state = read_weights(saved / "blip2")
    del state["qformer.layernorm.bias"]
    state["text_projection.weight"] = torch.zeros(9, WIDTH)
    torch.save(state, tmp_path / "spoiled.pth")
    model = mf2()
    before = values(model)
    with pytest.raises(ValueError, match=r"left as it was") as error:
        load_blip2_weights(model, tmp_path / "spoiled.pth")
    assert "2 tensors of ours that it does not fill: emo_vl.qformer.norm.bias, au_vl.qformer.norm.bias" in str(
        error.value
    )
    assert "text_projection.weight: got (9, 32), expected (16, 32)" in str(error.value)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_hidden_layers", 2, r"num_hidden_layers: .* has 3, the model's emo branch 2"),
        ("hidden_size", 64, r"hidden_size: .* has 32, the model's emo branch 64"),
        ("vocab_size", 60, r"word_embeddings.weight: got \(40, 32\), expected \(60, 32\)"),
        ("num_attention_heads", 8, r"num_attention_heads: .* has 4, the model 8"),
        ("layer_norm_eps", 1e-6, r"layer_norm_eps: .* has 1e-12, the model 1e-06"),
    ],
)
def test_a_bert_of_another_size_is_refused(field, value, message, saved):
    model = mf2(**{field: value})
    before = values(model)
    with pytest.raises(ValueError, match=message):
        load_bert_weights(model, saved / "bert")
    assert_unchanged(model, before)


def test_a_model_or_a_branch_that_cannot_be(saved):
    with pytest.raises(ValueError, match="expected MF2Model"):
        load_bert_weights(torch.nn.Linear(1, 1), saved / "bert")
    with torch.device("meta"):
        model = mf2()
    with pytest.raises(ValueError, match="meta device"):
        load_bert_weights(model, saved / "bert")
    with pytest.raises(ValueError, match="branch: got 'both'"):
        load_bert_weights(mf2(), saved / "bert", branches=("both",))


def test_a_source_of_another_kind_is_refused(saved):
    for load, source in ((load_vision_weights, "bert"), (load_bert_weights, "blip2"), (load_blip2_weights, "bert")):
        with pytest.raises(ValueError, match="does not fit this model, which was left as it was"):
            load(mf2(), saved / source)
