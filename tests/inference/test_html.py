"""The frame of pages: nothing that a user wrote becomes markup, and nothing is fetched."""

import json

import numpy as np
from picture_faces import EVIL

from mf2face.inference.explain.page import as_json, data_uri, page, text


def test_text_and_data_cannot_become_markup() -> None:
    made = page(EVIL, "<p></p>", style="", script="", data={EVIL: EVIL + "</script>"}, footer=EVIL)
    assert "<script>alert" not in made and made.count("</script>") == 2
    assert json.loads(as_json({"a": EVIL})) == {"a": EVIL}
    assert text("\udce9<") == "?&lt;" or "&lt;" in text("\udce9<")


def test_numbers_are_plain_and_nan_is_null() -> None:
    data = {"a": np.array([0.123456, np.nan]), "b": np.bool_(True), "c": np.int64(3), "d": (1.5,)}
    assert json.loads(as_json(data)) == {"a": [0.1235, None], "b": True, "c": 3, "d": [1.5]}


def test_a_page_may_load_nothing() -> None:
    made = page("t", "", style="", script="", data=[], footer="")
    assert "default-src 'none'" in made and "http://" not in made and "https://" not in made
    assert "prefers-color-scheme: dark" in made and 'lang="en"' in made
    assert data_uri(np.zeros((1, 1, 4), np.uint8)).startswith("data:image/png;base64,")
