import json

import pytest
from conftest import tiny_config
from exp_blip_models import small_config
from huggingface_hub.errors import StrictDataclassError

from configuration_mf2.baselines import CAPTION_SETS, ExpBlipCaptionerConfig, ExpBlipConfig
from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import LABEL_SETS
from mf2face.captions.styles import STYLES
from processing_mf2.processing_mf2 import MF2Processor


def test_the_shape_is_blip2s_and_a_processor_fits_every_size():
    for size in ExpBlipConfig.sizes:
        config = ExpBlipConfig.from_size(size)
        processor = MF2Processor.for_model(config)
        assert processor.emotion_max_length == config.emotion_max_length == 128
        assert config.emo_config.eos_token_id == processor.tokenizer.sep_token_id
        assert not config.use_au_branch
    base = ExpBlipConfig.from_size("base").emo_config
    assert (base.num_query_tokens, base.hidden_size, base.cross_attention_frequency) == (32, 768, 2)
    giant = ExpBlipConfig.from_size("giant").vision_config
    assert (giant.backbone_kwargs["depth"], giant.hidden_size) == (39, 1408), "the supplement's Table 9"


def test_there_is_a_caption_set_for_every_caption_of_the_style():
    assert {f"exp_blip_{name}" for name in CAPTION_SETS} == set(STYLES["exp_blip"])


def test_how_wide_the_features_are():
    assert small_config(features="vision").feature_size == 32
    assert small_config(features="qformer").feature_size == 32
    assert small_config(features="qformer", query_pooling="concat").feature_size == 3 * 32


def test_what_cannot_be_built_is_refused():
    cases = {
        "caption_set": {"caption_set": "both"},
        "features": {"features": "text"},
        "query_pooling": {"query_pooling": "max"},
        "use_au_branch: got True and True": {"use_au_branch": True},
        "use_au_branch: got False and True": {"use_emo_branch": False, "use_au_branch": True},
        "did you mean 'caption_set'": {"captionset": "au"},
        "label_set": {"label_set": "no such corpus"},
    }
    for message, fields in cases.items():
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            ExpBlipConfig(**fields)


def test_a_config_is_the_same_after_saving_and_no_other_systems(tmp_path):
    config = small_config(caption_set="mix", features="vision", frozen_features=False, au_thresholds=[0.4, 0.5, 0.6])
    config.save_pretrained(tmp_path / "ours")
    again = ExpBlipConfig.from_pretrained(tmp_path / "ours")
    assert json.loads(json.dumps(again.to_dict())) == json.loads(json.dumps(config.to_dict()))
    assert again.to_dict()["auto_map"] == {
        "AutoConfig": "baselines_exp_blip.ExpBlipConfig",
        "AutoModel": "baselines_exp_blip.ExpBlipForFaceAnalysis",
        "AutoModelForPreTraining": "baselines_exp_blip.ExpBlipForPreTraining",
    }
    other = ExpBlipConfig.from_pretrained(tmp_path / "ours", label_set="disfa")
    assert tuple(other.action_units) == LABEL_SETS["disfa"].action_units and other.au_thresholds is None
    tiny_config().save_pretrained(tmp_path / "mf2")
    for kind, folder, found in ((ExpBlipConfig, "mf2", "mf2"), (MF2Config, "ours", "exp_blip")):
        with pytest.raises(ValueError, match=f"is a checkpoint of '{found}', expected one of '{kind.model_type}'"):
            kind.from_pretrained(tmp_path / folder)


def test_a_captioners_config_keeps_the_tower_and_stage_one(tmp_path):
    stage_one = small_config("conv")
    config = ExpBlipCaptionerConfig(tower_config=stage_one.vision_config.to_dict(), exp_blip=stage_one.to_dict())
    config.save_pretrained(tmp_path)
    again = ExpBlipCaptionerConfig.from_pretrained(tmp_path)
    assert again.tower_config.backbone == "conv" and again.tower_config.hidden_size == 32
    assert ExpBlipConfig.from_dict(again.exp_blip).action_units == ["AU1", "AU6", "AU25"]
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModelForImageTextToText"].endswith(
        "ExpBlipTowerCaptioner"
    )
