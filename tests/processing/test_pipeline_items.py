"""Any kind of input, in any batches, gives the same answers; a bad item is named and takes no other with it."""

import base64
import copy
import io
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mf2 import MF2ForPreTraining
from processing_mf2 import MF2Processor, build_tokenizer, face_pipeline
from processing_mf2.pipelines import MF2Pipeline


@pytest.fixture(scope="module")
def faces() -> list[Image.Image]:
    """Of mixed sizes and modes."""
    rng = np.random.default_rng(0)
    shapes = [(90, 80, 3), (64, 64, 4), (120, 110), (70, 80, 3), (100, 100, 3)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


@pytest.fixture(scope="module")
def analyse() -> MF2Pipeline:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169)
    processor = MF2Processor.for_model(config, tokenizer)
    return face_pipeline("face-analysis", MF2ForPreTraining(config), processor)


def scores(answers: list[list[dict]]) -> np.ndarray:
    return np.array([list(face["emotions"].values()) for faces in answers for face in faces])


def test_one_a_list_a_generator_and_a_batch_answer_alike(
    analyse: MF2Pipeline, faces: list[Image.Image], tmp_path: Path
) -> None:
    one_by_one = [analyse(face) for face in faces]
    expected = scores(one_by_one)
    assert json.loads(json.dumps(one_by_one)) == one_by_one, "plain numbers, names and lists"
    names = [str(tmp_path / f"{index}.png") for index in range(len(faces))]
    for face, name in zip(faces, names, strict=True):
        face.save(name)
    table = datasets.Dataset.from_dict({"image": names, "landmarks": [None] * len(names), "corpus": ["x"] * len(names)})
    table = table.cast_column("image", datasets.Image())
    for size in (1, 2, 8):
        for inputs in (faces, tuple(faces), names, (face for face in faces), table):
            answers = analyse(inputs, batch_size=size)
            assert isinstance(answers, list if isinstance(inputs, list | tuple) else Iterator)
            np.testing.assert_allclose(scores(list(answers)), expected, atol=1e-5)
    np.testing.assert_allclose(scores(analyse(faces, batch_size=2, num_workers=1)), expected, atol=1e-5)
    pixels = np.stack([np.array(faces[4])] * 2)
    np.testing.assert_allclose(scores(analyse(pixels)), expected[[4, 4]], atol=1e-5)


def test_a_generator_is_read_no_further_than_needed(analyse: MF2Pipeline, faces: list[Image.Image]) -> None:
    taken = []
    answers = analyse((taken.append(index) or faces[index] for index in range(5)), batch_size=2)
    next(answers)
    assert taken == [0, 1]


def test_one_bad_item_of_64_leaves_63_answers_and_is_named(
    analyse: MF2Pipeline, faces: list[Image.Image], tmp_path: Path
) -> None:
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
        (b"no image", ValueError, "inputs"),
        ("https://example.org/face.png", ValueError, "allow_url"),
        ({"image": np.zeros((64, 64, 3), np.uint8), "landmarks": np.zeros((5, 2))}, ValueError, "(68, 2)"),
        ([], ValueError, "empty list"),
        (np.zeros((4, 4, 3), np.uint8), ValueError, "16"),
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


class _Places(torch.utils.data.Dataset):
    """As torch defines a data set: places, and no way to iterate or to end."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index % len(self.items)]


def test_data_sets_of_torch_and_a_column_of_one_are_many_images(analyse: MF2Pipeline, faces: list[Image.Image]) -> None:
    expected = scores([analyse(face) for face in faces])
    rows = [{"face": face, "corpus": "x"} for face in faces]
    for inputs in (_Places(faces), KeyDataset(rows, "face"), KeyDataset(_Places(rows), "face")):
        for settings in ({}, {"batch_size": 2}, {"batch_size": 2, "num_workers": 1}):
            answers = analyse(inputs, **settings)
            assert isinstance(answers, Iterator)
            np.testing.assert_allclose(scores(list(answers)), expected, atol=1e-5)


def test_base64_text_is_one_image(analyse: MF2Pipeline, faces: list[Image.Image]) -> None:
    faces[0].save(file := io.BytesIO(), "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    expected = scores([analyse(faces[0])])
    for said in (text, f"data:image/png;base64,{text}"):
        np.testing.assert_allclose(scores([analyse(said)]), expected, atol=1e-5)


def test_an_address_that_cannot_be_fetched_in_time_is_skipped(analyse: MF2Pipeline, faces: list[Image.Image]) -> None:
    nobody = "http://127.0.0.1:9/face.png"
    answers = analyse([faces[0], nobody], on_error="skip", allow_url=True, timeout=2)
    assert answers[0] and "could not be fetched" in answers[1]["error"]["message"]
    with pytest.raises(ValueError, match=r"inputs\[1\].*timeout"):
        analyse([faces[0], nobody], allow_url=True, timeout="soon")


NOT_FINITE = [
    {"image": np.full((64, 64, 3), np.nan)},
    {"image": np.full((64, 64, 3), np.inf, np.float32)},
    {"image": np.zeros((64, 64, 3), np.uint8), "landmarks": np.full((68, 2), np.nan)},
    {"image": np.zeros((64, 64, 3), np.uint8), "landmarks": np.full((68, 2), np.inf)},
]


@pytest.mark.parametrize("item", NOT_FINITE)
def test_an_input_that_is_not_finite_is_never_answered(analyse: MF2Pipeline, faces: list, item: dict) -> None:
    with pytest.raises(ValueError, match=r"inputs"):
        analyse(item)
    answers = analyse([faces[0], item], on_error="skip")
    assert answers[0][0]["emotion"] and answers[1]["error"]["index"] == 1


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
