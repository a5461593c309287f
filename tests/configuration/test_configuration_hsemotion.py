import pytest
from huggingface_hub.errors import StrictDataclassError

from configuration_mf2.baselines import AFFECTNET_ORDER, HSEmotionConfig
from configuration_mf2.facs import LABEL_SETS


def test_the_releases_sizes():
    found = [HSEmotionConfig.from_size(size) for size in ("base", "b2")]
    assert [(config.backbone, config.image_size) for config in found] == [
        ("tf_efficientnet_b0", 224),
        ("tf_efficientnet_b2", 260),
    ]


def test_released_names_are_affectnets():
    assert set(AFFECTNET_ORDER) == set(LABEL_SETS["affectnet"].emotions)


def test_a_model_without_any_head_is_refused():
    with pytest.raises((ValueError, StrictDataclassError), match="'disfa' has none, and there is no AU head"):
        HSEmotionConfig(label_set="disfa", use_au_head=False)
    with pytest.raises((ValueError, StrictDataclassError), match="drop_rate: got 1"):
        HSEmotionConfig(drop_rate=1)
