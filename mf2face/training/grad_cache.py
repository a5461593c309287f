"""Gradient accumulation that equals one large batch, in every loss and every gradient.

Losses that compare rows (ITC, hard negatives) or average over what is known need all micro-batches of a step. A first
pass without graph computes the features of all; the gradient of the joined ITC with respect to them is cached; in the
second pass each micro-batch sends it on through its own graph (Gao et al., arXiv:2101.06983).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import nn

from configuration_mf2.facs import UNKNOWN_LABEL
from modeling_mf2.losses import (
    Features,
    StepContext,
    compare,
    gather,
    gather_offset,
    pad_as_others,
    step_context,
    world_size,
)


Batch = dict[str, torch.Tensor]


@dataclass
class MicroBatch:
    """Inputs of a forward pass to run inside `entered()`."""

    inputs: Batch
    step: StepContext = field(default_factory=StepContext)
    seed: int | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What was dropped in the first pass is dropped again: gradients belong to the features they were made for."""
        if self.seed is None:
            with step_context(self.step):
                yield
            return
        device = next(iter(self.inputs.values())).device
        with step_context(self.step), torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield


def micro_batches(model: nn.Module, batches: Sequence[Batch], compares_rows: bool) -> list[MicroBatch]:
    """The micro-batches of one step, the mean of whose losses is the loss of the joined batch.

    compares_rows: whether `model` compares rows, and a first pass is needed. All processes have to give equally many
    micro-batches of equally many rows.
    """
    micro = [MicroBatch(dict(batch)) for batch in batches]
    counts = _label_counts(batches)
    if compares_rows:
        for part, seed in zip(micro, torch.randint(2**62, (len(micro),)).tolist(), strict=True):
            part.seed, part.step.first_pass = seed, True
            with torch.no_grad(), part.entered():
                model(**part.inputs)
            part.step.first_pass = False
        for name in micro[0].step.counts:
            counts[name] = sum(part.step.counts[name] for part in micro)
    counts = _spread(counts, len(micro))
    steps = [part.step for part in micro]
    for step in steps:
        step.counts = counts
    for name in steps[0].features:
        _compare(name, steps)
        matched = {f"itm_{name}": sum(step.comparisons[name].match_valid.sum() for step in steps)}
        counts |= _spread(matched, len(micro))
    if steps[0].features:
        _share_images(micro)
    for step in steps:
        step.features = {}
    return micro


def _label_counts(batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    counts: dict[str, torch.Tensor] = {}
    for name, labels in (("au", "au_labels"), ("emotion", "emotion_labels")):
        if labels in batches[0]:
            counts[name] = sum((batch[labels] != UNKNOWN_LABEL).sum() for batch in batches)
    for name, mask in (("global_text", "attention_mask"), ("local_text", "au_attention_mask")):  # VL-FAU's descriptions
        if mask in batches[0]:
            counts[name] = sum(batch[mask][..., 1:].any(dim=-1).sum() for batch in batches)
    tensors = [next(iter(batch.values())) for batch in batches]
    return {**counts, "rows": torch.tensor(sum(map(len, tensors)), device=tensors[0].device)}


def _spread(counts: dict[str, torch.Tensor], parts: int) -> dict[str, torch.Tensor]:
    """Sums over all processes, divided evenly among their micro-batches."""
    total = torch.stack([number.long() for number in counts.values()])
    if world_size() > 1:
        dist.all_reduce(total)
    # On the CPU in float64: exact in every dtype that it divides.
    spread = total.clamp_min(1).cpu().double() / (parts * world_size())
    return dict(zip(counts, spread.unbind(), strict=True))


def _compare(name: str, steps: Sequence[StepContext]) -> None:
    """Compares each micro-batch's features with those of all, and caches the gradients of the joined loss."""
    parts = [step.features[name] for step in steps]
    image, text, keys, valid = (
        gather(torch.cat([getattr(part, column) for part in parts])).detach()
        for column in ("image", "text", "keys", "valid")
    )
    texts = _gather_texts(parts)
    image.requires_grad_(), text.requires_grad_()
    start, slices = gather_offset(sum(len(part.keys) for part in parts)), []
    for step, part in zip(steps, parts, strict=True):
        own = slice(start, start + len(part.keys))
        temperature = part.temperature.detach().clone().requires_grad_()
        own_features = replace(part, image=image[own], text=text[own], temperature=temperature)
        with step_context(step), torch.enable_grad():
            compared = compare(own_features, image, text, keys, valid, start, step.sample, f"itc_{name}")
        compared.contrast.backward()
        compared.contrast, compared.gradients = compared.contrast.detach(), (temperature.grad,)
        step.comparisons[name], step.texts[name] = compared, texts
        slices.append(own)
        start = own.stop
    if world_size() > 1:  # each process has computed what its own rows send to all features
        dist.all_reduce(image.grad)
        dist.all_reduce(text.grad)
    for step, own in zip(steps, slices, strict=True):
        step.comparisons[name].gradients += (image.grad[own], text.grad[own])


def _gather_texts(parts: Sequence[Features]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(part.input_ids.shape[1] for part in parts)
    padded = [
        [nn.functional.pad(tensor, (0, longest - tensor.shape[1])) for tensor in (part.input_ids, part.mask)]
        for part in parts
    ]
    texts = pad_as_others(*map(torch.cat, zip(*padded, strict=True)))
    return gather(texts[0]), gather(texts[1])


def _share_images(micro: Sequence[MicroBatch]) -> None:
    """Gives each micro-batch what wrong images are computed from: a frozen tower's output, otherwise the pixels. The
    images of a frozen tower were seen in the first pass, and are not shown again."""
    for part in micro:
        if part.step.image_tokens is not None:
            part.inputs.pop("pixel_values", None)
            part.inputs["image_tokens"], part.step.image_tokens = part.step.image_tokens, None
    names = [name for name in ("pixel_values", "image_tokens", "landmarks") if name in micro[0].inputs]
    images = {name: gather(torch.cat([part.inputs[name] for part in micro])) for name in names}
    for part in micro:
        part.step.images = images


__all__ = ["MicroBatch", "micro_batches"]
