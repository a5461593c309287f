"""Rows for the eye: a line a face while they come, or, of a single image, every figure with its bar."""

import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from configuration_mf2.facs import ACTION_UNITS
from mf2face.inference.rows import POSE, STATE, Columns, has_face, unit_column
from processing_mf2.results import UNIT_SUFFIXES


_BAR = 24
_WIDTHS = (6, 10, 5, 6, 6, 7, 8)
_WIDE = 110
"""A terminal of so many columns has room for the box too."""


class FaceTable:
    """detailed: of each face everything, instead of a line."""

    def __init__(
        self,
        out: TextIO,
        columns: Columns,
        thresholds: Mapping[str, float],
        grades: Mapping[str, str] | None = None,
        *,
        detailed: bool = False,
    ) -> None:
        self.out, self.columns, self.thresholds, self.detailed = out, columns, thresholds, detailed
        self.grades = grades or {}
        self.width = min(160, max(80, shutil.get_terminal_size((_WIDE, 24)).columns))
        self.boxes = self.width >= _WIDE
        self.word = max(11, *map(len, columns.emotions), 0)
        fixed = sum(_WIDTHS if self.boxes else _WIDTHS[:3]) + self.word + 9
        self.room = max(12, min(40, self.width - fixed - 19))  # beside four action units
        self.plain = "utf" not in (getattr(out, "encoding", None) or "utf-8").lower()
        self.units = {unit_column(code): code for code in columns.action_units}
        self.named: dict[str, list[str]] = {}
        """AUs that were shown with their nouns, and emotions that have a grade, for the legend."""
        self.before: str | None = None
        self.lines = 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            text = self._card(row) + "\n" if self.detailed else self._line(row)
            if self.plain:
                text = text.translate({0x2588: "#", 0x258C: "#", 0x2026: "~", 0x2502: "|", 0x2500: "-"})
            self.out.write(text + "\n")
        self.out.flush()

    def close(self) -> None:
        if self.named and not self.detailed:
            words = [
                " ".join([name, *noun, *self._grade(name, 0).split()]) for name, noun in sorted(self.named.items())
            ]
            self.out.write("\n" + _wrap(words, self.width))
            self.out.flush()

    def _line(self, row: Mapping[str, Any]) -> str:
        head = ""
        if self.lines == 0:
            titles = ["input", "frame", "time", "face", "x", "y", "width", "height", "emotion", "", "active AUs"]
            head = self._columns(titles) + "\n" + "─" * self.width + "\n"
        self.lines += 1
        name = row["input"] if row["input"] != self.before else ""
        self.before = row["input"]
        place = [_shorten(name, self.room), row["frame"], _number(row["time_s"], 2, " s")]
        if not has_face(row):
            return head + self._columns([*place, *[""] * 5, "no face found", "", ""])
        box = [_number(row[f"FaceRect{side}"], 0) for side in ("X", "Y", "Width", "Height")]
        if not self._is_answered(row):
            return head + self._columns([*place, row["face_id"], *box, "no answer", "", ""])
        active = [name for name in self.units if row[f"{name}_c"] == 1]
        self.named |= {name: [ACTION_UNITS[self.units[name]].noun] for name in active}
        emotion = row.get("top_emotion") or ""
        if emotion in self.grades:
            self.named[emotion] = []
        sure = _number(row[emotion], 2) if emotion else ""
        line = self._columns([*place, row["face_id"], *box, emotion, sure, active or ["none"]])
        return head + line + (f"\n    {row['caption']}" if row.get("caption") else "")

    def _grade(self, column: str, gap: int) -> str:
        return f"{' ' * gap}{self.grades[column]:<12}" if self.grades else ""

    def _details(self, row: Mapping[str, Any], name: str) -> list[str]:
        suffixes = {detail: UNIT_SUFFIXES[detail] for detail in self.columns.unit_details}
        suffixes |= {"from neutral": "_rel"} if self.columns.relative else {}
        digits = {"intensity": ".1f", "from neutral": "+.2f"}
        return [f"{word} {row[f'{name}{suffix}']:{digits.get(word, '.2f')}}" for word, suffix in suffixes.items()]

    def _is_answered(self, row: Mapping[str, Any]) -> bool:
        return all(row[name] == row[name] for name in (*self.units, *self.columns.emotions))

    def _columns(self, cells: Sequence[Any]) -> str:
        """The last may be a list, which is continued below where it is too long."""
        kept = [*cells[:4], *(cells[4:8] if self.boxes else ())]
        text = f"{kept[0]!s:<{self.room}}"
        text += "".join(f"{cell!s:>{width}}" for cell, width in zip(kept[1:], _WIDTHS, strict=False))
        text += f"  {cells[8]!s:<{self.word}}{cells[9]!s:>5}  "
        if isinstance(cells[10], str):
            return (text + cells[10]).rstrip()
        below = f"\n{' ' * len(text)}"
        return text + below.join(textwrap.wrap(" ".join(cells[10]), self.width - len(text)))

    def _card(self, row: Mapping[str, Any]) -> str:
        if not has_face(row):
            return f"{row['input']}: no face found"
        x, y, width, height = (_number(row[f"FaceRect{side}"], 0) for side in ("X", "Y", "Width", "Height"))
        score = _number(row["FaceScore"], 2)
        lines = [
            f"{row['input']}, face {row['face_id']}: {width} x {height} pixels at {x}, {y}"
            + (f", detector's score {score}" if score else "")
            + f"; landmarks: {row['landmark_source']}"
        ]
        pose = [f"{name.lower()} {_number(row[name], 0)}°" for name in POSE if row[name] == row[name]]
        if pose or row["quality"]:
            marks = [f"unreliable: {row['quality'].replace('_', ' ')}"] if row["quality"] else []
            lines.append("; ".join([*([f"head: {', '.join(pose)}"] if pose else []), *marks]))
        if not self._is_answered(row):
            return lines[0] + "; the model gave no answer"
        if self.columns.emotions:
            head = f"{'emotion':<30}{'probability':<{_BAR + 7}}"
            lines += ["", head + ("grade" if self.grades else "")]
            possible = (row.get("emotion_set") or "").split("|")
            for name in sorted(self.columns.emotions, key=lambda name: -row[name]):
                mark = "  top" if name == row["top_emotion"] else ""
                mark += "  possible" if name in possible else ""
                lines.append(f"{name:<30}{_bar(row[name])} {row[name]:.2f}{self._grade(name, 2)}{mark}".rstrip())
        if self.units:
            head = f"{'action unit':<30}{'probability':<{_BAR + 7}}threshold"
            lines += ["", head + ("  grade" if self.grades else "")]
            for name, code in self.units.items():
                share, limit = row[name], self.thresholds[code]
                state = row.get(f"{name}{STATE}") or ("active" if row[f"{name}_c"] == 1 else "")
                words = f"{name} {ACTION_UNITS[code].noun:<25}{_bar(share, limit)} {share:.2f}  {limit:.2f}"
                lines.append("  ".join([words + self._grade(name, 7), state, *self._details(row, name)]).rstrip())
        if row.get("caption"):
            but = " (disagrees with the decisions)" * (row["caption_disagrees"] == 1)
            lines += ["", f'written by the model: "{row["caption"]}"{but}']
        return "\n".join(lines)


def _number(value: Any, digits: int, unit: str = "") -> str:
    return "" if value is None or value != value else f"{value:.{digits}f}{unit}"


def _bar(share: float, mark: float | None = None) -> str:
    """Filled as far as the probability goes; a stroke stands at the threshold."""
    halves = round(share * 2 * _BAR)
    cells = list(("█" * (halves // 2) + "▌" * (halves % 2)).ljust(_BAR))
    if mark is not None:
        cells[min(_BAR - 1, int(mark * _BAR))] = "│"
    return "".join(cells)


def _shorten(path: str, room: int) -> str:
    """The end of a path tells more than its start."""
    if len(path) > room and os.sep in path:
        path = os.path.join("…", os.path.basename(path)) if len(os.path.basename(path)) <= room - 2 else path
    return path if len(path) <= room else "…" + path[-(room - 1) :]


def _wrap(parts: Sequence[str], width: int) -> str:
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) + 3 > width:
            lines.append("")
        lines[-1] += f"{' · ' if lines[-1] else ''}{part}"
    return "\n".join(lines) + "\n"
