"""Why: of a face the answers, where the queries looked, what the model wrote, and whether hiding a region matters."""

import json
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from configuration_mf2.facs import ACTION_UNITS
from mf2face.inference.explain.attention import to_pixels
from mf2face.inference.explain.occlusion import CAUTION, Occlusion
from mf2face.inference.explain.page import (
    ACTIVE,
    AT_REST,
    FAINT,
    INK,
    MARK,
    SOFT,
    data_uri,
    emotion_colours,
    fills,
    heat_rgba,
    new_figure,
    origin,
    over_grey,
    page,
    save_figure,
    save_page,
    shortened,
    shrunk,
    text,
)
from processing_mf2.captions import au_sentence_state


EMOTION = "emotion"
"""The name of the emotion queries' map, beside AU1, AU2, ..."""

_PARTS = {
    "jaw": [*range(17)],
    "left brow": [*range(17, 22)],
    "right brow": [*range(22, 27)],
    "nose": [*range(27, 36)],
    "left eye": [*range(36, 42)],
    "right eye": [*range(42, 48)],
    "left corner of the mouth": [48, 60],
    "right corner of the mouth": [54, 64],
    "upper lip": [49, 50, 51, 52, 53, 61, 62, 63],
    "lower lip": [55, 56, 57, 58, 59, 65, 66, 67],
}


@dataclass
class Explanation:
    """What the model decided about one face, and why. Left and right are the image's."""

    name: str
    face_id: int
    image: np.ndarray
    """(height, width, 3), RGB"""
    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    """(68, 2) in pixels of the image"""
    crop: np.ndarray
    """(size, size, 3): what the model saw"""
    matrix: np.ndarray
    """3 x 3: pixels of the image to those of the crop"""
    action_units: dict[str, dict[str, Any]]
    """AU -> name, probability, threshold, active"""
    emotions: dict[str, float]
    grids: dict[str, np.ndarray]
    """AU or "emotion" -> (side, side): shares of its queries' attention, which sum to 1"""
    corners: dict[str, np.ndarray]
    """AU -> (2, 4, 2): the two squares in which it is looked for, in pixels of the crop"""
    sentences: dict[str, Any]
    """"emotion" and "key_au" -> text, "au" -> AU -> text; what the model cannot write is absent. Its own words, with
    capitals and spaces as people set them."""
    about: dict[str, Any]
    """model, adapter, synthetic, trained_on"""
    occlusion: dict[str, Occlusion] = field(default_factory=dict)

    @property
    def emotion(self) -> str | None:
        return max(self.emotions, key=self.emotions.get) if self.emotions else None

    @property
    def active(self) -> list[str]:
        """Most sure first."""
        found = [name for name, unit in self.action_units.items() if unit["active"]]
        return sorted(found, key=lambda name: -self.action_units[name]["probability"])

    def crop_map(self, name: str) -> np.ndarray:
        """(size, size): shares of attention, which sum to 1."""
        if name not in self.grids:
            raise ValueError(f"name: got {name!r}, expected one that has a map: {list(self.grids)}")
        return to_pixels(self.grids[name], len(self.crop))

    def place(self, name: str) -> str:
        """The part of the face that the strongest attention is nearest to, in words."""
        down, right = np.unravel_index(self.crop_map(name).argmax(), self.crop.shape[:2])
        peak, size = np.array([right, down]) + 0.5, len(self.crop)
        points = self.landmarks @ self.matrix[:2, :2].T + self.matrix[:2, 2]
        part, away = min(
            ((part, np.linalg.norm(points[of] - peak, axis=1).min()) for part, of in _PARTS.items()),
            key=lambda found: found[1],
        )
        if away < 0.1 * size:
            return part
        return (
            "forehead" if down < points[17:27, 1].min() else "cheek" if points[0, 0] < right < points[16, 0] else part
        )

    def sentence(self, name: str) -> str | None:
        if name == EMOTION:
            return self.sentences.get("emotion")
        return self.sentences.get("au", {}).get(name)

    def save_png(self, path: str | os.PathLike) -> Path:
        return save_figure(draw_face_page(self), path)

    def save_html(self, path: str | os.PathLike) -> Path:
        return save_page(path, face_html(self))


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 12.6
_EDGE, _GAP = 0.45, 0.22


def draw_face_page(face: Explanation) -> "Figure":
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
    if face.action_units:
        unit_bars(sheet.axes(6.5, top, 2.0, chart_height), face)
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

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        place = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(place)

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
    sheet.text(_EDGE, 0.6, _summary(face), size=10.5, colour=SOFT)


def _summary(face: Explanation) -> str:
    sure = f"{face.emotion} {face.emotions[face.emotion]:.2f}" if face.emotions else ""
    count = f"{len(face.active)} of {len(face.action_units)} action units active" if face.action_units else ""
    return " · ".join(part for part in (f"face {face.face_id}", sure, count) if part)


def _photo(axis: "Axes", face: Explanation) -> None:
    from matplotlib.patches import Rectangle

    image, (height, width) = shrunk(face.image, 1400), face.image.shape[:2]
    axis.imshow(image, extent=(0, width, height, 0), interpolation="antialiased")
    left, top, right, bottom = face.box
    if not fills(face.box, height, width):
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
    for whose, sentence in words:
        sheet.text(_EDGE, top, whose, size=9, colour=SOFT)
        sheet.text(_EDGE + 2.25, top, sentence, size=9.5)
        top += 0.2 * (1 + sentence.count("\n")) + 0.06


def _maps(
    sheet: _Sheet, top: float, face: Explanation, shown: list[str], columns: int, side: float, height: float
) -> None:
    sheet.rule(top - 0.04)
    title = "where the queries looked: the brighter, the more, each map up to its own peak"
    if face.corners:
        title += "; outlined: where the action unit is looked for, read from patches that reach beyond"
    sheet.text(_EDGE, top + 0.06, title, size=8, colour=SOFT)
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


_MOST_SIDE = 1600
_STYLE = """
.face { display: grid; grid-template-columns: minmax(300px, 460px) minmax(340px, 1fr); gap: 1.8rem;
  margin-top: 1.1rem; }
@media (max-width: 800px) { .face { grid-template-columns: 1fr; } }
.look { position: sticky; top: 1rem; align-self: start; }
svg.photo { width: 100%; display: block; border-radius: 10px; background: var(--card); }
.photo .seen { transition: filter .2s; } .photo.heated .seen { filter: grayscale(1) brightness(var(--light)); }
#told { min-height: 7.6em; margin: .7rem 0 0; } #told b { display: block; font-size: 1.05rem; }
.controls { margin-top: .6rem; display: flex; gap: .4rem; flex-wrap: wrap; }
.mf-row { display: grid; grid-template-columns: 3.1rem 10.5rem 1fr 6.6rem; align-items: center; gap: .5rem; width: 100%;
  border: 0; background: none; text-align: left; padding: .2rem .45rem; border-radius: 6px; color: var(--soft); }
button.mf-row { cursor: pointer; } .mf-row.on { color: var(--ink); font-weight: 650; }
button.mf-row:hover, .mf-row.shown { background: var(--card); }
.mf-bar { position: relative; height: .85rem; background: var(--track); border-radius: 3px; }
.mf-bar i { position: absolute; inset: 0 auto 0 0; background: var(--rest); border-radius: 3px; min-width: 1px; }
.on .mf-bar i { background: var(--active); } .mf-bar u { position: absolute; top: -.22rem; bottom: -.22rem; width: 3px;
  margin-left: -1.5px; background: var(--mark); }
.emotions i { box-shadow: 0 0 0 1px var(--soft); }
.emotions { margin-top: 1.3rem; } .emotions .mf-row { grid-template-columns: 7rem 1fr 3rem; }
.words { margin-top: 1.3rem; } .words p { margin: .25rem 0 .7rem; } @media print { .look { position: static; } }
"""
_SCRIPT = """
const heat = document.getElementById("heat"), regions = document.getElementById("regions");
const told = document.getElementById("told"), photo = document.querySelector(".photo");
const buttons = [...document.querySelectorAll("button[data-name]")];
let kept = data.first;
function show(name) {
  const one = buttons.find(button => button.dataset.name === name);
  photo.classList.toggle("heated", !!one);
  heat.setAttribute("href", one ? one.dataset.heat : data.clear);
  regions.setAttribute("d", one ? one.dataset.regions : "");
  told.replaceChildren();
  const lines = one ? JSON.parse(one.dataset.lines) : data.lines;
  lines.forEach((line, place) => {
    const part = document.createElement(place ? "div" : "b");
    part.textContent = line; told.append(part);
  });
  buttons.forEach(b => { b.classList.toggle("shown", b.dataset.name === name);
    b.setAttribute("aria-pressed", b.dataset.name === kept); });
}
buttons.forEach((button, place) => {
  const name = button.dataset.name;
  button.addEventListener("mouseenter", () => show(name));
  button.addEventListener("mouseleave", () => show(kept));
  button.addEventListener("focus", () => show(name));
  button.addEventListener("blur", () => show(kept));
  button.addEventListener("click", () => { kept = kept === name ? null : name; show(kept); });
  button.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) { event.preventDefault(); buttons[(place + step + buttons.length) % buttons.length].focus(); }
  });
});
const whole = document.getElementById("whole");
whole.addEventListener("click", () => {
  const on = whole.getAttribute("aria-pressed") !== "true";
  whole.setAttribute("aria-pressed", on);
  photo.setAttribute("viewBox", on ? data.whole : data.near);
});
show(kept);
"""


def face_html(face: Explanation) -> str:
    """A page of its own: the photograph with heat maps, action units, emotions and what the model wrote."""
    name, (height, width) = os.path.basename(face.name), face.image.shape[:2]
    names = [name for name in (*face.active, EMOTION, *face.grids) if name in face.grids]
    lines = ["No map", "Point at an action unit to see where its queries looked."]
    data = {"first": names[0] if names else None, "lines": lines, "clear": data_uri(np.zeros((1, 1, 4), np.uint8))}
    data |= {"near": _near(face), "whole": f"0 0 {width} {height}"}
    heat = f'<button class="chip" data-name="{EMOTION}" aria-pressed="false" {map_attributes(face, EMOTION)}>'
    heat = f"{heat}heat of the emotion</button>" if EMOTION in face.grids else ""
    body = f"""<h1>{text(name)}</h1>
<p class="soft" style="margin:.2rem 0 0">{text(_summary(face))}</p>
<main class="face">
<section class="look" aria-label="The face and its heat maps">
{_html_photo(face)}
<div id="told" aria-live="polite"></div>
<div class="controls">{heat}
<button class="chip" id="whole" aria-pressed="false">whole image</button></div>
</section>
<div>{_units(face)}{_emotions(face)}{_html_words(face)}</div>
</main>"""
    footer = ["Heat: the share of attention of the queries, each map up to its own peak; it shows where they looked,"]
    footer += [
        "not that this is why. Outlined: where an action unit is looked for, read from patches that reach beyond."
    ]
    footer = " ".join([*footer, *([CAUTION] if face.occlusion else []), origin(face.about)])
    return page(f"Why: {name}", body, style=_STYLE, script=_SCRIPT, data=data, footer=footer)


def _html_photo(face: Explanation) -> str:
    (height, width), size = face.image.shape[:2], len(face.crop)
    matrix = svg_matrix(face)
    left, top, right, bottom = face.box
    shape = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    line = 'fill="none" vector-effect="non-scaling-stroke"'
    # Under the heat, dark faces are lightened to be seen as well as light ones.
    light = np.clip(175 / max(1.0, np.percentile(face.crop.mean(2), 95)), 0.75, 2.2)
    photo = data_uri(shrunk(face.image, _MOST_SIDE), ".jpg")
    return f"""<svg class="photo" style="--light:{light:.2f}" viewBox="{_near(face)}"
role="img" aria-label="Photograph with face {face.face_id}">
<image class="seen" href="{photo}" width="{width}" height="{height}" preserveAspectRatio="none"/>
<rect {shape} {line} stroke="#fff" stroke-width="3" opacity=".8"/>
<rect {shape} {line} stroke="#d55e00" stroke-width="1.4"/>
<g transform="matrix({matrix})"><image id="heat" width="{size}" height="{size}" preserveAspectRatio="none"/>
<path id="regions" {line} stroke="#fff" stroke-width="2" stroke-dasharray="5 3"/></g>
</svg>"""


def svg_matrix(face: Explanation) -> str:
    """From the crop to the image, for SVG's `matrix(...)`."""
    return " ".join(f"{value:.5f}" for value in np.linalg.inv(face.matrix)[:2].T.ravel())


def _near(face: Explanation) -> str:
    """The view box of the part that the crop was cut from."""
    size, (height, width) = len(face.crop), face.image.shape[:2]
    back = np.linalg.inv(face.matrix)
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]]) @ back[:2, :2].T + back[:2, 2]
    low, high = corners.min(0).clip(0), np.minimum(corners.max(0), (width, height))
    return " ".join(f"{value:.1f}" for value in (*low, *(high - low)))


def _units(face: Explanation) -> str:
    if not face.action_units:
        return ""
    how = "Point at a row or use the arrow keys; a click keeps it. Stroke: threshold."
    title = f'<h2>Action units <span class="soft" style="font-weight:400">· {how}</span></h2>'
    rows = "".join(unit_row(face, name) for name in face.action_units)
    return f'<section aria-label="Action units">{title}{rows}</section>'


def _emotions(face: Explanation) -> str:
    if not face.emotions:
        return ""
    names = sorted(face.emotions, key=lambda name: -face.emotions[name])
    rows = "".join(emotion_row(face, name) for name in names)
    return f'<section class="emotions"><h2>Emotion</h2>{rows}</section>'


def unit_row(face: Explanation, name: str, before: float | None = None) -> str:
    """An AU's bar, threshold and map, for the page and the demo. before: its probability without the adapter."""
    unit = face.action_units[name]
    share, limit, state = unit["probability"], unit["threshold"], "active" if unit["active"] else "at rest"
    tag, more = "div", ""
    if name in face.grids:
        tag, more = (
            "button",
            f' type="button" data-name="{text(name)}" aria-pressed="false" {map_attributes(face, name)}',
        )
    said = f"{name} {unit['name']}: probability {share:.2f}, threshold {limit:.2f}, {state}"
    return (
        f'<{tag} class="mf-row{" on" * unit["active"]}"{more} aria-label="{text(said)}"><span>{text(name)}</span>'
        f"<span>{text(unit['name'])}</span>{_bar(share, before, f'<u style=left:{100 * limit:.1f}%></u>')}"
        f'<span>{share:.2f}<span class="mf-state"> {state}</span></span></{tag}>'
    )


def emotion_row(face: Explanation, name: str, before: float | None = None) -> str:
    share, colour = face.emotions[name], emotion_colours(list(face.emotions))[name]
    bar = _bar(share, before, colour=f";background:{colour}")
    on = " on" if name == face.emotion else ""
    return f'<div class="mf-row{on}"><span>{text(name)}</span>{bar}<span>{share:.2f}</span></div>'


def _bar(share: float, before: float | None, more: str = "", colour: str = "") -> str:
    moved = before is not None and abs(before - share) >= 0.015
    was = f'<b class="mf-was" style="left:{100 * before:.1f}%"></b>' if moved else ""
    return f'<span class="mf-bar"><i style="width:{100 * share:.1f}%{colour}"></i>{more}{was}</span>'


def map_attributes(face: Explanation, name: str) -> str:
    """A map's heat, the outlines of its regions and the lines beside it, as attributes for the script."""
    if name not in face.grids:
        return ""
    heat = cv2.resize(face.crop_map(name), (192, 192), interpolation=cv2.INTER_CUBIC).clip(0)
    squares = face.corners.get(name, ())
    path = "".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in square) + "Z" for square in squares)
    lines = text(json.dumps(_lines(face, name)))
    return f'data-heat="{data_uri(heat_rgba(heat))}" data-regions="{path}" data-lines="{lines}"'


def _lines(face: Explanation, name: str) -> list[str]:
    unit = face.action_units.get(name)
    if unit:
        lines = [f"{name} {unit['name']}: {'active' if unit['active'] else 'at rest'}"]
        lines.append(f"probability {unit['probability']:.2f}, threshold {unit['threshold']:.2f}")
    else:
        lines = [f"Emotion: {face.emotion}" if face.emotion else "The whole face"]
    lines.append(f"most attention: {face.place(name)}")
    if face.sentence(name):
        but = " (says otherwise than the decision)" if disagrees(face, name) else ""
        lines.append(f"the model writes: “{face.sentence(name)}”{but}")
    if name in face.occlusion:
        lines.append(face.occlusion[name].text())
    return lines


def _html_words(face: Explanation) -> str:
    written = {"emotion": face.sentences.get("emotion"), "key action units": face.sentences.get("key_au")}
    parts = [f'<div class="soft">{kind}</div><p>{text(said)}</p>' for kind, said in written.items() if said]
    if not parts:
        return ""
    title = "<h2>Written by the model, apart from the decisions: they may disagree</h2>"
    return f'<section class="words">{title}{"".join(parts)}</section>'
