"""How two files of rows agree, AU by AU: decisions (kappa), values (correlation, Bland-Altman). No media are read.

mf2 compare a.csv b.csv --plot agreement.png

Files are ours (csv, jsonl, parquet), or csv files of OpenFace 2, py-feat or LibreFace. Rows are matched by input (its
file name; whatever it is where both files have one) and frame; several faces of a frame by the overlap of their boxes.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mf2face.files import whole_file, write_whole
from mf2face.inference.read_rows import BOX, RowTable, read_rows
from mf2face.inference.rows import NAN
from processing_mf2.detection import overlaps


LEAST_OVERLAP = 0.3
_MOST_DRAWN = 4000
"""Points of one plot."""


@dataclass
class Comparison:
    names: tuple[str, str]
    matched: int
    alone: tuple[int, int]
    """Rows of each file that the other has not."""
    units: dict[str, dict[str, float]]
    """AU -> `agreement`, `kappa`, `active_a`, `active_b` of decisions; `r`, `bias` (b - a), `low`, `high` of values."""
    emotion_agreement: float | None
    values: dict[str, np.ndarray]
    """AU -> (2, rows), where both files measure it in the same unit"""

    def figures(self) -> dict[str, float]:
        return {f"{code}_{name}": value for code, one in self.units.items() for name, value in one.items()}

    def text(self) -> str:
        lines = ["a: {}, b: {}".format(*self.names)]
        lines.append(f"{self.matched:,} faces in both, {self.alone[0]:,} in a alone, {self.alone[1]:,} in b alone")
        if self.emotion_agreement is not None:
            lines.append(f"top emotion: the same for {self.emotion_agreement:.1%} of the faces")
        heads = ("agreement", "kappa", "active_a", "active_b", "r", "bias", "low", "high")
        lines.append("AU    " + "".join(f"{head:>10}" for head in heads))
        for code, one in self.units.items():
            cells = [f"{one[head]:10.3f}" if one.get(head, NAN) == one.get(head) else f"{'-':>10}" for head in heads]
            lines.append(f"{code:6}" + "".join(cells))
        lines.append("agreement, active: shares of faces. r: Pearson. bias: mean of b - a; low, high: its 95 % limits")
        return "\n".join(lines)

    def save_png(self, path: str | os.PathLike) -> Path:
        """Bland-Altman: the difference b - a over the mean, AU by AU."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        if not self.values:
            raise ValueError("plot: the files have no AU whose values have one unit in both")
        columns = min(4, len(self.values))
        rows = -(-len(self.values) // columns)
        plot, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False)
        for axis in axes.flat[len(self.values) :]:
            axis.set_visible(False)
        for axis, (code, (one, other)) in zip(axes.flat, self.values.items(), strict=False):
            kept = np.linspace(0, len(one) - 1, min(len(one), _MOST_DRAWN)).astype(int)
            axis.plot((one + other)[kept] / 2, (other - one)[kept], ".", markersize=2, alpha=0.4, rasterized=True)
            for name, style in (("bias", "-"), ("low", "--"), ("high", "--")):
                axis.axhline(self.units[code][name], color="black", linewidth=0.9, linestyle=style)
            axis.set_title(f"{code}, bias {self.units[code]['bias']:+.3f}", fontsize=10)
            axis.tick_params(labelsize=8)
        plot.supxlabel("mean of a and b")
        plot.supylabel("b - a")
        plot.tight_layout()
        with whole_file(path, suffix=".png") as part:
            plot.savefig(part, dpi=130)
        plt.close(plot)
        return Path(path)


def compare(first: str | os.PathLike, second: str | os.PathLike) -> Comparison:
    a, b = read_rows(first), read_rows(second)
    pairs, alone = _matched(a, b)
    if not len(pairs[0]):
        raise ValueError(
            f"compare: {first} and {second} have no face in common: inputs {_example(a)} and {_example(b)}"
        )
    units: dict[str, dict[str, float]] = defaultdict(dict)
    values: dict[str, np.ndarray] = {}
    for code, one, other in _shared(a, b, pairs, "_c", "_c"):
        units[code] |= _decisions(one > 0.5, other > 0.5)
    for kinds in (("", ""), ("_i", "_i"), ("", "_i"), ("_i", "")):
        for code, one, other in _shared(a, b, pairs, *kinds):
            if "r" in units[code]:
                continue
            units[code]["r"] = _correlation(one, other)
            if kinds[0] == kinds[1]:
                bias, spread = float((other - one).mean()), 1.96 * float((other - one).std(ddof=len(one) > 1))
                units[code] |= {"bias": bias, "low": bias - spread, "high": bias + spread}
                values[code] = np.stack([one, other])
    if not units:
        raise ValueError(f"compare: {first} and {second} have no AU in common")
    same = None
    if "top_emotion" in a.columns and "top_emotion" in b.columns:
        words = [np.array(t.columns["top_emotion"])[place] for t, place in zip((a, b), pairs, strict=True)]
        known = (words[0] != "") & (words[1] != "")
        same = float((words[0] == words[1])[known].mean()) if known.any() else None
    ordered = dict(sorted(units.items(), key=lambda one: int(one[0][2:])))
    values = {code: values[code] for code in ordered if code in values}
    return Comparison((str(first), str(second)), len(pairs[0]), alone, ordered, same, values)


def _example(table: RowTable) -> str:
    return f"{table.columns['input'][0]!r}, frame {table.columns['frame'][0]:.0f}"


def _shared(a: RowTable, b: RowTable, pairs: Sequence[np.ndarray], kind: str, other_kind: str) -> Any:
    """(AU, values of a, values of b) of the matched faces of which both are known."""
    theirs = b.series(other_kind)
    for code, values in a.series(kind).items():
        if code in theirs:
            one, other = values[pairs[0]], theirs[code][pairs[1]]
            known = ~np.isnan(one) & ~np.isnan(other)
            if known.any():
                yield code, one[known], other[known]


def _decisions(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    agreement, p, q = float((one == other).mean()), float(one.mean()), float(other.mean())
    chance = p * q + (1 - p) * (1 - q)
    kappa = (agreement - chance) / (1 - chance) if chance < 1 else float("nan")
    return {"agreement": agreement, "kappa": kappa, "active_a": p, "active_b": q}


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if len(one) > 1 and one.std() > 0 and other.std() > 0 else float("nan")


def _matched(a: RowTable, b: RowTable) -> tuple[tuple[np.ndarray, np.ndarray], tuple[int, int]]:
    """Places of the same faces in both, and how many faces each has alone."""
    alike = len(set(a.columns["input"])) == len(set(b.columns["input"])) == 1
    places = [_by_frame(table, alike) for table in (a, b)]
    boxes = [np.stack([table.columns.get(name, np.full(len(table), np.nan)) for name in BOX], 1) for table in (a, b)]
    for box in boxes:
        box[:, 2:] += box[:, :2]
    pairs: list[tuple[int, int]] = []
    for frame in places[0].keys() & places[1].keys():
        ours, theirs = places[0][frame], places[1][frame]
        if len(ours) == len(theirs) == 1:
            pairs.append((ours[0], theirs[0]))
            continue
        scores = np.nan_to_num(overlaps(boxes[0][ours], boxes[1][theirs]))
        while scores.size and scores.max() >= LEAST_OVERLAP:
            place = np.unravel_index(scores.argmax(), scores.shape)
            pairs.append((ours[place[0]], theirs[place[1]]))
            scores[place[0]], scores[:, place[1]] = 0, 0
    found = np.array(sorted(pairs), int).reshape(-1, 2).T
    counts = [sum(map(len, one.values())) for one in places]
    return (found[0], found[1]), (counts[0] - len(pairs), counts[1] - len(pairs))


def _by_frame(table: RowTable, alike: bool) -> dict[tuple[str, float], list[int]]:
    places: dict[tuple[str, float], list[int]] = defaultdict(list)
    numbers = zip(table.columns["input"], table.columns["frame"].tolist(), table.columns["face_id"], strict=True)
    for place, (name, frame, face) in enumerate(numbers):
        if face == face:
            places["" if alike else os.path.basename(name), frame].append(place)
    return places


def main(argv: Sequence[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="mf2 compare", description=__doc__, formatter_class=form)
    parser.add_argument("first", metavar="A", help="a file of rows")
    parser.add_argument("second", metavar="B")
    parser.add_argument("--plot", metavar="FILE.png", help="Bland-Altman plot of every AU that has one unit in both")
    parser.add_argument("--json", metavar="FILE", help="all figures as one flat object")
    given = parser.parse_args(argv)
    found = compare(given.first, given.second)
    print(found.text())
    if given.json:
        write_whole(given.json, json.dumps(found.figures(), indent=1) + "\n")
    if given.plot:
        print(f"plot: {found.save_png(given.plot)}", file=sys.stderr)
    return 0


__all__ = ["Comparison", "compare", "main"]
