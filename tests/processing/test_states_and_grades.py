"""Grades and conformal states by hand, and through the processor that keeps them."""

import json

import pytest
import torch
from conftest import tiny_config

from processing_mf2 import MF2Processor, build_tokenizer
from processing_mf2.reliability import conformal_cuts, conformal_state, emotion_set


CUTS = {"AU1": [0.3, 0.6], "AU6": [0.5, 0.5], "AU25": [0.0, 1.0], "Neutral": 0.2, "Happiness": 0.4, "Fear": 0.0}


def processor(**fields: object) -> MF2Processor:
    tokenizer = build_tokenizer()
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169)
    made = MF2Processor.for_model(config, tokenizer)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def cuts_of(made: MF2Processor) -> dict:
    return {unit: [0.3, 0.6] for unit in made.action_units} | dict.fromkeys(made.emotions, 0.2)


def test_states_by_hand() -> None:
    states = {p: conformal_state(p, 0.5, CUTS["AU1"]) for p in (0.1, 0.3, 0.6, 0.7)}
    assert states == {0.1: "at rest", 0.3: "cannot tell", 0.6: "cannot tell", 0.7: "active"}
    assert [conformal_state(p, 0.5, [0.5, 0.5]) for p in (0.4, 0.6)] == ["at rest", "active"], (
        "nothing is left in between"
    )
    assert conformal_state(0.99, 0.5, [0.0, 1.0]) == "cannot tell"
    contradicting = conformal_state(0.7, 0.8, CUTS["AU1"]), conformal_state(0.1, 0.05, CUTS["AU1"])
    assert contradicting == ("cannot tell", "cannot tell"), "a state never says other than the decision"
    assert emotion_set({"Neutral": 0.3, "Happiness": 0.1, "Fear": 0.6}, CUTS) == ["Fear", "Neutral"]
    assert emotion_set({"Happiness": 0.3, "Neutral": 0.1}, CUTS) == ["Happiness"], "the top one is always possible"


def test_the_next_calibrated_level_is_taken_and_others_are_named() -> None:
    levels = {"0.8": {"a": 1}, "0.9": {"a": 2}, "0.95": {"a": 3}}
    assert conformal_cuts(None, None) is None and conformal_cuts(0.9, levels) == {"a": 2}
    assert conformal_cuts(0.85, levels) == {"a": 2} and conformal_cuts(0.5, levels) == {"a": 1}
    for wrong in (0, 1, -0.1, 90, True, "0.9", float("nan")):
        with pytest.raises(ValueError, match="confidence: got"):
            conformal_cuts(wrong, levels)
    with pytest.raises(ValueError, match=r"confidence: got 0\.99, expected at most 0\.95"):
        conformal_cuts(0.99, levels)
    with pytest.raises(ValueError, match="confidence: this checkpoint is not calibrated"):
        conformal_cuts(0.9, None)


def test_a_processor_keeps_them_and_answers_with_them(tmp_path) -> None:
    plain = processor()
    outputs = {"au_logits": torch.tensor([[-3.0, 0.0, 3.0]]), "emotion_logits": torch.eye(len(plain.emotions))[:1] * 9}
    (bare,) = plain.post_process_face_analysis(outputs)
    assert "grade" not in next(iter(bare["action_units"].values())) and "emotion_set" not in bare
    first, second, third = plain.action_units
    made = processor(conformal={"0.9": cuts_of(plain)}, grades={first: "usable", plain.emotions[0]: "reliable"})
    made.save_pretrained(tmp_path)
    loaded = MF2Processor.from_pretrained(tmp_path)
    assert loaded.grades[first] == "usable" and loaded.grades[second] == "experimental"
    (found,) = loaded.post_process_face_analysis(outputs, confidence=0.9)
    assert [unit["state"] for unit in found["action_units"].values()] == ["at rest", "cannot tell", "active"]
    assert found["action_units"][third]["grade"] == "experimental" and found["emotion_grade"] == "reliable"
    assert found["emotion_set"] == [plain.emotions[0]] and found["emotions"] == bare["emotions"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("grades", {"AU99": "usable"}, "grades: got"),
        ("grades", {"AU1": "good"}, "grades: got 'good', expected one of"),
        ("grades", ["usable"], "grades: got"),
        ("conformal", {}, "conformal: got"),
        ("conformal", {"0.9": {}}, r"conformal\['0.9'\]"),
        ("conformal", {"much": None}, r"conformal\['much'\]"),
    ],
)
def test_damaged_files_are_named(tmp_path, field: str, value: object, message: str) -> None:
    processor().save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=message):
        MF2Processor.from_pretrained(tmp_path)
