# ruff: noqa: E731
"""Damaged images, videos and tables, for `test_fuzz.py`. A kind writes its undamaged inputs into `folder`."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fuzz_inputs import (
    UNDAMAGED,
    Answer,
    Case,
    Damage,
    Kind,
    byte_damages,
    csv_damages,
    csv_text,
    damaged,
    encoded,
    face,
    odd_damages,
    overwritten,
    undamaged,
)
from PIL import Image

from mf2face.data.synthetic.faces import draw_example


ROOT = Path(__file__).resolve().parent.parent


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True


ANYTHING = _Anything()


def face_model() -> Any:
    from analysis_media import embedded

    return embedded()


def analyzed(source: Path, model: Any, **options: Any) -> Answer:
    """The numbers that a person reads, in order; a row without a face counts as a reason."""
    from mf2face import analyze

    summary = analyze(str(source), model=model, **options)
    reasons = [f"{name}: {why}" for name, why in summary.skipped]
    # A given or an aligned face has no pose.
    left_out = {"input", "frame", "time_s", "face_id", "FaceScore", "landmark_source", "Pitch", "Roll", "Yaw"}
    found = [row for row in summary.rows if not math.isnan(float(row["face_id"]))]
    reasons += [f"{row['input']}: no face" for row in summary.rows if math.isnan(float(row["face_id"]))]
    return Answer([{name: row[name] for name in row.keys() - left_out} for row in found], reasons)


def with_source(folder: Path, name: str, content: bytes | None = None) -> Path:
    """A path in a folder of its own, which a case copies."""
    source = folder / "good" / name / name
    source.parent.mkdir(parents=True)
    if content is not None:
        source.write_bytes(content)
    return source


def image_files() -> dict[str, bytes]:
    """One drawn face in the formats and modes that people have; by file name."""
    plain, clear, turned = face(), face(), Image.Exif()
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 96).astype(np.uint8), (96, 1))))
    turned[0x0112] = 6
    grey = plain.convert("L")
    shorts = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        **{"plain.jpg": (plain, {}), "grey.jpg": (grey, {}), "progressive.jpg": (plain, {"progressive": True})},
        **{"exif.jpg": (plain, {"exif": turned}), "cmyk.jpg": (plain.convert("CMYK"), {})},
        **{"plain.png": (plain, {}), "grey.png": (grey, {}), "bits.png": (plain.convert("1"), {})},
        **{"clear_palette.png": (plain.quantize(64), {"transparency": 3}), "clear.png": (clear, {})},
        **{"clear_grey.png": (clear.convert("LA"), {}), "shorts.png": (shorts, {}), "shorts.tif": (shorts, {})},
        **{"lossy.webp": (plain, {}), "moving.webp": (plain, {"save_all": True, "append_images": [face(1)]})},
        **{"lossless.webp": (clear, {"lossless": True}), "plain.gif": (plain, {}), "plain.bmp": (plain, {})},
        **{"plain.tif": (plain, {}), "lzw.tif": (clear, {"compression": "tiff_lzw"})},
        **{"jpeg.tiff": (plain, {"compression": "jpeg"})},
        "float.tif": (Image.fromarray(np.asarray(grey, np.float32)), {}),
        "lab.tif": (Image.fromarray(np.full((96, 96, 3), 120, np.uint8), "LAB"), {}),
    }
    kinds = {"jpg": "JPEG", "tif": "TIFF", "tiff": "TIFF"}
    return {
        name: encoded(image, kinds.get(ending := name.split(".")[1], ending.upper()), **options)
        for name, (image, options) in made.items()
    }


def write_drawn_video(path: Path, codec: str, count: int = 12, size: tuple[int, int] = (96, 96)) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, size)
    for index in range(count):
        writer.write(cv2.resize(draw_example(index, seed=2)[0][..., ::-1], size))
    writer.release()
    return path


def images(folder: Path, rng: random.Random) -> Kind:
    answer = lambda path: analyzed(path, face_model(), aligned=True)

    def cases() -> Iterator[Case]:
        for name, content in image_files().items():
            source = with_source(folder, name, content)
            expected = undamaged(answer, source)
            header = byte_damages(rng, len(content), flips=4, cuts=0, zeros=0, end=64)
            damages = [UNDAMAGED, *byte_damages(rng, len(content), flips=5, cuts=4, zeros=1), *header]
            yield from damaged(source, damages, expected=expected)
            other = source.stem + (".png" if source.suffix != ".png" else ".gif")
            yield Case(f"{name} as {other}", partial(_write, other, content), "same", (other,), expected)
        yield from damaged(with_source(folder, "odd.png", b""), odd_damages(image="finite"), "no image or video")

    return answer, cases()


def _write(name: str, content: bytes, folder: Path) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def videos(folder: Path, rng: random.Random) -> Kind:
    answer = lambda path: analyzed(path, face_model(), aligned=True)

    def cases() -> Iterator[Case]:
        for name, codec in {"a.avi": "MJPG", "b.mp4": "mp4v", "c.mkv": "MJPG", "d.avi": "XVID"}.items():
            source = write_drawn_video(with_source(folder, name), codec)
            expected, content = undamaged(answer, source), source.read_bytes()
            assert len(expected) == 12, name
            damages = [UNDAMAGED, *byte_damages(rng, len(content), flips=10, cuts=12, zeros=4)]
            header = len(content) - 700 if name.endswith("mp4") else 0
            numbers = (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x80\x00", b"\xff\x7f\0\0")
            for _ in range(12):
                place = header + rng.randrange(650)
                new = overwritten(content, place, rng.choice(numbers))
                damages.append(Damage(f"number at {place}", "finite", new))
            for side in (60_000, 16_000):
                new = content.replace((96).to_bytes(4, "little"), side.to_bytes(4, "little"))
                damages.append(Damage(f"sides of {side}", "finite", new))
            yield from damaged(source, damages, expected=expected)
        big = lambda scratch: write_drawn_video(scratch / "big.avi", "MJPG", 6, (6000, 6000))
        yield Case("big frames", big, "finite", ("big.avi",))
        yield from damaged(with_source(folder, "odd.mp4", b""), odd_damages(image="finite"), "no image or video")

    return answer, cases()


def landmark_tables(folder: Path, rng: random.Random) -> Kind:
    answer = lambda path: analyzed(folder / "in", face_model(), landmarks=path)

    def cases() -> Iterator[Case]:
        (folder / "in").mkdir()
        columns, rows = ["input", "frame", *(f"{axis}_{point}" for axis in "xy" for point in range(68))], []
        for index in range(3):
            face(index).save(folder / "in" / f"{index}.png")
            points = np.array(draw_example(index, seed=2, size=96)[1]).round(2)
            rows.append([f"{index}.png", "0", *map(str, points.T.ravel().tolist())])
        good = csv_text(columns, rows)
        source = with_source(folder, "faces.csv", good)
        expected = undamaged(answer, source)
        wrong = ("nan", "inf", "-inf", "", "abc", "1e400", "0x10", "None", "1,5", '"', "1;5", "NaN", "--5", "1e", " ")
        odd = ("-5", "1e9", "1e38", "0", "5.", "١٢", "1_0")
        frames = ("-1", "1.5", "nan", "inf", "1e400", "abc", "7", "-0", "1e30")
        names = ("", "nothing.png", "../0.png", "\udcff.png", "1.png", "x" * 5000, "0.png\0")
        cells = [(rng.randrange(2, 138), text, "same") for text in wrong * 2]
        cells += [(rng.randrange(2, 138), text, "finite") for text in odd]
        cells += [(1, text, "same") for text in frames] + [(0, text, "same") for text in names]
        damages = [*csv_damages(rng, columns, rows, cells, [0, 1, *rng.sample(range(2, 138), 4)]), *odd_damages()]
        damages += [Damage("capitals", "same", good.replace(b"x_", b"X_"))]
        damages += byte_damages(rng, len(good), flips=25, cuts=0, zeros=3)
        damages = [dataclasses.replace(one, rule="finite") if one.label == "rows twice" else one for one in damages]
        yield from damaged(source, damages, "landmarks", expected=expected)

    return answer, cases()


def own_tables(folder: Path, rng: random.Random) -> Kind:
    """The data set builder on one's own pictures; what it builds is compared with a plain reading of the table."""
    import pyarrow.parquet as pq

    from configuration_mf2.facs import EMOTIONS

    spec = importlib.util.spec_from_file_location("build_dataset", ROOT / "examples" / "build_dataset.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    known = {**{name.lower(): code for code, name in enumerate(EMOTIONS)}, "": -1, "-1": -1}
    known |= {"happy": known["happiness"], "joy": known["happiness"]}
    splits = {"": "train", "val": "validation", "valid": "validation"}

    def answer(path: Path) -> Answer:
        out = path.parent.parent / f"out-{time.monotonic_ns()}"
        options = "--require any --no-balance --landmarks template --crop_size 32 --workers 1 --near tell".split()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = script.main(["own", str(path.parent), str(out), *options])
            except SystemExit as error:
                raise ValueError(f"{error.code} {said.getvalue()}") from error
        if isinstance(code, int) and code:
            raise ValueError(f"{code} {said.getvalue()}")
        rows = [row for file in sorted((out / "data").iterdir()) for row in pq.read_table(file).to_pylist()]
        found = {
            row["video"]: [row["emotion"], row["au_labels"][0], row["au_labels"][6], row["subject"], row["split"]]
            for row in rows
        }
        reasons = [line for line in said.getvalue().splitlines() if re.match(r"[1-9]\d* images were left out", line)]
        return Answer(found, [f"labels.csv: {line}" for line in reasons])

    def plain_reading(content: bytes) -> Any:
        """What a person reads in the table; None if nobody can."""
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, csv.Error):
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

    def cases() -> Iterator[Case]:
        columns, rows = ["image", "emotion", "AU1", "AU12", "subject", "split"], []
        emotions = ("Happiness", "Fear", "", "Anger", "Neutral", "Sadness", "Surprise", "Disgust")
        source = with_source(folder, "labels.csv")
        for index, emotion in enumerate(emotions):
            face(index, 64).save(source.parent / f"{index}.png")
            split = "train" if index < 5 else "validation" if index < 7 else "test"
            rows.append([f"{index}.png", emotion, str(index % 2), "01 "[index % 3].strip(), f"p{index}", split])
        good = csv_text(columns, rows)
        source.write_bytes(good)
        texts = ("", "-1", "2", "0.5", "nan", "Joy", "happy", "Contempt", "x", "true", "1e9", '"', "a,b", "\0", "é")
        cells = [(n, text, "same") for n in range(6) for text in rng.sample((*texts, "test", "0.png"), 9)]
        damages = [*csv_damages(rng, columns, rows, cells, range(6))]
        damages += byte_damages(rng, len(good), flips=14, cuts=14, zeros=1, rule="same")
        pictures = {"an absolute path": b"/etc/passwd", "a path above": b"../labels.csv/3.png", "no such": b"33.png"}
        pictures["an address"] = b"http://127.0.0.1/3.png"
        damages += [Damage(label, "same", good.replace(b"3.png", new)) for label, new in pictures.items()]
        damages += [Damage(f"fields {new}", "same", good.replace(b"p3,", new)) for new in (b"p3,p3", b"")]
        named = ("3.png", "split")
        for damage in damages:
            yield from damaged(source, [damage], *named, expected=plain_reading(damage.of(good)))
        picture = source.with_name("3.png")
        for damage in byte_damages(rng, picture.stat().st_size, flips=2, cuts=6, zeros=0):
            damage = dataclasses.replace(damage, rule="same")  # labels stay, whatever becomes of the pixels
            yield from damaged(picture, [damage], "labels.csv", *named, expected=plain_reading(good))

    return answer, cases()


MEDIA: dict[str, Callable[[Path, random.Random], Kind]] = {
    **{"images": images, "videos": videos, "landmark csv": landmark_tables, "own csv": own_tables},
}
