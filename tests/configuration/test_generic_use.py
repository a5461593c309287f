"""What generic code expects of a configuration."""

import pytest
from transformers import DynamicCache

from configuration_mf2 import MF2Config, MF2QFormerConfig, MF2VisionConfig
from configuration_mf2.baselines import HSEmotionConfig


@pytest.mark.parametrize("kind", [MF2VisionConfig, HSEmotionConfig])
def test_one_level_stands_for_three_channels(kind, tmp_path):
    config = kind(image_mean=0.4, image_std=0.2)
    assert (config.image_mean, config.image_std) == ([0.4] * 3, [0.2] * 3)
    config.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_the_parts_of_a_saved_model_load_by_their_own_classes(tmp_path):
    config = MF2Config.from_size("tiny")
    config.save_pretrained(tmp_path)
    assert MF2VisionConfig.from_pretrained(tmp_path).to_dict() == config.vision_config.to_dict()
    assert MF2QFormerConfig.from_pretrained(tmp_path).to_dict() == config.emo_config.to_dict()


def test_one_vocabulary_is_of_both_branches():
    config = MF2Config.from_size("tiny")
    config.vocab_size = 99
    assert config.emo_config.vocab_size == config.au_config.vocab_size == config.vocab_size == 99


def test_a_cache_has_the_layers_of_the_first_branch():
    assert len(DynamicCache(config=MF2Config.from_size("tiny")).layers) == 4
