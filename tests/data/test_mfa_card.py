"""Counts on the card are those of the rows."""

import numpy as np
from test_frames import make_frames

from mf2face.data.build.mfa import Problem, counts_of, left_out, summary, write_mfa_card


def test_counts_by_hand(tmp_path):
    units = np.zeros((6, 12), np.int8)
    units[:4, 0], units[4, 0] = 1, -1
    frames = make_frames([4, 2], np.array([0, 0, 1, -1, 1, 1]), units)
    rows = {"train": [0, 1, 2, 3], "validation": [], "test": [4]}
    counts = counts_of(frames, rows)
    assert list(counts) == ["train", "test"]
    assert (counts["train"]["images"], counts["train"]["videos"]) == (4, 1)
    assert (counts["train"]["Neutral"], counts["train"]["Anger"], counts["train"]["AU1 active"]) == (2, 1, 4)
    assert (counts["test"]["Anger"], counts["test"]["AU1 active"]) == (1, 0)
    leaks = {"near_identical": ["a repeats b"], "in_two_splits": []}
    report = write_mfa_card(tmp_path, frames, rows, {"near": "tell"}, leaks, [])
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n") and "| AU1 active | 4 | 0 |" in card
    assert "Images all but identical across splits: 1, kept." in card and report["left_out"] == 0
    assert "validation" not in card.split("---")[1]


def test_what_nobody_labelled_is_not_counted_as_zero():
    units = np.full((2, 12), -1, np.int8)
    units[0, 0] = 0
    counts = counts_of(make_frames([2], np.array([-1, -1]), units), {"train": [0, 1], "validation": [], "test": []})
    assert counts == {"train": {"images": 2, "videos": 1, "people or videos": 1, "AU1 active": 0}}


def test_the_summary_ends_with_what_was_left_out_and_why():
    counted = {"label_lines": 20, "images_missing": 2, "without_any_labels": 1, "left_out_by_balancing": 5}
    problems = [Problem("a.jpg", "unreadable", "cut"), Problem("b.jpg", "no face", "none")]
    why = left_out(counted, problems, ["c repeats d"], "drop")
    assert sum(why.values()) == 11 and len(why) == 6
    assert sum(left_out(counted, problems, ["c repeats d"], "tell").values()) == 10
    last = summary({"counts": {"train": {"images": 9}}, "left_out_because": why}, "out").splitlines()[-1]
    assert (
        last.startswith("11 images were left out: 2 are not on the disk; 1 have no label; 5 ") and "--balance" in last
    )
    assert summary({"counts": {}, "left_out_because": {}}, "out").endswith("0 images were left out")
