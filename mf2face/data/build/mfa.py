"""Pictures that are all but the same: by perceptual hashes, a few bytes an image, compared across the splits."""

import cv2
import numpy as np
import json
import zlib
import torch
import dataclasses
import os
import shutil
import pyarrow.parquet as pq
import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING, Literal
from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.schema import SPLITS, describe_labels, mfa_features
from mf2face.data.corpora.frames import Frames
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from processing_mf2.geometry import alignment_matrix, resize_matrix, transform_points, warp
from processing_mf2.captions import RuleCaptioner
from processing_mf2.image_io import read_image
from processing_mf2.landmarks import check_landmarks, check_orientation, template_landmarks
from mf2face.data.build.metadata import without_metadata
from mf2face.data.build.landmark_cache import CachedFace, LandmarkCache
from configuration_mf2.json_files import read_json
from mf2face.data.corpora.label_files import CorpusError
from datasets import Dataset
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from mf2face.data.cache import disk_full


HASH_BYTES = 32
MOST_BITS = 28
"""Of 256 that may differ. Of drawn faces, copies at two thirds of the size and JPEG quality 60 differ in 28 at most,
two people in 50 at least."""

_BLOCK = 2048


def image_hash(pixels: np.ndarray) -> np.ndarray:
    """(32,) bytes of an RGB picture: which of its 16 x 16 slowest cosine waves are stronger than their median."""
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    waves = cv2.dct(small)[:16, :16].ravel()
    return np.packbits(waves > np.median(waves))


def near_pairs(held_out: np.ndarray, training: np.ndarray, most: int = MOST_BITS) -> np.ndarray:
    """(pairs, 2) places of hashes that differ in at most `most` bits; memory does not grow with their number."""
    first, second = (
        np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, HASH_BYTES // 8) for hashes in (held_out, training)
    )
    found = []
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        for low in range(0, len(second), _BLOCK):
            other = second[low : low + _BLOCK]
            bits = np.zeros((len(block), len(other)), np.uint16)
            for word in range(HASH_BYTES // 8):
                bits += np.bitwise_count(block[:, None, word] ^ other[None, :, word])
            rows, columns = np.nonzero(bits <= most)
            found.append(np.stack([rows + start, columns + low], 1))
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)

def counts_of(frames: Frames, rows: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """Split -> images, videos, people, and images of each emotion and of each active AU that are labelled at all."""
    counts, is_known = {}, (frames.au_labels != UNKNOWN_LABEL).any(0)
    emotions = frames.label_set.emotions if (frames.emotion != UNKNOWN_LABEL).any() else ()
    for name in SPLITS:
        chosen = np.asarray(rows[name], int)
        if not len(chosen):
            continue
        videos = np.unique(frames.video[chosen])
        counts[name] = {
            "images": len(chosen),
            "videos": len(videos),
            "people or videos": len({frames.videos[place].subject for place in videos}),
            **{e: int((frames.emotion[chosen] == code).sum()) for code, e in enumerate(emotions)},
            **{
                f"{unit} active": int((frames.au_labels[chosen, column] == 1).sum())
                for column, unit in enumerate(frames.label_set.action_units)
                if is_known[column]
            },
        }
    return counts


_REASONS: Mapping[str, str] = {
    "lines_without_a_label": "lines say nothing of their image",
    "images_missing": "are not on the disk",
    "pictures_without_a_face": "show no face, as the corpus says",
    "without_any_labels": "have no label",
    "without_au_labels": "have no AU label (--require au)",
    "without_emotion_labels": "have no emotion label (--require emotion)",
    "without_both_labels": "lack AU or emotion labels (--require both)",
    "left_out_by_sampling": "are not the n-th of their video (--every)",
    "left_out_by_balancing": "are more than emotions alike allow (--balance)",
}
_PROBLEMS: Mapping[str, str] = {
    "unreadable": "cannot be read (--skip_unreadable)",
    "no face": "have no face (--on_no_face skip)",
    "landmarks": "have wrong landmarks",
}


def left_out(
    counts: Mapping[str, int], problems: Sequence[Any], near: Sequence[str], near_choice: str
) -> dict[str, int]:
    """Reason -> how many of the listed images are not in the data set because of it."""
    found = {told: counts[name] for name, told in _REASONS.items() if counts.get(name)}
    for kind, count in Counter(problem.kind for problem in problems).items():
        found[_PROBLEMS[kind]] = count
    if near and near_choice == "drop":
        found["all but repeat an image of another split (--near tell keeps them)"] = len(near)
    return found


def summary(report: Mapping[str, Any], out: str | Path) -> str:
    """What was built, for the end of a command: a line a split, and what was left out and why."""
    lines = [
        f"{name}: " + ", ".join(f"{value:,} {what}" for what, value in counts.items())
        for name, counts in report["counts"].items()
    ]
    built, why = sum(counts["images"] for counts in report["counts"].values()), report["left_out_because"]
    lines.append(f"{built:,} images are in {out}; see {out}/README.md")
    lines.append(f"{sum(why.values()):,} images were left out" + (f": {_reasons(why)}" if why else ""))
    return "\n".join(lines)


def write_mfa_card(
    folder: Path,
    frames: Frames,
    rows: Mapping[str, Sequence[int]],
    options: Mapping[str, Any],
    leaks: Mapping[str, Sequence[str]],
    problems: Sequence[Any],
) -> dict[str, Any]:
    counts = counts_of(frames, rows)
    report = {
        "corpus": frames.corpus,
        "licence": frames.licence,
        "protocol": frames.protocol,
        "counts": counts,
        "read": dict(frames.counts),
        "missing_images": list(frames.missing),
        "left_out": len(problems),
        "left_out_because": left_out(frames.counts, problems, leaks["near_identical"], options["near"]),
        "near_identical": list(leaks["near_identical"]),
        "in_two_splits": list(leaks["in_two_splits"]),
        "options": dict(options),
    }
    (folder / "build.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(report), encoding="utf-8")
    return report


def _card(report: Mapping[str, Any]) -> str:
    counts: Mapping[str, Mapping[str, int]] = report["counts"]
    files = "".join(f"  - split: {name}\n    path: data/{name}-*.parquet\n" for name in counts)
    lines = [
        f"---\nlicense: other\nlicense_name: {report['corpus']}\nconfigs:\n- config_name: default\n"
        f"  data_files:\n{files}---",
        f"# MFA from {report['corpus']}",
        f"**Licence.** {report['licence']}. Faces are personal data: the corpus's terms are this folder's too.",
        f"**Protocol.** {report['protocol']}",
        f"| | {' | '.join(counts)} |\n|---|{'---|' * len(counts)}\n" + _table(counts),
        "**Read.** " + "; ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in report["read"].items()) + ".",
        "**Left out.** " + (_reasons(report["left_out_because"]) or "Nothing") + ".",
        _leaks(report),
        "**Options.** " + ", ".join(f"`{name}={value}`" for name, value in report["options"].items()),
        "Landmarks are pixels of the stored image; `landmark_source` says where they come from. -1 is unknown.",
    ]
    return "\n\n".join(lines) + "\n"


def _reasons(why: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in why.items())


def _table(counts: Mapping[str, Mapping[str, int]]) -> str:
    names = next(iter(counts.values()))
    return "\n".join(f"| {name} | {' | '.join(f'{counts[s][name]:,}' for s in counts)} |" for name in names)


def _leaks(report: Mapping[str, Any]) -> str:
    near, names = report["near_identical"], report["in_two_splits"]
    done = {"drop": "left out of the split named first", "tell": "kept"}.get(report["options"]["near"], "")
    told = f"**Leak check.** People or videos in two splits: {len(names)}. Images all but identical across splits: "
    return told + (f"{len(near)}, {done}." if near else "none.")

_CHUNK = 32


@dataclass(frozen=True)
class Problem:
    """Why an image was left out."""

    image: str
    kind: str
    """unreadable, no face, or landmarks (the corpus's own are wrong)"""
    told: str


@dataclass(frozen=True)
class Crop:
    encoded: bytes
    landmarks: np.ndarray
    source: str
    fingerprint: np.ndarray


class RowMaker:
    """Rows in chunks: images of one chunk are in memory at a time."""

    def __init__(
        self, frames: Frames, split: Sequence[str], options: "BuildOptions", cache: LandmarkCache | None
    ) -> None:
        self.frames, self.split, self.options, self.cache = frames, split, options, cache
        self.captioner = RuleCaptioner(frames.label_set)

    def __enter__(self) -> "RowMaker":
        self.pool = ThreadPoolExecutor(self.options.workers)
        return self

    def __exit__(self, *raised: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def make(self, rows: np.ndarray, bar: Any) -> tuple[list[dict], np.ndarray, np.ndarray, list[Problem]]:
        """Rows of the schema, their hashes, which rows of the frames they are, and what was left out."""
        made, hashes, kept, problems = [], [], [], []
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            for row, crop in zip(chunk, self._crops(chunk), strict=True):
                if isinstance(crop, Problem):
                    problems.append(crop)
                    continue
                made.append(self._row(int(row), crop))
                hashes.append(crop.fingerprint)
                kept.append(int(row))
            bar.update(len(chunk))
        return made, np.array(hashes, np.uint8).reshape(-1, HASH_BYTES), np.array(kept, int), problems

    def _crops(self, rows: np.ndarray) -> list[Crop | Problem]:
        read = list(self.pool.map(self._read, rows))
        faces: dict[int, CachedFace | None] = {}
        if self.options.landmarks == "detector":
            good = [place for place, pixels in enumerate(read) if not isinstance(pixels, Problem)]
            names = [self.frames.image(rows[place]) for place in good]
            found = self.cache.faces(names, [read[place] for place in good])
            faces = dict(zip(good, found, strict=True))
        jobs = [
            (int(row), pixels, faces.get(place)) for place, (row, pixels) in enumerate(zip(rows, read, strict=True))
        ]
        return list(self.pool.map(lambda job: self._crop(*job), jobs))

    def _read(self, row: int) -> torch.Tensor | Problem:
        name = self.frames.image(row)
        try:
            return read_image(self.frames.root / name, name=name)
        except (ValueError, OSError) as error:
            told = str(error).replace(f"{self.frames.root}/", "")  # it is published with the data set
            return Problem(name, "unreadable", told)

    def _crop(self, row: int, pixels: torch.Tensor | Problem, face: CachedFace | None) -> Crop | Problem:
        if isinstance(pixels, Problem):
            return pixels
        name, height, width = self.frames.image(row), *pixels.shape[1:]
        points, source = None, "template"
        if self.options.landmarks == "detector" and face is not None:
            if face.confidence.mean() >= self.options.min_confidence:
                points, source = face.landmarks, "detector"
        elif self.options.landmarks == "corpus" and self.frames.landmarks is not None:
            if not np.isnan(self.frames.landmarks[row]).any():
                points, source = self.frames.landmarks[row], "given"
        if points is None and self.options.landmarks != "template" and self.options.on_no_face != "template":
            return Problem(name, "no face", f"no landmarks from the {self.options.landmarks}")
        if points is None:
            return self._ready(row, pixels)
        try:
            points = check_landmarks(points, height, width, name)
            check_orientation(points, name)
        except ValueError as error:
            return Problem(name, "landmarks" if source == "given" else "no face", str(error))
        side = self.options.crop_size
        border = round(side * self.options.margin)
        matrix = np.array([[1, 0, border], [0, 1, border], [0, 0, 1]]) @ alignment_matrix(points, side, side)
        crop = warp(pixels, matrix, side + 2 * border, side + 2 * border)
        return self._encoded(crop, transform_points(matrix, points), source)

    def _ready(self, row: int, pixels: torch.Tensor) -> Crop:
        """A picture that is aligned already: its compressed pixels as they are, if it is small enough and needs no
        turning. Whatever its file says beside them is left behind."""
        height, width = pixels.shape[1:]
        if max(height, width) <= 2 * self.options.crop_size:
            plain = without_metadata((self.frames.root / self.frames.image(row)).read_bytes())
            if plain is not None and _shows(plain, pixels):
                whole = pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()
                return Crop(plain, template_landmarks(height, width), "template", image_hash(whole))
        scale = self.options.crop_size / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale))) if scale < 1 else (height, width)
        crop = warp(pixels, resize_matrix(height, width, *size), *size)
        return self._encoded(crop, template_landmarks(*size), "template")

    def _encoded(self, crop: torch.Tensor, points: np.ndarray, source: str) -> Crop:
        pixels = crop.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        _, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.options.quality])
        border = (pixels.shape[0] - self.options.crop_size) // 2
        inner = pixels[border : pixels.shape[0] - border, border : pixels.shape[1] - border] if border > 0 else pixels
        return Crop(encoded.tobytes(), points.astype(np.float32), source, image_hash(inner))

    def _row(self, row: int, crop: Crop) -> dict[str, Any]:
        frames = self.frames
        video, labels, emotion = frames.videos[frames.video[row]], frames.au_labels[row], int(frames.emotion[row])
        name = frames.row_id(row)
        rng = np.random.default_rng((self.options.seed, zlib.crc32(name.encode())))
        texts, writer = {"au_caption": "", "emotion_caption": "", "key_au_caption": ""}, ""
        if self.options.captions:
            texts = {
                "au_caption": self.captioner.au_caption(labels, rng),
                "emotion_caption": self.captioner.emotion_caption(labels, emotion, rng),
                "key_au_caption": self.captioner.key_au_caption(labels, emotion, rng),
            }
            writer = "rule"
        unknown = np.full(len(labels), -1, np.float32)
        return {
            "image": {"bytes": crop.encoded, "path": None},
            "landmarks": np.asarray(crop.landmarks, np.float32),
            "landmark_source": crop.source,
            "au_labels": labels,
            "au_intensities": unknown if frames.au_intensities is None else frames.au_intensities[row],
            "emotion": emotion,
            "subject": video.subject,
            "video": video.name,
            "frame": int(frames.frame[row]),
            "split": self.split[row],
            **texts,
            "caption_writer": writer,
            "group": "",
            "corpus": frames.corpus,
            "licence": frames.licence,
        }


def _shows(content: bytes, pixels: torch.Tensor) -> bool:
    try:
        return torch.equal(read_image(content), pixels)
    except ValueError:
        return False

_ROW_GROUP = 100


@dataclass(frozen=True)
class Shard:
    split: str
    number: int
    of: int
    rows: np.ndarray

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.of:05d}.parquet"


def plan_before(work: Path) -> str | None:
    try:
        return read_json(work / "plan.json")["plan"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"Remove {work} to begin anew"
        raise CorpusError(work / "plan.json", str(error) or "damage", "the plan of a build", told) from error


def same_plan(work: Path, plan: dict[str, Any]) -> None:
    """The plan is written before any shard and removed after all: shards without it are of an unknown one."""
    file = work / "plan.json"
    if (before := plan_before(work)) is None:
        for name in ("result", "notes", "data"):
            shutil.rmtree(work / name, ignore_errors=True)
        (work / "near.json").unlink(missing_ok=True)
        write_whole(file, json.dumps(plan))
    elif before != plan["plan"]:
        options = read_json(file).get("options", {})
        changed = [f"{k}: {v!r}" for k, v in options.items() if v != plan["options"].get(k)]
        raise ValueError(
            f"out: {work} holds an unfinished build of other options or labels ({', '.join(changed) or 'other rows'}). "
            "Start with those to go on with it, or remove that folder to begin anew"
        )
    (work / "result" / "data").mkdir(parents=True, exist_ok=True)
    (work / "notes").mkdir(exist_ok=True)


def remove_work(work: Path) -> None:
    """The plan goes last: a folder without it holds nothing to go on from."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "plan.json":
            path.unlink()
    (work / "plan.json").unlink(missing_ok=True)
    work.rmdir()


def write_table(file: Path, table: Any, features: Any) -> None:
    temporary = file.with_name(file.name + ".part")
    with open(temporary, "wb") as stream:
        whole = table.replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(whole, stream, row_group_size=_ROW_GROUP)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def write_whole(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".part")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(file)


def write_notes(work: Path, shard: Shard, hashes: np.ndarray, kept: np.ndarray, problems: Sequence[Problem]) -> None:
    """What the end of the build has to know of a shard. It is written last: a shard without notes is built again."""
    told = {
        "rows": kept.tolist(),
        "hashes": np.ascontiguousarray(hashes).tobytes().hex(),
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }
    write_whole(work / "notes" / f"{shard.file}.json", json.dumps(told))


def read_notes(work: Path, shard: Shard) -> dict[str, Any] | None:
    """Of a finished shard whose file is whole."""
    try:
        notes = read_json(work / "notes" / f"{shard.file}.json")
        return notes if pq.read_metadata(work / "result" / "data" / shard.file).num_rows == len(notes["rows"]) else None
    except (OSError, ValueError):  # absent, or cut off
        return None

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """landmarks: of a detector, of the corpus, or the template: pictures are aligned already, and stay as they are.
    margin: what is kept around the aligned crop, of its side, so that augmentation can turn and shift it. on_no_face:
    `template` takes the picture as aligned. min_confidence: of a detector's landmarks, on average; less counts as no
    face. near: what happens to training images that a held-out image all but repeats.
    """

    landmarks: Literal["detector", "corpus", "template"] = "detector"
    crop_size: int = 224
    margin: float = 0.125
    quality: int = 95
    shard_rows: int = 1000
    on_no_face: Literal["raise", "skip", "template"] = "raise"
    min_confidence: float = 0.0
    skip_unreadable: bool = False
    near: Literal["drop", "raise", "tell"] = "drop"
    captions: bool = True
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        choices = {
            "landmarks": ("detector", "corpus", "template"),
            "on_no_face": ("raise", "skip", "template"),
            "near": ("drop", "raise", "tell"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {allowed}")
        ranges = {"crop_size": (32, 1024), "shard_rows": (1, 10**6), "workers": (1, 256), "quality": (1, 100)}
        ranges |= {"margin": (0, 1), "min_confidence": (0, 1), "seed": (0, 2**32 - 1)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected {low} to {high}")

    def of_the_pixels(self) -> dict[str, Any]:
        """What a finished shard depends on."""
        decided_later = ("workers", "near", "skip_unreadable")
        told = {name: value for name, value in dataclasses.asdict(self).items() if name not in decided_later}
        return told | {"on_no_face": "template" if self.on_no_face == "template" else ""}


def shards_of(frames: Frames, split: Sequence[str], options: BuildOptions) -> list[Shard]:
    """A random part of its split each: a stream of shards is then well mixed. In order within, as files lie."""
    rng, shards, sides = np.random.default_rng(options.seed), [], np.asarray(split, object)
    for name in SPLITS:
        rows = rng.permutation(np.flatnonzero(sides == name))
        count = -(-len(rows) // options.shard_rows)
        parts = np.array_split(rows, count) if count else []
        shards += [Shard(name, number, count, np.sort(part)) for number, part in enumerate(parts)]
    return shards


def build_mfa(
    frames: Frames,
    split: Sequence[str],
    out: str | Path,
    options: BuildOptions = BuildOptions(),
    cache: LandmarkCache | None = None,
) -> dict[str, Any]:
    """Writes a folder that `datasets.load_dataset` and `train.py --dataset` read, streaming or not; what was built.

    Until it is whole it lies in a hidden folder beside `out`, from which an interrupted build goes on.
    """
    out = Path(out)
    if len(split) != len(frames) or set(split) - set(SPLITS):
        raise ValueError(f"split: got {len(split)} of {sorted(set(split))}, expected {len(frames)} of {SPLITS}")
    if options.landmarks == "detector" and cache is None:
        raise ValueError("cache: got none, expected a LandmarkCache, for landmarks='detector'")
    _check_names(frames)
    shards = shards_of(frames, split, options)
    told_before = _leaks_by_name(frames, split)
    if told_before and options.near != "tell":
        raise CorpusError(
            *(frames.root, f"{len(told_before)} people or videos in two splits, such as {told_before[0]}"),
            "each in one split", "Split by people, or choose near='tell' to keep the corpus's own split as it is",
        )  # fmt: skip
    plan = _plan(frames, split, options)
    work = out.parent / f".{out.name}.building"
    if out.exists() and not work.exists():
        raise _is_there(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "lock", timeout=0):
            if out.exists():
                return _built_before(out, work, plan)
            same_plan(work, plan)
            _write_shards(work, shards, frames, split, options, cache)
            report = _finish(work, shards, frames, options, told_before)
            (work / "result").rename(out)
            remove_work(work)
    except Timeout as error:
        raise RuntimeError(f"out: another process builds {out} at this moment; wait for it, or end it") from error
    except Exception as error:
        if (full := disk_full(error)) is not None:
            told = f"out: the disk of {work} is full; finished shards are kept. Make room and start again"
            raise OSError(full.errno, told) from error
        raise
    return report


def _is_there(out: Path) -> FileExistsError:
    return FileExistsError(f"out: {out} is there already; name another folder, or remove it")


def _built_before(out: Path, work: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """The report of a build that a kill ended after `out` was there and before `work` was removed."""
    if (work / "result").exists():  # an unfinished build, and something else in the place of its result
        raise _is_there(out)
    same = plan_before(work) == plan["plan"]
    remove_work(work)
    if not same:
        raise _is_there(out)
    return read_json(out / "build.json")


def _check_names(frames: Frames) -> None:
    for video in frames.videos:
        for field, text in (("image", video.folder), ("video", video.name), ("subject", video.subject)):
            try:
                text.encode()
            except UnicodeEncodeError:  # bytes of a file name that are no UTF-8
                shown = repr(text.encode("utf-8", "backslashreplace").decode())
                told = "Rename it: a data set has no place for other names"
                raise CorpusError(frames.root, shown, "a name in UTF-8", told, field=field) from None


def _leaks_by_name(frames: Frames, split: Sequence[str]) -> list[str]:
    seen: dict[str, str] = {}
    found = {}
    for place, side in sorted(set(zip(frames.video.tolist(), split, strict=True))):
        for name in {frames.videos[place].subject, frames.videos[place].name}:
            if seen.setdefault(name, side) != side:
                found[name] = None
    return list(found)


def _plan(frames: Frames, split: Sequence[str], options: BuildOptions) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(options.of_the_pixels(), sort_keys=True).encode())
    digest.update(repr((frames.corpus, frames.licence, frames.label_set, str(frames.root.resolve()))).encode())
    for columns in (frames.video, frames.frame, frames.au_labels, frames.emotion, frames.landmarks):
        digest.update(b"" if columns is None else np.ascontiguousarray(columns).tobytes())
    digest.update("\n".join(video.image(0) for video in frames.videos).encode() + " ".join(split).encode())
    return {"plan": digest.hexdigest(), "options": dataclasses.asdict(options)}


def _write_shards(
    work: Path,
    shards: Sequence[Shard],
    frames: Frames,
    split: Sequence[str],
    options: BuildOptions,
    cache: LandmarkCache | None,
) -> None:
    features = mfa_features(frames.label_set)
    total = sum(len(shard.rows) for shard in shards)
    with RowMaker(frames, split, options, cache) as maker, tqdm(total=total, desc="crops", unit="image") as bar:
        for shard in shards:
            done = read_notes(work, shard)
            if done is None or (done["problems"] and not _let_pass(done["problems"], options)):
                rows, hashes, kept, problems = maker.make(shard.rows, bar)
                if not rows and problems:
                    first = problems[0]
                    told = "Name the right folder; or is the first of them damaged? Without any image there is no shard"
                    raise CorpusError(
                        frames.root / first.image, first.told, f"some good image among {len(shard.rows)}", told
                    )
                table = Dataset.from_list(rows, features=features).data.table
                write_table(work / "result" / "data" / shard.file, table, features)
                write_notes(work, shard, hashes, kept, problems)
            else:
                bar.update(len(shard.rows))


def _let_pass(problems: Sequence[dict], options: BuildOptions) -> bool:
    allowed = {"unreadable": options.skip_unreadable, "no face": options.on_no_face == "skip"}
    return all(allowed.get(problem["kind"], False) for problem in problems)


def _finish(
    work: Path, shards: Sequence[Shard], frames: Frames, options: BuildOptions, in_two_splits: Sequence[str]
) -> dict[str, Any]:
    notes = [read_notes(work, shard) for shard in shards]
    problems = [Problem(**problem) for note in notes for problem in note["problems"]]
    refused = [p for p in problems if not _let_pass([dataclasses.asdict(p)], options)]
    listed = "".join(f"{p.image}\t{p.kind}\t{p.told}\n" for p in problems)
    if refused:
        write_whole(work / "left_out.txt", listed)
        first, kinds = refused[0], {problem.kind for problem in refused}
        way = {
            "unreadable": "repair them, or pass skip_unreadable=True (--skip_unreadable)",
            "no face": "give landmarks, or choose on_no_face='skip' or 'template' (--on_no_face)",
            "landmarks": "correct the corpus's landmarks, or take a detector's",
        }
        raise CorpusError(
            *(frames.root / first.image, f"{len(refused)} images that cannot be used ({first.told})", "good ones"),
            f"{work / 'left_out.txt'} lists them all. Either {'; and '.join(way[kind] for kind in sorted(kinds))}, and "
            "start again: finished shards are kept",
        )
    dropped = _near_ones(work, shards, notes, frames, options)
    rows = {name: [] for name in SPLITS}
    for shard in shards:
        rows[shard.split] += read_notes(work, shard)["rows"]
    leaks = {"near_identical": dropped, "in_two_splits": list(in_two_splits)}
    result = work / "result"
    for part in result.rglob("*.part"):  # of a build that was killed
        part.unlink()
    report = write_mfa_card(result, frames, rows, dataclasses.asdict(options), leaks, problems)
    if problems:
        write_whole(result / "left_out.txt", listed)
    infos = {"default": {"description": describe_labels(Dataset.from_dict({}), frames.label_set).info.description}}
    write_whole(result / "dataset_infos.json", json.dumps(infos))
    return report


def _near_ones(
    work: Path, shards: Sequence[Shard], notes: Sequence[dict], frames: Frames, options: BuildOptions
) -> list[str]:
    """Images that a split held further out all but repeats: left out, or an error. A row id each, and its double."""
    places = [(n, k) for n, note in enumerate(notes) for k in range(len(note["rows"]))]
    joined = bytes.fromhex("".join(note["hashes"] for note in notes))
    hashes = np.frombuffer(joined, np.uint8).reshape(-1, HASH_BYTES)
    side = np.array([SPLITS.index(shards[n].split) for n, _ in places], int)
    found: dict[int, int] = {}
    for later in (2, 1):
        ours, theirs = np.flatnonzero(side == later), np.flatnonzero(side < later)
        for held, training in near_pairs(hashes[ours], hashes[theirs]):
            found[int(theirs[training])] = int(ours[held])
    told = []
    drop: dict[int, set[int]] = {}
    for one, other in sorted(found.items()):
        names = [frames.row_id(notes[n]["rows"][k]) for n, k in (places[one], places[other])]
        told.append(
            f"{names[0]} ({shards[places[one][0]].split}) repeats {names[1]} ({shards[places[other][0]].split})"
        )
        drop.setdefault(places[one][0], set()).add(places[one][1])
    before = work / "near.json"  # what an interrupted end of the build has left out already
    if options.near == "drop":
        told = list(dict.fromkeys([*(read_json(before) if before.exists() else []), *told]))
        write_whole(before, json.dumps(told))
    if told and options.near == "raise":
        raise ValueError(
            f"near: {len(told)} images are all but identical to one in another split: {'; '.join(told[:3])}. Leave "
            "them out with near='drop' (--near drop), or keep them with 'tell'; finished shards are kept"
        )
    if options.near == "drop":
        for n, rows in drop.items():
            _leave_out(work, shards[n], notes[n], rows, frames)
    return told


def _leave_out(work: Path, shard: Shard, note: dict, rows: set[int], frames: Frames) -> None:
    kept = [place for place in range(len(note["rows"])) if place not in rows]
    file = work / "result" / "data" / shard.file
    write_table(file, pq.read_table(file).take(kept), mfa_features(frames.label_set))
    hashes = np.frombuffer(bytes.fromhex(note["hashes"]), np.uint8).reshape(-1, HASH_BYTES)[kept]
    problems = [Problem(**problem) for problem in note["problems"]]
    write_notes(work, shard, hashes, np.array(note["rows"])[kept], problems)


__all__ = ['BuildOptions', 'MOST_BITS', 'Problem', 'RowMaker', 'Shard', 'build_mfa', 'counts_of', 'image_hash', 'left_out', 'near_pairs', 'plan_before', 'read_notes', 'remove_work', 'same_plan', 'shards_of', 'summary', 'write_mfa_card', 'write_notes', 'write_table', 'write_whole']
