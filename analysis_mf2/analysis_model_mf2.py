"""The model that a user named, ready to answer, and what must be said with every answer: what it was trained on."""

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from transformers.utils import cached_file

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.json_mf2 import read_json
from configuration_mf2.loading_check_mf2 import check_finite
from modeling_mf2.loading_mf2 import check_adapter_file, load_to_answer
from modeling_mf2.pretraining_mf2 import MF2ForPreTraining
from processing_mf2.pipeline_mf2 import MF2FaceAnalysisPipeline, face_pipeline
from processing_mf2.processing_mf2 import MF2Processor

from .engines_mf2 import check_engine, engine_model
from .rows_mf2 import Columns
from .summary_mf2 import first_line


EMBEDDED = Path(__file__).resolve().parents[1] / "model_cards" / "mf2-tiny-synthetic"


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
    engine: `torch`, or on a CPU `onnx` or `int8`, see `engines_mf2`."""
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
    if adapter is not None and _file(str(adapter), "processor_config.json"):
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
    told = [is_synthetic(place) for place in ([name] if adapter is None else [str(adapter), name])]
    # An adapter on real faces over a base on drawn ones still stands on drawn ones: both are asked.
    synthetic = True if True in told else None if None in told else False
    label = EMBEDDED.name if model is None else name
    return AnalysisModel(pipeline, label, None if adapter is None else str(adapter), synthetic, engine)


def _in_torch(name: str, adapter: str | None) -> Any:
    loaded = load_to_answer(MF2ForPreTraining, name)
    if adapter is None:
        return loaded
    adapted = PeftModel.from_pretrained(loaded, adapter)
    check_finite(adapted, adapter)
    return adapted


def _file(place: str, name: str) -> str | None:
    try:
        return cached_file(place, name)
    except OSError:  # missing, or out of reach
        return None


def is_synthetic(place: str) -> bool | None:
    run = _file(place, "run.json")
    if run is not None:
        try:
            return bool(read_json(run)["synthetic"])
        except (OSError, ValueError, LookupError, TypeError):
            pass
    card = _file(place, "README.md")
    try:
        tags: Sequence[Any] = ModelCard.load(card).data.tags or () if card else ()
    except (OSError, ValueError):
        tags = ()
    return True if "synthetic" in tags else None


__all__ = ["EMBEDDED", "AnalysisModel", "is_synthetic", "load_model"]
