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

from huggingface_hub.errors import HTTPError  # of whichever client it speaks to the Hub by


ENTRY_MODULE = "mf2_hub_code"
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2")

AUTO_CLASSES: dict[str, str] = {
    "AutoConfig": "MF2Config",
    "AutoImageProcessor": "MF2ImageProcessor",
    "AutoProcessor": "MF2Processor",
    "AutoModel": "MF2Model",
    "AutoModelForPreTraining": "MF2ForPreTraining",
    "AutoModelForImageClassification": "MF2ForImageClassification",
    "AutoModelForImageTextToText": "MF2ForCaptioning",
}

PUBLIC_CLASSES: dict[str, tuple[str, ...]] = {
    "configuration_mf2": ("MF2Config", "MF2QFormerConfig", "MF2VisionConfig"),
    "image_processing_mf2": ("MF2ImageProcessor",),
    "processing_mf2": ("MF2Processor",),
    "modeling_mf2": ("MF2ForFaceAnalysis", "MF2ForImageClassification", "MF2Model"),
    "pretraining_mf2": ("MF2ForPreTraining",),
    "captioning_mf2": ("MF2ForCaptioning",),
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

_ACROSS_ROOMS = re.compile(r"^(\s*)from (?:configuration|processing|modeling)_mf2\.(\w+) import", re.MULTILINE)
_INSIDE_ROOM = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)


def auto_map(*auto_classes: str) -> dict[str, str]:
    return {name: f"{ENTRY_MODULE}.{AUTO_CLASSES[name]}" for name in auto_classes or AUTO_CLASSES}


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


def flat_code(module_name: str = __name__) -> dict[str, str]:
    """The files of a self-contained checkpoint: file name -> text."""
    sources = _source_files(module_name)
    texts: dict[str, str] = {}
    waiting = [*PUBLIC_CLASSES, *OPTIONAL_CLASSES]
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
    imports = "\n".join(f"from .{name} import {', '.join(classes)}" for name, classes in PUBLIC_CLASSES.items())
    optional = "\n".join(f"    from .{name} import {', '.join(classes)}" for name, classes in OPTIONAL_CLASSES.items())
    public = sorted(name for classes in PUBLIC_CLASSES.values() for name in classes)
    texts[ENTRY_MODULE] = f"{imports}\n\ntry:\n{optional}\nexcept ImportError:\n    pass\n\n\n__all__ = {public}\n"
    return {f"{name}.py": text for name, text in texts.items()}


def write_code(folder: str | os.PathLike) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in flat_code().items():
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


class SelfContainedMixin:
    """First base of every class with a `save_pretrained`; `hub_auto_classes` are those that its own file answers to."""

    hub_auto_classes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None) -> None:
        """Nothing to do. transformers calls this on every class that it loads from a checkpoint's code, and would then
        write an `auto_map` of its own, past the entry module."""

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().from_pretrained(source, *args, **kwargs)
        except (HTTPError, OSError) as error:
            broken = _broken_connection(error)
            if broken is None:
                raise
            raise OSError(
                f"{source}: the connection to the Hub broke off ({broken}). What was complete is kept, nothing else: "
                "call again to go on, or pass local_files_only=True if you have downloaded it before"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        content.pop("auto_map", None)
        content.pop("custom_pipelines", None)
        if self.hub_auto_classes:
            content["auto_map"] = auto_map(*self.hub_auto_classes)
        if "AutoConfig" in self.hub_auto_classes:
            content["custom_pipelines"] = custom_pipelines()
        return content

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        write_code(save_directory)
        return saved

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        write_code(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)
