"""VL-FAU, a compared system: AUs from refined branches, and why, in words, from a local and a global decoder."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_vl_fau import VLFAUConfig

from .accumulation_mf2 import BatchShare, count_of
from .compared_model import ComparedPreTrainedModel, FaceAnalysisOutput, face_and_units
from .feature_maps import FeatureMaps
from .losses_mf2 import au_loss
from .vl_fau_decoder import AttentionDecoder, Described
from .vl_fau_layers import Attended, DualLevelRefinement, MultiScaleCombination, UnitClassifiers


@dataclass
class VLFAUOutput(FaceAnalysisOutput):
    r"""
    local_text, global_text: equations 10 and 11, where descriptions were given.
    global_au: loss of the AUs that are read from what the global decoder looked at.
    local_hits of local_words words were among the decoder's five likeliest, and likewise of the global description.
    """

    local_text: torch.Tensor | None = None
    global_text: torch.Tensor | None = None
    global_au: torch.Tensor | None = None
    local_hits: torch.Tensor | None = None
    local_words: torch.Tensor | None = None
    global_hits: torch.Tensor | None = None
    global_words: torch.Tensor | None = None


@dataclass
class VLFAUExplanation(ModelOutput):
    r"""
    local_ids (`(batch, AU, length)`), global_ids (`(batch, length)`): token ids of the descriptions; None where the
        model has no such decoder.
    """

    local_ids: torch.Tensor | None = None
    global_ids: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None
    au_logits: torch.Tensor | None = None


class VLFAUForFaceAnalysis(ComparedPreTrainedModel):
    """Action units and their descriptions from an image alone. The emotion head is ours, for comparison: the paper has
    none, and `emotions=[]` leaves it out."""

    config_class = VLFAUConfig
    hub_system = "vl_fau"
    input_modalities = ("image", "text")

    def __init__(self, config: VLFAUConfig) -> None:
        super().__init__(config)
        units, width = len(config.action_units), config.hidden_size
        self.vision = FeatureMaps(config)
        if config.use_marl:
            self.combine = MultiScaleCombination(self.vision.channels, config)
            self.refine = DualLevelRefinement(units, config)
        else:
            self.narrow = nn.Linear(self.vision.width, width)
        self.units = UnitClassifiers(units, width)
        self.emotion = nn.Linear((1 + units) * width, len(config.emotions)) if config.emotions else None
        self.local_decoder = AttentionDecoder(config) if config.use_llga else None
        self.global_decoder = AttentionDecoder(config) if config.use_glga else None
        self.global_units = nn.Linear(width, units) if config.use_glga else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DualLevelRefinement | UnitClassifiers):
            module.init_weights()

    def look(self, pixel_values: torch.Tensor) -> tuple[Attended, Attended]:
        """The face, and every AU's refinement of it; without MARL all AUs have the face itself."""
        if not self.config.use_marl:
            face = Attended(self.narrow(self.vision.tokens(pixel_values)))
            return face, face
        combined, size = self.combine(self.vision.stages(pixel_values))
        return Attended(combined), self.refine(combined, size)

    def classify(self, face: Attended, units: Attended) -> tuple[torch.Tensor | None, torch.Tensor]:
        """-> emotion logits, AU logits."""
        whole, each = face.mean().squeeze(1), units.mean()
        each = each.expand(-1, len(self.config.action_units), -1)
        emotion = None if self.emotion is None else self.emotion(face_and_units(whole, each))
        return emotion, self.units(each)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        au_input_ids: torch.Tensor | None = None,
        au_attention_mask: torch.Tensor | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        share: BatchShare | None = None,
        **kwargs: object,
    ) -> VLFAUOutput:
        r"""
        input_ids, attention_mask (`(batch, length)`): the global description; a row without any token has none.
        au_input_ids, au_attention_mask (`(batch, AU, length)`): a local description an AU, active or not; likewise.
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        share: what the Trainer tells one of several micro-batches of a step.
        """
        self.check_unused(kwargs)
        face, units = self.look(pixel_values)
        emotion_logits, au_logits = self.classify(face, units)
        parts = self.classification_losses(emotion_logits, emotion_labels, au_logits, au_labels, share)
        output = VLFAUOutput(emotion_logits=emotion_logits, au_logits=au_logits)
        if self.local_decoder is not None and au_input_ids is not None:
            shape = (len(pixel_values), len(self.config.action_units))
            said = self._describe("local", units, au_input_ids, au_attention_mask, shape, share)
            parts["local_text"], output.local_hits, output.local_words = said.loss, said.hits, said.words
        if self.global_decoder is not None and input_ids is not None:
            shown = None if attention_mask is None else attention_mask[:, None]
            said = self._describe("global", face, input_ids[:, None], shown, (len(pixel_values), 1), share)
            parts["global_text"], output.global_hits, output.global_words = said.loss, said.hits, said.words
            if au_labels is not None:
                found, weights = self.global_units(said.seen.squeeze(1)), self.config.au_class_weights
                parts["global_au"] = au_loss(found, au_labels, weights, count_of(share, "au"))
        for name, part in parts.items():
            output[name] = part
        output.loss = self.weighted_sum(parts)  # equation 12
        return output

    def _describe(
        self,
        kind: str,
        maps: Attended,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        shape: tuple[int, int],
        share: BatchShare | None,
    ) -> Described:
        if input_ids.shape[:2] != shape:
            field = "au_input_ids" if kind == "local" else "input_ids"
            got, wanted = (size if kind == "local" else size[:1] for size in (tuple(input_ids.shape[:2]), shape))
            raise ValueError(f"{field}: got texts for {got}, expected {wanted}: one for each image (and AU)")
        mask = torch.ones_like(input_ids) if mask is None else mask
        counts = {} if share is None else share.counts
        decoder = self.local_decoder if kind == "local" else self.global_decoder
        return decoder(maps, input_ids, mask, counts.get(f"{kind}_text"))

    @torch.no_grad()
    def explain(self, pixel_values: torch.Tensor, num_beams: int | None = None) -> VLFAUExplanation:
        """Answers and their descriptions, from images alone. num_beams: the config's unless given; 1 is greedy."""
        beams = self.config.num_beams if num_beams is None else num_beams
        if beams < 1:
            raise ValueError(f"num_beams: got {beams}, expected at least 1")
        face, units = self.look(pixel_values)
        output = VLFAUExplanation(**dict(zip(("emotion_logits", "au_logits"), self.classify(face, units), strict=True)))
        if self.local_decoder is not None:
            output.local_ids = self.local_decoder.write(units, self.config.local_max_length, beams)
        if self.global_decoder is not None:
            output.global_ids = self.global_decoder.write(face, self.config.global_max_length, beams).squeeze(1)
        return output

    @torch.no_grad()
    def word_accuracy(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, float]:
        """`local_top5`, `global_top5`: the share of all words of the batches that were among the five likeliest, each
        predicted from the true words before it (the paper's Table 4). A decoder without any word is left out."""
        sums: dict[str, float] = {}
        for batch in batches:
            output = self(**batch)
            for name in ("local_hits", "local_words", "global_hits", "global_words"):
                if output.get(name) is not None:
                    sums[name] = sums.get(name, 0.0) + output[name].item()
        kinds = [kind for kind in ("local", "global") if sums.get(f"{kind}_words")]
        return {f"{kind}_top5": sums[f"{kind}_hits"] / sums[f"{kind}_words"] for kind in kinds}


__all__ = ["VLFAUForFaceAnalysis"]
