"""Sources are small models of the real libraries, saved as those save them; outputs, not names, are compared."""

import hashlib
import json
import pickle
import re

import huggingface_hub.constants
import pytest
import timm
import torch
from conftest import assert_same, shake, state_of
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
HEAD = "classifier head"


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
    return shake(Blip2ForImageTextRetrieval(blip2_config())).eval()


@pytest.fixture(scope="module")
def bert():
    return shake(BertForPreTraining(BertConfig(**{**TEXT, "vocab_size": WORDS}))).eval()


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(2)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [6]])).long()
    ids, pixels = torch.randint(1, WORDS, (3, 7)), torch.randn(3, 3, 28, 28)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def saved(retrieval, bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    retrieval.save_pretrained(folder / "blip2")
    bert.save_pretrained(folder / "bert")
    torch.save({"model": lavis_state(retrieval, bert), "epoch": 4}, folder / "lavis.pth")
    return folder


LAVIS_NAMES = (
    ("qformer.encoder.layer", "Qformer.bert.encoder.layer"),
    ("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    ("attention.attention.", "attention.self."),
    *(("vision_projection", "vision_proj"), ("text_projection", "text_proj")),
    ("vision_model.post_layernorm", "ln_vision"),
)
LAVIS_VISION_NAMES = (
    *(("vision_model.", "visual_encoder."), ("embeddings.class_embedding", "cls_token")),
    *(("embeddings.position_embedding", "pos_embed"), ("encoder.layers", "blocks")),
    *(("embeddings.patch_embedding", "patch_embed.proj"), ("self_attn", "attn")),
    *(("projection", "proj"), ("layer_norm", "norm")),
)


def lavis_state(retrieval, bert):
    """Stage 1 as LAVIS keeps it: BERT's names, EVA's names, a language head, a buffer, a temperature."""
    state = {"temp": torch.tensor(0.05), "Qformer.bert.embeddings.position_ids": torch.arange(20)[None]}
    for name, tensor in retrieval.state_dict().items():
        name = re.sub(r"^embeddings\.", "Qformer.bert.embeddings.", name)
        tower = name.startswith("vision_model.") and "post_layernorm" not in name
        for theirs, lavis in LAVIS_VISION_NAMES if tower else LAVIS_NAMES:
            name = name.replace(theirs, lavis)
        if name.endswith("qkv.bias"):
            query, _, value = tensor.chunk(3)
            state |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        else:
            state[name] = tensor
    prefix = "Qformer.cls.predictions."
    state |= {f"{prefix}{name}": tensor for name, tensor in bert.cls.predictions.state_dict().items()}
    words = torch.randn(retrieval.config.qformer_config.vocab_size)
    state |= dict.fromkeys((f"{prefix}bias", f"{prefix}decoder.bias"), words)
    state[f"{prefix}decoder.weight"] = state["Qformer.bert.embeddings.word_embeddings.weight"]
    return {name: tensor.clone() for name, tensor in state.items()}


@torch.no_grad()
def assert_answers_as(model, retrieval, inputs):
    """Vision tokens, ITC, and match logits of the joint pass; the AU branch has the same weights."""
    pixels, ids, mask = inputs.values()
    branch, tokens = model.emo_vl, model.vision(pixels)
    torch.testing.assert_close(tokens, retrieval.vision_model(pixels).last_hidden_state, **CLOSE)
    image, text = model.get_image_features(image_tokens=tokens), model.get_text_features(ids, mask)
    similarity = (image.pooler_output @ text.pooler_output.T).amax(1)
    torch.testing.assert_close(similarity, retrieval(**inputs).logits_per_image, **CLOSE)
    joint = branch.qformer(queries=branch.queries, input_ids=ids, text_mask=mask, image=tokens)
    theirs = retrieval(**inputs, use_image_text_matching_head=True)
    torch.testing.assert_close(branch.heads.itm(joint.query_states).mean(1), theirs.logits_per_image, **CLOSE)
    assert_same(model.au_vl.qformer.state_dict(), branch.qformer.state_dict())
    assert torch.equal(model.au_vl.queries, branch.queries[:, :4])


def test_blip2_from_transformers_answers_alike_in_both_branches(saved, retrieval, inputs):
    model = mf2()
    report = load_blip2_weights(model, saved / "blip2")
    assert_answers_as(model, retrieval, inputs)
    assert report.adapted == {"au_vl.queries": "the first 4 of 6"}
    assert report.unused == {}
    fresh = {re.sub(r"^\w+_vl\.", "", name) for name in report.fresh}
    assert all(name.startswith("heads.language.") for name in fresh - {"temperature"}) and len(fresh) == 6
    everything = {name for name in model.state_dict() if name.startswith(("vision.", "emo_vl.", "au_vl."))}
    assert {*report.loaded, *report.fresh} == everything
    assert "adapted au_vl.queries: the first 4 of 6" in str(report)


def test_blip2_from_lavis_answers_alike_and_brings_its_language_head(saved, retrieval, inputs):
    model = mf2(MF2ForFaceAnalysis)
    before = state_of(model.classifiers)
    report = load_blip2_weights(model, saved / "lavis.pth")
    assert_same(model.classifiers.state_dict(), before)
    assert_answers_as(model.mf2, retrieval, inputs)
    assert report.fresh == []
    assert report.unused["Qformer.bert.embeddings.position_ids"] == "counts positions, no weight"
    assert report.unused["Qformer.cls.predictions.decoder.weight"].startswith("same as Qformer.bert.embeddings.word_")
    state = read_weights(saved / "lavis.pth")
    assert set(report.unused) == {name for name in state if re.search(r"decoder\.|position_ids", name)}
    head = shake(BertForMaskedLM(BertConfig(**TEXT))).eval()
    prefix = "Qformer.cls.predictions."
    head.cls.predictions.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if prefix in k})
    hidden = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(model.mf2.emo_vl.language_logits(hidden), head.cls(hidden), **CLOSE)
    assert model.mf2.au_vl.temperature.tolist() == pytest.approx([0.05])


def test_a_lavis_file_without_its_frozen_tower_leaves_ours(saved, tmp_path):
    state = {k: v for k, v in read_weights(saved / "lavis.pth").items() if not k.startswith("visual_encoder.")}
    torch.save({"model": state}, tmp_path / "trained.pth")
    model = mf2()
    before = state_of(model.vision)
    report = load_blip2_weights(model, tmp_path / "trained.pth", branches=("au",))
    assert {n for n in report.fresh if n.startswith("vision.")} == {
        n for n in model.state_dict() if n.startswith("vision.") and ".backbone.norm." not in n
    }
    assert torch.equal(model.vision.backbone.norm.weight, state["ln_vision.weight"])
    assert torch.equal(model.vision.backbone.cls_token, before["backbone.cls_token"])
    assert not any(name.startswith("emo_vl.") for name in [*report.loaded, *report.fresh])


def test_blip2_without_text_parts_keeps_what_bert_brought(saved, retrieval, inputs, tmp_path):
    captioner = shake(Blip2ForConditionalGeneration(blip2_config(text_input=False))).eval()
    captioner.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = mf2()
    load_bert_weights(model, saved / "bert")
    words = model.emo_vl.qformer.word_embeddings.weight.clone()
    text_net = state_of(model.emo_vl.qformer.layers[2].text_feed_forward)
    report = load_blip2_weights(model, tmp_path)
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        tokens = captioner.vision_model(pixels).last_hidden_state
        queries = captioner.query_tokens.expand(3, -1, -1)
        seen = captioner.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        torch.testing.assert_close(model(pixel_values=pixels).emo_states, seen, **CLOSE)
    assert torch.equal(model.emo_vl.qformer.word_embeddings.weight, words)
    assert_same(model.emo_vl.qformer.layers[2].text_feed_forward.state_dict(), text_net)
    assert "emo_vl.qformer.layers.2.text_feed_forward.up_proj.weight" in report.fresh
    assert set(report.unused.values()) == {"language model"}


@torch.no_grad()
def test_a_bare_qformer_of_transformers(tmp_path):
    qformer = shake(Blip2QFormerModel(blip2_config().qformer_config)).eval()
    qformer.save_pretrained(tmp_path)
    model, tokens = mf2(), torch.randn(3, 5, 24)
    report = load_blip2_weights(model, tmp_path / "model.safetensors", vision=False)
    assert {"emo_vl.queries", "emo_vl.heads.itm.weight", "emo_vl.qformer.word_embeddings.weight"} <= set(report.fresh)
    queries = model.emo_vl.queries
    expected = qformer(query_embeds=queries.expand(3, -1, -1), encoder_hidden_states=tokens).last_hidden_state
    torch.testing.assert_close(model.emo_vl.qformer(queries=queries, image=tokens).query_states, expected, **CLOSE)


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
            assert_same(layer.query_feed_forward.state_dict(), layer.text_feed_forward.state_dict())
        words = branch.qformer.word_embeddings.weight
        torch.testing.assert_close(words[WORDS], words[:WORDS].mean(0))
    assert report.adapted["emo_vl.qformer.word_embeddings.weight"] == "row 40 ([DEC]) is the others' mean"
    fresh = {"emo_vl.queries", "au_vl.heads.itm.bias", "emo_vl.qformer.layers.0.cross_attention.q_proj.weight"}
    assert fresh <= set(report.fresh)
    assert ("emo_vl.heads.language.bias" in report.fresh) == (kind == "plain")
    assert any(name.endswith("pooler.dense.weight") for name in report.unused) == (kind != "masked")


SMALL_VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2}
VITS = {
    **{"vit_base_patch16_224": SMALL_VIT, "eva_giant_patch14_224": EVA},
    **{"eva02_tiny_patch14_224": SMALL_VIT, "vit_small_patch16_dinov3": SMALL_VIT},
}


def tower_of(backbone, size=2):
    patch, prefix = 16 if "patch16" in backbone else 14, 5 if "dinov3" in backbone else 1
    fields = {"image_size": size * patch, "patch_size": patch, "num_prefix_tokens": prefix}
    return mf2(backbone=backbone, backbone_kwargs=VITS[backbone], vision=fields)


@pytest.mark.parametrize("backbone", VITS)
@torch.no_grad()
def test_timm_files_give_timms_tokens(backbone, tmp_path):
    model = tower_of(backbone)
    side = model.config.vision_config.image_size
    theirs = timm.create_model(backbone, img_size=side, num_classes=7, global_pool="token", **VITS[backbone])
    save_file(shake(theirs).eval().state_dict(), tmp_path / "model.safetensors")
    report = load_vision_weights(model, tmp_path)
    pixels = torch.randn(2, 3, side, side)
    torch.testing.assert_close(model.vision(pixels), theirs.forward_features(pixels), **CLOSE)
    assert report.fresh == [] and report.unused.items() >= dict.fromkeys(("head.weight", "head.bias"), HEAD).items()
    assert {*report.loaded} == {name for name in model.state_dict() if name.startswith("vision.")}


@torch.no_grad()
def test_another_grid_resizes_positions_as_timm_does(tmp_path):
    theirs = shake(timm.create_model("vit_base_patch16_224", img_size=32, **VITS["vit_base_patch16_224"])).eval()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    model = tower_of("vit_base_patch16_224", size=3)
    report = load_vision_weights(model, tmp_path / "vit.pth")
    assert report.adapted == {"vision.backbone.pos_embed": "(1, 5, 24) resized to (1, 10, 24)"}
    theirs.set_input_size((48, 48))
    pixels = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(model.vision(pixels), theirs.forward_features(pixels), **CLOSE)


def test_a_timm_name_goes_through_timms_own_loader(tmp_path, monkeypatch):
    name, create = "eva_giant_patch14_224.clip_ft_in1k", timm.create_model
    source = shake(create(name, img_size=28, **{**EVA, "depth": 3})).eval()  # pools: its final norm is an fc_norm
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    local = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.safetensors")}, "img_size": 28}

    def offline(name, pretrained=False, **kwargs):
        return create(name, pretrained, **kwargs, **({**EVA, "depth": 3, **local} if pretrained else {}))

    model = mf2()
    monkeypatch.setattr(timm, "create_model", offline)
    report = load_vision_weights(model, name)
    assert set(report.unused.values()) == {"the tower has 2 blocks", HEAD}
    assert all(key.startswith(("blocks.2.", "head.")) for key in report.unused)
    assert torch.equal(model.vision.backbone.norm.weight, source.fc_norm.weight)
    assert torch.equal(model.vision.backbone.blocks[1].attn.v_bias, source.blocks[1].attn.v_bias)


@torch.no_grad()
def test_vision_alone_from_transformers_from_lavis_and_from_ourselves(saved, retrieval, inputs, tmp_path):
    pixels = inputs["pixel_values"]
    expected = retrieval.vision_model(pixels).last_hidden_state
    retrieval.vision_model.save_pretrained(tmp_path / "alone")
    for source in ("alone", saved / "blip2", saved / "lavis.pth"):
        model = mf2()
        report = load_vision_weights(model, tmp_path / source)
        torch.testing.assert_close(model.vision(pixels), expected, **CLOSE)
    assert report.unused["query_tokens"] == "not of a vision tower"
    raw = {k.removeprefix("visual_encoder."): v for k, v in read_weights(saved / "lavis.pth").items() if "visual_" in k}
    torch.save({"module": raw}, tmp_path / "eva.pth")
    fresh = load_vision_weights(mf2(), tmp_path / "eva.pth").fresh
    assert fresh == ["vision.backbone.norm.weight", "vision.backbone.norm.bias"]
    model.save_pretrained(tmp_path / "ours")
    model.vision.save_pretrained(tmp_path / "tower")
    for source in ("ours", "tower"):
        other = mf2()
        load_vision_weights(other, tmp_path / source)
        assert_same(other.vision.state_dict(), model.vision.state_dict())


def test_the_convolutional_tower_from_its_own_file(tmp_path):
    vision = {"image_size": 32, "patch_size": 16, "num_prefix_tokens": 0}
    first, second = (mf2(backbone="conv", backbone_kwargs={}, vision=vision) for _ in range(2))
    save_file(first.vision.backbone.state_dict(), tmp_path / "tower.safetensors")
    assert load_vision_weights(second, tmp_path / "tower.safetensors").unused == {}
    assert_same(second.vision.state_dict(), first.vision.state_dict())


def assert_refused(load, source, *said, **text):
    """And the model is left as it was."""
    model = mf2(**text)
    before = state_of(model)
    with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, said))):
        load(model, source)
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("load", "source", "old", "new"),
    [
        (load_bert_weights, "bert", "bert.encoder.layer.1.output.dense.bias", "bert.encoder.layer.1.outputs.bias"),
        (load_bert_weights, "bert", "bert.embeddings.token_type_embeddings.weight", "bert.embeddings.types"),
        (load_blip2_weights, "blip2", "itm_head.weight", "itm_hed.weight"),
        (load_blip2_weights, "blip2", "vision_model.post_layernorm.bias", "vision_model.post_norm.bias"),
        (load_blip2_weights, "lavis.pth", "Qformer.bert.encoder.layer.2.crossattention.self.key.weight", "Qformer.x"),
        (load_blip2_weights, "lavis.pth", "visual_encoder.blocks.0.attn.q_bias", "visual_encoder.blocks.0.attn.qbias"),
        (load_vision_weights, "blip2", "vision_model.embeddings.class_embedding", "vision_model.embeddings.class"),
    ],
)
def test_a_key_nobody_knows_is_named(load, source, old, new, saved, tmp_path):
    state = read_weights(saved / source)
    torch.save({**state, new: state.pop(old)}, tmp_path / "spoiled.pth")
    assert_refused(load, tmp_path / "spoiled.pth", "1 unknown keys: ", new)


def test_a_missing_tensor_a_wrong_shape_and_another_kind_of_source_are_named(saved, tmp_path):
    state = read_weights(saved / "blip2")
    del state["qformer.layernorm.bias"]
    torch.save({**state, "text_projection.weight": torch.zeros(9, WIDTH)}, tmp_path / "spoiled.pth")
    for said in ("emo_vl.qformer.norm.bias, au_vl.qformer.norm.bias", "text_projection.weight: got (9, 32)"):
        assert_refused(load_blip2_weights, tmp_path / "spoiled.pth", said)
    for load, source in ((load_vision_weights, "bert"), (load_bert_weights, "blip2"), (load_blip2_weights, "bert")):
        assert_refused(load, saved / source, "does not fit this model, which was left as it was")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_hidden_layers", 2, ("num_hidden_layers: ", "has 3, the model's emo branch 2")),
        ("hidden_size", 64, ("hidden_size: ", "has 32, the model's emo branch 64")),
        ("vocab_size", 60, ("word_embeddings.weight: got (40, 32), expected (60, 32)",)),
        ("num_attention_heads", 8, ("num_attention_heads: ", "has 4, the model 8")),
        ("layer_norm_eps", 1e-6, ("layer_norm_eps: ", "has 1e-12, the model 1e-06")),
    ],
)
def test_a_bert_of_another_size_is_refused(field, value, said, saved):
    assert_refused(load_bert_weights, saved / "bert", *said, **{field: value})


def test_a_model_or_a_branch_that_cannot_be(saved):
    with torch.device("meta"):
        empty = mf2()
    for said, model, branches in (
        ("expected MF2Model", torch.nn.Linear(1, 1), ()),
        ("meta device", empty, ()),
        ("branch: got 'both'", mf2(), ("both",)),
    ):
        with pytest.raises(ValueError, match=said):
            load_bert_weights(model, saved / "bert", *([branches] if branches else []))


# Files


WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


class Boom:
    def __reduce__(self):
        return print, ("a file ran code",)


def test_weights_are_read_from_files_plain_nested_in_shards_and_on_the_hub(tmp_path, monkeypatch):
    save_file(WEIGHTS, tmp_path / "plain.safetensors")
    torch.save(WEIGHTS, tmp_path / "plain.bin")
    torch.save({"model": WEIGHTS, "epoch": 3, "config": {"lr": 0.1}}, tmp_path / "lavis.pth")
    torch.save({"state_dict": {f"module.{name}": t for name, t in WEIGHTS.items()}}, tmp_path / "parallel.pt")
    repository = tmp_path / "models--someone--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (shards := repository / "snapshots" / "0123abc").mkdir(parents=True)
    for name, tensor in WEIGHTS.items():
        save_file({name: tensor}, shards / f"{name}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"{name}.safetensors" for name in WEIGHTS}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    files = [tmp_path / name for name in ("plain.safetensors", "plain.bin", "lavis.pth", "parallel.pt")]
    for source in (*files, shards, "someone/something"):
        found = read_weights(source)
        assert found.keys() == WEIGHTS.keys()
        assert_same(found, WEIGHTS)
    with pytest.raises(ValueError, match="someone/else is out of reach or has no weights"):
        read_weights("someone/else")


def test_a_damaged_or_missing_file_is_named_and_code_in_it_never_runs(tmp_path, capsys):
    save_file(WEIGHTS, whole := tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-4])
    torch.save(WEIGHTS, whole := tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"layer.weight": Boom()}, protocol=2))
    torch.save({"model": {}, "args": Boom()}, tmp_path / "torch.pth")
    (tmp_path / "nothing").mkdir()
    said = dict.fromkeys(("cut.safetensors", "cut.pth", "empty.pt", "tensor.pt"), "")
    said |= dict.fromkeys(("plain.bin", "torch.pth"), "cannot be read.*code in a file is never run")
    cut = hashlib.sha256((tmp_path / "cut.pth").read_bytes()).hexdigest()
    said["cut.pth"] = rf"half downloaded \({(tmp_path / 'cut.pth').stat().st_size:,} bytes, SHA-256 {cut}\)"
    save_file(WEIGHTS, hub := tmp_path / ("a" * 64))  # as the Hub's cache keeps it
    (hub.write_bytes(hub.read_bytes()[:-8]), (tmp_path / "linked.safetensors").symlink_to(hub))
    said["linked.safetensors"] = f"SHA-256 .*, expected {'a' * 64}"
    save_file(WEIGHTS, tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors.sha256").write_text(f"{cut}  other.safetensors\n")
    said["other.safetensors"] = f"SHA-256 .*, expected {cut}"
    for name, message in {**said, "gone.pth": "is no file", "nothing": "has no weights"}.items():
        with pytest.raises(ValueError, match=f"{name}.*{message}"):
            read_weights(tmp_path / name)
    own = hashlib.sha256((tmp_path / "other.safetensors").read_bytes()).hexdigest()
    (tmp_path / "other.safetensors.sha256").write_text(f"{own}  other.safetensors\n")
    assert_same(read_weights(tmp_path / "other.safetensors"), WEIGHTS)
    assert "ran code" not in capsys.readouterr().out
