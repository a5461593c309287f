"""Which captions a style has, what may be asked of a chat model for one image, and the writer by rule."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from configuration_mf2.baselines import CAPTION_SETS
from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet
from configuration_mf2.json_files import parse_json
from mf2face.captions.prompts import known_captions
from mf2face.data.schema import as_label_set
from processing_mf2.captions import RuleCaptioner, au_states, au_title, emotion_name


STYLES: Mapping[str, tuple[str, ...]] = {
    "mfa": ("au_caption", "emotion_caption", "key_au_caption"),
    "exp_blip": ("exp_blip_au", "exp_blip_emot", "exp_blip_mix", "exp_blip_cat", "exp_blip_exp"),
    "vl_fau": ("vl_fau_global", "vl_fau_local"),
}
RULE = "rule"

# Made of the two sentences that are asked for, so nobody pays for them.
_COMPOSED = ("exp_blip_mix", "exp_blip_cat")


@dataclass(frozen=True)
class CaptionRow:
    """What a writer needs of an image. `au_labels` are aligned with the label set, -1 is unknown; `emotion` is an index
    or a name. `id` names the row in the journal. The image is looked at only by a writer that sends images."""

    id: str
    au_labels: Sequence[int] | None = None
    emotion: int | str | None = None
    image: Any = None


@dataclass(frozen=True)
class Captions:
    """The captions of one row: caption -> text, "" where the labels tell nothing. `writer` is "" if nothing was
    written, "rule", a model's name, or a model's name and the captions that fell to the rule."""

    id: str
    texts: Mapping[str, str] = field(default_factory=dict)
    writer: str = ""


def writer_mark(model: str, by_rule: Sequence[str] = ()) -> str:
    """What stands in `caption_writer`."""
    return f"{model} ({RULE}: {', '.join(by_rule)})" if by_rule else model


class CaptionStyle:
    """One style over one label set; `seed` draws the rule's wording, for each row by its id alone."""

    def __init__(self, style: str = "mfa", label_set: str | LabelSet = "mfa", *, seed: int = 0, varied: bool = True):
        if style not in STYLES:
            raise ValueError(f"style: got {style!r}, expected one of {list(STYLES)}")
        self.name, self.captions = style, STYLES[style]
        self.label_set = as_label_set(label_set)
        self.rule = RuleCaptioner(self.label_set)
        self.seed, self.varied = seed, varied

    @property
    def asked(self) -> tuple[str, ...]:
        """The captions that a chat model is asked for, if all labels are known."""
        return tuple(name for name in self.captions if name not in _COMPOSED)

    def states(self, row: CaptionRow) -> dict[str, int]:
        return au_states(row.au_labels, self.rule.action_units)

    def emotion(self, row: CaptionRow) -> str | None:
        return emotion_name(row.emotion, self.rule.emotions)

    def asked_of(self, row: CaptionRow) -> tuple[str, ...]:
        """Nothing is asked about labels that are unknown."""
        has_aus = any(state != UNKNOWN_LABEL for state in self.states(row).values())
        return known_captions(self.asked, has_aus, self.emotion(row) is not None)

    def by_rule(self, row: CaptionRow) -> Captions:
        texts = {name: self._by_rule(name, row) for name in self.captions}
        return Captions(row.id, texts, RULE if any(texts.values()) else "")

    def compose(self, row: CaptionRow, written: Mapping[str, str]) -> dict[str, str]:
        """All captions of the style, from those that were asked for: what is not among them is made of them, or ""."""
        texts = {name: written.get(name, "") for name in self.captions}
        if self.name == "exp_blip":
            halves = [text for name in ("exp_blip_au", "exp_blip_emot") if (text := texts[name])]
            texts["exp_blip_cat"] = " ".join(halves)
            texts["exp_blip_mix"] = halves[int(self._rng(row, "mix").integers(len(halves)))] if halves else ""
            texts["exp_blip_exp"] = texts["exp_blip_exp"] or (halves[0] if halves else "")
        return texts

    def key(self, row: CaptionRow, *writer: str) -> str:
        """Names a caption in the journal: with other labels, style, model or prompt it is another one."""
        told = [row.id, self.states(row), self.emotion(row), self.name, *writer]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

    def _by_rule(self, name: str, row: CaptionRow) -> str:
        rng, labels, emotion = self._rng(row, name), row.au_labels, row.emotion
        if name == "au_caption":
            return self.rule.au_caption(labels, rng)
        if name == "emotion_caption":
            return self.rule.emotion_caption(labels, emotion, rng)
        if name == "key_au_caption":
            return self.rule.key_au_caption(labels, emotion, rng)
        if name == "vl_fau_global":
            return self.rule.vl_fau_global(labels, rng)
        if name == "vl_fau_local":
            return numbered(dict(zip(self.rule.action_units, self.rule.vl_fau_local(labels, rng), strict=True)))
        return self.rule.exp_blip_caption(labels, emotion, name.removeprefix("exp_blip_"), rng)

    def _rng(self, row: CaptionRow, name: str) -> np.random.Generator | None:
        if not self.varied and name != "mix":
            return None
        digest = hashlib.sha256(json.dumps([self.seed, row.id, name]).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8]))


def numbered(sentences: Mapping[str, str]) -> str:
    """AU -> sentence, as the numbered list that `parse_au_caption` reads; what is "" is left out."""
    items = [(au, text) for au, text in sentences.items() if text]
    return "\n".join(f"{number}. {au_title(au)}: {text}" for number, (au, text) in enumerate(items, start=1))


def write_by_rule(
    rows: Iterable[CaptionRow], style: str = "mfa", label_set: str | LabelSet = "mfa", *, seed: int = 0
) -> Iterator[Captions]:
    """Offline, at once, for nothing; the same seed and row give the same words, in any order."""
    captions = CaptionStyle(style, label_set, seed=seed)
    for row in rows:
        yield captions.by_rule(row)


_ID_COLUMNS = ("corpus", "video", "frame")
_LABEL_COLUMNS = ("au_labels", "emotion")


@dataclass
class _DatasetRows:
    """Reads a data set's rows as often as it is asked to."""

    dataset: Dataset
    ids: Sequence[str] | None
    images: bool

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[CaptionRow]:
        present = self.dataset.column_names
        named = _ID_COLUMNS if self.ids is None else ()
        rows = self.dataset.select_columns([c for c in (*named, *_LABEL_COLUMNS) if c in present])
        if self.images:
            rows = self.dataset.cast_column("image", Image(decode=False)).select_columns(
                [c for c in (*named, *_LABEL_COLUMNS, "image") if c in present]
            )
        for index, row in enumerate(rows):
            name = row_id(row) if self.ids is None else self.ids[index]
            yield CaptionRow(name, row.get("au_labels"), row.get("emotion"), row.get("image"))


def row_id(row: Mapping) -> str:
    """Corpus, video and frame, which together name an image of MFA."""
    if missing := [name for name in _ID_COLUMNS if name not in row]:
        raise ValueError(f"ids: the data set has no column {', '.join(missing)}; give ids, one text a row")
    return "/".join(str(row[name]) for name in _ID_COLUMNS)


def caption_rows(dataset: Dataset, ids: Sequence[str] | None = None, *, images: bool = False) -> Iterable[CaptionRow]:
    """The rows of MFA as a writer takes them. images: for a writer with `send_images`. ids: in place of `row_id`."""
    if ids is not None and len(ids) != len(dataset):
        raise ValueError(f"ids: got {len(ids)}, expected {len(dataset)}, one for each row")
    return _DatasetRows(dataset, ids, images)


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
    by_id = {found.id: found for found in captions if found is not None}
    names = [row.id for row in caption_rows(dataset, ids)]
    if (missing := [name for name in names if name not in by_id]) and not keep_missing:
        raise ValueError(
            f"captions: {len(missing)} of {len(names)} rows have none, among them {missing[0]}; write them first, or "
            "pass keep_missing=True"
        )
    told = list(dict.fromkeys(caption for found in by_id.values() for caption in found.texts))
    columns = {name: name for name in told} if columns is None else dict(columns)
    if unknown := [caption for caption in columns.values() if told and caption not in told]:
        raise ValueError(f"columns: got {unknown}, expected some of the captions {told}")
    order = [*dataset.column_names, *(name for name in columns if name not in dataset.column_names)]
    new = {
        column: [by_id[n].texts[caption] if n in by_id else None for n in names] for column, caption in columns.items()
    }
    new["caption_writer"] = [by_id[n].writer if n in by_id else None for n in names]
    description, joined = dataset.info.description, dataset
    for column, values in new.items():
        old = dataset[column] if column in dataset.column_names else [""] * len(names)
        values = [before if value is None else value for value, before in zip(values, old, strict=True)]
        if column in joined.column_names:
            joined = joined.remove_columns(column)
        joined = joined.add_column(column, values)
    joined = joined.select_columns([*order, *(["caption_writer"] if "caption_writer" not in order else [])])
    joined.info.description = description
    return joined


def save_captions(path: str | os.PathLike, captions: Iterable[Captions | None]) -> int:
    """One JSON line a row, in their order; how many. The file appears when it is complete."""
    target, count = Path(path), 0
    temporary = target.with_name(target.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        for found in captions:
            if found is not None:
                line = {"id": found.id, **found.texts, "caption_writer": found.writer}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    return count


def load_captions(path: str | os.PathLike) -> Iterator[Captions]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                found = parse_json(line, path)
                name, writer = found.pop("id"), found.pop("caption_writer")
            except (ValueError, KeyError, AttributeError):
                raise ValueError(f"{path}: line {number} is no caption; expected what save_captions writes") from None
            yield Captions(name, found, writer)


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


__all__ = [
    "CAPTIONS",
    "PROCESSOR_INPUTS",
    "RULE",
    "STYLES",
    "CaptionRow",
    "CaptionStyle",
    "Captions",
    "caption_column",
    "caption_rows",
    "check_captions",
    "join_captions",
    "load_captions",
    "numbered",
    "row_id",
    "save_captions",
    "style_of",
    "with_rule_captions",
    "write_by_rule",
    "writer_mark",
]
