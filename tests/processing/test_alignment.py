"""Landmarks land where pixels land, and resampling neither shifts nor aliases."""

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tvF

from configuration_mf2.facs import LANDMARK_MIRROR
from processing_mf2.geometry import (
    STEADY_POINTS,
    alignment_matrix,
    canonical_landmarks,
    fit_similarity,
    resize_matrix,
    transform_points,
    warp,
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


def test_similarity_is_recovered_exactly():
    face = canonical_landmarks(224, 224)
    truth = similarity(33, 2.7, (-40, 95))
    assert np.allclose(fit_similarity(face, transform_points(truth, face)), truth)


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


def test_steady_points_are_symmetric_and_ignore_the_mouth():
    assert {LANDMARK_MIRROR[point] for point in STEADY_POINTS} == set(STEADY_POINTS)
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


def test_identity_and_bytes():
    image = smooth_image(64, 48).round()
    assert np.abs(warp(image, np.eye(3), 64, 48) - image).max() < 1e-2
    assert np.array_equal(warp(image.astype(np.uint8), np.eye(3), 64, 48), warp(image, np.eye(3), 64, 48))


def test_beyond_the_border_there_is_grey():
    image = np.full((3, 50, 50), 200.0)
    crop = warp(image, np.array([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]]), 50, 50)
    assert (crop[:, :, :20] == BACKGROUND).all() and np.allclose(crop[:, :, 20:], 200)
    assert (warp(image, np.array([[1.0, 0, 400], [0, 1, 0], [0, 0, 1]]), 50, 50) == BACKGROUND).all()
