"""A folder on a sheet: every face small, its emotion on a strip of that colour, its active AUs below."""

import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from configuration_mf2.facs import ACTION_UNITS
from mf2face.inference.explain.page import (
    FAINT,
    INK,
    SOFT,
    data_uri,
    emotion_colours,
    ink_on,
    new_figure,
    numbered,
    origin,
    page,
    save_figure,
    save_page,
    shortened,
    text,
)
from mf2face.inference.explain.picture_rows import PictureRows, thumbnails
from mf2face.inference.rows import has_face


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACES_A_PAGE = 56
WIDTH = 12.6
_EDGE, _GAP, _TOP, _FOOT = 0.45, 0.2, 1.0, 0.45


def _pages(rows: PictureRows, size: int) -> list[list[dict[str, Any]]]:
    if not rows.stills:
        raise ValueError("rows: got none of still images, expected some for a contact sheet; videos have a timeline")
    return [rows.stills[start : start + size] for start in range(0, len(rows.stills), size)]


def save_contact_sheet(rows: PictureRows, path: str | os.PathLike) -> list[Path]:
    """More than 56 faces continue in `...-2.png`."""
    pages, saved = _pages(rows, FACES_A_PAGE), []
    for number, faces in enumerate(pages, 1):
        place_text = f" · page {number} of {len(pages)}" if len(pages) > 1 else ""
        saved.append(save_figure(draw_contact_sheet(rows, faces, place_text), numbered(Path(path), number)))
    return saved


def summary(rows: PictureRows) -> str:
    """How many of what: the first line of a sheet."""
    images = len({row["input"] for row in rows.stills})
    counts = Counter(row["top_emotion"] for row in rows.stills if row["top_emotion"])
    faces = sum(map(has_face, rows.stills))
    said = [f"{faces:,} face{'s' * (faces != 1)} in {images:,} image{'s' * (images != 1)}"]
    return " · ".join(said + [f"{name} {count:,}" for name, count in counts.most_common()])


def draw_contact_sheet(rows: PictureRows, page: Sequence[Mapping[str, Any]], place_text: str = "") -> "Figure":
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
    axis.text(_EDGE, 0.63, summary(rows) + place_text, fontsize=9, color=SOFT, va="top")
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


FACES_A_FILE = 2000
_STYLE = """
.controls { display: flex; gap: .4rem; flex-wrap: wrap; align-items: center; margin: 1rem 0; }
.controls label { font-size: .87rem; color: var(--soft); margin-right: .6rem; }
select { border: 1px solid var(--line); border-radius: 6px; background: var(--paper); padding: .18rem .4rem; }
#sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(138px, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: 9px; overflow: hidden; } figure[hidden] { display: none; }
figure img, .gone { width: 100%; aspect-ratio: 1; display: block; object-fit: cover; } .gone { display: grid;
  place-items: center; color: var(--soft); font-size: .85rem; background: var(--track); }
.strip { display: flex; justify-content: space-between; padding: .16rem .5rem; font-weight: 650; font-size: .87rem; }
.strip span:last-child { font-weight: 400; } figcaption { padding: 0 0 .45rem; font-size: .83rem; }
figcaption div:not(.strip) { padding: .22rem .5rem 0; } .name, .name a { color: var(--soft); overflow-wrap: anywhere; }
"""
_SCRIPT = """
const sheet = document.getElementById("sheet"), cards = [...sheet.children];
const emotion = document.getElementById("emotion"), order = document.getElementById("order");
const chips = [...document.querySelectorAll("button[data-unit]")], count = document.getElementById("count");
function update() {
  const wanted = chips.filter(c => c.getAttribute("aria-pressed") === "true").map(c => c.dataset.unit);
  let shown = 0;
  cards.forEach((card, place) => {
    const row = data[place];
    card.hidden = !((!emotion.value || row.top === emotion.value) && wanted.every(unit => row.active.includes(unit)));
    shown += !card.hidden;
  });
  const key = order.value, value = row => key === "" ? 0 : key === "#" ? row.active.length : row.values[key] ?? -1;
  const places = cards.map((_, place) => place).sort((a, b) => value(data[b]) - value(data[a]) || a - b);
  sheet.append(...places.map(place => cards[place]));
  count.textContent = `${shown} of ${cards.length} shown`;
}
emotion.addEventListener("change", update); order.addEventListener("change", update);
chips.forEach(chip => chip.addEventListener("click", () => {
  chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true"); update();
}));
update();
"""


def save_contact_html(rows: PictureRows, path: str | os.PathLike) -> list[Path]:
    """More than 2,000 faces continue in `...-2.html`."""
    return [
        save_page(numbered(Path(path), number), contact_html(rows, faces))
        for number, faces in enumerate(_pages(rows, FACES_A_FILE), 1)
    ]


def contact_html(rows: PictureRows, faces: Sequence[Mapping[str, Any]]) -> str:
    colours = emotion_colours(rows.emotions)
    cards = [_card(rows, row, image, colours) for row, image in zip(faces, thumbnails(faces, 180), strict=True)]
    counts = Counter(row["top_emotion"] for row in faces if row["top_emotion"])
    options = "".join(
        f'<option value="{text(name)}">{text(name)} ({count})</option>' for name, count in counts.most_common()
    )
    sorts = [("", "as in the rows"), ("#", "number of active AUs")]
    sorts += [(name, name) for name in rows.emotions]
    sorts += [(code, f"{code} {ACTION_UNITS[code].noun}") for code in rows.units]
    orders = "".join(f'<option value="{text(key)}">{text(said)}</option>' for key, said in sorts)
    chips = "".join(
        f'<button class="chip" data-unit="{code}" aria-pressed="false" title="{text(ACTION_UNITS[code].noun)}">{code}'
        "</button>"
        for code in rows.units
    )
    body = f"""<h1>Contact sheet</h1><p class="soft" style="margin:.2rem 0 0">{text(summary(rows))}</p>
<div class="controls" role="group" aria-label="Which faces">
<label>emotion <select id="emotion"><option value="">any</option>{options}</select></label>
<label>most first <select id="order">{orders}</select></label>{chips}
<span class="soft" id="count" aria-live="polite"></span></div>
<main id="sheet">{"".join(cards)}</main>"""
    return page(
        "Contact sheet", body, style=_STYLE, script=_SCRIPT, data=[_facts(rows, row) for row in faces],
        footer=origin(rows.about),
    )  # fmt: skip


def _facts(rows: PictureRows, row: Mapping[str, Any]) -> dict[str, Any]:
    values = {code: row[column] for code, column in rows.units.items()} | {name: row[name] for name in rows.emotions}
    return {"top": row["top_emotion"], "active": rows.active(row), "values": values}


def _card(rows: PictureRows, row: Mapping[str, Any], image: Any, colours: Mapping[str, str]) -> str:
    name, emotion = os.path.basename(row["input"]), row["top_emotion"]
    found = has_face(row)
    units = (" ".join(rows.active(row)) or "no AU active") if found and rows.units else ""
    alt = ", ".join(
        part for part in (f"face {row['face_id']:.0f} of {name}" if found else name, emotion, units) if part
    )
    picture = '<div class="gone">image not there</div>'
    if image is not None:
        picture = f'<img src="{data_uri(image, ".jpg")}" alt="{text(alt)}" loading="lazy">'
    colour = colours.get(emotion, "#eceef0") if found else "#eceef0"
    sure = f"{row[emotion]:.2f}" if emotion in rows.emotions else ""
    said = emotion or ("" if found else "no face found")
    caption = f"<div>{text(row['caption'])}</div>" if row["caption"] else ""
    return (
        f'<figure>{picture}<figcaption><div class="strip" style="background:{colour};color:{ink_on(colour)}">'
        f"<span>{text(said)}</span><span>{sure}</span></div><div>{units}</div>{caption}"
        f'<div class="name">{_linked(rows, row, text(name))}</div></figcaption></figure>'
    )


def _linked(rows: PictureRows, row: Mapping[str, Any], name: str) -> str:
    where = rows.pages.get((row["input"], int(row["face_id"]))) if has_face(row) else None
    if where is None:
        return name
    return f'<a href="{quote(where.replace(os.sep, "/"), errors="surrogateescape")}">{name}: why</a>'
