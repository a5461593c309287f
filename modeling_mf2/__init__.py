"""Importing this package registers MF² and the compared systems with the Auto classes, and DFN with peft.

It loads none of them: a class is imported at its first use, and with it timm, peft or a compared system.
"""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

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


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _CLASSES[name].startswith("dfn."):
        importlib.import_module(f"{__name__}.dfn.model")
    return getattr(importlib.import_module(f"{__name__}.{_CLASSES[name]}"), name)


class _LazyClass:
    """Stands for a model class in the Auto classes; the first attribute that is asked for loads the class."""

    def __init__(self, name: str, config_class: type) -> None:
        self.__name__, self.config_class = name, config_class

    def __getattr__(self, attribute: str) -> Any:
        return getattr(globals()["__getattr__"](self.__name__), attribute)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        """A class may be derived from what an Auto class names."""
        return (globals()["__getattr__"](self.__name__),)


for _config, _names in {
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
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto_class, _name in _names.items():
        _auto_class.register(_config, _LazyClass(_name, _config), exist_ok=True)


class _RegisterWithPeft(MetaPathFinder):
    """Adds DFN to peft's methods as soon as peft is imported, and does not import it before."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "peft":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                # A file of DFN that imports peft itself is not whole yet; `dfn.model` registers at its own end.
                if not {f"{__name__}.dfn.{file}" for file in ("config", "layer", "model", "states")} & set(sys.modules):
                    importlib.import_module(f"{__name__}.dfn.model")

            spec.loader.exec_module = execute_and_register
        return spec


if "peft" in sys.modules:
    importlib.import_module(f"{__name__}.dfn.model")
else:
    sys.meta_path.insert(0, _RegisterWithPeft())

__all__ = sorted(_CLASSES)
