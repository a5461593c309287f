"""The model in torch. Imported only where torch runs it, or exports it."""

from typing import Any

import torch
from peft import PeftModel

from configuration_mf2.hub import check_finite_weights
from mf2face.inference.rows import first_line
from modeling_mf2.loading import check_adapter_file, load_to_answer
from modeling_mf2.pretraining import MF2ForPreTraining
from processing_mf2.pipelines import MF2FaceAnalysisPipeline, face_pipeline
from processing_mf2.processing_mf2 import MF2Processor


def torch_pipeline(name: str, adapter: str | None, processor_name: str, device: str | None) -> MF2FaceAnalysisPipeline:
    """processor_name: the checkpoint or adapter whose processor it is."""
    loaded = load_in_torch(name, adapter)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = MF2Processor.from_pretrained(processor_name)
    return face_pipeline("face-analysis", loaded, processor, device=device)


def load_in_torch(name: str, adapter: str | None) -> Any:
    if adapter is None:
        return load_to_answer(MF2ForPreTraining, name)
    loaded = load_to_answer(MF2ForPreTraining, name)
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


__all__ = ["check_adapter_file", "load_in_torch", "torch_pipeline"]
