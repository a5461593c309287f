"""The demo's HTML: all text from outside is escaped, all pictures are `data:` URLs."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from demo_engine import EXAMPLES, Look, example
from demo_limits import Limits

from mf2face.inference.explain.face_page import NOTE, Explanation, face_html, face_view
from mf2face.inference.explain.page import DARK, FACE_SCRIPT, FACE_STYLE, LIGHT, SHARED_STYLE, data_uri, text
from mf2face.inference.rows import csv_lines, has_face


HERE = Path(__file__).parent
CSS = (HERE / "demo.css").read_text(encoding="utf-8")
HEAD = f"""<style>:root {{ {LIGHT} }}\n.dark {{ {DARK} }}
.gradio-container.gradio-container .contain {{ {SHARED_STYLE}{FACE_STYLE} }}</style>"""
"""For the page's head: from `css` gradio drops the rules that depend on a column's width."""
SOURCE_JS = (HERE / "demo_source.js").read_text(encoding="utf-8")
RESULT_JS = FACE_SCRIPT + 'watch("value", draw);'

_CAMERA = '<path d="M4 8h3l2-3h6l2 3h3v11H4z"/><circle cx="12" cy="13" r="3.5"/>'
_FACE = '<circle cx="12" cy="12" r="9"/><path d="M8.5 14.5c1 1.6 2.1 2.3 3.5 2.3s2.5-.7 3.5-2.3M9 9.5v.1M15 9.5v.1"/>'

_PUZZLED = '<circle cx="12" cy="12" r="9"/><path d="M8.5 16.2c1.6-1.4 5-1.9 7-.6M9 9.5v.1M15 9.5v.1"/>'


def header() -> str:
    return f"""<header class="mf-top"><div class="mf-mark">{_icon(_FACE)}</div><div><h1>MF²</h1>
<p>Reads a face: action units, emotion, a sentence, and where it looked.</p></div>
<p class="mf-private">Pictures stay in memory.<br>Nothing is stored, nothing leaves this server.</p></header>"""


def source(limits: Limits, many: bool = False) -> str:
    """The inputs for pictures. Without `${` and `{{`, which gradio evaluates."""
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
    faces, foot = look.faces, NOTE
    if look.left_out:
        foot = f"The {len(faces)} largest of {len(faces) + look.left_out} faces. {foot}"
    if look.picture.drawn:
        foot = f"Rendered as {look.picture.drawn}. {foot}"
    view = face_view(faces, look.before, footers=[_keep(face) for face in faces])
    return f'<div class="mf-result">{view}<div class="mf-foot">{text(foot)}</div></div>'


def _keep(face: Explanation) -> str:
    page = base64.b64encode(face_html(face).encode("utf-8")).decode("ascii")
    link = f'<a class="mf-chip" download="mf2-face.html" href="data:text/html;base64,{page}">keep as a page</a>'
    return f'<div class="mf-chips">{link}</div>'


def working(done: int, total: int) -> str:
    share = 100 * done / max(total, 1)
    return f'<div class="mf-working"><i style="width:{share:.0f}%"></i><span>{done} of {total} pictures</span></div>'


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], left_out: Sequence[tuple[str, str]]) -> str:
    """A table of the rows, and all of them to download. left_out: (name, why)."""
    parts = []
    if rows:
        content = csv_lines([columns, *([row[name] for name in columns] for row in rows)])
        coded = base64.b64encode(content.encode("utf-8", "replace")).decode("ascii")
        faces = sum(map(has_face, rows))
        parts.append(
            f'<div class="mf-title"><span>{faces} face{"s" * (faces != 1)}</span><a class="mf-button mf-go" '
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
