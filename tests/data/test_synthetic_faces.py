import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from configuration_mf2.facs import EMOTIONS, LABEL_SETS, LabelSet
from mf2face.data.schema import check_leaks, mfa_features
from mf2face.data.synthetic.drawing import DRAWABLE_AUS
from mf2face.data.synthetic.faces import MFASynthetic, draw_example
from mf2face.data.synthetic.subjects import ACTIVE_FROM, annotate, expression


GOLDEN = "bc8ae76ddf72b3f1"


def checksum() -> str:
    digest = hashlib.sha256()
    for index in range(0, 120, 4):
        for array in draw_example(index, style="drawn", seed=7, size=112):
            digest.update(array.tobytes())
    digest.update(draw_example(5, style="drawn", seed=7, size=224)[0].tobytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def faces(cache):
    return MFASynthetic(160, "drawn", cache_dir=cache)


def test_two_calls_draw_the_same_bytes():
    first, second = (draw_example(11, style="drawn", seed=3) for _ in range(2))
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all()
    others = [draw_example(12, style="drawn", seed=3), draw_example(11, style="drawn", seed=4)]
    assert all((first[0] != other[0]).any() for other in [*others, draw_example(11, style="webcam", seed=3)])


@pytest.mark.skipif(not cv2.__version__.startswith("5.0"), reason="the golden bytes are OpenCV 5.0's")
def test_golden_checksum():
    assert checksum() == GOLDEN


@pytest.mark.skipif(not cv2.__version__.startswith("5.0"), reason="the golden bytes are OpenCV 5.0's")
def test_an_older_processor_draws_the_same_bytes():
    slow = {
        "OPENCV_CPU_DISABLE": "AVX512-SKX,AVX2,FP16,AVX,SSE4.1",
        "OPENCV_IPP": "disabled",
        "NPY_DISABLE_CPU_FEATURES": "AVX512_SPR AVX512_ICL AVX512_SKX X86_V4 X86_V3 AVX2 FMA3",
        "OPENBLAS_CORETYPE": "Nehalem",
    }
    code = "from tests.data.test_synthetic_faces import checksum; print(checksum())"
    command = [sys.executable, "-W", "ignore", "-c", code]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env={**os.environ, **slow}, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == GOLDEN


def test_rows_follow_the_schema(faces):
    check_leaks(faces)
    assert set(faces["split"]) == {"train", "validation", "test"}
    assert len(set(faces["subject"])) == 10 and len(set(faces["video"])) == 20
    first = faces[0]
    assert first["image"].size == (112, 112) and first["corpus"] == "MFA-synthetic" and "ynthetic" in first["licence"]
    assert first["landmark_source"] == "detector" and first["caption_writer"] == "rule"
    assert all(faces["au_caption"]) and any(text == "" for text in faces["emotion_caption"])


def test_streaming_equals_map_style(faces):
    streamed = MFASynthetic(160, "drawn", streaming=True)
    assert streamed.features == faces.features
    for one, other in zip(streamed.take(24), faces, strict=False):
        assert all((np.asarray(one[field]) == np.asarray(other[field])).all() for field in faces.features)


def test_a_prefix_shows_the_same_images(faces, cache):
    few = MFASynthetic(20, "drawn", cache_dir=cache, num_proc=2)
    assert all((np.asarray(few[i]["image"]) == np.asarray(faces[i]["image"])).all() for i in (0, 19))


@pytest.mark.parametrize("name", ["bp4d", "disfa", "gft", LabelSet(DRAWABLE_AUS, EMOTIONS)])
def test_other_label_sets(name, cache):
    rows = MFASynthetic(3, "drawn", label_set=name, cache_dir=cache, exact_landmarks=True)
    aus = (LABEL_SETS[name] if isinstance(name, str) else name).action_units
    assert rows.features == mfa_features(name) and len(rows[0]["au_labels"]) == len(aus)
    assert rows[0]["landmark_source"] == "exact"
    assert (np.asarray(rows[2]["image"]) == draw_example(2, style="drawn")[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: got 0, expected a number of images from 1"),
        ({"n": 2.5}, "n: got 2.5"),
        ({"style": "oil"}, "style: got 'oil', expected one of"),
        ({"seed": -1}, "seed: got -1"),
        ({"num_proc": 0}, "num_proc: got 0"),
        ({"size": 8}, "size: got 8, expected 32 to 1024"),
        ({"label_set": "mfaa"}, "label_set: got 'mfaa'"),
        ({"label_set": "emotionet"}, r"label_set: \['AU5', 'AU20'\] cannot be drawn, expected AUs among"),
        ({"label_set": "raf_db"}, "label_set: got emotions"),
        ({"split_sizes": {"dev": 1.0}}, "split_sizes: got"),
        ({"split_sizes": {"train": float("nan")}}, "split_sizes: got"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_arguments(arguments, message, streaming, tmp_path):
    with pytest.raises(ValueError, match=message):
        MFASynthetic(**{"n": 4, "style": "drawn", "streaming": streaming, "cache_dir": tmp_path, **arguments})
    assert not list(tmp_path.iterdir())


def test_streaming_a_million_starts_small():
    tracemalloc.start()
    MFASynthetic(1_000_000, "drawn", streaming=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6  # a list of all images alone has 40


def test_detector_error_is_the_default_and_scales():
    for size in (112, 224):
        errors = [
            draw_example(i, style="drawn", size=size)[1]
            - draw_example(i, style="drawn", size=size, exact_landmarks=True)[1]
            for i in range(40)
        ]
        assert np.std(errors) == pytest.approx(1.5 * size / 112, rel=0.05)
        assert abs(np.mean(errors)) < 0.1


def test_labels_agree_with_intensities_and_errors_are_rare():
    notes = [annotate(0, "drawn", index) for index in range(3000)]
    labels, intensities = (np.stack([getattr(note, name) for note in notes]) for name in ("labels", "intensities"))
    truth = np.stack([note.true_intensities for note in notes]) >= ACTIVE_FROM
    known = labels >= 0
    assert (known == (intensities >= 0)).all() and intensities.max() <= 5
    assert (labels[known] == (intensities >= ACTIVE_FROM)[known]).all()
    assert (labels != truth)[known].mean() == pytest.approx(0.02, abs=0.004)
    assert (~known).mean() == pytest.approx(0.02, abs=0.004)
    emotions, true_emotions = (
        np.array([getattr(note, name) for note in notes]) for name in ("emotion", "true_emotion")
    )
    assert (emotions < 0).mean() == pytest.approx(0.02, abs=0.01)
    assert (emotions != true_emotions)[emotions >= 0].mean() == pytest.approx(0.08, abs=0.02)
    assert np.bincount(true_emotions).min() > 0.08 * len(notes) and np.bincount(true_emotions).max() < 0.17 * len(notes)
    assert (truth.mean(0) > 0.06).all() and (truth.mean(0) < 0.5).all()


def test_a_video_goes_smoothly():
    steps = [
        np.abs(expression(0, "drawn", 8 * video + frame + 1)[0] - expression(0, "drawn", 8 * video + frame)[0]).mean()
        for video in range(60)
        for frame in range(7)
    ]
    strangers = [
        np.abs(expression(0, "drawn", 8 * v)[0] - expression(0, "drawn", 8 * v + 8)[0]).mean() for v in range(60)
    ]
    assert np.mean(steps) < 0.6 * np.mean(strangers)
