"""Logits to named results, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from processing_mf2 import MF2ImageProcessor, MF2Processor, build_tokenizer


AUS, EMOTIONS = ["AU6", "AU12"], ["Neutral", "Happiness", "Sadness"]
OUTPUTS = SimpleNamespace(
    emotion_logits=torch.log(torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])),
    au_logits=torch.logit(torch.tensor([[0.9, 0.4], [0.1, 0.5]])),
)


@pytest.fixture(scope="module")
def processor() -> MF2Processor:
    return MF2Processor(MF2ImageProcessor(), build_tokenizer(), AUS, EMOTIONS)


def test_results_are_named(processor):
    first, second = processor.post_process_face_analysis(OUTPUTS, image_index=[0, 4])
    assert first["emotion"] == "Happiness" and second["emotion"] == "Neutral"
    assert list(first["emotions"]) == EMOTIONS and first["emotions"]["Happiness"] == pytest.approx(0.7)
    unit = first["action_units"]["AU6"]
    assert unit == {"name": "cheek raiser", "probability": pytest.approx(0.9), "threshold": 0.5, "active": True}
    assert first["active_action_units"] == ["AU6"] and second["active_action_units"] == ["AU12"]
    assert (first["image_index"], second["image_index"]) == (0, 4)


def test_what_was_not_predicted_is_absent(processor):
    logits = {"au_logits": OUTPUTS.au_logits.bfloat16(), "emotion_logits": None}
    only_aus = processor.post_process_face_analysis(logits, [0.5, 0.3])
    assert set(only_aus[0]) == {"action_units", "active_action_units"}
    assert only_aus[0]["active_action_units"] == ["AU6", "AU12"]
    only_emotions = processor.post_process_face_analysis({"emotion_logits": np.zeros((1, 3))})
    assert set(only_emotions[0]) == {"emotion", "emotions"}


def test_the_processor_owns_thresholds(processor):
    assert processor.thresholds() == [0.5, 0.5]
    tuned = MF2Processor(MF2ImageProcessor(), processor.tokenizer, AUS, EMOTIONS, au_thresholds=[0.1, 0.2])
    assert tuned.thresholds() == [0.1, 0.2] and tuned.thresholds(0.3) == [0.3, 0.3]
    assert tuned.thresholds({"AU12": 0.9}) == [0.1, 0.9] and tuned.thresholds(np.array([0, 1])) == [0.0, 1.0]
    for wrong in ([0.5], 1.5, {"AU99": 0.5}, {}):
        with pytest.raises(ValueError, match="thresholds: got"):
            tuned.thresholds(wrong)


@pytest.mark.parametrize(
    ("outputs", "index", "named"),
    [
        ({"au_logits": torch.zeros(1, 3)}, None, "au_logits: got shape"),
        ({}, None, "neither emotion_logits nor au_logits"),
        (OUTPUTS, [0], "image_index: got 1, expected 2"),
    ],
)
def test_outputs_that_do_not_fit_are_named(processor, outputs, index, named):
    with pytest.raises(ValueError, match=named):
        processor.post_process_face_analysis(outputs, image_index=index)
