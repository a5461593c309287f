"""Exp-BLIP, a compared system: BLIP-2's first stage on expression captions, and the classifier on its features."""

from collections.abc import Collection

import torch
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Blip2VisionModel,
    GenerationConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from configuration_mf2.baselines import ExpBlipCaptionerConfig, ExpBlipConfig
from configuration_mf2.hub import SelfContainedMixin
from modeling_mf2.heads import FaceLogits
from modeling_mf2.loading import check_unused
from modeling_mf2.losses import FaceAnalysisOutput, classification_losses, meaning_keys, weighted_sum
from modeling_mf2.modeling_mf2 import MF2Model, MF2PreTrainedModel, kept_states
from modeling_mf2.pretraining import MF2ForPreTraining, MF2ForPreTrainingOutput
from modeling_mf2.qformer import MF2QFormerOutput
from modeling_mf2.vision import MF2VisionTower, no_graph_if
from modeling_mf2.weights import branch_name, vision_name


class _NoClassifiers(nn.Module):
    """Stage 1 learns from captions alone."""

    shape = None

    def forward(self, *states: torch.Tensor | None) -> FaceLogits:
        return FaceLogits()


class ExpBlipForPreTraining(MF2ForPreTraining):
    """Stage 1: an image and its caption, by ITC, ITM and ITG. MF²'s own code, without AU-VL and label losses."""

    config_class = ExpBlipConfig
    hub_system = "exp_blip"
    adapter_pathways = ("visual_emo", "language_emo")
    loss_names = ("itc_emo", "itm_emo", "itg_emo")
    _keys_to_ignore_on_load_unexpected = [r"^classifiers\."]

    def __init__(self, config: ExpBlipConfig) -> None:
        super().__init__(config)
        self.classifiers = _NoClassifiers()

    @classmethod
    def _relabelled(cls, source: object, kwargs: dict[str, object]) -> dict[str, str]:
        """Nothing was learned for a label, so any will do."""
        return {}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        **kwargs: object,
    ) -> MF2ForPreTrainingOutput:
        r"""
        input_ids, attention_mask (`(batch, length)`): captions; a row without any token has none.
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): looked at only with `config.contrast="meaning"`.
        """
        check_unused(self, kwargs)
        return super().forward(
            pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_tokens=image_tokens,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            au_labels=au_labels,
            emotion_labels=emotion_labels,
            return_dict=True,
        )

    def _said(
        self, name: str, text_keys: torch.Tensor, au_labels: torch.Tensor | None, emotion_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """A caption means all labels of its face: faces of one emotion have captions of different AUs."""
        labels = [part.view(len(text_keys), -1) for part in (au_labels, emotion_labels) if part is not None]
        if not labels or self.config.contrast == "wording":
            return meaning_keys(text_keys, None, None)
        known = torch.ones_like(text_keys, dtype=torch.bool)
        return meaning_keys(text_keys, torch.cat(labels, dim=1), known)


class ExpBlipClassifiers(nn.Module):
    """One linear layer for the AUs and one for the emotions, of what the features are."""

    def __init__(self, config: ExpBlipConfig) -> None:
        super().__init__()
        units, emotions = len(config.action_units), len(config.emotions)
        self.units = nn.Linear(config.feature_size, units) if units else None
        self.emotion = nn.Linear(config.feature_size, emotions) if emotions else None

    def init_weights(self, fields: Collection[str] = ("action_units", "emotions")) -> None:
        """Untrained logits near 0: nothing is known, and nothing has to be unlearned. fields: as `MF2Classifiers`."""
        for layer, field in ((self.units, "action_units"), (self.emotion, "emotions")):
            if layer is not None and field in fields:
                init.normal_(layer.weight, std=0.1 * layer.in_features**-0.5)
                init.zeros_(layer.bias)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(batch, feature_size) -> emotion logits, AU logits."""
        return tuple(None if layer is None else layer(features) for layer in (self.emotion, self.units))


class ExpBlipForFaceAnalysis(MF2PreTrainedModel):
    """AUs and emotion from the features that captions taught: of the image encoder, or of the Q-Former.

    `from_pretrained` takes a folder of stage 1 too: its heads are then fresh, as transformers reports, and labels and
    features are free to choose. A stage-2 folder is taken by `mf2face.training.exp_blip.build_classifier`.
    """

    config_class = ExpBlipConfig
    hub_system = "exp_blip"
    adapter_pathways = ()

    def __init__(self, config: ExpBlipConfig) -> None:
        super().__init__(config)
        if config.features == "vision" and config.vision_config.frozen and not config.frozen_features:
            raise ValueError(
                "vision_config.frozen: got True, expected False to fine-tune the image encoder's features: pass "
                "vision_config={'frozen': False}, or frozen_features=True for a linear probe"
            )
        self.mf2 = MF2Model(config)
        self.classifiers = ExpBlipClassifiers(config)
        self.post_init()
        self.train()

    @property
    def loss_names(self) -> tuple[str, ...]:
        return ("au", "emotion")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: object, *args: object, **kwargs: object) -> object:
        source = pretrained_model_name_or_path
        if source is not None:
            cls._check_features(source, kwargs)
        return super().from_pretrained(source, *args, **kwargs)

    @classmethod
    def _saved(cls, source: object, kwargs: dict[str, object]) -> ExpBlipConfig:
        where = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        return ExpBlipConfig.from_pretrained(source, **{name: kwargs[name] for name in where if name in kwargs})

    @classmethod
    def _has_heads(cls, saved: PreTrainedConfig) -> bool:
        return "ExpBlipForPreTraining" not in (saved.architectures or [])

    @classmethod
    def _check_features(cls, source: object, kwargs: dict[str, object]) -> None:
        """Heads that were trained on one kind of features must not read another, even where the widths agree."""
        given, saved = kwargs.get("config"), cls._saved(source, kwargs)
        for name in ("features", "query_pooling"):
            wanted = kwargs.get(name, getattr(given, name, getattr(saved, name)))
            if cls._has_heads(saved) and wanted != getattr(saved, name):
                raise ValueError(
                    f"{name}: got {wanted!r}, but the heads of {source} were trained on {getattr(saved, name)!r}; load "
                    "it as it is, or start from the stage-1 checkpoint"
                )

    @classmethod
    def _relabelled(cls, source: object, kwargs: dict[str, object]) -> dict[str, str]:
        # Stage 1 has learned nothing for a label.
        if source is None or not cls._has_heads(cls._saved(source, kwargs)):
            return {}
        return super()._relabelled(source, kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ExpBlipClassifiers):
            module.init_weights()

    def train(self, mode: bool = True) -> "ExpBlipForFaceAnalysis":
        """A probe's features are frozen and stay in evaluation mode; what no loss reaches is never trained."""
        super().train(mode)
        if self.config.frozen_features:
            self.mf2.requires_grad_(False).eval()
        elif self.config.features == "vision":
            self.mf2.emo_vl.requires_grad_(False).eval()
        else:
            branch = self.mf2.emo_vl
            unread = [branch.heads, branch.qformer.word_embeddings, branch.qformer.position_embeddings]
            for module in (*unread, *(layer.text_feed_forward for layer in branch.qformer.layers)):
                module.requires_grad_(False)
            branch.temperature.requires_grad_(False)
        return self

    def features(
        self, pixel_values: torch.Tensor | None = None, image_tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, config.feature_size): the mean of the patch tokens, or the queries."""
        return self._read(pixel_values, image_tokens)[0]

    def _read(
        self, pixel_values: torch.Tensor | None, image_tokens: torch.Tensor | None, **kept: bool
    ) -> tuple[torch.Tensor, MF2QFormerOutput]:
        """The features, and what the Q-Former was asked to keep."""
        with no_graph_if(self.config.frozen_features):
            tokens = self.mf2.look(pixel_values, image_tokens)
            if self.config.features == "vision":
                return tokens[:, self.config.vision_config.num_prefix_tokens :].mean(dim=1), MF2QFormerOutput()
            read = self.mf2.read("emo", tokens, **kept)
            mean = self.config.query_pooling == "mean"
            return read.query_states.mean(dim=1) if mean else read.query_states.flatten(1), read

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> FaceAnalysisOutput:
        r"""
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        image_tokens: the frozen tower's output, instead of images.
        """
        check_unused(self, kwargs)
        kept = kept_states(self.config, output_hidden_states, output_attentions)
        features, read = self._read(pixel_values, image_tokens, **kept)
        emotion_logits, au_logits = self.classifiers(features)
        parts = classification_losses(self.config, emotion_logits, emotion_labels, au_logits, au_labels)
        return FaceAnalysisOutput(
            loss=weighted_sum(self.config, parts),
            emotion_logits=emotion_logits,
            au_logits=au_logits,
            hidden_states=read.hidden_states,
            attentions=read.attentions,
            **parts,
        )


State = dict[str, torch.Tensor]

_QFORMER_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "initializer_range"),
    *("layer_norm_eps", "pad_token_id", "cross_attention_frequency"),
)
_CLOSE = {"rtol": 1e-3, "atol": 1e-3}  # of another architecture the outputs differ by their whole size
NUM_BEAMS, MIN_NEW_TOKENS = 5, 3  # the supplement's Table 12; the authors' settings


class _CarriedTower(MF2VisionTower):
    """Our tower, asked as BLIP-2 asks its own."""

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: object
    ) -> BaseModelOutputWithPooling:
        if interpolate_pos_encoding:
            raise ValueError("interpolate_pos_encoding: got True, expected False: the tower sees images of one size")
        tokens = super().forward(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(dim=1))


class ExpBlipTowerCaptioner(SelfContainedMixin, Blip2ForConditionalGeneration):
    """BLIP-2 around a tower that is no `Blip2VisionModel`; nothing else differs."""

    config_class = ExpBlipCaptionerConfig
    hub_system = "exp_blip_captioner"

    def __init__(self, config: ExpBlipCaptionerConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForConditionalGeneration"  # which transformers reads off a class's name
        self.vision_model = _CarriedTower(config.tower_config)


def to_blip2(
    model: ExpBlipForPreTraining,
    language_model: PreTrainedModel,
    *,
    start_token_id: int,
    end_token_id: int,
    pad_token_id: int,
    image_token_id: int,
    max_new_tokens: int = 200,
    carry_tower: bool | None = None,
) -> Blip2ForConditionalGeneration:
    """The captioner, whose tower, queries and Q-Former are copies of the stage-1 model's, and whose projection is new.

    language_model: an OPT, taken as it is (not a copy). image_token_id: stands for a query in the text; an id that no
    word has. carry_tower: keep our own tower; by default where BLIP-2's cannot be the same.
    """
    if not isinstance(model, ExpBlipForPreTraining):
        raise ValueError(f"model: got {type(model).__name__}, expected a stage-1 model, ExpBlipForPreTraining")
    if not isinstance(language_model.config, OPTConfig):
        raise ValueError(
            f"language_model: got a {language_model.config.model_type!r}, expected an OPT of any size, such as "
            "facebook/opt-2.7b: Exp-BLIP writes by OPT"
        )
    if image_token_id >= language_model.get_input_embeddings().num_embeddings:
        language_model.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
    words = language_model.config
    words.bos_token_id, words.eos_token_id, words.pad_token_id = start_token_id, end_token_id, pad_token_id
    as_blip2 = None if carry_tower else _blip2_vision_config(model.mf2.vision)
    captioner = _assemble(model, language_model, as_blip2, image_token_id)
    if as_blip2 is not None and not _see_the_same(captioner, model):
        captioner = _assemble(model, language_model, None, image_token_id)
    if not _see_the_same(captioner, model):
        raise RuntimeError(f"to_blip2: the copy of {model.config.vision_config.backbone!r} does not see what it sees")
    captioner.generation_config = GenerationConfig(
        **{"bos_token_id": start_token_id, "eos_token_id": end_token_id, "pad_token_id": pad_token_id},
        **{"num_beams": NUM_BEAMS, "min_new_tokens": MIN_NEW_TOKENS, "max_new_tokens": max_new_tokens},
        suppress_tokens=[image_token_id],
    )
    return captioner


def _assemble(
    model: ExpBlipForPreTraining,
    language_model: PreTrainedModel,
    vision_config: Blip2VisionConfig | None,
    image_token_id: int,
) -> Blip2ForConditionalGeneration:
    branch, tower = model.config.emo_config, model.config.vision_config
    # A stand-in without blocks: a large language model is not built twice.
    small = {"num_hidden_layers": 0, "vocab_size": 8, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    stand_in = OPTConfig(**{**language_model.config.to_dict(), **small})
    shared = {
        "qformer_config": Blip2QFormerConfig(**{name: getattr(branch, name) for name in _QFORMER_FIELDS}),
        **{"text_config": stand_in, "num_query_tokens": branch.num_query_tokens},
        **{"image_token_index": image_token_id, "exp_blip": model.config.to_dict()},
    }
    if vision_config is not None:
        captioner = Blip2ForConditionalGeneration(Blip2Config(vision_config=vision_config, **shared))
    else:
        width = {"hidden_size": tower.hidden_size, "image_size": tower.image_size, "patch_size": tower.patch_size}
        no_blocks = {"num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 1}
        carried = {**tower.to_dict(), "frozen": False}
        shared |= {"vision_config": Blip2VisionConfig(**width, **no_blocks), "tower_config": carried}
        captioner = ExpBlipTowerCaptioner(ExpBlipCaptionerConfig(**shared))
    captioner.language_model, captioner.config.text_config = language_model, language_model.config
    _copy(model, captioner)
    return captioner.eval()


def _blip2_vision_config(tower: MF2VisionTower) -> Blip2VisionConfig | None:
    """The shape of a `Blip2VisionModel` that has a place for each of the tower's tensors, if there is one."""
    backbone, config = tower.backbone, tower.config
    block = next(iter(getattr(backbone, "blocks", ())), None)
    attention, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
    if not (hasattr(attention, "num_heads") and hasattr(mlp, "fc1") and isinstance(backbone.norm, nn.LayerNorm)):
        return None
    names = set(backbone.state_dict())
    shape = Blip2VisionConfig(
        **{"hidden_size": config.hidden_size, "image_size": config.image_size, "patch_size": config.patch_size},
        **{"num_hidden_layers": len(backbone.blocks), "num_attention_heads": attention.num_heads},
        **{"intermediate_size": mlp.fc1.out_features, "layer_norm_eps": backbone.norm.eps},
        qkv_bias=bool(names & {"blocks.0.attn.qkv.bias", "blocks.0.attn.q_bias"}),
    )
    with torch.device("meta"):
        theirs = Blip2VisionModel(shape).state_dict()
    ours = _as_blip2_names({f"vision.backbone.{name}": tensor for name, tensor in backbone.state_dict().items()})
    places = {_our_name(f"vision_model.{name}"): tensor.shape for name, tensor in theirs.items()}
    return shape if places == {name: tensor.shape for name, tensor in ours.items()} else None


def _our_name(key: str) -> str | None:
    """A captioner's key -> the name in an `MF2Model`; None of what stage 1 does not have."""
    if key.startswith("vision_model.backbone."):
        return f"vision.{key.removeprefix('vision_model.')}"
    if key.startswith("vision_model."):
        return f"vision.backbone.{vision_name(key)}"
    return f"emo_vl.{branch_name(key)}" if key.startswith(("qformer.", "query_tokens")) else None


def _as_blip2_names(state: State) -> State:
    """EVA has biases for queries and values only; BLIP-2 keeps one, with zeros between."""
    renamed = dict(state)
    for name in [name for name in state if name.endswith(".attn.q_bias")]:
        attention = name.removesuffix("q_bias")
        query, value = renamed.pop(name), renamed.pop(f"{attention}v_bias")
        renamed.pop(f"{attention}k_bias", None)
        renamed[f"{attention}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return renamed


@torch.no_grad()
def _copy(model: ExpBlipForPreTraining, captioner: Blip2ForConditionalGeneration) -> None:
    ours = _as_blip2_names(model.mf2.state_dict())
    for key, place in captioner.state_dict().items():
        if (name := _our_name(key)) is not None:
            place.copy_(ours[name])


@torch.no_grad()
def _see_the_same(captioner: Blip2ForConditionalGeneration, model: ExpBlipForPreTraining) -> bool:
    """Of one image of noise: the tokens, and what the queries make of them."""
    size, training = model.config.vision_config.image_size, model.training
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    model.eval()
    tokens = model.mf2.look(image, None)
    states = model.mf2.read("emo", tokens).query_states
    model.train(training)
    seen = captioner.to(model.device).get_image_features(image, return_dict=True)
    pairs = ((seen.last_hidden_state, tokens), (seen.qformer_outputs.last_hidden_state, states))
    return all(torch.allclose(answer.float(), expected.float(), **_CLOSE) for answer, expected in pairs)


@torch.no_grad()
def load_from_captioner(model: ExpBlipForFaceAnalysis, state: State, source: str = "state") -> list[str]:
    """What stage 2 made of tower, queries and Q-Former, into the classifier; `state` by the captioner's names. Text
    parts, which a captioner lacks and no feature reads, stay as they are. -> the names that were filled."""
    theirs = {name: tensor for key, tensor in state.items() if (name := _our_name(key)) is not None}
    ours = model.mf2.state_dict()
    for name in [name for name in theirs if name.endswith("attn.qkv.bias") and name not in ours]:
        attention, bias = name.removesuffix("qkv.bias"), theirs.pop(name)
        # A bias of the keys shifts all scores of a query alike: softmax does not see it.
        theirs[f"{attention}q_bias"], _, theirs[f"{attention}v_bias"] = bias.chunk(3)
    read = [name for name in ours if _feeds_features(name)]
    wrong = sorted({*theirs} ^ {*read}) or [name for name in read if theirs[name].shape != ours[name].shape]
    if wrong:
        raise ValueError(
            f"{source} does not fit this model, which was left as it was: {len(wrong)} tensors differ {wrong[:5]}; "
            "expected the captioner that was made of a stage 1 of the same configuration"
        )
    for name in read:
        ours[name].copy_(theirs[name])
    return read


def _feeds_features(name: str) -> bool:
    if name.startswith("vision."):
        return not name.endswith("attn.k_bias")
    unread = (".heads.", ".text_feed_forward.", "word_embeddings", "position_embeddings", ".temperature", ".port.")
    return name.startswith("emo_vl.") and not any(part in name for part in unread)


@torch.no_grad()
def generate_captions(
    captioner: Blip2ForConditionalGeneration, pixel_values: torch.Tensor, **settings: object
) -> torch.Tensor:
    """Token ids of the captions alone, by the captioner's own settings (five beams) unless given."""
    training = captioner.training
    captioner.eval()
    start = [captioner.config.image_token_index] * captioner.config.num_query_tokens
    start = torch.tensor([[*start, captioner.generation_config.bos_token_id]], device=pixel_values.device)
    start = start.expand(len(pixel_values), -1)
    written = captioner.generate(
        pixel_values=pixel_values,
        input_ids=start,
        attention_mask=torch.ones_like(start),
        generation_config=captioner.generation_config,
        **settings,
    )
    captioner.train(training)
    return written[:, start.shape[1] :]


__all__ = [
    "ExpBlipForFaceAnalysis",
    "ExpBlipForPreTraining",
    "ExpBlipTowerCaptioner",
    "generate_captions",
    "load_from_captioner",
    "to_blip2",
]
