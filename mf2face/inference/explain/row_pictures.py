"""Pictures of rows: a contact sheet of still faces, and of each video a timeline (emotions, a row an AU, gaps)."""

import os
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from configuration_mf2.facs import ACTION_UNITS
from mf2face.inference.explain.page import (
    ACTIVE,
    AT_REST,
    DISAGREES_CHIP,
    EDGE,
    EMPTY,
    FAINT,
    INK,
    MARK,
    PALE,
    SOFT,
    WIDTH,
    Sheet,
    data_uri,
    emotion_colours,
    ink_on,
    page,
    save_page,
    shortened,
    text,
    unit_chips,
)
from mf2face.inference.explain.picture_rows import PictureRows, Track, thumbnails, tracks_of
from mf2face.inference.rows import has_face


if TYPE_CHECKING:
    from matplotlib.axes import Axes

FACES_A_SHEET, FACES_A_PAGE = 56, 1000
"""Of a contact sheet as PNG and as HTML; the other faces are on further pages."""
TRACKS_A_SHEET, TRACKS_A_PAGE = 4, 20
STEPS = 2000
"""Most steps of a timeline; those of a longer video are means over several frames."""
_GAP = 0.2


def _save_pages(
    path: str | os.PathLike, items: Sequence[Any], size: int, save: Callable[[Sequence[Any], Path, list[Path]], Path]
) -> list[Path]:
    """`size` items a page: `sheet.png`, `sheet-02.png`, ...; at least one. save: takes (items, path, all paths)."""
    parts, path = [items[start : start + size] for start in range(0, max(1, len(items)), size)], Path(path)
    digits = len(str(len(parts)))
    paths = [path, *(path.with_stem(f"{path.stem}-{number:0{digits}}") for number in range(2, len(parts) + 1))]
    return [save(part, place, paths) for part, place in zip(parts, paths, strict=True)]


def _stills(rows: PictureRows) -> list[dict[str, Any]]:
    if not rows.stills:
        raise ValueError("rows: got none of still images, expected some for a contact sheet; videos have a timeline")
    return rows.stills


def save_contact_sheet(rows: PictureRows, path: str | os.PathLike) -> list[Path]:
    def save(faces: Sequence[Any], place: Path, paths: list[Path]) -> Path:
        said = f" · page {paths.index(place) + 1} of {len(paths)}" if len(paths) > 1 else ""
        return draw_contact_sheet(rows, faces, said).save(place)

    return _save_pages(path, _stills(rows), FACES_A_SHEET, save)


def summary(rows: PictureRows) -> str:
    """Number of faces, images and emotions."""
    images, faces = len({row["input"] for row in rows.stills}), sum(map(has_face, rows.stills))
    counts = Counter(row["top_emotion"] for row in rows.stills if row["top_emotion"])
    said = [f"{faces:,} face{'s' * (faces != 1)} in {images:,} image{'s' * (images != 1)}"]
    return " · ".join(said + [f"{name} {count:,}" for name, count in counts.most_common()])


def draw_contact_sheet(rows: PictureRows, faces: Sequence[Mapping[str, Any]], place: str = "") -> Sheet:
    columns = 8 if len(rows.stills) > 24 else 6 if len(rows.stills) > 8 else 4
    side = (WIDTH - 2 * EDGE - (columns - 1) * _GAP) / columns
    units = [textwrap.wrap(_units(rows, row), {8: 20, 6: 30, 4: 44}[columns]) for row in faces]
    tall = side + 0.58 + 0.16 * max(1, *map(len, units))
    height = Sheet.TOP + -(-len(faces) // columns) * tall + 0.45
    sheet = Sheet(height, "Contact sheet", summary(rows) + place, rows.about)
    axis = sheet.axes(0, 0, WIDTH, height)
    colours = emotion_colours(rows.emotions)
    for number, (row, image) in enumerate(zip(faces, thumbnails(faces, 260), strict=True)):
        down, across = divmod(number, columns)
        at = EDGE + across * (side + _GAP), Sheet.TOP + down * tall
        _draw_card(axis, rows, row, image, at, side, units[number], colours)
    axis.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
    return sheet


def _draw_card(
    axis: "Axes", rows: PictureRows, row: Mapping[str, Any], image: np.ndarray | None, at: tuple[float, float],
    side: float, units: Sequence[str], colours: Mapping[str, str],
) -> None:  # fmt: skip
    from matplotlib.patches import Rectangle

    (left, top), strip = at, 0.24
    if image is None:
        axis.add_patch(Rectangle(at, side, side, color=EMPTY))
        axis.text(left + side / 2, top + side / 2, "image\nnot there", ha="center", va="center", fontsize=8, color=SOFT)
    else:
        axis.imshow(image, extent=(left, left + side, top + side, top), interpolation="antialiased")
    said, colour, share = _verdict(rows, row, colours)
    box = (left, top + side), side, strip
    axis.add_patch(Rectangle(*box, facecolor=colour, edgecolor=FAINT, linewidth=0.4))
    style = {"va": "center", "fontsize": 9 if side > 1.5 else 8, "color": ink_on(colour)}
    axis.text(left + 0.07, top + side + strip / 2, said, fontweight="bold", **style)
    axis.text(left + side - 0.07, top + side + strip / 2, share, ha="right", **style)
    axis.text(left, top + side + strip + 0.06, "\n".join(units), fontsize=7.5, color=INK, va="top", linespacing=1.25)
    name, below = shortened(row["input"], round(side * 13.5)), top + side + strip + 0.07 + 0.16 * len(units)
    axis.text(left, below, name, fontsize=6.5, color=SOFT, va="top", parse_math=False)


def _units(rows: PictureRows, row: Mapping[str, Any]) -> str:
    unsure = [f"{code}?" for code, column in rows.units.items() if rows.unsure(row, column)]
    return (" ".join([*rows.active(row), *unsure]) or "no AU active") if has_face(row) and rows.units else ""


def _verdict(rows: PictureRows, row: Mapping[str, Any], colours: Mapping[str, str]) -> tuple[str, str, str]:
    """Emotion, its colour, and its probability."""
    if not has_face(row):
        return "not analysed" if row["error"] else "no face found", EMPTY, ""
    emotion = row["top_emotion"]
    return emotion or "", colours.get(emotion, EMPTY), f"{row[emotion]:.2f}" if emotion in rows.emotions else ""


_CONTACT_STYLE = """
.mf-chips label { font-size: .87rem; color: var(--mf-soft); margin-right: .6rem; }
#sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(138px, 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--mf-ground); border-radius: 9px; overflow: hidden; content-visibility: auto;
  contain-intrinsic-size: auto 240px; } figure[hidden] { display: none; }
figure img, .gone { width: 100%; aspect-ratio: 1; display: block; object-fit: cover; } .gone { display: grid;
  place-items: center; color: var(--mf-soft); font-size: .85rem; background: var(--mf-track); }
.strip { display: flex; justify-content: space-between; padding: .16rem .5rem; font-weight: 650; font-size: .87rem; }
.strip span:last-child { font-weight: 400; } figcaption { padding: 0 0 .45rem; font-size: .83rem; }
figcaption div:not(.strip) { padding: .22rem .5rem 0; overflow-wrap: anywhere; } .name { color: var(--mf-soft); }
@media (max-width: 560px) { #sheet { gap: .6rem; } }
"""
_CONTACT_SCRIPT = """
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
  count.textContent = `${shown} of ${cards.length} shown`;
}
function sort() {
  const key = order.value, value = row => key === "" ? 0 : key === "#" ? row.active.length : row.values[key] ?? -1;
  const places = cards.map((_, place) => place).sort((a, b) => value(data[b]) - value(data[a]) || a - b);
  sheet.append(...places.map(place => cards[place]));
}
emotion.addEventListener("change", update); order.addEventListener("change", sort);
chips.forEach(chip => chip.addEventListener("click", () => {
  chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true"); update();
}));
update();
"""


def save_contact_html(rows: PictureRows, path: str | os.PathLike) -> list[Path]:
    def save(faces: Sequence[Any], place: Path, paths: list[Path]) -> Path:
        return save_page(place, contact_html(rows, faces, place.parent, _page_links(paths, place)))

    return _save_pages(path, _stills(rows), FACES_A_PAGE, save)


def _page_links(paths: Sequence[Path], here: Path) -> str:
    if len(paths) == 1:
        return ""
    links = "".join(
        f'<a class="mf-chip" href="{_url(path.name)}" aria-pressed="{str(path == here).lower()}">{number}</a>'
        for number, path in enumerate(paths, 1)
    )
    return f'<nav class="mf-chips" aria-label="Pages"><span class="soft">page</span>{links}</nav>'


def _url(path: str) -> str:
    return quote(path.replace(os.sep, "/"), errors="surrogateescape")


def contact_html(rows: PictureRows, faces: Sequence[Mapping[str, Any]], folder: Path = Path(), links: str = "") -> str:
    """folder: where the page lies, for links to images without a page of their own. links: HTML, to other pages."""
    colours = emotion_colours(rows.emotions)
    cards = [_card(rows, row, image, colours, folder) for row, image in zip(faces, thumbnails(faces, 160), strict=True)]
    counts = Counter(row["top_emotion"] for row in faces if row["top_emotion"])
    options = [("", "any"), *((name, f"{name} ({count})") for name, count in counts.most_common())]
    orders = [("", "as in the rows"), ("#", "number of active AUs"), *((name, name) for name in rows.emotions)]
    orders += [(code, f"{code} {ACTION_UNITS[code].noun}") for code in rows.units]
    body = f"""{links}<div class="mf-chips" role="group" aria-label="Filter and order">
<label>emotion {_select("emotion", options)}</label><label>most first {_select("order", orders)}</label>
{unit_chips(rows.units, "false")}<span class="soft" id="count" aria-live="polite"></span></div>
<main id="sheet">{"".join(cards)}</main>{links}"""
    data = [
        {
            "top": row["top_emotion"],
            "active": rows.active(row),
            "values": {code: row[column] for code, column in rows.units.items()} | {e: row[e] for e in rows.emotions},
        }
        for row in faces
    ]
    kind = ("Contact sheet", "", summary(rows), body, rows.about)
    return page(*kind, style=_CONTACT_STYLE, script=_CONTACT_SCRIPT, data=data)


def _select(name: str, options: Sequence[tuple[str, str]]) -> str:
    choices = "".join(f'<option value="{text(key)}">{text(said)}</option>' for key, said in options)
    return f'<select id="{name}">{choices}</select>'


def _card(rows: PictureRows, row: Mapping[str, Any], image: Any, colours: Mapping[str, str], folder: Path) -> str:
    name, units, found = os.path.basename(row["input"]), _units(rows, row), has_face(row)
    said, colour, share = _verdict(rows, row, colours)
    parts = (f"face {row['face_id']:.0f} of {name}" if found else name, row["top_emotion"], units)
    picture, shown = '<div class="gone">image not there</div>', text(name)
    if image is not None:
        picture = (
            f'<img src="{data_uri(image, ".jpg", 80)}" alt="{text(", ".join(filter(None, parts)))}" decoding="async">'
        )
    own = rows.pages.get((row["input"], int(row["face_id"]))) if found else None
    if own is not None or image is not None:
        start = f'<a href="{_url(own or os.path.relpath(row["input"], folder))}">'
        picture, shown = f"{start}{picture}</a>", f"{start}{shown}{': why' * (own is not None)}</a>"
    caption = ""
    if row["caption"]:
        caption = f"<div>{text(row['caption'])}{' ' + DISAGREES_CHIP if row['caption_disagrees'] else ''}</div>"
    return (
        f'<figure>{picture}<figcaption><div class="strip" style="background:{colour};color:{ink_on(colour)}">'
        f"<span>{text(said)}</span><span>{share}</span></div><div>{text(row['error'] or units)}</div>{caption}"
        f'<div class="name">{shown}</div></figcaption></figure>'
    )


_LEFT, _INCHES = 2.35, WIDTH - 2.35 - 0.5
_ROW, _RIBBON = 0.27, 0.52
_LETTER = 0.082
"""Inches of a letter on the ribbon."""


def _timeline(rows: PictureRows, name: str) -> tuple[list[Track], str]:
    """Tracks of at most `STEPS` steps, and what they are, in words."""
    tracks = tracks_of(rows, name)
    if not tracks:
        return [], "no face was found in any frame"
    times, edges = tracks[0].times, tracks[0].edges
    step = -(-len(times) // STEPS)
    means = f", each step the mean of {step}" if step > 1 else ""
    said = f"{len(times):,} frames analysed{means}, {clock(edges[0])} to {clock(edges[-1])}"
    return [track.coarser(step) for track in tracks], said


def clock(seconds: float) -> str:
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes)}:{rest:04.1f}" if minutes else f"{rest:.1f} s"


def save_timeline(rows: PictureRows, name: str, path: str | os.PathLike) -> list[Path]:
    tracks, said = _timeline(rows, name)
    return _save_pages(
        path, tracks, TRACKS_A_SHEET, lambda part, place, _: draw_timeline(rows, name, part, said).save(place)
    )


def draw_timeline(rows: PictureRows, name: str, tracks: Sequence[Track], said: str) -> Sheet:
    panel = 1.1 + (_RIBBON + 0.14 if rows.emotions else 0) + _ROW * len(rows.units)
    if tracks:
        states = "; pale blue: cannot tell" if rows.states else ""
        said += f" · blue: an action unit at or above its threshold; grey: below{states}; empty: face not found"
    sheet = Sheet(Sheet.TOP + panel * max(1, len(tracks)) + 0.3, name, said, rows.about)
    for number, track in enumerate(tracks):
        top = Sheet.TOP + number * panel
        sheet.text(EDGE, top + 0.12, f"face {track.face_id}", 11.5, INK, fontweight="bold")
        sheet.text(1.2, top + 0.15, f"seen for {track.seconds:.1f} s")
        top += 0.45
        if rows.emotions:
            _draw_ribbon(sheet.axes(_LEFT, top, _INCHES, _RIBBON), track)
            top += _RIBBON + 0.14
        _draw_tracks(sheet.axes(_LEFT, top, _INCHES, _ROW * max(1, len(rows.units))), track, rows.thresholds)
    return sheet


def _steps(track: Track, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a step function: an answer holds for its whole frame."""
    return np.repeat(track.edges, 2)[1:-1], np.repeat(values, 2)


def _draw_ribbon(axis: "Axes", track: Track) -> None:
    """Stacked emotions, with the strongest named where there is room, and a legend."""
    from matplotlib.patches import Patch

    colours, names = emotion_colours(list(track.emotions)), list(track.emotions)
    shares = np.array([track.emotions[name] for name in names])
    tops = np.cumsum(shares, axis=0)
    for row, name in enumerate(names):
        x, high = _steps(track, tops[row])
        axis.fill_between(x, _steps(track, tops[row] - shares[row])[1], high, color=colours[name], linewidth=0)
    for name, start, stop in track.stretches():
        if (stop - start) / (track.edges[-1] - track.edges[0]) * _INCHES > _LETTER * len(name) + 0.12:
            row, middle = names.index(name), (start + stop) / 2
            at = int(np.searchsorted(track.edges, middle, "right")) - 1
            style = {"ha": "center", "va": "center", "fontsize": 8.5, "color": ink_on(colours[name])}
            axis.text(middle, tops[row, at] - shares[row, at] / 2, name, **style)
    axis.set(xlim=(track.edges[0], track.edges[-1]), ylim=(0, 1))
    axis.text(-0.012, 0.5, "emotion", transform=axis.transAxes, ha="right", va="center", fontsize=9)
    shown = track.shown_emotions()
    patches = [Patch(facecolor=colours[name], edgecolor=SOFT, linewidth=0.4, label=name) for name in shown]
    place = {"loc": "lower right", "bbox_to_anchor": (1.005, 0.97), "borderpad": 0, "columnspacing": 1.1}
    style = {"fontsize": 8, "frameon": False, "handlelength": 0.9, "handleheight": 0.9}
    axis.legend(handles=patches, ncols=max(1, len(shown)), **place, **style)


def _draw_tracks(axis: "Axes", track: Track, thresholds: Mapping[str, float]) -> None:
    tall, long = 0.84, track.edges[-1] > 120
    for row, (code, shares) in enumerate(track.units.items()):
        x, height = _steps(track, shares)
        base = np.full(len(x), -float(row))
        axis.axhline(-row, color=FAINT, linewidth=0.7, zorder=0)
        axis.fill_between(x, base, base + tall * height, color=AT_REST, linewidth=0)
        for where, colour in ((track.unsure[code], PALE), (track.active[code], ACTIVE)):
            on = _steps(track, where)[1]
            axis.fill_between(x, base, base + tall * height, where=on, color=colour, linewidth=0)
        if code in thresholds:
            axis.axhline(-row + tall * thresholds[code], color=MARK, linewidth=0.7, linestyle=(0, (1.5, 2.5)))
        ever = bool(track.active[code].any())
        style = {"va": "center", "fontsize": 8.5, "color": INK if ever else SOFT}
        style |= {"fontweight": "bold" if ever else "normal", "transform": axis.get_yaxis_transform()}
        axis.text(-0.195, -row + 0.36, code, ha="left", **style)
        axis.text(-0.012, -row + 0.36, ACTION_UNITS[code].noun, ha="right", **style)
    axis.set(xlim=(track.edges[0], track.edges[-1]), ylim=(-max(1, len(track.units)) + 0.96, 1))
    axis.spines["bottom"].set(visible=True, color=SOFT)
    axis.tick_params(axis="x", bottom=True, labelbottom=True, colors=SOFT, labelsize=8.5)
    axis.set_xlabel(f"time ({'minutes:seconds' if long else 's'})", fontsize=8.5, color=SOFT)
    if long:
        axis.xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds // 60)}:{seconds % 60:02.0f}")


_TIMELINE_STYLE = """
.track { margin: 1.5rem 0; } .chart { position: relative; touch-action: pan-y; cursor: crosshair; }
.line { display: grid; grid-template-columns: 3.1rem 10rem 1fr 3rem; gap: .5rem; align-items: center;
  border-bottom: 1px solid var(--mf-line); color: var(--mf-soft); font-size: .87rem; }
.line.ever { color: var(--mf-ink); }
.line[hidden] { display: none; } .line svg { width: 100%; height: 1.7rem; display: block; }
.line .value { font-variant-numeric: tabular-nums; text-align: right; min-height: 1.2em; }
.line .value.on { color: var(--mf-ink); font-weight: 700; } .line.plain { border: 0; } .band svg { height: 2.6rem; }
.band { position: relative; margin-bottom: .4rem; min-width: 0; } .band span { position: absolute; top: 0;
  line-height: 2.6rem; text-align: center; overflow: hidden; white-space: nowrap; pointer-events: none; }
.rest { fill: var(--mf-rest); } .pale { fill: var(--mf-active); opacity: .4; } .act { fill: var(--mf-active); }
.limit { stroke: var(--mf-mark); stroke-dasharray: 2 4; }
.cursor { position: absolute; top: 0; bottom: 1.3rem; width: 0; border-left: 1.5px solid var(--mf-ink); display: none;
  pointer-events: none; }
.axis { display: flex; justify-content: space-between; font-size: .8rem; color: var(--mf-soft); padding-top: .15rem; }
.key { display: inline-flex; align-items: center; gap: .3rem; margin-right: .9rem; font-size: .85rem; }
.key i { width: .85rem; height: .85rem; border-radius: 2px; border: 1px solid var(--mf-soft); }
@media (max-width: 560px) { .line { grid-template-columns: auto 1fr auto; row-gap: 0; padding-top: .15rem; }
  .line > svg, .line > .band, .line > .axis { grid-area: 2 / 1 / 3 / -1; }
  .axis span:nth-child(even) { display: none; } }
"""
_TIMELINE_SCRIPT = """
document.querySelectorAll("button[data-unit]").forEach(button => button.addEventListener("click", () => {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", on);
  document.querySelectorAll(`.line[data-unit="${button.dataset.unit}"]`).forEach(line => { line.hidden = !on; });
}));
const quiet = document.getElementById("quiet");
if (quiet) quiet.addEventListener("click", () => {
  document.querySelectorAll("button[data-unit]").forEach(button => {
    const ever = !!document.querySelector(`.line.ever[data-unit="${button.dataset.unit}"]`);
    if ((button.getAttribute("aria-pressed") === "true") !== ever) button.click();
  });
});
const clock = s => s >= 60 ? `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}` : `${s.toFixed(2)} s`;
document.querySelectorAll(".chart").forEach((chart, which) => {
  const face = data.faces[which], cursor = chart.querySelector(".cursor"), said = document.getElementById(`at${which}`);
  const first = data.edges[0], span = data.edges[data.edges.length - 1] - first;
  let place = 0;
  function at(now) {
    place = Math.max(0, Math.min(data.times.length - 1, now));
    const strip = chart.querySelector("svg").getBoundingClientRect(), box = chart.getBoundingClientRect();
    cursor.style.display = "block";
    cursor.style.left = `${strip.left - box.left + (data.times[place] - first) / span * strip.width}px`;
    let best = null;
    for (const [name, shares] of Object.entries(face.emotions))
      if (shares[place] !== null && (best === null || shares[place] > face.emotions[best][place])) best = name;
    const seen = face.seen[place], on = [];
    chart.querySelectorAll(".line[data-unit]").forEach(line => {
      const name = line.dataset.unit, value = line.querySelector(".value"), share = face.units[name][place];
      value.textContent = share === null ? "–" : share.toFixed(2);
      const active = share !== null && face.active[name][place];
      value.classList.toggle("on", !!active);
      if (active) on.push(name);
    });
    const ribbon = chart.querySelector(".ribbon .value");
    if (ribbon) ribbon.textContent = best ? face.emotions[best][place].toFixed(2) : "–";
    const parts = seen ? [best && `${best} ${face.emotions[best][place].toFixed(2)}`, on.join(" ") || "no AU active"]
      : ["no face found"];
    said.textContent = [clock(data.times[place]), ...parts.filter(Boolean)].join(" · ");
    chart.setAttribute("aria-valuenow", place);
    chart.setAttribute("aria-valuetext", said.textContent);
  }
  function near(event) {
    const strip = chart.querySelector("svg").getBoundingClientRect();
    const time = first + (event.clientX - strip.left) / strip.width * span;
    let low = 0, high = data.times.length - 1;
    while (low < high) { const mid = (low + high) >> 1; data.edges[mid + 1] <= time ? low = mid + 1 : high = mid; }
    at(low);
  }
  chart.addEventListener("pointermove", near);
  chart.addEventListener("pointerdown", near);
  chart.addEventListener("focus", () => at(place));
  chart.addEventListener("keydown", event => {
    const far = Math.max(1, Math.round(data.times.length / 20));
    const step = { ArrowRight: 1, ArrowLeft: -1, PageUp: far, PageDown: -far, Home: -1e9, End: 1e9 }[event.key];
    if (step) { event.preventDefault(); at(place + step); }
  });
});
"""


def save_timeline_html(rows: PictureRows, name: str, path: str | os.PathLike) -> list[Path]:
    tracks, said = _timeline(rows, name)

    def save(part: Sequence[Track], place: Path, paths: list[Path]) -> Path:
        return save_page(place, timeline_html(rows, name, part, said, _page_links(paths, place)))

    return _save_pages(path, tracks, TRACKS_A_PAGE, save)


def timeline_html(rows: PictureRows, name: str, tracks: Sequence[Track], said: str, links: str = "") -> str:
    quiet = '<button class="mf-chip" id="quiet">only those ever active</button>' if rows.units and tracks else ""
    charts = "".join(_chart(rows, track, place) for place, track in enumerate(tracks))
    body = f"""{links}<div class="mf-chips" role="group" aria-label="Action units shown">
{unit_chips(rows.units, "true")}{quiet}</div><main>{charts}</main>{links}"""
    data: dict[str, Any] = {"faces": []}
    if tracks:
        data = {"times": tracks[0].times, "edges": tracks[0].edges, "faces": [_series(track) for track in tracks]}
        pale = "; pale: cannot tell" if rows.states else ""
        said += (
            f". Blue: at or above the dotted threshold; grey: below{pale}; empty: face not found. Point at a moment, "
        )
        said += "or focus a chart and use the arrow keys."
    kind = ("Timeline", os.path.basename(name), said, body, rows.about)
    return page(*kind, style=_TIMELINE_STYLE, script=_TIMELINE_SCRIPT, data=data)


def _series(track: Track) -> dict[str, Any]:
    active = {code: active.astype(int) for code, active in track.active.items()}
    return {"seen": track.seen, "units": track.units, "emotions": track.emotions, "active": active}


def _chart(rows: PictureRows, track: Track, place: int) -> str:
    view = 'viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true"'
    colours, lines = emotion_colours(list(track.emotions)), []
    if rows.emotions:
        lines.append(
            f'<div class="line plain ribbon"><span></span><span>emotion</span><div class="band"><svg {view}>'
            f'{_ribbon(track)}</svg>{_names(track)}</div><span class="value"></span></div>'
        )
    for code, shares in track.units.items():
        active, unsure = track.active[code], track.unsure[code]
        kinds = [("rest", ~active & ~unsure), *([("pale", unsure)] if rows.states else []), ("act", active)]
        shapes = "".join(
            f'<path class="{kind}" d="{_area(track, np.where(which, shares, np.nan))}"/>' for kind, which in kinds
        )
        if (limit := rows.thresholds.get(code)) is not None:
            line = f'd="M0 {100 - 100 * limit:.1f}H1000" vector-effect="non-scaling-stroke"'
            shapes += f'<path class="limit" {line}/>'
        ever = " ever" * bool(track.active[code].any())
        lines.append(
            f'<div class="line{ever}" data-unit="{code}"><span>{code}</span><span>{text(ACTION_UNITS[code].noun)}'
            f'</span><svg {view}>{shapes}</svg><span class="value"></span></div>'
        )
    marks = "".join(f"<span>{clock(second)}</span>" for second in np.linspace(track.edges[0], track.edges[-1], 5))
    axis = f'<div class="line plain"><span></span><span></span><div class="axis">{marks}</div><span></span></div>'
    slider = f'role="slider" aria-valuemin="0" aria-valuemax="{len(track.times) - 1}" aria-valuenow="0"'
    key = "".join(
        f'<span class="key"><i style="background:{colours[name]}"></i>{text(name)}</span>'
        for name in track.shown_emotions()
    )
    return f"""<section class="track"><h2>face {track.face_id} <span class="soft">seen for {track.seconds:.1f} s ·
<span id="at{place}">point at a moment</span></span></h2><div>{key}</div>
<div class="chart" tabindex="0" {slider} aria-label="Moment of face {track.face_id}">{"".join(lines)}{axis}
<div class="cursor"></div></div></section>"""


def _ribbon(track: Track) -> str:
    colours, low, shapes = emotion_colours(list(track.emotions)), np.zeros(len(track.times)), []
    for name, shares in track.emotions.items():
        area = _area(track, low + shares, low)
        shapes.append(f'<path fill="{colours[name]}" d="{area}"><title>{text(name)}</title></path>')
        low = low + shares
    return "".join(shapes)


def _names(track: Track) -> str:
    """The strongest emotion of each stretch, where there is room."""
    colours, start, span = emotion_colours(list(track.emotions)), track.edges[0], track.edges[-1] - track.edges[0]
    return "".join(
        f'<span style="left:{100 * (since - start) / span:.2f}%;width:{100 * (until - since) / span:.2f}%;'
        f'color:{ink_on(colours[name])}">{text(name)}</span>'
        for name, since, until in track.stretches()
        if 100 * (until - since) / span > 1.3 * len(name)
    )


def _area(track: Track, high: np.ndarray, low: np.ndarray | None = None) -> str:
    """Path of the steps between `low` (0 by default) and `high`, with gaps where `high` is NaN."""
    low = np.zeros(len(high)) if low is None else low
    x = (track.edges - track.edges[0]) / max(track.edges[-1] - track.edges[0], 1e-9) * 1000
    turns = np.flatnonzero(np.diff(np.concatenate([[False], ~np.isnan(high), [False]]).astype(int)))
    path = []
    for start, stop in list(pairwise(turns))[::2]:
        upper = "".join(f"L{x[at]:.1f} {100 - 100 * high[at]:.1f}H{x[at + 1]:.1f}" for at in range(start, stop))
        lower = "".join(f"V{100 - 100 * low[at]:.1f}H{x[at]:.1f}" for at in reversed(range(start, stop)))
        path.append(f"M{x[start]:.1f} {100 - 100 * low[start]:.1f}{upper}{lower}Z")
    return "".join(path)
