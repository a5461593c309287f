"""Builds a data set of MFA from a corpus: in shards, from which an interrupted build goes on, whole or absent; its
card and report: counts, what was left out and why, leaks."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from tqdm.auto import tqdm

from configuration_mf2.facs import UNKNOWN_LABEL
from configuration_mf2.json_files import read_json
from mf2face.data.build.crops import HASH_BYTES, BuildOptions, Problem, RowMaker, near_pairs
from mf2face.data.build.landmark_cache import LandmarkCache
from mf2face.data.corpora.frames import Frames
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.schema import SPLITS, describe_labels, mfa_features
from mf2face.files import disk_full, is_disk_full, locked, remove_leftovers, whole_file, write_whole


_ROW_GROUP = 100


@dataclass(frozen=True)
class Shard:
    split: str
    number: int
    count: int
    rows: np.ndarray

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.count:05d}.parquet"


@dataclass(frozen=True)
class Notes:
    """What the end of the build has to know of a shard. Written last: a shard without notes is built again."""

    rows: np.ndarray
    hashes: np.ndarray
    problems: list[Problem]


def shards_of(frames: Frames, split: Sequence[str], options: BuildOptions) -> list[Shard]:
    """Random parts of each split, so that a stream of shards is well mixed; in order within, as files lie."""
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
    options: BuildOptions | None = None,
    cache: LandmarkCache | None = None,
) -> dict[str, Any]:
    """Writes a folder that `datasets.load_dataset` and `train.py --dataset` read, streaming or not; returns its report.

    Until it is whole it lies in a hidden folder beside `out`, from which an interrupted build goes on.
    """
    out, options = Path(out), options or BuildOptions()
    if len(split) != len(frames) or set(split) - set(SPLITS):
        raise ValueError(f"split: got {len(split)} of {sorted(set(split))}, expected {len(frames)} of {SPLITS}")
    if options.landmarks == "detector" and cache is None:
        raise ValueError("cache: got none, expected a LandmarkCache, for landmarks='detector'")
    _check_names(frames)
    shared = _in_two_splits(frames, split)
    if shared and options.near != "tell":
        raise CorpusError(
            *(frames.root, f"{len(shared)} people or videos in two splits, such as {shared[0]}", "each in one split"),
            "Split by people, or choose near='tell' to keep the corpus's own split as it is",
        )
    plan, work = _plan(frames, split, options), out.parent / f".{out.name}.building"
    exists = FileExistsError(f"out: {out} is there already; name another folder, or remove it")
    if out.exists() and not work.exists():
        raise exists
    busy = RuntimeError(f"out: another process builds {out} at this moment; wait for it, or end it")
    try:
        work.mkdir(parents=True, exist_ok=True)
        with locked(work / "lock", busy):
            if out.exists():
                if (work / "result").exists():  # an unfinished build, and something else in the place of its result
                    raise exists
                same = planned_before(work) == plan["plan"]
                remove_work(work)  # which a kill left
                if same:
                    return read_json(out / "build.json")
                raise exists
            resume_plan(work, plan)
            shards = shards_of(frames, split, options)
            _write_shards(work, shards, RowMaker(frames, split, options, cache))
            report = _finish(work, shards, frames, options, shared)
            (work / "result").rename(out)
            remove_work(work)
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(work, "Finished shards are kept: make room and start again") from error
        raise
    return report


def _check_names(frames: Frames) -> None:
    for video in frames.videos:
        for field, text in (("image", video.folder), ("video", video.name), ("subject", video.subject)):
            try:
                text.encode()
            except UnicodeEncodeError:  # bytes of a file name that are no UTF-8
                shown = repr(text.encode("utf-8", "backslashreplace").decode())
                advice = "Rename it: a data set has no place for other names"
                raise CorpusError(frames.root, shown, "a name in UTF-8", advice, field=field) from None


def _in_two_splits(frames: Frames, split: Sequence[str]) -> list[str]:
    """Subjects and videos that stand in more than one split."""
    first: dict[str, str] = {}
    shared: dict[str, None] = {}
    for place, side in sorted(set(zip(frames.video.tolist(), split, strict=True))):
        for name in {frames.videos[place].subject, frames.videos[place].name}:
            if first.setdefault(name, side) != side:
                shared[name] = None
    return list(shared)


def _plan(frames: Frames, split: Sequence[str], options: BuildOptions) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(options.shard_settings(), sort_keys=True).encode())
    digest.update(repr((frames.corpus, frames.licence, frames.label_set, str(frames.root.resolve()))).encode())
    for columns in (frames.video, frames.frame, frames.au_labels, frames.emotion, frames.landmarks):
        digest.update(b"" if columns is None else np.ascontiguousarray(columns).tobytes())
    digest.update("\n".join(video.image(0) for video in frames.videos).encode() + " ".join(split).encode())
    return {"plan": digest.hexdigest(), "options": asdict(options)}


def planned_before(work: Path) -> str | None:
    try:
        return read_json(work / "plan.json")["plan"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        advice = f"Remove {work} to begin anew"
        raise CorpusError(work / "plan.json", str(error) or "damage", "the plan of a build", advice) from error


def resume_plan(work: Path, plan: dict[str, Any]) -> None:
    """The plan is written before any shard and removed last: shards without it belong to an unknown one."""
    if (before := planned_before(work)) is None:
        for name in ("result", "notes"):
            shutil.rmtree(work / name, ignore_errors=True)
        (work / "near.json").unlink(missing_ok=True)
        write_whole(work / "plan.json", json.dumps(plan))
    elif before != plan["plan"]:
        options = read_json(work / "plan.json").get("options", {})
        changed = [f"{k}: {v!r}" for k, v in options.items() if v != plan["options"].get(k)]
        other = f"an unfinished build of other options or labels ({', '.join(changed) or 'other rows'})"
        raise ValueError(f"out: {work} holds {other}. Start with those to go on with it, or remove that folder")
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
    with whole_file(file, shared=True, sync=True) as part:
        pq.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), part, row_group_size=_ROW_GROUP)


def write_notes(work: Path, shard: Shard, notes: Notes) -> None:
    content = {
        "rows": notes.rows.tolist(),
        "hashes": np.ascontiguousarray(notes.hashes).tobytes().hex(),
        "problems": [asdict(problem) for problem in notes.problems],
    }
    write_whole(work / "notes" / f"{shard.file}.json", json.dumps(content))


def read_notes(work: Path, shard: Shard) -> Notes | None:
    """The notes of a shard that is finished and whole."""
    try:
        notes = read_json(work / "notes" / f"{shard.file}.json")
        if pq.read_metadata(work / "result" / "data" / shard.file).num_rows != len(notes["rows"]):
            return None
        hashes = np.frombuffer(bytes.fromhex(notes["hashes"]), np.uint8).reshape(-1, HASH_BYTES)
        return Notes(np.array(notes["rows"], int), hashes, [Problem(**problem) for problem in notes["problems"]])
    except (OSError, ValueError, KeyError, TypeError):  # absent, cut off, or of another version
        return None


def _write_shards(work: Path, shards: Sequence[Shard], maker: RowMaker) -> None:
    frames, features = maker.frames, mfa_features(maker.frames.label_set)
    total = sum(len(shard.rows) for shard in shards)
    with maker, tqdm(total=total, desc="crops", unit="image") as bar:
        for shard in shards:
            done = read_notes(work, shard)
            if done is not None and not _refused(done.problems, maker.options):
                bar.update(len(shard.rows))
                continue
            rows, hashes, kept, problems = maker.make(shard.rows, bar)
            if not rows:
                first, expected = problems[0], f"some good image among {len(shard.rows)}"
                advice = "Name the right folder: a shard needs at least one image"
                raise CorpusError(frames.root / first.image, first.reason, expected, advice)
            table = Dataset.from_list(rows, features=features).data.table
            write_table(work / "result" / "data" / shard.file, table, features)
            write_notes(work, shard, Notes(kept, hashes, problems))


_REMEDIES = {
    "unreadable": "repair them, or pass skip_unreadable=True (--skip_unreadable)",
    "no face": "give landmarks, or choose on_no_face='skip' or 'template' (--on_no_face)",
    "landmarks": "correct the corpus's landmarks, or take a detector's",
}


def _refused(problems: Sequence[Problem], options: BuildOptions) -> list[Problem]:
    """Those that the options do not allow to leave out."""
    allowed = {"unreadable": options.skip_unreadable, "no face": options.on_no_face == "skip"}
    return [problem for problem in problems if not allowed.get(problem.kind, False)]


def _finish(
    work: Path, shards: Sequence[Shard], frames: Frames, options: BuildOptions, in_two_splits: Sequence[str]
) -> dict[str, Any]:
    notes = [read_notes(work, shard) for shard in shards]
    problems = [problem for note in notes for problem in note.problems]
    listed, result = "".join(f"{p.image}\t{p.kind}\t{p.reason}\n" for p in problems), work / "result"
    if refused := _refused(problems, options):
        write_whole(work / "left_out.txt", listed)
        first, remedies = refused[0], [_REMEDIES[kind] for kind in sorted({problem.kind for problem in refused})]
        got = f"{len(refused)} images that cannot be used ({first.reason})"
        advice = f"{work / 'left_out.txt'} lists them all. Either {'; and '.join(remedies)}, and start again"
        raise CorpusError(frames.root / first.image, got, "good ones", f"{advice}: finished shards are kept")
    near = _near_images(work, shards, notes, frames, options)
    rows: dict[str, list[int]] = {name: [] for name in SPLITS}
    for shard in shards:
        rows[shard.split] += read_notes(work, shard).rows.tolist()
    for folder in (result, result / "data"):  # parts of a build that was killed
        remove_leftovers(folder)
    leaks = {"near_identical": near, "in_two_splits": in_two_splits}
    kinds = [problem.kind for problem in problems]
    report = write_card(result, frames, rows, asdict(options), leaks, kinds)
    if problems:
        write_whole(result / "left_out.txt", listed)
    infos = {"default": {"description": describe_labels(Dataset.from_dict({}), frames.label_set).info.description}}
    write_whole(result / "dataset_infos.json", json.dumps(infos))
    return report


def _near_images(
    work: Path, shards: Sequence[Shard], notes: Sequence[Notes], frames: Frames, options: BuildOptions
) -> list[str]:
    """A sentence for each image that one in a split held further out all but repeats."""
    shard_of = np.repeat(np.arange(len(notes)), [len(note.rows) for note in notes])
    place = np.concatenate([np.arange(len(note.rows)) for note in notes])
    rows = np.concatenate([note.rows for note in notes])
    hashes = np.concatenate([note.hashes for note in notes])
    side = np.array([SPLITS.index(shard.split) for shard in shards], int)[shard_of]
    double: dict[int, int] = {}
    for later in (2, 1):
        held_out, others = np.flatnonzero(side == later), np.flatnonzero(side < later)
        for held, training in near_pairs(hashes[held_out], hashes[others]):
            double[int(others[training])] = int(held_out[held])
    sentences = [
        " repeats ".join(f"{frames.row_id(rows[one])} ({SPLITS[side[one]]})" for one in pair)
        for pair in sorted(double.items())
    ]
    if options.near == "raise" and sentences:
        first = f"{len(sentences)} images are all but identical to one in another split: {'; '.join(sentences[:3])}"
        raise ValueError(f"near: {first}. Choose near='drop' (--near drop) or 'keep'; finished shards are kept")
    if options.near == "drop":
        before = work / "near.json"  # what an interrupted end of the build has left out already
        sentences = list(dict.fromkeys([*(read_json(before) if before.exists() else []), *sentences]))
        write_whole(before, json.dumps(sentences))
        dropped = np.array(sorted(double), int)
        for number in np.unique(shard_of[dropped]):
            _drop_rows(work, shards[number], notes[number], place[dropped[shard_of[dropped] == number]], frames)
    return sentences


def _drop_rows(work: Path, shard: Shard, notes: Notes, places: np.ndarray, frames: Frames) -> None:
    kept = np.setdiff1d(np.arange(len(notes.rows)), places)
    file = work / "result" / "data" / shard.file
    write_table(file, pq.read_table(file).take(kept), mfa_features(frames.label_set))
    write_notes(work, shard, Notes(notes.rows[kept], notes.hashes[kept], notes.problems))


# Count of the reader, or kind of a problem -> why those images are not in the data set.
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
    "unreadable": "cannot be read (--skip_unreadable)",
    "no face": "have no face (--on_no_face skip)",
    "landmarks": "have wrong landmarks",
    "near_identical": "all but repeat an image of another split (--near keep keeps them)",
}


def split_counts(frames: Frames, rows: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """Split -> images, videos, people, and images of each emotion and of each active AU that are labelled at all."""
    counts, is_known = {}, (frames.au_labels != UNKNOWN_LABEL).any(0)
    emotions = frames.label_set.emotions if (frames.emotion != UNKNOWN_LABEL).any() else ()
    for name in SPLITS:
        chosen = np.asarray(rows[name], int)
        if not len(chosen):
            continue
        videos = np.unique(frames.video[chosen])
        people = {frames.videos[place].subject for place in videos}
        counts[name] = {"images": len(chosen), "videos": len(videos), "people or videos": len(people)}
        counts[name] |= {e: int((frames.emotion[chosen] == code).sum()) for code, e in enumerate(emotions)}
        active, units = (frames.au_labels[chosen] == 1).sum(0), frames.label_set.action_units
        counts[name] |= {f"{units[k]} active": int(active[k]) for k in np.flatnonzero(is_known)}
    return counts


def planned_counts(frames: Frames, split: Sequence[str]) -> dict[str, dict[str, int]]:
    """`split_counts` of each row's split, before anything is built."""
    return split_counts(frames, {name: np.flatnonzero(np.array(split) == name) for name in SPLITS})


def summary(report: Mapping[str, Any], out: str | Path) -> str:
    """What was built, for the end of a command: a line a split, and what was left out and why."""
    counts = {name: [f"{value:,} {what}" for what, value in some.items()] for name, some in report["counts"].items()}
    lines = [f"{name}: {', '.join(some)}" for name, some in counts.items()]
    built, why = sum(counts["images"] for counts in report["counts"].values()), report["left_out_because"]
    lines.append(f"{built:,} images are in {out}; see {out}/README.md")
    lines.append(f"{sum(why.values()):,} images were left out" + (f": {_reasons(why)}" if why else ""))
    if (near := report["near_identical"]) and report["options"]["near"] in ("keep", "tell"):
        lines.append(f"{len(near):,} images all but repeat one of another split and were kept (--near drop)")
    return "\n".join(lines)


def write_card(
    folder: Path,
    frames: Frames,
    rows: Mapping[str, Sequence[int]],
    options: Mapping[str, Any],
    leaks: Mapping[str, Sequence[str]],
    problems: Sequence[str],
) -> dict[str, Any]:
    """Writes `README.md` and `build.json`, whose content is returned. problems: the kind of each image left out."""
    dropped = len(leaks["near_identical"]) if options["near"] == "drop" else 0
    left_out = {**frames.counts, **Counter(problems), "near_identical": dropped}
    report = {
        "corpus": frames.corpus,
        "licence": frames.licence,
        "protocol": frames.protocol,
        "counts": split_counts(frames, rows),
        "read": dict(frames.counts),
        "missing_images": list(frames.missing),
        "left_out": len(problems),
        "left_out_because": {text: left_out[name] for name, text in _REASONS.items() if left_out.get(name)},
        **{name: list(leaks[name]) for name in ("near_identical", "in_two_splits")},
        "options": dict(options),
    }
    write_whole(folder / "build.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / "README.md", _card(report))
    return report


def _card(report: Mapping[str, Any]) -> str:
    counts: Mapping[str, Mapping[str, int]] = report["counts"]
    files = "".join(f"  - split: {name}\n    path: data/{name}-*.parquet\n" for name in counts)
    names = next(iter(counts.values()))
    rows = "".join(f"\n| {name} | {' | '.join(f'{part[name]:,}' for part in counts.values())} |" for name in names)
    near, shared = report["near_identical"], report["in_two_splits"]
    dropped = report["options"]["near"] == "drop"
    near = f"{len(near)}, {'left out of the split named first' if dropped else 'kept'}" if near else "none"
    lines = [
        f"---\nlicense: other\nlicense_name: {report['corpus']}\nconfigs:\n- config_name: default\n"
        f"  data_files:\n{files}---",
        f"# MFA from {report['corpus']}",
        f"**Licence.** {report['licence']}. Faces are personal data: the corpus's terms are this folder's too.",
        f"**Protocol.** {report['protocol']}",
        f"| | {' | '.join(counts)} |\n|---|{'---|' * len(counts)}{rows}",
        "**Read.** " + "; ".join(f"{name.replace('_', ' ')} {value:,}" for name, value in report["read"].items()) + ".",
        "**Left out.** " + (_reasons(report["left_out_because"]) or "Nothing") + ".",
        f"**Leak check.** People or videos in two splits: {len(shared)}. Images all but identical across splits: "
        f"{near}.",
        "**Options.** " + ", ".join(f"`{name}={value}`" for name, value in report["options"].items()),
        "Landmarks are pixels of the stored image; `landmark_source` says where they come from. -1 is unknown.",
    ]
    return "\n\n".join(lines) + "\n"


def _reasons(why: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in why.items())


__all__ = ["BuildOptions", "build_mfa", "planned_counts", "split_counts", "summary"]
