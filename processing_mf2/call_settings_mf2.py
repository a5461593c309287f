"""The keyword arguments of a processor's call, flat or in the dictionaries of transformers, to those of each part."""

from collections.abc import Mapping
from typing import Any

from transformers.utils import TensorType

from .tokenizer_mf2 import SHORTEST_SENTENCE


_OF_TEXT = ("padding", "truncation", "max_length")
_NESTED = ("common_kwargs", "text_kwargs", "images_kwargs")


def split_call(given: Mapping[str, Any], usual: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`padding`, `truncation`, `max_length` and `return_tensors`, the settings of the image processor).

    given: as `processor(..., padding=..., text_kwargs={...}, images_kwargs={...}, common_kwargs={...}, **flat)`.
    usual: what the tokenizer was made with; `padding` and `max_length` of it hold where the call says nothing.
    """
    nested = {name: given.get(name) or {} for name in _NESTED}
    for name, values in nested.items():
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}: got {type(values).__name__}, expected a dict of settings")
    flat = {name: value for name, value in given.items() if name not in _NESTED}
    for owner in ("text_kwargs", "images_kwargs"):
        twice = sorted((flat.keys() & nested[owner].keys()) - {"return_tensors"})
        if twice:
            raise ValueError(f"{', '.join(twice)}: got it as a keyword and in {owner}, expected one of both")
    text = {"padding": True, "truncation": True, "max_length": None, "return_tensors": "pt"}
    text |= {name: usual[name] for name in ("padding", "max_length") if usual.get(name) is not None}
    both = {**nested["common_kwargs"], **flat}
    text |= {name: both[name] for name in text if both.get(name) is not None}
    unknown = sorted(nested["text_kwargs"].keys() - text.keys())
    if unknown:
        raise TypeError(f"text_kwargs: got {unknown}, expected names among {list(text)}")
    text |= {name: value for name, value in nested["text_kwargs"].items() if value is not None}
    images = {name: value for name, value in both.items() if name not in text} | dict(nested["images_kwargs"])
    images.pop("return_tensors", None)
    _check_text(text)
    return text, images


def _check_text(text: Mapping[str, Any]) -> None:
    if text["padding"] not in (True, "longest", "max_length"):
        raise ValueError(
            f"padding: got {text['padding']!r}, expected True, 'longest' or 'max_length': a batch is one tensor"
        )
    if text["truncation"] not in (True, "longest_first"):
        raise ValueError(
            f"truncation: got {text['truncation']!r}, expected True: texts are always cut to emotion_max_length and "
            "au_max_length"
        )
    longest = text["max_length"]
    if longest is not None and (type(longest) is not int or longest < SHORTEST_SENTENCE):
        raise ValueError(f"max_length: got {longest!r}, expected a whole number of tokens from {SHORTEST_SENTENCE}")
    if text["return_tensors"] not in ("pt", "np", TensorType.PYTORCH, TensorType.NUMPY):
        raise ValueError(f"return_tensors: got {text['return_tensors']!r}, expected 'pt' or 'np'")


__all__ = ["split_call"]
