"""The losses, as pure functions of tensors. Each leaves out what is unknown, and is 0 where nothing is known.

With several processes each returns a mean over its own rows whose average over the processes (what DDP takes of the
gradients) equals the loss of the joined batch: candidates are gathered, and rows are counted over all processes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_gather
from transformers.utils import ModelOutput

from configuration_mf2.facs import UNKNOWN_LABEL


@dataclass
class FaceAnalysisOutput(ModelOutput):
    r"""
    loss: the sum of the parts that follow it, each times its weight in `config.loss_weights`; None without labels.
    emotion_logits (`(batch, emotions)`), au_logits (`(batch, AU)`): None where there is no such head.
    au_side_logits (`(batch, AU, 2)`): of the person's left and right side. au_intensities (`(batch, AU)`): 0 to 5.
    hidden_states, attentions: of the part of the model that the heads read, where asked for.
    """

    loss: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None
    au_logits: torch.Tensor | None = None
    au: torch.Tensor | None = None
    emotion: torch.Tensor | None = None
    side: torch.Tensor | None = None
    intensity: torch.Tensor | None = None
    shape: torch.Tensor | None = None
    au_side_logits: torch.Tensor | None = None
    au_intensities: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class Captions:
    """A branch's captions. keys: equal where captions say or mean the same. rows: those that ITM and ITG take, drawn
    when features are compared. learned: the tokens of `rows` that ITG learns to write."""

    input_ids: torch.Tensor
    mask: torch.Tensor
    keys: torch.Tensor
    rows: torch.Tensor | None = None
    learned: torch.Tensor | None = None

    @property
    def valid(self) -> torch.Tensor:
        return self.mask.any(dim=1)


@dataclass
class Features:
    """What the contrastive loss of a branch compares, a row being an image or region and its caption."""

    image: torch.Tensor
    text: torch.Tensor
    temperature: torch.Tensor
    captions: Captions


@dataclass
class Comparison:
    """The contrastive loss of some rows among all; hard negatives of those that ITM takes, and which pairs count.

    wrong_image: row numbers, of this batch unless `other_images` has the wrong images as the branch reads them.
    """

    contrast: torch.Tensor
    wrong_image: torch.Tensor
    wrong_texts: tuple[torch.Tensor, torch.Tensor]
    match_valid: torch.Tensor
    other_images: torch.Tensor | None = None


class Step:
    """What a forward pass knows of the rest of its optimizer step: here it is all of it, on one or several processes.

    mf2face/training/grad_cache.py has the step of several micro-batches.
    """

    counts: Mapping[str, torch.Tensor] = {}  # what the losses are divided by, by name

    def compare(
        self,
        model: nn.Module,
        features: Mapping[str, Features],
        captions: Mapping[str, Captions],
        images: Mapping[str, torch.Tensor],
        image_tokens: torch.Tensor,
    ) -> dict[str, Comparison] | None:
        """Compares the features of each branch; None ends the forward pass. images: as the branches read them."""
        comparisons = {}
        for name in captions:
            model.draw_pairs(name, captions[name])
            if name not in features:
                continue
            own = features[name]
            texts = pad_as_others(own.captions.input_ids, own.captions.mask)
            start, texts = gather_offset(own.text.shape[0]), tuple(map(gather, texts))
            everyone = map(gather, (own.image, own.text, own.captions.keys, own.captions.valid))
            comparisons[name] = compared = compare(own, *everyone, texts, start, model.training)
            if world_size() > 1:  # the wrong image may be another process's
                compared.other_images = gather(images[name])[compared.wrong_image]
        return comparisons


_step = Step()


def current_step() -> Step:
    return _step


@contextmanager
def use_step(step: Step) -> Iterator[None]:
    global _step
    before, _step = _step, step
    try:
        yield
    finally:
        _step = before


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of all processes in their order; gradients flow back. Every process has to give equally many rows."""
    if world_size() == 1:
        return tensor
    gathered = torch.cat(all_gather(tensor))
    if gathered.requires_grad:  # its backward sends memory as if gradients were contiguous
        gathered.register_hook(lambda gradient: gradient.contiguous())
    return gathered


def gather_offset(rows: int) -> int:
    """Index of this process's first row among the gathered ones."""
    return rows * dist.get_rank() if world_size() > 1 else 0


def pad_as_others(input_ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions as long as the longest on any process, so that they can be gathered."""
    if world_size() == 1:
        return input_ids, mask
    longest = torch.tensor(input_ids.shape[1], device=input_ids.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    missing = int(longest) - input_ids.shape[1]
    return nn.functional.pad(input_ids, (0, missing)), nn.functional.pad(mask, (0, missing))


def wide(logits: torch.Tensor) -> torch.Tensor:
    """At least float32: sums of half precision lose too much."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def masked_mean(values: torch.Tensor, valid: torch.Tensor, name: str | None = None) -> torch.Tensor:
    """name: of the loss in `Step.counts`."""
    # `where`, not a product: an invalid value may be infinite.
    total = torch.where(valid, values, torch.zeros_like(values)).sum()
    if name in _step.counts:
        return total / _step.counts[name]
    count = valid.sum().to(values.dtype)
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / world_size()
    return total / count.clamp_min(1 / world_size())


def row_weight(rows: int) -> torch.Tensor | float:
    """For a mean over all rows of a micro-batch, of which the last may have fewer."""
    return rows / _step.counts["rows"] if "rows" in _step.counts else 1.0


def caption_keys(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One int64 a caption, equal for equal captions whatever their padding: (..., length) -> (...)."""
    powers = [pow(0x9E3779B97F4A7C15, position + 1, 2**64) for position in range(input_ids.shape[-1])]
    signed = [power - 2**64 if power >= 2**63 else power for power in powers]
    return ((input_ids + 1) * mask.long() * torch.tensor(signed, device=input_ids.device)).sum(dim=-1)


def first_of_equals(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first row of each distinct key, and each row's place among them: `keys[first][place] == keys`."""
    kinds, place = torch.unique(keys, return_inverse=True)
    rows = torch.arange(len(keys), device=keys.device)
    first = torch.full((len(kinds),), len(keys), device=keys.device).scatter_reduce(0, place, rows, "amin")
    return first, place


def image_text_similarity(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """(images, queries, dim), (texts, dim) -> (images, texts): that of the best query."""
    return torch.einsum("iqd,td->iqt", image, text).amax(dim=1)


def meaning_keys(text_keys: torch.Tensor, labels: torch.Tensor | None, known: torch.Tensor | None) -> torch.Tensor:
    """(rows, 2): the key of the wording and, where labels are known, of the meaning. labels (rows, n), known (rows,).

    Two wordings of one state are no negatives: no image tells them apart, and as the most similar sentences of a batch
    they would be all that ITM sees.
    """
    if labels is None:
        return torch.stack([text_keys, text_keys], dim=-1)
    meaning = caption_keys(labels.long() + 1, torch.ones_like(labels))
    return torch.stack([text_keys, torch.where(known, meaning, text_keys)], dim=-1)


def allowed_negatives(keys: torch.Tensor, all_keys: torch.Tensor, all_valid: torch.Tensor) -> torch.Tensor:
    """(rows, all rows): known captions that share no key with the row's own."""
    differs = keys[:, None] != all_keys[None, :]
    return differs.flatten(2).all(dim=2) & all_valid[None, :] if differs.ndim > 2 else differs & all_valid[None, :]


def itc_loss(
    image_to_text: torch.Tensor,
    text_to_image: torch.Tensor,
    temperature: torch.Tensor,
    negatives: torch.Tensor,
    valid: torch.Tensor,
    offset: int = 0,
    name: str | None = None,
) -> torch.Tensor:
    """Equation 3. Similarities (rows, all rows): of a row's image to all texts, of its text to all images. Row i's own
    pair is in column offset + i."""
    rows = torch.arange(len(valid), device=valid.device)
    own = rows + offset
    candidates = negatives.clone()
    candidates[rows, own] = True
    losses = []
    for similarity in (image_to_text, text_to_image):
        logits = (similarity / temperature).masked_fill(~candidates, -torch.inf)
        losses.append(logits.logsumexp(dim=1) - logits[rows, own])
    return masked_mean((losses[0] + losses[1]) / 2, valid, name)


def hard_negatives(
    similarity: torch.Tensor, negatives: torch.Tensor, temperature: torch.Tensor, sample: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws one negative a row, the more similar the likelier; the most similar unless `sample`. Returns columns, and
    whether a row has any."""
    has_any = negatives.any(dim=1)
    logits = (similarity.detach() / temperature.detach()).masked_fill(~negatives, -torch.inf)
    if not sample:
        return logits.argmax(dim=1), has_any
    weights = torch.where(has_any[:, None], logits, torch.zeros_like(logits)).float().softmax(dim=1)
    weights = weights.nan_to_num(1.0)  # the loss that is not finite is reported, not this draw
    return torch.multinomial(weights, 1).squeeze(1), has_any


def compare(
    own: Features,
    image: torch.Tensor,
    text: torch.Tensor,
    keys: torch.Tensor,
    valid: torch.Tensor,
    texts: tuple[torch.Tensor, torch.Tensor],
    start: int,
    sample: bool,
    name: str | None = None,
) -> Comparison:
    """Compares a branch's own rows with all: features, keys, validity and texts of all rows, own ones from `start`."""
    captions = own.captions
    image_to_text = image_text_similarity(own.image, text)
    text_to_image = image_text_similarity(image, own.text).T
    negatives = allowed_negatives(captions.keys, keys, valid)
    contrast = itc_loss(image_to_text, text_to_image, own.temperature, negatives, captions.valid, start, name)
    picked = (negatives[captions.rows], own.temperature, sample)
    wrong_text, text_found = hard_negatives(image_to_text[captions.rows], *picked)
    wrong_image, image_found = hard_negatives(text_to_image[captions.rows], *picked)
    known = captions.valid[captions.rows]
    match_valid = torch.cat([known, known & image_found, known & text_found])
    return Comparison(contrast, wrong_image, (texts[0][wrong_text], texts[1][wrong_text]), match_valid)


def itm_loss(logits: torch.Tensor, matched: torch.Tensor, valid: torch.Tensor, name: str | None = None) -> torch.Tensor:
    """Equation 4. logits (rows, queries, 2), averaged over the queries; matched (rows,) in {0, 1}."""
    losses = nn.functional.cross_entropy(wide(logits.mean(dim=1)), matched, reduction="none")
    return masked_mean(losses, valid, name)


def itg_loss(
    logits: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor, name: str | None = None
) -> torch.Tensor:
    """Equation 5. logits (rows, length, vocabulary); each token is predicted from those before it."""
    losses = nn.functional.cross_entropy(wide(logits[:, :-1]).transpose(1, 2), input_ids[:, 1:], reduction="none")
    return masked_mean(losses, mask[:, 1:].bool(), name)


def check_labels(name: str, labels: torch.Tensor, shape: tuple[int, ...], highest: int) -> None:
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(labels.shape)}, expected {shape}")
    if labels.device.type != "cpu":  # reading values would synchronise a GPU
        return
    wrong = labels[(labels < UNKNOWN_LABEL) | (labels > highest)]
    if wrong.numel():
        raise ValueError(f"{name}: got {wrong[0].item()}, expected -1 (unknown) or 0 to {highest}")


def au_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: list[float] | tuple[float, ...] | None = None,
    name: str = "au",
) -> torch.Tensor:
    """Binary cross-entropy over (images, AU), weighted an AU where weights are given; also over (images, AU, sides)."""
    check_labels(f"{name}_labels", labels, tuple(logits.shape), highest=1)
    known = labels != UNKNOWN_LABEL
    losses = nn.functional.binary_cross_entropy_with_logits(
        wide(logits), labels.clamp_min(0).to(wide(logits).dtype), reduction="none"
    )
    if class_weights is not None:
        losses = losses * torch.tensor(class_weights, device=losses.device, dtype=losses.dtype)
    return masked_mean(losses, known, name)


INTENSITY_LEVELS = 5


def intensity_loss(levels: torch.Tensor, intensities: torch.Tensor) -> torch.Tensor:
    """levels (images, AU, 5): logits of intensities 1 to 5 or above. intensities (images, AU): 0 to 5, -1 unknown.

    A fraction counts in part for its level, so that the levels' probabilities add up to the expected intensity.
    """
    if intensities.shape != levels.shape[:2]:
        raise ValueError(
            f"intensity_labels: got shape {tuple(intensities.shape)}, expected {tuple(levels.shape[:2])}, from 0 to 5, "
            "or -1 for unknown"
        )
    levels = wide(levels)
    reached = intensities.to(levels.dtype)[..., None] - torch.arange(INTENSITY_LEVELS, device=levels.device)
    losses = nn.functional.binary_cross_entropy_with_logits(levels, reached.clamp(0, 1), reduction="none").mean(-1)
    return masked_mean(losses, intensities >= 0, "intensity")


def emotion_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    check_labels("emotion_labels", labels, (len(logits),), highest=logits.shape[1] - 1)
    losses = nn.functional.cross_entropy(wide(logits), labels.clamp_min(0), reduction="none")
    return masked_mean(losses, labels != UNKNOWN_LABEL, "emotion")


def classification_losses(
    config: Any,
    emotion_logits: torch.Tensor | None,
    emotion_labels: torch.Tensor | None,
    au_logits: torch.Tensor | None,
    au_labels: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    parts = {}
    if au_logits is not None and au_labels is not None:
        parts["au"] = au_loss(au_logits, au_labels, config.au_class_weights)
    if emotion_logits is not None and emotion_labels is not None:
        parts["emotion"] = emotion_loss(emotion_logits, emotion_labels)
    return parts


def weighted_sum(config: Any, parts: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The sum of the losses by the weights of the config; None without any."""
    weighted = [config.loss_weights.get(name, 1.0) * part for name, part in parts.items()]
    return sum(weighted) if weighted else None
