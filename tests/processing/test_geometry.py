"""Landmarks land where pixels land; augmentation is a function of seed and index, and moves landmarks with pixels."""

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tvF

from processing_mf2 import geometry
from processing_mf2.augmentation import MF2Augmentation
from processing_mf2.geometry import (
    alignment_matrix,
    canonical_landmarks,
    fit_similarity,
    resize_matrix,
    transform_points,
    warp,
    warp_bytes,
)
from processing_mf2.image_io import BACKGROUND


def similarity(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    cos, sin = scale * np.cos(np.deg2rad(angle)), scale * np.sin(np.deg2rad(angle))
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]], [0, 0, 1]])


def smooth_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((6, 6, 3), np.float32) * 255
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).transpose(2, 0, 1)


def dots(points: np.ndarray, height: int, width: int, radius: float = 4.0) -> np.ndarray:
    """One channel a point: a soft white dot on black, its middle at the point."""
    y, x = np.mgrid[:height, :width] + 0.5
    spread = (x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2
    return (255 * np.exp(-spread / (2 * radius**2))).astype(np.float32)


def middles(channels: np.ndarray) -> np.ndarray:
    height, width = channels.shape[1:]
    mass = channels.sum((1, 2))
    x = (channels.sum(1) * (np.arange(width) + 0.5)).sum(1) / mass
    y = (channels.sum(2) * (np.arange(height) + 0.5)).sum(1) / mass
    return np.stack([x, y], axis=1)


def test_fit_is_least_squares_and_never_a_reflection():
    rng = np.random.default_rng(0)
    face, target = rng.normal(size=(30, 2)), rng.normal(size=(30, 2)) * (-1, 1)
    matrix = fit_similarity(face, target)
    assert np.linalg.det(matrix[:2, :2]) > 0

    def error(m: np.ndarray) -> float:
        return float(((transform_points(m, face) - target) ** 2).sum())

    for step in np.eye(4) * 1e-3:
        change = np.array([[step[0], -step[1], step[2]], [step[1], step[0], step[3]], [0, 0, 0]])
        assert error(matrix) < min(error(matrix + change), error(matrix - change))


def test_the_mouth_does_not_move_the_alignment():
    face = canonical_landmarks(200, 200)
    speaking = face.copy()
    speaking[[*range(4, 13), *range(54, 60)]] += (0, 15)
    assert np.allclose(alignment_matrix(speaking, 200, 200), np.eye(3), atol=1e-12)


@pytest.mark.parametrize("scale", [0.35, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("angle", [0, 25, -80])
def test_pixels_land_where_points_land(angle, scale):
    points = np.array([[90.0, 80.0], [150.5, 101.25], [120.0, 160.0]])
    image = BACKGROUND + dots(points, 240, 250) / 2  # on the colour of what lies beyond the border
    matrix = similarity(angle, scale, (0, 0))
    matrix[:2, 2] = np.array([200, 190]) - transform_points(matrix, np.array([[120.0, 110.0]]))[0]
    crop = warp(image, matrix, 380, 400)
    assert np.abs(middles(crop - BACKGROUND) - transform_points(matrix, points)).max() < 0.15


def test_a_very_large_shrink_keeps_the_place_and_the_brightness():
    image = dots(np.array([[700.0, 500.0]]), 1201, 1503, radius=60)
    matrix = resize_matrix(1201, 1503, 40, 50)
    crop = warp(image, matrix, 40, 50)
    assert np.abs(middles(crop) - transform_points(matrix, np.array([[700.0, 500.0]]))).max() < 0.1
    assert abs(crop.mean() - image.mean()) < 0.1
    # Nothing of a pattern finer than the crop's pixels is left.
    stripes = np.zeros((1, 640, 640), np.float32)
    stripes[:, :, ::2] = 255
    assert np.abs(warp(stripes, resize_matrix(640, 640, 80, 80), 80, 80) - 127.5).max() < 1


@pytest.mark.parametrize("size", [224, 150, 96, 300])
def test_plain_resize_is_that_of_torchvision(size):
    image = smooth_image(224, 224)
    crop = warp(image, resize_matrix(224, 224, size, size), size, size)
    expected = tvF.resize(torch.tensor(image), [size, size], antialias=True).numpy()
    # An area's mean against a triangle's: equal but where the image bends. OpenCV 4 samples in steps of 1/32 pixel.
    assert np.abs(crop - expected).max() < (2.5 if size < 224 else 0.02)


def test_beyond_the_border_there_is_grey():
    image = np.full((3, 50, 50), 200.0)
    crop = warp(image, np.array([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]]), 50, 50)
    assert (crop[:, :, :20] == BACKGROUND).all() and np.allclose(crop[:, :, 20:], 200)
    assert (warp(image, np.array([[1.0, 0, 400], [0, 1, 0], [0, 0, 1]]), 50, 50) == BACKGROUND).all()


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
            without.setattr(geometry, "cv2", None)
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
