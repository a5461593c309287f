"""One face explained, as a picture and as a page: answers, attention maps, sentences, and occlusion of regions."""

import json
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from configuration_mf2.facs import ACTION_UNITS
from mf2face.inference.explain.page import (
    ACTIVE,
    AT_REST,
    DISAGREES,
    DISAGREES_CHIP,
    EDGE,
    FACE_SCRIPT,
    FACE_STYLE,
    INK,
    MARK,
    SOFT,
    WIDTH,
    Sheet,
    data_uri,
    emotion_colours,
    fills,
    heat_rgba,
    over_grey,
    page,
    save_page,
    shrunk,
    text,
)
from processing_mf2.captions import au_sentence_state, caption_disagrees
from processing_mf2.reliability import CANNOT_TELL


if TYPE_CHECKING:
    from matplotlib.axes import Axes

EMOTION = "emotion"
"""Name of the emotion queries' map, beside AU1, AU2, ..."""
CAUTION = (
    "A drop after hiding a region is evidence, not proof: other regions may show the same. Compare it with the drop of "
    "the controls."
)
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


def face_outline(landmarks: np.ndarray) -> np.ndarray:
    """(points, 2): hull of the landmarks, with a forehead as high above the brows as the eyes lie below, times 1.2."""
    raised = landmarks[17:27] + (landmarks[17:27].mean(0) - landmarks[36:48].mean(0)) * 1.2
    return cv2.convexHull(np.concatenate([landmarks, raised]).astype(np.float32))[:, 0]


def to_pixels(grid: np.ndarray, size: int) -> np.ndarray:
    """(side, side) -> (size, size) of the same sum, by quadratic B-splines: no edges that the model does not know."""
    side = len(grid)
    places = (np.arange(size) + 0.5) * side / size - 0.5  # in patches, the first's centre at 0
    away = np.abs(places[:, None] - np.arange(side))
    spread = np.where(away <= 0.5, 0.75 - away**2, 0.5 * np.clip(1.5 - away, 0, None) ** 2)
    spread /= spread.sum(0)
    return spread @ grid @ spread.T


@dataclass(frozen=True)
class Occlusion:
    """Probabilities of an AU with the whole face visible, its region hidden, and an equal area hidden elsewhere."""

    probability: float
    hidden: float
    controls: tuple[float, ...]

    def text(self) -> str:
        said = f"region hidden: {self.probability:.2f} → {self.hidden:.2f}; "
        if not self.controls:
            return f"{said}no room for a control in this crop"
        return f"{said}equal area hidden elsewhere (mean of {len(self.controls)}): → {np.mean(self.controls):.2f}"


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
    """(size, size, 3): the model's input"""
    matrix: np.ndarray
    """3 x 3: pixels of the image to those of the crop"""
    action_units: dict[str, dict[str, Any]]
    """AU -> name, probability, threshold, active; with a confidence, state: active, at rest or cannot tell"""
    emotions: dict[str, float]
    grids: dict[str, np.ndarray]
    """AU or "emotion" -> (side, side): attention of its queries, which sums to 1"""
    corners: dict[str, np.ndarray]
    """AU -> (2, 4, 2): the two squares of its region, in pixels of the crop"""
    sentences: dict[str, Any]
    """"emotion" and "key_au" -> text, "au" -> AU -> text; what the model cannot write is absent"""
    about: dict[str, Any]
    """model, adapter, synthetic, trained_on"""
    occlusion: dict[str, Occlusion] = field(default_factory=dict)

    @property
    def emotion(self) -> str | None:
        return max(self.emotions, key=self.emotions.get) if self.emotions else None

    @property
    def active(self) -> list[str]:
        """Active AUs, the most probable first."""
        units = [name for name, unit in self.action_units.items() if unit["active"]]
        return sorted(units, key=lambda name: -self.action_units[name]["probability"])

    def crop_map(self, name: str) -> np.ndarray:
        """(size, size): attention that sums to 1."""
        if name not in self.grids:
            raise ValueError(f"name: got {name!r}, expected one that has a map: {list(self.grids)}")
        return to_pixels(self.grids[name], len(self.crop))

    def place(self, name: str) -> str:
        """The part of the face nearest to the peak of a map, in words; "outside the face" for a peak off it."""
        down, right = np.unravel_index(self.crop_map(name).argmax(), self.crop.shape[:2])
        peak, size = np.array([right, down]) + 0.5, len(self.crop)
        points = self.landmarks @ self.matrix[:2, :2].T + self.matrix[:2, 2]
        inside = cv2.pointPolygonTest(face_outline(points), (float(peak[0]), float(peak[1])), True)
        if inside < -0.03 * size:
            return "outside the face"
        distances = {part: np.linalg.norm(points[of] - peak, axis=1).min() for part, of in _PARTS.items()}
        nearest = min(distances, key=distances.get)
        if distances[nearest] < 0.1 * size:
            return nearest
        return "forehead" if down < points[17:27, 1].min() else "cheek"

    def state(self, unit: str) -> str:
        values = self.action_units[unit]
        return values.get("state") or ("active" if values["active"] else "at rest")

    def sentence(self, name: str) -> str | None:
        """The text about an AU, or of kind "emotion" or "key_au"."""
        return self.sentences.get(name) or self.sentences.get("au", {}).get(name)

    def disagrees(self, name: str) -> bool:
        """Whether that text contradicts the decisions."""
        sentence, units = self.sentence(name), self.action_units
        if not sentence:
            return False
        if name in units:
            return au_sentence_state(sentence, name) == (0 if units[name]["active"] else 1)
        active = {unit: values["active"] for unit, values in units.items()}
        return caption_disagrees(sentence, self.emotion, list(self.emotions), active)

    def save_png(self, path: str | os.PathLike) -> Path:
        return draw_face_page(self).save(path)

    def save_html(self, path: str | os.PathLike) -> Path:
        return save_page(path, face_html(self))

    def _repr_html_(self) -> str:
        """In a notebook: the page in a frame of its own."""
        return f'<iframe srcdoc="{text(face_html(self))}" style="width:100%;height:900px;border:0"></iframe>'


_GAP = 0.22


def draw_face_page(face: Explanation) -> Sheet:
    shown, words, top = _shown(face), _words(face), Sheet.TOP
    chart_height = max(3.3, 0.285 * max(len(face.action_units), len(face.emotions)) + 0.35)
    text_height = 0.45 + sum(0.2 * (1 + sentence.count("\n")) + 0.06 for _, sentence in words) if words else 0.0
    columns = min(6, max(4, len(shown)))
    side = (WIDTH - 2 * EDGE - (columns - 1) * _GAP) / columns
    map_height = side + (0.83 if face.occlusion else 0.56)
    maps_top = top + chart_height + 0.3 + text_height
    height = maps_top + (0.42 + -(-len(shown) // columns) * map_height if shown else 0.0) + 0.45
    sheet = Sheet(height, face.name, _summary(face), face.about)
    _draw_photo(sheet.axes(EDGE, top, 3.45, chart_height), face)
    rows = max(len(face.action_units), len(face.emotions))
    if face.action_units:
        axis = sheet.axes(6.5, top, 2.0, chart_height)
        _draw_bars(axis, "probability · stroke: threshold", _unit_bars(face), rows)
    if face.emotions:
        _draw_bars(sheet.axes(10.62, top, 1.2, chart_height), "emotion", _emotion_bars(face), rows)
    if words:
        _write(sheet, top + chart_height + 0.3, words)
    if shown:
        _draw_maps(sheet, maps_top, face, shown, columns, side, map_height)
    if face.occlusion:
        sheet.text(EDGE, height - 0.24, CAUTION, 7.5)
    return sheet


def _shown(face: Explanation) -> list[str]:
    """Maps of the emotion and of all active AUs; where those are few, of the AUs nearest to their threshold too."""

    def margin(name: str) -> float:
        return face.action_units[name]["probability"] - face.action_units[name]["threshold"]

    others = sorted(set(face.action_units) - set(face.active), key=margin, reverse=True)
    wanted = [EMOTION, *face.active]
    return [name for name in wanted + others[: max(0, 4 - len(wanted))] if name in face.grids]


def _summary(face: Explanation) -> str:
    top = f"{face.emotion} {face.emotions[face.emotion]:.2f}" if face.emotions else ""
    count = f"{len(face.active)} of {len(face.action_units)} action units active" if face.action_units else ""
    return " · ".join(part for part in (f"face {face.face_id}", top, count) if part)


def _draw_photo(axis: "Axes", face: Explanation) -> None:
    from matplotlib.patches import Rectangle

    height, width = face.image.shape[:2]
    axis.imshow(shrunk(face.image, 1400), extent=(0, width, height, 0), interpolation="antialiased")
    if not fills(face.box, height, width):
        left, top, right, bottom = face.box
        for colour, line in (("white", 3.6), (MARK, 1.8)):  # visible on light and on dark
            box = (left, top), right - left, bottom - top
            axis.add_patch(Rectangle(*box, fill=False, edgecolor=colour, linewidth=line))
    axis.scatter(*face.landmarks.T, s=3.2, color="white", edgecolors=INK, linewidths=0.35, zorder=3)
    axis.set(xlim=(0, width), ylim=(height, 0), anchor="NW")


def _unit_bars(face: Explanation) -> Iterator[tuple]:
    for name, unit in face.action_units.items():
        share, active = unit["probability"], unit["active"]
        said = f"{share:.2f}  {face.state(name)}"
        yield name, unit["name"], share, ACTIVE if active else AT_REST, active, said, unit["threshold"]


def _emotion_bars(face: Explanation) -> Iterator[tuple]:
    colours = emotion_colours(list(face.emotions))
    for name, share in sorted(face.emotions.items(), key=lambda item: -item[1]):
        yield "", name, share, colours[name], name == face.emotion, f"{share:.2f}", None


def _draw_bars(axis: "Axes", title: str, bars: Iterable[tuple], rows: int) -> None:
    """bars: code, name, probability, colour, whether it is bold, words beside it, threshold."""
    axis.set_title(title, loc="left", fontsize=8, color=SOFT, pad=5)
    for row, (code, name, share, colour, bold, said, limit) in enumerate(bars):
        style = {"va": "center", "fontsize": 9, "color": INK if bold else SOFT}
        style["fontweight"] = "bold" if bold else "normal"
        axis.barh(row, 1, height=0.62, color="#f1f3f5")
        axis.barh(row, share, height=0.62, color=colour, edgecolor=SOFT, linewidth=0.4)
        for mark, line in (("white", 4.2), (MARK, 2)) if limit is not None else ():  # visible in black and white too
            axis.plot([limit, limit], [row - 0.4, row + 0.4], color=mark, linewidth=line, solid_capstyle="butt")
        axis.text(1.03, row, said, **style)
        axis.text(-0.03, row, name, ha="right", **style)
        axis.text(-1.17, row, code, **style)
    axis.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))


def _words(face: Explanation) -> list[tuple[str, str]]:
    """(topic, text) in reading order; of AUs, those that are active."""
    topics = {EMOTION: "emotion", "key_au": "key action units"}
    topics |= {name: f"{name} {ACTION_UNITS[name].noun}" for name in face.active}
    found = []
    for name, topic in topics.items():
        if sentence := face.sentence(name):
            sentence += f"   [{DISAGREES}]" if face.disagrees(name) else ""
            found.append((topic, textwrap.fill(sentence, 128)))
    return found


def _write(sheet: Sheet, top: float, words: list[tuple[str, str]]) -> None:
    sheet.rule(top - 0.1)
    sheet.text(EDGE, top + 0.03, "written by the model, apart from the decisions: they may disagree", 8)
    top += 0.28
    for topic, sentence in words:
        sheet.text(EDGE, top, topic)
        sheet.text(EDGE + 2.25, top, sentence, 9.5, INK)
        top += 0.2 * (1 + sentence.count("\n")) + 0.06


def _draw_maps(
    sheet: Sheet, top: float, face: Explanation, shown: list[str], columns: int, side: float, height: float
) -> None:
    sheet.rule(top - 0.04)
    title = "attention of the queries, each map up to its own peak"
    if face.corners:
        title += "; outlined: the region of the action unit, read from patches that reach beyond"
    sheet.text(EDGE, top + 0.06, title, 8)
    for place, name in enumerate(shown):
        row, column = divmod(place, columns)
        left, start = EDGE + column * (side + _GAP), top + 0.32 + row * height
        _draw_map(sheet.axes(left, start, side, side), face, name)
        unit = face.action_units.get(name)
        title = f"{name} {unit['name']}" if unit else f"emotion: {face.emotion}"
        sheet.text(left, start + side + 0.06, title, 9, INK, fontweight="bold")
        share = unit["probability"] if unit else face.emotions.get(face.emotion)
        state = f" {face.state(name)}" if unit and face.state(name) != "active" else ""
        said = [] if share is None else [f"{share:.2f}{state}"]
        sheet.text(left, start + side + 0.24, " · ".join([*said, f"peak: {face.place(name)}"]), 8)
        if check := face.occlusion.get(name):
            elsewhere = f"{np.mean(check.controls):.2f}" if check.controls else "no room"
            said = f"its region hidden: {check.hidden:.2f}\nas much elsewhere: {elsewhere}"
            sheet.text(left, start + side + 0.4, said, 8)


def _draw_map(axis: "Axes", face: Explanation, name: str) -> None:
    from matplotlib.patches import Polygon

    size, shown = len(face.crop), (448, 448)
    crop = cv2.resize(face.crop, shown, interpolation=cv2.INTER_CUBIC)
    heat = cv2.resize(face.crop_map(name), shown, interpolation=cv2.INTER_CUBIC).clip(0)
    axis.imshow(over_grey(crop, heat), extent=(0, size, size, 0), interpolation="antialiased")
    for square in face.corners.get(name, ()):
        for colour, line, dashes in (("white", 2.0, "-"), (INK, 0.9, (0, (3, 2)))):
            axis.add_patch(Polygon(square, fill=False, edgecolor=colour, linewidth=line, linestyle=dashes))
    axis.set(xlim=(0, size), ylim=(size, 0))


NOTE = (
    "Heat: attention of the queries, each map up to its own peak; it shows where they looked, not that this is why. "
    "Outlined: the region of an action unit, read from patches that reach beyond."
)
_MOST_SIDE = 1600


def face_html(face: Explanation) -> str:
    """A page of its own, opened at the map of the most probable active AU."""
    names = [name for name in (*face.active, EMOTION, *face.grids) if name in face.grids]
    note = f"{NOTE} {CAUTION}" if face.occlusion else NOTE
    body = f"<main>{face_view([face], first=names[0] if names else '', zoomed=True)}</main>"
    name, style = os.path.basename(face.name), {"style": FACE_STYLE, "script": FACE_SCRIPT}
    return page("Why", name, _summary(face), body, face.about, note=note, **style)


def face_view(
    faces: Sequence[Explanation],
    before: Sequence[Mapping[str, float]] = (),
    *,
    first: str = "",
    zoomed: bool = False,
    footers: Sequence[str] = (),
) -> str:
    """All faces of one image, of which one is shown, for pages and the demo.

    before: each face's probabilities without the adapter. first: the map shown at the start. zoomed: on the face.
    footers: HTML below each face's panel.
    """
    panels = "".join(
        _panel(face, before[place] if before else {}, place, footers[place] if footers else "")
        for place, face in enumerate(faces)
    )
    return f"""<div class="mf-view"><div class="mf-grid">
<section class="mf-look" aria-label="The image and its heat maps">
{_photo(faces, first, zoomed)}<div class="mf-told" aria-live="polite"></div>
<div class="mf-chips"><button type="button" class="mf-chip" data-do="emotion">heat of the emotion</button>
<button type="button" class="mf-chip" data-do="clear">no heat</button>
<button type="button" class="mf-chip" data-do="zoom">whole image</button></div></section>
<div class="mf-panels">{panels}</div></div></div>"""


def _photo(faces: Sequence[Explanation], first: str, zoomed: bool) -> str:
    image, crop = faces[0].image, faces[0].crop
    height, width = image.shape[:2]
    boxes = "".join(_box(face, place, max(height, width) / 26) for place, face in enumerate(faces))
    # Under the heat, dark faces are lightened to be seen as well as light ones.
    light = np.clip(175 / max(1.0, np.percentile(crop.mean(2), 95)), 0.75, 2.2)
    whole = f"0 0 {width} {height}"
    return f"""<svg class="mf-photo" style="--light:{light:.2f}" data-whole="{whole}" data-first="{text(first)}"
{"data-zoomed" * zoomed} viewBox="{_near(faces[0]) if zoomed else whole}" role="group" aria-label="image with faces">
<image class="mf-seen" href="{data_uri(shrunk(image, _MOST_SIDE), ".jpg")}" width="{width}" height="{height}"
preserveAspectRatio="none"/><g class="mf-heat"><image width="{len(crop)}" height="{len(crop)}"
preserveAspectRatio="none"/><path/></g>{boxes}</svg>"""


def _box(face: Explanation, place: int, size: float) -> str:
    """A button around the face, with its emotion above or inside; none for a face that fills the image."""
    left, top, right, bottom = face.box
    if fills(face.box, *face.image.shape[:2]):
        return ""
    shape = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    line = top - 0.4 * size if top > 1.5 * size else top + 1.2 * size
    words = text(face.emotion or f"face {place + 1}")
    return (
        f'<g class="mf-box" data-face="{place}" tabindex="0" role="button" aria-label="face {place + 1}: {words}">'
        f'<rect class="halo" {shape}/><rect {shape}/><text x="{left + 0.3 * size:.1f}" y="{line:.1f}" '
        f'font-size="{size:.1f}">{words}</text></g>'
    )


def _near(face: Explanation) -> str:
    """The view box of the part that the crop was cut from."""
    size, (height, width) = len(face.crop), face.image.shape[:2]
    back = np.linalg.inv(face.matrix)
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]]) @ back[:2, :2].T + back[:2, 2]
    low, high = corners.min(0).clip(0), np.minimum(corners.max(0), (width, height))
    return " ".join(f"{value:.1f}" for value in (*low, *(high - low)))


def _panel(face: Explanation, before: Mapping[str, float], place: int, footer: str) -> str:
    matrix = " ".join(f"{value:.5f}" for value in np.linalg.inv(face.matrix)[:2].T.ravel())  # crop to image
    ring = '<span class="mf-key"><i class="mf-was"></i>without the adapter</span>' if before else ""
    parts = [_verdict(face), *(_quote(face, kind) for kind in (EMOTION, "key_au"))]
    if face.action_units:
        rows = "".join(_unit_row(face, name, before.get(name)) for name in face.action_units)
        limit = '<span class="mf-key"><i class="mf-limit"></i>threshold</span>'
        parts.append(f'<div class="mf-title"><span>Action units</span>{limit}{ring}</div>')
        parts.append(f'<div class="mf-units">{rows}</div>')
    if face.emotions:
        names = sorted(face.emotions, key=lambda name: -face.emotions[name])
        rows = "".join(_emotion_row(face, name, before.get(name)) for name in names)
        parts.append(f'<div class="mf-title"><span>Emotion</span></div><div class="mf-moods">{rows}</div>')
    return (
        f'<section class="mf-face" data-face="{place}" data-matrix="{matrix}" data-near="{_near(face)}"'
        f"{_map_attributes(face, EMOTION)} {'hidden' * (place > 0)}>{''.join(parts)}{footer}</section>"
    )


def _verdict(face: Explanation) -> str:
    mood = ""
    if face.emotion:
        colour = emotion_colours(list(face.emotions))[face.emotion]
        mood = f'<span class="mf-mood"><i style="background:{colour}"></i>{text(face.emotion)}</span>'
        mood += f'<span class="mf-sure">{face.emotions[face.emotion]:.2f}</span>'
    tags = [name for name in face.active if face.state(name) == "active"]
    tags += [f"{name}?" for name in face.action_units if face.state(name) == CANNOT_TELL]
    tags = tags or (["no AU active"] if face.action_units else [])
    return f'<div class="mf-verdict">{mood}{"".join(f"<span class=mf-tag>{text(name)}</span>" for name in tags)}</div>'


def _quote(face: Explanation, kind: str) -> str:
    if not face.sentence(kind):
        return ""
    chip = f" {DISAGREES_CHIP}" if face.disagrees(kind) else ""
    return f'<div class="mf-quote" title="written by the model">{text(face.sentence(kind))}{chip}</div>'


_CLASSES = {"active": "on", "at rest": "", CANNOT_TELL: "unsure"}


def _unit_row(face: Explanation, name: str, before: float | None) -> str:
    unit = face.action_units[name]
    share, limit, state = unit["probability"], unit["threshold"], face.state(name)
    tag, more = "div", ""
    if name in face.grids:
        tag, more = "button", f' type="button" data-name="{text(name)}"{_map_attributes(face, name)}'
    said = f"{name} {unit['name']}: probability {share:.2f}, threshold {limit:.2f}, {state}"
    mark = f'<u style="left:{100 * limit:.1f}%"></u>'
    return (
        f'<{tag} class="mf-row {_CLASSES[state]}"{more} aria-label="{text(said)}"><span>{text(name)}</span>'
        f"<span>{text(unit['name'])}</span>{_bar(share, before, mark)}<span>{share:.2f} {state}</span></{tag}>"
    )


def _emotion_row(face: Explanation, name: str, before: float | None) -> str:
    share, colour = face.emotions[name], emotion_colours(list(face.emotions))[name]
    bar, on = _bar(share, before, colour=f";background:{colour}"), " on" * (name == face.emotion)
    return f'<div class="mf-row{on}"><span>{text(name)}</span>{bar}<span>{share:.2f}</span></div>'


def _bar(share: float, before: float | None, mark: str = "", colour: str = "") -> str:
    moved = before is not None and abs(before - share) >= 0.015
    was = f'<b class="mf-was" style="left:{100 * before:.1f}%"></b>' if moved else ""
    return f'<span class="mf-bar"><i style="width:{100 * share:.1f}%{colour}"></i>{mark}{was}</span>'


def _map_attributes(face: Explanation, name: str) -> str:
    """A map's heat, region outlines and text, as attributes for the script."""
    if name not in face.grids:
        return ""
    heat = cv2.resize(face.crop_map(name), (192, 192), interpolation=cv2.INTER_CUBIC).clip(0)
    squares = face.corners.get(name, ())
    path = "".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in square) + "Z" for square in squares)
    lines = text(json.dumps(_lines(face, name)))
    return f' data-heat="{data_uri(heat_rgba(heat))}" data-regions="{path}" data-lines="{lines}"'


def _lines(face: Explanation, name: str) -> list[str]:
    unit = face.action_units.get(name)
    if unit:
        lines = [f"{name} {unit['name']}: {face.state(name)}"]
        lines.append(f"probability {unit['probability']:.2f}, threshold {unit['threshold']:.2f}")
    else:
        lines = [f"Emotion: {face.emotion}" if face.emotion else "The whole face"]
    lines.append(f"most attention: {face.place(name)}")
    if sentence := face.sentence(name):
        lines.append(f"the model writes: “{sentence}”" + (f" ({DISAGREES})" if face.disagrees(name) else ""))
    if name in face.occlusion:
        lines.append(face.occlusion[name].text())
    return lines
