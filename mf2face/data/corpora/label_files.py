"""Label files of corpora; errors say which file, line and field is wrong, and what to do."""

import csv
import difflib
import io
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np


_NUMBER = r" *-?[0-9]{1,9} *"


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
        got = "a file" if folder.exists() else "nothing there"
    except (OSError, RuntimeError) as error:  # a link that leads back to itself
        got = str(error)
    raise CorpusError(folder, got, f"a folder: {what}", advice)


def read_text(path: Path) -> str:
    """A whole file of UTF-8; a byte order mark and Windows line ends are understood."""
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


def integer_table(
    path: Path, text: str, columns: Sequence[str], allowed: Collection[int] | None, advice: str, first_line: int = 1
) -> np.ndarray:
    """(lines, columns) of `text`, whose first line is the file's `first_line`; every value is one of `allowed`."""
    lines = text.strip("\n").split("\n") if text.strip("\n") else []
    row = re.compile(",".join([_NUMBER] * len(columns)))
    for number, line in enumerate(lines, start=first_line):
        if row.fullmatch(line):
            continue
        fields = line.split(",")
        if len(fields) != len(columns):
            expected = f"{len(columns)} values: {', '.join(columns)}"
            raise CorpusError(path, f"{len(fields)} values ({line[:60]!r})", expected, advice, line=number)
        wrong = next(place for place, value in enumerate(fields) if not re.fullmatch(_NUMBER, value))
        where = {"line": number, "field": columns[wrong]}
        raise CorpusError(path, repr(fields[wrong][:40]), "a whole number", advice, **where)
    table = np.zeros((0, len(columns)), np.int32)
    if lines:
        numbers = ",".join(lines).replace(" ", "")
        table = np.fromstring(numbers, np.int32, sep=",").reshape(-1, len(columns))
    # Ranges of whole numbers alone occur, apart from single codes that stand for "unknown".
    if allowed is not None and (wrong := ~np.isin(table, list(allowed))).any():
        line, column = np.argwhere(wrong)[0]
        expected, where = f"one of {', '.join(map(str, sorted(allowed)))}", {"line": first_line + int(line)}
        raise CorpusError(path, table[line, column], expected, advice, **where, field=columns[column])
    return table


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


def csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every line that is not empty."""
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        advice = "Close the quotation mark, or write the file anew"
        raise CorpusError(path, str(error), "fields between commas", advice, line=reader.line_num) from error


def check_width(path: Path, fields: Sequence[str], names: Sequence[str], advice: str, line: int) -> None:
    if len(fields) != len(names):
        raise CorpusError(path, f"{len(fields)} fields", f"{len(names)}: {', '.join(names)[:200]}", advice, line=line)


def label_files(folder: Path, what: str, pattern: str, such_as: str, advice: str) -> list[Path]:
    """The files or folders of a pattern in a folder, at least one."""
    if not (paths := sorted(check_folder(folder, what, advice).glob(pattern))):
        raise CorpusError(folder, "no labels", f"names such as {such_as}", advice)
    return paths


class Listing:
    """The images that a label file lists: each once, below the corpus's folder; nothing else on the disk is opened."""

    def __init__(self, file: Path) -> None:
        self.file, self.lines = file, {}

    def path(self, text: str, line: int, field: str = "image") -> str:
        name, where = text.strip(), {"line": line, "field": field}
        if name.startswith(("http://", "https://")) or not name or "\0" in name:
            got, advice = repr(name[:80]) if name else "nothing", "Nothing is fetched: fetch the images first"
            raise CorpusError(self.file, got, "a path below the folder", advice, **where)
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or PureWindowsPath(name).drive or ".." in parts.parts:
            advice = "Write paths relative to the folder, without `..`; link or copy images that lie elsewhere into it"
            raise CorpusError(self.file, repr(name[:80]), "a path below the folder", advice, **where)
        if (before := self.lines.setdefault(str(parts), line)) != line:
            advice = f"Leave out one of the two lines (the other is line {before})"
            raise CorpusError(self.file, f"{name!r} again", "each once", advice, **where)
        return str(parts)


__all__ = ["CorpusError", "Listing", "csv_rows", "integer_table", "read_text"]
