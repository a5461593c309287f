"""Landmarks of folders and videos: in batches, once, whatever interrupts it; and the real face-alignment package."""

import os
import sqlite3

import cv2
import numpy as np
import pytest
from test_landmarks import SETTINGS, _spots, no_download, weights  # noqa: F401 (fixtures)

from mf2face.data.build.landmark_cache import (
    CACHE_NAME,
    LandmarkCache,
    cut_video,
    find_in_folder,
    find_in_video,
    video_frames,
)
from mf2face.data.build.mfa import BuildOptions, build_mfa
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import read_corpus
from processing_mf2.landmarks import DetectedFace, template_landmarks


class Template:
    """Finds a face in the middle of every image that is not dark, and counts what it is asked."""

    def __init__(self) -> None:
        self.batches = []

    def detect(self, images):
        self.batches.append(len(images))
        return [self._faces(image) for image in images]

    def _faces(self, image):
        if image.float().mean() < 10:
            return []
        height, width = image.shape[1:]
        small = DetectedFace(np.array([0.0, 0, 9, 9]), 0.9, np.zeros((68, 2)), np.zeros(68))
        box = np.array([0.0, 0.0, width, height])
        return [small, DetectedFace(box, 0.8, template_landmarks(height, width), np.linspace(0, 1, 68))]


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        place = tmp_path / "images" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        value = 0 if number == 3 else 90 + number
        cv2.imwrite(str(place / f"{number}.png"), np.full((48, 40, 3), value, np.uint8))
    return tmp_path / "images"


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_each_image_is_looked_at_once(folder):
    names = names_in(folder)
    with LandmarkCache(folder, Template(), batch_size=3) as cache:
        first = cache.faces(names)
        assert cache.detector.batches == [3, 3, 1]
    with LandmarkCache(folder, Template(), batch_size=3) as cache:
        again = cache.faces(names)
        assert cache.detector.batches == []
        os.utime(folder / names[0], (1, 1))  # changed since
        cache.faces(names)
        assert cache.detector.batches == [1]
    assert [face is None for face in first] == [name == "b/3.png" for name in names]
    for one, other in zip(first, again, strict=True):
        if one is not None:
            assert np.array_equal(one.landmarks, other.landmarks) and np.array_equal(one.confidence, other.confidence)
            assert np.allclose(one.landmarks, template_landmarks(48, 40), atol=1e-4) and one.score == 0.8
    with LandmarkCache(folder, Template(), batch_size=3, flip_input=True) as cache:  # other settings, other answers
        cache.faces(names)
        assert cache.detector.batches == [3, 3, 1]


def test_what_was_found_before_a_kill_is_kept(folder):
    names = names_in(folder)

    class Dies(Template):
        def detect(self, images):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().detect(images)

    Dies.__name__ = "Template"
    with pytest.raises(KeyboardInterrupt), LandmarkCache(folder, Dies(), batch_size=2) as cache:
        cache.faces(names)
    with LandmarkCache(folder, Template(), batch_size=2) as cache:
        cache.faces(names)
        assert cache.detector.batches == [2, 1]


def test_a_folder_is_walked_and_bad_images_are_told(folder, caplog):
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG no")
    with LandmarkCache(folder, Template()) as cache:
        assert find_in_folder(cache) == {"images": 8, "faces": 6, "unreadable": 1}
        assert "broken.png" in caplog.text
        assert (folder / CACHE_NAME).is_file()


def test_videos_frame_by_frame(tmp_path):
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25, (48, 64))
    for number in range(5):
        writer.write(np.full((64, 48, 3), 0 if number == 2 else 100 + 20 * number, np.uint8))
    writer.release()
    with LandmarkCache(tmp_path, Template(), batch_size=2) as cache:
        found = find_in_video(cache, "v.avi")
        assert [face is None for face in found] == [False, False, True, False, False]
        find_in_video(cache, "v.avi")
        assert cache.detector.batches == [2, 2, 1]
    assert cut_video(video, tmp_path / "cut") == 5
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [f"{n:05d}.jpg" for n in range(1, 6)]
    means = [float(pixels.mean()) for _, pixels in video_frames(video)]
    assert means[4] > means[3] > means[1] > means[0] > means[2]
    for wrong, told in (("none.avi", "nothing there, expected a video"), ("cut/00001.jpg.avi", "got no frame")):
        if "cut" in wrong:
            (tmp_path / wrong).write_bytes(b"no video")
        with pytest.raises(CorpusError, match=told):
            list(video_frames(tmp_path / wrong))


def test_a_cache_that_cannot_be_written_says_what_to_do(folder):
    (folder / CACHE_NAME).mkdir()
    with pytest.raises(CorpusError, match="--landmark_cache"):
        LandmarkCache(folder, Template())
    other = folder.parent / "elsewhere" / "faces.sqlite"
    with LandmarkCache(folder, Template(), file=other) as cache:
        cache.faces(names_in(folder))
        cache.store.close()
        cache.store = sqlite3.connect(f"file:{other}?mode=ro", uri=True)
        os.utime(folder / "a" / "0.png", (1, 1))
        with pytest.raises(OSError, match=r"cannot be written .*what was found before is kept"):
            cache.faces(names_in(folder))


def test_missing_weights_stop_a_build_and_say_what_to_fetch(folder, no_download, tmp_path):  # noqa: F811
    with LandmarkCache(folder) as cache, pytest.raises(OSError, match=r"2DFAN4-11f355bf06\.pth\.tar") as caught:
        cache.faces(names_in(folder))
    assert str(no_download / "hub" / "checkpoints") in str(caught.value)


def test_the_real_package_builds_a_data_set(weights, tmp_path):  # noqa: F811
    """On random weights in its own formats: a spot is a face, whose landmarks may be no face's."""
    (tmp_path / "own" / "Anger").mkdir(parents=True)
    for number, places in enumerate(([(40, 56)], [])):
        cv2.imwrite(str(tmp_path / "own" / "Anger" / f"{number}.png"), _spots(*places, size=(96, 96))[..., ::-1])
    frames = read_corpus("own", tmp_path / "own")
    options = BuildOptions(crop_size=64, on_no_face="template", near="tell")
    with LandmarkCache(tmp_path / "own", **SETTINGS, batch_size=4) as cache:
        report = build_mfa(frames, ["train", "validation"], tmp_path / "mfa", options, cache)
        found = cache.faces(["Anger/0.png", "Anger/1.png"])
    assert found[0].landmarks.shape == (68, 2) and found[0].confidence.shape == (68,) and found[1] is None
    assert np.allclose((found[0].box[:2] + found[0].box[2:]) / 2, (40, 56), atol=9)
    assert report["counts"]["train"]["images"] == report["counts"]["validation"]["images"] == 1


def test_an_entry_that_the_disk_changed_is_found_anew(folder, caplog):
    names = names_in(folder)
    with LandmarkCache(folder, Template()) as cache:
        expected = cache.faces(names)
    damages = {
        "landmarks": np.ones((68, 2), np.float32).tobytes(),  # still a shape, but another
        "confidence": b"",
        "box": "a text",
        "score": None,
        "stamp": None,
    }
    for field, value in damages.items():
        with sqlite3.connect(folder / CACHE_NAME) as store:
            store.execute(f"UPDATE faces SET {field} = ? WHERE image = ?", (value, names[0]))
        store.close()
        caplog.clear()
        with LandmarkCache(folder, Template()) as cache:
            found = cache.faces(names)
            assert cache.detector.batches == [1], field
        assert np.array_equal(found[0].landmarks, expected[0].landmarks)
        assert field == "stamp" or f"the landmarks of {names[0]} as they were written" in caplog.text


def test_a_cache_without_checksums_stays_of_use(folder):
    names = names_in(folder)
    with LandmarkCache(folder, Template()) as cache:
        cache.faces(names)
    with sqlite3.connect(folder / CACHE_NAME) as store:
        store.execute("ALTER TABLE faces DROP COLUMN checksum")
    store.close()
    with LandmarkCache(folder, Template()) as cache:
        assert cache.faces(names)[0].landmarks.shape == (68, 2) and cache.detector.batches == []
    with sqlite3.connect(folder / CACHE_NAME) as store:
        store.execute("UPDATE faces SET landmarks = ? WHERE image = ?", (b"1234" * 7, names[0]))
    store.close()
    with LandmarkCache(folder, Template()) as cache:
        assert cache.faces(names)[0].landmarks.shape == (68, 2) and cache.detector.batches == [1]


def test_a_damaged_cache_file_is_named(folder):
    file, names = folder / CACHE_NAME, names_in(folder)
    with LandmarkCache(folder, Template()) as cache:
        cache.faces(names)
    whole = file.read_bytes()
    for damaged in (b"no database" * 999, whole[:100] + b"\xff" * (len(whole) - 100)):
        file.write_bytes(damaged)
        with pytest.raises(CorpusError, match=r"mf2_landmarks.sqlite: got .*, expected a file of landmarks.*remove it"):
            with LandmarkCache(folder, Template()) as cache:
                cache.faces(names)
    file.unlink()
    with sqlite3.connect(file) as store:
        store.execute("CREATE TABLE faces (mine TEXT)")
    store.close()
    with pytest.raises(CorpusError, match="got the columns mine, expected a table of faces"):
        LandmarkCache(folder, Template())


def test_images_whose_names_are_not_utf8_have_landmarks_too(folder):
    (folder / "a" / "0.png").rename(folder / "a" / os.fsdecode(b"caf\xe9.png"))
    for batches in ([7], []):
        with LandmarkCache(folder, Template(), batch_size=32) as cache:
            assert find_in_folder(cache) == {"images": 7, "faces": 6, "unreadable": 0}
            assert cache.detector.batches == batches


def test_a_flipped_bit_never_becomes_another_face(folder):
    file, names, rng = folder / CACHE_NAME, names_in(folder), np.random.default_rng(0)
    with LandmarkCache(folder, Template()) as cache:
        expected = cache.faces(names)
    whole = file.read_bytes()
    for _ in range(150):
        place = int(rng.integers(len(whole)))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        try:
            with LandmarkCache(folder, Template()) as cache:
                found = cache.faces(names)
        except CorpusError:
            continue
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            assert one is None or np.array_equal(one.landmarks, other.landmarks)
