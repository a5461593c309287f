"""Logits to scores, files and pictures."""

import json

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from configuration_mf2 import MF2Config
from mf2face.data.metrics import action_unit_scores, emotion_scores
from mf2face.training import evaluation as evaluation_mf2
from mf2face.training.evaluation import (
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


OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"}  # its yellow is no line
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


def in_grey(line):
    figure = plt.figure(figsize=(2, 0.5))
    copy = Line2D([0.1, 0.9], [0.5, 0.5])
    copy.update_from(line)
    copy.set(transform=figure.transFigure, clip_on=False, linewidth=1.5)
    copy.set(color="black", markeredgecolor="black", markerfacecolor="black")
    figure.add_artist(copy)
    figure.canvas.draw()
    seen = bytes(figure.canvas.buffer_rgba())
    plt.close(figure)
    return seen


def test_every_curve_is_told_from_the_others_without_colours(tmp_path, monkeypatch):
    for axis in curves(monkeypatch, tmp_path, history_of()).axes:
        lines = axis.get_lines()
        assert len({in_grey(line) for line in lines}) == len(lines) in (10, 3)
        assert {line.get_color().upper() for line in lines} <= OKABE_ITO
        assert all(line.get_marker() not in ("None", "") for line in lines), "a single point has to be seen"


def test_the_legend_of_the_curves_hides_nothing(tmp_path, monkeypatch):
    figure = curves(monkeypatch, tmp_path, history_of())
    for axis in figure.axes:
        legend = axis.get_legend().get_window_extent()
        assert not any(legend.overlaps(other.get_window_extent()) for other in figure.axes)
        assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1


def test_curves_are_called_what_they_are_of(tmp_path, monkeypatch):
    title = curves(monkeypatch, tmp_path, history_of()).get_suptitle()
    assert title.startswith("synthetic faces") and "test" not in title and "896" not in title
    assert "validation" in title and "training" in title
    only_training = curves(monkeypatch, tmp_path, history_of(measured=(), steps=1), data="my, faces")
    assert [axis.get_title() for axis in only_training.axes] == ["training"]
    assert only_training.get_suptitle().startswith("my, faces") and "validation" not in only_training.get_suptitle()
    assert curves(monkeypatch, tmp_path, []) is None, "a model that was only scored has no curves"
