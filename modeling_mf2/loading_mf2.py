"""Weights of a file that has them under the model's own names go into their places at once.

transformers takes each tensor through its rules for renaming and converting, and compiles regular expressions for every
name: half of a cold start. Whatever is not as plain as here is left to it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils.loading_report import LoadStateDictInfo


def _is_plain(model: nn.Module, files: Sequence[str] | None, how: Any) -> bool:
    """Nothing is to be quantised, spread over devices, or kept in another precision than the rest."""
    special = (how.hf_quantizer, how.device_map, how.device_mesh, how.dtype_plan, how.disable_mmap)
    return bool(files) and not any(special) and all(str(file).endswith(".safetensors") for file in files)


def _is_renamed(names: Sequence[str], rules: Sequence[Any]) -> bool:
    return any(rule.compiled_sources.search(name) for rule in rules for name in names)


def load_in_place(
    model: nn.Module, state_dict: dict[str, torch.Tensor] | None, files: Sequence[str] | None, how: Any
) -> LoadStateDictInfo | None:
    """What `PreTrainedModel._load_pretrained_model` does, or None where it is not for this function to do."""
    if state_dict is not None or not _is_plain(model, files, how):
        return None
    places = model.state_dict()
    if not all(place.is_meta and type(place) in (torch.Tensor, nn.Parameter) for place in places.values()):
        return None
    opened = [safe_open(file, framework="pt", device="cpu") for file in files]
    where = {name: file for file in opened for name in file.keys()}
    if not set(places) <= set(where) or _is_renamed(list(where), how.weight_mapping or ()):
        return None
    if any(where[name].get_slice(name).get_shape() != list(place.shape) for name, place in places.items()):
        return None
    found = {name: where[name].get_tensor(name).to(place.dtype) for name, place in places.items()}
    model.load_state_dict(found, assign=True)
    for tensor in (*model.parameters(), *(buffer for buffer in model.buffers() if not buffer.is_meta)):
        tensor._is_hf_initialized = True  # or it would be made anew
    model._weight_conversions = []  # none was needed, and none is when it is saved
    unexpected = set(where) - set(places)
    return LoadStateDictInfo(
        missing_keys=set(),
        unexpected_keys=unexpected,
        mismatched_keys=set(),
        conversion_errors={},
        error_msgs=[],
        skipped_pp_keys=set(),
    )


def check_adapter_file(folder: Any) -> None:
    """Of a folder (not of a name on the Hub, whose client checks what it downloads)."""
    file = Path(str(folder)) / "adapter_model.safetensors"
    if not file.is_file():
        return
    try:
        with safe_open(file, framework="pt"):
            pass
    except SafetensorError as error:
        raise OSError(
            f"{file}: damaged or cut short ({file.stat().st_size:,} bytes; {error}); expected an adapter's weights: "
            "copy or download them again"
        ) from error


__all__ = ["check_adapter_file", "load_in_place"]
