"""Explanations: attention that lies on the face, regions that are hidden, and the pipeline's own answers."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from analysis_media import FakeDetector, embedded, face_at
from conftest import pick, shake, tiny_batch, tiny_config

import mf2face
from configuration_mf2.facs import CANONICAL_FACE
from mf2face.data.synthetic.faces import draw_example
from mf2face.inference.explain.explainer import (
    Explainer,
    attention_maps,
    control_masks,
    explain,
    hide,
    maps_of,
    occlusion_check,
    polygon_mask,
    reading_weights,
    recorded_attention,
    region_corners,
)
from mf2face.inference.explain.face_page import EMOTION, Explanation, face_outline, to_pixels
from mf2face.inference.model import load_model
from mf2face.training.finetuning import adapt
from modeling_mf2.modeling_mf2 import MF2ForFaceAnalysis, MF2ForImageClassification
from modeling_mf2.pretraining import MF2ForPreTraining
from modeling_mf2.regions import MF2Regions


def _model(kind=MF2ForFaceAnalysis, **fields):
    """A model and a batch of its inputs."""
    model = shake(kind(tiny_config(**fields))).eval()
    return model, pick(tiny_batch(model.config, 2), "pixel_values", "landmarks")


@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_maps_are_the_eager_weights_and_the_model_stays_as_it_was(tower: str) -> None:
    model, inputs = _model(tower=tower)
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        before = model(**inputs)
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    maps, answer = attention_maps(model, **inputs)
    assert torch.equal(answer.au_logits, before.au_logits)
    assert torch.equal(answer.emotion_logits, before.emotion_logits)
    assert model.config._attn_implementation == "sdpa"
    assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} <= {"sdpa"}
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(**inputs, output_attentions=True)
    flat = [layer.flatten(0, 1) for layer in eager.au_cross_attentions]
    expected = maps_of(model.config, inputs["landmarks"], flat, list(eager.emo_cross_attentions))
    for name in ("units", "face"):
        assert torch.allclose(getattr(maps, name), getattr(expected, name), atol=1e-5)


def test_shares_sum_to_one_and_lie_in_the_region_alone() -> None:
    model, inputs = _model(kind=MF2ForPreTraining)
    maps, _ = attention_maps(model, **inputs)
    assert maps.units.shape == (2, 3, 4, 4) and maps.face.shape == (2, 4, 4)
    assert torch.allclose(maps.units.sum((-1, -2)), torch.ones(2, 3), atol=1e-5)
    assert torch.allclose(maps.face.sum((-1, -2)), torch.ones(2), atol=1e-5)
    read = reading_weights(model.config, inputs["landmarks"], 4).amax(2).unflatten(-1, (4, 4))
    assert (maps.units[read == 0] == 0).all() and (maps.units[read > 0.01] > 0).all()
    assert (read == 0).any((-1, -2)).all(), "the test means something"


def test_the_weights_are_those_that_the_model_reads_its_regions_with() -> None:
    config = tiny_config()
    regions = MF2Regions(config)
    torch.nn.init.normal_(regions.positions)
    landmarks, tokens = tiny_batch(config, 2)["landmarks"], torch.randn(2, 16, 32)
    expected = regions(tokens, landmarks) - regions.positions
    assert torch.allclose(reading_weights(config, landmarks, 4) @ tokens[:, None], expected, atol=1e-5)


def test_all_weight_on_one_token_is_a_bump_at_its_landmark() -> None:
    """AU25's second centre is point 57, below the lower lip; with one point a centre, token 1 is read there."""
    config = tiny_config(region_grid=1, vision={"image_size": 224, "patch_size": 16})
    landmarks = torch.tensor(CANONICAL_FACE)[None] * 224
    weights = torch.zeros(3, 4, 2, 2)
    weights[..., 0], weights[2, ..., 0], weights[2, ..., 1] = 1, 0, 1
    maps = maps_of(config, landmarks, [weights], [])
    heat = to_pixels(maps.units[0, 2].numpy(), 224)
    down, right = np.unravel_index(heat.argmax(), heat.shape)
    assert np.hypot(right + 0.5 - landmarks[0, 57, 0], down + 0.5 - landmarks[0, 57, 1]) <= 8, "half a patch"
    assert heat.sum() == pytest.approx(1, abs=1e-5) and heat.min() >= 0
    rows, columns = np.mgrid[:224, :224] + 0.5
    assert (heat * rows).sum() == pytest.approx(float(landmarks[0, 57, 1]), abs=0.5)
    assert (heat * columns).sum() == pytest.approx(float(landmarks[0, 57, 0]), abs=0.5)
    assert maps.face is None


def test_corners_are_squares_around_the_centres() -> None:
    config = tiny_config()
    landmarks = torch.tensor(CANONICAL_FACE)[None] * 64
    corners = region_corners(config, landmarks)
    assert corners.shape == (1, 3, 2, 4, 2)
    inner = landmarks[0, 42, 0] - landmarks[0, 39, 0]
    sides = (corners - corners.roll(1, dims=3)).norm(dim=-1)
    assert torch.allclose(sides, (config.region_window * inner).expand_as(sides), atol=1e-4)
    assert torch.allclose(corners[0, 2].mean(1), landmarks[0, [51, 57]], atol=1e-4)


def test_without_a_branch_its_maps_are_absent_and_other_models_are_refused() -> None:
    model, inputs = _model(use_au_branch=False)
    maps, _ = attention_maps(model, **inputs)
    assert maps.units is None and maps.corners is None and maps.face is not None
    with pytest.raises(ValueError, match="got Linear, which has no queries"):
        attention_maps(torch.nn.Linear(2, 2), torch.zeros(1, 68, 2))
    classifier, inputs = _model(kind=MF2ForImageClassification)
    assert attention_maps(classifier, **inputs)[0].units is not None


def test_hooks_are_removed_when_the_model_fails() -> None:
    model, _ = _model()
    branch = model.mf2.branch("emo")
    with pytest.raises(RuntimeError), recorded_attention(branch):
        raise RuntimeError
    assert not any(module._forward_hooks for module in branch.modules())


CONFIG = tiny_config(vision={"image_size": 112})
FACE = torch.tensor(CANONICAL_FACE) * 112


def _masks() -> dict[str, np.ndarray]:
    corners = region_corners(CONFIG, FACE[None])[0].numpy()
    return {name: polygon_mask(corners[place], 112) for place, name in enumerate(CONFIG.action_units)}


class Looker(torch.nn.Module):
    """Is sure of AU25 by the brightness of AU25's region, and of the others by nothing."""

    config = CONFIG

    def __init__(self) -> None:
        super().__init__()
        self.region, self.batches = torch.from_numpy(_masks()["AU25"]), []

    def forward(self, pixel_values: torch.Tensor, landmarks: torch.Tensor) -> SimpleNamespace:
        assert len(pixel_values) == len(landmarks)
        self.batches.append(len(pixel_values))
        bright = pixel_values[:, :, self.region].mean((1, 2))
        return SimpleNamespace(au_logits=torch.stack([0 * bright, 0 * bright, bright], dim=1))


def test_hiding_what_a_decision_stands_on_takes_it_away_and_hiding_elsewhere_does_not() -> None:
    model, crop = Looker(), torch.zeros(3, 112, 112)
    crop[:, model.region] = 4.0
    found = occlusion_check(model, crop, FACE, batch_size=5)
    lips = found["AU25"]
    assert lips.probability == pytest.approx(0.982, abs=1e-3)
    assert lips.probability - lips.hidden > 0.3 and np.mean(lips.controls) == pytest.approx(lips.probability, abs=1e-6)
    assert found["AU1"].hidden == found["AU1"].probability == 0.5
    assert max(model.batches) <= 6 and list(found) == CONFIG.action_units
    assert "region hidden: 0.98 → " in lips.text() and "elsewhere" in lips.text()


def test_controls_have_the_region_s_shape_and_none_of_its_pixels() -> None:
    face = polygon_mask([face_outline(FACE.numpy())], 112)
    assert face.sum() > 2500 and face[60, 56] and not face[5, 5]
    for name, mask in _masks().items():
        controls = control_masks(mask, face)
        assert controls, name
        for control in controls:
            assert control.sum() == mask.sum() and not (control & mask).any()
            assert (control & face).sum() >= 0.5 * mask.sum()
    assert control_masks(np.ones((112, 112), bool), face) == []


def test_only_the_mask_changes_and_takes_the_face_s_mean() -> None:
    crop, mask = torch.rand(3, 112, 112), _masks()["AU6"]
    face = polygon_mask([face_outline(FACE.numpy())], 112)
    hidden = hide(crop, mask, face)
    assert torch.equal(hidden[:, ~torch.from_numpy(mask)], crop[:, ~torch.from_numpy(mask)])
    expected = crop[:, torch.from_numpy(face & ~mask)].mean(1)
    assert torch.allclose(hidden[:, torch.from_numpy(mask)], expected[:, None].expand(-1, mask.sum()))


def test_without_au_branch_nothing_is_hidden() -> None:
    model = Looker()
    model.config = tiny_config(use_au_branch=False)
    with pytest.raises(ValueError, match="no AU branch"):
        occlusion_check(model, torch.zeros(3, 112, 112), FACE)


@pytest.fixture(scope="module")
def turned() -> tuple[Explanation, np.ndarray, np.ndarray]:
    """A face that was turned and moved in a larger image, and its pixels and landmarks there."""
    pixels, landmarks = draw_example(22, seed=2, size=160)
    move = cv2.getRotationMatrix2D((80, 80), 20, 1.3)
    move[:, 2] += (140, 60)
    image = cv2.warpAffine(pixels, move, (420, 340))
    points = landmarks @ move[:, :2].T + move[:, 2]
    return explain(image, model=embedded(), landmarks=points, sentences=False), image, points


@pytest.mark.parametrize("task", ["dfn", "lora"])
def test_an_adapter_s_own_answer_is_explained(turned, task: str, tmp_path) -> None:
    _, image, points = turned
    base = Path(mf2face.__file__).parents[1] / "model_cards" / "mf2-tiny-rendered"
    adapted = adapt(MF2ForFaceAnalysis.from_pretrained(base), task)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "classifiers" not in name:
            torch.nn.init.normal_(parameter, std=0.2)  # an untrained one changes nothing
    adapted.save_pretrained(tmp_path)
    embedded().pipeline.processor.save_pretrained(tmp_path)
    model = load_model(adapter=tmp_path)
    answer = model.pipeline({"image": image, "landmarks": points})[0]
    expected = answer["action_units"]
    usual = embedded().pipeline({"image": image, "landmarks": points})[0]["action_units"]
    assert max(abs(expected[name]["probability"] - usual[name]["probability"]) for name in expected) > 0.01
    found = explain(image, model=model, landmarks=points, sentences=False, occlusion=True)
    assert found.emotion == answer["emotion"] and set(found.active) == set(answer["active_action_units"])
    assert found.sentences == {} and found.about["synthetic"] is True
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
    with pytest.raises(ValueError, match="name: got 'AU99'"):
        found.crop_map("AU99")
    beside = dataclasses.replace(found, grids={"AU12": np.eye(14)[:1].T @ np.eye(14)[:1]})
    assert found.place("AU12") != "outside the face" == beside.place("AU12"), "a peak in the crop's corner"


def test_the_crop_is_what_the_model_saw_in_colour(turned) -> None:
    found, image, points = turned
    prepare, colour = (
        embedded().pipeline.processor.image_processor,
        {"do_grayscale": False, "normalize_per_image": False},
    )
    seen = prepare(image, points, return_tensors="pt", **colour)["pixel_values"][0]
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
    def refused(match: str, model: object, **settings: object) -> None:
        with pytest.raises(ValueError, match=match):
            Explainer(SimpleNamespace(pipeline=SimpleNamespace(model=model), name="face"), **settings)

    refused("got Linear, which has no queries", torch.nn.Linear(1, 1))
    mf2 = SimpleNamespace(branch_names=("emo",))
    refused(
        "face has no AU branch", SimpleNamespace(mf2=mf2, config=SimpleNamespace(use_au_branch=False)), occlusion=True
    )
    with pytest.raises(ValueError, match="engine 'onnx'"):
        Explainer(SimpleNamespace(pipeline=SimpleNamespace(model=torch.nn.Linear(1, 1)), name="face", engine="onnx"))
