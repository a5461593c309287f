"""Images against any sentences, as `pipeline("zero-shot-image-classification")` of transformers asks for them."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config

from .modeling_mf2 import MF2Model, MF2PreTrainedModel, check_unused, kept_states


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
    emo_hidden_states: tuple[torch.Tensor, ...] | None = None
    emo_cross_attentions: tuple[torch.Tensor, ...] | None = None


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
        told = self.mf2.get_text_features(input_ids, attention_mask)
        near = torch.einsum("bqd,ld->blq", seen, told).amax(dim=-1)
        logits = near / self.mf2.branch("emo").positive_temperature()
        return MF2TextChoiceOutput(
            logits_per_image=logits,
            logits_per_text=logits.T,
            image_embeds=seen,
            text_embeds=told,
            emo_hidden_states=read.hidden_states,
            emo_cross_attentions=read.cross_attentions,
        )


__all__ = ["MF2ForZeroShotImageClassification"]
