"""A video at a glance: of each face a ribbon of emotions and a row an action unit, over seconds; gaps where no face."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configuration_mf2.facs import ACTION_UNITS
from mf2face.inference.explain.page import (
    ACTIVE,
    AT_REST,
    FAINT,
    INK,
    MARK,
    SOFT,
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
from mf2face.inference.explain.picture_rows import PictureRows, Track, tracks_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACES_A_PAGE = 4
WIDTH, _LEFT, _RIGHT = 12.6, 2.35, 0.5
_ROW, _RIBBON, _TOP, _FOOT = 0.27, 0.52, 0.95, 0.4
_LETTER = 0.082
"""Inches of a letter of the ribbon."""


def save_timeline(rows: PictureRows, name: str, path: str | os.PathLike) -> list[Path]:
    """Saves one video; more than four faces continue in `...-2.png`."""
    tracks, path = _tracks(rows, name), Path(path)
    pages = [tracks[start : start + FACES_A_PAGE] for start in range(0, len(tracks), FACES_A_PAGE)] or [[]]
    return [
        save_figure(draw_timeline(rows, name, page), numbered(path, number)) for number, page in enumerate(pages, 1)
    ]


def _tracks(rows: PictureRows, name: str) -> list[Track]:
    if name not in rows.videos:
        raise ValueError(f"name: got {name!r}, expected a video of these rows: {list(rows.videos)}")
    return tracks_of(rows, name)


def draw_timeline(rows: PictureRows, name: str, tracks: Sequence[Track]) -> "Figure":
    panel = 0.5 + (_RIBBON + 0.14 if rows.emotions else 0) + _ROW * len(rows.units) + 0.6
    height = _TOP + panel * max(1, len(tracks)) + _FOOT
    figure = new_figure(WIDTH, height)

    def text(left: float, top: float, words: str, size: float, colour: str = SOFT, **more: object) -> None:
        words = words.replace("$", r"\$")
        figure.text(left / WIDTH, 1 - top / height, words, fontsize=size, color=colour, va="top", **more)

    def axes(top: float, tall: float) -> "Axes":
        place = (_LEFT / WIDTH, 1 - (top + tall) / height, (WIDTH - _LEFT - _RIGHT) / WIDTH, tall / height)
        return figure.add_axes(place)

    text(0.45, 0.25, shortened(os.path.basename(name), 80), 15, INK, fontweight="bold")
    subtitle = "no face was found in any frame"
    if tracks:
        subtitle = (
            f"{len(tracks[0].times):,} frames looked at, {clock(tracks[0].edges[0])} to {clock(tracks[0].edges[-1])} · "
            "blue where an action unit reaches its threshold, grey below, empty where the face was not found"
        )
    text(0.45, 0.58, subtitle, 9)
    for number, track in enumerate(tracks):
        top = _TOP + number * panel
        share = float((np.diff(track.edges) * track.seen).sum())
        text(0.45, top + 0.12, f"face {track.face_id}", 11.5, INK, fontweight="bold")
        text(1.2, top + 0.15, f"in sight for {share:.1f} s", 9)
        top += 0.45
        if rows.emotions:
            axis = axes(top, _RIBBON)
            draw_ribbon(axis, track, WIDTH - _LEFT - _RIGHT)
            axis.text(-0.012, 0.5, "emotion", transform=axis.transAxes, ha="right", va="center", fontsize=9)
            legend(axis, track)
            top += _RIBBON + 0.14
        axis = axes(top, _ROW * len(rows.units))
        draw_units(axis, track, rows.thresholds)
    text(0.45, height - 0.26, origin(rows.about), 7.5)
    return figure


def clock(seconds: float) -> str:
    minutes, rest = divmod(max(0.0, seconds), 60)
    return f"{int(minutes)}:{rest:04.1f}" if minutes else f"{rest:.1f} s"


def _steps(track: Track, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A frame's answer holds for its span: nothing is drawn between two answers that nobody gave."""
    return np.repeat(track.edges, 2)[1:-1], np.repeat(values, 2)


def draw_ribbon(axis: "Axes", track: Track, inches: float) -> None:
    """The emotions' shares, one on the other; the strongest is named where there is room."""
    colours, names = emotion_colours(list(track.emotions)), list(track.emotions)
    shares = np.array([track.emotions[name] for name in names])
    tops = np.cumsum(shares, axis=0)
    for place, name in enumerate(names):
        x, high = _steps(track, tops[place])
        low = _steps(track, tops[place] - shares[place])[1]
        axis.fill_between(x, low, high, color=colours[name], linewidth=0)
    span = track.edges[-1] - track.edges[0]
    for name, start, stop in track.stretches():
        if (stop - start) / span * inches > _LETTER * len(name) + 0.12:
            row = names.index(name)
            at = int(np.searchsorted(track.edges, (start + stop) / 2, "right")) - 1
            place = ((start + stop) / 2, tops[row, at] - shares[row, at] / 2)
            axis.text(*place, name, ha="center", va="center", fontsize=8.5, color=ink_on(colours[name]))
    axis.set(xlim=(track.edges[0], track.edges[-1]), ylim=(0, 1))
    _bare(axis)


def legend(axis: "Axes", track: Track) -> None:
    """Names the emotions that are visible in the ribbon."""
    from matplotlib.patches import Patch

    colours = emotion_colours(list(track.emotions))
    seen = [name for name, shares in track.emotions.items() if np.nanmax(shares, initial=0) >= 0.1]
    patches = [Patch(facecolor=colours[name], edgecolor=SOFT, linewidth=0.4, label=name) for name in seen]
    settings = {"fontsize": 8, "frameon": False, "handlelength": 0.9, "handleheight": 0.9, "columnspacing": 1.1}
    axis.legend(
        handles=patches,
        ncols=max(1, len(seen)),
        loc="lower right",
        bbox_to_anchor=(1.005, 0.97),
        borderpad=0,
        **settings,
    )


def draw_units(axis: "Axes", track: Track, thresholds: dict[str, float]) -> None:
    tall = 0.84
    for row, (code, shares) in enumerate(track.units.items()):
        x, height = _steps(track, shares)
        on = _steps(track, track.active[code])[1]
        base = np.full(len(x), -float(row))
        axis.axhline(-row, color=FAINT, linewidth=0.7, zorder=0)
        axis.fill_between(x, base, base + tall * height, color=AT_REST, linewidth=0)
        axis.fill_between(x, base, base + tall * height, where=on, color=ACTIVE, linewidth=0)
        if code in thresholds:
            level = -row + tall * thresholds[code]
            axis.axhline(level, color=MARK, linewidth=0.7, linestyle=(0, (1.5, 2.5)))
        ever = bool(track.active[code].any())
        settings = {"va": "center", "fontsize": 8.5, "color": INK if ever else SOFT}
        settings |= {"fontweight": "bold" if ever else "normal", "transform": axis.get_yaxis_transform()}
        axis.text(-0.195, -row + 0.36, code, ha="left", **settings)
        axis.text(-0.012, -row + 0.36, ACTION_UNITS[code].noun, ha="right", **settings)
    axis.set(xlim=(track.edges[0], track.edges[-1]), ylim=(-max(1, len(track.units)) + 0.96, 1))
    _bare(axis)
    axis.spines["bottom"].set(visible=True, color=SOFT)
    axis.tick_params(axis="x", bottom=True, labelbottom=True, colors=SOFT, labelsize=8.5)
    if track.edges[-1] > 120:
        axis.xaxis.set_major_formatter(lambda seconds, _: f"{int(seconds // 60)}:{seconds % 60:02.0f}")
        axis.set_xlabel("time (minutes:seconds)", fontsize=8.5, color=SOFT)
    else:
        axis.set_xlabel("time (s)", fontsize=8.5, color=SOFT)


def _bare(axis: "Axes") -> None:
    axis.set_yticks([])
    axis.tick_params(axis="x", bottom=False, labelbottom=False)
    for side in axis.spines.values():
        side.set_visible(False)


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


def save_timeline_html(rows: PictureRows, name: str, path: str | os.PathLike) -> Path:
    return save_page(path, timeline_html(rows, name))


def timeline_html(rows: PictureRows, name: str) -> str:
    tracks = tracks_of(rows, name)
    subtitle = "no face was found in any frame"
    if tracks:
        subtitle = (
            f"{len(tracks[0].times):,} frames looked at, {clock(tracks[0].edges[0])} to {clock(tracks[0].edges[-1])}"
        )
    chips = "".join(
        f'<button class="chip" data-unit="{code}" aria-pressed="true" title="{text(ACTION_UNITS[code].noun)}">{code}'
        "</button>"
        for code in rows.units
    )
    quiet = '<button class="chip" id="quiet">only those ever active</button>' if rows.units and tracks else ""
    charts = "".join(_track(rows, track, place) for place, track in enumerate(tracks))
    title = os.path.basename(name)
    how = "Point at a moment, or focus a chart and use the arrow keys. Dotted: threshold."
    body = f"""<h1>{text(title)}</h1><p class="soft" style="margin:.2rem 0 0">{text(subtitle)}. {how}</p>
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
