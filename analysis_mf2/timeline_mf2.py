"""A video at a glance: of each face a ribbon of emotions and a row an action unit, over seconds; gaps where no face."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configuration_mf2.facs_mf2 import ACTION_UNITS

from .palette_mf2 import (
    ACTIVE,
    AT_REST,
    FAINT,
    INK,
    MARK,
    SOFT,
    emotion_colours,
    ink_on,
    new_figure,
    origin,
    save_figure,
    shortened,
)
from .picture_rows_mf2 import PictureRows, Track, tracks_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FACES_A_PAGE = 4
WIDTH, _LEFT, _RIGHT = 12.6, 2.35, 0.5
_ROW, _RIBBON, _TOP, _FOOT = 0.27, 0.52, 0.95, 0.4
_LETTER = 0.082
"""Inches of a letter of the ribbon."""


def save_timeline(rows: PictureRows, name: str, path: str | os.PathLike) -> list[Path]:
    """Of one video; more than four faces go on in `...-2.png`."""
    tracks, path = _tracks(rows, name), Path(path)
    pages = [tracks[start : start + FACES_A_PAGE] for start in range(0, len(tracks), FACES_A_PAGE)] or [[]]
    return [
        save_figure(
            draw_timeline(rows, name, page),
            path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"),
        )
        for number, page in enumerate(pages, 1)
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
    told = "no face was found in any frame"
    if tracks:
        told = (
            f"{len(tracks[0].times):,} frames looked at, {clock(tracks[0].edges[0])} to {clock(tracks[0].edges[-1])} · "
            "blue where an action unit reaches its threshold, grey below, empty where the face was not found"
        )
    text(0.45, 0.58, told, 9)
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
    """Of the emotions that are ever seen in the ribbon."""
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


__all__ = ["clock", "draw_timeline", "save_timeline"]
