"""Reads a page as a browser's parser would; and as Chromium lays it out."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html import unescape
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.words, self.data, self._inside = "", None, ""
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        last = self.elements[-1] if self.elements else ("", {})
        if last == ("script", {"type": "application/json", "id": "data"}) and self.data is None:
            self.data = json.loads(data)
        elif last[0] not in ("script", "style"):
            self.words += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def outside(self) -> list[str]:
        """Where links and pictures lead, each once."""
        places = [attributes.get(key) for _, attributes in self.elements for key in ("href", "src")]
        return list(dict.fromkeys(place for place in places if place and not place.startswith(("data:", "#"))))


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS = (390, 768, 1280)
_MEASURE = """
addEventListener("load", () => setTimeout(() => {
  const wrong = [], width = innerWidth, say = (...words) => wrong.push(words.join(" "));
  const numbers = words => words.match(/[\\d.]+/g).map(Number);
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const weights = [.2126, .7152, .0722];
  const light = ([r, g, b]) => [r, g, b].map(c => linear(c / 255)).reduce((sum, c, i) => sum + c * weights[i], 0);
  function behind(element) {
    for (; element; element = element.parentElement) {
      const [r, g, b, a = 1] = numbers(getComputedStyle(element).backgroundColor);
      if (a > .5) return [r, g, b];
    }
    return [255, 255, 255];
  }
  function boxes() {
    const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const node = walk.currentNode, element = node.parentElement, style = getComputedStyle(element);
      if (!node.data.trim() || element.closest("script, style, title, select, [hidden]")) continue;
      const range = document.createRange();
      range.selectNodeContents(node);
      for (const box of range.getClientRects()) if (box.width > 1 && box.height > 1)
        found.push({ box, element, words: node.data.trim().slice(0, 30), size: parseFloat(style.fontSize), style });
    }
    return found;
  }
  const cross = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  function check(when) {
    const texts = boxes(), shapes = [...document.querySelectorAll(".mf-bar, .mf-photo, .line svg, figure img")];
    texts.forEach((one, place) => {
      if (one.size < 11 && !one.element.closest("svg")) say(when, one.words, "has", one.size, "px");
      if (one.element.closest("svg") && one.box.height < 11) say(when, one.words, "is", one.box.height, "px high");
      const column = one.element.closest(".mf-panels, .mf-look, .line") || document.documentElement;
      const room = column.getBoundingClientRect();
      if (one.box.right > room.right + 1 || one.box.left < room.left - 1) say(when, one.words, "leaves its column");
      if (!one.element.closest("svg, .band")) {
        const [a, b] = [light(numbers(one.style.color)), light(behind(one.element))].sort((x, y) => y - x);
        if ((a + .05) / (b + .05) < 4.4) say(when, one.words, "has contrast", ((a + .05) / (b + .05)).toFixed(1));
      }
      texts.slice(place + 1).forEach(other => {
        if (cross(one.box, other.box)) say(when, one.words, "overlaps", other.words);
      });
      shapes.forEach(shape => {
        const over = shape.contains(one.element) || (one.element.closest(".band") && shape.closest(".band"));
        if (!over && cross(one.box, shape.getBoundingClientRect())) say(when, one.words, "overlaps a", shape.tagName);
      });
    });
    if (document.documentElement.scrollWidth > width) say(when, "scrolls sideways");
  }
  check("opened:");
  document.querySelectorAll(".mf-face:not([hidden]) .mf-bar").forEach(bar => {
    if (bar.getBoundingClientRect().width < 70) say("bar is too narrow:", bar.parentElement.textContent);
  });
  const top = document.querySelector(".mf-banner").getBoundingClientRect();
  if (top.top < 0 || top.top > 120) say("the banner is not at the top");
  if (width < 560) {
    const rows = [...document.querySelectorAll(".mf-face:not([hidden]) .mf-row, .line:not(.plain)")];
    rows.forEach(row => {
      const bar = row.querySelector(".mf-bar, svg").getBoundingClientRect(), box = row.getBoundingClientRect();
      const label = row.firstElementChild.getBoundingClientRect();
      if (bar.top < label.bottom - 1) say("label not above its bar:", row.textContent);
      if (bar.width < .9 * box.width) say("bar not at full width:", row.textContent);
    });
  }
  const row = [...document.querySelectorAll(".mf-face:not([hidden]) button[data-name]")].pop();
  if (row) {
    const before = row.getBoundingClientRect().top;
    row.click();
    const map = document.querySelector(".mf-photo").getBoundingClientRect(), box = row.getBoundingClientRect();
    if (!document.querySelector(".mf-photo.heated")) say("no heat map");
    const beside = map.top >= box.bottom - 1 && map.top < box.bottom + 40;
    if (width <= 800 && !beside) say("map not below its row:", map.top, box.bottom);
    check("tapped:");
  }
  parent.postMessage([location.pathname.split("/").pop(), width, wrong], "*");
}, 50));
"""
_COLLECT = """
const found = {}, frames = document.querySelectorAll("iframe").length;
addEventListener("message", event => {
  const [name, width, wrong] = event.data;
  found[`${name} ${width}`] = wrong;
  document.getElementById("found").textContent = JSON.stringify(found);
});
"""


def layout_problems(pages: Mapping[str, str], folder: Path, *, dark: bool) -> dict[str, list[str]]:
    """'page width' -> what overlaps, is too small, too faint or off the page, as Chromium lays it out at each width."""
    for name, content in pages.items():
        added = f"<style>figure {{ content-visibility: visible !important; }}</style><script>{_MEASURE}</script></body>"
        (folder / name).write_text(content.replace("</body>", added), encoding="utf-8")
    frames = "".join(
        f'<iframe src="{name}" width="{width}" height="3000" style="border:0"></iframe>'
        for name in pages
        for width in WIDTHS
    )
    harness = folder / "harness.html"
    harness.write_text(f'<body><script>{_COLLECT}</script><pre id="found"></pre>{frames}</body>', encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=20000",
    ]
    command += [f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run([*command, "--dump-dom", harness.as_uri()], capture_output=True, text=True, timeout=240)
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
