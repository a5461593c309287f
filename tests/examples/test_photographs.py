"""The benchmark on photographs: people apart, figures that follow from the rows."""

import csv
from pathlib import Path

import numpy as np
import pytest
from test_scripts import load


photographs = load("benchmark/photographs")


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "emotion", "subject", "AU12"])
        for number in range(120):
            emotion = ("Happiness", "Neutral", "Fear")[min(2, number // 55)]
            writer.writerow([f"images/{number}.jpg", emotion, f"p{number % 40}", "1" if number < 55 else "0"])
    return path


def test_the_two_parts_share_no_person(labels: Path) -> None:
    parts = [photographs.read_labels(labels, labels.parent, part) for part in ("choose", "report")]
    people = [{row["subject"] for row in part.values()} for part in parts]
    assert not people[0] & people[1] and all(len(one) > 5 for one in people)
    assert sum(map(len, parts)) == len(photographs.read_labels(labels, labels.parent, None)) == 120


def test_scores_follow_from_the_largest_face_of_each_photograph(labels: Path) -> None:
    known = photographs.read_labels(labels, labels.parent, None)
    rows = []
    for number, (name, row) in enumerate(known.items()):
        happy = row["emotion"] == "Happiness"
        answer = {"Happiness": 0.9 * happy, "Neutral": 0.5, "Fear": 0.0}
        units = {"AU12": 0.8 if happy else 0.1, "AU06": 0.5}
        rows.append({"input": name, "face_id": 0, **units, **answer})
        rows.append({"input": name, "face_id": 1, "AU12": 1 - units["AU12"], "AU06": number, **answer})
    figures = photographs.scores(rows, known)
    assert figures["au12_happiness_auc"] == figures["au12_auc"] == 1 and figures["au6_happiness_auc"] == 0.5
    assert figures["emotion_macro_recall"] == 1 and figures["emotion_chance"] == 0.5  # fear has too few photographs
    assert figures["au12_happiness_auc_low"] == 1 and "au1_fear_auc" not in figures
    assert photographs.scores([{**row, "face_id": float("nan")} for row in rows], known) == {}


def test_an_interval_is_over_people(labels: Path) -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 50)
    low, high = photographs.interval(lambda chosen: values[chosen].mean(), np.repeat(np.arange(20), 50))
    assert low < values.mean() < high and high - low > 0.5 * values.std()


def test_labels_without_their_columns_are_named(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,mood\na.jpg,good\n")
    with pytest.raises(SystemExit, match=r"l\.csv.*emotion"):
        photographs.read_labels(tmp_path / "l.csv", tmp_path, None)
