"""A processor is called as those of transformers are: flat keywords, or dictionaries for its parts."""

import numpy as np
import pytest

from processing_mf2 import MF2ImageProcessor, MF2Processor, build_tokenizer
from processing_mf2.processing_mf2 import split_call


IMAGE = np.zeros((40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def processor() -> MF2Processor:
    return MF2Processor(MF2ImageProcessor(size=32), build_tokenizer())


def test_dictionaries_do_what_flat_keywords_do(processor: MF2Processor) -> None:
    flat = processor(IMAGE, "happiness", padding="max_length", max_length=20, do_normalize=False, return_tensors="np")
    nested = processor(
        images=IMAGE,
        text="happiness",
        text_kwargs={"padding": "max_length", "max_length": 20},
        images_kwargs={"do_normalize": False},
        common_kwargs={"return_tensors": "np"},
    )
    assert set(flat) == set(nested) and all(np.array_equal(flat[name], nested[name]) for name in flat)
    assert flat["input_ids"].shape == (1, 20) and flat["pixel_values"].max() == 0


def test_what_the_tokenizer_was_made_with_holds_where_the_call_says_nothing() -> None:
    assert split_call({}, {"padding": "max_length", "max_length": 9})[0]["max_length"] == 9
    assert split_call({"max_length": 8}, {"padding": "max_length", "max_length": 9})[0]["max_length"] == 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"padding": True, "text_kwargs": {"padding": True}}, "padding: got it as a keyword and in text_kwargs"),
        ({"do_align": True, "images_kwargs": {"do_align": True}}, "do_align: got it as a keyword and in images_kwargs"),
        ({"text_kwargs": {"stride": 1}}, r"text_kwargs: got \['stride'\]"),
        ({"text_kwargs": 3}, "text_kwargs: got int"),
        ({"images_kwargs": {"do_aling": True}}, "unknown setting 'do_aling'"),
        ({"padding": False}, "padding: got False"),
        ({"truncation": False}, "truncation: got False"),
        ({"max_length": 2}, "max_length: got 2"),
        ({"return_tensors": "tf"}, "return_tensors: got 'tf'"),
    ],
)
def test_bad_calls_are_named(processor: MF2Processor, call: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        processor(IMAGE, "happiness", **call)
