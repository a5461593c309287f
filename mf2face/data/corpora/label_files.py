"""Label files of corpora, read fast, and errors that say which file, line and field is wrong, and what to do."""

import csv
import difflib
import io
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np


# What numpy would take for a number: too long a one, a sign alone, two in one field.
_NO_NUMBER = re.compile(rb"\d{10}|-(?!\d)|\d-|\d +\d")


class CorpusError(ValueError):
    """What is wrong with a corpus as it lies on the disk."""

    def __init__(
        self,
        file: str | Path,
        got: object,
        expected: str,
        advice: str,
        *,
        line: int | None = None,
        field: str | None = None,
    ) -> None:
        self.file, self.line, self.field = str(file), line, field
        place = "".join((f", line {line}" if line is not None else "", f", {field}" if field else ""))
        super().__init__(f"{file}{place}: got {got}, expected {expected}. {advice}")


def check_folder(folder: Path, what: str, advice: str) -> Path:
    try:
        if folder.is_dir():
            return folder
        found = "a file" if folder.exists() else "nothing there"
    except (OSError, RuntimeError) as error:  # a link that leads back to itself
        found = str(error)
    raise CorpusError(folder, found, f"a folder: {what}", advice)


def read_text(path: Path) -> str:
    """A whole file, of which every byte is UTF-8; a byte order mark and Windows line ends are understood."""
    try:
        content = path.read_bytes()
    except (OSError, RuntimeError) as error:
        advice = "The corpus is not complete, or not where it is looked for"
        raise CorpusError(path, getattr(error, "strerror", None) or error, "a readable file", advice) from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        advice = "Save the file as UTF-8, or fetch it again"
        raise CorpusError(path, f"the byte {content[error.start]:#04x}", "UTF-8 text", advice, line=line) from error


def parse_integers(text: str, width: int) -> np.ndarray | None:
    """(lines, width) whole numbers between commas, at the speed of numpy; None if the text is not such a table."""
    content = text.strip("\n").encode()
    if not content:
        return np.zeros((0, width), np.int32)
    if content.translate(None, b"0123456789-,\n ") or _NO_NUMBER.search(content):
        return None
    marks = np.frombuffer(content, np.uint8)
    commas, ends = np.flatnonzero(marks == ord(",")), np.flatnonzero(marks == ord("\n"))
    until = np.searchsorted(commas, np.append(ends, len(marks)))
    if (np.diff(until, prepend=0) != width - 1).any():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            values = np.fromstring(content.replace(b"\n", b","), np.int32, sep=",")
        except (ValueError, OverflowError, DeprecationWarning):
            return None
    return values.reshape(-1, width) if len(values) == (len(ends) + 1) * width else None


def integer_table(
    path: Path, text: str, columns: Sequence[str], allowed: Collection[int] | None, advice: str, first_line: int = 1
) -> np.ndarray:
    """(lines, columns) of `text`, whose first line is the file's `first_line`; every value is one of `allowed`."""
    table = parse_integers(text, len(columns))
    if table is None:
        raise _first_wrong_line(path, text, columns, advice, first_line)
    # Ranges of whole numbers alone occur, apart from single codes that stand for "unknown".
    if allowed is not None and (wrong := ~np.isin(table, list(allowed))).any():
        line, column = np.argwhere(wrong)[0]
        expected = f"one of {', '.join(map(str, sorted(allowed)))}"
        raise CorpusError(
            path, table[line, column], expected, advice, line=first_line + int(line), field=columns[column]
        )
    return table


def _first_wrong_line(path: Path, text: str, columns: Sequence[str], advice: str, first_line: int) -> CorpusError:
    for number, line in enumerate(text.strip("\n").split("\n"), start=first_line):
        fields = line.split(",")
        if len(fields) != len(columns):
            expected = f"{len(columns)} values: {', '.join(columns)}"
            return CorpusError(path, f"{len(fields)} values ({line[:60]!r})", expected, advice, line=number)
        for name, value in zip(columns, fields, strict=True):
            if not re.fullmatch(r" *-?\d{1,9} *", value):
                return CorpusError(path, repr(value[:40]), "a whole number", advice, line=number, field=name)
    raise AssertionError(f"{path}: the fast reader refused a table without a mistake")


def check_header(path: Path, got: Sequence[str], expected: Sequence[str], advice: str, line: int = 1) -> None:
    """Names must be the same, in the same order."""
    if [name.strip() for name in got] == list(expected):
        return
    for place, (name, wanted) in enumerate(zip(got, expected, strict=False), start=1):
        if name.strip() != wanted:
            whole = f"The whole header: got {', '.join(got)[:200]}; expected {', '.join(expected)}"
            advice = f"{near_names(name, expected)}{advice}. {whole}"
            raise CorpusError(path, repr(name), repr(wanted), advice, line=line, field=f"column {place}")
    raise CorpusError(path, f"{len(got)} columns", f"{len(expected)}: {', '.join(expected)}", advice, line=line)


def near_names(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1) or [k for k in known if k.lower() == name.strip().lower()]
    return f"Did you mean {near[0]!r}? " if near else ""


def csv_rows(path: Path, text: str, first_line: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every line that is not empty."""
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            if fields:
                yield first_line - 1 + reader.line_num, fields
    except csv.Error as error:
        advice = "Close the quotation mark, or write the file anew"
        raise CorpusError(path, str(error), "fields between commas", advice, line=reader.line_num) from error


def safe_path(text: str, path: Path, line: int, field: str = "image") -> str:
    """An image's path below the corpus's folder, as it stands in a label file: nothing else on the disk is opened."""
    name = text.strip()
    if name.startswith(("http://", "https://")) or not name or "\0" in name:
        expected, got = "a path below the folder", repr(name[:80]) if name else "nothing"
        raise CorpusError(path, got, expected, "Nothing is fetched: fetch the images first", line=line, field=field)
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts:
        advice = "Write paths relative to the folder, without `..`; link or copy images that lie elsewhere into it"
        raise CorpusError(path, repr(name[:80]), "a path below the folder", advice, line=line, field=field)
    return str(parts)


class Duplicates:
    """Finds what is listed twice."""

    def __init__(self, path: Path, what: str = "image") -> None:
        self.path, self.what, self.first = path, what, {}

    def add(self, name: str, line: int) -> None:
        if (before := self.first.setdefault(name, line)) != line:
            advice = f"Leave out one of the two lines (the other is line {before})"
            raise CorpusError(self.path, f"{name!r} again", "each once", advice, line=line, field=self.what)


__all__ = ["CorpusError", "csv_rows", "integer_table", "read_text", "safe_path"]
