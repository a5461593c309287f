"""Augmentation is a pure function of seed and index, and moves landmarks with pixels."""

import cv2
import numpy as np
import pytest

from configuration_mf2.facs import LANDMARK_MIRROR
from processing_mf2 import geometry as alignment_mf2
from processing_mf2.augmentation import MF2Augmentation
from processing_mf2.geometry import canonical_landmarks, transform_points, warp, warp_bytes
from processing_mf2.image_io import BACKGROUND


STILL = dict.fromkeys(MF2Augmentation.__dataclass_fields__, 0.0)


def test_equal_for_equal_seed_and_index_only():
    draws = {(seed, index): MF2Augmentation().draw(seed, index) for seed in (0, 1) for index in range(20)}
    assert all(MF2Augmentation().draw(*key) == draw for key, draw in draws.items())
    assert len({draw.angle for draw in draws.values()}) == len(draws)
    assert {draw.flips for draw in draws.values()} == {True, False}


def test_draws_stay_in_their_ranges_and_reach_them():
    augmentation = MF2Augmentation(rotate=20, scale=0.3, shift=0.1, cutout=1.0, cutout_size=0.4)
    draws = [augmentation.draw(0, index) for index in range(400)]
    angles, scales = np.rad2deg([draw.angle for draw in draws]), np.array([draw.scale for draw in draws])
    assert 18 < np.abs(angles).max() <= 20 and 0.7 <= scales.min() < 0.72 and 1.28 < scales.max() <= 1.3
    assert all(0.4 / 3 <= side <= 0.4 for draw in draws for side in draw.patch[2:])


def test_nothing_drawn_changes_nothing():
    draw = MF2Augmentation(**STILL).draw(0, 0)
    crop = np.random.default_rng(0).random((3, 20, 30), np.float32) * 255
    assert np.allclose(draw.matrix(20, 30), np.eye(3))
    assert np.allclose(draw.recolour(crop.copy()), crop, atol=1e-3)


def test_flip_is_its_own_inverse():
    draw = MF2Augmentation(**{**STILL, "flip": 1.0}).draw(0, 0)
    matrix, face = draw.matrix(100, 80), canonical_landmarks(100, 80)
    assert np.allclose(matrix @ matrix, np.eye(3))
    flipped = draw.reorder_landmarks(transform_points(matrix, face))
    # The mean face is symmetric: flipped and reordered it is itself.
    assert np.allclose(flipped, face)
    once = face + np.arange(136).reshape(68, 2)
    twice = once
    for _ in range(2):
        twice = draw.reorder_landmarks(transform_points(matrix, twice))
    assert np.allclose(twice, once)
    assert [LANDMARK_MIRROR[LANDMARK_MIRROR[i]] for i in range(68)] == list(range(68))


def test_colours_and_cutout():
    crop = np.full((3, 60, 60), 100, np.float32)
    bright = MF2Augmentation(**{**STILL, "brightness": 0.5}).draw(0, 0)
    assert np.allclose(bright.recolour(crop.copy()), crop * bright.brightness, atol=1e-3)
    grey = MF2Augmentation(**{**STILL, "saturation": 1.0})
    colours = np.random.default_rng(0).random((3, 60, 60), np.float32) * 200
    draws = [grey.draw(0, index) for index in range(50)]
    weakest = min(draws, key=lambda draw: draw.saturation)
    assert weakest.recolour(colours.copy()).std(0).mean() < colours.std(0).mean() * 0.2
    hidden = MF2Augmentation(**{**STILL, "cutout": 1.0, "cutout_size": 0.3}).draw(0, 2).recolour(crop.copy())
    share = (hidden == BACKGROUND).mean()
    assert 0 < share <= 0.09 and np.array_equal(hidden != 100.0, hidden == BACKGROUND)
    recoloured = MF2Augmentation().draw(5, 5).recolour(np.random.default_rng(1).random((3, 40, 40), np.float32) * 255)
    assert recoloured.min() >= 0 and recoloured.max() <= 255


@pytest.mark.parametrize("scale", [0.6, 0.9, 1.3])
def test_bytes_are_those_of_float_but_for_rounding(scale, monkeypatch):
    coarse = np.random.default_rng(0).random((60, 60, 3), np.float32) * 255
    image = cv2.resize(coarse, (270, 280)).round().astype(np.uint8).transpose(2, 0, 1)
    middle = np.array([[scale, 0, 112 - scale * 135], [0, scale, 112 - scale * 140], [0, 0, 1]])
    for index in range(8):
        draw = MF2Augmentation(cutout=0.5).draw(0, index)
        matrix = draw.matrix(224, 224) @ middle
        with monkeypatch.context() as without:
            without.setattr(alignment_mf2, "cv2", None)
            exact = warp(image, matrix, 224, 224)
        samples = warp_bytes(image, matrix, 224, 224)
        apart = np.abs(samples.transpose(2, 0, 1) - exact)
        # Along the border a sample of a pixel's quarter may count as beyond it. OpenCV 4: steps of 1/32 pixel.
        assert np.quantile(apart, 0.99) <= 1.02 and apart.mean() < 0.4
        plain = samples.transpose(2, 0, 1).astype(np.float32)
        colours = draw.recolour_bytes(samples).transpose(2, 0, 1) - draw.recolour(plain)
        assert np.abs(colours).max() <= 0.75  # rounding, and OpenCV's factors in steps of a thousandth


@pytest.mark.parametrize("ranges", [{"flip": 2}, {"rotate": -5}, {"scale": 1}])
def test_bad_ranges_are_named(ranges):
    with pytest.raises(ValueError, match=f"{next(iter(ranges))}: got"):
        MF2Augmentation(**ranges)
