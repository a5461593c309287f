"""Every setting has a type and a range; what has not is named, wherever it comes from."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoImageProcessor

from processing_mf2 import MF2ImageProcessor, MF2ImageProcessorPil
from processing_mf2.image_processing_mf2 import check_settings


IMAGE = np.zeros((40, 40, 3), np.uint8)
BAD = [
    *(
        ("image_std", value)
        for value in ([0, 0, 0], 0, [0.5, 0.5, -1], [0.5, math.nan, 1], [0.5, 0.5], "0.5", [[1]], {}, 10**30, 1e-30)
    ),
    *(("image_mean", value) for value in ([math.nan] * 3, [0, 0, 1e30], math.inf, [0.5] * 4, "grey", [None] * 3, True)),
    *(("rescale_factor", value) for value in (0, math.nan, math.inf, "1/255", [1])),
    *(("size", value) for value in (0, -3, 2.5, "224", {"height": 5}, {"width": True, "height": 5}, [1, 2, 3], 10**6)),
    *(("max_pixels", value) for value in (0, -1, 2.5, "many", True)),
    *(("do_align", value) for value in (1, "no", [])),
    *(("do_normalize", value) for value in (0, "no")),
    *(("landmark_source", value) for value in ("dlib", 1, [], {})),
    *(("face_alignment_kwargs", value) for value in ("cpu", 3, ["device"])),
    *(("resample", value) for value in (7, "bilinear", [])),
    ("do_resize", False),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_setting_is_named_where_a_processor_is_made_called_or_loaded(name, value, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        MF2ImageProcessor(**{name: value})
    with pytest.raises((ValueError, TypeError), match=name):
        MF2ImageProcessor(size=32)(IMAGE, **{name: value})
    if name == "max_pixels":  # of a file it is left out
        return
    MF2ImageProcessor(size=32).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    for load in (AutoImageProcessor.from_pretrained, MF2ImageProcessor.from_pretrained):
        with pytest.raises((ValueError, TypeError), match=f"{tmp_path.name}.*{name}"):
            load(tmp_path)


def test_one_number_stands_for_all_colours() -> None:
    usual = {name: getattr(MF2ImageProcessor(), name, None) for name in MF2ImageProcessor.valid_kwargs.__annotations__}
    assert check_settings({**usual, "image_mean": 0.5, "size": (40, 30)})["size"].width == 30
    one, three = (MF2ImageProcessor(size=32, image_mean=mean)(IMAGE)["pixel_values"] for mean in (0.4, [0.4] * 3))
    assert one.equal(three)


@pytest.mark.parametrize("cls", [MF2ImageProcessor, MF2ImageProcessorPil])
def test_a_checkpoint_neither_opens_the_network_nor_raises_a_limit(cls, tmp_path: Path) -> None:
    cls(size=32, allow_url=True, max_pixels=10**9, timeout=1e9).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    saved = json.loads(file.read_text())
    assert not {"allow_url", "max_pixels", "timeout"} & set(saved)
    file.write_text(json.dumps({**saved, "allow_url": True, "max_pixels": 10**9, "timeout": 1e9}))
    for load in (cls.from_pretrained, AutoImageProcessor.from_pretrained, lambda folder: cls.from_json_file(file)):
        loaded = load(tmp_path)
        assert (loaded.allow_url, loaded.max_pixels, loaded.timeout) == (False, cls.max_pixels, None)
    asked = AutoImageProcessor.from_pretrained(tmp_path, allow_url=True, max_pixels=5)
    assert asked.allow_url is True and asked.max_pixels == 5


def test_what_else_a_file_holds_is_kept_but_not_a_misspelt_setting(tmp_path: Path) -> None:
    processor = MF2ImageProcessor(size=32)
    processor.is_override = True
    processor.save_pretrained(tmp_path)
    assert MF2ImageProcessor.from_pretrained(tmp_path).is_override is True
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "do_aling": False}))
    with pytest.raises(TypeError, match="'do_aling'; did you mean 'do_align'"):
        MF2ImageProcessor.from_pretrained(pretrained_model_name_or_path=tmp_path)
