"""The frame of every interactive page: one file that asks nothing of the network, in light and in dark, by keyboard."""

import base64
import json
import os
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from .palette_mf2 import ACTIVE, AT_REST, MARK, encoded, write_whole


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
    return write_whole(path, content.encode("utf-8"))


__all__ = ["as_json", "data_uri", "page", "save_page", "text"]
