"""Importing this package registers the processors of MF² with the Auto classes."""

from transformers import AutoImageProcessor, AutoProcessor
from transformers.utils import is_torchvision_available

from configuration_mf2.configuration_mf2 import MF2Config

from .captions import RuleCaptioner
from .geometry import MF2Augmentation
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
from .tokenizer import build_tokenizer, load_bert_tokenizer


_BACKENDS = {"pil": MF2ImageProcessorPil, **({"torchvision": MF2ImageProcessor} if is_torchvision_available() else {})}
AutoImageProcessor.register(MF2Config, image_processor_classes=_BACKENDS, exist_ok=True)
AutoProcessor.register(MF2Config, MF2Processor, exist_ok=True)

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
