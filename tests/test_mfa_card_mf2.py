"""Counts on the card are those of the rows."""

import numpy as np
from test_frames_mf2 import make_frames

from dataset_mf2.mfa_card_mf2 import counts_of, write_mfa_card


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
