"""NAME=VALUE: read as JSON or a word, refused where no such field is."""

import pytest

from configuration_mf2 import MF2Config
from configuration_mf2.baselines import VLFAUConfig
from mf2face.training.options import read_options


def test_values_are_json_or_words() -> None:
    given = ["use_llga=False", "hidden_size=64", "backbone=resnet18", 'loss_weights={"au": 0.5}', "au_thresholds=None"]
    assert read_options("model_options", given, VLFAUConfig) == {
        **{"use_llga": False, "hidden_size": 64, "backbone": "resnet18", "loss_weights": {"au": 0.5}},
        "au_thresholds": None,
    }


@pytest.mark.parametrize("given", [["hidden"], ["hiden_size=3"], ["hidden_size=3", "hidden_size=4"], ["num_beams=3"]])
def test_what_is_no_field_is_refused_with_the_fields(given: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"model_options: got '{given[-1]}'.*VLFAUConfig: .*hidden_size"):
        read_options("model_options", given, VLFAUConfig, hidden={"num_beams"})


def test_a_field_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="of MF2Config"):
        read_options("model_options", ["use_llga=False"], MF2Config)
