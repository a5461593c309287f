"""Images, texts and labels in, a model's tensors out, named results back; the same after saving."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import LABEL_SETS
from processing_mf2 import MF2ImageProcessor, MF2Processor, RuleCaptioner, build_tokenizer
from processing_mf2.detection import DETECTORS
from processing_mf2.landmarks import DetectedFace, template_landmarks


LABELS = [[1, 0, 0, 1, 0, 0, 1, 0, 0, 0, -1, 0], [0] * 12]


@pytest.fixture(scope="module")
def processor() -> MF2Processor:
    return MF2Processor.for_model(MF2Config.from_size("tiny"))


@pytest.fixture
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8))


def test_everything_of_a_training_batch(processor, images):
    captioner = RuleCaptioner("mfa")
    batch = processor(
        images,
        [captioner.emotion_caption(LABELS[0], 4), ""],
        au_sentences=[captioner.au_sentences(labels) for labels in LABELS],
        key_au_captions=["", captioner.key_au_caption(LABELS[1], 0)],
        **{"au_labels": LABELS, "emotion_labels": [4, -1]},
    )
    assert batch["pixel_values"].shape == (2, 3, 112, 112) and batch["landmarks"].shape == (2, 68, 2)
    assert batch["attention_mask"].sum(1).tolist()[1] == 0 and batch["key_au_attention_mask"].sum(1).tolist()[0] == 0
    assert batch["input_ids"][0, 0] == 2 and batch["input_ids"][1].eq(0).all()
    assert batch["au_input_ids"].shape == batch["au_attention_mask"].shape
    assert batch["au_input_ids"].shape[:2] == (2, 12)
    assert batch["au_attention_mask"].any(-1).tolist()[0] == [label != -1 for label in LABELS[0]]
    assert batch["au_labels"].tolist() == LABELS and batch["emotion_labels"].tolist() == [4, -1]
    integers = {name for name in batch if name not in ("pixel_values", "landmarks")}
    assert all(batch[name].dtype == torch.int64 for name in integers)
    assert set(processor.model_input_names) == set(batch) - {"au_labels", "emotion_labels"}


def test_texts_keep_to_their_limits(processor):
    batch = processor(text=["brow " * 900, "他笑了"], au_sentences=[["lip " * 50] * 12, ["lip"] * 12])
    assert batch["attention_mask"].sum(1).tolist() == [61, 0]  # not a word is known of the second
    assert batch["au_attention_mask"].sum((1, 2)).tolist() == [12 * (169 // 12), 36]
    last = batch["au_attention_mask"].sum(-1) - 1
    assert (batch["au_input_ids"].gather(-1, last[..., None]) == processor.tokenizer.sep_token_id).all()


def test_too_long_is_warned_about_once(processor, transformers_log):
    for _ in range(3):
        processor(text="brow " * 100)
    (message,) = [record.getMessage() for record in transformers_log.records]
    assert "text: " in message and "61 tokens" in message


def test_one_image_needs_no_lists(processor, images):
    labels = {"au_sentences": ["lip"] * 12, "au_labels": LABELS[0], "emotion_labels": 1}
    single = processor(images[0], "The face shows anger.", **labels)
    listed = processor(images[:1], ["The face shows anger."], **{name: [value] for name, value in labels.items()})
    assert set(single) == set(listed) and all(torch.equal(single[name], listed[name]) for name in single)
    arrays = processor(images[0], "anger", return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())


def test_saved_and_loaded_is_equal(tmp_path, images):
    config = MF2Config.from_size("tiny", label_set="bp4d", emotions=("Neutral", "Pain"), au_thresholds=[0.25] * 12)
    processor = MF2Processor.for_model(config, landmark_source="given", do_normalize=False)
    processor.au_max_length = 100
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"]["AutoProcessor"].endswith(".MF2Processor") and saved["emotions"] == ["Neutral", "Pain"]
    for loaded in (AutoProcessor.from_pretrained(tmp_path), MF2Processor.from_pretrained(tmp_path)):
        assert type(loaded) is MF2Processor and loaded.to_dict() == processor.to_dict()
        assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        assert loaded.action_units == list(LABEL_SETS["bp4d"].action_units) and loaded.au_thresholds == [0.25] * 12
        call = {"landmarks": [template_landmarks(64, 64)] * 2, "au_sentences": [["lip " * 40] * 12] * 2}
        ours, theirs = processor(images, **call), loaded(images, **call)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.image_processor.to_dict()
    assert AutoTokenizer.from_pretrained(tmp_path).bos_token_id == 5


def test_for_model_fits_the_model():
    config = MF2Config.from_size("base", label_set="disfa", emotion_max_length=40)
    processor = MF2Processor.for_model(config)
    assert (config.emo_config.bos_token_id, config.au_config.eos_token_id, config.emo_config.pad_token_id) == (5, 3, 0)
    assert (processor.action_units, processor.emotions) == (config.action_units, [])
    assert processor.emotion_max_length == 40
    assert dict(processor.image_processor.size)["height"] == 224
    with pytest.raises(ValueError, match="vocab_size: the tokenizer has"):
        MF2Processor.for_model(MF2Config.from_size("tiny", emo_config={"vocab_size": 64}, au_config={"vocab_size": 64}))


class _FakeDetector:
    """Finds as many faces as the image's first pixel says."""

    def __init__(self, **settings):
        pass

    def detect(self, images):
        face = DetectedFace(np.array([0, 0, 64, 64]), 1.0, template_landmarks(64, 64), np.ones(68))
        return [[face] * int(image[0, 0, 0]) for image in images]


def test_texts_follow_their_images(processor, images, monkeypatch):
    monkeypatch.setitem(DETECTORS, "face_alignment", _FakeDetector)
    counts = (1, 0, 2)
    pictures = [np.full((64, 64, 3), count, np.uint8) for count in counts]
    call = {"landmark_source": "face_alignment", "on_no_face": "skip"}
    texts = {"text": ["anger", "fear", "disgust"], "emotion_labels": [1, 3, 2], "au_sentences": [["lip"] * 12] * 3}
    kept = processor(pictures, **texts, **call)
    assert kept["pixel_values"].shape[0] == 2 and kept["emotion_labels"].tolist() == [1, 2]
    assert processor.batch_decode(kept["input_ids"], skip_special_tokens=True) == ["anger", "disgust"]
    assert kept["au_input_ids"].shape[0] == 2 and "image_index" not in kept
    everyone = processor(pictures, on_many_faces="all", return_landmark_source=True, **call)
    assert everyone["image_index"].tolist() == [0, 2, 2] and everyone["landmark_source"] == ["face_alignment"] * 3
    with pytest.raises(ValueError, match=r"image 2 shows 2 faces.*on_many_faces='largest'"):
        processor(pictures, on_many_faces="all", **texts, **call)
    nobody = processor(pictures[1], "fear", au_sentences=["lip"] * 12, emotion_labels=[3], **call)
    assert [len(value) for value in nobody.values()] == [0] * len(nobody)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "neither images nor text"),
        ({"text": [1]}, "text: got int, expected a string"),
        ({"text": ["a", "b"], "key_au_captions": ["a"]}, "key_au_captions: got 1, expected 2"),
        ({"au_sentences": [["lip"] * 11]}, r"au_sentences\[0\]: got 11 sentences, expected 12"),
        ({"text": "a", "au_labels": [[0] * 11]}, r"au_labels: got shape \(1, 11\), expected \(images, 12\)"),
        ({"text": "a", "au_labels": [[2] + [0] * 11]}, r"au_labels: got 2, expected whole numbers from -1"),
        ({"text": "a", "emotion_labels": [8]}, "emotion_labels: got 8, expected whole numbers from -1 .* to 7"),
        ({"text": "a", "emotion_labels": [0.5]}, "emotion_labels: got 0.5"),
        ({"text": "a", "emotion_labels": ["Anger"]}, r"emotion_labels: got \['Anger'\], .* 1 Anger, 2 Disgust"),
        ({"text": "a", "emotion_labels": [None]}, r"emotion_labels: got \[None\], expected whole numbers"),
        ({"text": "a", "do_align": False}, r"images: got none, but .*'do_align'"),
        ({"images": [np.zeros((64, 64, 3))] * 2, "text": "a"}, "text: got 1, expected 2"),
    ],
)
def test_bad_calls_are_named(processor, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        processor(**call)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"action_units": ["AU99"]}, r"action_units: got \['AU99'\]"),
        ({"au_max_length": 20}, "au_max_length: got 20, expected at least 36 tokens"),
        ({"emotion_max_length": 1}, "emotion_max_length: got 1"),
        ({"au_thresholds": [0.5]}, "thresholds: got"),
    ],
)
def test_bad_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        MF2Processor(MF2ImageProcessor(), build_tokenizer(), **setting)


def test_prompts_start_a_caption_and_captions_are_read_back(processor):
    tokenizer = processor.tokenizer
    assert processor.caption_prompt().tolist() == processor.caption_prompt("au").tolist() == [[tokenizer.bos_token_id]]
    prompt = processor.caption_prompt("key_au")
    caption = RuleCaptioner("mfa").key_au_caption(LABELS[1], 0)
    written = processor(text=[caption])["input_ids"][0]
    assert written[1 : prompt.shape[1]].tolist() == prompt[0, 1:].tolist()
    assert processor.decode_captions(written[None]) == [tokenizer.decode(written, skip_special_tokens=True)]
    nested = processor.decode_captions(written.expand(2, 3, -1))
    assert [len(row) for row in nested] == [3, 3] and nested[1][2] == processor.decode_captions(written[None])[0]
    with pytest.raises(ValueError, match="'emotion', 'au' or 'key_au'"):
        processor.caption_prompt("aus")


IMAGE = np.zeros((40, 40, 3), np.uint8)


def test_dictionaries_do_what_flat_keywords_do(processor: MF2Processor) -> None:
    flat = processor(IMAGE, "happiness", padding="max_length", max_length=20, do_normalize=False, return_tensors="np")
    nested = processor(
        images=IMAGE,
        text="happiness",
        text_kwargs={"padding": "max_length", "max_length": 20},
        images_kwargs={"do_normalize": False},
        common_kwargs={"return_tensors": "np"},
    )
    assert set(flat) == set(nested) and all(np.array_equal(flat[name], nested[name]) for name in flat)
    assert flat["input_ids"].shape == (1, 20) and flat["pixel_values"].max() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"padding": True, "text_kwargs": {"padding": True}}, "padding: got it as a keyword and in text_kwargs"),
        ({"do_align": True, "images_kwargs": {"do_align": True}}, "do_align: got it as a keyword and in images_kwargs"),
        ({"text_kwargs": {"stride": 1}}, r"text_kwargs: got \['stride'\]"),
        ({"text_kwargs": 3}, "text_kwargs: got int"),
        ({"images_kwargs": {"do_aling": True}}, "unknown setting 'do_aling'"),
        ({"padding": False}, "padding: got False"),
        ({"truncation": False}, "truncation: got False"),
        ({"max_length": 2}, "max_length: got 2"),
        ({"return_tensors": "tf"}, "return_tensors: got 'tf'"),
    ],
)
def test_bad_settings_of_a_call_are_named(processor: MF2Processor, call: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        processor(IMAGE, "happiness", **call)


FILES = ("processor_config.json", "tokenizer_config.json", "tokenizer.json")
VALUES: tuple[Any, ...] = (None, True, -1, 2.5, float("nan"), "words", [], [1, "a"], {}, {"a": [1]})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    settings = {"face_alignment_kwargs": {"device": "cpu"}, "size": {"height": 32, "width": 32}}
    MF2Processor(MF2ImageProcessor(**settings), build_tokenizer(), au_thresholds=[0.5] * 12).save_pretrained(folder)
    return folder


def _places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where a value stands, the outermost last; of long lists and of the vocabulary the beginning."""
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(children)[:12]:
        yield from _places(value, (*path, key))
    yield path


def _changed(content: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    content = content.copy()
    content[path[0]] = _changed(content[path[0]], path[1:], value)
    return content


@pytest.mark.parametrize("file", FILES)
def test_a_value_of_another_type_loads_or_is_named(checkpoint: Path, file: str) -> None:
    original = (checkpoint / file).read_text()
    content, unnamed, tried = json.loads(original), [], 0
    try:
        for place, path in enumerate(_places(content)):
            for value in VALUES[place % 2 :: 2]:
                (checkpoint / file).write_text(json.dumps(_changed(content, path, value)))
                tried += 1
                try:
                    MF2Processor.from_pretrained(checkpoint)
                except (ValueError, TypeError, OSError) as error:
                    names = (*(str(key) for key in path), file.removesuffix(".json"), "tokenizer")
                    if not any(name in str(error) for name in names):
                        unnamed.append((path, value, repr(error)))
                except BaseException as error:
                    unnamed.append((path, value, repr(error)))
    finally:
        (checkpoint / file).write_text(original)
    assert tried > 50 and not unnamed, f"{len(unnamed)} of {tried}: " + "\n".join(map(str, unnamed[:200]))


@pytest.mark.parametrize("value", ['"1"', "[null]", "-1", None])
def test_what_would_fail_only_later_is_named(checkpoint: Path, tmp_path: Path, value: str | None) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    if value is None:
        (folder / "processor_config.json").write_text("[" * 100_000)
    else:
        file = folder / "tokenizer_config.json"
        rest = file.read_text().replace('"model_max_length"', '"other"').removeprefix("{")
        file.write_text(f'{{"model_max_length": {value}, {rest}')
    with pytest.raises(ValueError, match="model_max_length" if value else "processor_config.json"):
        MF2Processor.from_pretrained(folder)


def test_a_missing_vocabulary_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "tokenizer.json").unlink()
    with pytest.raises((ValueError, OSError), match=r"tokenizer\.json"):
        MF2Processor.from_pretrained(folder)


UNITS, EMOTIONS = ["AU6", "AU12"], ["Neutral", "Happiness", "Sadness"]
OUTPUTS = SimpleNamespace(
    emotion_logits=torch.log(torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]])),
    au_logits=torch.logit(torch.tensor([[0.9, 0.4], [0.1, 0.5]])),
)


@pytest.fixture(scope="module")
def two_units() -> MF2Processor:
    return MF2Processor(MF2ImageProcessor(), build_tokenizer(), UNITS, EMOTIONS)


def test_results_are_named(two_units):
    first, second = two_units.post_process_face_analysis(OUTPUTS, image_index=[0, 4])
    assert first["emotion"] == "Happiness" and second["emotion"] == "Neutral"
    assert list(first["emotions"]) == EMOTIONS and first["emotions"]["Happiness"] == pytest.approx(0.7)
    unit = first["action_units"]["AU6"]
    assert unit == {"name": "cheek raiser", "probability": pytest.approx(0.9), "threshold": 0.5, "active": True}
    assert first["active_action_units"] == ["AU6"] and second["active_action_units"] == ["AU12"]
    assert (first["image_index"], second["image_index"]) == (0, 4)


def test_what_was_not_predicted_is_absent(two_units):
    logits = {"au_logits": OUTPUTS.au_logits.bfloat16(), "emotion_logits": None}
    only_aus = two_units.post_process_face_analysis(logits, [0.5, 0.3])
    assert set(only_aus[0]) == {"action_units", "active_action_units"}
    assert only_aus[0]["active_action_units"] == ["AU6", "AU12"]
    only_emotions = two_units.post_process_face_analysis({"emotion_logits": np.zeros((1, 3))})
    assert set(only_emotions[0]) == {"emotion", "emotions"}


def test_the_processor_owns_thresholds(two_units):
    assert two_units.thresholds() == [0.5, 0.5]
    tuned = MF2Processor(MF2ImageProcessor(), two_units.tokenizer, UNITS, EMOTIONS, au_thresholds=[0.1, 0.2])
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
def test_outputs_that_do_not_fit_are_named(two_units, outputs, index, named):
    with pytest.raises(ValueError, match=named):
        two_units.post_process_face_analysis(outputs, image_index=index)
