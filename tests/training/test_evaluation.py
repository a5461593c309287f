"""Logits to scores, files and pictures; what language is worth, on small hand-made cases and of an untrained model."""

import json

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from transformers import EvalPrediction

from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Examples
from mf2face.data.metrics import action_unit_scores, emotion_scores
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training import evaluation
from mf2face.training.evaluation import (
    draw_curves,
    draw_scores,
    group_scores,
    metrics_for_trainer,
    probabilities,
    score,
    write_scores,
)
from mf2face.training.language import FIGURES, _by_state, _matching, _retrieval, language_scores, matching_accuracy
from modeling_mf2 import MF2ForPreTraining
from processing_mf2 import MF2Processor


def test_scores_are_those_of_the_metrics_and_of_each_group():
    rng, config = np.random.default_rng(0), MF2Config.from_size("tiny")
    labels = rng.integers(-1, 8, 60), rng.integers(-1, 2, (60, 12))
    predictions = rng.normal(size=(60, 8)).astype(np.float32), rng.normal(size=(60, 12)).astype(np.float32)
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
    flat = json.loads((tmp_path / "metrics.json").read_text())
    assert flat["cpu_seconds"] == 1.5 and all(isinstance(value, int | float) for value in flat.values())
    assert ("au_f1_macro" in flat) == (units > 0) and ("emotion_top1" in flat) == (emotions > 0)
    table = (tmp_path / "metrics.txt").read_text()
    assert all(name in table for name in (*config.action_units, *config.emotions))
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".txt", ".png"}, "nothing half-written is left"
    assert (tmp_path / "metrics.png").stat().st_size > 5000


def test_curves_are_distinct_named_and_not_hidden_by_the_legend(tmp_path, monkeypatch):
    drawn, parts = [], tuple(f"part_{number}" for number in range(9))
    monkeypatch.setattr(evaluation, "_save", lambda figure, path: drawn.append(figure))
    logged = [{"step": s, **{name: (i + 1) / s for i, name in enumerate(("loss", *parts))}} for s in range(1, 41)]
    measured = [{"step": s, "eval_au_f1_macro": 0.5, "eval_emotion_top1": 0.4} for s in range(10, 40, 10)]
    draw_curves(tmp_path, logged + measured, "synthetic faces, 1,896 test images", parts)
    draw_curves(tmp_path, logged[:1], "my, faces", parts)
    draw_curves(tmp_path, [], "only scored: no curves", parts)
    whole, training = drawn
    whole.canvas.draw()
    for axis in whole.axes:
        lines = axis.get_lines()
        assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines)
        assert all(line.get_marker() not in ("None", "") for line in lines), "a single point has to be seen"
        legend = axis.get_legend().get_window_extent()
        assert not any(legend.overlaps(other.get_window_extent()) for other in whole.axes)
        assert whole.bbox.x0 <= legend.x0 and legend.x1 <= whole.bbox.x1 and legend.y1 <= whole.bbox.y1
    title = whole.get_suptitle()
    assert title.startswith("synthetic faces: training and validation") and "test" not in title
    assert [axis.get_title() for axis in training.axes] == ["training"]
    assert training.get_suptitle().startswith("my, faces: training by")
    plt.close("all")


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    config = MF2Config.from_size("tiny")
    processor = MF2Processor.for_model(config)
    return MF2ForPreTraining(config), processor, MFASynthetic(48, "drawn", seed=3)


def test_every_language_figure_is_there_and_an_untrained_model_is_near_chance(untrained):
    model, processor, faces = untrained
    examples = MF2Examples(faces.select(range(20)), processor)
    scores = language_scores(model.train(), processor, examples, examples)
    assert set(scores) == set(FIGURES)
    assert scores["itm_au_accuracy"] == pytest.approx(0.5, abs=0.15)
    assert scores["zero_shot_au_auc"] == pytest.approx(0.5, abs=0.15)
    assert scores["caption_au_f1"] < 0.5
    assert model.training


def test_without_captions_labels_or_a_branch_their_figures_are_left_out(untrained):
    model, processor, faces = untrained
    few = faces.select(range(8))
    found = set(language_scores(model, processor, *[MF2Examples(few, processor, texts=False)] * 2))
    # An AU's two sentences are known without captions.
    assert found == {name for name in FIGURES if not name.startswith(("retrieval", "itm_emo"))}
    unlabelled = MF2Examples(few.remove_columns(["au_labels", "emotion"]), processor)
    assert not language_scores(model, processor, unlabelled, unlabelled)
    config = MF2Config.from_size("tiny", use_au_branch=False)
    found = language_scores(MF2ForPreTraining(config), processor, *[MF2Examples(few, processor)] * 2)
    assert found and not any("au" in name.split("_") for name in found)


def test_matching_counts_each_unit_and_state_alike():
    truth = torch.tensor([[1, 0], [0, 0], [0, -1], [0, 1]])
    right = torch.where(truth[..., None] == torch.tensor([1, 0]), 0.9, 0.1)
    only_rest = right.clone()
    only_rest[0, 0] = torch.tensor([0.1, 0.9])  # the only face with the first AU active
    always = torch.full((4, 2, 2), 0.9)  # half of the answers are right, whatever is seen
    for pairs, accuracy in ((right, 1), (1 - right, 0), (always, 0.5), (only_rest, 0.75)):
        assert matching_accuracy(_by_state(truth, pairs), 0.5) == pytest.approx(accuracy)


def test_a_threshold_is_tuned_on_other_pairs():
    tuning = [(torch.tensor([0.3, 0.2, 0.25]), torch.tensor([0.1, 0.05, 0.15]))]
    found = _matching("emo", [(torch.tensor([0.2, 0.9]), torch.tensor([0.1, 0.16]))], tuning)
    assert found["itm_emo_accuracy"] == 0.75 and found["itm_emo_accuracy_tuned"] == 1
    assert 0.15 <= found["itm_emo_threshold"] < 0.2


def test_retrieval_never_counts_a_face_s_own_caption_nor_an_unknown_kind():
    kinds = torch.tensor([0, 0, 1, 1, -1])
    similarity = torch.eye(5) * 9
    similarity[0, 1] = similarity[1, 0] = 1
    similarity[2, 0] = similarity[3, 2] = 1
    similarity[:, 4] = 5
    found = _retrieval("r", similarity, kinds)
    assert found["r"] == 0.75
    assert found["r_over_chance"] == pytest.approx(0.75 / (1 / 3))
    assert _retrieval("r", torch.eye(2), torch.tensor([0, -1])) == {}
