"""Importing this package registers the processors of MF² with the Auto classes, once transformers is imported.

A class or function is imported at its first use.
"""

import importlib

from configuration_mf2.lazy import lazy_names, when_imported


_FILES = {
    "FaceAlignmentDetector": "landmarks",
    "MF2Augmentation": "augmentation",
    "MF2FaceAnalysisPipeline": "pipelines",
    "MF2ImageClassificationPipeline": "pipelines",
    "MF2ImageProcessor": "image_processing_mf2",
    "MF2ImageProcessorPil": "image_processing_mf2",
    "MF2ImageToTextPipeline": "pipelines",
    "MF2Processor": "processing_mf2",
    "MF2ZeroShotImageClassificationPipeline": "pipelines",
    "RuleCaptioner": "captions",
    "build_tokenizer": "tokenizer",
    "face_pipeline": "pipelines",
    "load_bert_tokenizer": "tokenizer",
    "template_landmarks": "landmarks",
}
__getattr__ = lazy_names(__name__, _FILES)


def _register() -> None:
    from transformers import AutoImageProcessor, AutoProcessor
    from transformers.utils import is_torchvision_available

    from configuration_mf2.configuration_mf2 import MF2Config

    from .image_processing_mf2 import MF2ImageProcessor, MF2ImageProcessorPil
    from .processing_mf2 import MF2Processor

    classes = {
        "pil": MF2ImageProcessorPil,
        **({"torchvision": MF2ImageProcessor} if is_torchvision_available() else {}),
    }
    AutoImageProcessor.register(MF2Config, image_processor_classes=classes, exist_ok=True)
    AutoProcessor.register(MF2Config, MF2Processor, exist_ok=True)
    importlib.import_module(f"{__name__}.pipelines")  # registers its task


when_imported("transformers", _register)

__all__ = sorted(_FILES)
