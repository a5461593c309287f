# ruff: noqa: E731, B008
"""Damaged inputs through the doors that people use: a right answer or a refusal that names what is wrong, in bounded
time and memory. `python tests/test_fuzz.py [--kind NAME] [--seed N] [--cases]` prints the same table.

Each kind runs in a process of its own, so that a hang or a crash costs one input, and its memory can be measured.
"""

import argparse
import asyncio
import contextlib
import csv
import gc
import importlib.util
import io
import json
import logging
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_inputs as inputs
import numpy as np
import pytest
import torch
from conftest import shake, tiny_config
from fuzz_inputs import TEXT_DAMAGES, Case, byte_damages, json_damages


MOST_SECONDS, MOST_MEGABYTES, LEAST_INPUTS = 30, 600, 1500
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face")
ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "mf2face",
    "mf2face.inference.analyze",
    "analysis_media",
    "mf2face.data.build.mfa",
    "mf2face.training.stores",
)
"""Imported once, by the server from which workers are forked."""


@dataclass
class Answer:
    """told: every reason that was given for what is left out or odd."""

    value: Any
    told: list[str]


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True


ANYTHING = _Anything()


class Kind:
    """Makes the undamaged inputs in `folder`; `answer` is what a user's path gives for one."""

    name: str

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng

    def cases(self) -> Iterator[Case]:
        raise NotImplementedError

    def answer(self, given: Any) -> Answer:
        raise NotImplementedError

    def expected(self, case: Case) -> Any:
        """The undamaged answer."""
        return self.undamaged

    def spoiled_file(self, source: Path, label: str, rule: str, spoil: Callable[[bytes], bytes], *names: str) -> Case:
        """A copy of `source`'s folder in which this file is spoiled; the copy is what is answered."""

        def make(scratch: Path) -> Path:
            copy = shutil.copytree(source.parent, scratch / "copy")
            (copy / source.name).write_bytes(spoil(source.read_bytes()))
            return copy

        return Case(f"{source.name}: {label}", make, rule, (source.name, "case/copy", *names))

    def spoiled_json(self, source: Path, each: int) -> Iterator[Case]:
        content = json.loads(source.read_text())
        for label, rule, changed, field in json_damages(self.rng, content, each):
            written = json.dumps(changed).encode()
            yield self.spoiled_file(source, label, rule, lambda _, new=written: new, field)
        yield from self.spoiled_text(source)

    def spoiled_text(self, source: Path) -> Iterator[Case]:
        for label, spoil in TEXT_DAMAGES.items():
            yield self.spoiled_file(source, label, "same", spoil)
        for label, what, spoil in byte_damages(self.rng, source.stat().st_size, flips=0, cuts=5, zeros=0):
            yield self.spoiled_file(source, label, what if what == "finite" else "same", spoil)
        yield self.replaced(source, "missing", lambda path: None)
        yield self.replaced(source, "folder", lambda path: path.mkdir())
        yield self.replaced(source, "link to nothing", lambda path: path.symlink_to("nothing"))

    def replaced(self, source: Path, label: str, put: Callable[[Path], Any], rule: str = "same") -> Case:
        def make(scratch: Path) -> Path:
            copy = shutil.copytree(source.parent, scratch / "copy")
            (copy / source.name).unlink()
            put(copy / source.name)
            return copy

        return Case(f"{source.name}: {label}", make, rule, (source.name, "case/copy"))


def rows_of(summary: Any) -> Answer:
    """Numbers that a person reads, by input and frame; a row without a face counts as told."""
    told = [f"{name}: {why}" for name, why in summary.skipped]
    found: dict[str, Any] = {}
    for row in summary.rows:
        place = f"{os.path.basename(row['input'])} {row['frame']} {row['face_id']}"
        if math.isnan(float(row["face_id"])):
            told.append(f"{row['input']}: no face")
            continue
        left_out = ("input", "frame", "time_s", "face_id", "FaceScore", "landmark_source")
        found[place] = {name: value for name, value in row.items() if name not in left_out}
    return Answer(found, told)


def face_model() -> Any:
    from analysis_media import embedded

    return embedded()


class Images(Kind):
    name = "images"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        self.files = inputs.image_files()
        self.good = {
            name: self.answer(self._write(folder, name, content)).value for name, content in self.files.items()
        }
        assert all(self.good.values())

    @staticmethod
    def _write(folder: Path, name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    def answer(self, given: Path) -> Answer:
        from mf2face import analyze

        found = rows_of(analyze(str(given), model=face_model(), aligned=True))
        return Answer(list(found.value.values()), found.told)

    def expected(self, case: Case) -> Any:
        return list(self.good.get(case.label.partition(":")[0], ()))

    def cases(self) -> Iterator[Case]:
        for name, content in self.files.items():
            stem, ending = name.split(".")
            yield self._case(name, name, "undamaged", "accept", content)
            wrong = "png" if ending != "png" else "gif"
            yield self._case(name, f"{stem}.{wrong}", "ending of another format", "same", content)
            for label, what, spoil in byte_damages(self.rng, len(content), flips=5, cuts=4, zeros=1):
                yield self._case(name, name, label, "finite" if what == "flip" else "same", spoil(content))
            for label, _, spoil in byte_damages(self.rng, len(content), flips=4, cuts=0, zeros=0, end=64):
                yield self._case(name, name, f"header, {label}", "finite", spoil(content))
        for name, make in inputs.huge_images().items():
            write = lambda folder, name=name, make=make: self._write(folder, name, make())
            yield Case(f"huge {name}", write, "finite", (name,))
        for name, content in inputs.odd_sizes().items():
            yield self._case(f"size {name}", name, "", "finite", content)
        for name, content in inputs.foreign_images().items():
            rule = "refuse" if name in ("postscript.jpg", "pdf.png", "page.png", "text.jpg") else "finite"
            yield self._case(f"foreign {name}", name, "", rule, content)
        for label, make in inputs.odd_files(self.folder, ".png"):
            yield odd_file(label, make, self.folder / "odd.png", "finite" if label == "image" else "refuse")

    def _case(self, of: str, name: str, label: str, rule: str, content: bytes) -> Case:
        return Case(f"{of}: {label}", lambda folder: self._write(folder, name, content), rule, (name,))


def odd_file(label: str, make: Callable[[], Any], path: Path, rule: str) -> Case:
    def put(scratch: Path) -> Path:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
        make()
        return path

    return Case(f"odd file, {label}", put, rule, (path.name, "no image or video"))


class Arrays(Kind):
    """Pixels and landmarks that a program passes."""

    name = "arrays"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        self.pixels = np.array(inputs.face())
        self.points = np.array(inputs.draw_example(0, seed=2, size=96)[1], np.float64)
        self.undamaged = self.answer({"image": self.pixels, "landmarks": self.points}).value

    def answer(self, given: dict[str, Any]) -> Answer:
        (faces,) = face_model().pipeline([given], landmark_source="template")
        return Answer([{name: face[name] for name in ("action_units", "emotions")} for face in faces], [])

    def cases(self) -> Iterator[Case]:
        pixels, points, rng = self.pixels, self.points, self.rng
        odd = [np.nan, np.inf, -np.inf, -1, 256, 1e38, -1e-3]
        kinds = (
            "uint8 int8 uint16 int16 int32 int64 uint64 float16 float32 float64 bool complex64 object U8 >f4".split()
        )
        shapes = [(96, 96), (96, 96, 3), (3, 96, 96), (96, 96, 4), (96, 96, 2), (1, 96, 96), (96, 96, 5), (0, 96, 3)]
        shapes += [(96,), (), (2, 96, 96, 3), (96, 0, 3), (16, 16, 3), (15, 40, 3), (4, 4, 4), (1, 1, 1)]
        for kind in kinds:
            for shape in rng.sample(shapes, 6):
                yield self._image(f"{kind} {shape}", np.resize(pixels, shape).astype(kind))
        for value in odd:
            for kind in ("float16", "float32", "float64"):
                spoiled = (pixels / 255).astype(kind)
                with np.errstate(over="ignore"):
                    spoiled[rng.randrange(96), rng.randrange(96), rng.randrange(3)] = value
                yield self._image(f"one {value} of {kind}", spoiled)
            yield self._image(f"tensor of {value}", torch.full((3, 96, 96), float(value)))
        for one in (
            None,
            3,
            "",
            "nothing.png",
            b"",
            b"\x89PNG\r\n\x1a\n",
            {},
            {"bytes": None, "path": None},
            [],
            object,
        ):
            yield self._image(f"{one!r}"[:30], one)
        for sparse in (torch.zeros(3, 96, 96).to_sparse(), torch.zeros(3, 96, 96, device="meta")):
            yield self._image(f"{sparse.layout} {sparse.device}", sparse)
        yield self._image("strided", pixels[::-1, ::2])
        yield self._image("float8", torch.zeros(3, 96, 96).to(torch.float8_e4m3fn))
        yield self._image("read-only", np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape), "finite")
        for value in (*odd, 1e300):
            spoiled = points.copy()
            spoiled[rng.randrange(68), rng.randrange(2)] = value
            yield self._points(f"one {value}", spoiled)
        for label, wrong in {
            **{
                "short": points[:60],
                "turned": points.T,
                "flat": points.ravel(),
                "3D": np.pad(points, ((0, 0), (0, 1))),
            },
            **{"zeros": points * 0, "huge": points * 1e9, "tiny": points * 1e-9, "far": points + 1e6, "text": "points"},
            **{"strings": points.astype(str), "objects": points.astype(object), "complex": points + 1j, "number": 5},
            **{"integers": points.astype(int), "list": points.tolist(), "ragged": [[1.0, 2.0], [3.0]], "empty": []},
            **{"mirrored": points * -1, "two": [points, points], "nan": points * np.nan, "mapping": {"a": points}},
            **{"line": np.tile(points[:1], (68, 1)), "half": points.astype(np.float16), "bool": points > 3},
        }.items():
            yield self._points(label, wrong)

    def _image(self, label: str, image: Any, rule: str = "finite") -> Case:
        return Case(f"image {label}", lambda _: {"image": image, "landmarks": None}, rule, ("image", "inputs"))

    def _points(self, label: str, points: Any) -> Case:
        given = {"image": self.pixels, "landmarks": points}
        return Case(f"landmarks {label}", lambda _: given, "finite", ("landmarks",))


class Videos(Kind):
    name = "videos"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        made = {"a.avi": "MJPG", "b.mp4": "mp4v", "c.mkv": "MJPG", "d.avi": "XVID"}
        self.files = {name: inputs.video_file(folder / name, codec) for name, codec in made.items()}
        self.good = {name: self.answer(folder / name).value for name in self.files}
        assert all(len(rows) == 12 for rows in self.good.values()), {n: len(r) for n, r in self.good.items()}

    def answer(self, given: Path) -> Answer:
        from mf2face import analyze

        found = rows_of(analyze(str(given), model=face_model(), aligned=True))
        return Answer(list(found.value.values()), found.told)

    def expected(self, case: Case) -> Any:
        return self.good.get(case.label.partition(":")[0])

    def cases(self) -> Iterator[Case]:
        for name, content in self.files.items():
            yield self._case(name, "undamaged", "accept", content)
            for label, what, spoil in byte_damages(self.rng, len(content), flips=10, cuts=12, zeros=4):
                yield self._case(name, label, "finite" if what == "flip" else "same", spoil(content))
            header = len(content) - 700 if name.endswith("mp4") else 0
            for _ in range(12):
                place = header + self.rng.randrange(650)
                number = self.rng.choice(
                    (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x80\x00", b"\xff\x7f\0\0")
                )
                yield self._case(name, f"number at {place}", "finite", inputs.flipped_header(content, place, number))
            for side in (60_000, 16_000):
                sized = content.replace((96).to_bytes(4, "little"), side.to_bytes(4, "little"))
                yield self._case(name, f"sides of {side}", "finite", sized)
        big = lambda folder: inputs.video_file(folder / "big.avi", "MJPG", 6, (6000, 6000)) and folder / "big.avi"
        yield Case("big frames", big, "finite", ("big.avi",))
        for label, make in inputs.odd_files(self.folder, ".mp4"):
            yield odd_file(label, make, self.folder / "odd.mp4", "refuse" if label != "image" else "finite")

    def _case(self, name: str, label: str, rule: str, content: bytes) -> Case:
        def make(folder: Path) -> Path:
            (folder / name).write_bytes(content)
            return folder / name

        return Case(f"{name}: {label}", make, rule, (name,))


class LandmarkTables(Kind):
    name = "landmark csv"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        (folder / "in").mkdir()
        self.columns = ["input", "frame", *(f"{axis}_{point}" for axis in "xy" for point in range(68))]
        self.rows = []
        for index in range(3):
            inputs.face(index).save(folder / "in" / f"{index}.png")
            points = np.array(inputs.draw_example(index, seed=2, size=96)[1]).round(2)
            self.rows.append([f"{index}.png", "0", *map(str, points.T.ravel().tolist())])
        self.good = self.text(self.columns, self.rows)
        (folder / "good.csv").write_bytes(self.good)
        self.undamaged = self.answer(folder / "good.csv").value
        assert len(self.undamaged) == 3

    @staticmethod
    def text(columns: list[str], rows: list[list[str]], mark: str = ",") -> bytes:
        return "".join(mark.join(row) + "\n" for row in (columns, *rows)).encode()

    def answer(self, given: Path) -> Answer:
        from mf2face import analyze

        return rows_of(analyze(str(self.folder / "in"), model=face_model(), landmarks=given))

    def cases(self) -> Iterator[Case]:
        rng, columns, rows, good = self.rng, self.columns, self.rows, self.good
        yield self._case("undamaged", "accept", good)
        for text in (
            "nan",
            "inf",
            "-inf",
            "",
            "abc",
            "1e400",
            "0x10",
            "None",
            "1,5",
            '"',
            "1;5",
            "NaN",
            "--5",
            "1e",
            " ",
        ):
            for _ in range(2):
                yield self._cell(text, rng.randrange(2, 138), "same")
        for text in ("-5", "1e9", "1e38", "0", "5.", "١٢", "1_0"):
            yield self._cell(text, rng.randrange(2, 138), "finite")
        for text in ("-1", "1.5", "nan", "inf", "1e400", "abc", "7", "-0", "1e30"):
            yield self._cell(text, 1, "same")
        for text in ("", "nothing.png", "../0.png", "\udcff.png", "1.png", "x" * 5000, "0.png\0"):
            yield self._cell(text, 0, "same")
        for label, what, spoil in byte_damages(rng, len(good), flips=25, cuts=0, zeros=3):
            yield self._case(label, "finite" if what == "flip" else "same", spoil(good))
        ends = [number for number, byte in enumerate(good) if byte in b",\n"]
        for end in rng.sample([end for end in ends if good[end : end + 1] == b","], 20):  # between two values
            yield self._case(f"cut to {end}", "same", good[: end + rng.randrange(2)])
        for place in rng.sample(range(2, 138), 4):
            keep = [*range(place), *range(place + 1, 138)]
            yield self._table(f"without {columns[place]}", "same", keep)
            yield self._table(f"{columns[place]} twice", "same", [*range(138), place])
            other = ["other" if n == place else name for n, name in enumerate(columns)]
            yield self._case(f"{columns[place]} renamed", "same", self.text(other, rows))
            yield self._case(
                f"{columns[place]} named twice",
                "same",
                self.text([*columns[:place], columns[place - 1], *columns[place + 1 :]], rows),
            )
        yield self._table("another order", "same", rng.sample(range(138), 138))
        yield self._table("no frame", "same", [0, *range(2, 138)])
        yield self._table("no input", "same", list(range(1, 138)))
        for label, text in {
            "semicolons": self.text(columns, rows, ";"),
            "tabs": self.text(columns, rows, "\t"),
            "carriage returns": good.replace(b"\n", b"\r\n"),
            "capitals": good.replace(b"x_", b"X_"),
            "header twice": good.split(b"\n")[0] + b"\n" + good,
            "no header": good.split(b"\n", 1)[1],
            "row too long": good.replace(b"\n", b",7\n").replace(b",7\n", b"\n", 1),
            "rows twice": good + good.split(b"\n", 1)[1],
            "a long field": good.replace(b"0.png", b"0" * 200_000 + b".png"),
            "very many fields": good + b"," * 300_000,
            "blank lines": good.replace(b"\n", b"\n\n"),
        }.items():
            yield self._case(label, "same" if label != "rows twice" else "finite", text)
        for label, spoil in TEXT_DAMAGES.items():
            yield self._case(label, "same", spoil(good))
        for label, make in inputs.odd_files(self.folder, ".csv"):
            yield odd_file(label, make, self.folder / "odd.csv", "refuse")

    def _cell(self, text: str, place: int, rule: str) -> Case:
        line = self.rng.randrange(3)
        changed = [[*row] for row in self.rows]
        changed[line][place] = text.encode("utf-8", "surrogateescape").decode("latin-1") if "\udcff" in text else text
        return self._case(
            f"line {line + 2}, {self.columns[place]} = {text[:20]!r}", rule, self.text(self.columns, changed)
        )

    def _table(self, label: str, rule: str, keep: list[int]) -> Case:
        text = self.text([self.columns[n] for n in keep], [[row[n] for n in keep] for row in self.rows])
        return self._case(label, rule, text)

    @staticmethod
    def _case(label: str, rule: str, content: bytes) -> Case:
        def make(folder: Path) -> Path:
            (folder / "faces.csv").write_bytes(content)
            return folder / "faces.csv"

        return Case(label, make, rule, ("faces.csv", "landmarks"))


class OwnTables(Kind):
    """The data set builder on one's own pictures; what it builds is compared with a plain reading of the table."""

    name = "own csv"
    columns = ("image", "emotion", "AU1", "AU12", "subject", "split")

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        spec = importlib.util.spec_from_file_location("build_dataset", ROOT / "examples" / "build_dataset.py")
        self.script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.script)
        (folder / "own").mkdir()
        emotions = ("Happiness", "Fear", "", "Anger", "Neutral", "Sadness", "Surprise", "Disgust")
        self.rows = []
        for index, emotion in enumerate(emotions):
            inputs.face(index, 64).save(folder / "own" / f"{index}.png")
            split = ("train", "train", "train", "train", "train", "validation", "validation", "test")[index]
            self.rows.append([f"{index}.png", emotion, str(index % 2), "01 "[index % 3].strip(), f"p{index}", split])
        self.good = self.text(self.columns, self.rows)
        (folder / "own" / "labels.csv").write_bytes(self.good)
        self.undamaged = self.answer(folder / "own").value
        assert self.undamaged == self.plain_reading(self.good)

    @staticmethod
    def text(columns: Any, rows: list[list[str]], mark: str = ",") -> bytes:
        return "".join(mark.join(row) + "\n" for row in (columns, *rows)).encode()

    def answer(self, given: Path) -> Answer:
        import pyarrow.parquet as pq

        out = given.parent / f"out-{time.monotonic_ns()}"
        options = "--require any --no-balance --landmarks template --crop_size 32 --workers 1 --near tell".split()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = self.script.main(["own", str(given), str(out), *options])
            except SystemExit as error:
                raise ValueError(f"{error.code} {said.getvalue()}") from error
        if isinstance(code, int) and code:
            raise ValueError(f"{code} {said.getvalue()}")
        found = {}
        for file in sorted((out / "data").iterdir()):
            for row in pq.read_table(file).to_pylist():
                found[row["video"]] = [
                    row["emotion"],
                    row["au_labels"][0],
                    row["au_labels"][6],
                    row["subject"],
                    row["split"],
                ]
        told = [line for line in said.getvalue().splitlines() if re.match(r"[1-9]\d* images were left out", line)]
        return Answer(found, [f"labels.csv: {line}" for line in told])

    def plain_reading(self, content: bytes) -> Any:
        """What a person reads in the table; None if nobody can."""
        from configuration_mf2.facs import EMOTIONS

        known = {name.lower(): code for code, name in enumerate(EMOTIONS)}
        splits = {"": "train", "val": "validation", "valid": "validation"}
        known |= {"happy": known["happiness"], "joy": known["happiness"], "": -1, "-1": -1}
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), skipinitialspace=True)
            return {
                row["image"].strip().rsplit(".", 1)[0]: [
                    known[row.get("emotion", "").strip().lower()],
                    *(int(row[name]) if row.get(name, "").strip() else -1 for name in ("AU1", "AU12")),
                    row.get("subject", "").strip() or ANYTHING,
                    splits.get(row["split"].strip(), row["split"].strip()) if "split" in row else ANYTHING,
                ]
                for row in rows
            }
        return None

    def expected(self, case: Case) -> Any:
        return self.read[case.label]

    def cases(self) -> Iterator[Case]:
        rng, good = self.rng, self.good
        self.read: dict[str, Any] = {}
        yield self._case("undamaged", good)
        texts = (
            "",
            "-1",
            "2",
            "0.5",
            "nan",
            "Joy",
            "happy",
            "Contempt",
            "x",
            "true",
            "1e9",
            '"',
            "a,b",
            "\0",
            "é",
            "test",
            "0.png",
        )
        for place, name in enumerate(self.columns):
            for text in rng.sample(texts, 9):
                rows = [[*row] for row in self.rows]
                line = rng.randrange(len(rows))
                rows[line][place] = text
                yield self._case(f"line {line + 2}, {name} = {text!r}", self.text(self.columns, rows))
            keep = [n for n in range(6) if n != place]
            without = self.text([self.columns[n] for n in keep], [[row[n] for n in keep] for row in self.rows])
            yield self._case(f"without {name}", without)
            yield self._case(
                f"{name} twice", self.text([*self.columns, name], [[*row, row[place]] for row in self.rows])
            )
        for _ in range(14):
            end = rng.randrange(len(good))
            yield self._case(f"cut to {end}", good[:end])
        for label, _, spoil in byte_damages(rng, len(good), flips=14, cuts=0, zeros=1):
            yield self._case(label, spoil(good))
        for label, spoil in TEXT_DAMAGES.items():
            yield self._case(label, spoil(good))
        for label, text in {
            "semicolons": self.text(self.columns, self.rows, ";"),
            "carriage returns": good.replace(b"\n", b"\r\n"),
            "rows twice": good + good.split(b"\n", 1)[1],
            "row too long": good.replace(b"p3", b"p3,p3"),
            "row too short": good.replace(b"p3,", b""),
            "an absolute path": good.replace(b"3.png", b"/etc/passwd"),
            "a path above": good.replace(b"3.png", b"../own/3.png"),
            "an address": good.replace(b"3.png", b"http://127.0.0.1/3.png"),
            "a picture that is not there": good.replace(b"3.png", b"33.png"),
            "no image": good.split(b"\n", 1)[0] + b"\n",
        }.items():
            yield self._case(label, text)
        picture = (self.folder / "own" / "3.png").read_bytes()
        for label, _, spoil in byte_damages(rng, len(picture), flips=2, cuts=6, zeros=0):
            yield self._case(f"picture, {label}", good, spoil(picture))

    def _case(self, label: str, content: bytes, picture: bytes | None = None) -> Case:
        def make(folder: Path) -> Path:
            copy = shutil.copytree(self.folder / "own", folder / "own")
            (copy / "labels.csv").write_bytes(content)
            if picture is not None:
                (copy / "3.png").write_bytes(picture)
            return copy

        self.read[label] = self.plain_reading(content)
        return Case(
            label, make, "accept" if label == "undamaged" else "same", ("labels.csv", "3.png", "split", "case/own")
        )


class Checkpoints(Kind):
    """A small checkpoint with real texts, and how it answers one picture."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        from modeling_mf2 import MF2ForPreTraining
        from processing_mf2 import MF2Processor, build_tokenizer

        super().__init__(folder, rng)
        tokenizer, self.model = build_tokenizer(), folder / "model"
        qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192, "num_hidden_layers": 2}
        config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169, au_thresholds=[0.4, 0.5, 0.6])
        MF2Processor.for_model(config, tokenizer).save_pretrained(self.model)
        shake(MF2ForPreTraining(config)).save_pretrained(self.model)
        self.picture = folder / "face.png"
        inputs.face().save(self.picture)
        self.prepare()
        self.undamaged = self.answer(self.source()).value
        assert self.undamaged

    def prepare(self) -> None: ...

    def source(self) -> Path:
        return self.model

    def answer(self, given: Path) -> Answer:
        from mf2face import analyze
        from mf2face.inference.model import load_model

        return rows_of(analyze(self.picture, model=self.load(load_model, given), aligned=True))

    def load(self, load_model: Any, given: Path) -> Any:
        return load_model(given, device="cpu")


class ModelConfigs(Checkpoints):
    name = "config.json"

    def cases(self) -> Iterator[Case]:
        yield from self.spoiled_json(self.model / "config.json", each=4)


class ProcessorFiles(Checkpoints):
    name = "processor, tokenizer"

    def spoiled_file(self, source: Path, label: str, rule: str, spoil: Callable[[bytes], bytes], *names: str) -> Case:
        return super().spoiled_file(source, label, rule, spoil, *names, "processor")

    def prepare(self) -> None:
        from modeling_mf2 import MF2ForPreTraining

        self.network = MF2ForPreTraining.from_pretrained(self.model).eval()

    def answer(self, given: Path) -> Answer:
        from processing_mf2 import MF2Processor
        from processing_mf2.pipelines import face_pipeline

        processor = MF2Processor.from_pretrained(given)
        (faces,) = face_pipeline("face-analysis", self.network, processor, device="cpu")([str(self.picture)])
        sentence = "The inner brows are raised, and the lips part: surprise!"
        ids = processor(text=[sentence], key_au_captions=[sentence])
        written = processor.tokenizer.decode(ids["input_ids"][0])
        numbers = {name: value.tolist() for name, value in ids.items()}
        return Answer([*({n: f[n] for n in ("action_units", "emotions")} for f in faces), numbers, written], [])

    def cases(self) -> Iterator[Case]:
        yield from self.spoiled_json(self.model / "processor_config.json", each=5)
        yield from self.spoiled_json(self.model / "tokenizer_config.json", each=5)
        source = self.model / "tokenizer.json"
        yield from self.spoiled_text(source)
        content = json.loads(source.read_text())
        content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:3])  # its fields, not its words
        small = list(json_damages(self.rng, content, 1))
        words = json.loads(source.read_text())["model"]["vocab"]
        for label, rule, changed, field in self.rng.sample(small, min(len(small), 70)):
            if isinstance(changed.get("model"), dict) and isinstance(changed["model"].get("vocab"), dict):
                changed["model"]["vocab"] = {**words, **changed["model"]["vocab"]} if "vocab" in label else words
            new = json.dumps(changed).encode()
            yield self.spoiled_file(source, label, rule, lambda _, new=new: new, "tokenizer", field)
        for label, _, spoil in byte_damages(self.rng, source.stat().st_size, flips=12, cuts=0, zeros=2):
            yield self.spoiled_file(source, label, "finite", spoil, "tokenizer")


class Adapters(Checkpoints):
    """DFN's and LoRA's."""

    name = "adapter"

    def prepare(self) -> None:
        from peft import LoraConfig, get_peft_model

        from modeling_mf2 import DFNConfig, MF2ForPreTraining

        made = {
            "dfn": DFNConfig(bottleneck=4, layers=3, pathways=["visual"]),
            "lora": LoraConfig(r=2, target_modules=["query", "value"]),
        }
        self.good: dict[str, Any] = {}
        for name, config in made.items():
            model = get_peft_model(MF2ForPreTraining.from_pretrained(self.model), config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.1 * torch.randn_like(parameter)
            model.save_pretrained(self.folder / name)
            self.good[name] = self.answer(self.folder / name).value
        assert self.good["dfn"] != self.good["lora"]

    def source(self) -> Path:
        return self.folder / "dfn"

    def load(self, load_model: Any, given: Path) -> Any:
        return load_model(self.model, given, device="cpu")

    def expected(self, case: Case) -> Any:
        return self.good[case.label.split()[0]]

    def cases(self) -> Iterator[Case]:
        for name, each in (("dfn", 4), ("lora", 2)):
            folder = self.folder / name
            weights = folder / "adapter_model.safetensors"
            found = [*self.spoiled_json(folder / "adapter_config.json", each), *self.spoiled_text(weights)]
            for label, what, spoil in byte_damages(self.rng, weights.stat().st_size, flips=6, cuts=4):
                found.append(self.spoiled_file(weights, label, "finite" if what == "flip" else "same", spoil))
            for case in found:
                yield Case(f"{name} {case.label}", case.make, case.rule, case.names)


class Weights(Checkpoints):
    name = "safetensors"

    def cases(self) -> Iterator[Case]:
        from safetensors.torch import load_file, save

        source, rng = self.model / "model.safetensors", self.rng
        content, tensors = source.read_bytes(), load_file(source)
        header = 8 + int.from_bytes(content[:8], "little")
        spoil_file = self.spoiled_file
        for label, _, spoil in byte_damages(rng, len(content), flips=30, cuts=0, zeros=0, end=header):
            yield spoil_file(source, f"header, {label}", "finite", spoil, "weights", "config.json")
        for label, what, spoil in byte_damages(rng, len(content), flips=10, cuts=12, zeros=3):
            yield spoil_file(source, label, "finite" if what == "flip" else "same", spoil)
        for size in (0, 1, header + 2**40, 2**63, len(content)):
            yield spoil_file(source, f"header of {size}", "same", lambda c, n=size: n.to_bytes(8, "little") + c[8:])
        for label, spoil in {name: TEXT_DAMAGES[name] for name in ("empty", "null", "binary", "half", "twice")}.items():
            yield spoil_file(source, label, "same", spoil)

        def changed(label: str, change: Callable[[dict], Any], *names: str, rule: str = "same") -> Case:
            def spoil(_: bytes) -> bytes:
                copy = {name: tensor.clone() for name, tensor in tensors.items()}
                change(copy)
                return save(copy, {"format": "pt"})

            return spoil_file(source, label, rule, spoil, *names)

        floats = [name for name in sorted(tensors) if tensors[name].is_floating_point()]
        for value in (float("nan"), float("inf"), float("-inf"), 1e30):
            for name in rng.sample(floats, 6):
                put = lambda copy, name=name, value=value: copy[name].view(-1)[:1].fill_(value)
                yield changed(f"{value} in {name}", put, name, rule="same" if value != 1e30 else "finite")
        for name in rng.sample(floats, 10):
            yield changed(f"without {name}", lambda copy, name=name: copy.pop(name), name)
            yield changed(f"{name} renamed", lambda copy, name=name: copy.update({f"{name}x": copy.pop(name)}), name)
            grow = lambda copy, name=name: copy.update({name: torch.cat([copy[name].reshape(-1)] * 2)})
            yield changed(f"{name} of another shape", grow, name)
            for dtype in rng.sample([torch.int32, torch.float64, torch.float8_e4m3fn, torch.bool, torch.complex64], 2):
                cast = lambda copy, name=name, dtype=dtype: copy.update({name: copy[name].to(dtype)})
                yield changed(f"{name} as {dtype}", cast, name, rule="finite")
        for part in ("classifiers", "mf2.vision", "mf2.au_vl", "mf2.emo_vl"):
            drop = lambda copy, part=part: [copy.pop(name) for name in list(copy) if name.startswith(part)]
            yield changed(f"without all of {part}", drop, part)
        yield changed("without anything", lambda copy: copy.clear(), "weights")
        yield changed("half of it", lambda copy: [copy.pop(name) for name in sorted(copy)[::2]], "weights", floats[0])
        yield changed("one more", lambda copy: copy.update(more=torch.zeros(3)), "more")
        yield self.replaced(source, "missing", lambda path: None)
        yield self.replaced(source, "a pickle", lambda path: torch.save(tensors, path.with_name("pytorch_model.bin")))


class Engines(Checkpoints):
    """A checkpoint with an exported file beside it."""

    name = "onnx"

    def prepare(self) -> None:
        from modeling_mf2 import MF2ForPreTraining
        from modeling_mf2.export import export_onnx

        export_onnx(MF2ForPreTraining.from_pretrained(self.model), self.model)
        os.environ["XDG_CACHE_HOME"] = str(self.folder / "cache")

    def load(self, load_model: Any, given: Path) -> Any:
        return load_model(given, device="cpu", engine="onnx")

    def cases(self) -> Iterator[Case]:
        source = self.model / "model.onnx"
        size = source.stat().st_size
        for label, what, spoil in byte_damages(self.rng, size, flips=30, cuts=12, zeros=6):
            yield self.spoiled_file(source, label, "finite" if what == "flip" else "same", spoil)
        place = source.read_bytes().find(b"mf2_version")
        for _ in range(12):
            at, bit = place + self.rng.randrange(300), 1 << self.rng.randrange(8)
            spoil = lambda content, at=at, bit=bit: inputs.flipped(content, [at], [bit])
            yield self.spoiled_file(source, f"facts, flip {at}", "finite", spoil)
        for label in ("empty", "null", "binary", "half", "twice"):
            yield self.spoiled_file(source, label, "same", TEXT_DAMAGES[label])
        yield self.replaced(source, "folder", lambda path: path.mkdir())
        yield self.replaced(source, "link to nothing", lambda path: path.symlink_to("nothing"))


class States(Kind):
    """A store of frozen states for DFN."""

    name = "DFN store"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        from peft import get_peft_model

        from mf2face.training.stores import frozen_states, store_identity
        from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis

        super().__init__(folder, rng)
        torch.manual_seed(0)
        model = get_peft_model(
            shake(MF2ForFaceAnalysis(tiny_config())), DFNConfig(bottleneck=4, layers=3, pathways=["visual"])
        )
        pixels = torch.randn(6, 3, 64, 64)
        points = torch.tensor(inputs.draw_example(0, seed=2, size=64)[1]).float()
        self.examples = [{"pixel_values": one, "landmarks": points} for one in pixels]
        self.model, self.store = model, folder / "store"
        self.identity = store_identity(model, 6, 1, "faces", None, "float32")
        frozen_states(model, self.examples, self.store, data="faces", dtype="float32", shard_rows=4)
        self.undamaged = self.answer(self.store).value

    def answer(self, given: Path) -> Answer:
        from mf2face.training.stores import frozen_states

        store = frozen_states(self.model, self.examples, given, data="faces", dtype="float32", shard_rows=4)
        return Answer({name: tensor.tolist() for name, tensor in store.batch(range(6)).items()}, [])

    def cases(self) -> Iterator[Case]:
        files = sorted(path for path in self.store.iterdir() if path.suffix == ".safetensors")
        yield from self.spoiled_json(self.store / "store.json", each=6)
        for source in files:
            size = source.stat().st_size
            for label, _, spoil in byte_damages(self.rng, size, flips=18, cuts=6, zeros=2):
                yield self.spoiled_file(source, label, "same", spoil)
            yield self.replaced(source, "missing", lambda path: None)
            for other in files:
                if other != source:
                    swap = other.read_bytes()
                    yield self.spoiled_file(source, f"is {other.name}", "same", lambda _, new=swap: new)


class VisionStores(Kind):
    """What the frozen tower sees, kept for a run."""

    name = "vision store"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        from configuration_mf2 import MF2Config
        from mf2face.data.examples import MF2Examples
        from mf2face.data.synthetic.faces import MFASynthetic
        from modeling_mf2.vision import MF2VisionTower
        from processing_mf2 import MF2Processor

        super().__init__(folder, rng)
        rows = MFASynthetic(6, size=64, cache_dir=folder / "faces")
        config = MF2Config.from_size("tiny")
        self.examples = MF2Examples(rows, MF2Processor.for_model(config), texts=False)
        torch.manual_seed(0)
        self.tower = MF2VisionTower(config.vision_config)
        self.undamaged = self.answer(folder / "root").value
        (self.store,) = [path for path in (folder / "root").iterdir() if path.is_dir()]

    def answer(self, given: Path) -> Answer:
        from mf2face.training.stores import load_or_store_vision

        root = given if given.name in ("root", "copied") else given.parent
        store = load_or_store_vision(self.tower, self.examples, root)
        return Answer([{name: tensor.tolist() for name, tensor in store[n].items()} for n in range(len(store))], [])

    def cases(self) -> Iterator[Case]:
        for source in sorted(self.store.iterdir()):
            for case in self._of(source):
                yield Case(case.label, self._renamed(case.make), case.rule, case.names)

    def _of(self, source: Path) -> Iterator[Case]:
        if source.suffix == ".json":
            yield from self.spoiled_json(source, each=8)
            return
        for label, _, spoil in byte_damages(self.rng, source.stat().st_size, flips=10, cuts=8, zeros=2):
            yield self.spoiled_file(source, label, "same", spoil)
        for label, _, spoil in byte_damages(self.rng, 128, flips=14, cuts=4, zeros=0):
            yield self.spoiled_file(source, f"header, {label}", "same", spoil)
        yield self.replaced(source, "missing", lambda path: None)
        yield self.spoiled_file(source, "twice", "same", TEXT_DAMAGES["twice"])

    def _renamed(self, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        return lambda scratch: make(scratch).rename(scratch / self.store.name)


class Journals(Kind):
    name = "caption journal"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        from mf2face.captions.journal import CaptionJournal
        from mf2face.captions.styles import Captions

        super().__init__(folder, rng)
        (folder / "good").mkdir()
        self.file = folder / "good" / "journal.jsonl"
        with CaptionJournal(self.file) as book:
            for row in range(6):
                number = book.open_request(0.5)
                texts = {"au_caption": f"ä lips part {row}", "emotion_caption": f"sad {row}"}
                book.add_captions(number, f"key{row}", Captions(f"r{row}", texts, "m"), 0.25)
            book.add_answer(book.open_request(0.5), "half", "{}", 0.125)
            book.name_batch(book.open_request(0.5, batch=4), "b1")
            asyncio.run(book.flushed())
        self.undamaged = self.answer(folder / "good").value

    def answer(self, given: Path) -> Answer:
        from mf2face.captions.journal import CaptionJournal

        with heard() as told, CaptionJournal(given / "journal.jsonl") as book:
            found = {key: vars(book.captions(key)) for key in list(book._places)}
            money = {"spent": book.spent, "unsure": book.unsure, "answers": book.answers, "requests": book.requests}
            return Answer({**found, **money, "batches": {n: str(b) for n, b in book.batches.items()}}, told)

    def cases(self) -> Iterator[Case]:
        content = self.file.read_bytes()
        for label, _, spoil in byte_damages(self.rng, len(content), flips=50, cuts=0, zeros=5):
            yield self.spoiled_file(self.file, label, "same", spoil, "journal")
        lines = content.splitlines(keepends=True)
        for _ in range(15):  # a kill may cut the last line, which then counts as not written
            size = len(content) - self.rng.randrange(1, len(lines[-1]))
            yield self.spoiled_file(self.file, f"last line cut at {size}", "finite", lambda c, n=size: c[:n])
        for number, line in enumerate(lines):
            for label, _, changed, _ in self.rng.sample(list(json_damages(self.rng, json.loads(line), 2)), 5):
                new = [*lines[:number], json.dumps(changed).encode() + b"\n", *lines[number + 1 :]]
                spoil = lambda _, new=b"".join(new): new
                yield self.spoiled_file(self.file, f"line {number + 1}, {label}", "same", spoil, "journal")
        for label, spoil in TEXT_DAMAGES.items():  # an empty file is a new journal
            yield self.spoiled_file(self.file, label, "finite" if label == "empty" else "same", spoil, "journal")
        yield self.replaced(self.file, "folder", lambda path: path.mkdir())
        yield self.replaced(self.file, "link to nothing", lambda path: path.symlink_to("/nothing/there"))


class LandmarkCaches(Kind):
    name = "landmark cache"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        self.images = folder / "images"
        self.images.mkdir()
        for index in range(6):
            inputs.face(index).save(self.images / f"{index}.png")
        self.undamaged = self.answer(self.images).value
        self.source = self.images / "mf2_landmarks.sqlite"

    def answer(self, given: Path) -> Answer:
        from test_landmark_cache import Template

        from mf2face.data.build.landmark_cache import LandmarkCache
        from processing_mf2.image_io import read_image

        with heard() as told, LandmarkCache(self.images, Template(), file=given / "mf2_landmarks.sqlite") as cache:
            names = [f"{index}.png" for index in range(6)]
            faces = cache.faces(names, [read_image(self.images / name) for name in names])
        return Answer([[face.landmarks.tolist(), face.confidence.tolist(), face.box.tolist()] for face in faces], told)

    def cases(self) -> Iterator[Case]:
        import sqlite3

        for label, _, spoil in byte_damages(self.rng, self.source.stat().st_size, flips=40, cuts=10, zeros=6):
            yield self.spoiled_file(self.source, label, "same", spoil)
        for label, _, spoil in byte_damages(self.rng, 100, flips=15, cuts=4, zeros=0):
            yield self.spoiled_file(self.source, f"header, {label}", "same", spoil)
        for label in ("text", "binary", "null"):
            yield self.spoiled_file(self.source, label, "same", TEXT_DAMAGES[label])

        def changed(query: str) -> Case:
            def spoil(content: bytes) -> bytes:
                with tempfile.NamedTemporaryFile() as file:
                    Path(file.name).write_bytes(content)
                    with contextlib.closing(sqlite3.connect(file.name)) as store, store:
                        store.execute(query)
                    return Path(file.name).read_bytes()

            return self.spoiled_file(self.source, query, "same", spoil, "landmark")

        for column in ("landmarks", "confidence", "box", "score", "stamp"):
            for value in ("NULL", "x'00'", "'text'", "zeroblob(544)", "zeroblob(7)", "3", "x'0000c07f'"):
                yield changed(f"UPDATE faces SET {column} = {value} WHERE image = '2.png'")
            yield changed(f"ALTER TABLE faces RENAME COLUMN {column} TO other")
        yield changed("ALTER TABLE faces RENAME TO others")
        yield changed("DELETE FROM faces WHERE image < '3.png'")


class Caches(Kind):
    """Drawn faces that are kept on the disk."""

    name = "dataset cache"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        self.undamaged = self.answer(folder / "cache").value
        (self.store,) = [path for path in (folder / "cache").iterdir() if path.is_dir()]

    def answer(self, given: Path) -> Answer:
        from mf2face.data.synthetic.faces import MFASynthetic

        root = given if given.name == "cache" else given.parent
        rows = MFASynthetic(3, size=64, cache_dir=root)
        return Answer([{**row, "image": list(row["image"].tobytes()[:3000])} for row in rows], [])

    def cases(self) -> Iterator[Case]:
        for source in sorted(self.store.iterdir()):
            found = [
                self.spoiled_file(source, label, "same", spoil)
                for label, spoil in TEXT_DAMAGES.items()
                if label in ("empty", "null", "half", "binary", "deep", "list", "number", "latin-1")
                and source.suffix != ".arrow"
            ]
            size = source.stat().st_size
            for label, _, spoil in byte_damages(self.rng, size, flips=6, cuts=4, zeros=1):
                found.append(self.spoiled_file(source, label, "same", spoil))
            found.append(self.replaced(source, "missing", lambda path: None))
            for case in found:
                yield Case(case.label, self._renamed(case.make), case.rule, case.names)

    _renamed = VisionStores._renamed


class Outputs(Kind):
    """An output that is continued."""

    name = "continued rows"

    def __init__(self, folder: Path, rng: random.Random) -> None:
        super().__init__(folder, rng)
        (folder / "in").mkdir()
        for index in range(4):
            inputs.face(index).save(folder / "in" / f"{index}.png")
        self.good = {}
        for ending in ("csv", "jsonl", "parquet"):
            (folder / ending).mkdir()
            self.good[ending] = self.answer(folder / ending).value
        assert self.good["csv"] == self.good["jsonl"] == self.good["parquet"] and len(self.good["csv"]) == 4

    def answer(self, given: Path) -> Answer:
        from mf2face import analyze

        ending = next(iter(path.name.split(".")[1] for path in given.iterdir()), given.name)
        out = given / f"rows.{ending}"
        summary = analyze(str(self.folder / "in"), out, model=face_model(), aligned=True)
        return Answer(self._read(out), [f"{name}: {why}" for name, why in summary.skipped])

    @staticmethod
    def _read(out: Path) -> Any:
        import pyarrow.parquet as pq

        if out.suffix == ".parquet":
            rows = pq.read_table(out).to_pylist()
        elif out.suffix == ".csv":
            rows = list(csv.DictReader(out.read_text().splitlines()))
        else:
            rows = [json.loads(line) for line in out.read_text().splitlines()]
        names = [name for name in rows[0] if name.startswith(("AU", "x_", "y_"))]
        found = [(os.path.basename(row["input"]), {name: _number(row[name]) for name in names}) for row in rows]
        return sorted(found, key=lambda row: row[0])

    def expected(self, case: Case) -> Any:
        return self.good[case.label.split(".")[1].split(":")[0]]

    def cases(self) -> Iterator[Case]:
        for ending in ("csv", "jsonl", "parquet"):
            source, about = (self.folder / ending / name for name in (f"rows.{ending}", f"rows.{ending}.about.json"))
            for label, what, spoil in byte_damages(self.rng, source.stat().st_size, flips=5, cuts=8, zeros=0):
                yield self.spoiled_file(source, label, "finite" if what == "flip" else "same", spoil)
            yield from self.spoiled_json(about, each=1)


def _number(value: Any) -> Any:
    with contextlib.suppress(ValueError):
        return float(value)
    return value


KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        *(Images, Arrays, Videos, LandmarkTables, OwnTables, ModelConfigs, ProcessorFiles, Adapters, Weights),
        *(Engines, States, VisionStores, Journals, LandmarkCaches, Caches, Outputs),
    )
}


class heard(logging.Handler):
    """Warnings while it lasts."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())

    def __enter__(self) -> list[str]:
        logging.getLogger().addHandler(self)
        return self.told

    def __exit__(self, *raised: object) -> None:
        logging.getLogger().removeHandler(self)


def is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(is_same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float) or isinstance(other, float):
        return isinstance(one, int | float) and isinstance(other, int | float) and abs(one - other) <= 2e-6
    return one == other


def is_named(message: str, names: tuple[str, ...]) -> bool:
    """A sentence about the file or the field, without the words of a library's own crash."""
    crash = ("Traceback (most", "OpenCV(", "Assertion failed")
    return any(name.lower() in message.lower() for name in names) and not any(word in message for word in crash)


def judge(kind: Kind, case: Case, given: Any) -> tuple[str, str]:
    """accepted, refused, unnamed or silent; and what was said."""
    try:
        found = kind.answer(given)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        is_ours = type(error).__module__.split(".")[0] in ROOMS
        allowed = isinstance(error, ValueError | OSError | TypeError | ImportError) or is_ours
        told = f"{type(error).__name__}: {error}"
        named = allowed and is_named(str(error), case.names)
        return ("silent" if case.rule == "accept" else "refused" if named else "unnamed"), told
    told, names = " | ".join(found.told), case.names
    if any(not is_named(each, (*names, "no face", "weights are damaged")) for each in found.told):
        return "unnamed", told
    if not is_finite(found.value):
        return "silent", f"not finite: {str(found.value)[:200]}"
    if case.rule == "refuse":
        return (
            ("refused", told) if told and not found.value else ("silent", f"accepted {str(found.value)[:200]} {told}")
        )
    if case.rule == "finite":
        return ("accepted" if not told else "refused" if found.told else "silent"), told
    expected = kind.expected(case)
    if expected is not None and is_same(found.value, expected):
        return "accepted", told
    if told and case.rule != "accept":
        return "refused", told
    return "silent", f"got {str(found.value)[:300]}, expected {str(expected)[:300]}"


def _megabytes(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def _work(pipe: Any, name: str, seed: int, start: int, only: str) -> None:
    """In a process of its own: every case from `start` on."""
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (12 * 2**30,) * 2)  # the machine is others' too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place)
        quiet = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        (folder / "good").mkdir()
        kind = KINDS[name](folder / "good", random.Random(f"{seed} {name}"))
        cases = list(kind.cases())
        pipe.send(len(cases))
        for number, case in enumerate(cases[start:], start):
            if only not in case.label:
                continue
            scratch = folder / "case"
            scratch.mkdir()
            given = case.make(scratch)
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
            before = _megabytes("VmRSS")
            pipe.send((number, case.label))
            begin = time.monotonic()
            verdict, told = judge(kind, case, given)
            pipe.send((verdict, told[:2000], _megabytes("VmHWM") - before, time.monotonic() - begin))
            del given
            shutil.rmtree(scratch)
        pipe.send(None)


@dataclass
class Result:
    kind: str
    label: str
    verdict: str
    told: str = ""
    megabytes: float = 0.0
    seconds: float = 0.0

    @property
    def is_bad(self) -> bool:
        return self.verdict not in ("accepted", "refused") or self.megabytes > MOST_MEGABYTES


def _answers_in_time(pipe: Any, process: int) -> bool:
    """Counted in seconds of a CPU, or of waiting: others may use the machine too."""

    def used() -> float:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    try:
        first = before = used()
        for _ in range(10):
            if pipe.poll(MOST_SECONDS):
                return True
            now = used()
            if now - first > MOST_SECONDS or now - before < 1:
                return False
            before = now
    except OSError:  # it died, which the pipe tells
        return True
    return False


def fuzz(name: str, seed: int, only: str = "", tell: Callable[[Result], Any] | None = None) -> list[Result]:
    context, results, start = multiprocessing.get_context("forkserver"), [], 0
    context.set_forkserver_preload([*HEAVY, __name__])
    while True:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(theirs, name, seed, start, only), daemon=True)
        worker.start()
        theirs.close()
        label = None
        try:
            if not ours.poll(300):
                raise TimeoutError(f"{name}: the undamaged inputs took more than 300 seconds")
            ours.recv()
            while True:
                if not _answers_in_time(ours, worker.pid):
                    results.append(Result(name, label or "?", "hang", seconds=MOST_SECONDS))
                    if tell is not None:
                        tell(results[-1])
                    break
                message = ours.recv()
                if message is None:
                    worker.join(60)
                    return results
                if len(message) == 2:
                    start, label = message[0] + 1, message[1]
                else:
                    results.append(Result(name, label, *message))
                    label = None
                    if tell is not None:
                        tell(results[-1])
        except EOFError:
            worker.join(10)
            if label is None:
                raise RuntimeError(f"{name}: the process died before or between inputs ({worker.exitcode})") from None
            results.append(Result(name, label, "unnamed", f"the process died ({worker.exitcode})"))
            if tell is not None:
                tell(results[-1])
        finally:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
            worker.join(10)


def table(results: list[Result]) -> str:
    heads = (
        "inputs",
        "accepted",
        "refused",
        "silent",
        "unnamed",
        "hang",
        "over 600 MB",
        "peak MB",
        "slowest s",
        "sum s",
    )
    lines = [f"{'kind':<22}" + "".join(f"{head:>12}" for head in heads)]
    for name in [*dict.fromkeys(result.kind for result in results), "all"]:
        of = [result for result in results if name in ("all", result.kind)]
        count = Counter(result.verdict for result in of)
        numbers = [len(of), *(count[verdict] for verdict in ("accepted", "refused", "silent", "unnamed", "hang"))]
        numbers += [sum(result.megabytes > MOST_MEGABYTES for result in of), round(max(r.megabytes for r in of))]
        numbers += [round(max(result.seconds for result in of), 1), round(sum(result.seconds for result in of))]
        lines.append(f"{name:<22}" + "".join(f"{number:>12}" for number in numbers))
    return "\n".join(lines)


def report(results: list[Result]) -> str:
    return "\n".join(
        f"{one.verdict} {one.kind} [{one.label}] {one.megabytes:.0f} MB, {one.seconds:.1f} s: {one.told[:400]}"
        for one in results
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_damaged_inputs_are_refused_by_name_or_answered_rightly(capfd: pytest.CaptureFixture[str]) -> None:
    results = [result for name in KINDS for result in fuzz(name, seed=1)]
    with capfd.disabled():
        print(f"\n{table(results)}", file=sys.stderr)
    assert len(results) >= LEAST_INPUTS
    bad = [result for result in results if result.is_bad]
    assert not bad, report(bad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", default="", help="only cases whose label holds this")
    parser.add_argument("--all", action="store_true", help="a line for each input, not only for what went wrong")
    given = parser.parse_args()
    results = []
    for name in given.kind or KINDS:

        def tell(one: Result) -> None:
            if one.is_bad or given.all:
                print(report([one]), flush=True)

        results += fuzz(name, given.seed, given.case, tell)
        print(table(results), flush=True)
    return any(result.is_bad for result in results)


if __name__ == "__main__":
    sys.exit(main())
