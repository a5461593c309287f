"""Importing this package registers MF² with the Auto classes, and DFN with peft."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
)

from configuration_mf2.configuration_mf2 import MF2Config

from .captioning_mf2 import MF2ForCaptioning
from .dfn_config import DFNConfig
from .dfn_model import DFNModel
from .modeling_mf2 import MF2ForFaceAnalysis, MF2ForImageClassification, MF2Model, MF2PreTrainedModel
from .pretraining_mf2 import MF2ForPreTraining


AutoConfig.register(MF2Config.model_type, MF2Config, exist_ok=True)
AutoModel.register(MF2Config, MF2Model, exist_ok=True)
AutoModelForPreTraining.register(MF2Config, MF2ForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(MF2Config, MF2ForImageClassification, exist_ok=True)
AutoModelForImageTextToText.register(MF2Config, MF2ForCaptioning, exist_ok=True)

__all__ = [
    "DFNConfig",
    "DFNModel",
    "MF2ForCaptioning",
    "MF2ForFaceAnalysis",
    "MF2ForImageClassification",
    "MF2ForPreTraining",
    "MF2Model",
    "MF2PreTrainedModel",
]
