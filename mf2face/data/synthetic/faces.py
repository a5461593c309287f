"""MFASynthetic: the embedded data set of rendered faces whose action units move pixels; always synthetic."""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import cv2
import datasets
import numpy as np
from datasets import Array2D, Array3D, Dataset, Features, Image, IterableDataset, List, Value

from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet
from mf2face.data.cache import load_or_build
from mf2face.data.schema import SPLIT_SIZES, as_label_set, describe_labels, mfa_features, split_counts
from mf2face.data.synthetic.bank import load_bank
from mf2face.data.synthetic.drawing import DRAWABLE_AUS, draw_face
from mf2face.data.synthetic.places import RENDERED_STYLES
from mf2face.data.synthetic.rendering import Sitter, Truth, render_face
from mf2face.data.synthetic.subjects import (
    ACTIVE_FROM,
    FRAMES_PER_SUBJECT,
    FRAMES_PER_VIDEO,
    STYLES,
    annotate,
    check_drawable,
    detected,
    expression,
    gaze,
    habits,
    is_rendered,
    scene,
    shot,
    sides,
    subject,
    writer_rng,
)
from processing_mf2.captions import RuleCaptioner


CORPUS = "MFA-synthetic"
LICENCE = "Synthetic drawings, no person depicted; Apache-2.0 like the code that draws them"
RENDERED_LICENCE = "Synthetic renders of CC0 heads (MakeHuman), no person depicted; Apache-2.0 like the code"
TOKENS = 14
"""Rows and columns of depth and normals."""
_SHARD = 128  # images
# Noise holds no repetitions to look for: a third of the default's time, and smaller.
_PNG_SETTINGS = (
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB),
)


def draw_example(
    index: int, *, style: str = "studio", seed: int = 0, size: int = 112, exact_landmarks: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """RGB pixels and landmarks of image `index`; by default the landmarks carry a detector's error."""
    _check_style(style)
    index, seed, size = _whole("index", index, 0, *_FROM_ZERO), _whole("seed", seed, 0, *_FROM_ZERO), _side(size)
    pixels, landmarks, _ = _image(index, style, seed, size)
    return pixels, landmarks if exact_landmarks else detected(landmarks, seed, style, index, size)


@lru_cache(maxsize=4)
def _sitter(seed: int, style: str, number: int, size: int) -> Sitter:
    return Sitter(subject(seed, style, number), size)


def _image(
    index: int, style: str, seed: int, size: int, with_truth: bool = False
) -> tuple[np.ndarray, np.ndarray, Truth | None]:
    """RGB pixels, exact landmarks and, if asked for, the truth of a rendered image."""
    if not is_rendered(style):
        strengths = dict(zip(DRAWABLE_AUS, expression(seed, style, index)[0] / 5, strict=True))
        person = subject(seed, style, index // FRAMES_PER_SUBJECT)
        return *draw_face(person, strengths, scene(seed, style, index), size), None
    return render_face(
        _sitter(seed, style, index // FRAMES_PER_SUBJECT, size),
        (sides(seed, style, index) / 5).astype(np.float32),
        shot(seed, style, index),
        size,
        gaze=gaze(seed, style, index),
        habits=habits(seed, style, index),
        with_truth=with_truth,
    )


def truth_features(action_units: int) -> Features:
    """Columns that rendered faces have beside those of `mfa_features`."""
    return Features(
        {
            "exact_landmarks": Array2D((68, 2), "float32"),
            "landmark_visible": List(Value("bool"), 68),
            "au_sides": List(List(Value("float32"), 2), action_units),
            "gaze": List(Value("float32"), 2),
            "head_pose": List(Value("float32"), 3),
            "part_mask": Image(),
            "depth": Array2D((TOKENS, TOKENS), "float32"),
            "normals": Array3D((TOKENS, TOKENS, 3), "float32"),
        }
    )


def _truth_columns(truth: Truth, landmarks: np.ndarray, columns: list[int]) -> dict:
    """Depth and normals are means over what is seen in each token; depth is NaN where nothing is."""
    size = len(truth.parts)
    cell = np.arange(size) * TOKENS // size
    where = (cell[:, None] * TOKENS + cell[None]).ravel()
    seen = np.isfinite(truth.depth).ravel()
    counts = np.bincount(where[seen], minlength=TOKENS * TOKENS)
    deep = np.bincount(where[seen], truth.depth.ravel()[seen].astype(np.float64), TOKENS * TOKENS)
    facing = [np.bincount(where[seen], truth.normals[..., k].ravel()[seen], TOKENS * TOKENS) for k in range(3)]
    with np.errstate(invalid="ignore"):
        depth = np.where(counts > 0, deep / np.maximum(counts, 1), np.nan).reshape(TOKENS, TOKENS)
    normals = (np.stack(facing, -1) / np.maximum(counts, 1)[:, None]).reshape(TOKENS, TOKENS, 3)
    return {
        "exact_landmarks": landmarks,
        "landmark_visible": truth.visibility,
        "au_sides": truth.sides[columns].astype(np.float32),
        "gaze": np.float32(truth.gaze),
        "head_pose": np.float32(truth.pose),
        "part_mask": {"bytes": _png(truth.parts), "path": None},
        "depth": depth.astype(np.float32),
        "normals": normals.astype(np.float32),
    }


def synthetic_truth(
    n: int, style: str = "studio", *, seed: int = 0, label_set: str | LabelSet = "mfa"
) -> dict[str, np.ndarray]:
    """The labels without annotators' errors: `au_labels`, `au_intensities` (n, AUs) and `emotion` (n,)."""
    _check_style(style)
    n, seed = _whole("n", n, 0, *_FROM_ZERO), _whole("seed", seed, 0, *_FROM_ZERO)
    columns = check_drawable(as_label_set(label_set), style)
    shown = [expression(seed, style, index) for index in range(n)]
    intensities = np.array([intensities[columns] for intensities, _ in shown], np.float32).reshape(n, len(columns))
    return {
        "au_labels": (intensities >= np.float32(ACTIVE_FROM)).astype(np.int8),
        "au_intensities": intensities,
        "emotion": np.array([emotion for _, emotion in shown], np.int8),
    }


def _png(pixels: np.ndarray) -> bytes:
    encoded, buffer = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels, _PNG_SETTINGS)
    if not encoded:
        raise RuntimeError(f"image: OpenCV could not encode {pixels.shape} pixels as PNG")
    return buffer.tobytes()


def _examples(
    shards: list[tuple[int, int]],
    style: str,
    seed: int,
    size: int,
    label_set: LabelSet,
    exact_landmarks: bool,
    with_truth: bool,
    split_of_subject: tuple[str, ...],
) -> Iterator[dict]:
    columns, captioner = check_drawable(label_set, style), RuleCaptioner(label_set)
    for index in (index for shard in shards for index in range(*shard)):
        pixels, exact, truth = _image(index, style, seed, size, with_truth)
        annotation = annotate(seed, style, index)
        labels = annotation.labels[columns]
        emotion = annotation.emotion if label_set.emotions else UNKNOWN_LABEL
        rng = writer_rng(seed, style, index)
        number = index // FRAMES_PER_SUBJECT
        name = f"{style}-{seed}-{number:05d}"
        yield {
            "image": {"bytes": _png(pixels), "path": None},
            "landmarks": exact if exact_landmarks else detected(exact, seed, style, index, size),
            "landmark_source": "exact" if exact_landmarks else "detector",
            "au_labels": labels,
            "au_intensities": annotation.intensities[columns].astype(np.float32),
            "emotion": emotion,
            "subject": name,
            "video": f"{name}-{index % FRAMES_PER_SUBJECT // FRAMES_PER_VIDEO}",
            "frame": index % FRAMES_PER_VIDEO * 10,
            "split": split_of_subject[number],
            "au_caption": captioner.au_caption(labels, rng),
            "emotion_caption": captioner.emotion_caption(labels, emotion, rng),
            "key_au_caption": captioner.key_au_caption(labels, emotion, rng),
            "caption_writer": "rule",
            "group": subject(seed, style, number).group,
            "corpus": CORPUS,
            "licence": RENDERED_LICENCE if is_rendered(style) else LICENCE,
            **(_truth_columns(truth, exact, columns) if truth else {}),
        }


def _whole(field: str, value: object, least: int, most: int, expected: str) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{field}: got {value!r}, expected {expected}")
    return int(value)


_FROM_ZERO = (2**63, "a whole number from 0")


def _side(size: object) -> int:
    return _whole("size", size, 32, 1024, "32 to 1024 pixels")


def _check_style(style: object) -> None:
    if style not in STYLES:
        raise ValueError(f"style: got {style!r}, expected one of {list(STYLES)}")


def split_of_subjects(n: int, split_sizes: Mapping[str, float], seed: int) -> tuple[str, ...]:
    """The split of each subject in the first `n` images; the last may have fewer. Memory grows with subjects only."""
    firsts = range(0, n, FRAMES_PER_SUBJECT)
    splits = split_counts({i: min(FRAMES_PER_SUBJECT, n - first) for i, first in enumerate(firsts)}, split_sizes, seed)
    return tuple(splits[i] for i in range(len(firsts)))


def MFASynthetic(
    n: int,
    style: str = "studio",
    *,
    seed: int = 0,
    size: int = 112,
    label_set: str | LabelSet = "mfa",
    streaming: bool = False,
    exact_landmarks: bool = False,
    with_truth: bool = False,
    split_sizes: Mapping[str, float] = SPLIT_SIZES,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """`n` synthetic faces in the schema of `mfa_features`, cached on disk unless they are streamed.

    Styles: `studio`, `street` and `webcam` are rendered in 3D; `drawn` is plain and quick, for tests. with_truth: the
    columns of `truth_features` too (rendered styles only).
    Landmarks carry a detector's error unless `exact_landmarks`: exact ones alone give many AUs away.
    The column `split` keeps subjects apart: `ds.filter(lambda split: split == "train", input_columns="split")`.
    """
    _check_style(style)
    n = _whole("n", n, 1, 10**9, "a number of images from 1")
    seed, size = _whole("seed", seed, 0, *_FROM_ZERO), _side(size)
    if num_proc is not None:
        num_proc = _whole("num_proc", num_proc, 1, 1024, "a number of processes from 1")
    resolved = as_label_set(label_set)
    check_drawable(resolved, style)
    if with_truth and not is_rendered(style):
        raise ValueError(f"with_truth: got style {style!r}, expected a rendered one of {list(RENDERED_STYLES)}")
    settings = {
        "style": style,
        "seed": seed,
        "size": size,
        "label_set": resolved,
        "exact_landmarks": bool(exact_landmarks),
        "with_truth": bool(with_truth),
        "split_of_subject": split_of_subjects(n, split_sizes, seed),
    }
    shards = [(start, min(start + _SHARD, n)) for start in range(0, n, _SHARD)]
    features = mfa_features(resolved)
    if with_truth:
        features = Features({**features, **truth_features(len(resolved.action_units))})
    if streaming:
        stream = IterableDataset.from_generator(_examples, features=features, gen_kwargs={"shards": shards, **settings})
        return describe_labels(stream, resolved)
    root = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / "mfa_synthetic"
    fingerprint = _fingerprint(n, settings)

    def build(scratch: str) -> Dataset:
        rows = Dataset.from_generator(
            _examples,
            features=features,
            cache_dir=scratch,
            gen_kwargs={"shards": shards, **settings},
            num_proc=min(num_proc, len(shards)) if num_proc else None,
            fingerprint=fingerprint,
        )
        return describe_labels(rows, resolved)

    # Twice the pixels' bytes, since Arrow writes and then saves them, and some for the rest of a row.
    bytes_needed = n * (6 * size * size + 4000)
    return load_or_build(root.expanduser() / f"{style}-{n}-{size}-{fingerprint}", build, bytes_needed)


def _fingerprint(n: int, settings: Mapping) -> str:
    """Changes with the settings and with the code that draws and describes, so that no cache outlives either."""
    roles = (draw_face, annotate, mfa_features, draw_example, LabelSet, RuleCaptioner)
    files = {inspect.getfile(role) for role in roles}
    files.add(str(Path(inspect.getfile(RuleCaptioner)).with_name("wording.py")))
    digest = hashlib.sha256(repr((n, sorted(settings.items()), cv2.__version__)).encode())
    if is_rendered(settings["style"]):
        digest.update(load_bank().sha256.encode())
        files.update(map(str, Path(__file__).parent.glob("*.py")))
    for file in sorted(files, key=lambda path: Path(path).name):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]
