"""A tower is trained from what it is given, and keeps nothing of its readouts."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from configuration_mf2 import MF2Config
from configuration_mf2.facs import LANDMARK_MIRROR
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.data.synthetic.rendering import SEEN
from mf2face.training import build
from mf2face.training.arguments import MF2Arguments
from mf2face.training.tower import (
    _WEIGHTS,
    MF2ForTowerTraining,
    TowerExamples,
    hide_patches,
    identity_loss,
    part_shares,
    patches_of,
    surface_in_crop,
    tower_scores,
)
from processing_mf2 import MF2Processor
from processing_mf2.augmentation import HEAVY, MF2Augmentation


def tower(**vision):
    torch.manual_seed(0)
    vision = {"frozen": False, "image_size": 64, "hidden_size": 32, **vision}
    return MF2ForTowerTraining(MF2Config.from_size("tiny", vision_config=vision))


@pytest.fixture
def model():
    return tower().eval()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    return MFASynthetic(24, "studio", with_truth=True, size=64, cache_dir=folder)


def examples(rows, augment=None):
    processor = MF2Processor.for_model(tower().config)
    return TowerExamples(rows, processor, 8, augment, seed=0)


def batch(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "index"}


def test_the_loss_is_the_weighted_sum_of_what_is_given(model, rendered):
    given = batch(examples(rendered).__getitems__(range(18)))
    output = model(**given)
    names = ("landmark", "part", "depth", "normal", "identity")
    torch.testing.assert_close(output.loss, sum(_WEIGHTS[name] * output[name] for name in names))
    assert output.pixel is None, "hidden patches are for training"
    output = model.train()(given["pixel_values"], given["landmarks"])
    torch.testing.assert_close(output.loss, 20 * output.landmark + 0.5 * output.pixel)
    labels = {"au_labels": torch.zeros(18, 12), "emotion_labels": torch.zeros(18, dtype=torch.long)}
    assert model(**given, **labels).au is None, "labels are not learned from"


def test_a_label_taught_tower_learns_labels_and_says_so():
    model = tower(label_taught=True)
    given = {"au_labels": torch.randint(-1, 2, (3, 12)), "emotion_labels": torch.tensor([1, -1, 7])}
    output = model(torch.randn(3, 3, 64, 64), 64 * torch.rand(3, 68, 2), **given)
    torch.testing.assert_close(output.loss, 2 * output.au + 0.5 * output.emotion + 20 * output.landmark)
    assert model.vision.config.label_taught and not tower().vision.config.label_taught


def test_gradients_reach_the_whole_tower(model, rendered):
    for block in model.vision.backbone.blocks:  # their outputs start at zero
        torch.nn.init.normal_(block.attention_out.weight, std=0.1)
        torch.nn.init.normal_(block.mlp_out.weight, std=0.1)
    model(**batch(examples(rendered).__getitems__(range(2)))).loss.backward()
    assert [name for name, p in model.vision.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_frozen_tower_is_refused():
    with pytest.raises(ValueError, match=r"vision_config.frozen: got True"):
        MF2ForTowerTraining(MF2Config.from_size("tiny"))


def test_whole_patches_are_hidden_and_the_rest_is_left():
    torch.manual_seed(0)
    images = torch.rand(64, 3, 48, 32) + 1
    hidden = hide_patches(images, 16)
    before, after = patches_of(images, 16), patches_of(hidden, 16)
    gone = (after == 0).all(-1)
    assert torch.equal(after[~gone], before[~gone])
    whole = ~gone.any(1)
    assert 0.3 < whole.double().mean() < 0.8, "about every second image is left whole"
    assert 0.1 < gone.double().mean() < 0.25


def test_patches_stand_in_the_order_of_the_tokens():
    image = torch.zeros(1, 3, 48, 32)
    image[:, :, 16:32, 16:] = 1  # second row, second column, of two columns
    assert patches_of(image, 16).sum(-1).argmax() == 3


def test_identity_contrast_is_low_where_images_of_a_person_are_near():
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), dim=1)
    right, wrong = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert identity_loss(near, right) < 0.1 < identity_loss(near, wrong)
    assert identity_loss(near, torch.arange(4)) == 0, "nobody is seen twice"


def test_what_is_known_follows_the_crop(rendered):
    """A flipped and turned crop: landmarks, parts and surface are where the pixels are."""
    plain = examples(rendered).__getitems__(range(8))
    turned = examples(rendered, MF2Augmentation(rotate=0, scale=0, shift=0, flip=1, cutout=0)).__getitems__([0])[0]
    first, grid = plain[0], 8
    flipped = first["landmarks"][list(LANDMARK_MIRROR)] * torch.tensor([-1, 1]) + torch.tensor([64.0, 0])
    torch.testing.assert_close(turned["landmarks"], flipped, atol=1e-3, rtol=0)
    parts = first["parts"].view(grid, grid, -1).flip(1).flatten(0, 1)
    assert (turned["parts"] - parts).abs().mean() < 0.01
    surface = first["surface"].view(grid, grid, 4).flip(1).flatten(0, 1) * torch.tensor([1, -1, 1, 1])
    both = surface[:, 0].isfinite() & turned["surface"][:, 0].isfinite()
    assert both.double().mean() > 0.5
    assert (turned["surface"][both] - surface[both]).abs().mean() < 0.02
    mouth = torch.stack([row["landmarks"][48:68].mean(0) for row in plain]) // 8
    lips = [row["parts"].view(grid, grid, -1)[int(y), int(x)] for row, (x, y) in zip(plain, mouth, strict=True)]
    share = torch.stack(lips)[:, [SEEN.index(name) for name in ("lips", "mouth", "worn", "occluder")]].sum(1)
    assert share.mean() > 0.3, "lips are at the landmarks of the mouth"


def test_a_normal_turns_with_its_crop():
    surface = np.zeros((14, 14, 4), np.float16)
    surface[..., 2] = 1  # faces up
    quarter = np.array([[0.0, -1, 64], [1, 0, 0], [0, 0, 1]])  # clockwise on the screen: up becomes right
    turned = surface_in_crop(surface, quarter, 64, 64, 8)
    np.testing.assert_allclose(turned, np.tile([0, 1, 0, 0], (64, 1)), atol=1e-6)
    assert np.isnan(surface_in_crop(surface * np.nan, quarter, 64, 64, 8)).all()
    mask = np.full((64, 64), SEEN.index("hair"), np.uint8)
    assert (part_shares(mask, quarter, 64, 8)[:, SEEN.index("hair")] == 1).all()


def test_half_of_a_training_batch_are_partners_and_examples_repeat(rendered):
    learning = examples(rendered, HEAVY)
    rows = learning.__getitems__(range(8))
    people = torch.stack([row["person"] for row in rows])
    assert torch.equal(people[:4], people[4:8])
    again = learning.__getitems__(range(8))
    assert all(torch.equal(one["pixel_values"], other["pixel_values"]) for one, other in zip(rows, again, strict=True))
    learning.set_epoch(1)
    assert not torch.equal(learning.__getitems__(range(8))[0]["pixel_values"], rows[0]["pixel_values"])


def test_what_a_tower_reads_is_measured(model, rendered):
    scores = tower_scores(model, examples(rendered), batch=10)
    assert set(scores) == {"tower/landmark_error", "tower/part_accuracy", "tower/depth_error"}
    assert 0 < scores["tower/landmark_error"] < 0.5, "untrained it answers with the mean face"
    drawn = rendered.remove_columns(["part_mask", "depth", "normals", "exact_landmarks"])
    assert set(tower_scores(model, examples(drawn))) == {"tower/landmark_error"}


def test_detected_landmarks_replace_the_rows_own_where_a_face_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # else a second run asks no detector
    rows, found = MFASynthetic(3, "drawn"), iter([[7.0], [], [1.0]])
    detector = SimpleNamespace(detect=lambda _: [[SimpleNamespace(landmarks=np.full((68, 2), x)) for x in next(found)]])
    monkeypatch.setattr(build, "_detector", lambda: detector)
    made = build.with_detected_landmarks(rows)
    assert [np.mean(made[place]["landmarks"]) for place in (0, 2)] == [7, 1]
    assert made[1]["landmarks"] == rows[1]["landmarks"] and {*made.column_names} == {*rows.column_names}

    found = iter([[5.0]] * 2)
    arguments = MF2Arguments(style="studio+street", landmarks="detector")
    assert np.mean(build.other_style(arguments, 2)[1]["landmarks"]) == 5
