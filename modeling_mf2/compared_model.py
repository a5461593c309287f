"""What all compared systems share: their answers, how they are loaded, and how rare action units are weighted."""

import difflib
import inspect
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from configuration_mf2.compared_config import ComparedConfig
from configuration_mf2.facs_mf2 import LABEL_ARGUMENTS, UNKNOWN_LABEL
from configuration_mf2.hub_mf2 import SelfContainedMixin

from .accumulation_mf2 import BatchShare, count_of
from .feature_maps import FeatureMaps
from .losses_mf2 import au_loss, emotion_loss
from .vision_mf2 import init_backbone


# What a batch of ours may hold; a model takes what it needs of it and leaves the rest.
_BATCH_FIELDS = {
    *("pixel_values", "landmarks", "index", "au_labels", "emotion_labels", "share"),
    *("input_ids", "attention_mask", "au_input_ids", "au_attention_mask"),
    *("key_au_input_ids", "key_au_attention_mask"),
}


@dataclass
class FaceAnalysisOutput(ModelOutput):
    r"""
    loss: the sum of the parts that follow it, each times its weight in `config.loss_weights`; None without labels.
    emotion_logits (`(batch, emotions)`), au_logits (`(batch, AU)`): None where there is no such head.
    """

    loss: torch.Tensor | None = None
    au: torch.Tensor | None = None
    emotion: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None
    au_logits: torch.Tensor | None = None


class ComparedPreTrainedModel(SelfContainedMixin, PreTrainedModel):
    config_class = ComparedConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The losses are means already; the Trainer must not divide or multiply them.
    accepts_loss_kwargs = False
    # A device map keeps each on one device: a backbone of any kind, and what has weights beside its submodules.
    _no_split_modules = ["FeatureMaps", "UnitFeatures"]
    vision: FeatureMaps

    def get_input_embeddings(self) -> None:
        """There is no text that goes in; FSDP asks."""
        return None

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The parts of the loss, as fields of the output."""
        return self.config.losses

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: object, *args: object, **kwargs: object) -> object:
        source = pretrained_model_name_or_path
        cls._check_labels(source, kwargs)
        try:
            return super().from_pretrained(source, *args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"{source}: model.safetensors is damaged or cut short ({error}); copy or download the checkpoint again"
            ) from error

    @classmethod
    def _check_labels(cls, source: object, kwargs: dict[str, object]) -> None:
        named = {name: kwargs[name] for name in LABEL_ARGUMENTS if name in kwargs}
        given = kwargs.get("config")
        if source is None or not (named or given):
            return
        if given is not None and not isinstance(given, cls.config_class):
            return
        where = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        saved = cls.config_class.from_pretrained(source, **{name: kwargs[name] for name in where if name in kwargs})
        wanted = given or cls.config_class.from_dict(saved.to_dict(), **named)
        for field in ("action_units", "emotions"):
            if list(getattr(saved, field)) != list(getattr(wanted, field)):
                raise ValueError(
                    f"{field}: got {getattr(wanted, field)}, but the checkpoint {source} has {getattr(saved, field)}; "
                    "what was learned for a label must not answer for another. Load it with its own labels, or train "
                    "a new model (its backbone can be taken over by load_backbone_weights)"
                )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if hasattr(module, "init_non_persistent_buffers"):
            # Built on the meta device, timm's tables come back empty.
            module.init_non_persistent_buffers()
        if init_backbone(module):
            return
        if isinstance(module, nn.Linear | nn.Conv2d):
            # Signals keep their size whatever the width.
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def check_unused(self, unused: dict[str, object]) -> None:
        for name, value in unused.items():
            if value is not None and name not in _BATCH_FIELDS:
                known = [key for key in inspect.signature(self.forward).parameters if key not in ("args", "kwargs")]
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TypeError(f"{type(self).__name__}: got an unknown input {name!r}; {hint}Inputs: {known}")

    def classification_losses(
        self,
        emotion_logits: torch.Tensor | None,
        emotion_labels: torch.Tensor | None,
        au_logits: torch.Tensor | None,
        au_labels: torch.Tensor | None,
        share: BatchShare | None,
    ) -> dict[str, torch.Tensor]:
        parts = {}
        if au_logits is not None and au_labels is not None:
            parts["au"] = au_loss(au_logits, au_labels, self.config.au_class_weights, count_of(share, "au"))
        if emotion_logits is not None and emotion_labels is not None:
            parts["emotion"] = emotion_loss(emotion_logits, emotion_labels, count_of(share, "emotion"))
        return parts

    def weighted_sum(self, parts: dict[str, torch.Tensor]) -> torch.Tensor | None:
        weighted = [self.config.loss_weights.get(name, 1.0) * part for name, part in parts.items()]
        return sum(weighted) if weighted else None


def face_and_units(face: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
    """What an emotion head reads: face (batch, width), units (batch, AU, width) -> (batch, (1 + AU) * width).

    MF²'s own classifier reads the face and every AU too; systems whose papers have no emotions are so compared on both.
    """
    return torch.cat([face[:, None], units], dim=1).flatten(1)


def occurrence_weights(au_labels: torch.Tensor) -> list[float]:
    """VL-FAU's equation 9 from training labels (rows, AU), -1 unknown: the rarer an AU, the more its loss counts.

    Equation 9 makes the weights' sum 1, and equation 8 divides by the number of AUs once more. Here their mean is 1, as
    ME-GraphAU has it: the AU loss then stands beside the other losses on one scale. The literal equation is
    `loss_weights={"au": 1 / AUs}`. An AU that is never active has no rate to balance, and keeps weight 1.
    """
    known = (au_labels != UNKNOWN_LABEL).sum(dim=0).double()
    active = (au_labels == 1).sum(dim=0).double()
    seen = active > 0
    inverse = torch.where(seen, known / active.clamp_min(1), torch.zeros_like(known))
    mean = inverse.sum() / seen.sum().clamp_min(1)
    return torch.where(seen, inverse / mean.clamp_min(1e-12), torch.ones_like(known)).tolist()


__all__ = ["ComparedPreTrainedModel", "FaceAnalysisOutput", "face_and_units", "occurrence_weights"]
