"""From a data set's rows to rows that a writer takes, and from captions back into the data set, by row id."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, Image

from configuration_mf2.json_mf2 import parse_json

from .caption_styles_mf2 import CaptionRow, Captions


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


__all__ = ["caption_rows", "join_captions", "load_captions", "row_id", "save_captions"]
