"""Checkpoints that carry their own code, so that a process without our packages loads them (trust_remote_code=True).

Code on the Hub is one flat folder of `.py` files. Ours lives in rooms; this file, and no other, flattens it: it copies
the files that the public classes need, turns each import across rooms into one inside the folder, and adds one entry
module that names every public class. All `auto_map` values point into that module: two would load each class twice.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # of whichever client it speaks to the Hub by
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)


ENTRY_MODULE = "mf2_hub_code"
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2")

AUTO_CLASSES: dict[str, str | dict[str, str]] = {
    "AutoConfig": "MF2Config",
    "AutoImageProcessor": {"torchvision": "MF2ImageProcessor", "pil": "MF2ImageProcessorPil"},
    "AutoProcessor": "MF2Processor",
    "AutoModel": "MF2Model",
    "AutoModelForPreTraining": "MF2ForPreTraining",
    "AutoModelForImageClassification": "MF2ForImageClassification",
    "AutoModelForImageTextToText": "MF2ForCaptioning",
    "AutoModelForZeroShotImageClassification": "MF2ForZeroShotImageClassification",
}

PUBLIC_CLASSES: dict[str, tuple[str, ...]] = {
    "configuration_mf2": ("MF2Config", "MF2QFormerConfig", "MF2VisionConfig"),
    "image_processing_mf2": ("MF2ImageProcessor", "MF2ImageProcessorPil"),
    "processing_mf2": ("MF2Processor",),
    "modeling_mf2": ("MF2ForFaceAnalysis", "MF2ForImageClassification", "MF2Model"),
    "pretraining_mf2": ("MF2ForPreTraining",),
    "captioning_mf2": ("MF2ForCaptioning",),
    "text_choice_mf2": ("MF2ForZeroShotImageClassification",),
    "pipeline_mf2": (
        "MF2FaceAnalysisPipeline",
        "MF2ImageClassificationPipeline",
        "MF2ImageToTextPipeline",
        "MF2ZeroShotImageClassificationPipeline",
    ),
}

# Task -> its class, and the Auto class that loads the model for it.
PIPELINES: dict[str, tuple[str, str]] = {
    "face-analysis": ("MF2FaceAnalysisPipeline", "AutoModelForPreTraining"),
    "image-classification": ("MF2ImageClassificationPipeline", "AutoModelForPreTraining"),
    "image-text-to-text": ("MF2ImageToTextPipeline", "AutoModelForImageTextToText"),
    "image-to-text": ("MF2ImageToTextPipeline", "AutoModelForImageTextToText"),
    "zero-shot-image-classification": ("MF2ZeroShotImageClassificationPipeline", "AutoModel"),
}

# Imported where it can be: DFN needs peft, and a model without adapters does not.
OPTIONAL_CLASSES: dict[str, tuple[str, ...]] = {
    "dfn_config": ("DFNConfig",),
    "dfn_model": ("DFNModel",),
    "dfn_states": ("frozen_states", "outputs_from_states"),
}

# The compared systems: an entry module each (`<name>_hub_code`), so that no checkpoint carries another system's code.
COMPARED_CLASSES: dict[str, dict[str, tuple[str, ...]]] = {
    "vl_fau": {"configuration_vl_fau": ("VLFAUConfig",), "modeling_vl_fau": ("VLFAUForFaceAnalysis",)},
    "me_graph_au": {
        "configuration_me_graph_au": ("MEGraphAUConfig",),
        "modeling_me_graph_au": ("MEGraphAUForFaceAnalysis",),
    },
    "hsemotion": {
        "configuration_hsemotion": ("HSEmotionConfig",),
        "modeling_hsemotion": ("HSEmotionForFaceAnalysis",),
    },
    "exp_blip": {
        "configuration_exp_blip": ("ExpBlipConfig",),
        "modeling_exp_blip": ("ExpBlipForFaceAnalysis", "ExpBlipForPreTraining"),
    },
    "exp_blip_captioner": {
        "configuration_exp_blip": ("ExpBlipCaptionerConfig",),
        "exp_blip_captioner": ("ExpBlipTowerCaptioner",),
    },
}

_ACROSS_ROOMS = re.compile(r"^(\s*)from (?:configuration|processing|modeling)_mf2\.(\w+) import", re.MULTILINE)
_INSIDE_ROOM = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)


def auto_map(*auto_classes: str, system: str = "mf2") -> dict[str, str | dict[str, str]]:
    if system == "mf2":
        return {name: _in_entry_module(AUTO_CLASSES[name]) for name in auto_classes or AUTO_CLASSES}
    (config,), models = COMPARED_CLASSES[system].values()
    # Where there are two, the last is the one that is pre-trained.
    found = {"AutoConfig": config, "AutoModelForPreTraining": models[-1]}
    return {name: f"{system}_hub_code.{found.get(name, models[0])}" for name in auto_classes}


def _in_entry_module(found: str | dict[str, str]) -> str | dict[str, str]:
    if isinstance(found, dict):  # a class for each backend
        return {backend: f"{ENTRY_MODULE}.{name}" for backend, name in found.items()}
    return f"{ENTRY_MODULE}.{found}"


def custom_pipelines() -> dict[str, dict[str, Any]]:
    return {
        task: {"impl": f"{ENTRY_MODULE}.{name}", "pt": [auto_class], "type": "image"}
        for task, (name, auto_class) in PIPELINES.items()
    }


def _source_files(module_name: str) -> dict[str, Path]:
    """File name without ending -> path, of every file that could travel; from our rooms or from a flat folder."""
    here = Path(sys.modules[module_name].__file__).resolve().parent
    folders = [here.parent / room for room in ROOMS] if here.name in ROOMS else [here]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}


def flat_code(module_name: str = __name__, system: str = "mf2") -> dict[str, str]:
    """The files of a self-contained checkpoint: file name -> text."""
    sources = _source_files(module_name)
    texts: dict[str, str] = {}
    compared = COMPARED_CLASSES.get(system)
    waiting = [*PUBLIC_CLASSES, *OPTIONAL_CLASSES] if compared is None else [*compared]
    while waiting:
        name = waiting.pop()
        if name in texts:
            continue
        if name not in sources:
            raise FileNotFoundError(
                f"{name}.py: needed by the checkpoint's code but not found among {sorted(map(str, sources.values()))}; "
                "reinstall the package, or load the checkpoint with a complete copy of its code"
            )
        texts[name] = _ACROSS_ROOMS.sub(r"\1from .\2 import", sources[name].read_text(encoding="utf-8"))
        waiting += _INSIDE_ROOM.findall(texts[name])
    public_classes = PUBLIC_CLASSES if compared is None else compared
    imports = "\n".join(f"from .{name} import {', '.join(classes)}" for name, classes in public_classes.items())
    if compared is not None:
        texts[f"{system}_hub_code"] = f"{imports}\n"
        return {f"{name}.py": text for name, text in texts.items()}
    optional = "\n".join(f"    from .{name} import {', '.join(classes)}" for name, classes in OPTIONAL_CLASSES.items())
    public = sorted(name for classes in PUBLIC_CLASSES.values() for name in classes)
    texts[ENTRY_MODULE] = f"{imports}\n\ntry:\n{optional}\nexcept ImportError:\n    pass\n\n\n__all__ = {public}\n"
    return {f"{name}.py": text for name, text in texts.items()}


def write_code(folder: str | os.PathLike, system: str = "mf2") -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in flat_code(system=system).items():
        target = folder / name
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        temporary = target.with_suffix(".py.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)


def _broken_connection(error: BaseException | None) -> HTTPError | None:
    """What an error of transformers comes from, if that is a connection and not an answer of the Hub."""
    while error is not None and not isinstance(error, HTTPError):
        error = error.__cause__ or error.__context__
    return None if isinstance(error, OSError) else error  # huggingface_hub's own errors are both


_PUSH_ARGUMENTS = {
    *("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags"),
}
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def _withheld(source: Any, error: Exception, settings: dict[str, Any]) -> str | None:
    """transformers takes a file that the Hub does not hand out for one that is not there. Asked again, the Hub says
    why; None where the file is not there indeed."""
    if "does not appear to have a file named" not in str(error) or settings.get("local_files_only"):
        return None
    adapter = settings.get("adapter_kwargs") or {}  # an Auto class has told it from its base already
    for name in _WEIGHTS:
        if name.startswith("adapter") and "_adapter_model_path" in adapter:
            source, settings = adapter["_adapter_model_path"], {**settings, "revision": None, **adapter}
        where = {key: settings[key] for key in ("revision", "token", "cache_dir") if settings.get(key) is not None}
        try:
            hf_hub_download(str(source), name, **where)
        except RemoteEntryNotFoundError:
            continue
        except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError) as why:
            answer = why if isinstance(why, HfHubHTTPError) or why.__cause__ is None else why.__cause__
            status = getattr(getattr(answer, "response", None), "status_code", None)
            told = str(answer).strip().partition("\n")[0]
            if status in (401, 403):
                return (
                    f"{source}: access to {name} was refused ({told}); expected a token that may read it: ask its "
                    "owners for access, then pass token=... or log in with `hf auth login`"
                )
            return f"{source}: {name} could not be downloaded ({told}); nothing broken is kept: call again"
    return None


class SelfContainedMixin:
    """First base of every class with a `save_pretrained`; `hub_auto_classes` are those that its own file answers to."""

    hub_auto_classes: ClassVar[tuple[str, ...]] = ()
    hub_system: ClassVar[str] = "mf2"

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None) -> None:
        """Nothing to do. transformers calls this on every class that it loads from a checkpoint's code, and would then
        write an `auto_map` of its own, past the entry module."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        source = pretrained_model_name_or_path
        try:
            return super().from_pretrained(source, *args, **kwargs)
        except (HTTPError, OSError) as error:
            broken = _broken_connection(error)
            if broken is None:
                withheld = _withheld(source, error, kwargs)
                if withheld is None:
                    raise
                raise OSError(withheld) from error
            raise OSError(
                f"{source}: the connection to the Hub broke off ({broken}). What was complete is kept, nothing else: "
                "call again to go on, or pass local_files_only=True if you have downloaded it before"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        content.pop("auto_map", None)
        content.pop("custom_pipelines", None)
        if self.hub_auto_classes:
            content["auto_map"] = auto_map(*self.hub_auto_classes, system=self.hub_system)
        if "AutoConfig" in self.hub_auto_classes and self.hub_system == "mf2":
            content["custom_pipelines"] = custom_pipelines()
        return content

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> Any:
        hub = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS & set(kwargs)} if push_to_hub else {}
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        write_code(save_directory, self.hub_system)
        if push_to_hub:  # which saves once more, and uploads the code too
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)
        return saved
