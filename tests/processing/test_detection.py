"""MediaPipe's chain, from pixels to its networks and back; coloured dots stand in for eyes."""

import math

import numpy as np
import pytest
import torch

from processing_mf2 import detection
from processing_mf2.detection import MediaPipeDetector, head_pose, missing_networks


def picture(height: int, width: int, *faces: tuple[float, float, float, float]) -> torch.Tensor:
    """Faces by the middle of their eyes, the eyes' distance and the angle: a red and a blue dot on grey."""
    image = np.full((height, width, 3), 100.0)
    rows, columns = np.mgrid[:height, :width] + 0.5
    for x, y, apart, angle in faces:
        for side, channel in ((-0.5, 0), (0.5, 2)):
            center = x + side * apart * math.cos(angle), y + side * apart * math.sin(angle)
            dot = np.exp(-((columns - center[0]) ** 2 + (rows - center[1]) ** 2) / (2 * (0.12 * apart) ** 2))
            image[..., channel] += 150 * dot
            image[..., 3 - 1 - channel] -= 100 * dot
    return torch.from_numpy(image.clip(0, 255).round().astype(np.uint8)).permute(2, 0, 1)


def dots(blob: np.ndarray) -> list[np.ndarray]:
    """Centers of the red and of the blue dot in pixels of a network's input."""
    red, _, blue = blob[0].astype(np.float64)
    rows, columns = np.mgrid[: red.shape[0], : red.shape[1]] + 0.5
    centers = []
    for weight in (red - blue, blue - red):
        weight = np.where(weight > 0.25 * weight.max(), weight, 0) + 1e-12
        centers.append(np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum())
    return centers


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks that find the dots: eyes of a box three eye distances wide, mesh points on the line between the eyes."""
    asked: list[str] = []

    def forward(name: str, blob: np.ndarray) -> list[np.ndarray]:
        asked.append(name)
        visible = blob[0, 0].max() - blob[0, 2].min() > 0.5 * np.ptp(np.array([-1, 1] if blob.min() < 0 else [0, 1]))
        first, second = dots(blob)
        if "landmark" in name:
            mesh = np.zeros((468, 3))
            mesh[:, :2] = (first + second) / 2
            mesh[[33, 234]] = [*first, 0]
            mesh[[263, 454]] = [*second, 0]
            mesh[152, :2] += 40
            return [np.array([[10.0 if visible else -10.0]]), mesh.reshape(1, -1)]
        _, anchors = detection._box_anchors("full" if "full" in name else "short")
        logits, values = np.full((1, len(anchors), 1), -9.0), np.zeros((1, len(anchors), 16))
        if visible and ("short" in name or np.linalg.norm(second - first) < 50):
            middle, size = (first + second) / 2, 3 * np.linalg.norm(second - first)
            near = np.argsort(np.linalg.norm(anchors - middle, axis=1))[:5]
            logits[0, near, 0] = [5, 4, 3, 2, 1]
            for place in near:
                offsets = [middle, (size, size), first, second]
                values[0, place, :8] = np.concatenate(
                    [value if index == 1 else value - anchors[place] for index, value in enumerate(offsets)]
                )
        return [logits, values]

    monkeypatch.setattr(detection, "_run_network", forward)
    return asked


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (64, 64), (1500, 2000)])
@pytest.mark.parametrize("angle", [0.0, 0.5, -0.9])
def test_landmarks_return_to_the_pixels_they_were_seen_at(size: tuple[int, int], angle: float) -> None:
    height, width = size
    x, y, apart = 0.55 * width, 0.45 * height, 0.15 * min(size)
    [[face]] = MediaPipeDetector().detect([picture(height, width, (x, y, apart, angle))])
    eye = np.array([math.cos(angle), math.sin(angle)]) * apart / 2
    tolerance = max(0.5, 0.02 * apart)
    np.testing.assert_allclose(face.landmarks[36], np.array([x, y]) - eye, atol=tolerance)
    np.testing.assert_allclose(face.landmarks[45], np.array([x, y]) + eye, atol=tolerance)
    assert face.score == pytest.approx(1 / (1 + math.exp(-5)))
    assert face.pose[2] == pytest.approx(math.degrees(angle), abs=3)
    assert face.box[0] <= face.landmarks[:, 0].min() and face.box[3] >= face.landmarks[:, 1].max()


def test_a_face_that_fills_the_frame_is_found_by_the_short_range(networks: list[str]) -> None:
    [[face]] = MediaPipeDetector().detect([picture(200, 200, (100, 90, 80, 0.0))])
    assert sum("full" in name for name in networks) == 1 and sum("short" in name for name in networks) == 1
    np.testing.assert_allclose(face.landmarks[36], [60, 90], atol=1)


@pytest.mark.parametrize("place", [(1300, 300), (40, 1550), (820, 790)])
def test_a_face_far_away_is_found_in_a_part_of_the_image(networks: list[str], place: tuple[float, float]) -> None:
    [[face]] = MediaPipeDetector().detect([picture(1600, 1600, (*place, 16, 0.2))])
    np.testing.assert_allclose(face.landmarks[[36, 45]].mean(0), place, atol=1)
    assert 4 < len(networks) < 40


def test_an_image_without_a_face_has_none_and_the_others_keep_theirs(networks: list[str]) -> None:
    empty = torch.full((3, 50, 70), 100, dtype=torch.uint8)
    faces = MediaPipeDetector().detect([empty, picture(100, 100, (50, 50, 20, 0.0)), torch.zeros(3, 1, 1)])
    assert [len(one) for one in faces] == [0, 1, 0]


def test_a_face_is_followed_and_a_lost_one_is_none() -> None:
    detector = MediaPipeDetector()
    faces = detector.detect([picture(240, 320, (150, 100, 30, 0.0))])[0]
    [moved] = detector.follow(picture(240, 320, (156, 104, 31, 0.2)), faces)
    np.testing.assert_allclose(moved.landmarks[[36, 45]].mean(0), [156, 104], atol=1)
    assert moved.score == faces[0].score
    assert detector.follow(torch.full((3, 240, 320), 100, dtype=torch.uint8), faces) == [None]


def rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """x to the right, y down, z away from the camera; up, to the image's right, clockwise."""
    p, y, r = np.radians([pitch, yaw, roll])
    about_x = np.array([[1, 0, 0], [0, math.cos(p), -math.sin(p)], [0, math.sin(p), math.cos(p)]]).T
    about_y = np.array([[math.cos(y), 0, -math.sin(y)], [0, 1, 0], [math.sin(y), 0, math.cos(y)]])
    about_z = np.array([[math.cos(r), -math.sin(r), 0], [math.sin(r), math.cos(r), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@pytest.mark.parametrize("pose", [(0, 0, 0), (20, 0, 0), (0, -35, 0), (0, 0, 25), (-15, 30, 10)])
def test_head_pose_is_that_of_the_turned_mesh(pose: tuple[float, float, float]) -> None:
    mesh = np.zeros((468, 3))
    mesh[[33, 234]], mesh[[263, 454]], mesh[10], mesh[152] = [-50, 0, 0], [50, 0, 0], [0, -80, 0], [0, 80, 0]
    np.testing.assert_allclose(head_pose(mesh @ rotation(*pose).T), pose, atol=1e-6)


@pytest.mark.skipif(bool(missing_networks()), reason="needs the networks of `mf2 setup`")
def test_the_real_networks_see_no_face_in_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    noise = np.random.default_rng(0).integers(0, 255, (3, 120, 160), dtype=np.uint8)
    assert MediaPipeDetector().detect([noise]) == [[]]


def test_missing_or_damaged_networks_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"face_detection_full_range.tflite.*mf2 setup"):
        MediaPipeDetector().detect([torch.zeros(3, 20, 20)])
    folder = detection.network_folder()
    folder.mkdir(parents=True)
    for name in detection.NETWORKS:
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(OSError, match=r"full_range.*SHA-256"):
        MediaPipeDetector().detect([torch.zeros(3, 20, 20)])
