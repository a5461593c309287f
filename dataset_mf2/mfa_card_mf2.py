"""What stands beside a built data set: README.md with its counts, protocol and licence, and the same as build.json."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs_mf2 import UNKNOWN_LABEL

from .builder_mf2 import SPLITS
from .frames_mf2 import Frames


def counts_of(frames: Frames, rows: Mapping[str, Sequence[int]]) -> dict[str, dict[str, int]]:
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
}
_PROBLEMS: Mapping[str, str] = {
    "unreadable": "cannot be read (--skip_unreadable)",
    "no face": "have no face (--on_no_face skip)",
    "landmarks": "have wrong landmarks",
}


def left_out(
    counts: Mapping[str, int], problems: Sequence[Any], near: Sequence[str], near_choice: str
) -> dict[str, int]:
    """Reason -> how many of the listed images are not in the data set because of it."""
    found = {told: counts[name] for name, told in _REASONS.items() if counts.get(name)}
    for kind, count in Counter(problem.kind for problem in problems).items():
        found[_PROBLEMS[kind]] = count
    if near and near_choice == "drop":
        found["all but repeat an image of another split (--near tell keeps them)"] = len(near)
    return found


def summary(report: Mapping[str, Any], out: str | Path) -> str:
    """What was built, for the end of a command: a line a split, and what was left out and why."""
    lines = [
        f"{name}: " + ", ".join(f"{value:,} {what}" for what, value in counts.items())
        for name, counts in report["counts"].items()
    ]
    built, why = sum(counts["images"] for counts in report["counts"].values()), report["left_out_because"]
    lines.append(f"{built:,} images are in {out}; see {out}/README.md")
    lines.append(f"{sum(why.values()):,} images were left out" + (f": {_reasons(why)}" if why else ""))
    return "\n".join(lines)


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
        "left_out_because": left_out(frames.counts, problems, leaks["near_identical"], options["near"]),
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
        "**Left out.** " + (_reasons(report["left_out_because"]) or "Nothing") + ".",
        _leaks(report),
        "**Options.** " + ", ".join(f"`{name}={value}`" for name, value in report["options"].items()),
        "Landmarks are pixels of the stored image; `landmark_source` says where they come from. -1 is unknown.",
    ]
    return "\n\n".join(lines) + "\n"


def _reasons(why: Mapping[str, int]) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in why.items())


def _table(counts: Mapping[str, Mapping[str, int]]) -> str:
    names = next(iter(counts.values()))
    return "\n".join(f"| {name} | {' | '.join(f'{counts[s][name]:,}' for s in counts)} |" for name in names)


def _leaks(report: Mapping[str, Any]) -> str:
    near, names = report["near_identical"], report["in_two_splits"]
    done = {"drop": "left out of the split named first", "tell": "kept"}.get(report["options"]["near"], "")
    told = f"**Leak check.** People or videos in two splits: {len(names)}. Images all but identical across splits: "
    return told + (f"{len(near)}, {done}." if near else "none.")


__all__ = ["counts_of", "left_out", "summary", "write_mfa_card"]
