"""The four tasks answer by name what the model says in numbers, for any kind of input; a bad item is named."""

import base64
import copy
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import shake, tiny_config
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from configuration_mf2.facs import ACTION_UNITS, CANONICAL_FACE
from modeling_mf2 import (
    DFNConfig,
    MF2ForCaptioning,
    MF2ForFaceAnalysis,
    MF2ForImageClassification,
    MF2ForPreTraining,
    MF2Model,
)
from processing_mf2 import MF2Processor, build_tokenizer, face_pipeline
from processing_mf2.landmarks import DetectedFace, FaceAlignmentDetector
from processing_mf2.pipelines import MF2Pipeline


@pytest.fixture(scope="module")
def faces() -> list[Image.Image]:
    """Of mixed sizes and modes."""
    rng = np.random.default_rng(0)
    shapes = [(90, 80, 3), (64, 64, 4), (120, 110), (70, 80, 3), (100, 100, 3)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


@pytest.fixture(scope="module")
def face(faces: list[Image.Image]) -> Image.Image:
    return faces[0]


@pytest.fixture(scope="module")
def processor() -> MF2Processor:
    tokenizer = build_tokenizer()
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192}
    details = {"sides": True, "intensities": True, "geometry_token": True, "au_thresholds": [0.2, 0.5, 0.9]}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169, **details)
    made = MF2Processor.for_model(config, tokenizer)
    made.config = config  # with the tokenizer's ids
    return made


@pytest.fixture(scope="module")
def analyse(model: MF2ForPreTraining, processor: MF2Processor) -> MF2Pipeline:
    return face_pipeline("face-analysis", model, processor)


@pytest.fixture(scope="module")
def model(processor: MF2Processor) -> MF2ForPreTraining:
    torch.manual_seed(0)
    return shake(MF2ForPreTraining(processor.config)).eval()


@pytest.fixture(scope="module")
def saved(model: MF2ForPreTraining, processor: MF2Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def outputs(model: MF2ForPreTraining, processor: MF2Processor, face: Image.Image):
    with torch.no_grad():
        return model(**processor(images=face, return_tensors="pt"))


def test_image_classification_of_emotions(model, processor, outputs, face) -> None:
    classify = face_pipeline("image-classification", model, processor)
    expected = outputs.emotion_logits[0].softmax(-1)
    answers = classify(face)
    assert [answer["score"] for answer in answers] == pytest.approx(expected.sort(descending=True).values.tolist())
    assert answers[0]["label"] == model.config.emotions[expected.argmax()]
    assert classify(face, top_k=1) == answers[:1]
    raw = {answer["label"]: answer["score"] for answer in classify(face, function_to_apply="none")}
    assert raw == pytest.approx(dict(zip(model.config.emotions, outputs.emotion_logits[0].tolist(), strict=True)))
    with pytest.raises(TypeError, match="on_many_faces"):  # it answers for one face
        classify(face, on_many_faces="all")
    for wrong in ({"top_k": 0}, {"function_to_apply": "softmx"}, {"target": "aus"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            classify(face, **wrong)


def test_image_classification_of_action_units_has_a_threshold_each(model, processor, outputs, face) -> None:
    classify = face_pipeline("image-classification", model, processor, target="action_units")
    answers = {answer["label"]: answer for answer in classify(face)}
    assert set(answers) == set(model.config.action_units)
    for unit, logit, threshold in zip(model.config.action_units, outputs.au_logits[0], (0.2, 0.5, 0.9), strict=True):
        score = logit.sigmoid().item()
        assert answers[unit]["score"] == pytest.approx(score, abs=1e-6)
        assert (answers[unit]["threshold"], answers[unit]["active"]) == (threshold, score >= threshold)
        assert answers[unit]["name"] == ACTION_UNITS[unit].noun
    assert not any(answer["active"] for answer in classify(face, thresholds=1.0))
    assert next(a for a in classify(face, thresholds={"AU6": 0.0}) if a["label"] == "AU6")["active"]


def test_image_classification_by_a_model_of_one_target_says_when_it_has_no_other(saved, processor, outputs, face):
    one = MF2ForImageClassification.from_pretrained(saved, classification_target="action_units")
    classify = face_pipeline("image-classification", one)
    assert max(a["score"] for a in classify(face)) == pytest.approx(outputs.au_logits.sigmoid().max().item())
    with pytest.raises(ValueError, match="AutoModelForPreTraining"):
        classify(face, target="emotion")
    # The pipeline of transformers itself takes the model object as well.
    plain = pipeline("image-classification", model=one, image_processor=processor.image_processor)
    scores = {answer["label"]: answer["score"] for answer in classify(image=face)}
    assert {answer["label"]: answer["score"] for answer in plain(face)} == pytest.approx(scores)


def test_zero_shot_compares_the_nearest_query_with_each_sentence(model, processor, face) -> None:
    choose = face_pipeline("zero-shot-image-classification", model, processor)
    inputs = processor(images=face, return_tensors="pt")
    sentences = ["The face shows happiness.", "The face shows tired."]
    answers = {answer["label"]: answer for answer in choose(face, candidate_labels=["Happiness", "tired"])}
    with torch.no_grad():
        text = model.mf2.get_text_features(**processor(text=sentences)).pooler_output
        seen = model.mf2.get_image_features(**inputs).pooler_output
        near = (seen[0] @ text.T).amax(0) / model.mf2.emo_vl.temperature
    assert [answers[label]["score"] for label in ("Happiness", "tired")] == pytest.approx(near.softmax(-1).tolist())
    assert [answers[label]["sentence"] for label in ("Happiness", "tired")] == sentences

    several = choose([face, face], candidate_labels=["AU25", "AU1"], batch_size=2)
    assert several[0] == several[1]
    with torch.no_grad():
        seen = model.mf2.get_image_features(**inputs, branch="au").pooler_output
    for answer in several[0]:
        place = model.config.action_units.index(answer["action_unit"])
        with torch.no_grad():
            text = processor(text=[answer["sentence"], answer["sentence_at_rest"]])
            pair = model.mf2.get_text_features(**text, branch="au").pooler_output
            near = (seen[0, place] @ pair.T).amax(0) / model.mf2.au_vl.temperature
        assert answer["score"] == pytest.approx(near.softmax(-1)[0].item(), abs=1e-6)
    alone = choose(face, candidate_labels=["AU25"])[0]["score"]
    assert alone == pytest.approx(next(a["score"] for a in several[0] if a["label"] == "AU25"), abs=1e-6)
    for wrong, said in (({"candidate_labels": ["AU2"]}, "action units of this model"), ({}, "got none")):
        with pytest.raises(ValueError, match=said):
            choose(face, **wrong)
    with pytest.raises(ValueError, match="does not know every word"):
        choose(face, candidate_labels=["笑"])


def test_captions_are_those_of_generate_whichever_model_is_handed_in(saved, processor, face) -> None:
    writer = MF2ForCaptioning.from_pretrained(saved)
    inputs = processor(images=face, return_tensors="pt")
    pixels = {"pixel_values": inputs["pixel_values"], "landmarks": inputs["landmarks"]}
    expected = processor.decode_captions(writer.generate(**pixels, max_new_tokens=6))[0]
    units = processor.decode_captions(writer.generate(**pixels, branch="au", max_new_tokens=6))[0]
    for model in (writer, MF2Model.from_pretrained(saved)):
        tell = face_pipeline("image-to-text", model, processor, max_new_tokens=6)
        assert tell(face) == [{"generated_text": expected, "kind": "emotion"}]
        told = tell([face] * 3, captions=["au"], batch_size=2)
        assert [answer["generated_text"] for answer in told[2]] == units
        assert [answer["action_unit"] for answer in told[2]] == processor.action_units
        assert {answer["kind"] for answer in tell(face, captions=True)} == {"emotion", "key_au", "au"}
    with pytest.raises(ValueError, match="did you mean 'key_au'"):
        tell(face, captions="key_aus")


def test_face_analysis_names_everything(analyse, model, processor, outputs, face) -> None:
    (found,) = analyse(face, captions=True, max_new_tokens=5)
    expected = processor.post_process_face_analysis(outputs)[0]
    assert found["emotion"] == expected["emotion"] and set(found["action_units"]) == set(expected["action_units"])
    for unit, said in expected["action_units"].items():
        named = found["action_units"][unit]
        assert set(named) == set(said) >= {"left", "right", "intensity"}
        sizes = {name: 5e-5 if name == "intensity" else 1e-5 for name, value in said.items() if type(value) is float}
        numbers = {name: pytest.approx(said[name], abs=size) for name, size in sizes.items()}
        assert named == {**said, **numbers}
    assert found["box"] == {"xmin": 0.0, "ymin": 0.0, "xmax": 80.0, "ymax": 90.0}
    assert (found["box_source"], found["landmark_source"]) == ("image", "template")
    assert list(found["captions"]) == ["emotion", "key_au", "au"]
    assert list(found["captions"]["au"]) == model.config.action_units
    assert "captions" not in analyse(face)[0]
    points = np.array(CANONICAL_FACE) * 50 + 20
    (given,) = analyse({"image": face, "landmarks": points})
    assert given["landmark_source"] == "given"
    np.testing.assert_allclose(given["landmarks"], points)
    assert given["box"]["xmin"] == pytest.approx(points[:, 0].min())


def detect_two_and_none(self: FaceAlignmentDetector, images: list[torch.Tensor]) -> list[list[DetectedFace]]:
    """Two faces in an image of 80 pixels' width, none in others."""

    def found(side: float) -> DetectedFace:
        box = np.array([5.0, 5.0, 5 + side, 5 + side])
        return DetectedFace(box, 0.75, np.array(CANONICAL_FACE) * side + 5, np.ones(68))

    return [[found(60.0), found(30.0)] if image.shape[2] == 80 else [] for image in images]


def test_every_face_is_found_and_an_image_without_one_follows_the_policy(model, processor, face, monkeypatch):
    monkeypatch.setattr(FaceAlignmentDetector, "detect", detect_two_and_none)
    empty = Image.new("RGB", (64, 64))
    analyse = face_pipeline("face-analysis", model, processor, landmark_source="face_alignment")
    both, none, again = analyse([face, empty, face], batch_size=2, on_no_face="skip")
    assert [found["box"]["xmax"] for found in both] == [65.0, 35.0] and both == again and none == []
    assert {found["box_source"] for found in both} == {"face_alignment"} and both[0]["box_score"] == 0.75
    assert len(analyse(face, on_many_faces="largest")) == 1
    with pytest.raises(ValueError, match=r"inputs\[1\].*no face was found"):
        analyse([face, empty])
    assert analyse([face, empty], on_error="skip")[1]["error"]["type"] == "ValueError"
    assert analyse(empty, on_no_face="template")[0]["landmark_source"] == "template"
    classify = face_pipeline("image-classification", model, processor, landmark_source="face_alignment")
    largest = classify(face)
    assert largest[0]["label"] == both[0]["emotion"]
    assert classify([face, empty], on_no_face="skip", batch_size=2) == [largest, []]
    for task in ("zero-shot-image-classification", "image-to-text"):
        extra = {"candidate_labels": ["Anger"]} if task.startswith("zero") else {"max_new_tokens": 2}
        settings = {"landmark_source": "face_alignment", "on_no_face": "skip"}
        assert face_pipeline(task, model, processor)([empty], **settings, **extra) == [[]]


def test_half_precision_moves_no_landmark(saved, processor, face) -> None:
    analyse = face_pipeline("face-analysis", str(saved), dtype=torch.bfloat16)
    assert analyse.model.dtype == torch.bfloat16
    assert set(analyse(face)[0]["emotions"]) == set(processor.emotions)


def test_an_adapter_is_as_good_as_a_model(saved: Path, processor, face, tmp_path: Path) -> None:
    """As peft's wrapper, and by its folder, from which the base and the adapter's own processor are found."""
    inputs = processor(images=face, return_tensors="pt")
    own = MF2Processor.from_pretrained(saved)
    own.au_thresholds = [0.3, 0.4, 0.6]
    targets = {"target_modules": r".*emo_vl.*cross_attention\.q_proj", "modules_to_save": ["classifiers"]}
    for config in (DFNConfig(bottleneck=4, pathways=["visual"]), LoraConfig(r=2, **targets)):
        adapted = shake(get_peft_model(MF2ForFaceAnalysis.from_pretrained(saved), config), seed=3).eval()
        base = MF2ForFaceAnalysis.from_pretrained(saved)
        adapted.base_model.model.mf2.load_state_dict(base.mf2.state_dict(), strict=False)  # as they were shaken too
        folder = tmp_path / str(config.peft_type.value)
        adapted.save_pretrained(folder)
        wrapped = PeftModel.from_pretrained(base, folder).eval()
        with torch.no_grad():
            expected = wrapped(**inputs).emotion_logits.softmax(-1).max().item()
        assert abs(expected - face_pipeline("image-classification", str(saved))(face)[0]["score"]) > 1e-4
        assert face_pipeline("image-classification", wrapped)(face)[0]["score"] == pytest.approx(expected, abs=1e-6)
        plain = face_pipeline("image-classification", folder)  # no processor there: the base's
        assert plain(face)[0]["score"] == pytest.approx(expected, abs=1e-6)
        assert plain.processor.au_thresholds == processor.au_thresholds
        own.save_pretrained(folder)
        (found,) = face_pipeline("face-analysis", str(folder))(face)
        (same,) = pipeline("face-analysis", model=str(folder), processor=str(folder), trust_remote_code=True)(face)
        assert found == same and max(found["emotions"].values()) == pytest.approx(expected, abs=1e-6)
        assert [said["threshold"] for said in found["action_units"].values()] == own.au_thresholds


def test_a_checkpoint_without_heads_answers_nothing(processor: MF2Processor, tmp_path: Path) -> None:
    MF2Model(processor.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*classifiers\."):
        face_pipeline("face-analysis", tmp_path, processor)


def scores(answers: list[list[dict]]) -> np.ndarray:
    return np.array([list(face["emotions"].values()) for faces in answers for face in faces])


class Places(torch.utils.data.Dataset):
    """As torch defines a data set: places, and no way to iterate or to end."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index % len(self.items)]


def test_one_a_list_a_generator_and_a_batch_answer_alike(analyse, faces, tmp_path):
    one_by_one = [analyse(face) for face in faces]
    expected = scores(one_by_one)
    assert json.loads(json.dumps(one_by_one)) == one_by_one, "plain numbers, names and lists"
    names = [str(tmp_path / f"{index}.png") for index in range(len(faces))]
    for face, name in zip(faces, names, strict=True):
        face.save(name)
    text = base64.b64encode(Path(names[0]).read_bytes()).decode()
    for said in (text, f"data:image/png;base64,{text}"):
        np.testing.assert_allclose(scores([analyse(said)]), expected[:1], atol=1e-5)
    rows = [{"face": face, "corpus": "x"} for face in faces]
    torch_set, columns = Places(faces), (KeyDataset(rows, "face"), KeyDataset(Places(rows), "face"))
    table = datasets.Dataset.from_dict({"image": names, "landmarks": [None] * len(names), "corpus": ["x"] * len(names)})
    table = table.cast_column("image", datasets.Image())
    for size in (1, 2, 8):
        for inputs in (faces, tuple(faces), names, (face for face in faces), table, torch_set, *columns):
            answers = analyse(inputs, batch_size=size)
            assert isinstance(answers, list if isinstance(inputs, list | tuple) else Iterator)
            np.testing.assert_allclose(scores(list(answers)), expected, atol=1e-5)
    for inputs in (faces, torch_set, *columns):
        np.testing.assert_allclose(scores(list(analyse(inputs, batch_size=2, num_workers=1))), expected, atol=1e-5)
    pixels = np.stack([np.array(faces[4])] * 2)
    np.testing.assert_allclose(scores(analyse(pixels)), expected[[4, 4]], atol=1e-5)


def test_a_generator_is_read_no_further_than_needed(analyse: MF2Pipeline, faces: list[Image.Image]) -> None:
    taken = []
    answers = analyse((taken.append(index) or faces[index] for index in range(5)), batch_size=2)
    next(answers)
    assert taken == [0, 1]


def test_one_bad_item_of_64_leaves_63_answers_and_is_named(analyse, faces, tmp_path):
    damaged = tmp_path / "cut.png"
    faces[0].save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:200])
    inputs: list[object] = [faces[index % 5] for index in range(64)]
    inputs[17] = str(damaged)
    answers = analyse(inputs, batch_size=16, on_error="skip")
    assert answers[17]["error"]["index"] == 17 and "inputs[17]" in answers[17]["error"]["message"]
    good = [answer for answer in answers if "error" not in answer]
    assert len(good) == 63
    np.testing.assert_allclose(scores(good[17:18]), scores([analyse(faces[18 % 5])]), atol=1e-5)
    with pytest.raises(ValueError, match=r"inputs\[17\].*damaged"):
        analyse(inputs[:18], batch_size=16)
    assert analyse(str(damaged), on_error="skip")["error"]["type"] == "ValueError"
    assert [list(answer) for answer in analyse([str(damaged)] * 2, on_error="skip")] == [["error"]] * 2


@pytest.mark.parametrize(
    ("image", "kind", "said"),
    [
        (42, TypeError, "got int"),
        ("missing.png", FileNotFoundError, "no file 'missing.png'"),
        ("https://example.org/face.png", ValueError, "allow_url"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "landmarks": np.zeros((5, 2))}, ValueError, "(68, 2)"),
        ([], ValueError, "empty list"),
        ({"image": np.full((64, 64, 3), np.nan)}, ValueError, "inputs"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "landmarks": np.full((68, 2), np.inf)}, ValueError, "inputs"),
    ],
)
def test_what_is_no_image_is_named(analyse: MF2Pipeline, image: object, kind: type, said: str) -> None:
    with pytest.raises(kind) as caught:
        analyse(image)
    assert said in str(caught.value)


def test_settings_are_checked_before_anything_is_read(analyse: MF2Pipeline, faces: list[Image.Image]) -> None:
    for settings, said in (
        ({"on_eror": "skip"}, "did you mean 'on_error'"),
        ({"on_error": "ignore"}, "'raise', 'skip'"),
        ({"on_no_face": "maybe"}, "on_no_face"),
        ({"batch_size": 0}, "whole number from 1"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            analyse(faces, **{"on_error": "skip", **settings})


def test_a_pipeline_without_processor_says_where_one_is_found(analyse: MF2Pipeline) -> None:
    with pytest.raises(ValueError, match="MF2Processor"):
        type(analyse)(analyse.model)
    with pytest.raises(ValueError, match="for_model"):
        face_pipeline("face-analysis", analyse.model)


def test_it_is_saved_with_model_and_processor(analyse: MF2Pipeline, faces: list[Image.Image], tmp_path: Path) -> None:
    analyse.save_pretrained(tmp_path)
    again = face_pipeline("face-analysis", str(tmp_path))
    np.testing.assert_allclose(scores(again(faces[:2])), scores(analyse(faces[:2])), atol=1e-5)


@pytest.mark.parametrize("task", ["face-analysis", "image-classification", "zero-shot-image-classification"])
def test_an_answer_that_is_not_finite_is_an_error_and_not_neutral(analyse: MF2Pipeline, faces: list, task: str) -> None:
    model = copy.deepcopy(analyse.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    settings = {"candidate_labels": ["Happiness", "Anger"]} if task.startswith("zero") else {}
    damaged = face_pipeline(task, model, analyse.processor)
    with pytest.raises(ValueError, match="finite"):
        damaged(faces[:1], **settings)
    answers = damaged(faces[:2], on_error="skip", **settings)
    assert [answer["error"]["index"] for answer in answers] == [0, 1]
