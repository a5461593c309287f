"""Gradient accumulation that equals one large batch, in every loss and every gradient.

Losses that compare rows (ITC, hard negatives) or average over what is known need all micro-batches of a step. A first
pass without graph computes the features of all; the gradient of the joined ITC with respect to them is cached; in the
second pass each micro-batch sends it on through its own graph (Gao et al., arXiv:2101.06983).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import nn

from configuration_mf2.facs import UNKNOWN_LABEL
from modeling_mf2.losses import (
    Captions,
    Comparison,
    Features,
    Step,
    compare,
    gather,
    gather_offset,
    pad_as_others,
    use_step,
    world_size,
)


Batch = dict[str, torch.Tensor]


@dataclass
class MicroBatch(Step):
    """Inputs of a forward pass to run inside `entered()`.

    counts: what each loss is divided by, as if spread evenly over micro-batches and processes. gradients: of the joined
    contrastive loss, with respect to temperature, image and text features. images: what the wrong images are computed
    from, of all micro-batches.
    """

    inputs: Batch
    counts: dict[str, torch.Tensor] = field(default_factory=dict)
    seed: int | None = None
    first_pass: bool = False
    sample: bool = False
    features: dict[str, Features] = field(default_factory=dict)
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    gradients: dict[str, tuple[torch.Tensor, ...]] = field(default_factory=dict)
    images: Batch = field(default_factory=dict)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What was dropped in the first pass is dropped again: gradients belong to the features they were made for."""
        with use_step(self), ExitStack() as stack:
            if self.seed is not None:
                device = next(iter(self.inputs.values())).device
                stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
                torch.manual_seed(self.seed)
            yield

    def compare(
        self,
        model: nn.Module,
        features: Mapping[str, Features],
        captions: Mapping[str, Captions],
        images: Mapping[str, torch.Tensor],
        image_tokens: torch.Tensor,
    ) -> dict[str, Comparison] | None:
        for name, own in captions.items():
            model.draw_pairs(name, own)
        if self.first_pass:
            self.features, self.sample = dict(features), model.training
            self.counts |= {f"itc_{name}": own.captions.valid.sum() for name, own in features.items()}
            self.counts |= {f"itg_{name}": own.learned[:, 1:].bool().sum() for name, own in captions.items()}
            if features and model.config.vision_config.frozen:  # its images are not shown again
                self.inputs.pop("pixel_values", None)
                self.inputs["image_tokens"] = image_tokens
            return None
        comparisons = {}
        for name, cached in self.comparisons.items():
            own, contrast = features[name], cached.contrast
            for live, gradient in zip((own.temperature, own.image, own.text), self.gradients[name], strict=True):
                contrast = contrast + ((live - live.detach()) * gradient).sum()  # no value, that gradient
            other_images = self._other_images(model, name, cached.wrong_image)
            comparisons[name] = replace(cached, contrast=contrast, other_images=other_images)
        return comparisons

    def _other_images(self, model: nn.Module, name: str, rows: torch.Tensor) -> torch.Tensor:
        """Wrong images as the branch reads them, computed here so that gradients arise here."""
        units = 1 if name == "emo" else len(model.config.action_units)
        images, place = torch.unique(rows // units, return_inverse=True)
        seen = {key: tensor[images] for key, tensor in self.images.items()}
        tokens = model.mf2.look(seen.get("pixel_values"), seen.get("image_tokens"))
        return model.mf2.branch_image(name, tokens, seen.get("landmarks"))[place * units + rows % units]


def micro_batches(model: nn.Module, batches: Sequence[Batch], compares_rows: bool) -> list[MicroBatch]:
    """The micro-batches of one step, the mean of whose losses is the loss of the joined batch.

    compares_rows: whether `model` compares rows, and a first pass is needed. All processes have to give equally many
    micro-batches of equally many rows.
    """
    micro = [MicroBatch(dict(batch)) for batch in batches]
    counts = _label_counts(batches)
    if compares_rows:
        for part, seed in zip(micro, torch.randint(2**62, (len(micro),)).tolist(), strict=True):
            part.seed, part.first_pass = seed, True
            with torch.no_grad(), part.entered():
                model(**part.inputs)
            part.first_pass = False
        counts |= {name: sum(part.counts[name] for part in micro) for name in micro[0].counts}
    counts = _spread(counts, len(micro))
    for part in micro:
        part.counts = counts
    for name in micro[0].features:
        _compare(name, micro)
        matched = {f"itm_{name}": sum(part.comparisons[name].match_valid.sum() for part in micro)}
        counts |= _spread(matched, len(micro))
    if micro[0].features:
        names = [name for name in ("pixel_values", "image_tokens", "landmarks") if name in micro[0].inputs]
        images = {name: gather(torch.cat([part.inputs[name] for part in micro])) for name in names}
        for part in micro:
            part.images, part.features = images, {}
    return micro


def _label_counts(batches: Sequence[Batch]) -> dict[str, torch.Tensor]:
    counts: dict[str, torch.Tensor] = {}
    for name in ("au", "emotion", "side", "intensity"):
        labels = f"{name}_labels"
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


def _compare(name: str, micro: Sequence[MicroBatch]) -> None:
    """Compares each micro-batch's features with those of all, and caches the gradients of the joined loss."""
    parts = [part.features[name] for part in micro]
    captions = [part.captions for part in parts]
    columns = [[own.image for own in parts], [own.text for own in parts]]
    columns += [[own.keys for own in captions], [own.valid for own in captions]]
    image, text, keys, valid = (gather(torch.cat(column)).detach() for column in columns)
    texts = _gather_texts(captions)
    image.requires_grad_(), text.requires_grad_()
    start, slices = gather_offset(sum(len(own.keys) for own in captions)), []
    for part in micro:
        features = part.features[name]
        own = slice(start, start + len(features.text))
        temperature = features.temperature.detach().clone().requires_grad_()
        features = replace(features, image=image[own], text=text[own], temperature=temperature)
        with use_step(part), torch.enable_grad():
            compared = compare(features, image, text, keys, valid, texts, start, part.sample, f"itc_{name}")
        compared.contrast.backward()
        compared.contrast = compared.contrast.detach()
        part.comparisons[name], part.gradients[name] = compared, (temperature.grad,)
        slices.append(own)
        start = own.stop
    if world_size() > 1:  # each process has computed what its own rows send to all features
        dist.all_reduce(image.grad)
        dist.all_reduce(text.grad)
    for part, own in zip(micro, slices, strict=True):
        part.gradients[name] += (image.grad[own], text.grad[own])


def _gather_texts(captions: Sequence[Captions]) -> tuple[torch.Tensor, torch.Tensor]:
    columns = [[row for own in captions for row in rows(own)] for rows in (lambda c: c.input_ids, lambda c: c.mask)]
    ids, mask = pad_as_others(*(nn.utils.rnn.pad_sequence(column, batch_first=True) for column in columns))
    return gather(ids), gather(mask)
