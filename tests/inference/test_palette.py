"""Colours that stay apart without colour, heat that is clear where there is none, files that are whole."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.inference.explain import page as palette_mf2
from mf2face.inference.explain.page import (
    ACTIVE,
    AT_REST,
    emotion_colours,
    encoded,
    heat_rgba,
    ink_on,
    new_figure,
    origin,
    over_grey,
    save_figure,
    shortened,
    write_whole,
)


def _lightness(colour: str) -> float:
    rgb = np.array([[[int(colour[place : place + 2], 16) for place in (1, 3, 5)]]], np.uint8)
    return float(cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0, 0, 0])


def test_active_and_at_rest_differ_in_grey_and_emotions_differ_at_all() -> None:
    assert abs(_lightness(ACTIVE) - _lightness(AT_REST)) > 60
    assert len(set(emotion_colours(EMOTIONS).values())) == len(EMOTIONS)
    compound = LABEL_SETS["raf_db_compound"].emotions
    assert list(emotion_colours(compound)) == list(compound)
    assert ink_on("#f0e442") != ink_on("#0072b2")


def test_heat_grows_lighter_and_is_clear_where_there_is_none() -> None:
    heat = heat_rgba(np.linspace(0, 3, 64)[None])
    assert heat[0, 0, 3] == 0 and heat[0, -1, 3] > 200
    lightness = cv2.cvtColor(heat[..., :3], cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(lightness) >= 0).all()
    assert (heat_rgba(np.zeros((2, 2)))[..., 3] == 0).all()
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    assert np.ptp(over_grey(red, np.zeros((4, 4))), axis=-1).max() == 0, "the image itself is grey"


def test_a_picture_says_which_model_and_what_it_was_trained_on() -> None:
    assert "synthetic" in origin({"model": "m", "trained_on": "trained on synthetic faces"})
    assert "with a" in origin({"model": "m", "adapter": "a"}) and "do not say which model" in origin({})


def test_files_are_whole_or_as_before(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "picture.png"
    save_figure(new_figure(1, 1), path, dpi=20)
    assert cv2.imread(str(path)).shape == (20, 20, 3)
    before = path.read_bytes()

    def fails(self, content):
        raise OSError("full")

    monkeypatch.setattr(palette_mf2.Path, "write_bytes", fails)
    with pytest.raises(OSError, match="full"):
        write_whole(path, b"half")
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_names_are_shortened_from_the_middle_and_can_be_shown() -> None:
    assert shortened("a.png", 10) == "a.png" and shortened("x" * 50 + "end.png", 20).endswith("end.png")
    assert len(shortened("x" * 50, 20)) == 20 and "\udce9" not in shortened("\udce9\n", 9)


def test_encoding_keeps_the_colours_in_order() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0] = 255
    assert cv2.imdecode(np.frombuffer(encoded(image), np.uint8), 1)[0, 0].tolist() == [0, 0, 255]
