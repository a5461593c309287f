"""Landmarks of folders and videos: in batches, once, whatever interrupts it."""

import contextlib
import os
import sqlite3

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from test_landmarks import no_download  # noqa: F401 (a fixture)

from mf2face.data.build.crops import BuildOptions
from mf2face.data.build.landmark_cache import CACHE_NAME, LandmarkCache, cut_video
from mf2face.data.build.mfa import build_mfa
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import read_corpus
from processing_mf2.image_io import read_image
from processing_mf2.landmarks import DetectedFace, template_landmarks


class Template:
    """Finds a face in the middle of every image that is not dark, and counts what it is asked."""

    def __init__(self) -> None:
        self.batches = []

    def detect(self, images):
        self.batches.append(len(images))
        return [self._faces(image) for image in images]

    def _faces(self, image):
        if image.mean() < 10:
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
    (tmp_path / "images/a/6.png").rename(tmp_path / "images/a" / os.fsdecode(b"caf\xe9.png"))
    return tmp_path / "images"


def names_in(folder):
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*.png"))


def look(cache):
    names = names_in(cache.root)
    return cache.faces(names, [read_image(cache.root / name) for name in names])


def test_videos_are_cut_into_frames(tmp_path):
    video = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 25, (48, 64))
    for number in range(5):
        writer.write(np.full((64, 48, 3), 100 + 20 * number, np.uint8))
    writer.release()
    assert cut_video(video, tmp_path / "cut") == cut_video(video, tmp_path / "cut") == 5
    frames = sorted((tmp_path / "cut").iterdir())
    assert [path.name for path in frames] == [f"{n:05d}.jpg" for n in range(1, 6)]
    means = [float(cv2.imread(str(path)).mean()) for path in frames]
    assert means == sorted(means) and means[0] == pytest.approx(100, abs=3)
    (tmp_path / "empty.avi").write_bytes(b"no video")
    for wrong, message in (("none.avi", "nothing there, expected a video"), ("empty.avi", "got no frame")):
        with pytest.raises(CorpusError, match=message):
            cut_video(tmp_path / wrong, tmp_path / "cut")


def test_each_image_is_looked_at_once(folder):
    names = names_in(folder)
    with LandmarkCache(folder, Template(), batch_size=3) as cache:
        first = look(cache)
        assert cache.detector.batches == [3, 3, 1]
    with LandmarkCache(folder, Template(), batch_size=3) as cache:
        again = look(cache)
        assert cache.detector.batches == []
        os.utime(folder / names[0], (1, 1))  # changed since
        look(cache)
        assert cache.detector.batches == [1]
    assert [face is None for face in first] == [name == "b/3.png" for name in names]
    for one, other in zip(first, again, strict=True):
        if one is not None:
            assert np.array_equal(one.landmarks, other.landmarks) and np.array_equal(one.confidence, other.confidence)
            assert np.allclose(one.landmarks, template_landmarks(48, 40), atol=1e-4) and one.score == 0.8
    with LandmarkCache(folder, Template(), batch_size=3, flip_input=True) as cache:  # other settings, other answers
        look(cache)
        assert cache.detector.batches == [3, 3, 1]


def test_what_was_detected_before_a_kill_is_kept(folder):
    class Dies(Template):
        def detect(self, images):
            if len(self.batches) == 2:
                raise KeyboardInterrupt
            return super().detect(images)

    Dies.__name__ = "Template"
    with pytest.raises(KeyboardInterrupt), LandmarkCache(folder, Dies(), batch_size=2) as cache:
        look(cache)
    with LandmarkCache(folder, Template(), batch_size=2) as cache:
        look(cache)
        assert cache.detector.batches == [2, 1]


def test_a_cache_that_cannot_be_written_says_what_to_do(folder):
    (folder / CACHE_NAME).mkdir()
    with pytest.raises(CorpusError, match="--landmark_cache"):
        LandmarkCache(folder, Template())
    other = folder.parent / "elsewhere" / "faces.sqlite"
    with LandmarkCache(folder, Template(), file=other) as cache:
        look(cache)
        cache.store.close()
        cache.store = sqlite3.connect(f"file:{other}?mode=ro", uri=True)
        os.utime(folder / "a" / "0.png", (1, 1))
        with pytest.raises(OSError, match=r"landmark cache: .* cannot be written .*Make room"):
            look(cache)


def test_missing_weights_stop_a_build_and_say_what_to_fetch(folder, no_download, tmp_path):  # noqa: F811
    with LandmarkCache(folder) as cache, pytest.raises(OSError, match=r"2DFAN4-11f355bf06\.pth\.tar") as caught:
        look(cache)
    assert str(no_download / "hub" / "checkpoints") in str(caught.value)


def test_detected_faces_build_a_data_set(folder, tmp_path):
    (folder / "labels.csv").write_text(
        "\n".join(["image,emotion", *(f"{name},Fear" for name in ("b/1.png", "b/3.png"))])
    )
    options = BuildOptions(crop_size=64, on_no_face="template", near="tell")
    with LandmarkCache(folder, Template()) as cache:
        build_mfa(read_corpus("own", folder), ["train", "test"], tmp_path / "mfa", options, cache)
    files = [next((tmp_path / "mfa" / "data").glob(f"{split}-*.parquet")) for split in ("train", "test")]
    sources = [pq.read_table(file, columns=["landmark_source"]).to_pylist() for file in files]
    assert sources == [[{"landmark_source": "detector"}], [{"landmark_source": "template"}]]


def execute(file, query, *values):
    with contextlib.closing(sqlite3.connect(file)) as store, store:
        store.execute(query, values)


def test_an_entry_that_the_disk_changed_is_detected_again(folder, caplog):
    file, name = folder / CACHE_NAME, names_in(folder)[0]
    with LandmarkCache(folder, Template()) as cache:
        expected = look(cache)
    for field, value in {
        "landmarks": np.ones((68, 2), np.float32).tobytes(),  # still a shape, but another
        "confidence": b"",
        "box": "a text",
        "score": None,
        "stamp": None,
    }.items():
        execute(file, f"UPDATE faces SET {field} = ? WHERE image = ?", value, name)
        caplog.clear()
        with LandmarkCache(folder, Template()) as cache:
            found = look(cache)
            assert cache.detector.batches == [1], field
        assert np.array_equal(found[0].landmarks, expected[0].landmarks)
        assert field == "stamp" or f"the landmarks of {name} as they were written" in caplog.text
    execute(file, "ALTER TABLE faces DROP COLUMN checksum")  # of a version without, which stays of use
    for batches in ([], [1]):
        with LandmarkCache(folder, Template()) as cache:
            assert look(cache)[0].landmarks.shape == (68, 2) and cache.detector.batches == batches
        execute(file, "UPDATE faces SET landmarks = ? WHERE image = ?", b"1234" * 7, name)


def test_a_damaged_cache_file_is_named(folder):
    file = folder / CACHE_NAME
    with LandmarkCache(folder, Template()) as cache:
        look(cache)
    whole = file.read_bytes()
    for damaged in (b"no database" * 999, whole[:100] + b"\xff" * (len(whole) - 100)):
        file.write_bytes(damaged)
        with pytest.raises(CorpusError, match=r"mf2_landmarks.sqlite: got .*, expected a file of landmarks.*remove it"):
            with LandmarkCache(folder, Template()) as cache:
                look(cache)
    file.unlink()
    execute(file, "CREATE TABLE faces (mine TEXT)")
    with pytest.raises(CorpusError, match="got the columns mine, expected a table of faces"):
        LandmarkCache(folder, Template())
