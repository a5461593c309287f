"""A folder on a sheet: every face small, its emotion on a strip of that colour, its active AUs below."""

import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .palette_mf2 import FAINT, INK, SOFT, emotion_colours, ink_on, new_figure, origin, save_figure, shortened
from .picture_rows_mf2 import PictureRows, thumbnails
from .rows_mf2 import has_face


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACES_A_PAGE = 56
WIDTH = 12.6
_EDGE, _GAP, _TOP, _FOOT = 0.45, 0.2, 1.0, 0.45


def save_contact_sheet(rows: PictureRows, path: str | os.PathLike) -> list[Path]:
    """More than 56 faces go on in `...-2.png`."""
    if not rows.stills:
        raise ValueError("rows: got none of still images, expected some for a contact sheet; videos have a timeline")
    path, faces = Path(path), rows.stills
    pages = range(0, len(faces), FACES_A_PAGE)
    saved = []
    for number, start in enumerate(pages, 1):
        told = f" · page {number} of {len(pages)}" if len(pages) > 1 else ""
        figure = draw_contact_sheet(rows, faces[start : start + FACES_A_PAGE], told)
        saved.append(save_figure(figure, path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")))
    return saved


def summary(rows: PictureRows) -> str:
    """How many of what: the first line of a sheet."""
    images = len({row["input"] for row in rows.stills})
    counts = Counter(row["top_emotion"] for row in rows.stills if row["top_emotion"])
    faces = sum(map(has_face, rows.stills))
    said = [f"{faces:,} face{'s' * (faces != 1)} in {images:,} image{'s' * (images != 1)}"]
    return " · ".join(said + [f"{name} {count:,}" for name, count in counts.most_common()])


def draw_contact_sheet(rows: PictureRows, page: Sequence[Mapping[str, Any]], told: str = "") -> "Figure":
    columns = 8 if len(rows.stills) > 24 else 6 if len(rows.stills) > 8 else 4
    side = (WIDTH - 2 * _EDGE - (columns - 1) * _GAP) / columns
    words = max(1, max(len(_units(rows, row, columns)) for row in page))
    strip, tall = 0.24, side + 0.24 + 0.16 * words + 0.34
    height = _TOP + -(-len(page) // columns) * tall + _FOOT
    figure = new_figure(WIDTH, height)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH), ylim=(height, 0))
    axis.set_axis_off()
    axis.text(_EDGE, 0.3, "Contact sheet", fontsize=15, fontweight="bold", color=INK, va="top")
    axis.text(_EDGE, 0.63, summary(rows) + told, fontsize=9, color=SOFT, va="top")
    colours = emotion_colours(rows.emotions)
    for place, (row, image) in enumerate(zip(page, thumbnails(page, 260), strict=True)):
        down, across = divmod(place, columns)
        left, top = _EDGE + across * (side + _GAP), _TOP + down * tall
        _tile(axis, rows, row, image, (left, top, side, strip), colours, columns)
    axis.text(_EDGE, height - 0.28, origin(rows.about), fontsize=7.5, color=SOFT, va="top")
    return figure


def _tile(
    axis: "Axes",
    rows: PictureRows,
    row: Mapping[str, Any],
    image: np.ndarray | None,
    place: tuple[float, float, float, float],
    colours: Mapping[str, str],
    columns: int,
) -> None:
    from matplotlib.patches import Rectangle

    left, top, side, strip = place
    if image is None:
        axis.add_patch(Rectangle((left, top), side, side, color="#eceef0"))
        axis.text(left + side / 2, top + side / 2, "image\nnot there", ha="center", va="center", fontsize=8, color=SOFT)
    else:
        axis.imshow(image, extent=(left, left + side, top + side, top), interpolation="antialiased")
        axis.set(xlim=(0, WIDTH), ylim=(axis.get_ylim()), aspect="auto")
    emotion = row["top_emotion"]
    colour = colours.get(emotion, "#eceef0") if has_face(row) else "#eceef0"
    axis.add_patch(Rectangle((left, top + side), side, strip, facecolor=colour, edgecolor=FAINT, linewidth=0.4))
    said = emotion or ("" if has_face(row) else "no face found")
    settings = {"va": "center", "fontsize": 9 if columns < 8 else 8, "color": ink_on(colour)}
    axis.text(left + 0.07, top + side + strip / 2, said, fontweight="bold", **settings)
    if emotion in rows.emotions:
        axis.text(left + side - 0.07, top + side + strip / 2, f"{row[emotion]:.2f}", ha="right", **settings)
    units = "\n".join(_units(rows, row, columns))
    axis.text(left, top + side + strip + 0.06, units, fontsize=7.5, color=INK, va="top", linespacing=1.25)
    lines = units.count("\n") + 1 if units else 0
    name = shortened(os.path.basename(row["input"]), round(side * 13.5))
    at = top + side + strip + 0.07 + 0.16 * lines
    axis.text(left, at, name, fontsize=6.5, color=SOFT, va="top", parse_math=False)


def _units(rows: PictureRows, row: Mapping[str, Any], columns: int) -> list[str]:
    if not has_face(row):
        return []
    said = " ".join(rows.active(row)) or ("no AU active" if rows.units else "")
    return textwrap.wrap(said, {8: 20, 6: 30, 4: 44}[columns])


__all__ = ["draw_contact_sheet", "save_contact_sheet", "summary"]
