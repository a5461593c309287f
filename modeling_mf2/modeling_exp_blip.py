"""Exp-BLIP, a compared system: BLIP-2's first stage on expression captions, and the classifier on its features."""

from collections.abc import Collection

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import can_return_tuple

from configuration_mf2.configuration_exp_blip import ExpBlipConfig

from .accumulation_mf2 import BatchShare
from .compared_model import FaceAnalysisOutput
from .modeling_mf2 import MF2Model, MF2PreTrainedModel, check_unused, classification_losses, weighted_sum
from .pretraining_mf2 import MF2ForPreTraining, MF2ForPreTrainingOutput
from .vision_mf2 import no_graph_if


class _NoClassifiers(nn.Module):
    """Stage 1 learns from captions alone."""

    def forward(self, *states: torch.Tensor | None) -> tuple[None, None]:
        return None, None


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
        share: BatchShare | None = None,
        features_only: bool = False,
        **kwargs: object,
    ) -> MF2ForPreTrainingOutput:
        r"""
        input_ids, attention_mask (`(batch, length)`): captions; a row without any token has none. Labels are not looked
            at: faces of one emotion have captions of different AUs, which are negatives of each other.
        share, features_only: how the Trainer makes one step of several micro-batches, see `accumulation_mf2`.
        """
        check_unused(self, kwargs)
        return super().forward(
            pixel_values,
            input_ids=input_ids,
            attention_mask=attention_mask,
            image_tokens=image_tokens,
            share=share,
            features_only=features_only,
            **({} if features_only else {"return_dict": True}),
        )


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
    features are free to choose. A stage-2 folder is taken by `training_mf2.exp_blip_mf2.build_classifier`.
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
        return self.config.losses

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
        with no_graph_if(self.config.frozen_features):
            tokens = self.mf2.look(pixel_values, image_tokens)
            if self.config.features == "vision":
                return tokens[:, self.config.vision_config.num_prefix_tokens :].mean(dim=1)
            states = self.mf2.read("emo", tokens).query_states
            return states.mean(dim=1) if self.config.query_pooling == "mean" else states.flatten(1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        image_tokens: torch.Tensor | None = None,
        share: BatchShare | None = None,
        **kwargs: object,
    ) -> FaceAnalysisOutput:
        r"""
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        image_tokens: the frozen tower's output, instead of images.
        share: what the Trainer tells one of several micro-batches of a step.
        """
        check_unused(self, kwargs)
        emotion_logits, au_logits = self.classifiers(self.features(pixel_values, image_tokens))
        parts = classification_losses(self.config, emotion_logits, emotion_labels, au_logits, au_labels, share)
        return FaceAnalysisOutput(
            loss=weighted_sum(self.config, parts), emotion_logits=emotion_logits, au_logits=au_logits, **parts
        )


__all__ = ["ExpBlipForFaceAnalysis", "ExpBlipForPreTraining"]
