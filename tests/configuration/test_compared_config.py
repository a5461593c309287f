import json
import math

import pytest
from huggingface_hub.errors import StrictDataclassError

from configuration_mf2.baselines import HSEmotionConfig, MEGraphAUConfig, VLFAUConfig
from configuration_mf2.facs import LABEL_SETS
from processing_mf2.processing_mf2 import MF2Processor


CONFIGS = (VLFAUConfig, MEGraphAUConfig, HSEmotionConfig)


@pytest.mark.parametrize("kind", CONFIGS)
def test_labels_follow_from_the_label_set_and_from_what_is_named(kind):
    config = kind.from_size("tiny")
    assert tuple(config.action_units) == LABEL_SETS["mfa"].action_units
    assert config.id2label == dict(enumerate(LABEL_SETS["mfa"].emotions))
    again = kind.from_dict(config.to_dict(), label_set="disfa")
    assert tuple(again.action_units) == LABEL_SETS["disfa"].action_units and again.emotions == []
    assert again.id2label == dict(enumerate(again.action_units))
    assert kind(emotions=[]).emotions == []


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_no_configuration_is_refused(kind):
    cases = {
        "au_class_weights: got nan": {"au_class_weights": [math.nan] * 12},
        "au_class_weights: got 3 values": {"au_class_weights": [1.0] * 3},
        "au_thresholds: got 1.5": {"au_thresholds": [1.5] * 12},
        "loss_weights: got \\['itc_emo'\\]": {"loss_weights": {"itc_emo": 1.0}},
        "did you mean 'emotions'": {"emotion": []},
        "emotions: got \\['Neutral'\\]": {"emotions": ["Neutral"]},
        "action_units: got \\['AU99'\\]": {"action_units": ["AU99", "AU1", "AU2", "AU4", "AU6"]},
        "image_size: got 0": {"image_size": 0},
    }
    for message, fields in cases.items():
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            kind(**fields)
    with pytest.raises((ValueError, StrictDataclassError), match="size: got 'huge'"):
        kind.from_size("huge")


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_is_the_same_after_saving_and_loading(kind, tmp_path):
    config = kind.from_size("tiny", au_class_weights=[0.5] * 12)
    config.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    ours, theirs = config.to_dict(), again.to_dict()
    assert json.loads(json.dumps(ours)) == json.loads(json.dumps(theirs))
    other = next(config for config in CONFIGS if config is not kind)
    with pytest.raises((ValueError, StrictDataclassError), match=f"is a checkpoint of '{kind.model_type}'"):
        other.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_our_processor_fits_every_system(kind):
    config = kind.from_size("tiny")
    processor = MF2Processor.for_model(config)
    assert processor.image_processor.size["height"] == config.image_size
    assert processor.action_units == config.action_units
    assert "key_au_prompt_length" not in config.to_dict()
    if kind is VLFAUConfig:
        assert config.eos_token_id == processor.tokenizer.sep_token_id
        assert processor.emotion_max_length == config.global_max_length


def test_emotions_alone_are_enough_for_hsemotion_only():
    assert HSEmotionConfig(label_set="raf_db").action_units == []
    with pytest.raises((ValueError, StrictDataclassError), match="action_units: got none from label_set 'raf_db'"):
        VLFAUConfig(label_set="raf_db")
