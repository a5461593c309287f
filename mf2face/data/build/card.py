"""The card and the report of a built data set: counts, what was left out and why, leaks."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.corpora.frames import Frames
from mf2face.data.schema import SPLITS
from mf2face.files import write_whole


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


def summary(report: Mapping[str, Any], out: str | Path) -> str:
    """What was built, for the end of a command: a line a split, and what was left out and why."""
    lines = [
        f"{name}: " + ", ".join(f"{value:,} {what}" for what, value in counts.items())
        for name, counts in report["counts"].items()
    ]
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
    rows = "".join(
        f"\n| {name} | {' | '.join(f'{part[name]:,}' for part in counts.values())} |"
        for name in next(iter(counts.values()))
    )
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


__all__ = ["split_counts", "summary", "write_card"]
