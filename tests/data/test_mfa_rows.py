"""One image to one row: where its landmarks come from, and what is a problem rather than a row."""

import cv2
import numpy as np
import pytest
from test_frames import make_frames

from mf2face.data.build.landmark_cache import CachedFace
from mf2face.data.build.mfa import BuildOptions, RowMaker
from mf2face.data.corpora.frames import Video
from mf2face.data.schema import validate_examples
from mf2face.data.synthetic.faces import draw_example


class Bar:
    count = 0

    def update(self, count):
        self.count += count


class Cache:
    """In place of a detector: the first image has a face, the second a doubtful one, the third none."""

    def __init__(self, landmarks):
        sure, unsure = np.ones(68, np.float32), np.full(68, 0.1, np.float32)
        self.found = [CachedFace(landmarks, sure, sure[:4], 0.9), CachedFace(landmarks, unsure, sure[:4], 0.9), None]

    def faces(self, images, pixels):
        assert len(images) == len(pixels)
        return self.found[: len(images)]


@pytest.fixture
def frames(tmp_path):
    pixels, landmarks = draw_example(3, size=120)
    for number in range(1, 4):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), pixels[..., ::-1])
    made = make_frames([3], np.array([1, 2, 3]))
    video = Video("v", "s", ".", 1, ".jpg")
    points = np.array([landmarks, landmarks[:, ::-1], np.full((68, 2), np.nan)], np.float32)
    return made.__class__(**{**vars(made), "root": tmp_path, "videos": [video], "landmarks": points})


def make(frames, cache=None, **options):
    options = BuildOptions(**{"crop_size": 64, **options})
    bar = Bar()
    with RowMaker(frames, ["train"] * 3, options, cache) as maker:
        rows, hashes, kept, problems = maker.make(np.arange(3), bar)
    assert bar.count == 3 and len(rows) == len(hashes) == len(kept)
    assert validate_examples(rows) == len(rows)
    return rows, kept.tolist(), [(problem.image[2:], problem.kind) for problem in problems]


def test_landmarks_of_the_corpus_are_checked(frames):
    rows, kept, problems = make(frames, landmarks="corpus")
    assert kept == [0] and rows[0]["landmark_source"] == "given"
    assert problems == [("2.jpg", "landmarks"), ("3.jpg", "no face")]


def test_a_detector_that_is_unsure_found_nothing(frames):
    cache = Cache(frames.landmarks[0])
    assert make(frames, cache)[1:] == ([0, 1], [("3.jpg", "no face")])
    assert make(frames, cache, min_confidence=0.5)[1:] == ([0], [("2.jpg", "no face"), ("3.jpg", "no face")])
    rows, kept, _ = make(frames, cache, min_confidence=0.5, on_no_face="template")
    assert [row["landmark_source"] for row in rows] == ["detector", "template", "template"] and kept == [0, 1, 2]


def test_captions_are_the_rules_and_the_same_on_every_run(frames):
    first, second = (make(frames, landmarks="template")[0] for _ in range(2))
    assert [row["au_caption"] for row in first] == [row["au_caption"] for row in second]
    assert all(row["emotion_caption"] and row["caption_writer"] == "rule" for row in first)
    bare = make(frames, landmarks="template", captions=False)[0]
    assert {row["emotion_caption"] for row in bare} == {""} == {row["caption_writer"] for row in bare}
