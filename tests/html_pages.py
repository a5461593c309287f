"""Reads a page as a browser's parser would: which elements there are, and what they refer to."""

import json
from html.parser import HTMLParser


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
        """What would have to be fetched."""
        places = [attributes.get(key) for _, attributes in self.elements for key in ("href", "src")]
        return [place for place in places if place and not place.startswith(("data:", "#"))]
