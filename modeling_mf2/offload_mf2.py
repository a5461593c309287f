"""Weights that are read past their module's `forward`, where accelerate would not fetch them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


try:
    from accelerate.utils import align_module_device
except ImportError:  # without accelerate nothing is offloaded
    align_module_device = None


def fetched(module: nn.Module) -> AbstractContextManager:
    """Inside it a module has its own weights (not those of its submodules), also where they are offloaded."""
    if align_module_device is None or torch.compiler.is_compiling():
        return nullcontext()
    return align_module_device(module)


__all__ = ["fetched"]
