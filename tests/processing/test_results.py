"""Logits to named results, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from processing_mf2.processing_mf2 import named_results, resolve_thresholds


AUS, EMOTIONS = ["AU6", "AU12"], ["Neutral", "Happiness", "Sadness"]
OUTPUTS = SimpleNamespace(
    emotion_logits=torch.log(torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])),
    au_logits=torch.logit(torch.tensor([[0.9, 0.4], [0.1, 0.5]])),
)


def test_named_results():
    first, second = named_results(OUTPUTS, AUS, EMOTIONS, [0.5, 0.5], image_index=[0, 4])
    assert first["emotion"] == "Happiness" and second["emotion"] == "Neutral"
    assert list(first["emotions"]) == EMOTIONS and first["emotions"]["Happiness"] == pytest.approx(0.7)
    unit = first["action_units"]["AU6"]
    assert unit == {"name": "cheek raiser", "probability": pytest.approx(0.9), "threshold": 0.5, "active": True}
    assert first["active_action_units"] == ["AU6"] and second["active_action_units"] == ["AU12"]
    assert (first["image_index"], second["image_index"]) == (0, 4)


def test_what_was_not_predicted_is_absent():
    only_aus = named_results({"au_logits": OUTPUTS.au_logits.bfloat16(), "emotion_logits": None}, AUS, [], [0.5, 0.3])
    assert set(only_aus[0]) == {"action_units", "active_action_units"}
    assert only_aus[0]["active_action_units"] == ["AU6", "AU12"]
    only_emotions = named_results({"emotion_logits": np.zeros((1, 3))}, AUS, EMOTIONS, [0.5, 0.5])
    assert set(only_emotions[0]) == {"emotion", "emotions"}


def test_thresholds():
    assert resolve_thresholds(None, AUS) == [0.5, 0.5]
    assert resolve_thresholds(0.3, AUS, [0.1, 0.2]) == [0.3, 0.3]
    assert resolve_thresholds({"AU12": 0.9}, AUS, [0.1, 0.2]) == [0.1, 0.9]
    with pytest.raises(ValueError, match="thresholds: got"):
        resolve_thresholds({}, AUS)
    assert resolve_thresholds(np.array([0, 1]), AUS) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ([0.5], r"thresholds: got \[0\.5\], expected 2 numbers .* of action_units \['AU6', 'AU12'\]"),
        (1.5, "expected 2 numbers from 0 to 1"),
        ({"AU99": 0.5}, r"thresholds: got \['AU99'\]"),
    ],
)
def test_bad_thresholds_are_named(thresholds, message):
    with pytest.raises(ValueError, match=message):
        resolve_thresholds(thresholds, AUS)


def test_another_label_set_is_an_error():
    with pytest.raises(ValueError, match=r"au_logits: got shape \(2, 2\), expected \(batch, 3\).*for_model"):
        named_results(OUTPUTS, [*AUS, "AU1"], EMOTIONS, [0.5] * 3)
    with pytest.raises(ValueError, match="neither emotion_logits nor au_logits"):
        named_results({}, AUS, EMOTIONS, [0.5, 0.5])
    with pytest.raises(ValueError, match="image_index: got 1, expected 2"):
        named_results(OUTPUTS, AUS, EMOTIONS, [0.5, 0.5], image_index=[0])
