"""Whether a checkpoint has all that an answer needs: no weight missing, none of another shape, none NaN or infinite."""

import importlib
import os
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError


_NAMED = 8


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def check_loading_info(info: dict[str, Any], source: object) -> None:
    """info: what `from_pretrained(..., output_loading_info=True)` returns beside the model."""
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key[0]) if isinstance(key, tuple | list) else str(key) for key in info["mismatched_keys"])
    for names, what in ((missing, "lacks"), (mismatched, "has in another shape")):
        if names:
            raise ValueError(
                f"{source}: {what} {len(names)} weights that the model answers with: {_listed(names)}; expected a "
                "trained checkpoint that has all of them: a vision tower or a bare MF2Model has to be trained first"
            )


def check_finite_weights(weights: Any, source: object) -> None:
    """weights: a model, or tensors by their names."""
    wrong = [
        name
        for name, tensor in (weights if isinstance(weights, dict) else weights.state_dict()).items()
        if tensor.is_floating_point() and tensor.device.type != "meta" and not tensor.isfinite().all()
    ]
    if wrong:
        raise ValueError(
            f"{source}: {len(wrong)} tensors hold NaN or infinite values: {_listed(sorted(wrong))}; expected finite "
            "numbers: training diverged or the file is damaged; take another checkpoint"
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

# Module -> the public classes it brings.
PUBLIC_CLASSES: dict[str, tuple[str, ...]] = {
    "configuration_mf2.configuration_mf2": ("MF2Config", "MF2QFormerConfig", "MF2VisionConfig"),
    "processing_mf2.image_processing_mf2": ("MF2ImageProcessor", "MF2ImageProcessorPil"),
    "processing_mf2.processing_mf2": ("MF2Processor",),
    "modeling_mf2.modeling_mf2": (
        "MF2ForCaptioning",
        "MF2ForFaceAnalysis",
        "MF2ForImageClassification",
        "MF2ForZeroShotImageClassification",
        "MF2Model",
    ),
    "modeling_mf2.pretraining": ("MF2ForPreTraining",),
    "processing_mf2.pipelines": (
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

# Imported where peft is installed: a model without adapters does not need it.
OPTIONAL_FILE = "dfn"
OPTIONAL_CLASSES: dict[str, tuple[str, ...]] = {
    "modeling_mf2.dfn.config": ("DFNConfig",),
    "modeling_mf2.dfn.model": ("DFNModel",),
}

# The compared systems: the file that brings config and models, the config, the model, and the one to pre-train.
BASELINES: dict[str, tuple[str, str, str, str]] = {
    "vl_fau": ("baselines_vl_fau", "VLFAUConfig", "VLFAUForFaceAnalysis", "VLFAUForFaceAnalysis"),
    "me_graph_au": ("baselines_me_graph_au", "MEGraphAUConfig", "MEGraphAUForFaceAnalysis", "MEGraphAUForFaceAnalysis"),
    "hsemotion": ("baselines_hsemotion", "HSEmotionConfig", "HSEmotionForFaceAnalysis", "HSEmotionForFaceAnalysis"),
    "exp_blip": ("baselines_exp_blip", "ExpBlipConfig", "ExpBlipForFaceAnalysis", "ExpBlipForPreTraining"),
    "exp_blip_captioner": (
        "baselines_exp_blip",
        "ExpBlipCaptionerConfig",
        "ExpBlipTowerCaptioner",
        "ExpBlipTowerCaptioner",
    ),
}


def auto_map(*auto_classes: str, system: str = "mf2") -> dict[str, str | dict[str, str]]:
    if system == "mf2":
        return {name: _in_entry_module(AUTO_CLASSES[name]) for name in auto_classes or AUTO_CLASSES}
    module, config, model, pretraining = BASELINES[system]
    classes = {"AutoConfig": config, "AutoModelForPreTraining": pretraining}
    return {name: f"{module}.{classes.get(name, model)}" for name in auto_classes}


def _in_entry_module(classes: str | dict[str, str]) -> str | dict[str, str]:
    if isinstance(classes, dict):  # a class for each backend
        return {backend: f"{ENTRY_MODULE}.{name}" for backend, name in classes.items()}
    return f"{ENTRY_MODULE}.{classes}"


def custom_pipelines() -> dict[str, dict[str, Any]]:
    return {
        task: {"impl": f"{ENTRY_MODULE}.{name}", "pt": [auto_class], "type": "image"}
        for task, (name, auto_class) in PIPELINES.items()
    }


def flat_code(system: str = "mf2") -> dict[str, str]:
    """The code of a self-contained checkpoint: file name -> text."""
    folder = Path(__file__).parent
    if folder.name in ROOMS:
        return importlib.import_module("configuration_mf2.flatten").flat_code(system)
    files = [file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"]
    return {file.name: file.read_text(encoding="utf-8") for file in files}  # a checkpoint's own code, as it is


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
    adapter = settings.get("adapter_kwargs") or {}  # an Auto class has read its base already
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
            reason = str(answer).strip().partition("\n")[0]
            if status in (401, 403):
                return (
                    f"{source}: access to {name} was refused ({reason}); expected a token that may read it: ask its "
                    "owners for access, then pass token=... or log in with `hf auth login`"
                )
            return f"{source}: {name} could not be downloaded ({reason}); nothing broken is kept: call again"
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


__all__ = ["check_finite_weights", "check_loading_info"]
