"""MF²: images to the states of both branches, and the models that analyse a face, classify it, write or choose text."""

import dataclasses
import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast, ImageClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config, MF2QFormerConfig
from modeling_mf2.dfn.port import DFNPort, PathwayShape

from .heads import FaceLabels, MF2AlignmentHeads, MF2Classifiers, MF2LanguageHead, label_losses
from .loading import FacePreTrainedModel, check_adapter_file, check_unused, fetched
from .losses import FaceAnalysisOutput, au_loss, emotion_loss, itg_loss, weighted_sum
from .qformer import MF2QFormer, MF2QFormerOutput
from .regions import MF2Geometry, MF2Regions, landmarks_or_mean
from .vision import MF2VisionTower, no_graph_if


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


__all__ = [
    "MF2ForCaptioning",
    "MF2ForFaceAnalysis",
    "MF2ForImageClassification",
    "MF2ForZeroShotImageClassification",
    "MF2Model",
    "MF2PreTrainedModel",
]
