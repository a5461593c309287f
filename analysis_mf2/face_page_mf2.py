"""One face on one sheet: the picture, every decision beside its threshold, the model's words, and where it looked."""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from configuration_mf2.facs_mf2 import ACTION_UNITS
from processing_mf2.captions_mf2 import au_sentence_state

from .explanation_mf2 import EMOTION, Explanation
from .occlusion_mf2 import CAUTION
from .palette_mf2 import (
    ACTIVE,
    AT_REST,
    FAINT,
    INK,
    MARK,
    SOFT,
    emotion_colours,
    new_figure,
    origin,
    over_grey,
    save_figure,
    shortened,
)


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 12.6
_EDGE, _GAP = 0.45, 0.22
CHARTS = ("bars", "radar")


def save_face_page(face: Explanation, path: str | os.PathLike, *, chart: str = "bars") -> Path:
    if chart not in CHARTS:
        raise ValueError(f"chart: got {chart!r}, expected one of {list(CHARTS)}")
    return save_figure(draw_face_page(face, chart), path)


def draw_face_page(face: Explanation, chart: str = "bars") -> "Figure":
    shown = _shown(face)
    words = _words(face)
    top, chart_height = 1.15, max(3.3, 0.285 * max(len(face.action_units), len(face.emotions)) + 0.35)
    text_height = 0.45 + sum(0.2 * (1 + text.count("\n")) + 0.06 for _, text in words) if words else 0.0
    columns = min(6, max(4, len(shown)))
    side = (WIDTH - 2 * _EDGE - (columns - 1) * _GAP) / columns
    map_height = side + (0.83 if face.occlusion else 0.56)
    maps_height = 0.42 + -(-len(shown) // columns) * map_height if shown else 0.0
    notes = [textwrap.fill(CAUTION, 200)] if face.occlusion else []
    height = top + chart_height + 0.3 + text_height + maps_height + 0.45 + 0.14 * len(notes)
    sheet = _Sheet(new_figure(WIDTH, height), height)
    _head(sheet, face)
    _photo(sheet.axes(_EDGE, top, 3.45, chart_height), face)
    if face.action_units and chart == "bars":
        unit_bars(sheet.axes(6.5, top, 2.0, chart_height), face)
    elif face.action_units:
        unit_radar(sheet.axes(5.2, top + 0.2, 3.3, chart_height - 0.4, projection="polar"), face)
    if face.emotions:
        emotion_bars(sheet.axes(10.62, top, 1.2, chart_height), face)
    place = top + chart_height + 0.3
    if words:
        _write(sheet, place, words)
        place += text_height
    if shown:
        _maps(sheet, place, face, shown, columns, side, map_height)
    foot = "\n".join([*notes, origin(face.about)])
    sheet.text(_EDGE, height - 0.3 - 0.14 * len(notes), foot, size=7.5, colour=SOFT)
    return sheet.figure


def _shown(face: Explanation) -> list[str]:
    """Maps of the emotion and of all active AUs; where those are few, of the AUs nearest to their threshold too."""
    units = face.action_units
    others = sorted((name for name in units if not units[name]["active"]), key=lambda name: -_nearness(units[name]))
    wanted = [EMOTION, *face.active]
    return [name for name in wanted + others[: max(0, 4 - len(wanted))] if name in face.grids]


def _nearness(unit: Mapping[str, Any]) -> float:
    return unit["probability"] - unit["threshold"]


class _Sheet:
    """A figure that is measured in inches from its upper left corner."""

    def __init__(self, figure: "Figure", height: float) -> None:
        self.figure, self.height = figure, height

    def axes(self, left: float, top: float, width: float, height: float, **settings: Any) -> "Axes":
        place = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(place, **settings)

    def text(
        self,
        left: float,
        top: float,
        words: str,
        *,
        size: float = 9,
        colour: str = INK,
        bold: bool = False,
        **more: Any,
    ) -> Any:
        settings = {"fontsize": size, "color": colour, "va": "top", "fontweight": "bold" if bold else "normal"}
        words = words.replace("$", r"\$")
        return self.figure.text(left / WIDTH, 1 - top / self.height, words, **settings, **more)

    def rule(self, top: float) -> None:
        from matplotlib.lines import Line2D

        height = 1 - top / self.height
        ends = [_EDGE / WIDTH, 1 - _EDGE / WIDTH]
        self.figure.add_artist(Line2D(ends, [height, height], color=FAINT, linewidth=0.8))


def _head(sheet: _Sheet, face: Explanation) -> None:
    sheet.text(_EDGE, 0.28, shortened(os.path.basename(face.name), 70), size=15, bold=True)
    sure = f"{face.emotion} {face.emotions[face.emotion]:.2f}" if face.emotions else ""
    count = f"{len(face.active)} of {len(face.action_units)} action units active" if face.action_units else ""
    said = " · ".join(part for part in (f"face {face.face_id}", sure, count) if part)
    sheet.text(_EDGE, 0.6, said, size=10.5, colour=SOFT)


def _photo(axis: "Axes", face: Explanation) -> None:
    from matplotlib.patches import Rectangle

    image, share = face.image, min(1.0, 1400 / max(face.image.shape[:2]))
    if share < 1:
        image = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    height, width = face.image.shape[:2]
    axis.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
    left, top, right, bottom = face.box
    whole = right - left > 0.97 * width and bottom - top > 0.97 * height
    if not whole:
        for colour, line in (("white", 3.6), (MARK, 1.8)):  # is seen on light and on dark
            size = (right - left, bottom - top)
            axis.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=colour, linewidth=line))
    axis.scatter(*face.landmarks.T, s=3.2, color="white", edgecolors=INK, linewidths=0.35, zorder=3)
    axis.set(xlim=(0, width), ylim=(height, 0), anchor="NW")
    axis.set_axis_off()


def unit_bars(axis: "Axes", face: Explanation) -> None:
    names = list(face.action_units)
    for row, name in enumerate(names):
        unit = face.action_units[name]
        share, limit, active = unit["probability"], unit["threshold"], unit["active"]
        axis.barh(row, 1, height=0.62, color="#f1f3f5")
        axis.barh(row, share, height=0.62, color=ACTIVE if active else AT_REST)
        for colour, line in (("white", 4.2), (MARK, 2)):  # is seen on the bar in black and white too
            axis.plot([limit, limit], [row - 0.4, row + 0.4], color=colour, linewidth=line, solid_capstyle="butt")
        weight, colour = ("bold", INK) if active else ("normal", SOFT)
        said = f"{share:.2f}  {'active' if active else 'at rest'}"
        axis.text(1.03, row, said, va="center", fontsize=8.5, color=colour, fontweight=weight)
        axis.text(-0.03, row, f"{unit['name']}", va="center", ha="right", fontsize=9, color=colour, fontweight=weight)
        axis.text(-1.17, row, name, va="center", fontsize=9, color=colour, fontweight=weight)
    axis.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6))
    _plain(axis, "probability · stroke: threshold")


def unit_radar(axis: "Axes", face: Explanation) -> None:
    """The same figures round a centre: for the shape of a face; lengths are easier to read from bars."""
    names, units = list(face.action_units), list(face.action_units.values())
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    closed = [*angles, angles[0]]
    shares, limits = ([unit[key] for unit in units] for key in ("probability", "threshold"))
    axis.fill(closed, [*shares, shares[0]], color=ACTIVE, alpha=0.25)
    axis.plot(closed, [*shares, shares[0]], color=ACTIVE, linewidth=1.8, label="probability")
    axis.plot(closed, [*limits, limits[0]], color=MARK, linewidth=1.2, linestyle=(0, (4, 2)), label="threshold")
    for angle, unit, share in zip(angles, units, shares, strict=True):
        if unit["active"]:
            axis.plot(angle, share, "o", color=ACTIVE, markersize=6, markeredgecolor="white")
    axis.set_theta_zero_location("N")
    axis.set_theta_direction(-1)
    axis.set_xticks(angles, [])
    for angle, name, unit in zip(angles, names, units, strict=True):
        side = "center" if abs(np.sin(angle)) < 0.1 else "left" if np.sin(angle) > 0 else "right"
        settings = {"fontweight": "bold", "color": INK} if unit["active"] else {"color": SOFT}
        axis.text(angle, 1.1, f"{name}\n{unit['name']}", ha=side, va="center", fontsize=7.5, **settings)
    axis.set_yticks([0.25, 0.5, 0.75, 1], ["", "0.5", "", "1"], fontsize=7, color=SOFT)
    axis.set_ylim(0, 1)
    axis.grid(color=FAINT, linewidth=0.7)
    axis.spines["polar"].set_color(FAINT)
    axis.legend(loc="lower left", bbox_to_anchor=(1.02, -0.1), fontsize=7.5, frameon=False)


def emotion_bars(axis: "Axes", face: Explanation) -> None:
    names = sorted(face.emotions, key=lambda name: -face.emotions[name])
    colours = emotion_colours(list(face.emotions))
    for row, name in enumerate(names):
        top = name == face.emotion
        axis.barh(row, 1, height=0.62, color="#f1f3f5")
        axis.barh(row, face.emotions[name], height=0.62, color=colours[name], edgecolor=SOFT, linewidth=0.5)
        weight, colour = ("bold", INK) if top else ("normal", SOFT)
        settings = {"va": "center", "fontsize": 9, "color": colour, "fontweight": weight}
        axis.text(-0.04, row, name, ha="right", **settings)
        axis.text(1.04, row, f"{face.emotions[name]:.2f}", **settings)
    axis.set(xlim=(0, 1), ylim=(max(len(names), len(face.action_units)) - 0.4, -0.6))
    _plain(axis, "emotion")


def _plain(axis: "Axes", title: str) -> None:
    axis.set_title(title, loc="left", fontsize=8, color=SOFT, pad=5)
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)


def disagrees(face: Explanation, name: str) -> bool:
    """The model wrote the opposite of what it decided."""
    sentence = face.sentence(name)
    if not sentence or name not in face.action_units:
        return False
    return au_sentence_state(sentence, name) == (0 if face.action_units[name]["active"] else 1)


def _words(face: Explanation) -> list[tuple[str, str]]:
    """(whose, text) in the order of reading; of AUs, those that are active."""
    found = [("emotion", face.sentences.get("emotion")), ("key action units", face.sentences.get("key_au"))]
    for name in face.active:
        but = "   (the sentence says otherwise than the decision)" if disagrees(face, name) else ""
        sentence = face.sentence(name)
        found.append((f"{name} {ACTION_UNITS[name].noun}", sentence and sentence + but))
    return [(whose, textwrap.fill(text, 128)) for whose, text in found if text]


def _write(sheet: _Sheet, top: float, words: list[tuple[str, str]]) -> None:
    sheet.rule(top - 0.1)
    sheet.text(
        _EDGE, top + 0.03, "written by the model, apart from the decisions: they may disagree", size=8, colour=SOFT
    )
    top += 0.28
    for whose, text in words:
        sheet.text(_EDGE, top, whose, size=9, colour=SOFT)
        sheet.text(_EDGE + 2.25, top, text, size=9.5)
        top += 0.2 * (1 + text.count("\n")) + 0.06


def _maps(
    sheet: _Sheet, top: float, face: Explanation, shown: list[str], columns: int, side: float, height: float
) -> None:
    sheet.rule(top - 0.04)
    told = "where the queries looked: the brighter, the more, each map up to its own peak"
    if face.corners:
        told += "; outlined: where the action unit is looked for, read from patches that reach beyond"
    sheet.text(_EDGE, top + 0.06, told, size=8, colour=SOFT)
    for place, name in enumerate(shown):
        row, column = divmod(place, columns)
        left, start = _EDGE + column * (side + _GAP), top + 0.32 + row * height
        draw_map(sheet.axes(left, start, side, side), face, name)
        unit = face.action_units.get(name)
        title = f"{name} {unit['name']}" if unit else f"emotion: {face.emotion}"
        sheet.text(left, start + side + 0.06, title, size=9, bold=True)
        sure = unit["probability"] if unit else face.emotions.get(face.emotion)
        state = " at rest" if unit and not unit["active"] else ""
        said = f"{sure:.2f}{state} · peak: {face.place(name)}" if sure is not None else f"peak: {face.place(name)}"
        sheet.text(left, start + side + 0.24, said, size=8, colour=SOFT)
        if name in face.occlusion:
            sheet.text(left, start + side + 0.4, _short(face.occlusion[name]), size=8, colour=SOFT)


def _short(check: Any) -> str:
    elsewhere = f"{check.probability - check.control_drop:.2f}" if check.controls else "no room"
    return f"its region hidden: {check.hidden:.2f}\nas much elsewhere: {elsewhere}"


def draw_map(axis: "Axes", face: Explanation, name: str) -> None:
    from matplotlib.patches import Polygon

    size, shown = len(face.crop), 448
    crop = cv2.resize(face.crop, (shown, shown), interpolation=cv2.INTER_CUBIC)
    heat = cv2.resize(face.crop_map(name), (shown, shown), interpolation=cv2.INTER_CUBIC).clip(0)
    axis.imshow(over_grey(crop, heat), extent=(0, size, size, 0), interpolation="antialiased")
    for square in face.corners.get(name, ()):
        for colour, line, dashes in (("white", 2.0, "-"), (INK, 0.9, (0, (3, 2)))):
            axis.add_patch(Polygon(square, fill=False, edgecolor=colour, linewidth=line, linestyle=dashes))
    axis.set(xlim=(0, size), ylim=(size, 0))
    axis.set_axis_off()


__all__ = ["disagrees", "draw_face_page", "draw_map", "save_face_page"]
