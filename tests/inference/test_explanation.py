"""`explain`: the pipeline's own answers, maps that lie on the face wherever it is in the image, clear refusals."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from analysis_media import FakeDetector, embedded, face_at

import mf2face
from mf2face.data.synthetic.faces import draw_example
from mf2face.inference.explain.explainer import Explainer, _tidy, explain
from mf2face.inference.explain.explanation import EMOTION, Explanation
from mf2face.inference.model import load_model
from mf2face.training.finetuning import adapt
from modeling_mf2 import MF2ForFaceAnalysis


@pytest.fixture(scope="module")
def turned() -> tuple[Explanation, np.ndarray, np.ndarray]:
    """A face that was turned and moved in a larger image, and its pixels and landmarks there."""
    pixels, landmarks = draw_example(22, seed=2, size=160)
    move = cv2.getRotationMatrix2D((80, 80), 20, 1.3)
    move[:, 2] += (140, 60)
    image = cv2.warpAffine(pixels, move, (420, 340))
    points = landmarks @ move[:, :2].T + move[:, 2]
    return explain(image, model=embedded(), landmarks=points, sentences=False), image, points


def test_answers_are_the_pipeline_s(turned) -> None:
    found, image, points = turned
    expected = embedded().pipeline({"image": image, "landmarks": points})[0]
    assert found.emotion == expected["emotion"]
    for name, unit in expected["action_units"].items():
        assert found.action_units[name]["probability"] == pytest.approx(unit["probability"], abs=1e-4)
        assert found.action_units[name]["threshold"] == unit["threshold"]
    assert set(found.active) == set(expected["active_action_units"]) and found.sentences == {}
    assert found.about["synthetic"] is True


@pytest.mark.parametrize("task", ["dfn", "lora"])
def test_an_adapter_s_own_answer_is_explained(turned, task: str, tmp_path) -> None:
    _, image, points = turned
    base = Path(mf2face.__file__).parents[1] / "model_cards" / "mf2-tiny-synthetic"
    adapted = adapt(MF2ForFaceAnalysis.from_pretrained(base), task)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "classifiers" not in name:
            torch.nn.init.normal_(parameter, std=0.2)  # an untrained one changes nothing
    adapted.save_pretrained(tmp_path)
    embedded().pipeline.processor.save_pretrained(tmp_path)
    model = load_model(adapter=tmp_path)
    expected = model.pipeline({"image": image, "landmarks": points})[0]["action_units"]
    usual = embedded().pipeline({"image": image, "landmarks": points})[0]["action_units"]
    assert max(abs(expected[name]["probability"] - usual[name]["probability"]) for name in expected) > 0.01
    found = explain(image, model=model, landmarks=points, sentences=False, occlusion=True)
    for name, unit in expected.items():
        assert found.action_units[name]["probability"] == pytest.approx(unit["probability"], abs=1e-4)
        assert found.crop_map(name).sum() == pytest.approx(1, abs=0.05)


def test_maps_lie_on_the_turned_face(turned) -> None:
    found, _, points = turned
    heat = found.crop_map("AU12")
    assert heat.shape == found.crop.shape[:2] and heat.min() >= 0 and heat.sum() == pytest.approx(1, abs=0.05)
    middle = (np.mgrid[: heat.shape[0], : heat.shape[1]] * heat).sum((1, 2))[::-1] + 0.5
    back = np.linalg.inv(found.matrix)
    mouth = points[[48, 54]].mean(0)
    away = np.linalg.norm(middle @ back[:2, :2].T + back[:2, 2] - mouth)
    assert away < 0.35 * np.linalg.norm(points[48] - points[54])
    with pytest.raises(ValueError, match="got 'AU99', expected one that has a map"):
        found.crop_map("AU99")


def test_the_crop_is_what_the_model_saw(turned) -> None:
    found, image, points = turned
    seen = embedded().pipeline.processor.image_processor(image, points, return_tensors="pt")["pixel_values"][0]
    shown = torch.from_numpy(found.crop).permute(2, 0, 1) / 255 * 2 - 1
    assert (seen - shown).abs().max() < 0.01


def test_sentences_and_the_occlusion_check_come_when_asked() -> None:
    pixels, landmarks = draw_example(22, seed=2)
    found = mf2face.explain(pixels, model=embedded(), landmarks=landmarks, occlusion=True)
    assert set(found.sentences) == {"emotion", "key_au", "au"} and found.sentence("AU12").endswith(".")
    assert found.sentence(EMOTION)[0].isupper() and found.place("AU12")
    lips = found.occlusion["AU12"]
    assert lips.probability == pytest.approx(found.action_units["AU12"]["probability"], abs=1e-4)
    assert len(lips.controls) == 3 and list(found.occlusion) == list(found.action_units)


def test_the_largest_face_is_explained_and_none_is_an_error() -> None:
    image = np.full((120, 200, 3), 128, np.uint8)
    detector = FakeDetector([[face_at(5, 5, 30), face_at(60, 10, 90)]])
    assert explain(image, model=embedded(), detector=detector, sentences=False).box[0] == 60
    with pytest.raises(ValueError, match="no face was found"):
        explain(image, model=embedded(), detector=FakeDetector([]))
    with pytest.raises(ValueError, match="got several"):
        explain(image, model=embedded(), aligned=True, detector=detector)


def test_a_model_without_queries_and_one_without_au_branch_are_refused() -> None:
    other = SimpleNamespace(pipeline=SimpleNamespace(model=torch.nn.Linear(1, 1)), name="other")
    with pytest.raises(ValueError, match="got Linear, which has no queries"):
        Explainer(other)
    with pytest.raises(ValueError, match="engine 'onnx', expected 'torch'"):
        Explainer(SimpleNamespace(pipeline=SimpleNamespace(model=torch.nn.Linear(1, 1)), name="face", engine="onnx"))
    config = SimpleNamespace(use_au_branch=False)
    model = SimpleNamespace(mf2=SimpleNamespace(branch_names=("emo",)), config=config)
    with pytest.raises(ValueError, match="face has no AU branch"):
        Explainer(SimpleNamespace(pipeline=SimpleNamespace(model=model), name="face"), occlusion=True)


def test_sentences_are_set_as_people_set_them() -> None:
    written = {"au": {"AU1": "key : au1 ( inner brow ) rests . it rests ."}}
    assert _tidy(written) == {"au": {"AU1": "Key: AU1 (inner brow) rests. It rests."}}
