"""What stands beside a built data set: README.md with its counts, protocol and licence, and the same as build.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .builder_mf2 import SPLITS
from .frames_mf2 import Frames


def counts_of(frames: Frames, rows: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
    """Split -> images, videos, people, and images of each emotion and of each active AU."""
    counts = {}
    for name in SPLITS:
        chosen = np.asarray(rows[name], int)
        if not len(chosen):
            continue
        videos = np.unique(frames.video[chosen])
        counts[name] = {
            "images": len(chosen),
            "videos": len(videos),
            "people or videos": len({frames.videos[place].subject for place in videos}),
            **{e: int((frames.emotion[chosen] == code).sum()) for code, e in enumerate(frames.label_set.emotions)},
            **{
                f"{unit} active": int((frames.au_labels[chosen, column] == 1).sum())
                for column, unit in enumerate(frames.label_set.action_units)
            },
        }
    return counts


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
        f"**Left out while building.** {report['left_out']:,} images (`left_out.txt`).",
        _leaks(report),
        "**Options.** " + ", ".join(f"`{name}={value}`" for name, value in report["options"].items()),
        "Landmarks are pixels of the stored image; `landmark_source` says where they come from. -1 is unknown.",
    ]
    return "\n\n".join(lines) + "\n"


def _table(counts: Mapping[str, Mapping[str, int]]) -> str:
    names = next(iter(counts.values()))
    return "\n".join(f"| {name} | {' | '.join(f'{counts[s][name]:,}' for s in counts)} |" for name in names)


def _leaks(report: Mapping[str, Any]) -> str:
    near, names = report["near_identical"], report["in_two_splits"]
    done = {"drop": "left out of the split named first", "tell": "kept"}.get(report["options"]["near"], "")
    told = f"**Leak check.** People or videos in two splits: {len(names)}. Images all but identical across splits: "
    return told + (f"{len(near)}, {done}." if near else "none.")


__all__ = ["counts_of", "write_mfa_card"]
