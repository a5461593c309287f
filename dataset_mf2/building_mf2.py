"""A corpus to MFA: aligned crops, landmarks and captions, shard by shard, so that memory stays flat and a kill costs
one shard."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from .build_folder_mf2 import (
    Shard,
    plan_before,
    read_notes,
    remove_work,
    same_plan,
    write_notes,
    write_table,
    write_whole,
)
from .builder_mf2 import SPLITS, describe_labels, mfa_features
from .dataset_cache import disk_full
from .frames_mf2 import Frames
from .label_files_mf2 import CorpusError
from .landmark_cache_mf2 import LandmarkCache
from .mfa_card_mf2 import write_mfa_card
from .mfa_rows_mf2 import Problem, RowMaker
from .near_images_mf2 import HASH_BYTES, near_pairs


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
    return json.loads((out / "build.json").read_text(encoding="utf-8"))


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
        told = list(dict.fromkeys([*(json.loads(before.read_text()) if before.exists() else []), *told]))
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


__all__ = ["BuildOptions", "build_mfa", "shards_of"]
