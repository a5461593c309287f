"""The captions that a model learns from: columns of a dataset, what the processor calls them, and new ones by rule."""

from collections.abc import Mapping, Sequence

from datasets import Dataset

from configuration_mf2.configuration_exp_blip import CAPTION_SETS
from configuration_mf2.facs_mf2 import LabelSet

from .caption_join_mf2 import caption_rows, join_captions
from .caption_styles_mf2 import STYLES, write_by_rule


CAPTIONS = ("emotion_caption", "au_caption", "key_au_caption")

PROCESSOR_INPUTS: Mapping[str, str] = {
    **{"emotion_caption": "text", "au_caption": "au_sentences", "key_au_caption": "key_au_captions"},
    **{"vl_fau_global": "text", "vl_fau_local": "au_sentences"},
    **dict.fromkeys(STYLES["exp_blip"], "text"),
}
"""Column -> the argument of the processor that it becomes."""


def caption_column(caption_set: str) -> str:
    """The column that holds the captions of one of Exp-BLIP's sets."""
    if caption_set not in CAPTION_SETS:
        raise ValueError(f"caption_set: got {caption_set!r}, expected one of {list(CAPTION_SETS)}")
    return f"exp_blip_{caption_set}"


def style_of(captions: Sequence[str]) -> str:
    found = [style for style, names in STYLES.items() if captions and set(captions) <= set(names)]
    if not found:
        raise ValueError(f"captions: got {list(captions)}, expected some of one style of {dict(STYLES)}")
    return found[0]


def with_rule_captions(rows: Dataset, captions: Sequence[str], label_set: str | LabelSet, *, seed: int = 0) -> Dataset:
    """The rows with those of `captions` that they lack, written from their labels; "" where these tell nothing."""
    missing = [name for name in captions if name not in rows.column_names]
    if not missing:
        return rows
    ids = [str(number) for number in range(len(rows))]
    written = write_by_rule(caption_rows(rows, ids), style_of(missing), label_set, seed=seed)
    return join_captions(rows, written, ids, columns={name: name for name in missing})


def check_captions(rows: Dataset, captions: Sequence[str], system: str) -> None:
    """A system that learns from text needs its own: with another system's words it would be another system."""
    missing = [name for name in captions if name not in (rows.column_names or ())]
    if missing:
        raise ValueError(
            f"captions: the dataset has no column {', '.join(missing)}, which {system} learns from. Write it with "
            f"examples/write_captions.py --style {style_of(missing)}, or give --captions_by_rule True"
        )
    empty = [name for name in captions if isinstance(rows, Dataset) and not any(rows[name][:])]
    if empty:
        raise ValueError(
            f"captions: every row's {', '.join(empty)} is empty, and {system} learns from it; expected some "
            "captions, of rows whose labels are known"
        )


__all__ = ["CAPTIONS", "PROCESSOR_INPUTS", "caption_column", "check_captions", "style_of", "with_rule_captions"]
