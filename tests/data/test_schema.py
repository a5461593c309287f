"""The schema of the rows, the names of their labels, splits by subject, and leaks."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from corpus_frames import all_frames, make_frames, write_aff_wild2
from datasets import Dataset, Features, IterableDataset, load_from_disk

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.data.build import mfa
from mf2face.data.build.splits import (
    PAPER_PROTOCOL,
    balance_emotions,
    differences_from_paper,
    official_splits,
    plan_mfa,
    split_units,
    spread_over_videos,
    units_of,
)
from mf2face.data.corpora.frames import Video
from mf2face.data.corpora.label_files import CorpusError
from mf2face.data.corpora.read import read_corpus
from mf2face.data.schema import (
    SPLIT_SIZES,
    check_leaks,
    describe_labels,
    described_labels,
    mfa_features,
    split_counts,
)


@pytest.mark.parametrize("name", ["mfa", "disfa"])
def test_the_names_of_labels_stay_with_the_rows(name, tmp_path):
    labels = LABEL_SETS[name]
    rows = Dataset.from_list([{"split": split} for split in ("train", "test", "train")])
    assert described_labels(rows) is None
    described = describe_labels(rows, name)
    described.select([0, 2]).save_to_disk(tmp_path / "rows")
    streamed = describe_labels(IterableDataset.from_generator(lambda: iter([{"split": "train"}])), name)
    for rows in (
        described.select([1]),
        load_from_disk(tmp_path / "rows"),
        described.filter(lambda split: split == "train", input_columns="split").select_columns(["split"]),
        streamed.shuffle(seed=1),
        streamed.filter(lambda split: split == "train", input_columns="split").select_columns(["split"]),
    ):
        found = described_labels(rows)
        assert (found.action_units, found.emotions) == (labels.action_units, labels.emotions)


def test_splits_keep_subjects_together_and_sizes_close():
    rng = np.random.default_rng(0)
    counts = {f"s{i}": int(count) for i, count in enumerate(rng.integers(1, 40, 60))}
    split_of = split_counts(counts, seed=1)
    assert split_of == split_counts(counts, seed=1) != split_counts(counts, seed=2) and split_of.keys() == counts.keys()
    for name, share in SPLIT_SIZES.items():
        images = sum(count for subject, count in counts.items() if split_of[subject] == name)
        assert images / sum(counts.values()) == pytest.approx(share, abs=0.02)
    for people in (3, 4, 7):  # no split is empty
        splits = Counter(split_counts(dict.fromkeys(range(people), 16)).values())
        assert set(splits) == {"train", "validation", "test"} and max(splits.values()) == splits["train"]


@pytest.mark.parametrize("sizes", [{}, {"train": 0}, {"train": -1, "test": 2}, {"dev": 1}, {"train": np.nan}])
def test_wrong_split_sizes(sizes):
    with pytest.raises(ValueError, match="split_sizes: got"):
        split_counts({"a": 1, "b": 2}, sizes)


def test_leaks_are_named():
    def example(seed, subject, video, split):
        image = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return {"image": image, "subject": subject, "video": video, "split": split}

    features = Features({name: mfa_features()[name] for name in ("image", "subject", "video", "split")})
    clean = [example(0, "s1", "v1", "train"), example(0, "s1", "v1", "train"), example(1, "s2", "v2", "test")]
    for added, message in (
        (None, None),
        (example(2, "s1", "v3", "test"), "subject: got 's1' in train .row 0. and in test .row 3."),
        (example(2, "s3", "v1", "test"), "video: got 'v1'"),
        (example(0, "s3", "v3", "test"), "image: got identical pictures"),
    ):
        rows = clean if added is None else [*clean, added]
        for examples in (rows, Dataset.from_list(rows, features=features)):
            if added is None:
                check_leaks(examples)
                continue
            with pytest.raises(ValueError, match=message):
                check_leaks(examples)


def test_spreading_takes_as_equally_as_there_is_and_evenly_over_time():
    video = np.repeat([0, 1, 2], [2, 10, 100])
    taken = spread_over_videos(video, 20)
    assert np.bincount(video[taken]).tolist() == [2, 9, 9] and len(set(taken.tolist())) == 20
    gaps = np.diff(taken[video[taken] == 2])
    assert gaps.min() >= 11 and gaps.max() <= 12
    assert len(spread_over_videos(video, 500)) == 112 and len(spread_over_videos(video, 0)) == 0
    assert np.bincount(video[spread_over_videos(video, 21)]).tolist() == [2, 9, 10]  # the remainder from the longest


def _drawn(videos: int, seed: int = 0):
    """Videos of very different lengths, each leaning towards some emotions."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(50, 600, videos).tolist()
    emotion = np.concatenate([rng.choice(8, size, p=rng.dirichlet([0.5] * 8)) for size in sizes])
    return make_frames(sizes, emotion)


def test_sides_are_alike_in_videos_images_and_emotions():
    frames = _drawn(100)
    units = units_of(frames)
    side = split_units(units, {"train": 0.8, "validation": 0.1, "test": 0.1}, seed=3)
    assert np.abs(np.bincount(side) - [80, 10, 10]).max() <= 1
    shares = np.array([units.images[side == k].sum(0) for k in range(3)])[:, :8] / units.images.sum(0)[:8]
    assert np.abs(shares - np.array([[0.8], [0.1], [0.1]])).max() < 0.03


def test_two_people_of_one_video_stay_together():
    videos = [Video(f"{k // 2}_{'lr'[k % 2]}", str(k // 2), f"i/{k}", 5, ".jpg") for k in range(10)]
    frames = replace(make_frames([20] * 10, np.tile(np.arange(20) % 8, 10)), videos=videos)
    _, split = plan_mfa(frames, sizes={"train": 0.6, "validation": 0.4}, balance=False)
    assert len({(frames.videos[v].subject, s) for v, s in zip(frames.video, split, strict=True)}) == 5
    assert Counter(split) == {"train": 120, "validation": 80}


def test_every_emotion_as_often_as_the_rarest():
    frames = _drawn(30)
    kept, split = plan_mfa(frames, balance=True, sizes={"train": 0.7, "test": 0.3})
    for name in ("train", "test"):
        counts = Counter(e for e, s in zip(kept.emotion.tolist(), split, strict=True) if s == name)
        assert len(counts) == 8 and len(set(counts.values())) == 1
    with pytest.raises(CorpusError, match=r"images of \w+ in test, expected at least 100000"):
        balance_emotions(kept, split, {"test": 100_000})


@pytest.fixture(scope="module")
def like_aff_wild2(tmp_path_factory):
    """151 videos, 302,000 lines in two tracks; no image: a list says which are there."""
    root, rng = tmp_path_factory.mktemp("aff"), np.random.default_rng(0)
    videos = {}
    for number in range(151):
        emotions = np.repeat(rng.choice(np.arange(-1, 8), 50, p=[0.1, *rng.dirichlet([2.0] * 8) * 0.9]), 20)
        videos[f"video{number}"] = rng.integers(-1, 2, (1000, 12)), emotions
    write_aff_wild2(root, dict(list(videos.items())[:110]))
    write_aff_wild2(root, dict(list(videos.items())[110:]), "Validation_Set")
    return root


def test_the_papers_counts(like_aff_wild2):
    frames = read_corpus("aff_wild2", like_aff_wild2, list_folder=all_frames(998))
    assert frames.counts["videos"] == 151 and frames.counts["label_lines"] == 151_000
    assert frames.counts["images_missing"] + frames.counts["lines_without_a_label"] >= 302 * 0.9
    kept, split = plan_mfa(frames, **PAPER_PROTOCOL)
    sides = np.array(split)
    assert len(kept) == 34_696 and Counter(split) == {"train": 31_320, "validation": 3_376}
    videos = {name: set(kept.video[sides == name].tolist()) for name in ("train", "validation")}
    assert {name: len(some) for name, some in videos.items()} == {"train": 134, "validation": 17}
    assert not videos["train"] & videos["validation"]
    for name, each in (("train", 3_915), ("validation", 422)):
        counts = np.bincount(kept.emotion[sides == name], minlength=8)
        assert dict(zip(EMOTIONS, counts.tolist(), strict=True)) == dict.fromkeys(EMOTIONS, each)
    assert (kept.au_labels != -1).any(1).all()
    assert differences_from_paper(mfa.planned_counts(kept, split)) == []


@pytest.mark.parametrize(("videos", "validation"), [(149, 17), (120, 14), (9, 1)])
def test_the_papers_counts_are_aims_with_other_numbers_of_videos(like_aff_wild2, videos, validation):
    frames = read_corpus("aff_wild2", like_aff_wild2, list_folder=all_frames(998))
    kept, split = plan_mfa(frames.select(frames.video < videos), **PAPER_PROTOCOL)
    counts = mfa.planned_counts(kept, split)
    assert (counts["train"]["videos"], counts["validation"]["videos"]) == (videos - validation, validation)
    for name, most in PAPER_PROTOCOL["per_emotion"].items():
        each = {counts[name][emotion] for emotion in EMOTIONS}
        assert len(each) == 1 and 0 < each.pop() <= most
    expected = {"train": 134, "validation": 17}
    lines = [f"{k}: {counts[k]['videos']:,} videos, the paper has {n}" for k, n in expected.items()]
    assert [line for line in lines if counts[line.split(":")[0]]["videos"] != expected[line.split(":")[0]]] == [
        line for line in differences_from_paper(counts) if "videos" in line
    ]


def test_folds_leave_somebody_to_tune_on():
    videos = [Video(f"s{k}", f"s{k}", f"i/{k}", 5, ".jpg", f"fold {k % 3 + 1}") for k in range(12)]
    frames = replace(make_frames([10] * 12, np.zeros(120, int)), videos=videos)
    split = np.array(official_splits(frames, fold=2))
    assert set(frames.video[split == "test"].tolist()) == {1, 4, 7, 10}
    assert Counter(split.tolist()) == {"test": 40, "train": 70, "validation": 10}
    with pytest.raises(ValueError, match="fold: got None, expected which of fold 1, fold 2, fold 3"):
        official_splits(frames)
    with pytest.raises(CorpusError, match="no split for v0, expected one for every video"):
        official_splits(make_frames([3], np.zeros(3)))


def test_no_side_is_left_without_anybody_and_mistakes_are_named():
    """A tenth of four people is nobody, and nobody cannot be scored on."""
    for people, shares in ((4, (0.9, 0.1)), (6, (0.8, 0.1, 0.1)), (3, (0.98, 0.01, 0.01))):
        units = units_of(make_frames([10] * people, np.zeros(10 * people, int)))
        side = split_units(units, dict(zip(("train", "validation", "test"), shares, strict=False)))
        assert np.bincount(side, minlength=len(shares)).min() >= 1
    for sizes, videos, message in (
        ({"train": -1.0}, None, "split_sizes: got"),
        ({"training": 1.0}, None, "split_sizes: got"),
        ({}, None, "split_sizes: got"),
        ({"train": 0.5, "test": 0.5}, {"train": 1, "test": 1}, "expected a number for each of train, test, 3 in all"),
        (dict.fromkeys(("train", "validation", "test"), 1), None, "3 splits, expected at most one for each of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            split_units(units_of(_drawn(2 if "most" in message else 3)), sizes, videos)
