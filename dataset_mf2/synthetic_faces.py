"""MFASynthetic: the embedded data set of drawn faces whose action units move pixels; always called synthetic."""

import errno
import hashlib
import inspect
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import datasets
import numpy as np
from datasets import Dataset, IterableDataset

from configuration_mf2.facs_mf2 import UNKNOWN_LABEL, LabelSet
from processing_mf2.captions_mf2 import RuleCaptioner

from .builder_mf2 import SPLIT_SIZES, as_label_set, mfa_features, split_by_subject
from .face_drawing import STYLES, draw_face
from .face_geometry import DRAWABLE_AUS, place_face
from .skin_folds import Fold
from .synthetic_subjects import (
    ACTIVE_FROM,
    FRAMES_PER_SUBJECT,
    FRAMES_PER_VIDEO,
    annotate,
    check_drawable,
    detected,
    expression,
    scene,
    subject,
    writer_rng,
)


logger = logging.getLogger(__name__)

CORPUS = "MFA-synthetic"
LICENCE = "Synthetic drawings, no person depicted; Apache-2.0 like the code that draws them"
_SHARD = 128  # images
_COMPLETE = "complete.json"


def draw_example(
    index: int, *, style: str = "paint", seed: int = 0, size: int = 112, exact_landmarks: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """RGB pixels and landmarks of image `index`; by default the landmarks carry a detector's error."""
    strengths = dict(zip(DRAWABLE_AUS, expression(seed, style, index)[0] / 5, strict=True))
    person = subject(seed, style, index // FRAMES_PER_SUBJECT)
    pixels, landmarks = draw_face(person.identity, strengths, scene(seed, style, index), size, style)
    return pixels, landmarks if exact_landmarks else detected(landmarks, seed, style, index, size)


def synthetic_truth(
    n: int, style: str = "paint", *, seed: int = 0, label_set: str | LabelSet = "mfa"
) -> dict[str, np.ndarray]:
    """What no annotator got wrong or left out: `au_labels`, `au_intensities` (n, AUs) and `emotion` (n,)."""
    columns = check_drawable(as_label_set(label_set))
    shown = [expression(seed, style, index) for index in range(n)]
    intensities = np.array([intensities[columns] for intensities, _ in shown], np.float32).reshape(n, len(columns))
    return {
        "au_labels": (intensities >= np.float32(ACTIVE_FROM)).astype(np.int8),
        "au_intensities": intensities,
        "emotion": np.array([emotion for _, emotion in shown], np.int8),
    }


def _png(pixels: np.ndarray) -> bytes:
    # Noise does not compress: the fastest level is as small as the best.
    encoded, buffer = cv2.imencode(".png", pixels[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 1))
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
    split_of_subject: tuple[str, ...],
) -> Iterator[dict]:
    columns, captioner = check_drawable(label_set), RuleCaptioner(label_set)
    for index in (index for shard in shards for index in range(*shard)):
        pixels, landmarks = draw_example(index, style=style, seed=seed, size=size, exact_landmarks=exact_landmarks)
        annotation = annotate(seed, style, index)
        labels = annotation.labels[columns]
        emotion = annotation.emotion if label_set.emotions else UNKNOWN_LABEL
        rng = writer_rng(seed, style, index)
        number = index // FRAMES_PER_SUBJECT
        name = f"{style}-{seed}-{number:05d}"
        yield {
            "image": {"bytes": _png(pixels), "path": None},
            "landmarks": landmarks,
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
            "licence": LICENCE,
        }


def MFASynthetic(
    n: int,
    style: str = "paint",
    *,
    seed: int = 0,
    size: int = 112,
    label_set: str | LabelSet = "mfa",
    streaming: bool = False,
    exact_landmarks: bool = False,
    split_sizes: Mapping[str, float] = SPLIT_SIZES,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """`n` drawn faces in the schema of `mfa_features`, cached on disk unless they are streamed.

    Landmarks carry a detector's error unless `exact_landmarks`: exact ones alone give many AUs away.
    The column `split` keeps subjects apart: `ds.filter(lambda split: split == "train", input_columns="split")`.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n: got {n!r}, expected a number of images from 1")
    if style not in STYLES:
        raise ValueError(f"style: got {style!r}, expected one of {list(STYLES)}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed: got {seed!r}, expected a whole number from 0")
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 32 <= size <= 1024:
        raise ValueError(f"size: got {size!r}, expected 32 to 1024 pixels")
    resolved = as_label_set(label_set)
    check_drawable(resolved)
    n, seed, size = int(n), int(seed), int(size)
    people = [index // FRAMES_PER_SUBJECT for index in range(0, n)]
    split_of_subject = tuple(split_by_subject(people, split_sizes, seed)[::FRAMES_PER_SUBJECT])
    settings = {
        "style": style,
        "seed": seed,
        "size": size,
        "label_set": resolved,
        "exact_landmarks": bool(exact_landmarks),
        "split_of_subject": split_of_subject,
    }
    shards = [(start, min(start + _SHARD, n)) for start in range(0, n, _SHARD)]
    features = mfa_features(resolved)
    if streaming:
        return IterableDataset.from_generator(_examples, features=features, gen_kwargs={"shards": shards, **settings})
    root = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / "mfa_synthetic"
    fingerprint = _fingerprint(n, settings)
    folder = root.expanduser() / f"{style}-{n}-{size}-{fingerprint}"
    if (cached := _load(folder)) is not None:
        return cached
    _make_room(folder.parent, n * size * size * 7)
    work = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        drawn = Dataset.from_generator(
            _examples,
            features=features,
            cache_dir=str(work / "drawn"),
            gen_kwargs={"shards": shards, **settings},
            num_proc=min(num_proc, len(shards)) if num_proc else None,
            fingerprint=fingerprint,
        )
        drawn.save_to_disk(work / "saved")
        del drawn
        (work / "saved" / _COMPLETE).write_text(json.dumps(_checksums(work / "saved")))
        _publish(work / "saved", folder)
    except Exception as error:
        if _disk_is_full(error):
            raise _disk_full(folder.parent) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    cached = _load(folder)
    if cached is None:
        raise OSError(f"cache_dir: {folder} was written and cannot be read back. Check the disk or pass another one")
    return cached


def _fingerprint(n: int, settings: Mapping) -> str:
    """Names the settings and the code that draws and describes: what is cached never outlives a change of either."""
    roles = (Fold, place_face, draw_face, annotate, mfa_features, draw_example, LabelSet, RuleCaptioner)
    files = {inspect.getfile(role) for role in roles}
    files.add(str(Path(inspect.getfile(RuleCaptioner)).with_name("wording_mf2.py")))
    digest = hashlib.sha256(repr((n, sorted(settings.items()), cv2.__version__)).encode())
    for file in sorted(files, key=lambda path: Path(path).name):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


def _checksums(folder: Path) -> dict[str, int]:
    sums = {}
    for path in sorted(path for path in folder.iterdir() if path.name != _COMPLETE):
        with open(path, "rb") as file:
            checksum = 0
            while block := file.read(1 << 22):
                checksum = zlib.crc32(block, checksum)
        sums[path.name] = checksum
    return sums


def _load(folder: Path) -> Dataset | None:
    """The cached data set; None if there is none, or if it is damaged, which then makes room for a new one."""
    if not folder.is_dir():
        return None
    try:
        if json.loads((folder / _COMPLETE).read_text()) == _checksums(folder):
            return datasets.load_from_disk(folder)
        reason = "its checksums differ"
    except (OSError, ValueError) as error:
        reason = str(error)
    logger.warning("%s is damaged (%s) and is drawn again", folder, reason)
    aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
    try:
        folder.rename(aside / "data")
    except OSError:
        logger.debug("another process has moved %s already", folder)
    shutil.rmtree(aside, ignore_errors=True)
    return None


def _publish(saved: Path, folder: Path) -> None:
    """A rename within a file system is atomic: others see all of it or nothing; the first process to finish wins."""
    try:
        saved.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _make_room(root: Path, needed: int) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cache_dir: {root} cannot be made ({error.strerror}). Pass another cache_dir, or streaming=True",
        ) from error
    if shutil.disk_usage(root).free < needed:
        raise _disk_full(root, needed)


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _disk_full(root: Path, needed: int = 0) -> OSError:
    free = shutil.disk_usage(root).free / 1e6
    wish = f", about {needed / 1e6:.0f} MB are needed" if needed else ""
    return OSError(
        errno.ENOSPC, f"cache_dir: {root} is full ({free:.0f} MB free{wish}). Pass another cache_dir, or streaming=True"
    )
