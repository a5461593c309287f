"""Weights that are read past their module's `forward`, where accelerate would not fetch them."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from configuration_mf2.hub import check_finite_weights, check_loading_info
from configuration_mf2.json_files import read_json


try:
    from accelerate.utils import align_module_device
except ImportError:  # without accelerate nothing is offloaded
    align_module_device = None


def fetched(module: nn.Module) -> AbstractContextManager:
    """Inside it a module has its own weights (not those of its submodules), also where they are offloaded."""
    if align_module_device is None or torch.compiler.is_compiling():
        return nullcontext()
    return align_module_device(module)


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
        from peft import PeftType
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


__all__ = ["check_adapter_file", "fetched", "load_to_answer"]
