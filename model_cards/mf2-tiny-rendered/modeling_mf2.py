from .configuration_mf2 import CANONICAL_FACE
from .configuration_mf2 import LABEL_ARGUMENTS
from .configuration_mf2 import LEFT_INNER_EYE
from .configuration_mf2 import LEFT_OUTER_EYE
from .configuration_mf2 import MF2Config
from .configuration_mf2 import MF2QFormerConfig
from .configuration_mf2 import MF2VisionConfig
from .configuration_mf2 import REGION_RULES
from .configuration_mf2 import RIGHT_INNER_EYE
from .configuration_mf2 import RIGHT_OUTER_EYE
from .configuration_mf2 import SelfContainedMixin
from .configuration_mf2 import UNKNOWN_LABEL
from .configuration_mf2 import read_json
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextlib import contextmanager
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from safetensors import SafetensorError
from safetensors import safe_open
from torch import nn
from torch.distributed.nn.functional import all_gather
from transformers import Cache
from transformers import DynamicCache
from transformers import GenerationMixin
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils import can_return_tuple
from typing import Any
from typing import Literal
from typing import NamedTuple
import dataclasses
import difflib
import inspect
import math
import timm
import torch
import torch.distributed as dist
import warnings


# modeling_mf2/loading.py


try:
    from accelerate.hooks import AlignDevicesHook
except ImportError:  # without accelerate nothing is offloaded
    AlignDevicesHook = None


@contextmanager
def _aligned(module: nn.Module, hooks: list[Any]) -> Iterator[None]:
    for hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook in hooks:
            hook.post_forward(module, None)


def fetched(module: nn.Module) -> AbstractContextManager:
    """Inside it a module has its own weights (not those of its submodules), also where they are offloaded.

    accelerate's `align_module_device` skips the module that `cpu_offload` was called on: it has two hooks.
    """
    if AlignDevicesHook is None or torch.compiler.is_compiling() or not hasattr(module, "_hf_hook"):
        return nullcontext()
    hooks = getattr(module._hf_hook, "hooks", [module._hf_hook])
    return _aligned(module, [hook for hook in hooks if isinstance(hook, AlignDevicesHook) and hook.offload])


# Keys that the collator may emit, and flags that transformers may pass to any model.
_BATCH_FIELDS = {
    *("pixel_values", "landmarks", "image_tokens", "index", "au_labels", "emotion_labels", "states"),
    *("side_labels", "intensity_labels"),
    *("input_ids", "attention_mask", "au_input_ids", "au_attention_mask"),
    *("key_au_input_ids", "key_au_attention_mask", "output_hidden_states", "output_attentions"),
}


def check_unused(model: nn.Module, unused: dict[str, object]) -> None:
    """Landmarks under a misspelt name must not be taken for no landmarks."""
    for name, value in unused.items():
        if value is not None and name not in _BATCH_FIELDS:
            known = [key for key in inspect.signature(model.forward).parameters if key not in ("args", "kwargs")]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise TypeError(f"{type(model).__name__}: got an unknown input {name!r}; {hint}Inputs: {known}")


class FacePreTrainedModel(SelfContainedMixin, PreTrainedModel):
    """Base of MF² and of the compared systems."""

    main_input_name = "pixel_values"
    # The losses are means already; the Trainer must not divide or multiply them.
    accepts_loss_kwargs = False
    can_relabel = False
    """Whether `ignore_mismatched_sizes` starts other labels anew, by the model's `forget_labels`."""
    relabel_hint = ""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: object, *args: object, **kwargs: object) -> object:
        source = pretrained_model_name_or_path
        relabelled = cls._relabelled(source, kwargs)
        if relabelled and not (cls.can_relabel and kwargs.get("ignore_mismatched_sizes")):
            raise ValueError(
                f"{next(iter(relabelled.values()))}; what was learned for a label must not answer for another. "
                f"{cls.relabel_hint}"
            )
        try:
            loaded = super().from_pretrained(source, *args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"{source}: model.safetensors is damaged or cut short ({error}); copy or download the checkpoint again"
            ) from error
        if relabelled:
            (loaded[0] if isinstance(loaded, tuple) else loaded).forget_labels(relabelled)
        return loaded

    @classmethod
    def _relabelled(cls, source: object, kwargs: dict[str, object]) -> dict[str, str]:
        """The fields whose wanted labels are not the checkpoint's, and how they differ; none where none were named."""
        named = {name: kwargs[name] for name in LABEL_ARGUMENTS if name in kwargs}
        if source is None or (not named and not isinstance(kwargs.get("config"), cls.config_class)):
            return {}
        where = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        saved = cls.config_class.from_pretrained(source, **{name: kwargs[name] for name in where if name in kwargs})
        wanted = kwargs.get("config") or cls.config_class.from_dict(saved.to_dict(), **named)
        pairs = {field: (getattr(wanted, field), getattr(saved, field)) for field in ("action_units", "emotions")}
        return {
            field: f"{field}: got {new}, but the checkpoint {source} has {old}"
            for field, (new, old) in pairs.items()
            if list(new) != list(old)
        }


def check_adapter_file(folder: Any) -> None:
    """Of a folder (not of a name on the Hub, whose client checks what it downloads)."""
    _check_adapter_config(Path(str(folder)) / "adapter_config.json")
    file = Path(str(folder)) / "adapter_model.safetensors"
    if not file.is_file():
        if file.exists():
            raise OSError(f"{file}: a folder or device, expected a file: an adapter's weights")
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
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType
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
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType[kind])
    for field in dataclasses.fields(config_class) if config_class else ():
        value = content.get(field.name)
        if field.type in (bool, "bool") and value is not None and not isinstance(value, bool):
            raise ValueError(f"{file}: {field.name}: got {value!r}, expected true or false: {wanted}")


# modeling_mf2/dfn/port.py


@dataclass(frozen=True)
class PathwayShape:
    """What flows through a pathway: `states` tensors (rows, `tokens`, `width`), the embedding state first.

    tokens: None where it differs from text to text. shared: how many of the first states are the same for all samples.
    kinds: rows are of so many kinds in turn (AUs): row r is of kind r modulo their number.
    """

    states: int
    width: int
    tokens: int | None = None
    shared: int = 0
    kinds: int = 1


class DFNPort(nn.Module):
    """Hands on the last state of its branch. An adapter puts a layer in its place that reads the others too.

    pathways: their shapes, by what they are called when the port is: `visual` (the queries), `language` (text),
    `vision` (the vision tower); in an adapter's config the branch's name follows, as in `visual_emo`.
    """

    is_dfn_port = True
    frozen = False  # whether an adapter reads the branch, which is then neither trained nor in training mode

    def __init__(self, branch: str, width: int, tokens: int, pathways: dict[str, PathwayShape]) -> None:
        super().__init__()
        self.branch, self.width, self.tokens = branch, width, tokens
        self.pathways = {f"{kind}_{branch}": shape for kind, shape in pathways.items()}
        # A port has no parameters; this says, also to peft, on which device and in which dtype its branch is.
        self.register_buffer("weight", torch.empty(0), persistent=False)

    def reads(self, kind: str) -> bool:
        return False

    def forward(
        self, last: torch.Tensor, mask: torch.Tensor | None = None, **hidden: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        return last

    def from_states(self, states: dict[str, torch.Tensor]) -> torch.Tensor:
        """The last state of a batch that was stored, (rows, tokens, width)."""
        name = f"last_{self.branch}"
        if name not in states:
            raise ValueError(
                f"states: got {sorted(states)}, expected {name!r} among them; build the store of this model"
            )
        return states[name].flatten(0, 1).to(self.weight)


def repeated(states: torch.Tensor, rows: int) -> torch.Tensor:
    """States that are the same for all samples, once for each: row r is row r modulo their number."""
    count = states.shape[0]  # not len(), which an exporter would take for a constant
    return states if count == rows else states.repeat(rows // count, *[1] * (states.ndim - 1))


# modeling_mf2/losses.py


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


# modeling_mf2/regions.py


def landmarks_or_mean(
    landmarks: torch.Tensor | None, batch: int, image_size: int, device: torch.device
) -> torch.Tensor:
    """(batch, 68, 2): for None those of crops in which the face is aligned to the canonical one."""
    if landmarks is None:
        return torch.tensor(CANONICAL_FACE, device=device).expand(batch, -1, -1) * image_size
    if landmarks.shape != (batch, 68, 2):
        raise ValueError(f"landmarks: got {tuple(landmarks.shape)}, expected ({batch}, 68, 2), one set an image")
    return landmarks


def face_axes(landmarks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unit vectors to the right and down the face, each (batch, 2), and the inner-ocular distance, (batch, 1).

    The direction comes from the outer corners of the eyes, which lie far apart, so that a pixel of landmark error turns
    it little; the unit of length is the distance between the inner corners (points 39 and 42).
    """
    right = landmarks[:, RIGHT_OUTER_EYE] - landmarks[:, LEFT_OUTER_EYE]
    right = right / right.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    down = torch.stack([-right[:, 1], right[:, 0]], dim=-1)
    inner_ocular = (landmarks[:, RIGHT_INNER_EYE] - landmarks[:, LEFT_INNER_EYE]).norm(dim=-1, keepdim=True)
    return right, down, inner_ocular


def region_centres(landmarks: torch.Tensor, averages: torch.Tensor, downs: torch.Tensor) -> torch.Tensor:
    """(batch, 68, 2) -> (batch, AU, 2, 2): two centres of each AU, as x and y in the landmarks' own unit.

    averages: (AU, 2, 68), which landmarks a centre is the mean of; downs: (AU,), how far it is then moved down.
    """
    _, down, inner_ocular = face_axes(landmarks)
    centres = torch.einsum("acp,bpx->bacx", averages, landmarks)
    shift = (down * inner_ocular)[:, None, None, :] * downs[None, :, None, None]
    return centres + shift


def region_points(landmarks: torch.Tensor, centres: torch.Tensor, grid: int, window: float) -> torch.Tensor:
    """Around each centre a square of grid x grid points, along the face's axes: (batch, AU, 2 * grid * grid, 2)."""
    right, down, inner_ocular = face_axes(landmarks)
    steps = torch.linspace(-0.5, 0.5, grid, device=landmarks.device, dtype=landmarks.dtype)
    if grid == 1:
        steps = torch.zeros_like(steps)
    steps = steps * window
    across = steps[None, :, None] * (right * inner_ocular)[:, None, :]  # (batch, grid, 2)
    along = steps[None, :, None] * (down * inner_ocular)[:, None, :]
    offsets = (along[:, :, None] + across[:, None, :]).flatten(1, 2)  # (batch, grid * grid, 2), row by row
    return (centres[:, :, :, None] + offsets[:, None, None]).flatten(2, 3)


def sample_grid(tokens: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear reading of (batch, height, width, channels) at (batch, points, 2), in cells with the first cell's middle
    at 0.5; beyond the outermost middles the border is continued.

    Written as a product with two triangular weights instead of `grid_sample`: it needs no channels-first copy of the
    tokens, and has the same gradients, in every dtype and on every device.
    """
    _, height, width, _ = tokens.shape
    x, y = points.unbind(-1)  # (batch, points)
    columns = torch.arange(width, device=points.device, dtype=points.dtype)
    rows = torch.arange(height, device=points.device, dtype=points.dtype)
    across = (1 - ((x - 0.5).clamp(0, width - 1)[..., None] - columns).abs()).clamp_min(0)  # (batch, points, width)
    down = (1 - ((y - 0.5).clamp(0, height - 1)[..., None] - rows).abs()).clamp_min(0)
    weights = (down[..., :, None] * across[..., None, :]).flatten(-2)  # (batch, points, height * width)
    return weights.to(tokens.dtype) @ tokens.flatten(1, 2)


def inner_shape(landmarks: torch.Tensor, image_size: int) -> torch.Tensor:
    """(batch, 68, 2) in pixels -> (batch, 102): where the inner landmarks lie beside the mean face's, in fiftieths of
    the crop, once the corners of the eyes and the base of the nose are aligned to it."""
    points = landmarks.float() / image_size
    mean = torch.tensor(CANONICAL_FACE, device=points.device)[None]
    anchors, targets = (
        torch.cat([p[:, [36, 39, 42, 45]], p[:, 31:36].mean(1, keepdim=True)], 1) for p in (points, mean)
    )
    middle, target = anchors.mean(1, keepdim=True), targets.mean(1, keepdim=True)
    a, b = anchors - middle, targets - target
    scale = a.square().sum((1, 2)).clamp_min(1e-6)
    cos = ((a * b).sum((1, 2)) / scale)[:, None]
    sin = ((a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(1) / scale)[:, None]
    x, y = (points - middle)[:, 17:].unbind(-1)
    aligned = torch.stack([cos * x - sin * y, sin * x + cos * y], -1) + target
    return 50 * (aligned - mean[:, 17:]).flatten(1)


class MF2Geometry(nn.Module):
    """The shape of a face, from its landmarks, as one token."""

    def __init__(self, config: MF2Config) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.image_size = config.vision_config.image_size
        self.shape_in = nn.Linear(2 * 51, 128)
        self.shape_out = nn.Linear(128, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, landmarks: torch.Tensor) -> torch.Tensor:
        """(batch, 68, 2) in pixels of the image -> (batch, 1, width)."""
        shape = inner_shape(landmarks, self.image_size).to(self.shape_in.weight.dtype)
        return self.norm(self.shape_out(nn.functional.gelu(self.shape_in(shape))))[:, None]


class MF2Regions(nn.Module):
    """Reads every AU of every image in one pass, and says which point is which by a learned position."""

    def __init__(self, config: MF2Config) -> None:
        super().__init__()
        self.config = config
        self.positions = nn.Parameter(torch.empty(config.tokens_per_region, config.vision_config.hidden_size))
        rules = [REGION_RULES[name] for name in config.action_units]
        # Plain lists, not buffers: a buffer would follow the model into bfloat16 and move the centres by half a pixel.
        self.averages = [
            [[(index in points) / len(points) for index in range(68)] for points in (rule.first, rule.second)]
            for rule in rules
        ]
        self.downs = [rule.down for rule in rules]

    def forward(self, patch_tokens: torch.Tensor, landmarks: torch.Tensor | None) -> torch.Tensor:
        """patch_tokens: (batch, grid * grid, width), a grid of any fineness over the whole image; landmarks:
        (batch, 68, 2) in pixels of the image, or None for crops in which the face is aligned to the canonical one.
        -> (batch, AU, tokens of a region, width)."""
        vision = self.config.vision_config
        batch, _, width = patch_tokens.shape
        device = patch_tokens.device
        landmarks = landmarks_or_mean(landmarks, batch, vision.image_size, device)
        side = math.isqrt(patch_tokens.shape[1])
        cells = landmarks.float() / (vision.image_size / side)
        averages, downs = torch.tensor(self.averages, device=device), torch.tensor(self.downs, device=device)
        centres = region_centres(cells, averages, downs)
        points = region_points(cells, centres, self.config.region_grid, self.config.region_window)
        grid = patch_tokens.view(batch, side, side, width)
        regions = sample_grid(grid, points.flatten(1, 2)).view(batch, points.shape[1], points.shape[2], width)
        return regions + self.positions.to(regions.dtype)


# modeling_mf2/heads.py


class MF2LanguageHead(nn.Module):
    """BERT's: a transform, then the word embeddings once more (handed in: one tensor, never two) and a bias."""

    def __init__(self, config: MF2QFormerConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.norm(self.activation(self.transform(states))), word_embeddings, self.bias)


class MF2AlignmentHeads(nn.Module):
    def __init__(self, config: MF2QFormerConfig) -> None:
        super().__init__()
        self.image_projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.itm = nn.Linear(config.hidden_size, 2)
        self.language = MF2LanguageHead(config)

    def image_features(self, query_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.image_projection(query_states), dim=-1)

    def text_features(self, text_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.text_projection(text_states[:, 0]), dim=-1)


class FaceLogits(NamedTuple):
    """What the classifiers answer; None where there is no such head."""

    emotion: torch.Tensor | None = None
    au: torch.Tensor | None = None
    sides: torch.Tensor | None = None
    """(batch, AU, 2)"""
    levels: torch.Tensor | None = None
    """(batch, AU, 5): logits of intensities 1 to 5 or above."""

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        """By the names of a model's outputs, without those that there are not."""
        intensities = None if self.levels is None else self.levels.sigmoid().sum(-1)
        names = ("emotion_logits", "au_logits", "au_side_logits", "au_intensities")
        answers = zip(names, (*self[:3], intensities), strict=True)
        return {name: tensor for name, tensor in answers if tensor is not None}


class FaceLabels(NamedTuple):
    """What `FaceLogits` are compared with; None where nothing is known, else -1 where it is not."""

    emotion: torch.Tensor | None = None
    au: torch.Tensor | None = None
    sides: torch.Tensor | None = None
    intensities: torch.Tensor | None = None


class MF2ShapeHead(nn.Module):
    """What the shape of a face says by itself: emotion and AU logits. Landmarks are found alike in renders and in
    photographs, so that this holds where what the tower sees does not."""

    def __init__(self, config: MF2Config, hidden: int = 128) -> None:
        super().__init__()
        self.image_size, self.shape_in = config.vision_config.image_size, nn.Linear(2 * 51, hidden)
        self.emotion = nn.Linear(hidden, len(config.emotions)) if config.emotions else None
        self.units = nn.Linear(hidden, len(config.action_units)) if config.action_units else None

    def says(self, landmarks: torch.Tensor) -> torch.Tensor:
        """(batch, 1): False where they are the mean face's, as crops have them in which none were looked for."""
        return inner_shape(landmarks, self.image_size).abs().amax(1, keepdim=True) > 0.01

    def forward(self, landmarks: torch.Tensor) -> FaceLogits:
        """landmarks (batch, 68, 2): in pixels of the image."""
        shape = inner_shape(landmarks, self.image_size).to(self.shape_in.weight.dtype)
        hidden = nn.functional.gelu(self.shape_in(shape))
        return FaceLogits(*(None if layer is None else layer(hidden) for layer in (self.emotion, self.units)))


class MF2Classifiers(nn.Module):
    """AU logits from each AU's own queries (and the face as a whole), emotion logits from the face and all AUs.

    Queries are read one by one, not averaged: an average hides an effect that one query has found.
    """

    def __init__(self, config: MF2Config) -> None:
        super().__init__()
        emo, au, count = config.emo_config, config.au_config, len(config.action_units)
        self.emo_width = emo_width = emo.num_query_tokens * emo.hidden_size if config.use_emo_branch else 0
        self.norm_emo = nn.LayerNorm(emo.hidden_size, eps=1e-6) if config.use_emo_branch else None
        self.norm_au = nn.LayerNorm(au.hidden_size, eps=1e-6) if config.use_au_branch else None
        # One weight vector an AU, over that AU's queries.
        self.au_weight = self.au_bias = None
        if count and config.use_au_branch:
            self.au_weight = nn.Parameter(torch.empty(count, au.num_query_tokens, au.hidden_size))
            self.au_bias = nn.Parameter(torch.zeros(count))
        self.au_from_face = nn.Linear(emo_width, count) if count and emo_width else None
        # A side differs from its AU by what the queries and the face say of it.
        self.side_weight = self.side_bias = self.side_from_face = None
        if config.sides:
            self.side_bias = nn.Parameter(torch.zeros(count, 2))
            if config.use_au_branch:
                self.side_weight = nn.Parameter(torch.empty(count, 2, au.num_query_tokens, au.hidden_size))
            self.side_from_face = nn.Linear(emo_width, 2 * count) if emo_width else None
        # An AU's logit, stretched and compared with a cut for each level: a stronger score is a higher intensity.
        self.level_stretch = self.level_cuts = None
        if config.intensities:
            self.level_stretch = nn.Parameter(torch.zeros(count))
            self.level_cuts = nn.Parameter(torch.zeros(count, INTENSITY_LEVELS))
        self.shape_weight, self.shape = config.shape_weight, MF2ShapeHead(config) if config.shape_weight else None
        # A mean of answers is less sure than they are: what makes probabilities of it is fitted afterwards.
        self.unit_scale = self.unit_shift = None
        if count and self.shape is not None:
            self.unit_scale = nn.Parameter(torch.ones(count), requires_grad=False)
            self.unit_shift = nn.Parameter(torch.zeros(count), requires_grad=False)
        emotion_width = emo_width + (count * au.hidden_size if config.use_au_branch else 0)
        self.emotion = nn.Linear(emotion_width, len(config.emotions)) if config.emotions else None

    def init_weights(self, fields: Collection[str] = ("action_units", "emotions")) -> None:
        """Untrained logits near 0, whatever the number of inputs: nothing is known, and nothing has to be unlearned.

        fields: of the labels to start anew. The emotion's layer reads the AUs by their place, and goes with them.
        """
        units = "action_units" in fields
        if self.au_weight is not None and units:
            init.normal_(self.au_weight, std=0.1 * self.au_weight[0].numel() ** -0.5)
            init.zeros_(self.au_bias)
        if self.side_weight is not None and units:
            init.normal_(self.side_weight, std=0.1 * self.side_weight[0, 0].numel() ** -0.5)
        for parameter in (self.side_bias, self.level_stretch, self.level_cuts, self.unit_shift):
            if parameter is not None and units:
                init.zeros_(parameter)
        if self.unit_scale is not None and units:
            init.ones_(self.unit_scale)
        reads_units = self.norm_au is not None
        for layer, anew in (
            (self.au_from_face, units),
            (self.side_from_face, units),
            (getattr(self.shape, "units", None), units),
            (getattr(self.shape, "emotion", None), "emotions" in fields),
            (self.emotion, "emotions" in fields or (units and reads_units)),
        ):
            if layer is not None and anew:
                init.normal_(layer.weight, std=0.1 * layer.in_features**-0.5)
                init.zeros_(layer.bias)

    def forward(
        self,
        emo_states: torch.Tensor | None,
        au_states: torch.Tensor | None,
        landmarks: torch.Tensor | None = None,
    ) -> FaceLogits:
        """emo_states (batch, queries, hidden), au_states (batch, AU, queries, hidden), landmarks (batch, 68, 2).

        Without emo_states, where there is that branch: what the AUs alone say. Without landmarks: what is seen alone.
        """
        face = None
        if self.norm_emo is not None and emo_states is not None:
            face = self.norm_emo(emo_states).flatten(1)
        elif self.norm_emo is not None:
            face = au_states.new_zeros(len(au_states), self.emo_width)
        units = self.norm_au(au_states) if self.norm_au is not None else None
        au_logits = None
        if self.au_weight is not None:
            au_logits = torch.einsum("baqh,aqh->ba", units, self.au_weight) + self.au_bias
        if self.au_from_face is not None:
            from_face = self.au_from_face(face)
            au_logits = from_face if au_logits is None else au_logits + from_face
        emotion_logits = None
        if self.emotion is not None:
            parts = [
                part for part in (face, units.mean(dim=2).flatten(1) if units is not None else None) if part is not None
            ]
            emotion_logits = self.emotion(torch.cat(parts, dim=-1))
        if self.shape is not None and landmarks is not None:
            said, known = self.shape(landmarks), self.shape.says(landmarks)
            weight = self.shape_weight / (1 + self.shape_weight)
            if emotion_logits is not None:
                emotion_logits = torch.where(known, _mean(emotion_logits, said.emotion, weight), emotion_logits)
            if au_logits is not None:
                fitted = self.unit_scale * _mean(au_logits, said.au, weight) + self.unit_shift
                au_logits = torch.where(known, fitted.to(au_logits.dtype), au_logits)
        return FaceLogits(emotion_logits, au_logits, self._sides(au_logits, units, face), self._levels(au_logits))

    def _sides(
        self, au_logits: torch.Tensor | None, units: torch.Tensor | None, face: torch.Tensor | None
    ) -> torch.Tensor | None:
        if self.side_bias is None:
            return None
        sides = au_logits[..., None] + self.side_bias
        if self.side_weight is not None:
            sides = sides + torch.einsum("baqh,asqh->bas", units, self.side_weight)
        if self.side_from_face is not None:
            sides = sides + self.side_from_face(face).unflatten(1, (-1, 2))
        return sides

    def calibrate(
        self, au_logits: torch.Tensor, labels: torch.Tensor, intensities: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Fits probabilities of AUs, and levels of intensity, to answers about people that were not learned from:
        (faces, AU) each. In training both are those of what is seen alone. -> the answers from now on."""
        raw = ((au_logits - self.unit_shift) / self.unit_scale).detach()
        units = torch.ones_like(self.unit_scale), torch.zeros_like(self.unit_shift)
        _fit(units, lambda: au_loss(raw * units[0] + units[1], labels))
        _keep((self.unit_scale, self.unit_shift), units)
        answers = (raw * self.unit_scale + self.unit_shift).detach()
        if self.level_cuts is not None and intensities is not None:
            levels = torch.zeros_like(self.level_stretch), torch.zeros_like(self.level_cuts)
            _fit(levels, lambda: intensity_loss(self._levels(answers, *levels), intensities))
            _keep((self.level_stretch, self.level_cuts), levels)
        return answers

    def _levels(
        self, au_logits: torch.Tensor | None, stretch: torch.Tensor | None = None, cuts: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        if self.level_cuts is None:
            return None
        stretch, cuts = (self.level_stretch, self.level_cuts) if cuts is None else (stretch, cuts)
        # Untrained, what is as likely active as not has intensity 2.
        usual = torch.arange(INTENSITY_LEVELS, device=au_logits.device, dtype=au_logits.dtype) - 1.5
        return (au_logits * stretch.exp())[..., None] - usual - cuts


def _mean(seen: torch.Tensor, said: torch.Tensor, weight: float) -> torch.Tensor:
    return seen.lerp(said.to(seen.dtype), weight)  # autocast leaves them in different types


def _fit(parameters: Sequence[torch.Tensor], loss: Callable[[], torch.Tensor], steps: int = 300) -> None:
    optimizer = torch.optim.Adam([parameter.requires_grad_() for parameter in parameters], lr=0.05)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


def _keep(old: Sequence[torch.Tensor], new: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(old, new, strict=True):
        parameter.data.copy_(value.detach().half())  # as exact as a file in half precision holds it


def _losses_of(config: MF2Config, logits: FaceLogits, labels: FaceLabels) -> dict[str, torch.Tensor]:
    parts = classification_losses(config, logits.emotion, labels.emotion, logits.au, labels.au)
    if logits.sides is not None and labels.sides is not None:
        parts["side"] = au_loss(logits.sides, labels.sides, name="side")
    if logits.levels is not None and labels.intensities is not None:
        parts["intensity"] = intensity_loss(logits.levels, labels.intensities)
    return parts


def label_losses(
    model: nn.Module,
    emo_states: torch.Tensor | None,
    au_states: torch.Tensor | None,
    landmarks: torch.Tensor | None,
    logits: FaceLogits,
    labels: FaceLabels,
) -> dict[str, torch.Tensor]:
    """In training a share of the losses is that of the AUs alone, and what is seen learns apart from the shape."""
    classifiers = model.classifiers
    if model.training and classifiers.shape is not None:
        logits = classifiers(emo_states, au_states)
    parts = _losses_of(model.config, logits, labels)
    alone = model.config.au_only_loss_weight
    if model.training and alone and parts and emo_states is not None and au_states is not None:
        by_units = _losses_of(model.config, classifiers(None, au_states), labels)
        parts = {name: (1 - alone) * part + alone * by_units[name] for name, part in parts.items()}
    if classifiers.shape is not None and landmarks is not None:
        said = _losses_of(model.config, classifiers.shape(landmarks), labels)
        parts |= {"shape": sum(said.values())} if said else {}
    return parts


# modeling_mf2/vision.py


def no_graph_if(frozen: bool) -> AbstractContextManager:
    """Not while a graph is captured: an exported program with a gradient switch in it cannot be loaded."""
    if not frozen or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    return torch.no_grad()


def products_are_faster(query: torch.Tensor) -> bool:
    """Whether attention is to be learned by plain products: on a CPU the backward pass of sdpa in bfloat16 takes up to
    nine times as long."""
    return query.dtype == torch.bfloat16 and query.device.type == "cpu" and torch.is_grad_enabled()


def keep_own_start(backbone: nn.Module) -> None:
    """Marks layers that a backbone has initialised itself, unless on the meta device."""
    for module in backbone.modules():
        module.keeps_own_start = not any(parameter.is_meta for parameter in module.parameters(recurse=False))


def init_backbone(module: nn.Module) -> bool:
    """Keeps what `keep_own_start` marked, or initialises a layer of `MF2ConvTower`: PyTorch's rule, zeros in a block's
    outputs. False: the model's own rule applies."""
    if getattr(module, "keeps_own_start", False):
        return True
    if isinstance(module, MF2ConvTower):
        init.normal_(module.positions, std=0.02)
    elif not getattr(module, "in_conv_tower", False) or not isinstance(module, nn.Linear | nn.Conv2d):
        return False
    elif getattr(module, "starts_at_zero", False):
        init.zeros_(module.weight)
        init.zeros_(module.bias)
    else:
        init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        if module.bias is not None:
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.bias, -bound, bound)
    return True


class MF2TowerBlock(nn.Module):
    """A pre-norm attention block that starts as the identity."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        for layer in (self.attention_out, self.mlp_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            layer.starts_at_zero = True

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length, width = tokens.shape
        qkv = self.qkv(self.norm1(tokens)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, width / heads)
        if products_are_faster(query):
            attended = (query @ key.transpose(2, 3) * query.shape[-1] ** -0.5).softmax(-1) @ value
        else:
            attended = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        return tokens + self.mlp_out(nn.functional.gelu(self.mlp_in(self.norm2(tokens))))


# Convolutions of `MF2ConvTower` by patch size: sixteenths of the width, and stride. All halve the image four times.
_PLANS = {
    16: ((3, 2), (4, 1), (6, 2), (8, 2), (12, 1), (16, 2), (16, 1)),
    8: ((2, 2), (4, 2), (8, 1), (12, 2), (12, 1), (16, 2), (16, 1)),
}


_FINE_LAYER = 5
"""Convolutions of the plan for patches of 8 until the map that its tokens are made of."""


class MF2ConvTower(nn.Module):
    """Seven convolutions, four of them halving the image, then attention blocks over cells of 16 pixels. With patches
    of 8, each token is its own place in a finer map of the convolutions, and the cell around it.

    With a few thousand images a plain patch ViT does not learn; this does, in minutes on two CPU cores.
    """

    num_prefix_tokens = 0

    def __init__(self, width: int, image_size: int, patch_size: int, num_blocks: int = 2, in_channels: int = 3) -> None:
        """in_channels: 1 averages the image's channels, for grey images."""
        super().__init__()
        self.num_features, self.in_channels = width, in_channels
        if width % 4:
            raise ValueError(f"hidden_size: got {width}, expected a multiple of 4 with backbone 'conv'")
        if patch_size not in _PLANS or image_size % 16 or in_channels not in (1, 3):
            raise ValueError(
                f"patch_size, image_size, in_channels: got {patch_size}, {image_size} and {in_channels}, expected with "
                f"backbone 'conv' one of {list(_PLANS)}, a multiple of 16, and 1 or 3"
            )
        plan = [(share * width // 16, stride) for share, stride in _PLANS[patch_size]]
        layers: list[nn.Module] = []
        channels = in_channels
        for out_channels, stride in plan:
            layers += [
                nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
            ]
            channels = out_channels
        self.convolutions = nn.Sequential(*layers)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // 16) ** 2, width))
        self.blocks = nn.ModuleList(MF2TowerBlock(width) for _ in range(num_blocks))
        self.lateral = nn.Conv2d(plan[_FINE_LAYER - 1][0], width, 1) if patch_size == 8 else None
        self.norm = nn.LayerNorm(width)
        for layer in self.modules():
            layer.in_conv_tower = True

    @property
    def map_layers(self) -> list[nn.Module]:
        """Layers whose maps an adapter may read: at most four times as fine as the tokens, not the blocks' input."""
        return [layer for layer in self.convolutions if isinstance(layer, nn.ReLU)][2:-1]

    def forward(self, pixel_values: torch.Tensor, maps: list[torch.Tensor] | None = None) -> torch.Tensor:
        """maps: filled with the output of each layer of the convolutions."""
        features = pixel_values.mean(1, keepdim=True) if self.in_channels == 1 else pixel_values
        fine = None
        for number, layer in enumerate(self.convolutions, 1):
            features = layer(features)
            if number == 3 * _FINE_LAYER:
                fine = features
            if maps is not None:
                maps.append(features)
        side = features.shape[-1]
        tokens = features.flatten(2).transpose(1, 2)  # (batch, cells, width)
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        if self.lateral is not None:
            cells = tokens.transpose(1, 2).unflatten(2, (side, side))
            cells = cells.repeat_interleave(2, 2).repeat_interleave(2, 3)
            tokens = (self.lateral(fine) + cells).flatten(2).transpose(1, 2)  # (batch, grid * grid, width)
        return self.norm(tokens)


def timm_model(name: str, **arguments: object) -> nn.Module:
    try:
        model = timm.create_model(name, pretrained=False, **arguments)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        near = difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0.4)
        raise ValueError(
            f"backbone: got {name!r}, expected 'conv' or a name of timm.list_models(), such as {near}"
        ) from error
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):  # EVA: multiply by its layer, not by the bare weight of a layer that
            module.qkv_bias_separate = True  # may be offloaded or have an adapter
    return model


def _timm_backbone(config: MF2VisionConfig) -> nn.Module:
    arguments = {"num_classes": 0, "global_pool": "", **config.backbone_kwargs}
    try:
        return timm_model(config.backbone, img_size=config.image_size, **arguments)
    except TypeError as error:
        # A ViT takes the size it runs at; what takes none (ResNet, ConvNeXt) has no patch tokens either.
        raise ValueError(
            f"backbone: got {config.backbone!r}, expected a timm ViT, whose features are patch tokens and which takes "
            f"{sorted(arguments)} ({error})"
        ) from error


class MF2VisionTower(PreTrainedModel):
    """(batch, 3, size, size) -> (batch, prefix + grid * grid, hidden_size)."""

    config_class = MF2VisionConfig
    base_model_prefix = "vision"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _supports_sdpa = True

    def __init__(self, config: MF2VisionConfig) -> None:
        super().__init__(config)
        if config.backbone == "conv":
            self.backbone = MF2ConvTower(
                config.hidden_size, config.image_size, config.patch_size, **config.backbone_kwargs
            )
        else:
            self.backbone = _timm_backbone(config)
        self._check_backbone()
        keep_own_start(self.backbone)
        if config.frozen:
            self.eval()
        self.post_init()

    def _check_backbone(self) -> None:
        actual = {
            "hidden_size": self.backbone.num_features,
            "num_prefix_tokens": getattr(self.backbone, "num_prefix_tokens", 0),
        }
        patch_embed = getattr(self.backbone, "patch_embed", None)
        if patch_embed is not None and hasattr(patch_embed, "patch_size"):
            actual["patch_size"] = patch_embed.patch_size[0]
        for field, value in actual.items():
            if value != getattr(self.config, field):
                raise ValueError(
                    f"vision_config.{field}: got {getattr(self.config, field)}, expected {value} with backbone "
                    f"{self.config.backbone!r}"
                )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not init_backbone(module):
            super()._init_weights(module)
        # Built on the meta device, timm's rotary and window tables come back empty.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def train(self, mode: bool = True) -> "MF2VisionTower":
        if self.config.frozen:
            # Here, because from_pretrained makes new parameters, which want gradients, and then calls eval().
            self.requires_grad_(False)
        return super().train(mode and not self.config.frozen)

    @property
    def num_states(self) -> int:
        """Number of states from `look_deep`; 0 where the backbone is no plain sequence of blocks."""
        blocks = getattr(self.backbone, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not len(blocks):
            return 0
        return len(getattr(self.backbone, "map_layers", ())) + len(blocks) + 1

    def look_deep(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Returns the tokens of `forward` and all states: maps of convolutions as (finer) grids of tokens, with zeros
        for missing channels, then the tokens before the first block and after each block, the last behind the norm."""
        states: list[torch.Tensor] = []

        def keep_map(_: nn.Module, __: tuple, output: torch.Tensor) -> None:
            tokens = output.flatten(2).transpose(1, 2)
            states.append(nn.functional.pad(tokens, (0, self.config.hidden_size - tokens.shape[-1])))

        blocks = self.backbone.blocks
        hooks = [layer.register_forward_hook(keep_map) for layer in getattr(self.backbone, "map_layers", ())]
        hooks += [blocks[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))]
        hooks += [block.register_forward_hook(lambda _, __, output: states.append(output)) for block in blocks]
        try:
            tokens = self(pixel_values)
        finally:
            for hook in hooks:
                hook.remove()
        return tokens, (*states[:-1], tokens)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        size = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixel_values: got {tuple(pixel_values.shape)}, expected (batch, 3, {size}, {size}); let the "
                "checkpoint's own processor prepare the images"
            )
        with no_graph_if(self.config.frozen):
            # Called as a module, so that offloaded weights are there; without classes and pooling it is the features.
            return self.backbone(pixel_values.to(self.dtype))


# modeling_mf2/qformer.py


TextMode = Literal["two_way", "causal", "unimodal"]


KeyValue = tuple[torch.Tensor, torch.Tensor]


_COLLECTED = (
    *("attentions", "text_attentions", "cross_attentions", "hidden_states", "text_hidden_states"),
    *("query_key_values", "image_key_values"),
)


# Without gradients a CPU goes through the wide layer in parts that stay in its cache.
_ROWS_AT_ONCE = 1024


@dataclass
class MF2QFormerOutput(ModelOutput):
    r"""
    query_states (`(batch, queries, hidden)`), text_states (`(batch, length, hidden)`): after the last block.
    query_key_values: of each block, what text attends to; with them a later text pass needs no queries.
    image_key_values: of each block with cross-attention, keys and values of the image tokens; a later pass over the
        same images needs no image tokens.
    hidden_states, text_hidden_states: of each stream, the state before the first block and after every block. With
        `kinds`, hidden_states, attentions and cross_attentions have an axis for them, behind that of the images.
    attentions, text_attentions, cross_attentions: one a block.
    """

    query_states: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    query_key_values: tuple[KeyValue, ...] | None = None
    image_key_values: tuple[KeyValue, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    text_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    kinds: int | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    returned, weights = split_kinds(weights, kinds)
    attended = nn.functional.dropout(weights, dropout, module.training) @ value
    return attended.transpose(1, 2).contiguous(), returned


def split_kinds(rows: torch.Tensor, kinds: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (images, kinds, ...) and its rows again, to go on with: else the first would get no gradient."""
    if kinds is None:
        return rows, rows
    split = rows.unflatten(0, (-1, kinds))
    return split, split.flatten(0, 1)


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what is added to the scores; a row that sees no key stays finite."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def _joined(first: KeyValue | None, second: KeyValue) -> KeyValue:
    if first is None:
        return second
    return torch.cat([first[0], second[0]], dim=2), torch.cat([first[1], second[1]], dim=2)


def _repeated(states: torch.Tensor, batch: int) -> torch.Tensor:
    return states if states.shape[0] == batch else states.repeat(batch // states.shape[0], *[1] * (states.ndim - 1))


def _plain(layer: nn.Module) -> nn.Linear | None:
    """Returns a bare nn.Linear: no active adapter, quantisation, offload or hook."""
    if getattr(layer, "disable_adapters", False) and not getattr(layer, "merged", True):
        layer = layer.base_layer
    # accelerate's hooks take the place of `forward` on the layer itself.
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return layer if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not hooked else None


class MF2QFormerAttention(nn.Module):
    """Projections, attention, output projection; then dropout, residual and norm, as BERT orders them."""

    def __init__(self, config: MF2QFormerConfig, key_value_size: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # every mask is given; sdpa must not add one
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(key_value_size, config.hidden_size)
        self.v_proj = nn.Linear(key_value_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        states = states.view(*states.shape[:2], self.num_heads, self.head_dim)
        return states.transpose(1, 2)  # (batch, heads, length, head_dim)

    def key_values(self, states: torch.Tensor) -> KeyValue:
        return self._heads(self.k_proj(states)), self._heads(self.v_proj(states))

    def folds(self, states: torch.Tensor, tokens: torch.Tensor) -> bool:
        """Whether few queries read many tokens, so that projecting queries into the tokens' space is cheaper."""
        layers = _plain(self.k_proj), _plain(self.v_proj)
        plain = all(layers) and states.device.type == "cpu"
        learned = (states, tokens, *(layer.weight for layer in layers if layer))
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learned)
        inference = not learns and not (self.training and self.config.attention_probs_dropout_prob)
        # Less than half the multiplications: queries / tokens + queries / head_dim.
        cheaper = 2 * states.shape[1] * (tokens.shape[1] + self.head_dim) < tokens.shape[1] * self.head_dim
        return cheaper and plain and inference and self.config._attn_implementation == "sdpa"

    def _fold(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Attends in another order of products; the keys' bias shifts all scores of a query equally."""
        heads, (rows, queries) = (self.num_heads, self.head_dim), states.shape[:2]
        asked = self._heads(self.q_proj(states) * self.scaling).transpose(0, 1).flatten(1, 2)
        asked = (asked @ _plain(self.k_proj).weight.unflatten(0, heads)).unflatten(1, (rows, queries))
        scores = asked.transpose(0, 1).flatten(1, 2) @ tokens.transpose(1, 2)  # (rows, heads * queries, tokens)
        read = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(tokens.dtype) @ tokens
        read = read.unflatten(1, (self.num_heads, queries)).transpose(0, 1).flatten(1, 2)
        value = _plain(self.v_proj)
        attended = (read @ value.weight.unflatten(0, heads).transpose(1, 2)).unflatten(1, (rows, queries))
        return attended.permute(1, 2, 0, 3).flatten(2) + value.bias

    def forward(
        self,
        states: torch.Tensor,
        seen: KeyValue | torch.Tensor,
        mask: torch.Tensor | None,
        output_attentions: bool = False,
        kinds: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """seen: keys and values, or tokens to `_fold`. kinds: an axis of the returned weights."""
        if isinstance(seen, torch.Tensor):
            attended, weights = self._fold(states, seen), None
        else:
            attended, weights = self._attend(states, seen, mask, output_attentions, kinds)
        attended = self.dropout(self.out_proj(attended.reshape(*states.shape)))
        return self.norm(attended + states), weights

    def _attend(
        self,
        states: torch.Tensor,
        key_values: KeyValue,
        mask: torch.Tensor | None,
        output_attentions: bool,
        kinds: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        asked = self._heads(self.q_proj(states))
        # The other interfaces keep no weights, and cannot reshape an empty batch (no face in any image).
        if output_attentions or states.shape[0] == 0 or products_are_faster(asked):
            attention = eager_attention_forward
        return attention(
            self,
            asked,
            *key_values,
            mask,
            scaling=self.scaling,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            **({"kinds": kinds} if output_attentions else {}),
        )


class MF2QFormerFeedForward(nn.Module):
    def __init__(self, config: MF2QFormerConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or states.device.type != "cpu":
            return self._transform(states)
        rows = states.flatten(0, -2)
        if len(rows) <= _ROWS_AT_ONCE:
            return self._transform(states)
        result = torch.empty_like(rows)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            result[start : start + _ROWS_AT_ONCE] = self._transform(rows[start : start + _ROWS_AT_ONCE])
        return result.view_as(states)

    def _transform(self, states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dropout(self.down_proj(self.activation(self.up_proj(states)))) + states)


class MF2QFormerLayer(GradientCheckpointingLayer):
    def __init__(self, config: MF2QFormerConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.attention = MF2QFormerAttention(config, config.hidden_size)
        self.cross_attention = None
        if layer_idx % config.cross_attention_frequency == 0:
            self.cross_attention = MF2QFormerAttention(config, config.encoder_hidden_size)
        self.query_feed_forward = MF2QFormerFeedForward(config)
        self.text_feed_forward = MF2QFormerFeedForward(config)

    def forward(
        self,
        queries: torch.Tensor | None,
        text: torch.Tensor | None,
        image: torch.Tensor | None,
        image_key_values: KeyValue | None,
        query_key_values: KeyValue | None,
        text_mask: torch.Tensor | None,
        query_mask: torch.Tensor | None,
        mode: TextMode,
        past_key_values: Cache | None = None,
        keep_key_values: bool = False,
        output_attentions: bool = False,
        kinds: int | None = None,
    ) -> tuple:
        query_weights = text_weights = cross_weights = text_key_values = None
        returned = {"output_attentions": output_attentions, "kinds": kinds}
        if queries is not None:
            query_key_values = self.attention.key_values(queries)
        if text is not None:
            text_key_values = self.attention.key_values(text)
            if past_key_values is not None:
                text_key_values = past_key_values.update(*text_key_values, self.layer_idx)
            seen = text_key_values if mode == "unimodal" else _joined(query_key_values, text_key_values)
            attended_text, text_weights = self.attention(text, seen, text_mask, output_attentions)
        if queries is not None:
            sees_text = mode == "two_way" and text is not None
            seen = _joined(query_key_values, text_key_values) if sees_text else query_key_values
            queries, query_weights = self.attention(queries, seen, query_mask, **returned)
            if self.cross_attention is not None:
                queries = _repeated(queries, (image if image_key_values is None else image_key_values[0]).shape[0])
                keep = keep_key_values or output_attentions or image_key_values is not None
                folds = not keep and self.cross_attention.folds(queries, image)
                if image_key_values is None and not folds:
                    image_key_values = self.cross_attention.key_values(image)
                seen = image if folds else image_key_values
                queries, cross_weights = self.cross_attention(queries, seen, None, **returned)
            queries = self.query_feed_forward(queries)
        if text is not None:
            text = self.text_feed_forward(attended_text)
        return queries, text, query_key_values, image_key_values, query_weights, text_weights, cross_weights


class MF2QFormer(PreTrainedModel):
    config_class = MF2QFormerConfig
    base_model_prefix = "qformer"
    main_input_name = "queries"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["MF2QFormerLayer"]

    def __init__(self, config: MF2QFormerConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(MF2QFormerLayer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.word_embeddings = value

    def embed_text(self, input_ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        stop = start + input_ids.shape[1]
        if stop > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids: got {stop} tokens, expected at most {self.config.max_position_embeddings} "
                "(max_position_embeddings); let the checkpoint's own processor prepare the text"
            )
        positions = self.position_embeddings(torch.arange(start, stop, device=input_ids.device))
        return self.dropout(self.norm(self.word_embeddings(input_ids) + positions))

    def embed_queries(self, queries: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.norm(queries))

    def image_key_values(self, image: torch.Tensor) -> tuple[KeyValue, ...]:
        crossing = (layer.cross_attention for layer in self.layers if layer.cross_attention is not None)
        return tuple(attention.key_values(image) for attention in crossing)

    def _masks(
        self,
        queries: torch.Tensor | None,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        mode: TextMode,
        num_prefix: int,
        past: int,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Masks of the text stream and of the query stream, (batch or 1, 1, rows or 1, keys)."""
        length, device = text.shape[1], text.device
        keys = past + length
        shown = None if text_mask is None else text_mask.bool()[:, None, None, :]
        query_mask = None
        if mode == "two_way" and queries is not None and shown is not None:
            ones = shown.new_ones(*shown.shape[:3], queries.shape[1])
            query_mask = additive_mask(torch.cat([ones, shown], dim=-1), text.dtype)
        if mode == "causal":
            earlier = torch.arange(keys, device=device) <= torch.arange(past, keys, device=device)[:, None]
            shown = earlier[None, None] if shown is None else earlier & shown
        if shown is None:
            return None, None
        if mode != "unimodal" and num_prefix:
            shown = torch.cat([shown.new_ones(*shown.shape[:3], num_prefix), shown], dim=-1)
        return additive_mask(shown, text.dtype), query_mask

    def forward(
        self,
        queries: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        image_key_values: tuple[KeyValue, ...] | None = None,
        query_key_values: tuple[KeyValue, ...] | None = None,
        mode: TextMode = "two_way",
        past_key_values: Cache | None = None,
        output_key_values: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        keep_hidden_states: bool = False,
        kinds: int | None = None,
    ) -> MF2QFormerOutput:
        """
        queries: (batch, queries, hidden), or fewer rows that repeat along the batch: the first self-attention, which no
            image has entered yet, is then computed once for all of them.
        input_ids, text_mask: (batch, length); text_mask has the cached tokens too where past_key_values holds some.
        image or image_key_values: what the queries read. query_key_values: what text reads in place of queries.
        output_key_values: keep both for a later pass; they are of every block, and cost memory.
        keep_hidden_states: collect them without a row for each image where rows are still equal: nothing else changes.
        kinds: rows are of so many kinds in turn (AUs): row r is of kind r modulo their number.
        """
        if queries is not None and image is None and image_key_values is None:
            raise ValueError("image: got None, expected the image tokens (or image_key_values) that the queries read")
        text = text_additive = query_additive = None
        if queries is not None:
            batch = (image if image is not None else image_key_values[0][0]).shape[0]
            dropout = max(self.config.hidden_dropout_prob, self.config.attention_probs_dropout_prob)
            # Dropout and texts differ between images, and outputs have a row for each.
            each = input_ids is not None or output_hidden_states or output_attentions
            queries = self.embed_queries(_repeated(queries, batch) if each or (self.training and dropout) else queries)
        if input_ids is not None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            text = self.embed_text(input_ids, past)
            num_prefix = queries.shape[1] if queries is not None else 0
            if query_key_values is not None:
                num_prefix = query_key_values[0][0].shape[2]
            text_additive, query_additive = self._masks(queries, text, text_mask, mode, num_prefix, past)

        keep_hidden_states |= output_hidden_states
        collected: dict[str, list] = {name: [] for name in _COLLECTED}

        def keep(queries: torch.Tensor | None) -> torch.Tensor | None:
            if queries is not None:
                returned, queries = split_kinds(queries, kinds if output_hidden_states else None)
            if keep_hidden_states and queries is not None:
                collected["hidden_states"].append(returned)
            if keep_hidden_states and text is not None:
                collected["text_hidden_states"].append(text)
            return queries

        queries = keep(queries)
        for index, layer in enumerate(self.layers):
            crossing = index // self.config.cross_attention_frequency
            queries, text, query_kv, image_kv, *weights = layer(
                queries,
                text,
                image,
                image_key_values[crossing] if image_key_values is not None and layer.cross_attention else None,
                query_key_values[index] if query_key_values is not None else None,
                text_additive,
                query_additive,
                mode,
                past_key_values=past_key_values,
                keep_key_values=output_key_values,
                output_attentions=output_attentions,
                kinds=kinds,
            )
            queries = keep(queries)
            if output_key_values and queries is not None:
                collected["query_key_values"].append(tuple(_repeated(states, batch) for states in query_kv))
                if layer.cross_attention is not None:
                    collected["image_key_values"].append(image_kv)
            for name, value in zip(_COLLECTED, weights, strict=False):
                if output_attentions and value is not None:
                    collected[name].append(value)
        lists = {name: tuple(values) for name, values in collected.items() if values}
        return MF2QFormerOutput(query_states=queries, text_states=text, **lists)


# modeling_mf2/modeling_mf2.py


Branch = Literal["emo", "au"]


_COLDEST = 1e-3


def kept_states(config: MF2Config, hidden_states: bool | None, attentions: bool | None) -> dict[str, bool]:
    """What a Q-Former is asked to return besides its last states, as a call or else the config says."""
    hidden_states = config.output_hidden_states if hidden_states is None else hidden_states
    attentions = config.output_attentions if attentions is None else attentions
    return {"output_hidden_states": bool(hidden_states), "output_attentions": bool(attentions)}


@dataclass
class MF2BranchStates(ModelOutput):
    r"""
    hidden_states: of the first branch (Emo-VL; AU-VL where it is alone), also under its own name.
    attentions (`(batch, heads, queries, queries)`, with AU-VL alone `(batch, AU, ...)`): its self-attention.
    emo_hidden_states (`(batch, queries, hidden)`), au_hidden_states (`(batch, AU, queries, hidden)`): before the first
        block and after every block.
    emo_cross_attentions (`(batch, heads, queries, image tokens)`), au_cross_attentions (`(batch, AU, heads, queries,
        region tokens)`): of the blocks that have them, what the queries looked at.
    """

    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    emo_hidden_states: tuple[torch.Tensor, ...] | None = None
    au_hidden_states: tuple[torch.Tensor, ...] | None = None
    emo_cross_attentions: tuple[torch.Tensor, ...] | None = None
    au_cross_attentions: tuple[torch.Tensor, ...] | None = None


def branch_states(reads: dict[Branch, MF2QFormerOutput]) -> dict[str, tuple[torch.Tensor, ...] | None]:
    """Fields of `MF2BranchStates`."""
    first = next(iter(reads.values()))
    found = {"hidden_states": first.hidden_states, "attentions": first.attentions}
    for name, read in reads.items():
        found |= {f"{name}_hidden_states": read.hidden_states, f"{name}_cross_attentions": read.cross_attentions}
    return found


@dataclass
class _FaceStates(ModelOutput):
    emo_states: torch.Tensor | None = None
    au_states: torch.Tensor | None = None
    image_tokens: torch.Tensor | None = None


# Fields of the last base class come first.
@dataclass
class MF2ModelOutput(MF2BranchStates, _FaceStates):
    r"""
    emo_states (`(batch, queries, hidden)`), au_states (`(batch, AU, queries, hidden)`): the branches' answers.
    image_tokens (`(batch, prefix + grid * grid, width)`): what the vision tower saw.
    The rest as [`MF2BranchStates`].
    """


@dataclass
class MF2FaceAnalysisOutput(MF2ModelOutput, FaceAnalysisOutput):
    r"""
    The answers of [`FaceAnalysisOutput`] and the states of [`MF2ModelOutput`].
    """


@dataclass
class MF2ImageClassifierOutput(MF2BranchStates, ImageClassifierOutput):
    r"""
    loss, logits: as [`~transformers.modeling_outputs.ImageClassifierOutput`] has them; the rest as [`MF2BranchStates`].
    """


class MF2Branch(nn.Module):
    """A Q-Former with its queries and the heads that align it with language: Emo-VL, and AU-VL for all AUs together."""

    def __init__(self, config: MF2QFormerConfig, name: Branch = "emo", vision: PathwayShape | None = None) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(1, config.num_query_tokens, config.hidden_size))
        self.qformer = MF2QFormer(config)
        self.heads = MF2AlignmentHeads(config)
        self.temperature = nn.Parameter(torch.empty(1))
        states, width, queries = config.num_hidden_layers + 1, config.hidden_size, config.num_query_tokens
        pathways = {"visual": PathwayShape(states, width, queries, shared=1), "language": PathwayShape(states, width)}
        self.port = DFNPort(name, width, queries, pathways if vision is None else {**pathways, "vision": vision})

    def train(self, mode: bool = True) -> "MF2Branch":
        super().train(mode)
        self.qformer.train(mode and not self.port.frozen)
        return self

    def attend(
        self,
        kind: Literal["visual", "language"],
        vision: tuple[torch.Tensor, ...] | None = None,
        **inputs: object,
    ) -> MF2QFormerOutput:
        """A pass through the Q-Former. An adapter that reads its states makes new ones of the last, and its weights get
        the only gradients."""
        with no_graph_if(self.port.frozen):
            read = self.qformer(**inputs, keep_hidden_states=self.port.reads(kind))
        if kind == "visual":
            hidden = read.hidden_states
            if hidden is not None and hidden[0].ndim == 4:  # by kind: an adapter reads rows
                hidden = tuple(state.flatten(0, 1) for state in hidden)
            read.query_states = self.port(read.query_states, visual=hidden, vision=vision)
        else:
            read.text_states = self.port(read.text_states, inputs.get("text_mask"), language=read.text_hidden_states)
        if not inputs.get("output_hidden_states"):
            read.hidden_states = read.text_hidden_states = None
        return read

    def read_text(self, input_ids: torch.Tensor, mask: torch.Tensor, **kwargs: bool) -> MF2QFormerOutput:
        return self.attend("language", input_ids=input_ids, text_mask=mask, mode="unimodal", **kwargs)

    def language_logits(self, text_states: torch.Tensor) -> torch.Tensor:
        words = self.qformer.word_embeddings
        with fetched(words):
            return self.heads.language(text_states, words.weight)

    def positive_temperature(self) -> torch.Tensor:
        with fetched(self):
            return self.temperature.clamp_min(_COLDEST)


class MF2PreTrainedModel(FacePreTrainedModel):
    config_class = MF2Config
    base_model_prefix = "mf2"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # What an adapter is told: what the losses reach, and which modules a choice of heads means.
    adapter_pathways = tuple(f"{kind}_{name}" for kind in ("visual", "vision") for name in ("emo", "au"))
    adapter_heads = {"task": ["classifiers"], "all": ["classifiers", "heads"]}
    _supports_sdpa = True
    _supports_attention_backend = True
    # Their weights are used together, some past the module that holds them: a device map keeps each on one device.
    _no_split_modules = ["MF2Branch", "MF2Classifiers", "MF2VisionTower"]

    can_relabel = True
    relabel_hint = "Pass ignore_mismatched_sizes=True to start these labels anew and keep the rest"

    def enable_adapters(self) -> None:
        """transformers' own switches the layers on again, and leaves the heads that were trained beside them off."""
        super().enable_adapters()
        for module in self.modules():
            if hasattr(module, "modules_to_save") and hasattr(module, "enable_adapters"):
                module.enable_adapters(True)

    def load_adapter(self, peft_model_id: object = None, *args: object, **kwargs: object) -> object:
        check_adapter_file(peft_model_id)
        return super().load_adapter(peft_model_id, *args, **kwargs)

    @torch.no_grad()
    def forget_labels(self, fields: Collection[str]) -> None:
        """What belongs to one label of these fields of the config, as if it had never been trained."""
        classifiers = getattr(self, "classifiers", None)
        for owner in [*(classifiers.modules() if classifiers is not None else ()), self.base_model]:
            for name, old in [*owner.named_parameters(recurse=False)]:
                # A new tensor: transformers does not initialise those again that it has loaded.
                setattr(owner, name, nn.Parameter(old.clone(), requires_grad=old.requires_grad))
        if classifiers is not None:
            classifiers.init_weights(fields)
        if "action_units" in fields:
            self._init_weights(self.base_model)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Of both branches, with the bias that their language heads have for each token."""
        model = self.base_model
        for name in model.branch_names:
            branch = model.branch(name)
            rows = branch.qformer.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
            old, count = branch.heads.language.bias, rows.num_embeddings
            bias = torch.cat([old.detach()[:count], old.new_zeros(max(0, count - len(old)))])
            branch.heads.language.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
        self.vocab_size = count
        return model.get_input_embeddings()

    def captioner(self) -> "MF2PreTrainedModel":
        """The same weights (not a copy) in the class that writes captions."""

        if isinstance(self, MF2ForCaptioning):
            return self
        with torch.device("meta"):
            writer = MF2ForCaptioning(self.config)
        writer.mf2 = self.base_model
        return writer.train(self.training)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, object] | None = None, **kwargs: object
    ) -> None:
        if (activation_checkpointing_kwargs or {}).get("use_reentrant"):
            warnings.warn(
                "use_reentrant: got True, taken as False: reentrant checkpointing loses the gradients of the keys and "
                "values that the passes of this model share",
                stacklevel=2,
            )
            activation_checkpointing_kwargs = {**activation_checkpointing_kwargs, "use_reentrant": False}
        super().activation_checkpointing_enable(activation_checkpointing_kwargs, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MF2Branch):
            init.normal_(module.queries, std=std)
            init.constant_(module.temperature, self.config.initial_temperature)
        elif isinstance(module, MF2LanguageHead):
            init.zeros_(module.bias)
        elif isinstance(module, MF2Regions):
            init.normal_(module.positions, std=std)
        elif isinstance(module, MF2Classifiers):
            module.init_weights()
        elif isinstance(module, MF2Model) and module.au_embedding is not None:
            init.normal_(module.au_embedding, std=std)


class MF2Model(MF2PreTrainedModel):
    """Images (and landmarks) to the query states of both branches. Text is never needed to get them."""

    # What the models around this one add to it.
    _keys_to_ignore_on_load_unexpected = [r"^classifiers\."]

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        self.vision = MF2VisionTower(config.vision_config)
        states, width = self.vision.num_states, config.vision_config.hidden_size
        face = config.vision_config.num_prefix_tokens + config.vision_config.grid_size**2
        kinds, region = len(config.action_units), config.tokens_per_region
        seen = {"emo": PathwayShape(states, width, face), "au": PathwayShape(states, width, region, kinds=kinds)}
        seen = seen if states else {}
        self.emo_vl = MF2Branch(config.emo_config, "emo", seen.get("emo")) if config.use_emo_branch else None
        self.au_vl = self.regions = self.au_embedding = None
        if config.use_au_branch:
            self.au_vl = MF2Branch(config.au_config, "au", seen.get("au"))
            self.regions = MF2Regions(config)
            # Tells the one Q-Former that all AUs share which of them it looks at.
            self.au_embedding = nn.Parameter(torch.empty(len(config.action_units), 1, config.au_config.hidden_size))
        self.geometry = None
        if config.geometry_token:
            self.geometry = nn.ModuleDict({name: MF2Geometry(config) for name in self.branch_names})
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return (self.emo_vl or self.au_vl).qformer.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        (self.emo_vl or self.au_vl).qformer.word_embeddings = value

    def branch(self, name: Branch) -> MF2Branch:
        found = {"emo": self.emo_vl, "au": self.au_vl}
        if found.get(name) is None:
            raise ValueError(
                f"branch: got {name!r}, expected one of {[key for key in found if found[key] is not None]}"
            )
        return found[name]

    def branch_queries(self, name: Branch) -> torch.Tensor:
        """(1 or AU, queries, hidden): row r of a batch has queries r modulo their number."""
        branch = self.branch(name)
        with fetched(branch), fetched(self):
            queries = branch.queries
            return queries if name == "emo" else queries + self.au_embedding.to(queries.device)

    def look(self, pixel_values: torch.Tensor | None, image_tokens: torch.Tensor | None) -> torch.Tensor:
        if (pixel_values is None) == (image_tokens is None):
            raise ValueError(
                "pixel_values, image_tokens: expected one of the two, got "
                + ("neither" if pixel_values is None else "both")
            )
        tokens = self.vision(pixel_values) if image_tokens is None else image_tokens
        return tokens.to((self.emo_vl or self.au_vl).queries.dtype)  # a frozen tower may be in half precision

    def _frozen(self) -> bool:
        return any(branch is not None and branch.port.frozen for branch in (self.emo_vl, self.au_vl))

    def train(self, mode: bool = True) -> "MF2Model":
        super().train(mode)
        if self._frozen():
            self.vision.eval()
        return self

    def look_for_adapters(
        self, pixel_values: torch.Tensor | None, image_tokens: torch.Tensor | None, landmarks: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, tuple[torch.Tensor, ...]]]:
        """The tower's output, and for the branches whose adapter reads the tower's blocks what it reads of each."""
        ports = {name: self.branch(name).port for name in self.branch_names}
        readers = [name for name, port in ports.items() if port.reads("vision")]
        with no_graph_if(self._frozen()):
            if not readers:
                return self.look(pixel_values, image_tokens), {}
            if pixel_values is None or image_tokens is not None:
                raise ValueError(
                    "pixel_values: got none, or image_tokens beside them; expected images alone: the active adapter "
                    "reads the vision tower's blocks, which image_tokens do not hold"
                )
            image_tokens, states = self.vision.look_deep(pixel_values)
            deep = {name: tuple(self._places(name, state, landmarks) for state in states) for name in readers}
            return image_tokens, deep

    @property
    def branch_names(self) -> tuple[Branch, ...]:
        return tuple(name for name, module in (("emo", self.emo_vl), ("au", self.au_vl)) if module is not None)

    def branch_image(self, name: Branch, image_tokens: torch.Tensor, landmarks: torch.Tensor | None) -> torch.Tensor:
        """What a branch reads: (batch, tokens, width) of the face, or (batch * AU, tokens, width) of its regions; a
        token of the landmarks comes last, if the model has one."""
        image_tokens = image_tokens.to(self.branch(name).queries.dtype)  # a frozen tower may be in half precision
        places = self._places(name, image_tokens, landmarks)
        if self.geometry is None:
            return places
        vision = self.config.vision_config
        points = landmarks_or_mean(landmarks, image_tokens.shape[0], vision.image_size, image_tokens.device)
        shape = self.geometry[name](points).to(places.dtype)
        if name == "au":
            shape = shape.repeat_interleave(len(self.config.action_units), 0)
        return torch.cat([places, shape], 1)

    def _places(self, name: Branch, image_tokens: torch.Tensor, landmarks: torch.Tensor | None) -> torch.Tensor:
        self.branch(name)
        if name == "emo":
            return self._as_fine_as_tokens(image_tokens)
        return self.regions(image_tokens[:, self.config.vision_config.num_prefix_tokens :], landmarks).flatten(0, 1)

    def _as_fine_as_tokens(self, grid: torch.Tensor) -> torch.Tensor:
        """A finer map of the tower, averaged over what a token covers; tokens as they are."""
        side = self.config.vision_config.grid_size
        if grid.shape[1] == side**2 + self.config.vision_config.num_prefix_tokens:
            return grid
        fine = grid.transpose(1, 2).unflatten(2, (math.isqrt(grid.shape[1]), -1))
        return nn.functional.adaptive_avg_pool2d(fine, side).flatten(2).transpose(1, 2)

    def read(
        self, name: Branch, image: torch.Tensor, vision: tuple[torch.Tensor, ...] | None = None, **kwargs: bool
    ) -> MF2QFormerOutput:
        queries, kinds = self.branch_queries(name), None if name == "emo" else len(self.config.action_units)
        return self.branch(name).attend("visual", vision, queries=queries, image=image, kinds=kinds, **kwargs)

    def of_images(self, name: Branch, rows: torch.Tensor) -> torch.Tensor:
        """(batch, ...) of Emo-VL; rows (batch * AU, ...) of AU-VL -> (batch, AU, ...)."""
        return rows if name == "emo" else rows.unflatten(0, (-1, len(self.config.action_units)))

    def from_states(self, states: dict[str, torch.Tensor]) -> MF2ModelOutput:
        """The branches' answers to stored images, of which tower and Q-Formers are not asked again."""
        found = {name: self.branch(name).port.from_states(states) for name in self.branch_names}
        return MF2ModelOutput(**{f"{name}_states": self.of_images(name, rows) for name, rows in found.items()})

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        states: dict[str, torch.Tensor] | None = None,
        **kwargs: object,
    ) -> MF2ModelOutput:
        r"""
        landmarks (`(batch, 68, 2)`, *optional*): in pixels of `pixel_values`; without them the crops are taken as
            aligned to the canonical face.
        image_tokens (`(batch, prefix + grid * grid, width)`, *optional*): the tower's output, instead of images.
        states (`dict`, *optional*): a batch of `StateStore`, instead of images.
        """
        check_unused(self, kwargs)
        if states is not None:
            return self.from_states(states)
        kept = kept_states(self.config, output_hidden_states, output_attentions)
        image_tokens, vision = self.look_for_adapters(pixel_values, image_tokens, landmarks)
        reads = {}
        for name in self.branch_names:
            image = self.branch_image(name, image_tokens, landmarks)
            reads[name] = self.read(name, image, vision.get(name), **kept)
        states = {f"{name}_states": self.of_images(name, read.query_states) for name, read in reads.items()}
        return MF2ModelOutput(image_tokens=image_tokens, **states, **branch_states(reads))

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        branch: Branch = "emo",
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        r"""
        Returns:
            pooler_output (`(batch, queries, dim)`, of AU-VL `(batch, AU, queries, dim)`): unit vectors in the space
            shared with sentences. last_hidden_state: the states that they are made of.
        """
        image_tokens, vision = self.look_for_adapters(pixel_values, image_tokens, landmarks)
        image = self.branch_image(branch, image_tokens, landmarks)
        kept = kept_states(self.config, output_hidden_states, output_attentions)
        read = self.read(branch, image, vision.get(branch), **kept)
        features = self.branch(branch).heads.image_features(read.query_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=self.of_images(branch, read.query_states),
            pooler_output=self.of_images(branch, features),
            hidden_states=read.hidden_states,
            attentions=read.attentions,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        branch: Branch = "emo",
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        r"""
        input_ids, attention_mask (`(..., length)`).

        Returns:
            pooler_output (`(..., dim)`): unit vectors. last_hidden_state (`(..., length, hidden)`): what they are made
            of. hidden_states, attentions: with all leading axes as one.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        kept = kept_states(self.config, output_hidden_states, output_attentions)
        read = self.branch(branch).read_text(input_ids.flatten(0, -2), mask.flatten(0, -2), **kept)
        features = self.branch(branch).heads.text_features(read.text_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=read.text_states.unflatten(0, input_ids.shape[:-1]),
            pooler_output=features.unflatten(0, input_ids.shape[:-1]),
            hidden_states=read.text_hidden_states,
            attentions=read.text_attentions,
        )


class MF2ForFaceAnalysis(MF2PreTrainedModel):
    """Emotion and action units of a face from its image alone."""

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        self.mf2 = MF2Model(config)
        self.classifiers = MF2Classifiers(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        states: dict[str, torch.Tensor] | None = None,
        side_labels: torch.Tensor | None = None,
        intensity_labels: torch.Tensor | None = None,
        **kwargs: object,
    ) -> MF2FaceAnalysisOutput:
        r"""
        states: a batch of `StateStore`, instead of images.
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`), side_labels (`(batch, AU, 2)`: the person's left and
            right), intensity_labels (`(batch, AU)`, 0 to 5): -1 where unknown.
        """
        check_unused(self, kwargs)
        read = self.mf2(
            pixel_values,
            landmarks,
            image_tokens,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            states=states,
            return_dict=True,
        )
        answered = (read.emo_states, read.au_states, landmarks if states is None else states.get("landmarks"))
        logits = self.classifiers(*answered)
        labels = FaceLabels(emotion_labels, au_labels, side_labels, intensity_labels)
        parts = label_losses(self, *answered, logits, labels)
        loss = weighted_sum(self.config, parts)
        return MF2FaceAnalysisOutput(loss=loss, **logits.outputs, **parts, **read)


class MF2ForImageClassification(MF2PreTrainedModel):
    """One set of logits, as `pipeline("image-classification")` wants it: emotions, or AUs as independent labels."""

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.mf2 = MF2Model(config)
        self.classifiers = MF2Classifiers(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        states: dict[str, torch.Tensor] | None = None,
        **kwargs: object,
    ) -> MF2ImageClassifierOutput:
        r"""
        labels: `(batch,)` emotions or `(batch, AU)`, as `config.classification_target` says; -1 where unknown.
        """
        check_unused(self, kwargs)
        if labels is None:  # a batch of ours has both, by name
            labels = kwargs.get("emotion_labels" if self.config.classification_target == "emotion" else "au_labels")
        read = self.mf2(
            pixel_values,
            landmarks,
            image_tokens,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            states=states,
            return_dict=True,
        )
        landmarks = landmarks if states is None else states.get("landmarks")
        emotion_logits, au_logits = self.classifiers(read.emo_states, read.au_states, landmarks)[:2]
        loss, logits = None, emotion_logits if self.config.classification_target == "emotion" else au_logits
        if labels is not None and self.config.classification_target == "emotion":
            loss = emotion_loss(logits, labels)
        elif labels is not None:
            loss = au_loss(logits, labels, self.config.au_class_weights)
        states = {field.name: read.get(field.name) for field in dataclasses.fields(MF2BranchStates)}
        return MF2ImageClassifierOutput(loss=loss, logits=logits, **states)


# transformers 5.24 renamed `past_key_values` to `cache`, in `generate` and in its outputs. Ours take either name.
_output_fields = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}


CACHE_NAME = "cache" if "cache" in _output_fields else "past_key_values"


class MF2ForCaptioning(MF2PreTrainedModel, GenerationMixin):
    """Writes what it sees: Emo-VL the emotion caption (and, after its prompt, the key-AU caption), AU-VL each AU's."""

    main_input_name = "input_ids"
    adapter_pathways = ()  # text attends to keys and values, which no adapter changes
    _keys_to_ignore_on_load_unexpected = [r"^classifiers\."]

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        self.mf2 = MF2Model(config)
        self.post_init()

    def _usual(self, branch: Branch, prompted: bool) -> dict[str, int]:
        tokens = self.config.emo_config
        emotion_caption = branch == "emo" and not prompted
        return {
            "bos_token_id": tokens.bos_token_id,
            "eos_token_id": tokens.eos_token_id,
            "pad_token_id": tokens.pad_token_id,
            "max_length": self.config.emotion_max_length if emotion_caption else self.config.au_max_length,
        }

    def see(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        branch: Branch = "emo",
    ) -> torch.Tensor:
        """What text attends to: (rows, layers, 2, heads, queries, head_dim); a row is an image, or one of its AUs."""
        image = self.mf2.branch_image(branch, self.mf2.look(pixel_values, image_tokens), landmarks)
        pairs = self.mf2.read(branch, image, output_key_values=True).query_key_values
        return torch.stack([torch.stack(pair, dim=1) for pair in pairs], dim=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        query_key_values: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        branch: Branch = "emo",
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        r"""
        input_ids (`(rows, length)`): text so far, starting with `[DEC]`; a row an image, or an AU of an image.
        query_key_values: of `see`; computed here when an image is given in its place.
        labels (`(rows, length)`): the text itself for a loss; -100 where it does not count.
        cache, past_key_values: one thing under transformers' new and its old name.
        """
        check_unused(self, kwargs)
        if query_key_values is None:
            query_key_values = self.see(pixel_values, landmarks, image_tokens, branch)
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        module = self.mf2.branch(branch)
        read = module.qformer(
            input_ids=input_ids,
            text_mask=attention_mask,
            query_key_values=tuple((layer[:, 0], layer[:, 1]) for layer in query_key_values.unbind(1)),
            mode="causal",
            past_key_values=cache,
            **kept_states(self.config, output_hidden_states, output_attentions),
        )
        logits = module.language_logits(read.text_states)
        loss = None if labels is None else itg_loss(logits, labels.clamp_min(0), labels != -100)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=read.text_hidden_states,
            attentions=read.text_attentions,
            **{CACHE_NAME: cache},
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        query_key_values: torch.Tensor | None = None,
        branch: Branch = "emo",
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: object,
    ) -> dict[str, object]:
        cache = past_key_values if cache is None else cache
        past = cache.get_seq_length() if cache is not None else 0
        return {
            "input_ids": input_ids[:, past:],
            "attention_mask": attention_mask,
            "query_key_values": query_key_values,
            CACHE_NAME: cache,
            "branch": branch,
            "use_cache": use_cache,
        }

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        branch: Branch = "emo",
        input_ids: torch.Tensor | None = None,
        use_cache: bool = True,
        **kwargs: object,
    ) -> torch.Tensor | ModelOutput:
        """Token ids (batch, length), or (batch, AU, length) with `branch="au"`; greedy, beam, sampled as `kwargs` say.

        input_ids (`(1 or rows, length)`): what the text starts with in place of `[DEC]` alone, such as the prompt of
        key-AU captions.
        """
        seen = self.see(pixel_values, landmarks, image_tokens, branch)
        prompted = input_ids is not None
        if not prompted:
            input_ids = torch.full((1, 1), self.config.emo_config.bos_token_id, device=seen.device)
        if len(input_ids) not in (1, len(seen)):
            raise ValueError(
                f"input_ids: got {len(input_ids)} rows, expected 1 for all, or {len(seen)}: one for each image, or for "
                "each AU of each image"
            )
        # A checkpoint of another class brings no generation config: what it does not say, the model's config does.
        given = kwargs.get("generation_config") or self.generation_config
        for name, value in self._usual(branch, prompted).items():
            lengths = (given.max_new_tokens, kwargs.get("max_new_tokens")) if name == "max_length" else ()
            if getattr(given, name, None) is None and all(length is None for length in lengths):
                kwargs.setdefault(name, value)
        given = [kwargs.pop(name, None) for name in ("cache", "past_key_values")]
        if use_cache:
            kwargs[CACHE_NAME] = next((cache for cache in given if cache is not None), DynamicCache())
        output = super().generate(
            input_ids=input_ids.expand(len(seen), -1),
            query_key_values=seen,
            branch=branch,
            use_cache=use_cache,
            **kwargs,
        )
        if branch == "au" and isinstance(output, torch.Tensor):
            several = output.shape[0] // seen.shape[0]
            shape = (-1, len(self.config.action_units), *([several] if several > 1 else []))
            return output.unflatten(0, shape)
        return output


@dataclass
class _TextChoice(ModelOutput):
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


@dataclass
class MF2TextChoiceOutput(MF2BranchStates, _TextChoice):
    r"""
    logits_per_image (`(batch, sentences)`), logits_per_text (its transpose): how near a sentence is to the query that
        is nearest to it, over the learned temperature.
    image_embeds (`(batch, queries, dim)`), text_embeds (`(sentences, dim)`): unit vectors.
    The rest as [`MF2BranchStates`].
    """


class MF2ForZeroShotImageClassification(MF2PreTrainedModel):
    """Emotions, or anything said of the whole face, by the sentences that stand for them; no weights of its own.

    Action units need a sentence for their state at rest as well: `MF2ZeroShotImageClassificationPipeline` has them.
    """

    main_input_name = "input_ids"
    _keys_to_ignore_on_load_unexpected = [r"^classifiers\."]

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        if not config.use_emo_branch:
            raise ValueError(
                "use_emo_branch: got False, expected True: sentences about the whole face meet Emo-VL; ask about "
                "action units with MF2ZeroShotImageClassificationPipeline"
            )
        self.mf2 = MF2Model(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> MF2TextChoiceOutput:
        r"""
        input_ids (`(sentences, length)`): each image meets every sentence.
        token_type_ids: what BERT's tokenizer gives besides; there is one kind of text here, and it says nothing.
        """
        check_unused(self, kwargs)
        image_tokens, vision = self.mf2.look_for_adapters(pixel_values, image_tokens, landmarks)
        image = self.mf2.branch_image("emo", image_tokens, landmarks)
        kept = kept_states(self.config, output_hidden_states, output_attentions)
        read = self.mf2.read("emo", image, vision.get("emo"), **kept)
        seen = self.mf2.branch("emo").heads.image_features(read.query_states)
        told = self.mf2.get_text_features(input_ids, attention_mask, return_dict=True).pooler_output
        near = torch.einsum("bqd,ld->blq", seen, told).amax(dim=-1)
        logits = near / self.mf2.branch("emo").positive_temperature()
        return MF2TextChoiceOutput(
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=seen,
            text_embeds=told,
            **branch_states({"emo": read}),
        )


# modeling_mf2/pretraining.py


@dataclass
class _Losses(ModelOutput):
    loss: torch.Tensor | None = None
    itc_emo: torch.Tensor | None = None
    itm_emo: torch.Tensor | None = None
    itg_emo: torch.Tensor | None = None
    itg_key_au: torch.Tensor | None = None
    itc_au: torch.Tensor | None = None
    itm_au: torch.Tensor | None = None
    itg_au: torch.Tensor | None = None
    au: torch.Tensor | None = None
    emotion: torch.Tensor | None = None
    side: torch.Tensor | None = None
    intensity: torch.Tensor | None = None
    shape: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None
    au_logits: torch.Tensor | None = None
    au_side_logits: torch.Tensor | None = None
    au_intensities: torch.Tensor | None = None


@dataclass
class MF2ForPreTrainingOutput(MF2BranchStates, _Losses):
    r"""
    loss: the sum of the parts that follow it, each times its weight in `config.loss_weights`. A part is None where its
        branch, its captions or its labels are missing.
    The rest as [`MF2BranchStates`].
    """


class MF2ForPreTraining(MF2PreTrainedModel):
    """Alignment of both branches with their sentences (ITC, ITM, ITG), and the two classification losses."""

    compares_rows = True  # so that micro-batches of one step have to know each other

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        self.mf2 = MF2Model(config)
        self.classifiers = MF2Classifiers(config)
        self.post_init()

    @property
    def adapter_pathways(self) -> tuple[str, ...]:
        """Of text an adapter changes what ITC compares; ITM and ITG take no text state that it could change."""
        spoken = [name for name in ("emo", "au") if self.config.loss_weights.get(f"itc_{name}", 1.0)]
        return ("visual_emo", "visual_au", *(f"language_{name}" for name in spoken))

    def _features(self, name: Branch, read: MF2QFormerOutput, captions: Captions) -> Features:
        branch = self.mf2.branch(name)
        first, place = first_of_equals(captions.keys[:, 0])  # many AUs are at rest: equal sentences are read once
        states = branch.read_text(captions.input_ids[first], captions.mask[first]).text_states
        text, image = branch.heads.text_features(states)[place], branch.heads.image_features(read.query_states)
        return Features(image, text, branch.positive_temperature(), captions)

    def _match(self, name: Branch, read: MF2QFormerOutput, captions: Captions, compared: Comparison) -> torch.Tensor:
        """ITM of each pair, each text with a wrong image, each image with a wrong text. The keys and values of images
        are those of `read`, but for wrong images from elsewhere."""
        branch, queries, rows = self.mf2.branch(name), self.mf2.branch_queries(name), captions.rows
        images = torch.cat([rows, compared.wrong_image, rows])
        if compared.other_images is None:
            image_key_values = tuple((keys[images], values[images]) for keys, values in read.image_key_values)
        else:
            others = branch.qformer.image_key_values(compared.other_images)
            image_key_values = tuple(
                tuple(torch.cat([own[rows], other, own[rows]]) for own, other in zip(*pairs, strict=True))
                for pairs in zip(read.image_key_values, others, strict=True)
            )
        texts = []
        for own, wrong in zip((captions.input_ids, captions.mask), compared.wrong_texts, strict=True):
            own = nn.functional.pad(own[rows], (0, wrong.shape[1] - own.shape[1]))
            texts.append(torch.cat([own, own, wrong]))
        states = branch.attend(
            "visual",
            queries=queries[images % len(queries)],
            input_ids=texts[0],
            text_mask=texts[1],
            image_key_values=image_key_values,
            mode="two_way",
        ).query_states
        matched = torch.arange(3, device=rows.device).eq(0).long().repeat_interleave(rows.shape[0])
        return itm_loss(branch.heads.itm(states), matched, compared.match_valid, f"itm_{name}")

    def _write(self, name: str, read: MF2QFormerOutput, captions: Captions) -> torch.Tensor:
        """ITG: its queries see no text, so the image-only pass is what they do; text attends to that pass's keys."""
        branch, rows = self.mf2.branch("au" if name == "au" else "emo"), captions.rows
        started, mask = captions.input_ids[rows], captions.mask[rows]
        started[:, 0] = branch.qformer.config.bos_token_id
        seen = tuple((keys[rows], values[rows]) for keys, values in read.query_key_values)
        states = branch.qformer(input_ids=started, text_mask=mask, query_key_values=seen, mode="causal").text_states
        return itg_loss(branch.language_logits(states), started, captions.learned, f"itg_{name}")

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        landmarks: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        au_input_ids: torch.Tensor | None = None,
        au_attention_mask: torch.Tensor | None = None,
        key_au_input_ids: torch.Tensor | None = None,
        key_au_attention_mask: torch.Tensor | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        side_labels: torch.Tensor | None = None,
        intensity_labels: torch.Tensor | None = None,
        **kwargs: object,
    ) -> MF2ForPreTrainingOutput:
        r"""
        input_ids, attention_mask (`(batch, length)`): emotion captions; a row without any token has no caption.
        au_input_ids, au_attention_mask (`(batch, AU, length)`): a sentence an AU, active or at rest; likewise.
        key_au_input_ids, key_au_attention_mask (`(batch, length)`): key-AU captions, which Emo-VL learns to write.
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`), side_labels (`(batch, AU, 2)`: the person's left and
            right), intensity_labels (`(batch, AU)`, 0 to 5): -1 where unknown.
        """
        check_unused(self, kwargs)
        image_tokens, vision = self.mf2.look_for_adapters(pixel_values, image_tokens, landmarks)
        given = {
            "emo": (input_ids, attention_mask),
            "key_au": (key_au_input_ids, key_au_attention_mask),
            "au": (au_input_ids, au_attention_mask),
        }
        captions = self._captions(image_tokens.shape[0], given, au_labels, emotion_labels)
        kept = kept_states(self.config, output_hidden_states, output_attentions)
        images, reads, features = {}, {}, {}
        for name in self.mf2.branch_names:
            images[name] = self.mf2.branch_image(name, image_tokens, landmarks)
            read = self.mf2.read(name, images[name], vision.get(name), output_key_values=True, **kept)
            reads[name] = read
            if name in captions:
                features[name] = self._features(name, read, captions[name])
        # After all random draws that features depend on, so that a second pass with the same seed repeats them.
        comparisons = current_step().compare(self, features, captions, images, image_tokens)
        if comparisons is None:
            return MF2ForPreTrainingOutput()
        parts: dict[str, torch.Tensor] = {}
        for name, compared in comparisons.items():
            parts[f"itc_{name}"] = compared.contrast
            parts[f"itm_{name}"] = self._match(name, reads[name], captions[name], compared)
        for name, own in captions.items():
            parts[f"itg_{name}"] = self._write(name, reads["au" if name == "au" else "emo"], own)
        states = {name: self.mf2.of_images(name, read.query_states) for name, read in reads.items()}
        emo_states, au_states = states.get("emo"), states.get("au")
        logits = self.classifiers(emo_states, au_states, landmarks)
        labels = FaceLabels(emotion_labels, au_labels, side_labels, intensity_labels)
        parts |= label_losses(self, emo_states, au_states, landmarks, logits, labels)
        return MF2ForPreTrainingOutput(
            loss=weighted_sum(self.config, parts),
            **logits.outputs,
            **parts,
            **branch_states(reads),
        )

    def _captions(
        self,
        images: int,
        given: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]],
        au_labels: torch.Tensor | None,
        emotion_labels: torch.Tensor | None,
    ) -> dict[str, Captions]:
        """The captions of the model's branches: a row for each image, or for each of its AUs."""
        captions, units = {}, len(self.config.action_units)
        for name, (ids, mask) in given.items():
            if ids is None or not (self.config.use_au_branch if name == "au" else self.config.use_emo_branch):
                continue
            if name == "au" and ids.shape[:2] != (images, units):
                raise ValueError(
                    f"au_input_ids: got {tuple(ids.shape)}, expected (batch, AU, length) with {(images, units)} "
                    "images and AUs"
                )
            if ids.shape[0] != images:
                field = "input_ids" if name == "emo" else "key_au_input_ids"
                raise ValueError(f"{field}: got {len(ids)} captions, expected {images}, one for each image")
            mask = torch.ones_like(ids) if mask is None else mask
            ids, mask = ids.flatten(0, -2), mask.flatten(0, -2)
            captions[name] = Captions(ids, mask, self._said(name, caption_keys(ids, mask), au_labels, emotion_labels))
        return captions

    def draw_pairs(self, name: str, captions: Captions) -> None:
        """Draws the pairs that ITM and ITG take: in training a random share of them."""
        count, device = len(captions.mask), captions.mask.device  # of an offloaded model the device is not known
        share = self.config.au_pair_share if name == "au" else self.config.emo_pair_share
        rows = torch.arange(count, device=device)
        if share != 1 and self.training:
            rows = torch.randperm(count, device=device)[: max(1, round(share * count))]
        captions.rows, captions.learned = rows, captions.mask[rows]
        if name == "key_au":  # its prompt is given
            captions.learned[:, 1 : 1 + self.config.key_au_prompt_length] = 0

    def _said(
        self, name: str, text_keys: torch.Tensor, au_labels: torch.Tensor | None, emotion_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """A sentence means the state of its AU, a caption of the face its emotion."""
        labels = au_labels if name == "au" else emotion_labels
        if labels is None or self.config.contrast == "wording":
            return meaning_keys(text_keys, None, None)
        units = torch.arange(labels[:1].numel(), device=labels.device).repeat(len(labels))
        states = labels.flatten()
        return meaning_keys(text_keys, torch.stack([units, states], dim=1), states != UNKNOWN_LABEL)
