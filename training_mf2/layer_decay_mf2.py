"""Learning rates that fall from layer to layer towards the image, as BEiT and BLIP-2 fine-tune a vision transformer."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from modeling_mf2.source_names_mf2 import vision_name


LAYER_DECAY = 0.95  # Exp-BLIP's, the supplement's Table 12


def _layer_numbers(names: Sequence[str]) -> tuple[dict[str, int], int]:
    """Of the tower's parameters, by the names that timm has: 0 where the image enters, the last behind all blocks."""
    convolutions = [int(found[1]) // 3 + 1 for name in names if (found := re.match(r"convolutions\.(\d+)\.", name))]
    blocks = [int(found[1]) + 1 for name in names if (found := re.match(r"blocks\.(\d+)\.", name))]
    if not blocks:
        raise ValueError("layer decay: the tower has no plain sequence of blocks, expected a ViT or 'conv', or decay 1")
    first = max(convolutions, default=1)
    last, numbers = first + max(blocks), {}
    for name in names:
        part, _, rest = name.partition(".")
        if part == "convolutions":
            numbers[name] = int(rest.split(".")[0]) // 3
        elif part == "blocks":
            numbers[name] = first + int(rest.split(".")[0])
        else:
            numbers[name] = last if part in ("norm", "fc_norm", "head") else first - 1
    return numbers, last


_IN_TOWER = re.compile(r"(?:^backbone|(?:^|\.)(?:vision\.backbone|vision_model\.backbone|vision_model))\.(.+)$")


def _name_in_tower(name: str) -> str | None:
    """By timm's names; None of what is no part of a tower."""
    found = _IN_TOWER.search(name)
    return found and vision_name(found[1])


def layerwise_groups(
    model: nn.Module, lr: float, decay: float = LAYER_DECAY, weight_decay: float = 0.05
) -> list[dict[str, Any]]:
    """Groups for an optimizer: layer l of a tower of L layers learns at lr * decay ** (L - l), all else at lr. L - 1
    layers are blocks (and the convolutions of the small tower but the first), layer 0 is where the image enters, layer
    L the final norm. Biases and norms are not decayed. Frozen parameters are left out."""
    inside = {name: found for name, _ in model.named_parameters() if (found := _name_in_tower(name))}
    numbers, last = _layer_numbers(list(inside.values())) if inside and decay != 1 else ({}, 0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        steps = last - numbers.get(inside.get(name, ""), last)
        decayed = parameter.ndim > 1 and not name.endswith("bias")
        rate = {"lr": lr * decay**steps, "weight_decay": weight_decay if decayed else 0.0}
        groups.setdefault((steps, decayed), {"params": [], **rate})["params"].append(parameter)
    return list(groups.values())


def layerwise_optimizer(
    model: nn.Module, training: TrainingArguments, decay: float = LAYER_DECAY
) -> torch.optim.Optimizer:
    """AdamW as the arguments have it; for `Trainer(optimizers=(optimizer, None))`, in either stage."""
    groups = layerwise_groups(model, training.learning_rate, decay, training.weight_decay)
    betas = (training.adam_beta1, training.adam_beta2)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=betas, eps=training.adam_epsilon)


__all__ = ["LAYER_DECAY", "layerwise_groups", "layerwise_optimizer"]
