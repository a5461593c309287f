"""The timeline to play with: point at a moment and read every value there; hide what is not looked for."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from configuration_mf2.facs_mf2 import ACTION_UNITS

from .html_mf2 import page, save_page, text
from .palette_mf2 import emotion_colours, ink_on, origin
from .picture_rows_mf2 import PictureRows, Track, tracks_of
from .timeline_mf2 import clock


_STYLE = """
.controls { display: flex; gap: .35rem; flex-wrap: wrap; margin: 1rem 0; }
.track { margin: 1.5rem 0; } .chart { position: relative; touch-action: none; cursor: crosshair; }
.line { display: grid; grid-template-columns: 3.1rem 10rem 1fr 4.6rem; gap: .5rem; align-items: center;
  border-bottom: 1px solid var(--line); color: var(--soft); font-size: .87rem; } .line.ever { color: var(--ink); }
.line[hidden] { display: none; } .line svg { width: 100%; height: 1.7rem; display: block; }
.line .value { font-variant-numeric: tabular-nums; } .line .value.on { color: var(--ink); font-weight: 700; }
.line.ribbon { border: 0; } .ribbon svg { height: 2.6rem; }
.band { position: relative; margin-bottom: .4rem; } .band span { position: absolute; top: 0; line-height: 2.6rem;
  text-align: center; overflow: hidden; white-space: nowrap; pointer-events: none; }
.rest { fill: var(--rest); } .act { fill: var(--active); } .limit { stroke: var(--mark); stroke-dasharray: 2 4; }
.cursor { position: absolute; top: 0; bottom: 1.3rem; width: 0; border-left: 1.5px solid var(--ink); display: none;
  pointer-events: none; }
.axis { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); padding-top: .15rem; }
.key { display: inline-flex; align-items: center; gap: .3rem; margin-right: .9rem; font-size: .85rem; }
.key i { width: .85rem; height: .85rem; border-radius: 2px; border: 1px solid var(--soft); }
"""
_SCRIPT = """
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
    const told = seen ? [best && `${best} ${face.emotions[best][place].toFixed(2)}`, on.join(" ") || "no AU active"]
      : ["no face found"];
    said.textContent = [clock(data.times[place]), ...told.filter(Boolean)].join(" · ");
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


def save_timeline_html(rows: PictureRows, name: str, path: str | os.PathLike) -> Path:
    return save_page(path, timeline_html(rows, name))


def timeline_html(rows: PictureRows, name: str) -> str:
    tracks = tracks_of(rows, name)
    told = "no face was found in any frame"
    if tracks:
        told = f"{len(tracks[0].times):,} frames looked at, {clock(tracks[0].edges[0])} to {clock(tracks[0].edges[-1])}"
    chips = "".join(
        f'<button class="chip" data-unit="{code}" aria-pressed="true" title="{text(ACTION_UNITS[code].noun)}">{code}'
        "</button>"
        for code in rows.units
    )
    quiet = '<button class="chip" id="quiet">only those ever active</button>' if rows.units and tracks else ""
    charts = "".join(_track(rows, track, place) for place, track in enumerate(tracks))
    title = os.path.basename(name)
    how = "Point at a moment, or focus a chart and use the arrow keys. Dotted: threshold."
    body = f"""<h1>{text(title)}</h1><p class="soft" style="margin:.2rem 0 0">{text(told)}. {how}</p>
<div class="controls" role="group" aria-label="Action units shown">{chips}{quiet}</div>
<main>{charts}</main>"""
    return page(f"Timeline: {title}", body, style=_STYLE, script=_SCRIPT, data=_data(tracks), footer=origin(rows.about))


def _data(tracks: Sequence[Track]) -> dict[str, Any]:
    if not tracks:
        return {"faces": []}
    faces = [
        {
            **{"seen": track.seen, "units": track.units, "emotions": track.emotions},
            "active": {code: active.astype(int) for code, active in track.active.items()},
        }
        for track in tracks
    ]
    return {"times": tracks[0].times, "edges": tracks[0].edges, "faces": faces}


def _track(rows: PictureRows, track: Track, place: int) -> str:
    start, stop = track.edges[0], track.edges[-1]
    view = 'viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true"'
    lines = []
    if rows.emotions:
        lines.append(
            f'<div class="line ribbon"><span></span><span>emotion</span><div class="band"><svg {view}>{_ribbon(track)}'
            f'</svg>{_names(track)}</div><span class="value"></span></div>'
        )
    for code, shares in track.units.items():
        limit = rows.thresholds.get(code)
        height = "" if limit is None else 100 - 100 * limit
        mark = f'<path class="limit" vector-effect="non-scaling-stroke" d="M0 {height:.1f}H1000"/>' if height else ""
        shapes = "".join(
            f'<path class="{kind}" d="{_area(track, np.where(which, shares, np.nan))}"/>'
            for kind, which in (("rest", ~track.active[code]), ("act", track.active[code]))
        )
        ever = " ever" if track.active[code].any() else ""
        lines.append(
            f'<div class="line{ever}" data-unit="{code}"><span>{code}</span><span>{text(ACTION_UNITS[code].noun)}'
            f'</span><svg {view}>{shapes}{mark}</svg><span class="value"></span></div>'
        )
    marks = "".join(f"<span>{clock(second)}</span>" for second in np.linspace(start, stop, 6))
    axis = f'<div class="line ribbon"><span></span><span></span><div class="axis">{marks}</div><span></span></div>'
    share = float((np.diff(track.edges) * track.seen).sum())
    slider = f'role="slider" aria-valuemin="0" aria-valuemax="{len(track.times) - 1}" aria-valuenow="0"'
    return f"""<section class="track"><h2>face {track.face_id} <span class="soft" style="font-weight:400">in sight for
{share:.1f} s · <span id="at{place}">point at a moment</span></span></h2><div>{_key(track)}</div>
<div class="chart" tabindex="0" {slider} aria-label="Moment of face {track.face_id}">{"".join(lines)}{axis}
<div class="cursor"></div></div></section>"""


def _key(track: Track) -> str:
    colours = emotion_colours(list(track.emotions))
    seen = [name for name, shares in track.emotions.items() if np.nanmax(shares, initial=0) >= 0.1]
    return "".join(f'<span class="key"><i style="background:{colours[name]}"></i>{text(name)}</span>' for name in seen)


def _ribbon(track: Track) -> str:
    colours, low = emotion_colours(list(track.emotions)), np.zeros(len(track.times))
    shapes = []
    for name, shares in track.emotions.items():
        shapes.append(
            f'<path fill="{colours[name]}" d="{_area(track, low + shares, low)}"><title>{text(name)}</title></path>'
        )
        low = low + shares
    return "".join(shapes)


def _names(track: Track) -> str:
    """On the ribbon, of each stretch its strongest emotion, where there is room: colours alone say little to many."""
    colours, span = emotion_colours(list(track.emotions)), track.edges[-1] - track.edges[0]
    found = []
    for name, start, stop in track.stretches():
        left, width = (100 * (second / span) for second in (start - track.edges[0], stop - start))
        if width > 1.3 * len(name):
            place = f"left:{left:.2f}%;width:{width:.2f}%;color:{ink_on(colours[name])}"
            found.append(f'<span style="{place}">{text(name)}</span>')
    return "".join(found)


def _area(track: Track, high: np.ndarray, low: np.ndarray | None = None) -> str:
    """Steps between `low` (0 unless given) and `high`, with gaps where that is NaN."""
    low = np.zeros(len(high)) if low is None else low
    x = (track.edges - track.edges[0]) / max(track.edges[-1] - track.edges[0], 1e-9) * 1000
    there = ~np.isnan(high)
    turns = np.flatnonzero(np.diff(np.concatenate([[False], there, [False]]).astype(int)))
    path = []
    for start, stop in list(pairwise(turns))[::2]:
        span = range(start, stop)
        upper = "".join(f"L{x[at]:.1f} {100 - 100 * high[at]:.1f}H{x[at + 1]:.1f}" for at in span)
        lower = "".join(f"V{100 - 100 * low[at]:.1f}H{x[at]:.1f}" for at in reversed(span))
        path.append(f"M{x[start]:.1f} {100 - 100 * low[start]:.1f}{upper}{lower}Z")
    return "".join(path)


__all__ = ["save_timeline_html", "timeline_html"]
