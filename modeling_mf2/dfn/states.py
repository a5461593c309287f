"""Frozen states: what flows through the ports of a model, to train an adapter from without the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .layer import DFNLayer


def ports_of(model: nn.Module) -> dict[str, nn.Module]:
    """The port of each branch, or the layer that an adapter put in its place."""
    modules = model.named_modules()
    ports = [m for name, m in modules if getattr(m, "is_dfn_port", False) and not name.endswith("base_layer")]
    if not ports:
        raise ValueError(f"model: got {type(model).__name__}, which has no port; expected a model of MF²")
    return {port.branch: port for port in ports}


def towers_of(port: nn.Module) -> dict[str, Any]:
    """The active adapter's towers, by pathway."""
    return (port.active_towers or {}) if isinstance(port, DFNLayer) else {}


@contextmanager
def recorded_states(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Records what flows through the ports in the next forward pass, by name; the pass itself stays as it is."""
    recorded: dict[str, Any] = {}
    hooks = []
    ports = ports_of(model)
    for branch, port in ports.items():
        if isinstance(port, DFNLayer) and port.active_towers is not None:
            port.recorded = recorded
        else:
            keep = lambda _, __, last, name=f"last_{branch}": recorded.update({name: last})  # noqa: E731
            hooks.append(port.register_forward_hook(keep))
    try:
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()
        for port in ports.values():
            if isinstance(port, DFNLayer):
                port.recorded = None


@torch.no_grad()
def compute_states(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what `model(states=...)` takes: tensors (images, 1 or AUs, ...), and states that are the same for all
    images as `pathway.layer`."""
    training, images = model.training, len(next(iter(inputs.values())))
    model.eval()
    try:
        with recorded_states(model) as recorded:
            model(**inputs)
    finally:
        model.train(training)
    states: dict[str, torch.Tensor] = {}
    towers = {name: tower for port in ports_of(model).values() for name, tower in towers_of(port).items()}
    for name, value in recorded.items():
        if name not in towers:
            states[name] = value.unflatten(0, (images, -1)).detach()
            continue
        tower = towers[name]
        pairs = list(zip(tower.layers, value, strict=True))
        states |= {f"{name}.{layer}": state for layer, state in pairs if layer in tower.shared}
        own = [state for layer, state in pairs if layer not in tower.shared]
        if own:
            states[name] = torch.stack(own, dim=1).unflatten(0, (images, -1))
    if getattr(model.config, "shape_weight", 0) and inputs.get("landmarks") is not None:
        states["landmarks"] = inputs["landmarks"]
    return states


__all__ = ["compute_states", "ports_of", "recorded_states", "towers_of"]
