"""Importing this package registers MF² and the compared systems with the Auto classes, and DFN with peft.

It waits until transformers or peft is imported, and loads no model: a class is imported at its first use, and with it
timm, peft or a compared system.
"""

import importlib
from typing import Any

from configuration_mf2.lazy import lazy_names, when_imported


# Public class -> the module that defines it.
_CLASSES = {
    "DFNConfig": "dfn.config",
    "DFNModel": "dfn.model",
    "ExpBlipForFaceAnalysis": "baselines.exp_blip",
    "ExpBlipForPreTraining": "baselines.exp_blip",
    "ExpBlipTowerCaptioner": "baselines.exp_blip",
    "HSEmotionForFaceAnalysis": "baselines.hsemotion",
    "MEGraphAUForFaceAnalysis": "baselines.me_graph_au",
    "MF2ForCaptioning": "modeling_mf2",
    "MF2ForFaceAnalysis": "modeling_mf2",
    "MF2ForImageClassification": "modeling_mf2",
    "MF2ForPreTraining": "pretraining",
    "MF2ForZeroShotImageClassification": "modeling_mf2",
    "MF2Model": "modeling_mf2",
    "MF2PreTrainedModel": "modeling_mf2",
    "VLFAUForFaceAnalysis": "baselines.vl_fau",
}

_class_of_file = lazy_names(__name__, _CLASSES)


def _public_class(name: str) -> Any:
    if _CLASSES.get(name, "").startswith("dfn."):
        importlib.import_module(f"{__name__}.dfn.model")
    return _class_of_file(name)


__getattr__ = _public_class


class _LazyClass:
    """Stands for a model class in the Auto classes; the first attribute that is asked for loads the class."""

    def __init__(self, name: str, config_class: type) -> None:
        self.__name__, self.config_class = name, config_class

    def __getattr__(self, attribute: str) -> Any:
        return getattr(_public_class(self.__name__), attribute)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        """A class may be derived from what an Auto class names."""
        return (_public_class(self.__name__),)


def _register() -> None:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForImageTextToText,
        AutoModelForPreTraining,
        AutoModelForZeroShotImageClassification,
    )

    from configuration_mf2.baselines import (
        ExpBlipCaptionerConfig,
        ExpBlipConfig,
        HSEmotionConfig,
        MEGraphAUConfig,
        VLFAUConfig,
    )
    from configuration_mf2.configuration_mf2 import MF2Config

    for config, names in {
        MF2Config: {
            AutoModel: "MF2Model",
            AutoModelForPreTraining: "MF2ForPreTraining",
            AutoModelForImageClassification: "MF2ForImageClassification",
            AutoModelForImageTextToText: "MF2ForCaptioning",
            AutoModelForZeroShotImageClassification: "MF2ForZeroShotImageClassification",
        },
        VLFAUConfig: {AutoModel: "VLFAUForFaceAnalysis", AutoModelForPreTraining: "VLFAUForFaceAnalysis"},
        MEGraphAUConfig: {AutoModel: "MEGraphAUForFaceAnalysis", AutoModelForPreTraining: "MEGraphAUForFaceAnalysis"},
        HSEmotionConfig: {AutoModel: "HSEmotionForFaceAnalysis", AutoModelForPreTraining: "HSEmotionForFaceAnalysis"},
        ExpBlipConfig: {AutoModel: "ExpBlipForFaceAnalysis", AutoModelForPreTraining: "ExpBlipForPreTraining"},
        ExpBlipCaptionerConfig: {AutoModelForImageTextToText: "ExpBlipTowerCaptioner"},
    }.items():
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto_class, name in names.items():
            auto_class.register(config, _LazyClass(name, config), exist_ok=True)


when_imported("transformers", _register)
when_imported("peft", lambda: importlib.import_module(f"{__name__}.dfn.model"))

__all__ = sorted(_CLASSES)
