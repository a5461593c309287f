"""Answers as HTML: every text that came from outside is escaped, every picture lies in the page itself."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from demo_engine import EXAMPLES, Look, example
from demo_limits import Limits

from mf2face.inference.explain.explanation import (
    EMOTION,
    Explanation,
    emotion_row,
    face_html,
    map_attributes,
    svg_matrix,
    unit_row,
)
from mf2face.inference.explain.page import data_uri, emotion_colours, fills, text
from mf2face.inference.rows import csv_lines, has_face


HERE = Path(__file__).parent
CSS = (HERE / "demo.css").read_text(encoding="utf-8")
SOURCE_JS = (HERE / "demo_source.js").read_text(encoding="utf-8")
RESULT_JS = (HERE / "demo_result.js").read_text(encoding="utf-8")

_CAMERA = '<path d="M4 8h3l2-3h6l2 3h3v11H4z"/><circle cx="12" cy="13" r="3.5"/>'
_FACE = '<circle cx="12" cy="12" r="9"/><path d="M8.5 14.5c1 1.6 2.1 2.3 3.5 2.3s2.5-.7 3.5-2.3M9 9.5v.1M15 9.5v.1"/>'

_PUZZLED = '<circle cx="12" cy="12" r="9"/><path d="M8.5 16.2c1.6-1.4 5-1.9 7-.6M9 9.5v.1M15 9.5v.1"/>'


def header() -> str:
    return f"""<header class="mf-top"><div class="mf-mark">{_icon(_FACE)}</div><div><h1>MF²</h1>
<p>Reads a face: action units, emotion, a sentence, and where it looked.</p></div>
<p class="mf-private">Pictures stay in memory.<br>Nothing is stored, nothing leaves this server.</p></header>"""


def banner(synthetic: bool | None, trained_on: str) -> str:
    """Before every answer, for whoever sees only that."""
    kind = {True: "Synthetic", None: "Unknown origin", False: "Model"}[synthetic]
    mark = "warn" if synthetic is not False else "calm"
    return f'<p class="mf-banner {mark}" role="note"><b>{kind}</b> This model was {text(trained_on)}.</p>'


def source(limits: Limits, many: bool = False) -> str:
    """The inputs for a picture. Without `${` and `{{`, which gradio would take for its own."""
    note = f"JPEG, PNG or WebP, up to {limits.mebibytes:g} MB"
    note += f" each, {limits.pictures} at most" if many else ""
    title = "Drop pictures here" if many else "Drop or paste a face here"
    camera = "" if many else '<button type="button" class="mf-button" data-do="camera">Webcam</button>'
    drawn = '<button type="button" class="mf-button" data-do="examples">Try the rendered faces</button>' if many else ""
    thumbs = "" if many else _thumbs()
    sizes = (
        f'data-bytes="{limits.mebibytes * 2**20:.0f}" data-all="{limits.body * 3 // 4}" data-most="{limits.pictures}"'
    )
    return f"""<div class="mf-source" {sizes} {"data-many" if many else ""}>
<div class="mf-drop"><div class="mf-empty">{_icon(_CAMERA)}<b>{title}</b><span>{note}</span></div>
<img class="mf-preview" alt="the chosen picture" hidden><video class="mf-video" playsinline muted hidden></video></div>
<input type="file" accept="image/jpeg,image/png,image/webp" {"multiple" if many else ""} hidden>
<div class="mf-buttons"><button type="button" class="mf-button mf-go" data-do="choose">Upload</button>
{camera}{drawn}</div>
<p class="mf-hint" aria-live="polite"></p>{thumbs}</div>"""


def _thumbs() -> str:
    tiles = []
    for name in EXAMPLES:
        pixels = np.ascontiguousarray(example(name).pixels.transpose(1, 2, 0))
        small = cv2.resize(pixels, (160 * pixels.shape[1] // pixels.shape[0], 160), interpolation=cv2.INTER_AREA)
        tiles.append(
            f'<button type="button" class="mf-thumb" data-example="{text(name)}" title="rendered: {text(name)}">'
            f'<img src="{data_uri(small, ".jpg")}" alt="a rendered face, {text(name)}"></button>'
        )
    return f'<p class="mf-label">or a rendered face, nobody’s</p><div class="mf-thumbs">{"".join(tiles)}</div>'


def problem(words: str) -> str:
    return f'<div class="mf-problem" role="alert">{_icon(_PUZZLED)}<b>No answer</b><p>{text(words)}</p></div>'


def answer(look: Look) -> str:
    about, faces = look.faces[0].about, look.faces
    with_adapter = f" with adapter <b>{text(about['adapter'])}</b>" if about["adapter"] else ", without adapter"
    about_line = f"<b>{text(about['model'])}</b>{with_adapter}"
    if look.left_out:
        about_line += f" · the {len(faces)} largest of {len(faces) + look.left_out} faces"
    if look.picture.drawn:
        about_line += f' · rendered as <span class="mf-truth">{text(look.picture.drawn)}</span>'
    panels = "".join(_panel(look, face) for face in faces)
    return f"""<div class="mf-result">{banner(about["synthetic"], about["trained_on"])}
<div class="mf-grid"><div class="mf-look">{_photo(faces)}<div class="mf-told" aria-live="polite"></div>
<div class="mf-chips"><button type="button" class="mf-chip" data-do="emotion">heat of the emotion</button>
<button type="button" class="mf-chip" data-do="clear">no heat</button></div></div>
<div class="mf-panels">{panels}</div></div><p class="mf-foot">{about_line}. Heat: the share of attention of the queries,
each map up to its own peak; it shows where they looked, not that this is why.</p></div>"""


def _photo(faces: Sequence[Explanation]) -> str:
    """The whole picture once; boxes choose a face, and the heat of an AU lies where its crop was cut from."""
    image = faces[0].image
    height, width = image.shape[:2]
    boxes = "".join(_box(face, max(height, width) / 26) for face in faces)
    size = len(faces[0].crop)
    return f"""<svg class="mf-photo" viewBox="0 0 {width} {height}" role="group" aria-label="the faces">
<image class="mf-seen" href="{data_uri(image, ".jpg")}" width="{width}" height="{height}"/>
<g class="mf-heat"><image width="{size}" height="{size}" preserveAspectRatio="none"/><path/></g>
{boxes}</svg>"""


def _box(face: Explanation, size: float) -> str:
    """Over it which emotion; inside, where there is no room above. A face that fills the picture needs no box."""
    left, top, right, bottom = face.box
    height, width = face.image.shape[:2]
    if fills(face.box, height, width):
        return ""
    shape = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    place = top - 0.4 * size if top > 1.5 * size else top + 1.2 * size
    words = text(face.emotion or f"face {face.face_id + 1}")
    return (
        f'<g class="mf-box" data-face="{face.face_id}" tabindex="0" role="button" aria-label="face '
        f'{face.face_id + 1}: {words}"><rect class="halo" {shape}/><rect {shape}/><text x="{left + 0.3 * size:.1f}" '
        f'y="{place:.1f}" font-size="{size:.1f}">{words}</text></g>'
    )


def _panel(look: Look, face: Explanation) -> str:
    before = look.before[face.face_id] if look.before else {}
    units = "".join(unit_row(face, name, before.get(name)) for name in face.action_units)
    colours = emotion_colours(list(face.emotions))
    moods = "".join(emotion_row(face, name, before.get(name)) for name in face.emotions)
    ring = '<span class="mf-key"><i class="mf-was"></i> without the adapter</span>' if before else ""
    page = base64.b64encode(face_html(face).encode("utf-8")).decode("ascii")
    keep = f'<a class="mf-chip" download="mf2-face.html" href="data:text/html;base64,{page}">keep as a page</a>'
    return f"""<section class="mf-face" data-face="{face.face_id}" data-matrix="{svg_matrix(face)}"
{map_attributes(face, EMOTION)} {"" if face.face_id == 0 else "hidden"}>{_verdict(face, colours)}
<div class="mf-title"><h3>Action units</h3><span class="mf-key"><i class="mf-limit"></i> threshold</span>{ring}</div>
<div class="mf-units">{units}</div><div class="mf-title"><h3>Emotion</h3>{keep}</div>
<div class="mf-moods">{moods}</div></section>"""


def _verdict(face: Explanation, colours: Mapping[str, str]) -> str:
    written = face.sentences.get("emotion")
    quote = f'<blockquote title="written by the model, apart from the decisions">{text(written)}</blockquote>'
    mood = ""
    if face.emotion:
        mood = f'<span class="mf-mood"><i style="background:{colours[face.emotion]}"></i>{text(face.emotion)}</span>'
        mood += f'<span class="mf-sure">{face.emotions[face.emotion]:.2f}</span>'
    tags = "".join(f"<span>{text(name)}</span>" for name in face.active) or "<span>none active</span>"
    return f'<div class="mf-verdict">{mood}<span class="mf-tags">{tags}</span></div>{quote if written else ""}'


def working(done: int, total: int) -> str:
    share = 100 * done / max(total, 1)
    return f'<div class="mf-working"><i style="width:{share:.0f}%"></i><span>{done} of {total} pictures</span></div>'


def table(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    left_out: Sequence[tuple[str, str]],
    synthetic: tuple[bool | None, str],
) -> str:
    """The rows to look at, all of them to download. `left_out`: (name, why)."""
    parts = [banner(*synthetic)] if rows else []
    if rows:
        content = csv_lines([columns, *([row[name] for name in columns] for row in rows)])
        coded = base64.b64encode(content.encode("utf-8", "replace")).decode("ascii")
        faces = sum(map(has_face, rows))
        parts.append(
            f'<div class="mf-title"><h3>{faces} face{"s" * (faces != 1)}</h3><a class="mf-button mf-go" '
            f'download="faces.csv" href="data:text/csv;charset=utf-8;base64,{coded}">Download CSV</a></div>'
        )
        parts.append(_table(columns, rows))
    if left_out:
        lines = "".join(f"<li><b>{text(name)}</b> {text(why)}</li>" for name, why in left_out)
        parts.append(f'<div class="mf-problem" role="alert"><b>Left out</b><ul>{lines}</ul></div>')
    return f'<div class="mf-result">{"".join(parts)}</div>'


def _table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    units = [name.removesuffix("_c") for name in columns if name.endswith("_c")]
    head = "".join(f"<th>{name}</th>" for name in ("picture", "face", "emotion", *units))
    body = []
    for row in rows:
        cells = [f"<td>{text(row['input'])}</td>"]
        if not has_face(row):
            body.append(f'<tr>{cells[0]}<td colspan="{len(units) + 2}">no face</td></tr>')
            continue
        cells += [f"<td>{int(row['face_id']) + 1}</td>", f"<td>{text(row.get('top_emotion') or '')}</td>"]
        for name in units:
            on = " class=on" if row[f"{name}_c"] == 1 else ""
            cells.append(f'<td{on} style="--share:{row[name]:.3f}">{row[name]:.2f}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="mf-scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _icon(shape: str) -> str:
    return f'<svg class="mf-icon" viewBox="0 0 24 24" aria-hidden="true">{shape}</svg>'
