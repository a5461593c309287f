"""The face page to play with: whichever action unit is pointed at, its heat lies on the face, its words beside."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .explanation_mf2 import EMOTION, Explanation
from .face_page_mf2 import disagrees
from .html_mf2 import data_uri, page, save_page, text
from .occlusion_mf2 import CAUTION
from .palette_mf2 import emotion_colours, heat_rgba, origin


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
.unit { display: grid; grid-template-columns: 3.1rem 10.5rem 1fr 6.6rem; align-items: center; gap: .5rem; width: 100%;
  border: 0; background: none; text-align: left; padding: .2rem .45rem; border-radius: 6px; color: var(--soft); }
button.unit { cursor: pointer; } .unit.on { color: var(--ink); font-weight: 650; }
button.unit:hover, .unit.shown { background: var(--card); }
.bar { position: relative; height: .85rem; background: var(--track); border-radius: 3px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--rest); border-radius: 3px; min-width: 1px; }
.on .bar i { background: var(--active); } .bar u { position: absolute; top: -.22rem; bottom: -.22rem; width: 3px;
  margin-left: -1.5px; background: var(--mark); }
.emotions i { box-shadow: 0 0 0 1px var(--soft); }
.emotions { margin-top: 1.3rem; } .emotions .unit { grid-template-columns: 7rem 1fr 3rem; }
.words { margin-top: 1.3rem; } .words p { margin: .25rem 0 .7rem; } @media print { .look { position: static; } }
"""
_SCRIPT = """
const heat = document.getElementById("heat"), regions = document.getElementById("regions");
const told = document.getElementById("told"), photo = document.querySelector(".photo");
const buttons = [...document.querySelectorAll("button[data-name]")];
let kept = data.first;
function show(name) {
  const one = data.maps[name];
  photo.classList.toggle("heated", !!one);
  heat.setAttribute("href", one ? one.heat : data.clear);
  regions.setAttribute("d", one ? one.regions : "");
  told.replaceChildren();
  const lines = one ? one.lines : data.lines;
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


def save_face_html(face: Explanation, path: str | os.PathLike) -> Path:
    return save_page(path, face_html(face))


def face_html(face: Explanation) -> str:
    count = f"{len(face.active)} of {len(face.action_units)} action units active" if face.action_units else ""
    sure = f"{face.emotion} {face.emotions[face.emotion]:.2f}" if face.emotions else ""
    told = " · ".join(part for part in (f"face {face.face_id}", sure, count) if part)
    name = os.path.basename(face.name)
    body = f"""<h1>{text(name)}</h1>
<p class="soft" style="margin:.2rem 0 0">{text(told)}</p>
<main class="face">
<section class="look" aria-label="The face and its heat maps">
{_photo(face)}
<div id="told" aria-live="polite"></div>
<div class="controls">{_emotion_button(face)}
<button class="chip" id="whole" aria-pressed="false">whole image</button></div>
</section>
<div>{_units(face)}{_emotions(face)}{_words(face)}</div>
</main>"""
    return page(f"Why: {name}", body, style=_STYLE, script=_SCRIPT, data=_data(face), footer=_footer(face))


def _footer(face: Explanation) -> str:
    told = "Heat: the share of attention of the queries, each map up to its own peak; it shows where they looked, not "
    told += "that this is why. Outlined: where an action unit is looked for, read from patches that reach beyond. "
    return told + (f"{CAUTION} " if face.occlusion else "") + origin(face.about)


def _photo(face: Explanation) -> str:
    height, width = face.image.shape[:2]
    share = min(1.0, _MOST_SIDE / max(height, width))
    image = face.image
    if share < 1:
        image = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    a, c, e, b, d, f = np.linalg.inv(face.matrix)[:2].ravel()
    matrix = " ".join(f"{value:.5f}" for value in (a, b, c, d, e, f))
    left, top, right, bottom = face.box
    shape = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
    line = 'fill="none" vector-effect="non-scaling-stroke"'
    size = len(face.crop)
    alt = f"Photograph with face {face.face_id}"
    return f"""<svg class="photo" style="--light:{_light(face):.2f}" viewBox="{_near(face)}"
role="img" aria-label="{text(alt)}">
<image class="seen" href="{data_uri(image, ".jpg")}" width="{width}" height="{height}" preserveAspectRatio="none"/>
<rect {shape} {line} stroke="#fff" stroke-width="3" opacity=".8"/>
<rect {shape} {line} stroke="#d55e00" stroke-width="1.4"/>
<g transform="matrix({matrix})"><image id="heat" width="{size}" height="{size}" preserveAspectRatio="none"/>
<path id="regions" {line} stroke="#fff" stroke-width="2" stroke-dasharray="5 3"/></g>
</svg>"""


def _light(face: Explanation) -> float:
    """By how much the grey face is brightened under the heat: dark ones are to be seen as well as light ones."""
    return float(np.clip(175 / max(1.0, np.percentile(face.crop.mean(2), 95)), 0.75, 2.2))


def _near(face: Explanation) -> str:
    """The part of the image that the crop was cut from."""
    size, (height, width) = len(face.crop), face.image.shape[:2]
    back = np.linalg.inv(face.matrix)
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]]) @ back[:2, :2].T + back[:2, 2]
    low, high = corners.min(0).clip(0), np.minimum(corners.max(0), (width, height))
    return " ".join(f"{value:.1f}" for value in (*low, *(high - low)))


def _emotion_button(face: Explanation) -> str:
    if EMOTION not in face.grids:
        return ""
    return f'<button class="chip" data-name="{EMOTION}" aria-pressed="false">heat of the emotion</button>'


def _units(face: Explanation) -> str:
    if not face.action_units:
        return ""
    rows = []
    for name, unit in face.action_units.items():
        share, limit = unit["probability"], unit["threshold"]
        state = "active" if unit["active"] else "at rest"
        tag, more = ("button", f' data-name="{text(name)}" aria-pressed="false"') if name in face.grids else ("div", "")
        said = f"{name} {unit['name']}: probability {share:.2f}, threshold {limit:.2f}, {state}"
        rows.append(
            f'<{tag} class="unit{" on" * unit["active"]}"{more} aria-label="{text(said)}"><span>{text(name)}</span>'
            f'<span>{text(unit["name"])}</span><span class="bar"><i style="width:{100 * share:.1f}%"></i>'
            f'<u style="left:{100 * limit:.1f}%"></u></span><span>{share:.2f} {state}</span></{tag}>'
        )
    told = "Point at a row or use the arrow keys; a click keeps it. Stroke: threshold."
    title = f'<h2>Action units <span class="soft" style="font-weight:400">· {told}</span></h2>'
    return f'<section aria-label="Action units">{title}{"".join(rows)}</section>'


def _emotions(face: Explanation) -> str:
    if not face.emotions:
        return ""
    colours, rows = emotion_colours(list(face.emotions)), []
    for name in sorted(face.emotions, key=lambda name: -face.emotions[name]):
        share, colour = face.emotions[name], colours[name]
        top = " on" if name == face.emotion else ""
        bar = f'<span class="bar"><i style="width:{100 * share:.1f}%;background:{colour}"></i></span>'
        rows.append(f'<div class="unit{top}"><span>{text(name)}</span>{bar}<span>{share:.2f}</span></div>')
    return f'<section class="emotions"><h2>Emotion</h2>{"".join(rows)}</section>'


def _words(face: Explanation) -> str:
    found = {"emotion": face.sentences.get("emotion"), "key action units": face.sentences.get("key_au")}
    parts = [f'<div class="soft">{whose}</div><p>{text(said)}</p>' for whose, said in found.items() if said]
    if not parts:
        return ""
    title = "<h2>Written by the model, apart from the decisions: they may disagree</h2>"
    return f'<section class="words">{title}{"".join(parts)}</section>'


def _data(face: Explanation) -> dict[str, Any]:
    maps = {name: _of_map(face, name) for name in face.grids}
    height, width = face.image.shape[:2]
    first = EMOTION if EMOTION in maps else next(iter(maps), None)
    first = next((name for name in face.active if name in maps), first)
    lines = ["No map", "Point at an action unit to see where its queries looked."]
    clear = data_uri(np.zeros((1, 1, 4), np.uint8))
    return {"maps": maps, "first": first, "lines": lines, "clear": clear, "near": _near(face),
            "whole": f"0 0 {width} {height}"}  # fmt: skip


def _of_map(face: Explanation, name: str) -> dict[str, Any]:
    heat = cv2.resize(face.crop_map(name), (192, 192), interpolation=cv2.INTER_CUBIC).clip(0)
    unit = face.action_units.get(name)
    squares = face.corners.get(name, ())
    path = "".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in square) + "Z" for square in squares)
    if unit:
        state = "active" if unit["active"] else "at rest"
        lines = [f"{name} {unit['name']}: {state}"]
        lines.append(f"probability {unit['probability']:.2f}, threshold {unit['threshold']:.2f}")
    else:
        lines = [f"Emotion: {face.emotion}" if face.emotion else "The whole face"]
    lines.append(f"most attention: {face.place(name)}")
    if face.sentence(name):
        but = " (says otherwise than the decision)" if disagrees(face, name) else ""
        lines.append(f"the model writes: “{face.sentence(name)}”{but}")
    if name in face.occlusion:
        lines.append(face.occlusion[name].text())
    return {"heat": data_uri(heat_rgba(heat)), "regions": path, "lines": lines}


__all__ = ["face_html", "save_face_html"]
