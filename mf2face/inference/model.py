"""Loads the model by name: in torch, or in onnxruntime from a file beside the checkpoint or exported once."""

import importlib
import os
import re
from dataclasses import dataclass
from typing import Any

from configuration_mf2.json_files import read_json
from mf2face.files import RELEASED as EMBEDDED
from mf2face.inference.engine import check_engine, engine_pipeline, file_of, read_object
from mf2face.inference.rows import Columns, column_of, first_line


@dataclass(frozen=True)
class AnalysisModel:
    pipeline: Any
    """`MF2FaceAnalysisPipeline`, or `EnginePipeline`, which has its call, its `processor` and its `model.config`."""
    name: str
    adapter: str | None
    synthetic: bool | None
    """Trained on synthetic faces; None: the checkpoint does not say on what."""
    engine: str = "torch"

    @property
    def device(self) -> str:
        return self.pipeline.model.device.type if self.engine == "torch" else "cpu"

    @property
    def trained_on(self) -> str:
        if self.synthetic:
            worth = "grades say what its" if self.grades else "its"
            end = "are worth" if self.grades else "mean nothing"
            return f"trained on synthetic faces: {worth} answers to photographs of people {end}"
        if self.synthetic is None:
            return "its files do not say what it was trained on"
        return "trained on what its card says"

    @property
    def about(self) -> dict[str, Any]:
        """What pictures and pages say about the model."""
        known = {key: getattr(self, key) for key in ("adapter", "synthetic", "trained_on")}
        return {"model": self.name, **known, "grades": self.pipeline.processor.grades}

    @property
    def grades(self) -> dict[str, str]:
        """Name of a column -> how far its answers can be trusted; empty if the checkpoint does not say."""
        return {column_of(label): grade for label, grade in (self.pipeline.processor.grades or {}).items()}

    def columns(self, caption: bool, states: bool = False, relative: bool = False) -> Columns:
        config = self.pipeline.model.config
        units = tuple(config.action_units) if config.use_au_branch else ()
        emotions = tuple(config.emotions) if config.use_emo_branch else ()
        has = {"left": "sides", "right": "sides", "intensity": "intensities"}  # which older checkpoints have not
        details = tuple(name for name, field in has.items() if units and getattr(config, field, False))
        return Columns(units, emotions, caption, details, states, relative)

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
    if adapter is not None and engine == "torch":
        _torch_part("check_adapter_file")(adapter)
    if adapter is not None and model is None:
        model = _base_of(str(adapter))
    name, adapter = str(EMBEDDED if model is None else model), None if adapter is None else str(adapter)
    if model is None and not EMBEDDED.is_dir():
        raise OSError(f"the embedded model is not installed ({EMBEDDED}); name one: --model FOLDER_OR_NAME")
    with_processor = name
    if adapter is not None and file_of(adapter, "processor_config.json"):
        with_processor = adapter  # its thresholds
    if engine == "torch":
        pipeline = _torch_part("torch_pipeline")(name, adapter, with_processor, None if device == "auto" else device)
    else:
        pipeline = engine_pipeline(engine, name, adapter, with_processor)
    for field in ("action_units", "emotions"):
        got, expected = (list(getattr(one, field)) for one in (pipeline.processor, pipeline.model.config))
        if got != expected:
            raise ValueError(
                f"{with_processor}: processor_config.json has {field} {got}, but config.json of {name} has {expected}; "
                "answers would bear wrong names: copy both files from one checkpoint"
            )
    synthetic = any_synthetic(*(is_synthetic(place) for place in ([name] if adapter is None else [adapter, name])))
    return AnalysisModel(pipeline, EMBEDDED.name if model is None else name, adapter, synthetic, engine)


def _base_of(adapter: str) -> str:
    base = read_object(adapter, "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str):
        raise ValueError(
            f"{adapter}: adapter_config.json: base_model_name_or_path: got {base!r}, expected the adapter's model; "
            "name it: --model FOLDER_OR_NAME"
        )
    return base


def _torch_part(name: str) -> Any:
    """A function of `torch_model`, which is imported here alone."""
    try:
        return getattr(importlib.import_module("mf2face.inference.torch_model"), name)
    except ImportError as error:
        raise ImportError(
            f"engine: 'torch' needs the full package ({error}): pip install -e .; or run an exported model: "
            "--engine onnx"
        ) from error


def any_synthetic(*known: bool | None) -> bool | None:
    """Combines adapter and base: an adapter trained on real faces over a base trained on drawn ones is synthetic."""
    return True if True in known else None if None in known else False


def is_synthetic(place: str) -> bool | None:
    run = file_of(place, "run.json")
    if run is not None:
        try:
            return bool(read_json(run)["synthetic"])
        except (OSError, ValueError, LookupError, TypeError):
            pass
    card = file_of(place, "README.md")
    text = "" if card is None else card.read_text(encoding="utf-8", errors="replace")
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    return True if _SYNTHETIC_TAG.search(head) else None


_SYNTHETIC_TAG = re.compile(r"^(\s*-\s*|tags:.*\b)['\"]?synthetic\b", re.MULTILINE)
