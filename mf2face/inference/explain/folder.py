"""A folder of pictures: a page of each face in an image, the contact sheet of a folder, the timeline of a video."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mf2face.files import private
from mf2face.inference.analyze import Analysis
from mf2face.inference.explain.picture_rows import PictureRows, read_picture_rows
from mf2face.inference.explain.row_pictures import (
    save_contact_html,
    save_contact_sheet,
    save_timeline,
    save_timeline_html,
)
from mf2face.inference.faces import Face
from mf2face.inference.media import DRAWN, Frame, Note, drawn_pictures
from mf2face.inference.rows import OutputError, first_line


_MOST_BYTES = 200
"""Longest name of a picture, before the number of its face."""


class WhyFolder:
    """Takes the faces of a run one by one (`analysis.on_face`), and at its end the rows (`finish`)."""

    def __init__(self, folder: str | os.PathLike, analysis: Analysis, *, occlusion: bool = False) -> None:
        try:
            from mf2face.inference.explain.explainer import Explainer  # pictures of rows do not need torch
        except ImportError as error:
            raise ImportError(f"why: needs torch and the full package ({error}): pip install -e .") from error
        settings = {"thresholds": analysis.thresholds, "confidence": analysis.options.confidence}
        self.explainer = Explainer(analysis.model, occlusion=occlusion, **settings)
        self.rows = PictureRows.of_columns(analysis.columns.names, analysis.about)
        self.folder, self.names = Path(folder), _Names(analysis.inputs)
        self.pages: dict[tuple[str, int], str] = {}
        self.skip = analysis.summary.skip
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.drawn = _Drawn(self.folder)
        analysis.on_face, analysis.on_input = self.face, self.names.of  # so that names follow the rows, and stay

    def face(self, frame: Frame, face: Face, number: int) -> None:
        """Writes the page of a still face; frames of a video are in its timeline only."""
        if frame.is_moving:
            return
        page = self._page(frame.input, number)
        try:
            with _writing(self.folder):
                explanation = self.explainer.explain(frame.input, frame.pixels, face, number)
                self.drawn.add((self.folder / page).with_suffix(".png"))
                explanation.save_png((self.folder / page).with_suffix(".png"))
                explanation.save_html(self.folder / page)
        except OutputError:
            raise
        except Exception as error:  # the other faces have their pages
            self.skip(frame.input, f"no page of face {number} ({type(error).__name__}: {first_line(error)})")
        else:
            self.pages[frame.input, number] = page

    def _page(self, name: str, number: int) -> str:
        return f"{self.names.of(name)}-face{number}.html"

    def beside(self, sink: Any) -> "_Beside":
        return _Beside(sink, self.rows)

    def finish(self, output: str | os.PathLike | None = None) -> str:
        """output: the run's file of rows, which may hold those of earlier runs. -> what was made, in words."""
        rows = self.rows if output is None else read_picture_rows(output)
        places = [(row["input"], int(row["face_id"])) for row in rows.stills if row["face_id"] == row["face_id"]]
        there = {place: page for place in places if (self.folder / (page := self._page(*place))).is_file()}
        rows.pages = {**there, **self.pages}
        made = save_row_pictures(rows, self.folder, self.names, self.skip)
        made = [*([_count(len(self.pages), "face page")] if self.pages else []), *made]
        if without := len(set(places) - set(rows.pages)):
            made.append(f"no page of {_count(without, 'face')} whose rows were there before; --overwrite makes them")
        return ", ".join(made) or "none: no face"


class _Drawn:
    """The list of pictures drawn into a folder, so that they are not analysed with photographs around them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, drawn_pictures(folder)

    def add(self, *paths: Path) -> None:
        new = [name for path in paths if (name := os.fspath(path.relative_to(self.folder))) not in self.names]
        if new:
            with open(self.folder / DRAWN, "a", encoding="utf-8", errors="surrogateescape", opener=private) as file:
                file.writelines(f"{name}\n" for name in new)
            self.names.update(new)


class _Beside:
    """A sink whose rows are kept for pictures too."""

    def __init__(self, sink: Any, rows: PictureRows) -> None:
        self.sink, self.rows = sink, rows

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.sink.add(rows)
        self.rows.add(rows)


class _Names:
    """Pictures are named, and lie in folders, as their inputs."""

    def __init__(self, inputs: Iterable[str | int]) -> None:
        self.roots = [os.path.normpath(one) for one in inputs if isinstance(one, str) and os.path.isdir(one)]
        self.given: dict[str, str] = {}
        self.taken: set[str] = set()

    def of(self, name: str) -> str:
        if name not in self.given:
            path = os.path.normpath(name)
            root = next((root for root in self.roots if path.startswith(root + os.sep)), None)
            inside = os.path.relpath(path, root) if root else os.path.basename(path)
            if root and len(self.roots) > 1:
                inside = os.path.join(os.path.basename(root) or "root", inside)
            stem, ending = os.path.splitext(re.sub(r'[:*?"<>|]', "-", inside))
            tries = [stem, f"{stem}-{ending[1:]}", *(f"{stem}-{number}" for number in range(2, len(self.taken) + 3))]
            self.given[name] = next(one for one in map(_cut, tries) if one not in self.taken)
            self.taken.add(self.given[name])
        return self.given[name]


def _cut(path: str) -> str:
    """With room for what is added to the last part: a file system's names have 255 bytes."""
    folder, name = os.path.split(path)
    content = os.fsencode(name)
    if len(content) <= _MOST_BYTES:
        return path
    mark = hashlib.sha256(content).hexdigest()[:8]
    return os.path.join(folder, f"{content[: _MOST_BYTES - 9].decode('utf-8', 'ignore')}-{mark}")


def save_row_pictures(
    rows: PictureRows, folder: Path, names: _Names | None = None, note: Note = lambda name, why: None
) -> list[str]:
    """Draws a contact sheet of several still faces, and a timeline of each video. -> what was made, in words."""
    names, made, drawn, timelines = names or _Names([]), [], _Drawn(folder), 0
    if len(rows.stills) > 1 or (rows.stills and not rows.pages):
        with _drawing(folder, "contact sheet", note):
            drawn.add(*save_contact_sheet(rows, folder / "contact_sheet.png"))
            pages = save_contact_html(rows, folder / "contact_sheet.html")
            made.append(f"contact sheet of {len(pages)} pages" if len(pages) > 1 else "contact sheet")
    for name in rows.videos:
        with _drawing(folder, name, note):
            path = folder / f"{names.of(name)}-timeline.png"
            drawn.add(*save_timeline(rows, name, path))
            save_timeline_html(rows, name, path.with_suffix(".html"))
            timelines += 1
    return made + ([_count(timelines, "timeline")] if timelines else [])


@contextlib.contextmanager
def _drawing(folder: Path, name: str, note: Note) -> Iterator[None]:
    """A picture that cannot be drawn is noted, and the others follow."""
    try:
        with _writing(folder):
            yield
    except OutputError:
        raise
    except Exception as error:
        note(name, f"cannot be drawn ({type(error).__name__}: {first_line(error)})")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"pictures: {folder} cannot be written ({error.strerror or error})") from error


def picture(
    rows_file: str | os.PathLike, folder: str | os.PathLike | None = None, note: Note = lambda name, why: None
) -> tuple[Path, str]:
    """Pictures of a file of rows, without a model. folder: `..._pictures` beside the rows by default."""
    folder = Path(f"{Path(rows_file).with_suffix('')}_pictures" if folder is None else folder)
    rows = read_picture_rows(rows_file)
    if not rows.stills and not rows.videos:
        raise ValueError(f"rows: {rows_file} holds none, expected a row for each face")
    return folder, ", ".join(save_row_pictures(rows, folder, note=note)) or "none"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
