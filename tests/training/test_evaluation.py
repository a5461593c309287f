"""Logits to scores, files and pictures; scores of the alignment with language."""

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from transformers import EvalPrediction

from configuration_mf2 import MF2Config
from mf2face.data.metrics import action_unit_scores, emotion_scores
from mf2face.training import evaluation as evaluation_mf2
from mf2face.training.evaluation import (
    draw_curves,
    draw_scores,
    group_scores,
    metrics_for_trainer,
    probabilities,
    score,
    write_scores,
)


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 8, 60), rng.integers(-1, 2, (60, 12))
    return (rng.normal(size=(60, 8)).astype(np.float32), rng.normal(size=(60, 12)).astype(np.float32)), labels


def test_scores_are_those_of_the_metrics_and_of_each_group(answers):
    config = MF2Config.from_size("tiny")
    predictions, labels = answers
    scores = score(config, predictions, labels, thresholds=[0.4] * 12, subjects=[str(i // 5) for i in range(60)])
    emotion, units = probabilities(predictions)
    np.testing.assert_allclose(emotion.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(units, 1 / (1 + np.exp(-predictions[1].astype(float))))
    expected = action_unit_scores(units, labels[1], config.action_units, thresholds=[0.4] * 12)
    expected |= emotion_scores(emotion, labels[0], config.emotions)
    for name, value in expected.items():
        assert np.array_equal(scores[name], value), name
    low, high = scores["intervals"]["au_f1_macro"]
    assert low < scores["au_f1_macro"] < high
    metrics = metrics_for_trainer(config)(EvalPrediction(predictions, labels))
    assert metrics["selection"] == metrics["au_f1_macro"] + metrics["emotion_macro_f1"]
    assert metrics["au_f1_macro"] == scores["au_f1_macro"]
    groups = group_scores(config, predictions, labels, [0.4] * 12, ["light", "dark", ""] * 20)
    assert groups["group/light/n"] == groups["group/dark/n"] == 20
    assert not any(key.startswith("group//") for key in groups), "no group of those whose group is unknown"
    alone = score(config, [part[1::3] for part in predictions], [part[1::3] for part in labels], [0.4] * 12)
    for name in ("au_f1_macro", "au_f1_tuned_macro", "emotion_top1", "emotion_ovr_accuracy"):
        assert groups[f"group/dark/{name}"] == alone[name]


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


PARTS = tuple(f"part_{number}" for number in range(9))


def curves(patch, folder, history, data="synthetic faces, 1,896 test images"):
    """The figure itself, before it is a file; None if there is nothing to draw."""
    drawn = []
    patch.setattr(evaluation_mf2, "_save", lambda figure, path: drawn.append(figure))
    draw_curves(folder, history, data, PARTS)
    for figure in drawn:
        figure.canvas.draw()
        plt.close(figure)
    return drawn[0] if drawn else None


def history_of(parts=("loss", *PARTS), measured=("au_f1_macro", "emotion_top1", "emotion_macro_f1"), steps=40):
    logged = [{"step": s, **{name: (i + 1) / s for i, name in enumerate(parts)}} for s in range(1, steps + 1)]
    return logged + [{"step": s, **{f"eval_{name}": 0.5 for name in measured}} for s in range(10, steps, 10)]


def test_curves_are_distinct_and_not_hidden_by_the_legend(tmp_path, monkeypatch):
    figure = curves(monkeypatch, tmp_path, history_of())
    for axis in figure.axes:
        lines = axis.get_lines()
        assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines)
        assert all(line.get_marker() not in ("None", "") for line in lines), "a single point has to be seen"
        legend = axis.get_legend().get_window_extent()
        assert not any(legend.overlaps(other.get_window_extent()) for other in figure.axes)
        assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1


def test_the_title_of_the_curves_names_data_and_panels(tmp_path, monkeypatch):
    title = curves(monkeypatch, tmp_path, history_of()).get_suptitle()
    assert title.startswith("synthetic faces") and "test" not in title and "896" not in title
    assert "validation" in title and "training" in title
    only_training = curves(monkeypatch, tmp_path, history_of(measured=(), steps=1), data="my, faces")
    assert [axis.get_title() for axis in only_training.axes] == ["training"]
    assert only_training.get_suptitle().startswith("my, faces") and "validation" not in only_training.get_suptitle()
    assert curves(monkeypatch, tmp_path, []) is None, "a model that was only scored has no curves"
