"""The captions of each style: asked of a chat model, written by rule, and joined to data sets."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, Image

from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet
from mf2face.captions.prompts import known_captions
from mf2face.data.schema import as_label_set
from mf2face.files import whole_file
from processing_mf2.captions import RuleCaptioner, au_states, au_title, emotion_name


STYLES: Mapping[str, tuple[str, ...]] = {
    "mfa": ("au_caption", "emotion_caption", "key_au_caption"),
    "exp_blip": ("exp_blip_au", "exp_blip_emot", "exp_blip_mix", "exp_blip_cat", "exp_blip_exp"),
    "vl_fau": ("vl_fau_global", "vl_fau_local"),
}
CAPTIONS = ("emotion_caption", "au_caption", "key_au_caption")
PROCESSOR_INPUTS: Mapping[str, str] = {
    **{"emotion_caption": "text", "au_caption": "au_sentences", "key_au_caption": "key_au_captions"},
    **{"vl_fau_global": "text", "vl_fau_local": "au_sentences"},
    **dict.fromkeys(STYLES["exp_blip"], "text"),
}
"""Column -> the argument of the processor that it becomes."""

# Made of the two sentences that are asked for: they cost nothing.
_COMPOSED = ("exp_blip_mix", "exp_blip_cat")
_RULE = "rule"
_ID_COLUMNS, _LABEL_COLUMNS = ("corpus", "video", "frame"), ("au_labels", "emotion")


@dataclass(frozen=True)
class CaptionRow:
    """id: names the row in the journal. au_labels: aligned with the label set, -1 is unknown. emotion: an index or a
    name. image: read only by a writer that sends images. caption: the only one that is asked for."""

    id: str
    au_labels: Sequence[int] | None = None
    emotion: int | str | None = None
    image: Any = None
    caption: str | None = None


@dataclass(frozen=True)
class Captions:
    """caption -> text, "" where labels are unknown. writer: "" if nothing was written, "rule", a model's name, or a
    model's name and the captions that the rule wrote in its place."""

    id: str
    texts: Mapping[str, str] = field(default_factory=dict)
    writer: str = ""


class CaptionStyle:
    """One style over one label set; `seed` draws the rule's wording, for each row by its id alone."""

    def __init__(self, style: str = "mfa", label_set: str | LabelSet = "mfa", *, seed: int = 0) -> None:
        if style not in STYLES:
            raise ValueError(f"style: got {style!r}, expected one of {list(STYLES)}")
        self.name, self.captions, self.seed = style, STYLES[style], seed
        self.label_set = as_label_set(label_set)
        self.rule = RuleCaptioner(self.label_set)
        self.asked = tuple(name for name in self.captions if name not in _COMPOSED)

    def states(self, row: CaptionRow) -> dict[str, int]:
        return au_states(row.au_labels, self.rule.action_units)

    def emotion(self, row: CaptionRow) -> str | None:
        return emotion_name(row.emotion, self.rule.emotions)

    def asked_of(self, row: CaptionRow) -> tuple[str, ...]:
        """The captions that a chat model is asked for: none about labels that are unknown."""
        has_aus = any(state != UNKNOWN_LABEL for state in self.states(row).values())
        asked = self.asked if row.caption is None else (row.caption,)
        return known_captions(asked, has_aus, self.emotion(row) is not None)

    def by_rule(self, row: CaptionRow) -> Captions:
        texts = {name: self._text_by_rule(name, row) for name in self.captions}
        return Captions(row.id, texts, _RULE if any(texts.values()) else "")

    def compose(self, row: CaptionRow, written: Mapping[str, str]) -> dict[str, str]:
        """All captions of the style: those that were asked for, those made of them, and "" for the others."""
        texts = {name: written.get(name, "") for name in self.captions}
        if self.name == "exp_blip":
            halves = [text for name in ("exp_blip_au", "exp_blip_emot") if (text := texts[name])]
            texts["exp_blip_cat"] = " ".join(halves)
            texts["exp_blip_mix"] = halves[int(self._rng(row, "mix").integers(len(halves)))] if halves else ""
            texts["exp_blip_exp"] = texts["exp_blip_exp"] or (halves[0] if halves else "")
        return texts

    def key(self, row: CaptionRow, *writer: str) -> str:
        """Names a caption in the journal: with other labels, style, model or prompt it is another one."""
        parts = [row.id, self.states(row), self.emotion(row), self.name, *writer, *filter(None, [row.caption])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def _text_by_rule(self, name: str, row: CaptionRow) -> str:
        rng, rule, labels = self._rng(row, name), self.rule, row.au_labels
        if name == "vl_fau_local":
            return numbered(dict(zip(rule.action_units, rule.vl_fau_local(labels, rng), strict=True)))
        if name in STYLES["exp_blip"]:
            return rule.exp_blip_caption(labels, row.emotion, name.removeprefix("exp_blip_"), rng)
        of_aus_alone = name in ("au_caption", "vl_fau_global")
        return getattr(rule, name)(*((labels,) if of_aus_alone else (labels, row.emotion)), rng)

    def _rng(self, row: CaptionRow, name: str) -> np.random.Generator:
        digest = hashlib.sha256(json.dumps([self.seed, row.id, name]).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8]))


def numbered(sentences: Mapping[str, str]) -> str:
    """AU -> sentence, as the numbered list that `parse_au_caption` reads; what is "" is left out."""
    items = [(au, text) for au, text in sentences.items() if text]
    return "\n".join(f"{number}. {au_title(au)}: {text}" for number, (au, text) in enumerate(items, start=1))


def write_by_rule(
    rows: Iterable[CaptionRow], style: str = "mfa", label_set: str | LabelSet = "mfa", *, seed: int = 0
) -> Iterator[Captions]:
    """Offline and free; the same seed and row give the same words, in any order."""
    captions = CaptionStyle(style, label_set, seed=seed)
    for row in rows:
        yield captions.by_rule(row)


@dataclass
class CaptionRows:
    """The rows of MFA as a writer takes them, read as often as it asks. ids: in place of `row_id`. images: for a writer
    with `send_images`."""

    dataset: Dataset
    ids: Sequence[str] | None = None
    images: bool = False

    def __post_init__(self) -> None:
        if self.ids is not None and len(self.ids) != len(self.dataset):
            raise ValueError(f"ids: got {len(self.ids)}, expected {len(self.dataset)}, one for each row")

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[CaptionRow]:
        rows, columns = self.dataset, [*(_ID_COLUMNS if self.ids is None else ()), *_LABEL_COLUMNS]
        if self.images:
            rows, columns = rows.cast_column("image", Image(decode=False)), [*columns, "image"]
        for index, row in enumerate(rows.select_columns([c for c in columns if c in rows.column_names])):
            name = row_id(row) if self.ids is None else self.ids[index]
            yield CaptionRow(name, row.get("au_labels"), row.get("emotion"), row.get("image"))


def row_id(row: Mapping) -> str:
    """Corpus, video and frame, which together name an image of MFA."""
    if missing := [name for name in _ID_COLUMNS if name not in row]:
        raise ValueError(f"ids: the data set has no column {', '.join(missing)}; give ids, one text a row")
    return "/".join(str(row[name]) for name in _ID_COLUMNS)


def join_captions(
    dataset: Dataset,
    captions: Iterable[Captions | None],
    ids: Sequence[str] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    keep_missing: bool = False,
) -> Dataset:
    """The data set with captions and `caption_writer` filled in; pictures are not touched.

    columns: column -> caption, such as {"emotion_caption": "exp_blip_exp"}; by default a column for each caption, named
    like it, so MFA's three fill the schema's. keep_missing: a row without captions keeps what it has; else an error.
    """
    by_id = {one.id: one for one in captions if one is not None}
    names = [row.id for row in CaptionRows(dataset, ids)]
    if (missing := [name for name in names if name not in by_id]) and not keep_missing:
        got = f"{len(missing)} of {len(names)} rows have none, among them {missing[0]}"
        raise ValueError(f"captions: {got}; write them first, or pass keep_missing=True")
    written = list(dict.fromkeys(caption for one in by_id.values() for caption in one.texts))
    columns = {name: name for name in written} if columns is None else dict(columns)
    if unknown := [caption for caption in columns.values() if written and caption not in written]:
        raise ValueError(f"columns: got {unknown}, expected some of the captions {written}")
    present = [*columns, "caption_writer"]
    order = dict.fromkeys([*dataset.column_names, *present])
    joined = dataset.remove_columns([name for name in present if name in dataset.column_names])
    for column in present:
        values = dataset[column][:] if column in dataset.column_names else [""] * len(names)
        for place, one in enumerate(map(by_id.get, names)):
            if one is not None:
                values[place] = one.writer if column == "caption_writer" else one.texts[columns[column]]
        joined = joined.add_column(column, values)
    joined = joined.select_columns(list(order))
    joined.info.description = dataset.info.description
    return joined


def save_captions(path: str | os.PathLike, captions: Iterable[Captions | None]) -> int:
    """One JSON line a row, in their order; returns how many. The file appears when it is complete."""
    count = 0
    with whole_file(path, shared=True, sync=True) as part, open(part, "w", encoding="utf-8") as file:
        for one in captions:
            if one is not None:
                line = {"id": one.id, **one.texts, "caption_writer": one.writer}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
    return count


def style_of(captions: Sequence[str]) -> str:
    for style, names in STYLES.items():
        if captions and set(captions) <= set(names):
            return style
    raise ValueError(f"captions: got {list(captions)}, expected some of one style of {dict(STYLES)}")


def with_rule_captions(rows: Dataset, captions: Sequence[str], label_set: str | LabelSet, *, seed: int = 0) -> Dataset:
    """The rows with those of `captions` that they lack, written from their labels; "" where these are unknown."""
    missing = [name for name in captions if name not in rows.column_names]
    if not missing:
        return rows
    ids = [str(number) for number in range(len(rows))]
    written = write_by_rule(CaptionRows(rows, ids), style_of(missing), label_set, seed=seed)
    return join_captions(rows, written, ids, columns={name: name for name in missing})


def check_captions(rows: Dataset, captions: Sequence[str], system: str) -> None:
    """A system that learns from text needs its own captions, not another system's."""
    missing = [name for name in captions if name not in (rows.column_names or ())]
    if missing:
        advice = f"examples/write_captions.py --style {style_of(missing)}, or give --captions_by_rule True"
        got = f"the dataset has no column {', '.join(missing)}, which {system} learns from"
        raise ValueError(f"captions: {got}. Write it with {advice}")
    empty = [name for name in captions if isinstance(rows, Dataset) and not any(rows[name][:])]
    if empty:
        expected = f"some captions for {system}, of rows whose labels are known"
        raise ValueError(f"captions: every row's {', '.join(empty)} is empty, expected {expected}")


__all__ = [
    *("CAPTIONS", "PROCESSOR_INPUTS", "STYLES", "CaptionRow", "CaptionRows", "CaptionStyle", "Captions"),
    *("check_captions", "join_captions", "numbered", "row_id"),
    *("save_captions", "style_of", "with_rule_captions", "write_by_rule"),
]
