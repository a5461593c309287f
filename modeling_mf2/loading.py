"""What all models share when they are loaded and called: checks of files, labels and inputs, offloaded weights."""

import dataclasses
import difflib
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from configuration_mf2.facs import LABEL_ARGUMENTS
from configuration_mf2.hub import SelfContainedMixin, check_finite_weights, check_loading_info
from configuration_mf2.json_files import read_json


try:
    from accelerate.hooks import AlignDevicesHook
except ImportError:  # without accelerate nothing is offloaded
    AlignDevicesHook = None


@contextmanager
def _aligned(module: nn.Module, hooks: list[Any]) -> Iterator[None]:
    for hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook in hooks:
            hook.post_forward(module, None)


def fetched(module: nn.Module) -> AbstractContextManager:
    """Inside it a module has its own weights (not those of its submodules), also where they are offloaded.

    accelerate's `align_module_device` skips the module that `cpu_offload` was called on: it has two hooks.
    """
    if AlignDevicesHook is None or torch.compiler.is_compiling() or not hasattr(module, "_hf_hook"):
        return nullcontext()
    hooks = getattr(module._hf_hook, "hooks", [module._hf_hook])
    return _aligned(module, [hook for hook in hooks if isinstance(hook, AlignDevicesHook) and hook.offload])


# Keys that the collator may emit, and flags that transformers may pass to any model.
_BATCH_FIELDS = {
    *("pixel_values", "landmarks", "image_tokens", "index", "au_labels", "emotion_labels", "states"),
    *("side_labels", "intensity_labels"),
    *("input_ids", "attention_mask", "au_input_ids", "au_attention_mask"),
    *("key_au_input_ids", "key_au_attention_mask", "output_hidden_states", "output_attentions"),
}


def check_unused(model: nn.Module, unused: dict[str, object]) -> None:
    """Landmarks under a misspelt name must not be taken for no landmarks."""
    for name, value in unused.items():
        if value is not None and name not in _BATCH_FIELDS:
            known = [key for key in inspect.signature(model.forward).parameters if key not in ("args", "kwargs")]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"{type(model).__name__}: got an unknown input {name!r}; {hint}Inputs: {known}")


class FacePreTrainedModel(SelfContainedMixin, PreTrainedModel):
    """Base of MF² and of the compared systems."""

    main_input_name = "pixel_values"
    # The losses are means already; the Trainer must not divide or multiply them.
    accepts_loss_kwargs = False
    can_relabel = False
    """Whether `ignore_mismatched_sizes` starts other labels anew, by the model's `forget_labels`."""
    relabel_hint = ""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: object, *args: object, **kwargs: object) -> object:
        source = pretrained_model_name_or_path
        relabelled = cls._relabelled(source, kwargs)
        if relabelled and not (cls.can_relabel and kwargs.get("ignore_mismatched_sizes")):
            raise ValueError(
                f"{next(iter(relabelled.values()))}; what was learned for a label must not answer for another. "
                f"{cls.relabel_hint}"
            )
        try:
            loaded = super().from_pretrained(source, *args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"{source}: model.safetensors is damaged or cut short ({error}); copy or download the checkpoint again"
            ) from error
        if relabelled:
            (loaded[0] if isinstance(loaded, tuple) else loaded).forget_labels(relabelled)
        return loaded

    @classmethod
    def _relabelled(cls, source: object, kwargs: dict[str, object]) -> dict[str, str]:
        """The fields whose wanted labels are not the checkpoint's, and how they differ; none where none were named."""
        named = {name: kwargs[name] for name in LABEL_ARGUMENTS if name in kwargs}
        if source is None or (not named and not isinstance(kwargs.get("config"), cls.config_class)):
            return {}
        where = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        saved = cls.config_class.from_pretrained(source, **{name: kwargs[name] for name in where if name in kwargs})
        wanted = kwargs.get("config") or cls.config_class.from_dict(saved.to_dict(), **named)
        pairs = {field: (getattr(wanted, field), getattr(saved, field)) for field in ("action_units", "emotions")}
        return {
            field: f"{field}: got {new}, but the checkpoint {source} has {old}"
            for field, (new, old) in pairs.items()
            if list(new) != list(old)
        }


def load_to_answer(kind: type, source: Any, **kwargs: Any) -> Any:
    """`kind.from_pretrained`, which starts training too and fills in what is missing; here that is an error."""
    model, info = kind.from_pretrained(source, output_loading_info=True, **kwargs)
    check_loading_info(info, source)
    check_finite_weights(model, source)
    return model


def check_adapter_file(folder: Any) -> None:
    """Of a folder (not of a name on the Hub, whose client checks what it downloads)."""
    _check_adapter_config(Path(str(folder)) / "adapter_config.json")
    file = Path(str(folder)) / "adapter_model.safetensors"
    if not file.is_file():
        if file.exists():
            raise OSError(f"{file}: a folder or device, expected a file: an adapter's weights")
        return
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise OSError(
            f"{file}: damaged or cut short ({file.stat().st_size:,} bytes; {error}); expected an adapter's weights: "
            "copy or download them again"
        ) from error


def _check_adapter_config(file: Path) -> None:
    """What peft reads before it knows which config checks the other fields."""
    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
    except ImportError:
        raise
    if not file.is_file():
        return
    wanted = "the file that peft wrote beside the weights: copy or download it again"
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got {type(content).__name__}, expected an object: {wanted}")
    kind, kinds = content.get("peft_type"), sorted(PeftType.__members__)
    if kind not in kinds:
        got = repr(kind) if "peft_type" in content else "none"
        raise ValueError(f"{file}: peft_type: got {got}, expected one of {kinds}: {wanted}")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[kind])
    for field in dataclasses.fields(config_class) if config_class else ():
        value = content.get(field.name)
        if field.type in (bool, "bool") and value is not None and not isinstance(value, bool):
            raise ValueError(f"{file}: {field.name}: got {value!r}, expected true or false: {wanted}")


__all__ = ["FacePreTrainedModel", "check_adapter_file", "check_unused", "fetched", "load_to_answer"]
