"""Rows of batches, for engines that send a function to many machines: Ray Data, `datasets`."""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

import numpy as np

from mf2face.inference.analyze import Analysis, Options, face_source
from mf2face.inference.media import Frame, Note, Sampling, read_frames, read_still
from mf2face.inference.model import load_model
from mf2face.inference.result import Result
from mf2face.inference.rows import AUTO


@dataclass(frozen=True)
class Analyzer(Options):
    """A batch of images or paths in, a row a face out, with the columns of `mf2`.

    A list gives a list of rows. A dict of columns gives a dict of them, as in Ray Data's `map_batches(Analyzer())` and
    `datasets.map(Analyzer(), batched=True, remove_columns=...)`: numbers as float64 (`frame`, `scene` as int64), NaN if
    missing, and text, empty if missing. An input that cannot be read has a row of NaN whose `error` says why; the other
    rows are those of [`analyze`]. Settings are plain values, so that it pickles; the model is loaded at a process's
    first batch.

    column, name: of images (whatever the image processor reads) or paths (of videos too), and of what a row's `input`
        says, if the batch has it; else it is the path, or the image's place in the batch.
    keep: more columns of the batch, which a row repeats.
    Others: as in [`analyze`].
    """

    _: KW_ONLY
    column: str = "image"
    name: str = "path"
    keep: Sequence[str] = ()

    def __post_init__(self) -> None:
        for field in ("model", "adapter", "landmarks", "neutral"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str | os.PathLike):
                raise TypeError(f"{field}: got {type(value).__name__}, expected a name or path: every process loads it")
        if isinstance(self.keep, str):
            raise TypeError(f"keep: got {self.keep!r}, expected a list of columns")
        if self.neutral == AUTO:
            raise ValueError("neutral: got 'auto', which needs whole videos; expected a picture, or none")
        super().__post_init__()

    def __call__(self, batch: Any) -> Any:
        analysis, in_use = self._loaded()
        if isinstance(batch, list | tuple):
            with in_use:
                return [row for rows in self._rows(analysis, batch, [None] * len(batch)) for row in rows]
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"batch: got {type(batch).__name__}, expected a list of images or paths, or a dict of columns "
                "(Ray Data: batch_format='numpy')"
            )
        if missing := [one for one in (self.column, *self.keep) if one not in batch]:
            raise ValueError(f"batch: got the columns {list(batch)}, expected {missing[0]!r}; see Analyzer(column=)")
        columns = analysis.columns
        if taken := [one for one in self.keep if one in columns.names]:
            raise ValueError(f"keep: got {taken[0]!r}, which is a column of the rows; rename that of the batch")
        items = batch[self.column]
        names = batch[self.name] if self.name in batch else [None] * len(items)
        with in_use:
            rows = self._rows(analysis, items, names)
        result: dict[str, Any] = {}
        for column in columns.names:
            values = [row[column] for of_item in rows for row in of_item]
            if columns.is_text(column):
                result[column] = np.array([_text(value) for value in values], object)
            else:
                result[column] = np.array(values, np.int64 if column in ("frame", "scene") else np.float64)
        places = [place for place, of_item in enumerate(rows) for _ in of_item]
        return {**result, **{one: [batch[one][place] for place in places] for one in self.keep}}

    def _loaded(self) -> tuple[Analysis, threading.Lock]:
        """Once a process: engines unpickle a function for every task. A fork loads its own."""
        options = Options(**{field.name: getattr(self, field.name) for field in fields(Options)})
        key = (os.getpid(), repr(options))
        if key not in _LOADED:
            source = face_source(options, None, None)
            model = load_model(options.model, options.adapter, options.device, options.engine)
            _LOADED[key] = Analysis("batch", model, source, options), threading.Lock()
        return _LOADED[key]

    def _rows(self, analysis: Analysis, items: Sequence[Any], names: Sequence[Any]) -> list[list[dict[str, Any]]]:
        """Rows of each item; last that of an item that cannot be read."""
        analysis.summary = Result()
        rows: list[list[dict[str, Any]]] = [[] for _ in items]
        failed: list[list[dict[str, Any]]] = [[] for _ in items]

        def frames() -> Iterator[_Placed]:
            for place, (item, given) in enumerate(zip(items, names, strict=True)):

                def note(name: str, why: str, place: int = place, given: Any = given) -> None:
                    row = analysis.columns.empty_row(name if given is None else str(given), 0, float("nan"), error=why)
                    failed[place].append(row)

                for frame in _frames(item, place, analysis.sampling, note):
                    named = {**vars(frame), "input": frame.input if given is None else str(given)}
                    yield _Placed(**named, of_item=place)

        for chunk in analysis.read_ahead(frames()):
            for frame, of_frame in analysis.answered(chunk):
                rows[frame.of_item] += of_frame
        return [[*of_item, *errors] for of_item, errors in zip(rows, failed, strict=True)]


_LOADED: dict[tuple[int, str], tuple[Analysis, threading.Lock]] = {}


@dataclass(frozen=True)
class _Placed(Frame):
    of_item: int = 0


def _frames(item: Any, place: int, sampling: Sampling, note: Note) -> Iterator[Frame]:
    if isinstance(item, str | os.PathLike):
        return read_frames([os.fspath(item)], sampling, note=note)
    path = item.get("path") if isinstance(item, Mapping) else getattr(item, "filename", None)  # as datasets and PIL do
    return read_still(item, path or str(place), note)


def _text(value: str | None) -> str:
    """Arrow holds UTF-8 only: bytes of file names that are none are escaped."""
    return (value or "").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


__all__ = ["Analyzer"]
