"""Logits to scores, files and pictures."""

import json

import numpy as np
import pytest

from configuration_mf2 import MF2Config
from dataset_mf2.scores_mf2 import action_unit_scores, emotion_scores
from training_mf2.evaluation_mf2 import (
    draw_curves,
    draw_scores,
    group_scores,
    probabilities,
    score,
    selection_score,
    write_scores,
)


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 8, 60), rng.integers(-1, 2, (60, 12))
    return (rng.normal(size=(60, 8)).astype(np.float32), rng.normal(size=(60, 12)).astype(np.float32)), labels


def test_probabilities(answers):
    emotion, units = probabilities(answers[0])
    np.testing.assert_allclose(emotion.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(units, 1 / (1 + np.exp(-answers[0][1].astype(float))))


def test_scores_are_those_of_the_metrics(answers):
    config = MF2Config.from_size("tiny")
    predictions, labels = answers
    scores = score(config, predictions, labels, thresholds=[0.4] * 12, subjects=[str(i // 5) for i in range(60)])
    emotion, units = probabilities(predictions)
    expected = action_unit_scores(units, labels[1], config.action_units, thresholds=[0.4] * 12)
    expected |= emotion_scores(emotion, labels[0], config.emotions)
    for name, value in expected.items():
        assert np.array_equal(scores[name], value), name
    low, high = scores["intervals"]["au_f1_macro"]
    assert low < scores["au_f1_macro"] < high
    assert selection_score(scores) == scores["au_f1_macro"] + scores["emotion_macro_f1"]


@pytest.mark.parametrize("label_set", ["mfa", "bp4d", "raf_db"])
def test_files_and_pictures_of_every_kind_of_label_set(tmp_path, label_set):
    rng = np.random.default_rng(1)
    config = MF2Config.from_size("tiny", label_set=label_set, use_au_branch=label_set != "raf_db")
    units, emotions = len(config.action_units), len(config.emotions)
    predictions = rng.normal(size=(30, emotions)), rng.normal(size=(30, units))
    labels = rng.integers(0, max(1, emotions), 30), rng.integers(0, 2, (30, units))
    scores = score(config, predictions, labels, subjects=[str(i // 3) for i in range(30)])
    write_scores(tmp_path, scores, {"cpu_seconds": 1.5})
    draw_scores(tmp_path, scores, config, "random answers")
    draw_curves(tmp_path, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "au": 0.5}], "random answers", ("au",))
    flat = json.loads((tmp_path / "metrics.json").read_text())
    assert flat["cpu_seconds"] == 1.5 and all(isinstance(value, int | float) for value in flat.values())
    assert ("au_f1_macro" in flat) == (units > 0) and ("emotion_top1" in flat) == (emotions > 0)
    table = (tmp_path / "metrics.txt").read_text()
    assert all(name in table for name in (*config.action_units, *config.emotions))
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".txt", ".png"}, "nothing half-written is left"
    assert (tmp_path / "metrics.png").stat().st_size > 5000 and (tmp_path / "curves.png").stat().st_size > 5000


def test_each_group_is_scored_alone(answers):
    config = MF2Config.from_size("tiny")
    predictions, labels = answers
    groups = ["light", "dark", ""] * 20
    found = group_scores(config, predictions, labels, [0.4] * 12, groups)
    assert found["group/light/n"] == found["group/dark/n"] == 20
    assert not any(key.startswith("group//") for key in found), "no group of those whose group is unknown"
    alone = score(config, [part[1::3] for part in predictions], [part[1::3] for part in labels], [0.4] * 12)
    for name in ("au_f1_macro", "au_f1_tuned_macro", "emotion_top1", "emotion_ovr_accuracy"):
        assert found[f"group/dark/{name}"] == alone[name]
