# ruff: noqa: E731
"""The kinds of input of `test_fuzz.py`: how a user's path answers one, and its damaged inputs.

A kind writes its undamaged inputs into `folder` and returns `answer` and its cases.
"""

import asyncio
import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import logging
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fuzz_inputs as inputs
import numpy as np
import torch
from conftest import shake, tiny_config
from fuzz_inputs import (
    BINARY_TEXTS,
    UNDAMAGED,
    Case,
    Damage,
    byte_damages,
    csv_damages,
    damaged,
    flipped,
    json_damages,
    json_file_damages,
    odd_damages,
    overwritten,
    text_damages,
    text_file_damages,
)


ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Answer:
    """reasons: every reason given for what is left out or odd."""

    value: Any
    reasons: list[str] = dataclasses.field(default_factory=list)


class _Anything:
    def __eq__(self, other: object) -> bool:
        return True


ANYTHING = _Anything()
Kind = tuple[Callable[[Any], Answer], Iterator[Case]]


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
    (folder / "good" / name).mkdir(parents=True)
    source = folder / "good" / name / name
    if content is not None:
        source.write_bytes(content)
    return source


def undamaged(answer: Callable[[Any], Answer], given: Any) -> Any:
    found = answer(given)
    assert found.value and not found.reasons, found
    return found.value


def images(folder: Path, rng: random.Random) -> Kind:
    answer = lambda path: analyzed(path, face_model(), aligned=True)

    def cases() -> Iterator[Case]:
        for name, content in inputs.image_files().items():
            source = with_source(folder, name, content)
            expected = undamaged(answer, source)
            header = byte_damages(rng, len(content), flips=4, cuts=0, zeros=0, end=64)
            damages = [UNDAMAGED, *byte_damages(rng, len(content), flips=5, cuts=4, zeros=1), *header]
            yield from damaged(source, damages, expected=expected)
            other = source.stem + (".png" if source.suffix != ".png" else ".gif")
            yield Case(f"{name} as {other}", partial(_write, other, content), "same", (other,), expected)
        for name, make in inputs.huge_images().items():
            yield Case(f"huge {name}", lambda scratch, n=name, m=make: _write(n, m(), scratch), "finite", (name,))
        for name, content in inputs.odd_sizes().items():
            yield Case(f"size {name}", partial(_write, name, content), "finite", (name,))
        for name, content in inputs.foreign_images().items():
            rule = "same" if name in ("postscript.jpg", "pdf.png", "page.png", "text.jpg") else "finite"
            yield Case(f"foreign {name}", partial(_write, name, content), rule, (name,))
        yield from damaged(with_source(folder, "odd.png", b""), odd_damages(image="finite"), "no image or video")

    return answer, cases()


def _write(name: str, content: bytes, folder: Path) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def arrays(folder: Path, rng: random.Random) -> Kind:
    """Pixels and landmarks that a program passes."""
    pixels, points = np.array(inputs.face()), np.array(inputs.draw_example(0, seed=2, size=96)[1], np.float64)

    def answer(given: dict[str, Any]) -> Answer:
        (faces,) = face_model().pipeline([given], landmark_source="template")
        return Answer([{name: face[name] for name in ("action_units", "emotions")} for face in faces])

    def case(label: str, rule: str = "finite", expected: Any = None, **given: Any) -> Case:
        names = ("image", "inputs") if given.get("landmarks") is None else ("landmarks",)
        given = {"image": pixels, "landmarks": None, **given}
        return Case(label, lambda _: given, rule, names, expected)

    def cases() -> Iterator[Case]:
        expected = undamaged(answer, {"image": pixels, "landmarks": points})
        yield case("undamaged", "accept", expected, landmarks=points)
        odd = [np.nan, np.inf, -np.inf, -1, 256, 1e38, -1e-3]
        kinds = "uint8 int8 uint16 int16 int32 int64 uint64 float16 float32 float64 bool complex64 object U8 >f4"
        shapes = [(96, 96), (96, 96, 3), (3, 96, 96), (96, 96, 4), (96, 96, 2), (1, 96, 96), (96, 96, 5), (0, 96, 3)]
        shapes += [(96,), (), (2, 96, 96, 3), (96, 0, 3), (16, 16, 3), (15, 40, 3), (4, 4, 4), (1, 1, 1)]
        for kind in kinds.split():
            for shape in rng.sample(shapes, 6):
                yield case(f"image {kind} {shape}", image=np.resize(pixels, shape).astype(kind))
        for value in odd:
            for kind in ("float16", "float32", "float64"):
                spoiled = (pixels / 255).astype(kind)
                with np.errstate(over="ignore"):
                    spoiled[rng.randrange(96), rng.randrange(96), rng.randrange(3)] = value
                yield case(f"image with {value} of {kind}", image=spoiled)
            yield case(f"tensor of {value}", image=torch.full((3, 96, 96), float(value)))
        values = (None, 3, "", "nothing.png", b"", b"\x89PNG\r\n\x1a\n", {}, {"bytes": None, "path": None}, [], object)
        for one in values:
            yield case(f"image {one!r}"[:40], image=one)
        for one in (torch.zeros(3, 96, 96).to_sparse(), torch.zeros(3, 96, 96, device="meta")):
            yield case(f"image {one.layout} {one.device}", image=one)
        yield case("image strided", image=pixels[::-1, ::2])
        yield case("image float8", image=torch.zeros(3, 96, 96).to(torch.float8_e4m3fn))
        yield case("image read-only", image=np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape))
        for value in (*odd, 1e300):
            spoiled = points.copy()
            spoiled[rng.randrange(68), rng.randrange(2)] = value
            yield case(f"landmarks with {value}", landmarks=spoiled)
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
            yield case(f"landmarks {label}", landmarks=wrong)

    return answer, cases()


def videos(folder: Path, rng: random.Random) -> Kind:
    answer = lambda path: analyzed(path, face_model(), aligned=True)

    def cases() -> Iterator[Case]:
        for name, codec in {"a.avi": "MJPG", "b.mp4": "mp4v", "c.mkv": "MJPG", "d.avi": "XVID"}.items():
            source = inputs.write_drawn_video(with_source(folder, name), codec)
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
        big = lambda scratch: inputs.write_drawn_video(scratch / "big.avi", "MJPG", 6, (6000, 6000))
        yield Case("big frames", big, "finite", ("big.avi",))
        yield from damaged(with_source(folder, "odd.mp4", b""), odd_damages(image="finite"), "no image or video")

    return answer, cases()


def landmark_tables(folder: Path, rng: random.Random) -> Kind:
    answer = lambda path: analyzed(folder / "in", face_model(), landmarks=path)

    def cases() -> Iterator[Case]:
        (folder / "in").mkdir()
        columns, rows = ["input", "frame", *(f"{axis}_{point}" for axis in "xy" for point in range(68))], []
        for index in range(3):
            inputs.face(index).save(folder / "in" / f"{index}.png")
            points = np.array(inputs.draw_example(index, seed=2, size=96)[1]).round(2)
            rows.append([f"{index}.png", "0", *map(str, points.T.ravel().tolist())])
        good = inputs.csv_text(columns, rows)
        source = with_source(folder, "faces.csv", good)
        expected = undamaged(answer, source)
        wrong = ("nan", "inf", "-inf", "", "abc", "1e400", "0x10", "None", "1,5", '"', "1;5", "NaN", "--5", "1e", " ")
        odd = ("-5", "1e9", "1e38", "0", "5.", "١٢", "1_0")
        frames = ("-1", "1.5", "nan", "inf", "1e400", "abc", "7", "-0", "1e30")
        names = ("", "nothing.png", "../0.png", "\udcff.png", "1.png", "x" * 5000, "0.png\0")
        cells = [(rng.randrange(2, 138), text, "same") for text in (*wrong, *wrong)]
        cells += [(rng.randrange(2, 138), text, "finite") for text in odd]
        cells += [(1, text, "same") for text in frames] + [(0, text, "same") for text in names]
        for damage in csv_damages(rng, columns, rows, cells, [0, 1, *rng.sample(range(2, 138), 4)]):
            rule = "finite" if damage.label == "rows twice" else damage.rule
            yield from damaged(source, [dataclasses.replace(damage, rule=rule)], "landmarks", expected=expected)
        more = [Damage("capitals", "same", good.replace(b"x_", b"X_")), *odd_damages()]
        more += byte_damages(rng, len(good), flips=25, cuts=0, zeros=3)
        yield from damaged(source, more, "landmarks", expected=expected)

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
            inputs.face(index, 64).save(source.parent / f"{index}.png")
            split = "train" if index < 5 else "validation" if index < 7 else "test"
            rows.append([f"{index}.png", emotion, str(index % 2), "01 "[index % 3].strip(), f"p{index}", split])
        good = inputs.csv_text(columns, rows)
        source.write_bytes(good)
        texts = ("", "-1", "2", "0.5", "nan", "Joy", "happy", "Contempt", "x", "true", "1e9", '"', "a,b", "\0", "é")
        cells = [(n, text, "same") for n in range(6) for text in rng.sample((*texts, "test", "0.png"), 9)]
        damages = [*csv_damages(rng, columns, rows, cells, range(6))]
        damages += byte_damages(rng, len(good), flips=14, cuts=14, zeros=1, rule="same")
        for label, new in {
            **{"a field too many": b"p3,p3", "a field too few": b"", "an absolute path": b"/etc/passwd"},
            **{
                "a path above": b"../labels.csv/3.png",
                "an address": b"http://127.0.0.1/3.png",
                "no such picture": b"33.png",
            },
        }.items():
            damages.append(Damage(label, "same", good.replace(b"p3," if "field" in label else b"3.png", new)))
        named = ("3.png", "split")
        for damage in damages:
            yield from damaged(source, [damage], *named, expected=plain_reading(damage.of(good)))
        picture = source.with_name("3.png")
        for damage in byte_damages(rng, picture.stat().st_size, flips=2, cuts=6, zeros=0):
            damage = dataclasses.replace(damage, rule="same")  # labels stay, whatever becomes of the pixels
            yield from damaged(picture, [damage], "labels.csv", *named, expected=plain_reading(good))

    return answer, cases()


def checkpoint(folder: Path) -> Path:
    """A small checkpoint with real texts, and a picture beside it."""
    from modeling_mf2 import MF2ForPreTraining
    from processing_mf2 import MF2Processor, build_tokenizer

    tokenizer, model = build_tokenizer(), folder / "model"
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192, "num_hidden_layers": 2}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169, au_thresholds=[0.4, 0.5, 0.6])
    MF2Processor.for_model(config, tokenizer).save_pretrained(model)
    shake(MF2ForPreTraining(config)).save_pretrained(model)
    inputs.face().save(folder / "face.png")
    return model


def analyzed_with(folder: Path, *loaded: Path, **options: Any) -> Answer:
    from mf2face.inference.model import load_model

    return analyzed(folder / "face.png", load_model(*loaded, device="cpu", **options), aligned=True)


def model_configs(folder: Path, rng: random.Random) -> Kind:
    source = checkpoint(folder) / "config.json"
    answer = lambda path: analyzed_with(folder, path.parent)
    return answer, damaged(source, json_file_damages(rng, source, each=4), expected=undamaged(answer, source))


def processor_files(folder: Path, rng: random.Random) -> Kind:
    from modeling_mf2 import MF2ForPreTraining
    from processing_mf2 import MF2Processor
    from processing_mf2.pipelines import face_pipeline

    model = checkpoint(folder)
    network = MF2ForPreTraining.from_pretrained(model).eval()

    def answer(path: Path) -> Answer:
        processor = MF2Processor.from_pretrained(path.parent)
        pipeline = face_pipeline("face-analysis", network, processor, device="cpu")
        (faces,) = pipeline([str(folder / "face.png")])
        sentence = "The inner brows are raised, and the lips part: surprise!"
        ids = processor(text=[sentence], key_au_captions=[sentence])
        written = processor.tokenizer.decode(ids["input_ids"][0])
        numbers = {name: value.tolist() for name, value in ids.items()}
        return Answer([*({n: f[n] for n in ("action_units", "emotions")} for f in faces), numbers, written])

    def tokenizer_damages(source: Path) -> Iterator[Damage]:
        yield from text_file_damages(rng, source)
        yield from byte_damages(rng, source.stat().st_size, flips=12, cuts=0, zeros=2)
        content = json.loads(source.read_text())
        words = content["model"]["vocab"]
        content["model"]["vocab"] = dict(list(words.items())[:3])  # its fields, not its words
        small = list(json_damages(rng, content, 1))
        for damage in rng.sample(small, min(len(small), 70)):
            changed = json.loads(damage.of(b""))
            if isinstance(changed.get("model"), dict) and isinstance(changed["model"].get("vocab"), dict):
                changed["model"]["vocab"] = {**words, **(changed["model"]["vocab"] if "vocab" in damage.label else {})}
            yield dataclasses.replace(damage, content=json.dumps(changed).encode())

    def cases() -> Iterator[Case]:
        for name in ("processor_config.json", "tokenizer_config.json"):
            source = model / name
            expected = undamaged(answer, source)
            yield from damaged(source, json_file_damages(rng, source, each=5), "processor", expected=expected)
        source = model / "tokenizer.json"
        yield from damaged(source, tokenizer_damages(source), "processor", "tokenizer", expected=expected)

    return answer, cases()


def adapters(folder: Path, rng: random.Random) -> Kind:
    """DFN's and LoRA's."""
    from peft import LoraConfig, get_peft_model

    from modeling_mf2 import DFNConfig, MF2ForPreTraining

    model = checkpoint(folder)
    answer = lambda path: analyzed_with(folder, model, path.parent)
    configs = {
        "dfn": (DFNConfig(bottleneck=4, layers=3, pathways=["visual"]), 4),
        "lora": (LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), 2),
    }

    def cases() -> Iterator[Case]:
        for name, (config, each) in configs.items():
            adapted = get_peft_model(MF2ForPreTraining.from_pretrained(model), config)
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.1 * torch.randn_like(parameter)
            adapted.save_pretrained(folder / name)
            source, weights = (folder / name / file for file in ("adapter_config.json", "adapter_model.safetensors"))
            expected = undamaged(answer, source)
            yield from damaged(source, json_file_damages(rng, source, each), expected=expected, prefix=f"{name} ")
            damages = [*text_damages(*BINARY_TEXTS), *odd_damages("missing", "folder", "link to nothing")]
            damages += byte_damages(rng, weights.stat().st_size, flips=6, cuts=9)
            yield from damaged(weights, damages, expected=expected, prefix=f"{name} ")

    return answer, cases()


def weights(folder: Path, rng: random.Random) -> Kind:
    from safetensors.torch import load_file, save

    source = checkpoint(folder) / "model.safetensors"
    answer = lambda path: analyzed_with(folder, path.parent)
    content, tensors = source.read_bytes(), load_file(source)
    floats = [name for name in sorted(tensors) if tensors[name].is_floating_point()]

    def changed(label: str, change: Callable[[dict], Any], field: str, rule: str = "same") -> Damage:
        def content(_: bytes) -> bytes:
            copy = {name: tensor.clone() for name, tensor in tensors.items()}
            change(copy)
            return save(copy, {"format": "pt"})

        return Damage(label, rule, content, field=field)

    def damages() -> Iterator[Damage]:
        header = 8 + int.from_bytes(content[:8], "little")
        yield UNDAMAGED
        yield from byte_damages(rng, len(content), flips=30, cuts=0, zeros=0, end=header)
        yield from byte_damages(rng, len(content), flips=10, cuts=12, zeros=3)
        yield from text_damages(*BINARY_TEXTS)
        for size in (0, 1, header + 2**40, 2**63, len(content)):
            yield Damage(f"header of {size}", "same", size.to_bytes(8, "little") + content[8:])
        for value in (math.nan, math.inf, -math.inf, 1e30):
            for name in rng.sample(floats, 6):
                put = lambda copy, name=name, value=value: copy[name].view(-1)[:1].fill_(value)
                yield changed(f"{value} in {name}", put, name, "same" if value != 1e30 else "finite")
        for name in rng.sample(floats, 10):
            yield changed(f"without {name}", lambda copy, name=name: copy.pop(name), name)
            yield changed(f"{name} renamed", lambda copy, name=name: copy.update({f"{name}x": copy.pop(name)}), name)
            grow = lambda copy, name=name: copy.update({name: torch.cat([copy[name].reshape(-1)] * 2)})
            yield changed(f"{name} of another shape", grow, name)
            for dtype in rng.sample([torch.int32, torch.float64, torch.float8_e4m3fn, torch.bool, torch.complex64], 2):
                cast = lambda copy, name=name, dtype=dtype: copy.update({name: copy[name].to(dtype)})
                yield changed(f"{name} as {dtype}", cast, name, "finite")
        for part in ("classifiers", "mf2.vision", "mf2.au_vl", "mf2.emo_vl"):
            drop = lambda copy, part=part: [copy.pop(name) for name in list(copy) if name.startswith(part)]
            yield changed(f"without all of {part}", drop, part)
        yield changed("without anything", lambda copy: copy.clear(), "weights")
        yield changed("half of it", lambda copy: [copy.pop(name) for name in sorted(copy)[::2]], floats[0])
        yield changed("one more", lambda copy: copy.update(more=torch.zeros(3)), "more")
        yield from odd_damages("missing")
        pickle = lambda path: torch.save(tensors, path.with_name("pytorch_model.bin"))
        yield Damage("a pickle", "same", put=pickle)

    return answer, damaged(source, damages(), "weights", "config.json", expected=undamaged(answer, source))


def engines(folder: Path, rng: random.Random) -> Kind:
    """A checkpoint with an exported file beside it."""
    from modeling_mf2 import MF2ForPreTraining
    from modeling_mf2.export import export_onnx

    model = checkpoint(folder)
    source = model / "model.onnx"
    export_onnx(MF2ForPreTraining.from_pretrained(model), model)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    answer = lambda path: analyzed_with(folder, path.parent, engine="onnx")

    def damages() -> Iterator[Damage]:
        yield UNDAMAGED
        yield from byte_damages(rng, source.stat().st_size, flips=30, cuts=12, zeros=6)
        start = source.read_bytes().find(b"mf2_version")
        for place in rng.sample(range(start, start + 300), 12):
            flip = flipped(source.read_bytes(), [place], [1 << rng.randrange(8)])
            yield Damage(f"facts, flip {place}", "finite", flip)
        yield from text_damages(*BINARY_TEXTS)
        yield from odd_damages("folder", "link to nothing")

    return answer, damaged(source, damages(), expected=undamaged(answer, source))


def dfn_stores(folder: Path, rng: random.Random) -> Kind:
    """Frozen states for DFN."""
    from peft import get_peft_model

    from mf2face.training.stores import frozen_states
    from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis

    torch.manual_seed(0)
    base = shake(MF2ForFaceAnalysis(tiny_config()))
    model = get_peft_model(base, DFNConfig(bottleneck=4, layers=3, pathways=["visual"]))
    points = torch.tensor(inputs.draw_example(0, seed=2, size=64)[1]).float()
    examples = [{"pixel_values": pixels, "landmarks": points} for pixels in torch.randn(6, 3, 64, 64)]

    def answer(path: Path) -> Answer:
        store = frozen_states(model, examples, path.parent, data="faces", dtype="float32", shard_rows=4)
        return Answer({name: tensor.tolist() for name, tensor in store.batch(range(6)).items()})

    def cases() -> Iterator[Case]:
        header = folder / "store" / "store.json"
        expected = undamaged(answer, header)
        yield from damaged(header, json_file_damages(rng, header, each=6), expected=expected)
        files = sorted(header.parent.glob("*.safetensors"))
        for source in files:
            damages = [
                *byte_damages(rng, source.stat().st_size, flips=18, cuts=6, rule="same"),
                *odd_damages("missing"),
            ]
            damages += [Damage(f"is {other.name}", "same", other.read_bytes()) for other in files if other != source]
            yield from damaged(source, damages, expected=expected)

    return answer, cases()


def vision_stores(folder: Path, rng: random.Random) -> Kind:
    """The frozen tower's outputs, kept for a run."""
    from configuration_mf2 import MF2Config
    from mf2face.data.examples import MF2Examples
    from mf2face.data.synthetic.faces import MFASynthetic
    from mf2face.training.stores import load_or_store
    from modeling_mf2.vision import MF2VisionTower
    from processing_mf2 import MF2Processor

    config = MF2Config.from_size("tiny")
    rows = MFASynthetic(6, size=64, cache_dir=folder / "faces")
    examples = MF2Examples(rows, MF2Processor.for_model(config), texts=False)
    torch.manual_seed(0)
    tower = MF2VisionTower(config.vision_config)

    def answer(path: Path) -> Answer:
        store = load_or_store(tower, [examples], path.parent.parent)
        return Answer([{name: tensor.tolist() for name, tensor in store[n].items()} for n in range(len(store))])

    def cases() -> Iterator[Case]:
        root = folder / "root"
        expected = undamaged(answer, root / "store" / "file")
        for source in sorted(root.glob("*/*")):
            if source.suffix == ".json":
                yield from damaged(source, json_file_damages(rng, source, each=8), expected=expected)
                continue
            damages = [UNDAMAGED, *byte_damages(rng, source.stat().st_size, flips=10, cuts=8, rule="same")]
            damages += byte_damages(rng, 128, flips=14, cuts=4, zeros=0, rule="same")
            yield from damaged(source, [*damages, *odd_damages("missing"), *text_damages("twice")], expected=expected)

    return answer, cases()


@contextlib.contextmanager
def logged_warnings() -> Iterator[list[str]]:
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger().removeHandler(handler)


def journals(folder: Path, rng: random.Random) -> Kind:
    """The captions that were paid for."""
    from mf2face.captions.journal import CaptionJournal
    from mf2face.captions.styles import Captions

    source = with_source(folder, "journal.jsonl")
    keys = [f"key{row}" for row in range(6)]
    with CaptionJournal(source) as book:
        for key in keys:
            texts = {"au_caption": f"ä lips part {key}", "emotion_caption": f"sad {key}"}
            book.add_captions(book.open_request(0.5), key, Captions(f"r{key}", texts, "m"), 0.25)
        book.add_answer(book.open_request(0.5), "half", "{}", 0.125)
        book.name_batch(book.open_request(0.5, batch=4), "b1")
        asyncio.run(book.flushed())

    def answer(path: Path) -> Answer:
        with logged_warnings() as messages, CaptionJournal(path) as book:
            found = {key: vars(book.captions(key)) for key in keys if key in book}
            money = {"spent": book.spent, "unsure": book.unsure, "answers": book.answers, "requests": book.requests}
            batches = {number: str(batch) for number, batch in book.batches.items()}
            return Answer({**found, **money, "captions": len(book), "batches": batches}, messages)

    def damages() -> Iterator[Damage]:
        content = source.read_bytes()
        lines = content.splitlines(keepends=True)
        yield UNDAMAGED
        yield from byte_damages(rng, len(content), flips=50, cuts=0, zeros=5, rule="same")
        for _ in range(15):  # a kill may cut the last line, which then counts as not written
            size = len(content) - rng.randrange(1, len(lines[-1]))
            yield Damage(f"last line cut at {size}", "finite", content[:size])
        for number, line in enumerate(lines):
            for damage in rng.sample(list(json_damages(rng, json.loads(line), 2)), 5):
                new = b"".join([*lines[:number], damage.of(b"") + b"\n", *lines[number + 1 :]])
                yield Damage(f"line {number + 1}, {damage.label}", "same", new)
        for damage in text_damages():  # an empty file is a new journal
            yield dataclasses.replace(damage, rule="finite") if damage.label == "empty" else damage
        yield from odd_damages("folder", "link to nothing")

    return answer, damaged(source, damages(), "journal", expected=undamaged(answer, source))


def landmark_caches(folder: Path, rng: random.Random) -> Kind:
    """A store of SQLite."""
    import sqlite3

    from mf2face.data.build.landmark_cache import LandmarkCache
    from processing_mf2.image_io import read_image
    from processing_mf2.landmarks import DetectedFace, template_landmarks

    class Template:
        def detect(self, images: Any) -> list[list[DetectedFace]]:
            box, points = np.array([0.0, 0.0, 96, 96]), template_landmarks(96, 96)
            return [[DetectedFace(box, 0.8, points, np.linspace(0, 1, 68))] for _ in images]

    (folder / "images").mkdir()
    names = [f"{index}.png" for index in range(6)]
    for index, name in enumerate(names):
        inputs.face(index).save(folder / "images" / name)
    pixels = [read_image(folder / "images" / name) for name in names]

    def answer(path: Path) -> Answer:
        with logged_warnings() as messages, LandmarkCache(folder / "images", Template(), file=path) as cache:
            faces = cache.faces(names, pixels)
        numbers = [[face.landmarks.tolist(), face.confidence.tolist(), face.box.tolist()] for face in faces]
        return Answer(numbers, messages)

    def query(text: str) -> Damage:
        def put(path: Path) -> None:
            path.write_bytes(source.read_bytes())
            with contextlib.closing(sqlite3.connect(path)) as store, store:
                store.execute(text)

        return Damage(text, "same", put=put)

    def damages() -> Iterator[Damage]:
        yield UNDAMAGED
        yield from byte_damages(rng, source.stat().st_size, flips=40, cuts=10, zeros=6, rule="same")
        yield from byte_damages(rng, 100, flips=15, cuts=4, zeros=0, rule="same")
        yield from text_damages("text", "binary", "null")
        for column in ("landmarks", "confidence", "box", "score", "stamp"):
            for value in ("NULL", "x'00'", "'text'", "zeroblob(544)", "zeroblob(7)", "3", "x'0000c07f'"):
                yield query(f"UPDATE faces SET {column} = {value} WHERE image = '2.png'")
            yield query(f"ALTER TABLE faces RENAME COLUMN {column} TO other")
        yield query("ALTER TABLE faces RENAME TO others")
        yield query("DELETE FROM faces WHERE image < '3.png'")

    source = with_source(folder, "mf2_landmarks.sqlite")
    return answer, damaged(source, damages(), "landmark", expected=undamaged(answer, source))


def dataset_caches(folder: Path, rng: random.Random) -> Kind:
    """Drawn faces that are kept on the disk."""
    from mf2face.data.synthetic.faces import MFASynthetic

    def answer(path: Path) -> Answer:
        rows = MFASynthetic(3, size=64, cache_dir=path.parent.parent)
        return Answer([{**row, "image": list(row["image"].tobytes()[:3000])} for row in rows])

    def cases() -> Iterator[Case]:
        root = folder / "cache"
        expected = undamaged(answer, root / "store" / "file")
        labels = ("empty", "null", "half", "binary", "deep", "list", "number", "latin-1")
        for source in sorted(path for path in root.glob("*/*") if path.is_file()):
            damages = [UNDAMAGED, *byte_damages(rng, source.stat().st_size, flips=6, cuts=4, zeros=1, rule="same")]
            damages += [*text_damages(*labels)] if source.suffix != ".arrow" else []
            yield from damaged(source, [*damages, *odd_damages("missing")], expected=expected)

    return answer, cases()


def continued_rows(folder: Path, rng: random.Random) -> Kind:
    """An output of `mf2` that is continued."""
    import pyarrow.parquet as pq

    from mf2face import analyze

    (folder / "in").mkdir()
    for index in range(4):
        inputs.face(index).save(folder / "in" / f"{index}.png")

    def read(out: Path) -> list[Any]:
        if out.suffix == ".parquet":
            rows = pq.read_table(out).to_pylist()
        elif out.suffix == ".csv":
            rows = list(csv.DictReader(out.read_text().splitlines()))
        else:
            rows = [json.loads(line) for line in out.read_text().splitlines()]
        names = [name for name in rows[0] if name.startswith(("AU", "x_", "y_"))]
        return sorted([os.path.basename(row["input"]), *(_number(row[name]) for name in names)] for row in rows)

    def answer(path: Path) -> Answer:
        out = path.parent / ".".join(path.name.split(".")[:2])
        summary = analyze(str(folder / "in"), out, model=face_model(), aligned=True)
        return Answer(read(out), [f"{name}: {why}" for name, why in summary.skipped])

    def cases() -> Iterator[Case]:
        found = []
        for ending in ("csv", "jsonl", "parquet"):
            (folder / ending).mkdir()
            source, about = (folder / ending / name for name in (f"rows.{ending}", f"rows.{ending}.about.json"))
            found.append(undamaged(answer, source))
            assert found[0] == found[-1] and len(found[0]) == 4
            yield from damaged(
                source, byte_damages(rng, source.stat().st_size, flips=5, cuts=8, zeros=0), expected=found[0]
            )
            yield from damaged(about, json_file_damages(rng, about, each=1), expected=found[0])

    return answer, cases()


def _number(value: Any) -> Any:
    with contextlib.suppress(ValueError):
        return float(value)
    return value


KINDS: dict[str, Callable[[Path, random.Random], Kind]] = {
    **{"images": images, "arrays": arrays, "videos": videos, "landmark csv": landmark_tables, "own csv": own_tables},
    **{"config.json": model_configs, "processor, tokenizer": processor_files, "adapter": adapters},
    **{"safetensors": weights, "onnx": engines, "DFN store": dfn_stores, "vision store": vision_stores},
    **{"caption journal": journals, "landmark cache": landmark_caches, "dataset cache": dataset_caches},
    "continued rows": continued_rows,
}
