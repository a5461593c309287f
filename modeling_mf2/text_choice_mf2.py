"""Images against any sentences, as `pipeline("zero-shot-image-classification")` of transformers asks for them."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config

from .modeling_mf2 import MF2Model, MF2PreTrainedModel, check_unused


@dataclass
class MF2TextChoiceOutput(ModelOutput):
    r"""
    logits_per_image (`(batch, sentences)`), logits_per_text (its transpose): how near a sentence is to the query that
        is nearest to it, over the learned temperature.
    image_embeds (`(batch, queries, dim)`), text_embeds (`(sentences, dim)`): unit vectors.
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


class MF2ForZeroShotImageClassification(MF2PreTrainedModel):
    """Emotions, or anything said of the whole face, by the sentences that stand for them; no weights of its own.

    Action units need a sentence for their state at rest as well: `MF2ZeroShotImageClassificationPipeline` has them.
    """

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
        **kwargs: object,
    ) -> MF2TextChoiceOutput:
        r"""
        input_ids (`(sentences, length)`): each image meets every sentence.
        token_type_ids: what BERT's tokenizer gives besides; there is one kind of text here, and it says nothing.
        """
        check_unused(self, kwargs)
        seen = self.mf2.get_image_features(pixel_values, landmarks, image_tokens)
        told = self.mf2.get_text_features(input_ids, attention_mask)
        near = torch.einsum("bqd,ld->blq", seen, told).amax(dim=-1)
        logits = near / self.mf2.branch("emo").temperature.clamp_min(1e-3)
        return MF2TextChoiceOutput(
            logits_per_image=logits, logits_per_text=logits.T, image_embeds=seen, text_embeds=told
        )


__all__ = ["MF2ForZeroShotImageClassification"]
