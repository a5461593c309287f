"""Configs of the compared systems: labels, bad settings, files, and a processor for each."""

import json
import math

import pytest
from conftest import tiny_config
from exp_blip_models import small_config
from huggingface_hub.errors import StrictDataclassError

from configuration_mf2.baselines import (
    ABLATIONS,
    AFFECTNET_ORDER,
    CAPTION_SETS,
    ExpBlipCaptionerConfig,
    ExpBlipConfig,
    HSEmotionConfig,
    MEGraphAUConfig,
    VLFAUConfig,
)
from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import LABEL_SETS
from mf2face.captions.styles import STYLES
from processing_mf2.processing_mf2 import MF2Processor


CONFIGS = (VLFAUConfig, MEGraphAUConfig, HSEmotionConfig)
SHARED = [
    ("au_class_weights: got nan", {"au_class_weights": [math.nan] * 12}),
    ("au_class_weights: got 3 values", {"au_class_weights": [1.0] * 3}),
    ("au_thresholds: got 1.5", {"au_thresholds": [1.5] * 12}),
    ("loss_weights: got \\['itc_emo'\\]", {"loss_weights": {"itc_emo": 1.0}}),
    ("did you mean 'emotions'", {"emotion": []}),
    ("emotions: got \\['Neutral'\\]", {"emotions": ["Neutral"]}),
    ("action_units: got \\['AU99'\\]", {"action_units": ["AU99", "AU1", "AU2", "AU4", "AU6"]}),
    ("image_size: got 0", {"image_size": 0}),
]
WRONG = {
    VLFAUConfig: [
        *SHARED,
        ("action_units: got none from label_set 'raf_db'", {"label_set": "raf_db"}),
        ("use_llga: got True with use_marl=False", {"use_marl": False}),
        *(("num_beams: got 0", {"num_beams": 0}), ("local_max_length: got 2", {"local_max_length": 2})),
        ("reduction: got 1024", {"reduction": 1024}),
    ],
    MEGraphAUConfig: [
        *SHARED,
        ("neighbors: got 13, expected 1 to 12", {"neighbors": 13}),
        ("hidden_size: got 7, expected an even number", {"hidden_size": 7}),
        ("num_edge_layers: got 0", {"num_edge_layers": 0}),
    ],
    HSEmotionConfig: [
        *SHARED,
        ("'disfa' has none, and there is no AU head", {"label_set": "disfa", "use_au_head": False}),
        ("drop_rate: got 1", {"drop_rate": 1}),
    ],
    ExpBlipConfig: [
        *(("caption_set", {"caption_set": "both"}), ("features", {"features": "text"})),
        *(("query_pooling", {"query_pooling": "max"}), ("label_set", {"label_set": "no such corpus"})),
        ("use_au_branch: got True and True", {"use_au_branch": True}),
        ("use_au_branch: got False and True", {"use_emo_branch": False, "use_au_branch": True}),
        ("geometry_token, shape_weight: got False and 2", {"shape_weight": 2}),
        ("did you mean 'caption_set'", {"captionset": "au"}),
    ],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_configuration_is_refused(kind):
    for message, fields in WRONG[kind]:
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            kind(**fields)
    with pytest.raises((ValueError, StrictDataclassError), match="size: got 'huge'"):
        kind.from_size("huge")


def as_file(config):
    return json.loads(json.dumps(config.to_dict()))


@pytest.mark.parametrize("kind", CONFIGS)
def test_labels_follow_the_label_set_and_a_file_and_a_processor_keep_them(kind, tmp_path):
    config = kind.from_size("tiny", au_class_weights=[0.5] * 12)
    assert tuple(config.action_units) == LABEL_SETS["mfa"].action_units
    assert config.id2label == dict(enumerate(LABEL_SETS["mfa"].emotions))
    disfa = kind.from_dict(config.to_dict(), label_set="disfa")
    assert tuple(disfa.action_units) == LABEL_SETS["disfa"].action_units and disfa.emotions == []
    assert disfa.id2label == dict(enumerate(disfa.action_units)) and kind(emotions=[]).emotions == []
    config.save_pretrained(tmp_path)
    assert as_file(kind.from_pretrained(tmp_path)) == as_file(config) and "key_au_prompt_length" not in as_file(config)
    other = next(config for config in CONFIGS if config is not kind)
    with pytest.raises((ValueError, StrictDataclassError), match=f"is a checkpoint of '{kind.model_type}'"):
        other.from_pretrained(tmp_path)
    processor = MF2Processor.for_model(config)
    assert processor.image_processor.size["height"] == config.image_size
    assert processor.action_units == config.action_units


def test_vl_fau_s_table_4_and_words():
    rows = [VLFAUConfig.from_size("tiny", **switches) for switches in ABLATIONS.values()]
    whole = [True, True, True]
    expected = [[False] * 3, [True, False, False], [True, True, False], [True, False, True], whole]
    assert [[row.use_marl, row.use_llga, row.use_glga] for row in rows] == expected
    config = VLFAUConfig.from_size("tiny")
    processor = MF2Processor.for_model(config)
    assert config.eos_token_id == processor.tokenizer.sep_token_id
    assert processor.emotion_max_length == config.global_max_length
    with pytest.raises(ValueError, match="vocab_size: the tokenizer has"):
        MF2Processor.for_model(VLFAUConfig(vocab_size=100, bos_token_id=5))


def test_defaults_that_a_class_derives():
    assert MEGraphAUConfig().loss_weights == {"edge": 0.05}
    assert MEGraphAUConfig(loss_weights={"edge": 0.01, "au": 2.0}).loss_weights == {"edge": 0.01, "au": 2.0}
    assert HSEmotionConfig(label_set="raf_db").action_units == []
    assert set(AFFECTNET_ORDER) == set(LABEL_SETS["affectnet"].emotions)
    assert {f"exp_blip_{name}" for name in CAPTION_SETS} == set(STYLES["exp_blip"])
    for features, pooling, size in (("vision", "mean", 32), ("qformer", "mean", 32), ("qformer", "concat", 3 * 32)):
        assert small_config(features=features, query_pooling=pooling).feature_size == size


@pytest.mark.parametrize("size", ExpBlipConfig.sizes)
def test_exp_blip_has_blip2s_shape_and_a_processor_for_every_size(size):
    config = ExpBlipConfig.from_size(size)
    processor = MF2Processor.for_model(config)
    assert processor.emotion_max_length == config.emotion_max_length == 128 and not config.use_au_branch
    assert config.emo_config.eos_token_id == processor.tokenizer.sep_token_id
    if size == "giant":
        assert (config.emo_config.num_query_tokens, config.emo_config.cross_attention_frequency) == (32, 2)
        assert config.vision_config.backbone_kwargs["depth"] == 39, "the supplement's Table 9"


def test_exp_blip_s_files_are_read_again_and_are_no_other_systems(tmp_path):
    config = small_config(caption_set="mix", features="vision", frozen_features=False, au_thresholds=[0.4, 0.5, 0.6])
    config.save_pretrained(tmp_path / "ours")
    again = ExpBlipConfig.from_pretrained(tmp_path / "ours")
    assert as_file(again) == as_file(config)
    assert again.to_dict()["auto_map"]["AutoModel"] == "baselines_exp_blip.ExpBlipForFaceAnalysis"
    disfa = ExpBlipConfig.from_pretrained(tmp_path / "ours", label_set="disfa")
    assert tuple(disfa.action_units) == LABEL_SETS["disfa"].action_units and disfa.au_thresholds is None
    tiny_config().save_pretrained(tmp_path / "mf2")
    for kind, folder, found in ((ExpBlipConfig, "mf2", "mf2"), (MF2Config, "ours", "exp_blip")):
        with pytest.raises(ValueError, match=f"is a checkpoint of '{found}', expected one of '{kind.model_type}'"):
            kind.from_pretrained(tmp_path / folder)
    stage_one = small_config("conv")
    config = ExpBlipCaptionerConfig(tower_config=stage_one.vision_config.to_dict(), exp_blip=stage_one.to_dict())
    config.save_pretrained(tmp_path / "captioner")
    again = ExpBlipCaptionerConfig.from_pretrained(tmp_path / "captioner")
    assert again.tower_config.backbone == "conv" and again.tower_config.hidden_size == 32
    assert ExpBlipConfig.from_dict(again.exp_blip).action_units == ["AU1", "AU6", "AU25"]
    content = json.loads((tmp_path / "captioner" / "config.json").read_text())
    assert content["auto_map"]["AutoModelForImageTextToText"].endswith("ExpBlipTowerCaptioner")
