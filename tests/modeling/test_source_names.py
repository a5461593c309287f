import pytest

from modeling_mf2.weights import branch_name, no_place_in_branch, no_place_in_tower, part_of, qformer_names, vision_name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("bert.encoder.layer.3.attention.self.query.weight", "qformer.layers.3.attention.q_proj.weight"),
        ("qformer.encoder.layer.3.attention.attention.key.bias", "qformer.layers.3.attention.k_proj.bias"),
        ("Qformer.bert.encoder.layer.0.crossattention.self.value.bias", "qformer.layers.0.cross_attention.v_proj.bias"),
        ("encoder.layer.0.crossattention.output.LayerNorm.bias", "qformer.layers.0.cross_attention.norm.bias"),
        ("bert.encoder.layer.1.output.LayerNorm.gamma", "qformer.layers.1.text_feed_forward.norm.weight"),
        ("qformer.encoder.layer.1.output_query.dense.weight", "qformer.layers.1.query_feed_forward.down_proj.weight"),
        ("Qformer.bert.embeddings.LayerNorm.bias", "qformer.norm.bias"),
        ("qformer.layernorm.weight", "qformer.norm.weight"),
        ("embeddings.word_embeddings.weight", "qformer.word_embeddings.weight"),
        ("Qformer.cls.predictions.transform.LayerNorm.beta", "heads.language.norm.bias"),
        ("vision_proj.weight", "heads.image_projection.weight"),
        ("text_projection.bias", "heads.text_projection.bias"),
        ("query_tokens", "queries"),
        ("temp", "temperature"),
    ],
)
def test_branch_names(key, name):
    assert branch_name(key) == name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("vision_model.embeddings.class_embedding", "cls_token"),
        ("encoder.layers.7.self_attn.qkv.weight", "blocks.7.attn.qkv.weight"),
        ("encoder.layers.7.layer_norm2.bias", "blocks.7.norm2.bias"),
        ("vision_model.post_layernorm.weight", "norm.weight"),
        ("ln_vision.weight", "norm.weight"),
        ("visual_encoder.blocks.0.attn.q_bias", "blocks.0.attn.q_bias"),
        ("mf2.vision.backbone.cls_token", "cls_token"),
        ("backbone.positions", "positions"),
        ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.weight"),
    ],
)
def test_vision_names(key, name):
    assert vision_name(key) == name


def test_qformer_names_need_no_prefix():
    state = {"layernorm.weight": 1, "encoder.layer.0.intermediate_query.dense.bias": 2}
    assert qformer_names(state) == {"norm.weight": 1, "layers.0.query_feed_forward.up_proj.bias": 2}


def test_known_names_without_a_place():
    assert no_place_in_branch("Qformer.bert.embeddings.position_ids") == "counts positions, no weight"
    assert no_place_in_branch("t5_model.encoder.block.0.layer.0.k.weight") == "language model"
    assert no_place_in_branch("query_tokens") is None
    assert no_place_in_tower("head.fc.weight") == "classifier head"
    assert no_place_in_tower("norm.weight") is None


def test_parts():
    assert part_of("vision.backbone.norm.weight") == "final norm"
    assert part_of("vision.backbone.blocks.0.norm1.weight") == "tower"
    assert part_of("emo_vl.queries") == "queries"
    assert part_of("au_vl.heads.language.norm.weight") == "language"
    assert part_of("au_vl.qformer.layers.0.cross_attention.norm.weight") == "cross attention"
    assert part_of("au_vl.qformer.layers.0.query_feed_forward.norm.weight") == "Q-Former"
    assert part_of("au_vl.qformer.position_embeddings.weight") == "text embeddings"
