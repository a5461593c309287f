"""Importing this package registers MF² and the compared systems with the Auto classes, and DFN with peft."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
)

from configuration_mf2.configuration_exp_blip import ExpBlipCaptionerConfig, ExpBlipConfig
from configuration_mf2.configuration_hsemotion import HSEmotionConfig
from configuration_mf2.configuration_me_graph_au import MEGraphAUConfig
from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.configuration_vl_fau import VLFAUConfig

from .captioning_mf2 import MF2ForCaptioning
from .dfn_config import DFNConfig
from .dfn_model import DFNModel
from .exp_blip_captioner import ExpBlipTowerCaptioner
from .modeling_exp_blip import ExpBlipForFaceAnalysis, ExpBlipForPreTraining
from .modeling_hsemotion import HSEmotionForFaceAnalysis
from .modeling_me_graph_au import MEGraphAUForFaceAnalysis
from .modeling_mf2 import MF2ForFaceAnalysis, MF2ForImageClassification, MF2Model, MF2PreTrainedModel
from .modeling_vl_fau import VLFAUForFaceAnalysis
from .pretraining_mf2 import MF2ForPreTraining
from .text_choice_mf2 import MF2ForZeroShotImageClassification


AutoConfig.register(MF2Config.model_type, MF2Config, exist_ok=True)
AutoModel.register(MF2Config, MF2Model, exist_ok=True)
AutoModelForPreTraining.register(MF2Config, MF2ForPreTraining, exist_ok=True)
AutoModelForImageClassification.register(MF2Config, MF2ForImageClassification, exist_ok=True)
AutoModelForImageTextToText.register(MF2Config, MF2ForCaptioning, exist_ok=True)
AutoModelForZeroShotImageClassification.register(MF2Config, MF2ForZeroShotImageClassification, exist_ok=True)

for _config, _model in (
    (VLFAUConfig, VLFAUForFaceAnalysis),
    (MEGraphAUConfig, MEGraphAUForFaceAnalysis),
    (HSEmotionConfig, HSEmotionForFaceAnalysis),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForPreTraining.register(_config, _model, exist_ok=True)

AutoConfig.register(ExpBlipConfig.model_type, ExpBlipConfig, exist_ok=True)
AutoModel.register(ExpBlipConfig, ExpBlipForFaceAnalysis, exist_ok=True)
AutoModelForPreTraining.register(ExpBlipConfig, ExpBlipForPreTraining, exist_ok=True)
AutoConfig.register(ExpBlipCaptionerConfig.model_type, ExpBlipCaptionerConfig, exist_ok=True)
AutoModelForImageTextToText.register(ExpBlipCaptionerConfig, ExpBlipTowerCaptioner, exist_ok=True)

__all__ = [
    "DFNConfig",
    "DFNModel",
    "ExpBlipForFaceAnalysis",
    "ExpBlipForPreTraining",
    "ExpBlipTowerCaptioner",
    "HSEmotionForFaceAnalysis",
    "MEGraphAUForFaceAnalysis",
    "MF2ForCaptioning",
    "MF2ForFaceAnalysis",
    "MF2ForImageClassification",
    "MF2ForPreTraining",
    "MF2ForZeroShotImageClassification",
    "MF2Model",
    "MF2PreTrainedModel",
    "VLFAUForFaceAnalysis",
]
