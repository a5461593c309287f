"""How all pictures look: colours that colour-blind readers and printers keep apart, and how they are saved."""

import base64
import io
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from configuration_mf2.version import VERSION
from mf2face.files import write_whole


if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, FAINT, PAPER = "#1b1f24", "#59636e", "#d5dae0", "#ffffff"
ACTIVE, AT_REST, MARK = "#0072b2", "#a9b4c0", "#d55e00"
"""Colours of an active AU, of one at rest, and of the threshold: different in grey too."""

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
    """Black or white, whichever is easier to read there."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"


def heat_rgba(heat: np.ndarray) -> np.ndarray:
    """(height, width) -> (height, width, 4) bytes: plasma up to the map's own peak, clear where there is nothing.

    Its lightness rises all the way, for those who see few colours; and unlike cividis it passes through no grey, which
    on a grey face would look like nothing.
    """
    from matplotlib import colormaps

    share = heat / max(float(heat.max()), 1e-12)
    colours = colormaps["plasma"](0.2 + 0.8 * share)
    colours[..., 3] = 0.84 * np.clip(1.5 * share, 0, 1)
    return np.round(colours * 255).astype(np.uint8)


def over_grey(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat map over the image, which is grey then, for its own colours would be taken for heat; and at most light
    grey, so that the heat stands out in black and white too. Dark faces are lifted to be seen as well as light ones."""
    grey = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.float64)
    low, high = np.percentile(grey, (1, 97))
    grey = 22 + 165 * np.clip((grey - low) / max(high - low, 1), 0, 1)
    colours = heat_rgba(heat).astype(np.float64)
    alpha = colours[..., 3:] / 255
    return np.round(colours[..., :3] * alpha + grey * (1 - alpha)).astype(np.uint8)


def origin(about: Mapping[str, Any]) -> str:
    """Which model said so, and what it was trained on: on every picture."""
    model = about.get("model")
    if not model:
        return f"MF2 {VERSION} · the rows do not say which model made them"
    adapter = f" with {about['adapter']}" if about.get("adapter") else ""
    return f"MF2 {VERSION} · model {model}{adapter}: {about.get('trained_on', 'what it was trained on is not said')}"


def shortened(name: str, room: int) -> str:
    """A file's name cut in its middle; characters that no font can show are replaced."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
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


def numbered(path: Path, number: int) -> Path:
    """`sheet.png`, `sheet-2.png`, ..."""
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def new_figure(width: float, height: float) -> "Figure":
    """In inches. A figure of its own: nothing of the program's other plots, or of its settings, is touched."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=PAPER)


def save_figure(figure: "Figure", path: str | os.PathLike, dpi: int = 160) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    content = io.BytesIO()
    quick = {"compress_level": 3}  # a third of the time, a tenth more bytes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of a file's name, in a script the font has not got
        figure.savefig(content, format="png", dpi=dpi, metadata={"Software": f"MF2 {VERSION}"}, pil_kwargs=quick)
    return _write(path, content.getvalue())


def _write(path: str | os.PathLike, content: bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content, shared=False)
    return path


def encoded(image: np.ndarray, ending: str = ".png") -> bytes:
    """RGB or RGBA bytes as PNG or JPEG."""
    order = cv2.COLOR_RGBA2BGRA if image.shape[-1] == 4 else cv2.COLOR_RGB2BGR
    settings = [cv2.IMWRITE_JPEG_QUALITY, 88] if ending == ".jpg" else []
    done, content = cv2.imencode(ending, cv2.cvtColor(np.ascontiguousarray(image), order), settings)
    if not done:
        raise ValueError(f"image: OpenCV could not encode {image.shape} as {ending}")
    return content.tobytes()


_STYLE = (
    """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --track: #e9ecef; --active: ACTIVE; --rest: AT_REST; --mark: MARK; --focus: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1e2226; --ink: #eceff2; --soft: #9aa5b0;
  --line: #363c43; --track: #2b3036; --active: #4fb0ea; --rest: #6b7681; --mark: #ff9440; --focus: #7cc7f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.6rem 1.4rem 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.45rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1rem; margin: 0 0 .5rem; }
.soft, footer { color: var(--soft); font-size: .87rem; } footer { border-top: 1px solid var(--line); margin-top: 1.6rem;
  padding-top: .7rem; } button, select { font: inherit; color: inherit; }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; border-radius: 4px; }
.chip { border: 1px solid var(--line); background: none; border-radius: 999px; padding: .16rem .7rem; cursor: pointer;
  font-size: .87rem; } .chip[aria-pressed=true] { background: var(--active); color: var(--paper);
  border-color: var(--active); }
@media print { .controls { display: none; } body { max-width: none; } }
""".replace("ACTIVE", ACTIVE)
    .replace("AT_REST", AT_REST)
    .replace("MARK", MARK)
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, body: str, *, style: str, script: str, data: Any, footer: str) -> str:
    """body, style and script are ours; title and footer are escaped here, whatever stands in body was before."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
{body}
<footer>{text(footer)}</footer>
<script type="application/json" id="data">{as_json(data)}</script>
<script>"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
{script}</script>
</body>
</html>
"""


def text(words: Any) -> str:
    """Safe between tags and in quoted attributes; of file names that are not UTF-8, what is not is replaced."""
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


def data_uri(image: np.ndarray, ending: str = ".png") -> str:
    kind = "jpeg" if ending == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(encoded(image, ending)).decode('ascii')}"


def save_page(path: str | os.PathLike, content: str) -> Path:
    return _write(path, content.encode("utf-8"))
