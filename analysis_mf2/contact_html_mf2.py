"""The contact sheet to play with: faces by emotion, by action unit, in the order that is asked for."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from configuration_mf2.facs_mf2 import ACTION_UNITS

from .contact_sheet_mf2 import summary
from .html_mf2 import data_uri, page, save_page, text
from .palette_mf2 import emotion_colours, ink_on, origin
from .picture_rows_mf2 import PictureRows, thumbnails
from .rows_mf2 import has_face


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
    """More than 2,000 faces go on in `...-2.html`."""
    if not rows.stills:
        raise ValueError("rows: got none of still images, expected some for a contact sheet; videos have a timeline")
    path, saved = Path(path), []
    for number, start in enumerate(range(0, len(rows.stills), FACES_A_FILE), 1):
        place = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        saved.append(save_page(place, contact_html(rows, rows.stills[start : start + FACES_A_FILE])))
    return saved


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


__all__ = ["contact_html", "save_contact_html"]
