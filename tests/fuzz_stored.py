# ruff: noqa: E731
"""Damaged files that we wrote, for `test_fuzz.py`: checkpoints, adapters, stores, journals, caches, rows. A kind writes
its undamaged inputs into `folder`."""

import asyncio
import contextlib
import csv
import dataclasses
import json
import logging
import math
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import shake, tiny_config
from fuzz_inputs import (
    BINARY_TEXTS,
    UNDAMAGED,
    Answer,
    Case,
    Damage,
    Kind,
    byte_damages,
    damaged,
    face,
    flipped,
    json_damages,
    json_file_damages,
    odd_damages,
    text_damages,
    text_file_damages,
    undamaged,
)
from fuzz_media import analyzed, face_model, with_source

from configuration_mf2.facs import CANONICAL_FACE


def write_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        face(index).save(path)
    return paths


def checkpoint(folder: Path) -> Path:
    """A small checkpoint with real texts, and a picture beside it."""
    from modeling_mf2 import MF2ForPreTraining
    from processing_mf2 import MF2Processor, build_tokenizer

    tokenizer, model = build_tokenizer(), folder / "model"
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192, "num_hidden_layers": 2}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169, au_thresholds=[0.4, 0.5, 0.6])
    MF2Processor.for_model(config, tokenizer).save_pretrained(model)
    shake(MF2ForPreTraining(config)).save_pretrained(model)
    face().save(folder / "face.png")
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
        (faces,) = face_pipeline("face-analysis", network, processor, device="cpu")([str(folder / "face.png")])
        sentence = "The inner brows are raised, and the lips part: surprise!"
        ids = processor(text=[sentence], key_au_captions=[sentence])
        written = processor.tokenizer.decode(ids["input_ids"][0])
        numbers = {name: value.tolist() for name, value in ids.items()}
        return Answer([*({n: f[n] for n in ("action_units", "emotions")} for f in faces), numbers, written])

    def tokenizer_damages(source: Path) -> Iterator[Damage]:
        yield from text_file_damages(rng, source)
        yield from byte_damages(rng, source.stat().st_size, flips=12, cuts=0, zeros=2)
        content = json.loads(source.read_text())
        words, content["model"]["vocab"] = content["model"]["vocab"], {}  # its fields, not its words
        for damage in rng.sample(list(json_damages(rng, content, 1)), 60):
            changed = json.loads(damage.of(b""))
            if isinstance(changed.get("model"), dict) and changed["model"].get("vocab") == {}:
                changed["model"]["vocab"] = words
            yield dataclasses.replace(damage, content=json.dumps(changed).encode())

    def cases() -> Iterator[Case]:
        for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json"):
            source = model / name
            damages = tokenizer_damages(source) if name == "tokenizer.json" else json_file_damages(rng, source, each=5)
            yield from damaged(source, damages, "processor", "tokenizer", expected=undamaged(answer, source))

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

    def changed(label: str, field: str, rule: str = "same", drop: str = "", **new: torch.Tensor) -> Damage:
        """drop: the start of the names of weights that are left out. new: by the name of the weight, or `more`."""
        kept = {name: tensor for name, tensor in tensors.items() if not drop or not name.startswith(drop)}
        return Damage(label, rule, lambda _: save(kept | new, {"format": "pt"}), field=field)

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
                spoiled = tensors[name].clone()
                spoiled.view(-1)[0] = value
                yield changed(f"{value} in {name}", name, "same" if value != 1e30 else "finite", **{name: spoiled})
        for name in rng.sample(floats, 10):
            tensor, kind = tensors[name], rng.choice([torch.int32, torch.float64, torch.float8_e4m3fn, torch.bool])
            yield changed(f"without {name}", name, drop=name)
            yield changed(f"{name} renamed", name, drop=name, **{f"{name}x": tensor})
            yield changed(f"{name} of another shape", name, **{name: torch.cat([tensor.reshape(-1)] * 2)})
            yield changed(f"{name} as {kind}", name, "finite", **{name: tensor.to(kind)})
        for part in ("classifiers", "mf2.vision", "mf2.au_vl", "mf2.emo_vl"):
            yield changed(f"without all of {part}", part, drop=part)
        yield Damage("without anything", "same", lambda _: save({}, {"format": "pt"}), field="weights")
        yield changed("one more", "more", more=torch.zeros(3))
        yield from odd_damages("missing")
        yield Damage("a pickle", "same", put=lambda path: torch.save(tensors, path.with_name("pytorch_model.bin")))

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


def frozen_stores(folder: Path, rng: random.Random) -> Kind:
    """Frozen states for DFN."""
    from peft import get_peft_model

    from mf2face.training.stores import frozen_states
    from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis

    torch.manual_seed(0)
    base = shake(MF2ForFaceAnalysis(tiny_config()))
    model = get_peft_model(base, DFNConfig(bottleneck=4, layers=3, pathways=["visual"]))
    points = torch.tensor(CANONICAL_FACE) * 64
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

    names = [path.name for path in write_images(folder / "images", 6)]
    pixels = [read_image(folder / "images" / name) for name in names]
    source = with_source(folder, "mf2_landmarks.sqlite")

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
            for value in ("NULL", "x'00'", "'text'", "zeroblob(544)", "3", "x'0000c07f'"):
                yield query(f"UPDATE faces SET {column} = {value} WHERE image = '2.png'")
            yield query(f"ALTER TABLE faces RENAME COLUMN {column} TO other")
        yield query("ALTER TABLE faces RENAME TO others")
        yield query("DELETE FROM faces WHERE image < '3.png'")

    return answer, damaged(source, damages(), "landmark", expected=undamaged(answer, source))


def dataset_caches(folder: Path, rng: random.Random) -> Kind:
    """Drawn faces that are kept on the disk."""
    from mf2face.data.synthetic.faces import MFASynthetic

    def answer(path: Path) -> Answer:
        rows = MFASynthetic(3, "drawn", size=64, cache_dir=path.parent.parent)
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

    write_images(folder / "in", 4)

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


STORED: dict[str, Callable[[Path, random.Random], Kind]] = {
    **{"config.json": model_configs, "processor, tokenizer": processor_files, "adapter": adapters},
    **{"safetensors": weights, "onnx": engines, "frozen states": frozen_stores},
    **{"caption journal": journals, "landmark cache": landmark_caches, "dataset cache": dataset_caches},
    "continued rows": continued_rows,
}
