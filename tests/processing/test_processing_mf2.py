"""The public door: images, texts and labels in; a model's tensors out; and the same again after saving."""

import json
import logging

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import LABEL_SETS
from processing_mf2 import MF2Processor, RuleCaptioner, build_tokenizer
from processing_mf2.detection import DETECTORS
from processing_mf2.image_processing_mf2 import MF2ImageProcessor
from processing_mf2.landmarks import DetectedFace, template_landmarks


AUS = LABEL_SETS["mfa"].action_units
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
    assert batch["au_input_ids"].shape == batch["au_attention_mask"].shape and batch["au_input_ids"].shape[:2] == (
        2,
        12,
    )
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


def test_too_long_is_warned_about_once(processor, caplog):
    logger = logging.getLogger("transformers")
    propagate, logger.propagate = logger.propagate, True
    logging.getLoggerClass().warning_once.cache_clear()
    try:
        for _ in range(3):
            processor(text="brow " * 100)
        assert caplog.text.count("text: a text is longer than 61 tokens") == 1
        assert len(caplog.records) == 1
    finally:
        logger.propagate = propagate


def test_one_image_needs_no_lists(processor, images):
    single = processor(
        images[0], "The face shows anger.", au_sentences=["lip"] * 12, au_labels=LABELS[0], emotion_labels=1
    )
    listed = processor(
        images[:1], ["The face shows anger."], au_sentences=[["lip"] * 12], au_labels=LABELS[:1], emotion_labels=[1]
    )
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
    assert (
        processor.action_units == config.action_units
        and processor.emotions == []
        and processor.emotion_max_length == 40
    )
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
        (
            {"text": "a", "emotion_labels": ["Anger"]},
            r"emotion_labels: got \['Anger'\], expected .* 1 Anger, 2 Disgust",
        ),
        ({"text": "a", "emotion_labels": "Anger"}, "emotion_labels: got 'Anger', expected whole numbers"),
        ({"text": "a", "emotion_labels": [None]}, r"emotion_labels: got \[None\], expected whole numbers"),
        ({"text": "a", "au_labels": [["yes"] * 12]}, r"au_labels: got \[\['yes'.*, expected whole numbers"),
        ({"text": "a", "landmarks": np.zeros((68, 2))}, r"images: got none, but \['landmarks'\]"),
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
