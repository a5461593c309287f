"""Which images of a corpus are used, and in which split: people and videos whole, splits alike, emotions balanced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.corpora.frames import Frames, Required, every_and_changes, keep_labelled
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.schema import SPLIT_SIZES, positive_shares


# A wrong number of videos weighs more than any wrong number of images, as long as neither is hopeless.
_VIDEOS_WEIGHT = 4.0
_ROUNDS = 20


@dataclass(frozen=True)
class Units:
    """What must stay in one split: the people (or videos, or pictures) of a corpus."""

    names: tuple[str, ...]
    of_row: np.ndarray
    videos: np.ndarray
    """(units,) how many videos"""
    images: np.ndarray
    """(units, emotions + 1) how many images of each emotion, the unknown one last"""


def units_of(frames: Frames) -> Units:
    used = np.unique(frames.video)
    subjects = [frames.videos[place].subject for place in used]
    names = tuple(dict.fromkeys(subjects))
    numbers = {name: place for place, name in enumerate(names)}
    unit_of_video = np.zeros(len(frames.videos), np.int64)
    unit_of_video[used] = [numbers[subject] for subject in subjects]
    of_row = unit_of_video[frames.video]
    classes = len(frames.label_set.emotions) + 1
    images = np.zeros((len(names), classes), np.int64)
    np.add.at(images, (of_row, np.where(frames.emotion == UNKNOWN_LABEL, classes - 1, frames.emotion)), 1)
    return Units(names, of_row, np.bincount(unit_of_video[used], minlength=len(names)), images)


def split_units(
    units: Units, shares: Mapping[str, float], videos: Mapping[str, int] | None = None, seed: int = 0
) -> np.ndarray:
    """Each unit's split, as a place in `shares`, by videos and by every emotion's images at once.

    videos: how many each split gets exactly, if units of one video allow it. Places the largest units first where the
    most is lacking, then moves and exchanges units as long as that brings the splits nearer to their shares.
    """
    shares = positive_shares(shares)
    if len(units.names) < len(shares):
        expected = f"at most one for each of {len(units.names)} people"
        raise ValueError(f"split_sizes: got {len(shares)} splits, expected {expected}")
    if videos is not None and (set(videos) != set(shares) or sum(videos.values()) != units.videos.sum()):
        expected = f"a number for each of {', '.join(shares)}, {units.videos.sum()} in all"
        raise ValueError(f"videos: got {dict(videos)}, expected {expected}")
    wanted = np.array(list(shares.values()), float)
    wanted /= wanted.sum()
    in_videos = wanted if videos is None else np.array([videos[name] for name in shares]) / units.videos.sum()
    totals = np.maximum(units.images.sum(0), 1)
    load = np.concatenate([units.images / totals, _VIDEOS_WEIGHT * units.videos[:, None] / units.videos.sum()], axis=1)
    aim = np.outer(wanted, np.append(units.images.sum(0) > 0, 0.0))
    aim[:, -1] = _VIDEOS_WEIGHT * in_videos
    order = np.random.default_rng(seed).permutation(len(load))
    order = order[np.argsort(-load[order].sum(1), kind="stable")]
    split, held = np.zeros(len(load), np.int64), np.zeros_like(aim)
    for unit in order:
        lacking = aim - held
        gain = ((lacking**2) - (lacking - load[unit]) ** 2).sum(1)
        split[unit] = int(gain.argmax())
        held[split[unit]] += load[unit]
    split = _improve(split, load, held, aim)
    for side in range(len(aim)):  # an empty side could not be scored on
        if not (split == side).any():
            others = np.flatnonzero(np.bincount(split, minlength=len(aim))[split] > 1)
            split[others[load[others].sum(1).argmin()]] = side
    return split


def _improve(split: np.ndarray, load: np.ndarray, held: np.ndarray, aim: np.ndarray) -> np.ndarray:
    """Moves and exchanges units; each change brings the sums nearer to the aim, so it ends."""
    for _ in range(_ROUNDS):
        moved = False
        for unit in range(len(split)):
            here = split[unit]
            off = held - aim
            # To another side alone, or in exchange for any unit of it: how the squared distance changes.
            for there in range(len(aim)):
                if there == here:
                    continue
                partners = np.flatnonzero(split == there)
                change = load[unit] - np.concatenate([np.zeros((1, load.shape[1])), load[partners]])
                change = ((off[here] - change) ** 2 + (off[there] + change) ** 2).sum(1)
                best = int(change.argmin())
                if change[best] < (off[here] ** 2 + off[there] ** 2).sum() - 1e-12:
                    for one, side in [(unit, there)] + ([(partners[best - 1], here)] if best else []):
                        held[split[one]] -= load[one]
                        held[side] += load[one]
                        split[one] = side
                    moved = True
                    break
        if not moved:
            break
    return split


def official_splits(frames: Frames, fold: int | None = None, seed: int = 0) -> list[str]:
    """Each row's split as the corpus has it. Of folds, `fold` is the test split, and a tenth of the other people the
    validation split."""
    official = np.array([video.official for video in frames.videos], object)[frames.video]
    if (without := np.flatnonzero(official == "")).size:
        name = frames.videos[frames.video[without[0]]].name
        raise CorpusError(frames.root, f"no split for {name}", "one for every video", "Split by people instead")
    folds = sorted({name for name in official if name.startswith("fold ")})
    if not folds:
        return official.tolist()
    if f"fold {fold}" not in folds:
        raise ValueError(f"fold: got {fold}, expected which of {', '.join(folds)} is tested on")
    tested = official == f"fold {fold}"
    units = units_of(frames.select(~tested))
    side = split_units(units, {"train": 0.9, "validation": 0.1}, seed=seed)[units.of_row]
    split = np.full(len(frames), "test", object)
    split[~tested] = np.array(["train", "validation"], object)[side]
    return split.tolist()


def spread_over_videos(video: np.ndarray, count: int) -> np.ndarray:
    """`count` places in `video` (sorted): as equal a number from each video as it has, evenly over its time."""
    _, starts, sizes = np.unique(video, return_index=True, return_counts=True)
    if count >= len(video):
        return np.arange(len(video))
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # the largest number a video that does not take too many
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= count else (low, middle - 1)
    taken = np.minimum(sizes, low)
    longer = np.argsort(-sizes, kind="stable")[: int((sizes > low).sum())]
    taken[longer[: count - int(taken.sum())]] += 1
    chosen = [np.zeros(0, np.int64)]
    for start, number, size in zip(starts, taken, sizes, strict=True):
        chosen.append(start + ((np.arange(number) + 0.5) * size / number).astype(np.int64))
    return np.concatenate(chosen)


def balance_emotions(
    frames: Frames, split: Sequence[str], per_emotion: Mapping[str, int] | None = None, as_targets: bool = False
) -> np.ndarray:
    """Rows to keep: in each split as many of every emotion, by default as many as it has of its rarest. as_targets:
    `per_emotion`, or as many as there are of the rarest."""
    emotions, split = frames.label_set.emotions, np.asarray(split, object)
    if not emotions:
        raise ValueError("balance: got a label set without emotions, expected one with emotions, or balance=False")
    kept = []
    for name in dict.fromkeys(split):
        rows = [np.flatnonzero((split == name) & (frames.emotion == code)) for code in range(len(emotions))]
        rarest = min((len(some) for some in rows if len(some)), default=0)
        wanted = (per_emotion or {}).get(name) or rarest
        wanted = min(wanted, rarest) if as_targets else wanted
        for emotion, some in zip(emotions, rows, strict=True):
            if per_emotion and name in per_emotion and len(some) < wanted and not as_targets:
                raise CorpusError(
                    *(frames.root, f"{len(some)} images of {emotion} in {name}", f"at least {wanted}"),
                    "Ask for fewer images an emotion, or for fewer videos in the other splits",
                )
            kept.append(some[spread_over_videos(frames.video[some], wanted)])
    return np.sort(np.concatenate(kept))


def plan_mfa(
    frames: Frames,
    *,
    require: Required = "any",
    every: int = 1,
    balance: bool = False,
    sizes: Mapping[str, float] = SPLIT_SIZES,
    videos: Mapping[str, int] | None = None,
    per_emotion: Mapping[str, int] | None = None,
    official: bool | None = None,
    fold: int | None = None,
    as_targets: bool = False,
    seed: int = 0,
) -> tuple[Frames, list[str]]:
    """The rows of a corpus that are used, and each row's split: all images that have a label, unless asked otherwise.

    require: which labels an image must have. every: above 1, every n-th frame and the changes of labels alone. balance:
    as many images of each emotion in each split, as of its rarest or as many as `per_emotion` says. sizes, videos:
    shares of the splits, and how many videos. official: the corpus's own split, or of its folds `fold` as test; None:
    if your own pictures have one. as_targets: `videos` are shares of what there is, and `per_emotion` the most.
    """
    frames = keep_labelled(frames, require)
    if every != 1:
        frames = every_and_changes(frames, every)
    if official is None:
        official = frames.split_is_given
    if official or fold is not None:
        split = official_splits(frames, fold, seed=seed)
    else:
        units = units_of(frames)
        names = list(positive_shares(sizes))
        if as_targets and videos:
            videos = _scaled(videos, int(units.videos.sum()))
        split = [names[side] for side in split_units(units, sizes, videos, seed)[units.of_row]]
    if not (balance or per_emotion):
        return frames, split
    kept = balance_emotions(frames, split, per_emotion, as_targets)
    return frames.select(kept, left_out_by_balancing=len(frames) - len(kept)), [split[row] for row in kept]


def _scaled(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Counts in the same proportions that make `total`; the first takes what rounding leaves."""
    first, *others = counts
    scaled = {name: max(1, round(counts[name] * total / sum(counts.values()))) for name in others}
    return {first: total - sum(scaled.values()), **scaled}


PAPER_PROTOCOL: Mapping[str, Any] = {
    "require": "both",
    "balance": True,
    "sizes": {"train": 31_320, "validation": 3_376},
    "videos": {"train": 134, "validation": 17},
    "per_emotion": {"train": 3_915, "validation": 422},
    "as_targets": True,
}
"""The MFA paper's protocol for `plan_mfa` on Aff-Wild2: its 34,696 images of 151 videos, eight emotions alike, or as
near to them as the videos that are there allow."""


def differences_from_paper(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line for each number of images or videos in a split that is not the paper's. counts: of `split_counts`."""
    return [
        f"{split}: {counts.get(split, {}).get(what, 0):,} {what}, the paper has {number:,}"
        for what, expected in (("images", PAPER_PROTOCOL["sizes"]), ("videos", PAPER_PROTOCOL["videos"]))
        for split, number in expected.items()
        if counts.get(split, {}).get(what, 0) != number
    ]


__all__ = [
    "units_of",
    *(
        "PAPER_PROTOCOL",
        "balance_emotions",
        "differences_from_paper",
        "official_splits",
        "plan_mfa",
        "split_units",
        "spread_over_videos",
    ),
]
