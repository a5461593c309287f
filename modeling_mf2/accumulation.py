"""Gradient accumulation that equals one large batch, in every loss and every gradient.

Losses that compare rows (ITC, hard negatives) or average over what is known need all micro-batches of a step. So a
first pass without gradients makes the features of all (Gao et al., arXiv:2101.06983), and from them each micro-batch's
share: how much is known everywhere, its negatives, and the gradients that the joined ITC sends to its own features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn

from configuration_mf2.facs import UNKNOWN_LABEL

from .losses import (
    allowed_negatives,
    gather,
    gather_offset,
    hard_negatives,
    image_text_similarity,
    itc_loss,
    pad_as_others,
    world_size,
)


RngState = tuple[torch.Tensor, torch.Tensor | None]


def rng_state(device: torch.device) -> RngState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_rng_state(state: RngState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def same_draws(state: RngState | None, device: torch.device) -> Iterator[None]:
    """What was dropped in the first pass is dropped again: gradients belong to the features that they were made for."""
    if state is None:
        yield
        return
    before = rng_state(device)
    _set_rng_state(state, device)
    try:
        yield
    finally:
        _set_rng_state(before, device)


@dataclass
class BranchShare:
    """Of one micro-batch and branch. `wrong_*` count the rows of all micro-batches on all processes."""

    rows: torch.Tensor
    wrong_image: torch.Tensor
    wrong_text: torch.Tensor
    match_valid: torch.Tensor
    draws: tuple[RngState, RngState]
    itc: torch.Tensor
    temperature_gradient: torch.Tensor
    image_gradient: torch.Tensor | None = None
    text_gradient: torch.Tensor | None = None

    def contrast(self, image: torch.Tensor, text: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        """The ITC of this micro-batch's rows among all, whose gradient is that of the joined loss."""
        pairs = ((image, self.image_gradient), (text, self.text_gradient), (temperature, self.temperature_gradient))
        return self.itc + sum(((found - found.detach()) * gradient).sum() for found, gradient in pairs)


@dataclass
class BatchShare:
    """Of one micro-batch. `counts`: rows or tokens that each loss is a mean over, as if spread evenly over all
    micro-batches and processes, so that the mean of the micro-batches' losses is the loss of the joined batch."""

    counts: dict[str, torch.Tensor]
    branches: dict[str, BranchShare] = field(default_factory=dict)
    texts: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    images: dict[str, torch.Tensor] = field(default_factory=dict)
    draws: RngState | None = None
    key_au_rows: torch.Tensor | None = None


def count_of(share: BatchShare | None, name: str) -> torch.Tensor | None:
    return None if share is None else share.counts[name]


def row_weight(share: BatchShare | None, rows: int) -> torch.Tensor | float:
    """For a mean over all rows of a micro-batch, of which the last may have fewer."""
    return 1.0 if share is None else rows / share.counts["rows"]


def share_out(model: nn.Module, batches: Sequence[dict[str, torch.Tensor]], first_pass: bool) -> list[dict]:
    """The micro-batches of one step, each with its share as `share`.

    first_pass: whether `model` compares rows, and so has to be asked for features. All processes have to come with
    equally many micro-batches of equally many rows.
    """
    with torch.no_grad():
        seen = [model(**batch, features_only=True) for batch in batches] if first_pass else [{} for _ in batches]
        names = [name for name in ("emo", "au") if name in seen[0]]
        shares = [BatchShare({}, draws=found.get("draws"), key_au_rows=found.get("key_au_rows")) for found in seen]
        counts = _labels_known(batches)
        for found in seen:
            for name, number in found.get("counts", {}).items():
                counts[name] = counts.get(name, 0) + number
        counts = _over_processes(counts, len(batches))
    for name in names:
        branch, texts = _compare([found[name] for found in seen], counts[f"itc_{name}"])
        matched = {f"itm_{name}": sum(part.match_valid.sum() for part in branch)}
        counts |= _over_processes(matched, len(batches))
        for share, part in zip(shares, branch, strict=True):
            share.branches[name], share.texts[name] = part, texts
    batches = [dict(batch) for batch in batches]
    images = _keep_images(batches, seen) if names else {}
    for share, batch in zip(shares, batches, strict=True):
        share.counts, share.images = counts, images
        batch["share"] = share
    return batches


def _labels_known(batches: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    counts: dict[str, torch.Tensor] = {}
    for name, labels in (("au", "au_labels"), ("emotion", "emotion_labels")):
        if labels in batches[0]:
            counts[name] = sum((batch[labels] != UNKNOWN_LABEL).sum() for batch in batches)
    for name, mask in (("global_text", "attention_mask"), ("local_text", "au_attention_mask")):  # VL-FAU's descriptions
        texts = [batch[mask] for batch in batches if mask in batch]
        if texts:
            counts[name] = sum(text[..., 1:].any(dim=-1).sum() for text in texts)
    tensors = [next(iter(batch.values())) for batch in batches]
    return {**counts, "rows": torch.tensor(sum(map(len, tensors)), device=tensors[0].device)}


def _over_processes(counts: dict[str, torch.Tensor], micro_batches: int) -> dict[str, torch.Tensor]:
    if not counts:
        return {}
    total = torch.stack([torch.as_tensor(number).long() for number in counts.values()])
    if world_size() > 1:
        dist.all_reduce(total)
    # On the CPU in float64: exact in every dtype that it divides.
    shared = total.clamp_min(1).cpu().double() / (micro_batches * world_size())
    return dict(zip(counts, shared.unbind(), strict=True))


def _compare(
    parts: Sequence[Mapping[str, torch.Tensor]], count: torch.Tensor
) -> tuple[list[BranchShare], tuple[torch.Tensor, torch.Tensor]]:
    """Negatives and ITC of each micro-batch among all, and the sentences of all."""

    def everywhere(name: str) -> torch.Tensor:
        return gather(torch.cat([part[name] for part in parts])).detach()

    longest = max(part["ids"].shape[1] for part in parts)
    texts = [_padded(part["ids"], part["mask"], longest) for part in parts]
    texts = pad_as_others(*(torch.cat(tensors) for tensors in zip(*texts, strict=True)))
    texts = tuple(gather(tensor) for tensor in texts)
    keys, valid = everywhere("keys"), everywhere("valid")
    image, text = everywhere("image").requires_grad_(), everywhere("text").requires_grad_()
    shares, starts = [], []
    start = gather_offset(sum(len(part["keys"]) for part in parts))
    for part in parts:
        own = slice(start, start + len(part["keys"]))
        temperature = part["temperature"].detach().clone().requires_grad_()
        with torch.enable_grad():
            image_to_text = image_text_similarity(image[own], text)
            text_to_image = image_text_similarity(image, text[own]).T
            negatives = allowed_negatives(part["keys"], keys, valid)
            loss = itc_loss(image_to_text, text_to_image, temperature, negatives, part["valid"], start, count)
            loss.backward()
        rows = part["rows"]
        picked = (negatives[rows], temperature, part["sample"])
        wrong_text, text_found = hard_negatives(image_to_text[rows], *picked)
        wrong_image, image_found = hard_negatives(text_to_image[rows], *picked)
        known = part["valid"][rows]
        match_valid = torch.cat([known, known & image_found, known & text_found])
        shares.append(
            BranchShare(rows, wrong_image, wrong_text, match_valid, part["draws"], loss.detach(), temperature.grad)
        )
        starts.append(own)
        start = own.stop
    if world_size() > 1:  # each process has computed what its own rows send to all features
        dist.all_reduce(image.grad)
        dist.all_reduce(text.grad)
    for share, own in zip(shares, starts, strict=True):
        share.image_gradient, share.text_gradient = image.grad[own], text.grad[own]
    return shares, texts


def _padded(ids: torch.Tensor, mask: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    missing = (0, length - ids.shape[1])
    return nn.functional.pad(ids, missing), nn.functional.pad(mask, missing)


def _keep_images(batches: Sequence[dict], seen: Sequence[Mapping]) -> dict[str, torch.Tensor]:
    """What the wrong images are read from: a frozen tower's output, and otherwise the pixels. A frozen tower has then
    seen the images, and the micro-batches need not show them again."""
    images = {}
    if "image_tokens" in seen[0]:
        images["image_tokens"] = gather(torch.cat([found["image_tokens"] for found in seen]))
        start = gather_offset(sum(len(found["image_tokens"]) for found in seen))
        for batch, found in zip(batches, seen, strict=True):
            batch.pop("pixel_values", None)
            batch["image_tokens"] = images["image_tokens"][start : start + len(found["image_tokens"])]
            start += len(found["image_tokens"])
    else:
        images["pixel_values"] = gather(torch.cat([batch["pixel_values"] for batch in batches]))
    if "landmarks" in batches[0]:
        images["landmarks"] = gather(torch.cat([batch["landmarks"] for batch in batches]))
    return images


__all__ = ["BatchShare", "BranchShare", "count_of", "rng_state", "row_weight", "same_draws", "share_out"]
