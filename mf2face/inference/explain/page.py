"""The frame of every picture (PNG) and page (HTML): colours, text, banner, styles, script of the face view."""

import base64
import io
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from configuration_mf2.facs import ACTION_UNITS
from configuration_mf2.version import VERSION
from mf2face.files import write_whole


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

INK, SOFT, FAINT, EMPTY = "#1b1f24", "#59636e", "#d5dae0", "#eceef0"
ACTIVE, PALE, AT_REST, MARK = "#0072b2", "#8fc1e3", "#a9b4c0", "#d55e00"
"""An active AU, one that the model cannot tell, one at rest, and the threshold: different in grey too."""

_OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#000000")
_EMOTIONS = {
    **{"neutral": "#b3bac2", "anger": "#d55e00", "disgust": "#009e73", "fear": "#cc79a7", "happiness": "#f0e442"},
    **{"sadness": "#0072b2", "surprise": "#56b4e9", "other": "#3c434b", "contempt": "#e69f00"},
}


def emotion_colours(names: Sequence[str]) -> dict[str, str]:
    """Okabe and Ito's colours: fixed for the usual emotions, in turn for others."""
    others = [name for name in names if name.lower() not in _EMOTIONS]
    turns = {name: _OKABE_ITO[place % len(_OKABE_ITO)] for place, name in enumerate(others)}
    return {name: _EMOTIONS.get(name.lower()) or turns[name] for name in names}


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"


def heat_rgba(heat: np.ndarray) -> np.ndarray:
    """(height, width) -> RGBA bytes: plasma up to the map's own peak, clear at 0.

    Its lightness rises all the way, for readers who see few colours, and it passes through no grey.
    """
    from matplotlib import colormaps

    share = heat / max(float(heat.max()), 1e-12)
    colours = colormaps["plasma"](0.2 + 0.8 * share)
    colours[..., 3] = 0.84 * np.clip(1.5 * share, 0, 1)
    return np.round(colours * 255).astype(np.uint8)


def over_grey(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat map over the image in greys of equal range, so that dark and light faces show it alike."""
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.float64)
    low, high = np.percentile(grey, (1, 97))
    grey = 22 + 165 * np.clip((grey - low) / max(high - low, 1), 0, 1)
    colours = heat_rgba(heat).astype(np.float64)
    alpha = colours[..., 3:] / 255
    return np.round(colours[..., :3] * alpha + grey * (1 - alpha)).astype(np.uint8)


def origin(about: Mapping[str, Any]) -> tuple[str, str]:
    """(kind, sentence): which model answered, what it was trained on, and the grades of its AUs. On every picture."""
    kind = {True: "Synthetic", False: "Model"}.get(about.get("synthetic"), "Unknown origin")
    if not about.get("model"):
        return kind, "the rows do not say which model made them"
    adapter = f" with {about['adapter']}" if about.get("adapter") else ""
    said = f"{about['model']}{adapter}: {about.get('trained_on', 'its training data is not stated')}"
    grades: dict[str, list[str]] = {}
    for unit, grade in (about.get("grades") or {}).items():
        grades.setdefault(grade, []).append(unit)
    return kind, said + "".join(f" · {grade}: {' '.join(units)}" for grade, units in grades.items())


def banner(about: Mapping[str, Any]) -> str:
    kind, said = origin(about)
    warn = "" if about.get("synthetic") is False else " warn"
    return f'<p class="mf-banner{warn}" role="note"><b>{kind}</b> {text(said)}</p>'


def shortened(name: str, room: int) -> str:
    """A file's name without its folders, cut in its middle; characters that no font has are replaced."""
    name = os.path.basename(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    name = "".join(sign if sign.isprintable() else "�" for sign in name)
    return name if len(name) <= room else f"{name[: room // 2 - 1]}…{name[-(room - room // 2) :]}"


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """(height, width, 3) with no side longer than `side`."""
    share = side / max(image.shape[:2])
    return image if share >= 1 else cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)


def fills(box: Sequence[float], height: int, width: int) -> bool:
    """Whether a face's box is the whole image."""
    left, top, right, bottom = box
    return right - left > 0.97 * width and bottom - top > 0.97 * height


WIDTH, EDGE = 12.6, 0.45
"""Inches."""


class Sheet:
    """A figure measured in inches from its upper left corner: banner, title, subtitle."""

    TOP = 1.4
    """Below the subtitle."""

    def __init__(self, height: float, title: str, subtitle: str, about: Mapping[str, Any]) -> None:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        self.figure, self.height = Figure(figsize=(WIDTH, height), facecolor="white"), height
        kind, said = origin(about)
        colour = "#eceff2" if about.get("synthetic") is False else "#ffedb8"
        box = (0, 1 - 0.33 / height), 1, 0.33 / height
        self.figure.add_artist(Rectangle(*box, facecolor=colour, transform=self.figure.transFigure))
        self.text(EDGE, 0.09, shortened_line(f"{kind.upper()}   {said}", 175), 9, INK)
        self.text(EDGE, 0.53, shortened(title, 70), 15, INK, fontweight="bold")
        self.text(EDGE, 0.86, subtitle, 9.5)
        self.text(WIDTH - EDGE, height - 0.24, f"MF2 {VERSION}", 7.5, ha="right")

    def axes(self, left: float, top: float, width: float, height: float) -> "Axes":
        place = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        axis = self.figure.add_axes(place)
        axis.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False)
        axis.patch.set_visible(False)
        axis.spines[:].set_visible(False)
        return axis

    def text(self, left: float, top: float, words: str, size: float = 9, colour: str = SOFT, **more: Any) -> "Text":
        more = {"va": "top", "parse_math": False, **more}
        return self.figure.text(left / WIDTH, 1 - top / self.height, words, fontsize=size, color=colour, **more)

    def rule(self, top: float) -> None:
        from matplotlib.lines import Line2D

        height, ends = 1 - top / self.height, [EDGE / WIDTH, 1 - EDGE / WIDTH]
        self.figure.add_artist(Line2D(ends, [height, height], color=FAINT, linewidth=0.8))

    def save(self, path: str | os.PathLike, dpi: int = 160) -> Path:
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(self.figure)
        content, quick = io.BytesIO(), {"compress_level": 3}  # a third of the time, a tenth more bytes
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a file's name in a script that the font lacks
            software = {"Software": f"MF2 {VERSION}"}
            self.figure.savefig(content, format="png", dpi=dpi, metadata=software, pil_kwargs=quick)
        return _write(path, content.getvalue())


def shortened_line(words: str, room: int) -> str:
    return words if len(words) <= room else f"{words[: room - 1]}…"


def _write(path: str | os.PathLike, content: bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content, shared=False)
    return path


def data_uri(image: np.ndarray, ending: str = ".png", quality: int = 88) -> str:
    """RGB or RGBA bytes as a PNG or JPEG in a `data:` URL."""
    order = cv2.COLOR_RGBA2BGRA if image.shape[-1] == 4 else cv2.COLOR_RGB2BGR
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if ending == ".jpg" else []
    done, content = cv2.imencode(ending, cv2.cvtColor(np.ascontiguousarray(image), order), settings)
    if not done:
        raise ValueError(f"image: OpenCV could not encode {image.shape} as {ending}")
    kind = "jpeg" if ending == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content.tobytes()).decode('ascii')}"


LIGHT = (
    "--mf-ink: #1b1f24; --mf-soft: #59636e; --mf-paper: #fff; --mf-ground: #f4f5f7; --mf-line: #d5dae0; "
    f"--mf-track: #e9ecef; --mf-active: {ACTIVE}; --mf-rest: {AT_REST}; --mf-mark: {MARK}; --mf-warn: #ffedb8; "
    "--mf-warn-ink: #5c3f00; --mf-on: #fff;"
)
DARK = (
    "--mf-ink: #eceff2; --mf-soft: #a3adb8; --mf-paper: #16191d; --mf-ground: #1f2328; --mf-line: #363c43; "
    "--mf-track: #2b3138; --mf-active: #4fb0ea; --mf-rest: #6b7681; --mf-mark: #ff9440; --mf-warn: #43350f; "
    "--mf-warn-ink: #f8dd98; --mf-on: #0b1116;"
)
SHARED_STYLE = """
.mf-banner { margin: 0 0 1rem; padding: .5rem .85rem; border-radius: 10px; font-size: .88rem; line-height: 1.4;
  background: var(--mf-track); color: var(--mf-ink); overflow-wrap: anywhere; }
.mf-banner.warn { background: var(--mf-warn); color: var(--mf-warn-ink); }
.mf-banner b { color: inherit; margin-right: .4rem; text-transform: uppercase; letter-spacing: .06em;
  font-size: .78rem; }
.mf-chips { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin: .65rem 0; }
.mf-chip { border: 1px solid var(--mf-line); background: none; border-radius: 999px; padding: .16rem .7rem;
  cursor: pointer; font: inherit; font-size: .85rem; line-height: 1.4; color: var(--mf-ink); text-decoration: none; }
.mf-chip[hidden] { display: none; } .mf-chip:hover { background: var(--mf-track); }
.mf-chip[aria-pressed=true] { background: var(--mf-active); border-color: var(--mf-active); color: var(--mf-on); }
.mf-disagrees { display: inline-block; background: var(--mf-warn); color: var(--mf-warn-ink); border-radius: .7rem;
  padding: .05rem .6rem; font-size: .78rem; font-style: normal; font-weight: 600; }
"""
FACE_STYLE = """
.mf-view, .mf-panels { container-type: inline-size; }
.mf-grid { display: grid; grid-template-columns: minmax(260px, 4fr) minmax(340px, 6fr); gap: 1.6rem; margin-top: 1rem; }
.mf-look { position: sticky; top: 1rem; align-self: start; min-width: 0; }
.mf-panels { min-width: 0; }
.mf-photo { width: 100%; max-height: 62vh; display: block; border-radius: 12px; background: var(--mf-ground); }
.mf-seen { transition: filter .2s; } .heated .mf-seen { filter: grayscale(1) brightness(var(--light)); }
.mf-heat path { fill: none; stroke: #fff; stroke-width: 2; stroke-dasharray: 5 3; vector-effect: non-scaling-stroke; }
.mf-box { cursor: pointer; outline: none; } .mf-box rect { fill: transparent; stroke: #fff; stroke-width: 1.5;
  vector-effect: non-scaling-stroke; opacity: .8; } .mf-box .halo { stroke: #000; stroke-width: 3.5; opacity: .3; }
.mf-box.on rect:not(.halo) { stroke: #ffb000; stroke-width: 2.2; opacity: 1; }
.mf-box:focus-visible .halo, .mf-box:hover .halo { opacity: .6; }
.mf-box text { fill: #fff; font-weight: 700; paint-order: stroke; stroke: rgb(0 0 0 / .55); stroke-width: 3px;
  stroke-linejoin: round; font-family: inherit; }
.mf-told { min-height: 6em; margin-top: .7rem; font-size: .9rem; line-height: 1.45; color: var(--mf-soft) !important; }
.mf-told b { display: block; color: var(--mf-ink) !important; font-size: 1rem; }
.mf-verdict { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .6rem; }
.mf-mood { font-size: 1.6rem; font-weight: 700; display: inline-flex; align-items: center; gap: .5rem; }
.mf-mood i { width: 1rem; height: 1rem; border-radius: 50%; box-shadow: inset 0 0 0 1px rgb(0 0 0 / .25); }
.mf-sure { font-size: 1.1rem; color: var(--mf-soft) !important; font-variant-numeric: tabular-nums; }
.mf-tag { background: color-mix(in srgb, var(--mf-active) 14%, transparent); color: var(--mf-active) !important;
  font-weight: 650; font-size: .8rem; padding: .05rem .6rem; border-radius: 999px; }
.mf-quote { margin-top: .6rem; padding-left: .8rem; border-left: 3px solid var(--mf-line); line-height: 1.45; }
.mf-title { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem 1rem; margin: 1rem 0 .3rem;
  font-weight: 700; }
.mf-title > :first-child { margin-right: auto; }
.mf-key { font-size: .78rem; font-weight: 400; color: var(--mf-soft) !important; display: inline-flex;
  align-items: center; gap: .35rem; }
.mf-limit { width: 3px; height: 13px; background: var(--mf-mark); border-radius: 2px; }
.mf-row { display: grid; grid-template-columns: 2.9rem 9.8rem 1fr 7.2rem; align-items: center; gap: .5rem; width: 100%;
  border: 0; background: none; text-align: left; font: inherit; font-size: .88rem; line-height: 1.25;
  padding: .25rem .4rem; border-radius: 7px; color: var(--mf-soft) !important; }
.mf-moods { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); column-gap: 1.4rem; }
.mf-moods .mf-row { grid-template-columns: 6rem 1fr 2.6rem; }
button.mf-row { cursor: pointer; } button.mf-row:hover { background: var(--mf-ground); }
.mf-row.shown { background: color-mix(in srgb, var(--mf-active) 14%, transparent) !important; }
.mf-row.on { color: var(--mf-ink) !important; font-weight: 650; }
.mf-row > :last-child { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mf-bar { position: relative; height: .8rem; background: var(--mf-track); border-radius: 4px; }
.mf-bar i { position: absolute; inset: 0 auto 0 0; min-width: 2px; border-radius: 4px; background: var(--mf-rest);
  transition: width .5s; }
.on .mf-bar i { background: var(--mf-active); } .unsure .mf-bar i { background: repeating-linear-gradient(135deg,
  var(--mf-active) 0 4px, var(--mf-rest) 4px 8px); } .mf-moods .mf-bar i { box-shadow: 0 0 0 1px var(--mf-soft); }
.mf-bar u { position: absolute; top: -.2rem; bottom: -.2rem; width: 3px; margin-left: -1.5px;
  background: var(--mf-mark); }
.mf-was { display: inline-block; width: 10px; height: 10px; border-radius: 50%; border: 2px solid var(--mf-ink);
  background: var(--mf-paper); } .mf-bar .mf-was { position: absolute; top: 1px; margin-left: -5px; opacity: .8; }
.mf-foot { margin-top: 1rem; padding-top: .7rem; border-top: 1px solid var(--mf-line); font-size: .82rem;
  line-height: 1.45; color: var(--mf-soft) !important; }
@container (max-width: 760px) { .mf-grid { grid-template-columns: minmax(0, 1fr); } .mf-look { position: static; }
  .mf-told { min-height: 0; } .mf-row + .mf-look { padding: .5rem .4rem 1rem; } }
@container (max-width: 440px) { .mf-row, .mf-moods .mf-row { grid-template-columns: auto 1fr auto; row-gap: .25rem;
  padding: .4rem; } .mf-row > .mf-bar { grid-area: 2 / 1 / 3 / -1; } .mf-moods { grid-template-columns: 1fr; } }
@media (prefers-reduced-motion: reduce) { .mf-bar i, .mf-seen { transition: none; } }
@media print { .mf-look { position: static; } }
"""
FACE_SCRIPT = """
// `element` holds one `.mf-grid`. A box chooses the face; a row or chip its map, in one column right below the row.
const all = query => [...element.querySelectorAll(query)], one = query => element.querySelector(query);
let face = "0", kept = null, hovered = null, zoomed = null;
function draw() {
  const photo = one(".mf-photo");
  if (!photo) return;
  const panels = all(".mf-face"), panel = panels.find(each => each.dataset.face === face) || panels[0];
  if (zoomed === null) { zoomed = "zoomed" in photo.dataset; kept = photo.dataset.first || null; }
  panels.forEach(each => { each.hidden = each !== panel; });
  all(".mf-box").forEach(box => box.classList.toggle("on", box.dataset.face === panel.dataset.face));
  const name = hovered || kept, row = name === "emotion" ? panel : name && panel.querySelector(`[data-name="${name}"]`);
  const map = row && row.dataset.heat ? row.dataset : null, heat = one(".mf-heat");
  photo.classList.toggle("heated", !!map);
  photo.setAttribute("viewBox", zoomed ? panel.dataset.near : photo.dataset.whole);
  heat.setAttribute("transform", `matrix(${panel.dataset.matrix})`);
  heat.querySelector("image").setAttribute("href", map ? map.heat : "data:,");
  heat.querySelector("image").style.display = map ? "" : "none";
  heat.querySelector("path").setAttribute("d", map ? map.regions : "");
  all("button[data-name]").forEach(each => {
    each.classList.toggle("shown", !!map && each.dataset.name === name);
    each.setAttribute("aria-pressed", each.dataset.name === kept);
  });
  all('[data-do="emotion"]').forEach(each => {
    each.hidden = !panel.dataset.heat; each.setAttribute("aria-pressed", kept === "emotion");
  });
  all('[data-do="clear"]').forEach(each => { each.hidden = !kept; });
  all('[data-do="zoom"]').forEach(each => each.setAttribute("aria-pressed", !zoomed));
  const lines = map ? JSON.parse(map.lines) : ["No map", "Choose an action unit to see where its queries looked."];
  one(".mf-told").replaceChildren(...lines.map((line, place) => {
    const part = document.createElement(place ? "div" : "b");
    part.textContent = line;
    return part;
  }));
}
function choose(name) {
  kept = name; hovered = null; draw();
  const row = all(".mf-face:not([hidden]) button[data-name]").find(each => each.dataset.name === kept);
  const look = one(".mf-look"), before = row && row.getBoundingClientRect().top;
  const columns = getComputedStyle(one(".mf-grid")).gridTemplateColumns.split(" ").length;
  if (row && columns < 2) row.after(look);
  else if (look.parentElement !== one(".mf-grid")) one(".mf-grid").prepend(look);
  if (row) window.scrollBy(0, row.getBoundingClientRect().top - before);
}
element.addEventListener("click", event => {
  const [box, row, chip] = [".mf-box", "button[data-name]", "[data-do]"].map(query => event.target.closest(query));
  if (box) { face = box.dataset.face; draw(); }
  else if (row) choose(kept === row.dataset.name ? null : row.dataset.name);
  else if (chip && chip.dataset.do === "zoom") { zoomed = !zoomed; draw(); }
  else if (chip) choose(chip.dataset.do === "emotion" && kept !== "emotion" ? "emotion" : null);
});
["pointerover", "pointerleave"].forEach(kind => element.addEventListener(kind, event => {
  const row = event.target.closest && event.target.closest("button[data-name]"), now = row ? row.dataset.name : null;
  if (event.pointerType === "mouse" && now !== hovered) { hovered = now; draw(); }
}));
element.addEventListener("keydown", event => {
  const box = event.target.closest(".mf-box"), row = event.target.closest("button[data-name]");
  if (box && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); face = box.dataset.face; draw(); }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (row && step) {
    event.preventDefault();
    const rows = all(".mf-face:not([hidden]) button[data-name]");
    const next = rows[(rows.indexOf(row) + step + rows.length) % rows.length];
    choose(next.dataset.name); next.focus();
  }
});
draw();
"""
_STYLE = (
    f":root {{ color-scheme: light dark; {LIGHT} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}"
    + """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem 1.4rem 1rem; background: var(--mf-paper);
  color: var(--mf-ink);  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
@media (max-width: 560px) { body { padding: .8rem .8rem 1rem; } }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere; } h1 + p { margin: .2rem 0 0; }
h2 { font-size: 1rem; margin: 0 0 .5rem; } a { color: var(--mf-active); }
.soft, footer { color: var(--mf-soft); font-size: .87rem; font-weight: 400; }
footer { border-top: 1px solid var(--mf-line); margin-top: 1.6rem; padding-top: .7rem; }
select { font: inherit; color: inherit; border: 1px solid var(--mf-line); border-radius: 6px;
  background: var(--mf-paper); padding: .18rem .4rem; max-width: 100%; }
:focus-visible { outline: 3px solid var(--mf-active); outline-offset: 2px; border-radius: 4px; }
@media print { .mf-chips { display: none; } body { max-width: none; } }
"""
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
DISAGREES = "disagrees with the decisions"
DISAGREES_CHIP = f'<span class="mf-disagrees">{DISAGREES}</span>'


def page(
    kind: str, name: str, subtitle: str, body: str, about: Mapping[str, Any], *, style: str, script: str,
    data: Any = None, note: str = "",
) -> str:  # fmt: skip
    """A page that loads nothing. `body`, `style` and `script` are trusted; all other text is escaped here."""
    title = f"{kind}: {name}" if name else kind
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{_STYLE}{SHARED_STYLE}{style}</style>
</head>
<body>
{banner(about)}
<h1>{text(name or kind)}</h1><p class="soft">{text(subtitle)}</p>
{body}
<footer>{text(f"{note} MF2 {VERSION}".strip())}</footer>
<script type="application/json" id="data">{as_json(data or {})}</script>
<script>"use strict";
const data = JSON.parse(document.getElementById("data").textContent), element = document.body;
{script}</script>
</body>
</html>
"""


def unit_chips(codes: Iterable[str], pressed: str) -> str:
    """A button an AU; pressed: "true" or "false"."""
    return "".join(
        f'<button class="mf-chip" data-unit="{code}" aria-pressed="{pressed}" title="{ACTION_UNITS[code].noun}">{code}'
        "</button>"
        for code in codes
    )


def text(words: Any) -> str:
    """Escaped for text and quoted attributes; bytes of file names that are no UTF-8 are replaced."""
    return escape(str(words).encode("utf-8", "surrogateescape").decode("utf-8", "replace"), quote=True)


def as_json(data: Any) -> str:
    """JSON that cannot end the script it stands in. NaN is null."""
    written = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(name): _plain(value) for name, value in data.items()}
    if isinstance(data, list | tuple | np.ndarray):
        return [_plain(value) for value in data]
    if isinstance(data, float | np.floating):
        return None if data != data else round(float(data), 4)
    return data.item() if isinstance(data, np.generic) else data


def save_page(path: str | os.PathLike, content: str) -> Path:
    return _write(path, content.encode("utf-8"))
