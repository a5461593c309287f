"""The losses, as pure functions of tensors. Every one leaves out what is unknown, and is 0 where nothing is known.

With several processes each returns a mean over its own rows whose average over the processes (what DDP takes of the
gradients) equals the loss of the joined batch: candidates are gathered, and rows are counted over all processes.
"""

import torch
import torch.distributed as dist
from torch import nn

from configuration_mf2.facs import UNKNOWN_LABEL


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(tensor)
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        """Every process's loss has read these rows: their gradients add up."""
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[gather_offset(ctx.rows) :][: ctx.rows]


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """Rows of all processes, in the processes' order; gradients flow back to where a row came from.

    All processes have to call it alike, with equally many rows."""
    return tensor if world_size() == 1 else _Gather.apply(tensor)


def gather_offset(rows: int) -> int:
    """Where this process's rows stand among the gathered ones."""
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


def masked_mean(values: torch.Tensor, valid: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """count: what to divide by instead, where this is one micro-batch of several."""
    # `where`, not a product: an invalid value may be infinite.
    total = torch.where(valid, values, torch.zeros_like(values)).sum()
    if count is not None:
        return total / count
    count = valid.sum().to(values.dtype)
    if world_size() > 1:
        count = count.clone()
        dist.all_reduce(count)
        count = count / world_size()
    return total / count.clamp_min(1 / world_size())


def caption_keys(input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One int64 a caption, equal for equal captions whatever their padding: (..., length) -> (...)."""
    powers = [pow(0x9E3779B97F4A7C15, position + 1, 2**64) for position in range(input_ids.shape[-1])]
    signed = [power - 2**64 if power >= 2**63 else power for power in powers]
    return ((input_ids + 1) * mask.long() * torch.tensor(signed, device=input_ids.device)).sum(dim=-1)


def first_of_equals(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows of the first of each kind, which of these every row equals): `keys[first][place] == keys`."""
    kinds, place = torch.unique(keys, return_inverse=True)
    rows = torch.arange(len(keys), device=keys.device)
    first = torch.full((len(kinds),), len(keys), device=keys.device).scatter_reduce(0, place, rows, "amin")
    return first, place


def image_text_similarity(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The best of an image's queries: (images, queries, dim) and (texts, dim) -> (images, texts)."""
    return torch.einsum("iqd,td->iqt", image, text).amax(dim=1)


def meaning_keys(text_keys: torch.Tensor, labels: torch.Tensor | None, known: torch.Tensor | None) -> torch.Tensor:
    """(rows, 2): what is said and, where the labels are known, what is meant.

    Two wordings of one state are no negatives of each other: no image could tell them apart, and as the most similar
    sentences of a batch they would be all that ITM ever sees. labels (rows, n), known (rows,).
    """
    if labels is None:
        return torch.stack([text_keys, text_keys], dim=-1)
    meant = caption_keys(labels.long() + 1, torch.ones_like(labels))
    return torch.stack([text_keys, torch.where(known, meant, text_keys)], dim=-1)


def allowed_negatives(keys: torch.Tensor, all_keys: torch.Tensor, all_valid: torch.Tensor) -> torch.Tensor:
    """(rows, all rows): another caption, and a known one. A row's own pair and its equals are no negatives; of rows
    with several keys each, equals are those that share any of them."""
    differs = keys[:, None] != all_keys[None, :]
    return differs.flatten(2).all(dim=2) & all_valid[None, :] if differs.ndim > 2 else differs & all_valid[None, :]


def itc_loss(
    image_to_text: torch.Tensor,
    text_to_image: torch.Tensor,
    temperature: torch.Tensor,
    negatives: torch.Tensor,
    valid: torch.Tensor,
    offset: int = 0,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Equation 3. Both similarities (rows, all rows): of a row's image to all texts, and of its text to all images.
    Row i's own pair stands in column offset + i."""
    rows = torch.arange(len(valid), device=valid.device)
    own = rows + offset
    candidates = negatives.clone()
    candidates[rows, own] = True
    losses = []
    for similarity in (image_to_text, text_to_image):
        logits = (similarity / temperature).masked_fill(~candidates, -torch.inf)
        losses.append(logits.logsumexp(dim=1) - logits[rows, own])
    return masked_mean((losses[0] + losses[1]) / 2, valid, count)


def hard_negatives(
    similarity: torch.Tensor, negatives: torch.Tensor, temperature: torch.Tensor, sample: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """One negative a row, the likelier the more similar; the most similar one unless `sample`. -> (columns, found)."""
    found = negatives.any(dim=1)
    logits = (similarity.detach() / temperature.detach()).masked_fill(~negatives, -torch.inf)
    if not sample:
        return logits.argmax(dim=1), found
    weights = torch.where(found[:, None], logits, torch.zeros_like(logits)).float().softmax(dim=1)
    weights = weights.nan_to_num(1.0)  # the loss that is no number shall be reported, not this draw
    return torch.multinomial(weights, 1).squeeze(1), found


def itm_loss(
    logits: torch.Tensor, matched: torch.Tensor, valid: torch.Tensor, count: torch.Tensor | None = None
) -> torch.Tensor:
    """Equation 4. logits (rows, queries, 2), averaged over the queries; matched (rows,) in {0, 1}."""
    losses = nn.functional.cross_entropy(wide(logits.mean(dim=1)), matched, reduction="none")
    return masked_mean(losses, valid, count)


def itg_loss(
    logits: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor, count: torch.Tensor | None = None
) -> torch.Tensor:
    """Equation 5. logits (rows, length, vocabulary); each token is predicted from those before it."""
    losses = nn.functional.cross_entropy(wide(logits[:, :-1]).transpose(1, 2), input_ids[:, 1:], reduction="none")
    return masked_mean(losses, mask[:, 1:].bool(), count)


def check_labels(name: str, labels: torch.Tensor, shape: tuple[int, ...], highest: int) -> None:
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(labels.shape)}, expected {shape}")
    if labels.device.type != "cpu":  # a look at the values would make a GPU wait
        return
    wrong = labels[(labels < UNKNOWN_LABEL) | (labels > highest)]
    if wrong.numel():
        raise ValueError(f"{name}: got {wrong[0].item()}, expected -1 (unknown) or 0 to {highest}")


def au_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    class_weights: list[float] | tuple[float, ...] | None = None,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy over (images, AU), weighted an AU where weights are given."""
    check_labels("au_labels", labels, tuple(logits.shape), highest=1)
    known = labels != UNKNOWN_LABEL
    losses = nn.functional.binary_cross_entropy_with_logits(
        wide(logits), labels.clamp_min(0).to(wide(logits).dtype), reduction="none"
    )
    if class_weights is not None:
        losses = losses * torch.tensor(class_weights, device=losses.device, dtype=losses.dtype)
    return masked_mean(losses, known, count)


def emotion_loss(logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    check_labels("emotion_labels", labels, (len(logits),), highest=logits.shape[1] - 1)
    losses = nn.functional.cross_entropy(wide(logits), labels.clamp_min(0), reduction="none")
    return masked_mean(losses, labels != UNKNOWN_LABEL, count)
