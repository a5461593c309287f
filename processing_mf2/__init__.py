"""Importing this package registers the processors of MF² with the Auto classes.

What a checkpoint does not need (captions, tokenizers to train with, augmentation) is loaded at its first use.
"""

import importlib
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor
from transformers.utils import is_torchvision_available

from configuration_mf2.configuration_mf2 import MF2Config

from .image_processing_mf2 import MF2ImageProcessor, MF2ImageProcessorPil
from .landmarks import FaceAlignmentDetector, template_landmarks
from .pipelines import (
    MF2FaceAnalysisPipeline,
    MF2ImageClassificationPipeline,
    MF2ImageToTextPipeline,
    MF2ZeroShotImageClassificationPipeline,
    face_pipeline,
)
from .processing_mf2 import MF2Processor


_BACKENDS = {"pil": MF2ImageProcessorPil, **({"torchvision": MF2ImageProcessor} if is_torchvision_available() else {})}
AutoImageProcessor.register(MF2Config, image_processor_classes=_BACKENDS, exist_ok=True)
AutoProcessor.register(MF2Config, MF2Processor, exist_ok=True)

_LAZY = {
    "MF2Augmentation": "augmentation",
    "RuleCaptioner": "captions",
    "build_tokenizer": "tokenizer",
    "load_bert_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "FaceAlignmentDetector",
    "MF2Augmentation",
    "MF2FaceAnalysisPipeline",
    "MF2ImageClassificationPipeline",
    "MF2ImageProcessor",
    "MF2ImageProcessorPil",
    "MF2ImageToTextPipeline",
    "MF2Processor",
    "MF2ZeroShotImageClassificationPipeline",
    "RuleCaptioner",
    "build_tokenizer",
    "face_pipeline",
    "load_bert_tokenizer",
    "template_landmarks",
]
