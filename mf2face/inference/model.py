"""Loads the model by name: in torch, or in onnxruntime from a file beside the checkpoint or exported once."""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import nn
from transformers.utils import cached_file

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.hub import check_finite_weights
from configuration_mf2.json_files import read_json
from configuration_mf2.version import VERSION, check_version
from mf2face.inference.rows import Columns, first_line
from modeling_mf2.export import (
    FILE,
    INPUTS,
    INT8_FILE,
    check_content,
    differences,
    export_onnx,
    need,
    output_names,
    quantize_onnx,
    read_facts,
    session,
    weights_mark,
)
from modeling_mf2.loading import check_adapter_file, load_to_answer
from modeling_mf2.modeling_mf2 import MF2FaceAnalysisOutput, MF2PreTrainedModel
from modeling_mf2.pretraining import MF2ForPreTraining
from processing_mf2.pipelines import MF2FaceAnalysisPipeline, face_pipeline
from processing_mf2.processing_mf2 import MF2Processor


ENGINES = ("torch", "onnx", "int8")
_FILES = {"onnx": FILE, "int8": INT8_FILE}


class EngineModel(MF2PreTrainedModel):
    """The model as a pipeline sees it, without weights."""

    def __init__(self, config: MF2Config, run: Any) -> None:
        super().__init__(config)
        self.run, self.names = run, output_names(config)
        for kind, there, expected in (
            ("inputs", run.get_inputs(), INPUTS),
            ("outputs", run.get_outputs(), self.names),
        ):
            names = [one.name for one in there]
            if sorted(names) != sorted(expected):
                raise ValueError(f"engine: the ONNX file has the {kind} {names}, expected {list(expected)}")
        self.register_buffer("place", torch.empty(0), persistent=False)  # says that inputs belong on the CPU, in float

    @property
    def dtype(self) -> torch.dtype:
        return self.place.dtype

    @property
    def device(self) -> torch.device:
        return self.place.device

    def forward(self, pixel_values: torch.Tensor, landmarks: torch.Tensor) -> MF2FaceAnalysisOutput:
        given = dict(zip(INPUTS, (pixel_values.float().numpy(), landmarks.float().numpy()), strict=True))
        answers = self.run.run(self.names, given)
        return MF2FaceAnalysisOutput(**dict(zip(self.names, map(torch.from_numpy, answers), strict=True)))


def check_engine(engine: str, device: str | None) -> None:
    """Before anything is loaded."""
    if engine not in ENGINES:
        raise ValueError(f"engine: got {engine!r}, expected one of {list(ENGINES)}")
    if engine != "torch":
        need("onnxruntime")
        if device not in (None, "auto", "cpu"):
            raise ValueError(f"engine, device: got {engine!r} and {device!r}; expected cpu, or engine 'torch'")


def engine_model(
    engine: str, name: str, adapter: str | None, config: MF2Config, load: Callable[[], nn.Module]
) -> EngineModel:
    """load: the model in torch, called only if it has to be exported."""
    check_engine(engine, None)
    beside = None if adapter is not None else _file_of(name, _FILES[engine])
    if beside is not None:
        expected = {"precision": "int8" if engine == "int8" else "float32", **expected_facts(name, config)}
        return EngineModel(config, _agreeing(beside, expected))
    return EngineModel(config, _cached(engine, name, adapter, load))


def expected_facts(name: str, config: MF2Config) -> dict[str, Any]:
    """Facts that an ONNX file of this checkpoint has."""
    facts = {"action_units": list(config.action_units), "emotions": list(config.emotions)}
    facts["image_size"] = config.vision_config.image_size
    mark = saved_mark(name)
    return facts if mark is None else {**facts, "weights": mark}


def saved_mark(name: str) -> str | None:
    """The mark of a checkpoint's classifiers; None if its weights are in several files."""
    file, start = _file_of(name, "model.safetensors"), "classifiers."
    if file is None:
        return None
    with safe_open(file, framework="pt") as saved:
        return weights_mark(
            {key.removeprefix(start): saved.get_tensor(key) for key in saved.keys() if key.startswith(start)}
        )


def _agreeing(file: Path, expected: dict[str, Any]) -> Any:
    run = session(file)
    try:
        facts = read_facts(run)
        check_content(file, facts)
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


def _cached(engine: str, name: str, adapter: str | None, load: Callable[[], nn.Module]) -> Any:
    source = _source(name, adapter)
    folder = cache_folder() / f"{Path(adapter or name).name}-{_short([name, adapter, _place(name)])}"
    kept = _of_source(folder / _FILES[engine], source)
    if kept is not None:
        return kept
    plain = folder / FILE
    if _of_source(plain, source) is None:
        _say(f"engine {engine}: the model is exported once, into {folder}; this takes from seconds to minutes")
        export_onnx(load(), plain, source=source)
    if engine == "int8":
        _say("engine int8: weights are rounded to 8 bits; answers differ a little from those of torch")
        quantize_onnx(plain, folder / INT8_FILE)
    return session(folder / _FILES[engine])


def _of_source(file: Path, source: str) -> Any:
    """A session of the cached file, if it was exported from these very files."""
    if not file.is_file():
        return None
    try:
        run = session(file)
        facts = read_facts(run)
        if facts.get("source") != source:
            return None
        check_content(file, facts)
        return run
    except ValueError:  # cut short, say by a full disk: made anew
        return None


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mf2" / "engines"


def _source(name: str, adapter: str | None) -> str:
    """A hash that changes with every file of weights or config, and with this code's version."""
    files = []
    for place in (name, adapter):
        folder = None if place is None else _place(place)
        if folder is None:
            continue
        for file in sorted([*folder.glob("*.safetensors"), folder / "config.json", folder / "adapter_config.json"]):
            if file.is_file():
                stat = file.stat()
                files.append([os.fspath(file), stat.st_size, stat.st_mtime_ns])
    return _short([VERSION, files])


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def _place(name: str) -> Path | None:
    """The folder with a checkpoint's files, also of one on the Hub."""
    file = _file_of(name, "config.json") or _file_of(name, "adapter_config.json")
    return None if file is None else file.absolute().parent


def _file_of(name: str, file: str) -> Path | None:
    try:
        return Path(cached_file(name, file))
    except OSError:  # missing, or out of reach
        return None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


EMBEDDED = Path(__file__).resolve().parents[2] / "model_cards" / "mf2-tiny-synthetic"


@dataclass(frozen=True)
class AnalysisModel:
    pipeline: MF2FaceAnalysisPipeline
    name: str
    adapter: str | None
    synthetic: bool | None
    """Trained on drawn faces; None: the checkpoint does not say on what."""
    engine: str = "torch"

    @property
    def trained_on(self) -> str:
        if self.synthetic:
            return "trained on synthetic (drawn) faces: its answers to photographs of people mean nothing"
        if self.synthetic is None:
            return "its files do not say what it was trained on"
        return "trained on what its card says"

    def columns(self, caption: bool) -> Columns:
        config = self.pipeline.model.config
        units = tuple(config.action_units) if config.use_au_branch else ()
        return Columns(units, tuple(config.emotions) if config.use_emo_branch else (), caption)

    def check_caption(self) -> None:
        model = self.pipeline.model
        if self.engine != "torch":
            raise ValueError(f"caption: got engine {self.engine!r}, expected 'torch': an exported model writes nothing")
        if not model.config.use_emo_branch or not hasattr(model, "captioner"):
            raise ValueError(f"caption: {self.name} has no branch that writes about the face; leave the option out")


def load_model(
    model: str | os.PathLike | None = None,
    adapter: str | os.PathLike | None = None,
    device: str | None = None,
    engine: str = "torch",
) -> AnalysisModel:
    """model: a folder or a name on the Hub, the embedded one unless given. An adapter names its base by itself.
    engine: `torch`, or on a CPU `onnx` or `int8`."""
    check_engine(engine, device)
    try:
        return _load(model, adapter, device, engine)
    except (OSError, ValueError, ImportError):
        raise
    except Exception as error:  # whatever a damaged file leads the libraries to
        named = " with ".join(str(one) for one in (model, adapter) if one is not None) or EMBEDDED
        raise ValueError(
            f"model: {named} could not be loaded ({type(error).__name__}: {first_line(error)}); expected a checkpoint "
            "of MF² (or an adapter and its base) whose files are whole: config.json, model.safetensors, "
            "processor_config.json, tokenizer.json"
        ) from error


def _load(
    model: str | os.PathLike | None, adapter: str | os.PathLike | None, device: str | None, engine: str
) -> AnalysisModel:
    if adapter is not None:
        check_adapter_file(adapter)
        if model is None:
            model = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    name = str(EMBEDDED if model is None else model)
    if model is None and not EMBEDDED.is_dir():
        raise OSError(f"the embedded model is not installed ({EMBEDDED}); name one: --model FOLDER_OR_NAME")
    with_processor = name
    if adapter is not None and _file_of(str(adapter), "processor_config.json"):
        with_processor = str(adapter)  # its thresholds
    in_torch = functools.partial(_in_torch, name, None if adapter is None else str(adapter))
    if engine == "torch":
        loaded, usual = in_torch(), "cuda" if torch.cuda.is_available() else "cpu"
    else:
        config = MF2Config.from_pretrained(name)
        loaded, usual = engine_model(engine, name, None if adapter is None else str(adapter), config, in_torch), "cpu"
    device = usual if device in (None, "auto") else device
    processor = MF2Processor.from_pretrained(with_processor)
    for field in ("action_units", "emotions"):
        got, expected = (list(getattr(one, field)) for one in (processor, loaded.config))
        if got != expected:
            raise ValueError(
                f"{with_processor}: processor_config.json has {field} {got}, but config.json of {name} has {expected}; "
                "answers would bear wrong names: copy both files from one checkpoint"
            )
    pipeline = face_pipeline("face-analysis", loaded, processor, device=device)
    synthetic = any_synthetic(*(is_synthetic(place) for place in ([name] if adapter is None else [str(adapter), name])))
    label = EMBEDDED.name if model is None else name
    return AnalysisModel(pipeline, label, None if adapter is None else str(adapter), synthetic, engine)


def _in_torch(name: str, adapter: str | None) -> Any:
    loaded = load_to_answer(MF2ForPreTraining, name)
    if adapter is None:
        return loaded
    try:
        adapted = PeftModel.from_pretrained(loaded, adapter)
    except (OSError, ValueError, ImportError) as error:
        if adapter in str(error):
            raise
        raise ValueError(
            f"adapter: {adapter} could not be loaded ({type(error).__name__}: {first_line(error)}); expected an "
            f"adapter_config.json that peft wrote for {name}"
        ) from error
    check_finite_weights(adapted, adapter)
    return adapted


def any_synthetic(*known: bool | None) -> bool | None:
    """Combines adapter and base: an adapter trained on real faces over a base trained on drawn ones is synthetic."""
    return True if True in known else None if None in known else False


def is_synthetic(place: str) -> bool | None:
    run = _file_of(place, "run.json")
    if run is not None:
        try:
            return bool(read_json(run)["synthetic"])
        except (OSError, ValueError, LookupError, TypeError):
            pass
    card = _file_of(place, "README.md")
    try:
        tags: Sequence[Any] = ModelCard.load(card).data.tags or () if card else ()
    except (OSError, ValueError):
        tags = ()
    return True if "synthetic" in tags else None
