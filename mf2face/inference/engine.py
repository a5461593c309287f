"""Exported models (ONNX) behind the interface of the face-analysis pipeline: onnxruntime and numpy, no torch."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from configuration_mf2.facs import check_action_units, resolve_label_set
from configuration_mf2.json_files import read_json
from configuration_mf2.version import FIELD, VERSION, check_version
from mf2face.files import cache_folder
from modeling_mf2.onnx_files import (
    FILE,
    INPUTS,
    INT8_FILE,
    MissingPackageError,
    check_content,
    differences,
    need,
    output_names,
    read_facts,
    session,
    weights_mark,
)
from processing_mf2.crops import CALLERS_OWN, check_settings, crop_plan, normalize_crops
from processing_mf2.geometry import transform_points, warp
from processing_mf2.image_io import MOST_PIXELS, read_image
from processing_mf2.landmarks import check_landmarks, check_orientation, face_in_image
from processing_mf2.reliability import check_conformal, check_grades
from processing_mf2.results import FaceResults, resolve_thresholds


ENGINES = ("torch", "onnx", "int8")
_FILES = {"onnx": FILE, "int8": INT8_FILE}


def file_of(name: str, file: str) -> Path | None:
    """A file of a checkpoint, in a folder or on the Hub; None if it is missing or out of reach."""
    if os.path.isdir(name):
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HTTPError
    except ImportError as error:
        raise OSError(
            f"{name}: there is no such folder, and a name on the Hub needs huggingface_hub ({error}): "
            "pip install huggingface_hub"
        ) from error
    try:
        return Path(hf_hub_download(name, file))
    except (OSError, HTTPError, ValueError):  # ValueError: no name that the Hub could have
        return None


def read_object(name: str, file: str) -> dict[str, Any]:
    """A JSON object of a checkpoint."""
    path = file_of(name, file)
    if path is None:
        raise OSError(f"{name}: {file} is missing; expected a folder, or a name on the Hub, of a checkpoint of MF²")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: got {type(content).__name__}, expected an object; copy the file again")
    return content


@contextlib.contextmanager
def _naming(name: str, file: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{name}: {file}: {error}; copy the file again, or save the checkpoint anew") from error


def read_config(name: str) -> SimpleNamespace:
    """What an exported model needs of its checkpoint's config.json, as `MF2Config` has it."""
    content = read_object(name, "config.json")
    check_version(content.get(FIELD), name)
    vision = {"image_size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    vision |= {"alignment": "steady", "do_grayscale": False, "normalize_per_image": False}
    fields = {"use_au_branch": True, "use_emo_branch": True, "au_thresholds": None, **content}
    with _naming(name, "config.json"):
        if content.get("model_type") != "mf2":
            raise ValueError(f"model_type: got {content.get('model_type')!r}, expected 'mf2'")
        labels = resolve_label_set(content.get("label_set", "mfa"))
        for field in ("action_units", "emotions"):
            fields[field] = list(getattr(labels, field) if fields.get(field) is None else fields[field])
        check_action_units(fields["action_units"])
        fields["vision_config"] = SimpleNamespace(**{**vision, **content.get("vision_config", {})})
    return SimpleNamespace(**fields)


class EngineProcessor(FaceResults):
    """Labels, thresholds and the settings of crops, from a checkpoint's processor_config.json."""

    def __init__(self, name: str, config: SimpleNamespace) -> None:
        content = read_object(name, "processor_config.json")
        with _naming(name, "processor_config.json"):
            self._read(content, config)

    def _read(self, content: Mapping[str, Any], config: SimpleNamespace) -> None:
        labels = resolve_label_set("mfa")
        for field in ("action_units", "emotions"):
            given = content.get(field)
            setattr(self, field, list(getattr(labels, field) if given is None else given))
        limits = content.get("au_thresholds")
        limits = config.au_thresholds if limits is None else limits
        if limits is not None:
            limits = resolve_thresholds(limits, self.action_units, name="au_thresholds")
        self.au_thresholds = limits
        self.grades = check_grades(content.get("grades"), [*self.action_units, *self.emotions])
        self.conformal = check_conformal(content.get("conformal"), self.action_units, self.emotions)
        saved = content.get("image_processor", {})
        if not isinstance(saved, Mapping):
            raise ValueError(f"image_processor: got {saved!r:.80}, expected an object")
        vision = config.vision_config
        settings = {
            **dict.fromkeys(("do_align", "do_rescale", "do_normalize"), True),
            **{name: getattr(vision, name) for name in ("alignment", "do_grayscale", "normalize_per_image")},
            **{"size": vision.image_size, "image_mean": vision.image_mean, "image_std": vision.image_std},
            **{"rescale_factor": 1 / 255, "max_pixels": MOST_PIXELS},
            **{field: value for field, value in saved.items() if value is not None and field not in CALLERS_OWN},
        }
        self.settings = SimpleNamespace(**check_settings(settings))

    def crop(self, image: Any, landmarks: Any) -> dict[str, Any]:
        """The crop, which `normalize_crops` takes, its landmarks, and the face in the image."""
        pixels = read_image(image)
        if landmarks is not None:
            landmarks = check_landmarks(landmarks, *pixels.shape[1:], "landmarks")
            check_orientation(landmarks, "landmarks")
        matrix, points = crop_plan(pixels, landmarks, self.settings)
        return {
            "pixel_values": warp(pixels, matrix, *self.settings.size),
            "landmarks": transform_points(matrix, points),
            "face": face_in_image(*pixels.shape[1:], landmarks, "template" if landmarks is None else "given"),
        }


class EnginePipeline:
    """Called as `MF2FaceAnalysisPipeline`, for images of one known face each."""

    def __init__(self, run: Any, config: SimpleNamespace, processor: EngineProcessor) -> None:
        self.run, self.names, self.processor = run, output_names(config), processor
        self.model = SimpleNamespace(config=config)
        for kind, there, expected in (("inputs", run.get_inputs(), INPUTS), ("outputs", run.get_outputs(), self.names)):
            names = [one.name for one in there]
            if sorted(names) != sorted(expected):
                raise ValueError(f"engine: the ONNX file has the {kind} {names}, expected {list(expected)}")

    def preprocess(self, item: Any, landmark_source: str = "template") -> dict[str, Any]:
        """item: an image that one aligned face fills, or a mapping with `image` and `landmarks`. What was prepared
        before, say in another thread, is taken as it is."""
        if isinstance(item, Mapping) and "pixel_values" in item:
            return dict(item)
        if landmark_source != "template":
            raise ValueError(f"landmark_source: got {landmark_source!r}, expected 'template' from an exported model")
        item = item if isinstance(item, Mapping) and "image" in item else {"image": item}
        return self.processor.crop(item["image"], item.get("landmarks"))

    def __call__(
        self,
        images: Any,
        *,
        batch_size: int = 1,
        thresholds: Any = None,
        confidence: float | None = None,
        landmark_source: str = "template",
        on_error: str = "raise",
    ) -> list[Any]:
        if not isinstance(images, list):
            settings = {"thresholds": thresholds, "confidence": confidence, "landmark_source": landmark_source}
            return self([images], **settings)[0]
        answers: list[Any] = [None] * len(images)
        ready = {}
        for index, item in enumerate(images):
            with _answering(answers, index, on_error):
                ready[index] = self.preprocess(item, landmark_source)
        for start in range(0, len(ready), batch_size):
            indexes = list(ready)[start : start + batch_size]
            crops, points = ([ready[index][name] for index in indexes] for name in INPUTS)
            inputs = (normalize_crops(crops, self.processor.settings), np.array(points, np.float32))
            outputs = self.run.run(self.names, dict(zip(INPUTS, inputs, strict=True)))
            for row, index in enumerate(indexes):
                logits = {name: values[row : row + 1] for name, values in zip(self.names, outputs, strict=True)}
                with _answering(answers, index, on_error):
                    (found,) = self.processor.post_process_face_analysis(logits, thresholds, confidence=confidence)
                    answers[index] = [{**ready[index]["face"], **found}]
        return answers


@contextlib.contextmanager
def _answering(answers: list[Any], index: int, on_error: str) -> Iterator[None]:
    """A fault of an item is its answer, unless it is to be raised."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        if on_error == "raise":
            raise
        message = str(error).removeprefix("image: ")
        answers[index] = {"error": {"index": index, "type": type(error).__name__, "message": message}}


def check_engine(engine: str, device: str | None) -> None:
    """Before anything is loaded."""
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}, expected one of {list(ENGINES)}")
    if engine != "torch":
        need("onnxruntime")
        if device not in (None, "auto", "cpu"):
            raise ValueError(f"engine, device: got {engine!r} and {device!r}; expected cpu, or engine 'torch'")


def engine_pipeline(engine: str, name: str, adapter: str | None, processor_name: str) -> EnginePipeline:
    """processor_name: the checkpoint or adapter whose processor it is. The model is exported if it is not yet."""
    config = read_config(name)
    processor = EngineProcessor(processor_name, config)
    beside = None if adapter is not None else file_of(name, _FILES[engine])
    if beside is not None:
        expected = {"precision": "int8" if engine == "int8" else "float32", **expected_facts(name, config)}
        return EnginePipeline(_agreeing(beside, expected), config, processor)
    return EnginePipeline(_cached(engine, name, adapter), config, processor)


def expected_facts(name: str, config: SimpleNamespace) -> dict[str, Any]:
    """Facts that an ONNX file of this checkpoint has."""
    facts = {"action_units": config.action_units, "emotions": config.emotions}
    facts["image_size"] = config.vision_config.image_size
    mark = saved_mark(name)
    return facts if mark is None else {**facts, "weights": mark}


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def saved_mark(name: str) -> str | None:
    """The mark of a checkpoint's classifiers; None if there is no single file of weights."""
    path, start = file_of(name, "model.safetensors"), "classifiers."
    if path is None:
        return None
    weights = {}
    with _naming(name, path.name), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError(f"got a header of {length} bytes, expected at most the file's {path.stat().st_size}")
        header = json.loads(file.read(length))
        first = file.tell()
        for key, tensor in header.items():
            if key.startswith(start):
                begin, end = tensor["data_offsets"]
                file.seek(first + begin)
                values = np.frombuffer(file.read(end - begin), _DTYPES[tensor["dtype"]])
                if tensor["dtype"] == "BF16":  # the upper half of a float32
                    values = (values.astype(np.uint32) << 16).view(np.float32)
                weights[key.removeprefix(start)] = values
    return weights_mark(weights)


def _opened(file: Path) -> tuple[Any, dict[str, Any]]:
    """A session, and what the whole file says of itself."""
    run = session(file)
    facts = read_facts(run)
    check_content(file, facts)
    return run, facts


def _agreeing(file: Path, expected: dict[str, Any]) -> Any:
    try:
        run, facts = _opened(file)
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).removeprefix(f'{file} ')}, or remove it") from error
    check_version(facts.get("mf2_version"), os.fspath(file))
    wrong = differences(facts, expected)
    if wrong:
        raise ValueError(
            f"{file} is not of the checkpoint that it stands beside: {wrong}. Remove it, or export the checkpoint "
            "again (export_onnx, and for int8 quantize_onnx)"
        )
    return run


def _cached(engine: str, name: str, adapter: str | None) -> Any:
    source = _source(name, adapter)
    folder = cache_folder("engines") / f"{Path(adapter or name).name}-{_short([name, adapter, _place(name)])}"
    if (kept := _of_source(folder / _FILES[engine], source)) is not None:
        return kept
    export_onnx, quantize_onnx, load_in_torch = _exporters(engine, name, adapter)
    plain = folder / FILE
    if _of_source(plain, source) is None:
        _say(f"engine {engine}: the model is exported once, into {folder}; this takes from seconds to minutes")
        export_onnx(load_in_torch(name, adapter), plain, source=source)
    if engine == "int8":
        _say("engine int8: weights are rounded to 8 bits; answers differ a little from those of torch")
        quantize_onnx(plain, folder / INT8_FILE)
    return session(folder / _FILES[engine])


def _exporters(engine: str, name: str, adapter: str | None) -> tuple[Callable, Callable, Callable]:
    try:
        from mf2face.inference.torch_model import check_adapter_file, load_in_torch
        from modeling_mf2.export import export_onnx, quantize_onnx
    except ImportError as error:
        raise MissingPackageError(
            f"engine {engine}: {name} has no {_FILES[engine]} beside its config.json, and the export needs the full "
            f'package ({error}): pip install -e ".[export]", or export it elsewhere and put the file there'
        ) from error
    if adapter is not None:
        check_adapter_file(adapter)
    return export_onnx, quantize_onnx, load_in_torch


def _of_source(file: Path, source: str) -> Any:
    """A session of the cached file, if it was exported from these very files."""
    try:
        run, facts = _opened(file)
    except (ValueError, FileNotFoundError):  # cut short, say by a full disk: made anew
        return None
    return run if facts.get("source") == source else None


def _source(name: str, adapter: str | None) -> str:
    """A hash that changes with every file of weights or config, and with this code's version."""
    folders = [folder for place in (name, adapter) if place is not None and (folder := _place(place)) is not None]
    patterns = ("*.safetensors", "config.json", "adapter_config.json")
    files = sorted(file for folder in folders for pattern in patterns for file in folder.glob(pattern))
    return _short([VERSION, [[os.fspath(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]])


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def _place(name: str) -> Path | None:
    """The folder with a checkpoint's files, also of one on the Hub."""
    file = file_of(name, "config.json") or file_of(name, "adapter_config.json")
    return None if file is None else file.absolute().parent


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


__all__ = ["ENGINES", "EnginePipeline", "check_engine", "engine_pipeline", "file_of", "read_object"]
