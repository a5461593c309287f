"""Pre-training: both branches aligned with their sentences, and the classifiers on top of them."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config

from .heads_mf2 import MF2Classifiers
from .losses_mf2 import (
    allowed_negatives,
    caption_keys,
    first_of_equals,
    gather,
    gather_offset,
    hard_negatives,
    image_text_similarity,
    itc_loss,
    itg_loss,
    itm_loss,
    pad_as_others,
    world_size,
)
from .modeling_mf2 import (
    Branch,
    MF2Branch,
    MF2Model,
    MF2PreTrainedModel,
    check_unused,
    classification_losses,
    weighted_sum,
)
from .qformer_mf2 import MF2QFormerOutput


@dataclass
class MF2ForPreTrainingOutput(ModelOutput):
    r"""
    loss: the sum of the parts below, each times its weight in `config.loss_weights`. A part is None where its branch,
        its captions or its labels are missing.
    """

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
    emotion_logits: torch.Tensor | None = None
    au_logits: torch.Tensor | None = None


class MF2ForPreTraining(MF2PreTrainedModel):
    """Alignment of both branches with their sentences (ITC, ITM, ITG), and the two classification losses."""

    def __init__(self, config: MF2Config) -> None:
        super().__init__(config)
        self.mf2 = MF2Model(config)
        self.classifiers = MF2Classifiers(config)
        self.post_init()

    def _align(
        self, name: Branch, read: MF2QFormerOutput, image: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The three alignment losses of one branch, a row being an image and its caption, or a region and its sentence.

        The image-only pass (`read`) and the text-only pass are each made once: ITC compares them, ITG lets text attend
        to the first, and ITM takes its image keys and values.
        """
        branch = self.mf2.branch(name)
        input_ids, mask = pad_as_others(input_ids, mask)
        valid = mask.any(dim=1)
        keys = caption_keys(input_ids, mask)
        image_features = branch.heads.image_features(read.query_states)
        first, place = first_of_equals(keys)  # many AUs are at rest: equal sentences are read once
        text_features = branch.text_features(input_ids[first], mask[first])[place]
        image_to_text = image_text_similarity(image_features, gather(text_features))
        text_to_image = image_text_similarity(gather(image_features), text_features).T
        negatives = allowed_negatives(keys, gather(keys), gather(valid))
        temperature = branch.temperature.clamp_min(1e-3)
        contrast = itc_loss(image_to_text, text_to_image, temperature, negatives, valid, gather_offset(len(valid)))

        rows = self._pair_rows(name, len(valid))
        picked = (negatives[rows], temperature, self.training)
        wrong_text, text_found = hard_negatives(image_to_text[rows], *picked)
        wrong_image, image_found = hard_negatives(text_to_image[rows], *picked)
        match_logits = self._match(name, read, image, input_ids, mask, rows, wrong_image, wrong_text)
        matched = torch.arange(3, device=mask.device).eq(0).long().repeat_interleave(len(wrong_text))
        match_valid = torch.cat([valid[rows], valid[rows] & image_found, valid[rows] & text_found])
        return {
            f"itc_{name}": contrast,
            f"itm_{name}": itm_loss(match_logits, matched, match_valid),
            f"itg_{name}": self._write(branch, read, input_ids, mask, rows),
        }

    def _pair_rows(self, name: Branch, count: int) -> torch.Tensor:
        """The pairs that ITM and ITG take this time; while training a share of them, drawn anew."""
        share = self.config.emo_pair_share if name == "emo" else self.config.au_pair_share
        if share == 1 or not self.training:
            return torch.arange(count, device=self.device)
        return torch.randperm(count, device=self.device)[: max(1, round(share * count))]

    def _match(
        self,
        name: Branch,
        read: MF2QFormerOutput,
        image: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        rows: torch.Tensor,
        wrong_image: torch.Tensor,
        wrong_text: torch.Tensor,
    ) -> torch.Tensor:
        """Logits (3 * rows, queries, 2) of each pair, each text with a wrong image, each image with a wrong text."""
        branch, queries = self.mf2.branch(name), self.mf2.branch_queries(name)
        if world_size() == 1:
            images = torch.cat([rows, wrong_image, rows])
            image_key_values = tuple((keys[images], values[images]) for keys, values in read.image_key_values)
        else:  # the wrong image may be another process's: its keys and values are computed here
            others = branch.qformer.image_key_values(gather(image)[wrong_image])
            image_key_values = tuple(
                tuple(torch.cat([own[rows], other, own[rows]]) for own, other in zip(*pairs, strict=True))
                for pairs in zip(read.image_key_values, others, strict=True)
            )
        states = branch.qformer(
            queries=queries[torch.cat([rows, wrong_image, rows]) % len(queries)],
            input_ids=torch.cat([input_ids[rows], input_ids[rows], gather(input_ids)[wrong_text]]),
            text_mask=torch.cat([mask[rows], mask[rows], gather(mask)[wrong_text]]),
            image_key_values=image_key_values,
            mode="two_way",
        ).query_states
        return branch.heads.itm(states)

    def _write(
        self,
        branch: MF2Branch,
        read: MF2QFormerOutput,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        rows: torch.Tensor,
        prompt_length: int = 0,
    ) -> torch.Tensor:
        """ITG: its queries see no text, so the image-only pass is what they do; text attends to that pass's keys."""
        started, mask = input_ids[rows], mask[rows]
        started[:, 0] = branch.qformer.config.bos_token_id
        seen = tuple((keys[rows], values[rows]) for keys, values in read.query_key_values)
        states = branch.qformer(input_ids=started, text_mask=mask, query_key_values=seen, mode="causal").text_states
        learned = mask.clone()
        learned[:, 1 : 1 + prompt_length] = 0
        return itg_loss(branch.language_logits(states), started, learned)

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
        **kwargs: object,
    ) -> MF2ForPreTrainingOutput:
        r"""
        input_ids, attention_mask (`(batch, length)`): emotion captions; a row without any token has no caption.
        au_input_ids, au_attention_mask (`(batch, AU, length)`): a sentence an AU, active or at rest; likewise.
        key_au_input_ids, key_au_attention_mask (`(batch, length)`): key-AU captions, which Emo-VL learns to write.
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        """
        check_unused(self, kwargs)
        image_tokens = self.mf2.look(pixel_values, image_tokens)
        for name, texts in (("input_ids", input_ids), ("key_au_input_ids", key_au_input_ids)):
            if texts is not None and len(texts) != len(image_tokens):
                raise ValueError(f"{name}: got {len(texts)} captions, expected {len(image_tokens)}, one for each image")
        parts: dict[str, torch.Tensor] = {}
        emo_states = au_states = None
        if self.config.use_emo_branch:
            read = self.mf2.read("emo", image_tokens, output_key_values=True)
            emo_states = read.query_states
            if input_ids is not None:
                mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
                parts |= self._align("emo", read, image_tokens, input_ids, mask)
            if key_au_input_ids is not None:
                mask = torch.ones_like(key_au_input_ids) if key_au_attention_mask is None else key_au_attention_mask
                rows = self._pair_rows("emo", len(mask))
                parts["itg_key_au"] = self._write(
                    self.mf2.emo_vl, read, key_au_input_ids, mask, rows, self.config.key_au_prompt_length
                )
        if self.config.use_au_branch:
            regions = self.mf2.branch_image("au", image_tokens, landmarks)
            read = self.mf2.read("au", regions, output_key_values=True)
            au_states = read.query_states.unflatten(0, (-1, len(self.config.action_units)))
            if au_input_ids is not None:
                if au_input_ids.shape[:2] != au_states.shape[:2]:
                    raise ValueError(
                        f"au_input_ids: got {tuple(au_input_ids.shape)}, expected (batch, AU, length) with "
                        f"{tuple(au_states.shape[:2])} images and AUs"
                    )
                mask = torch.ones_like(au_input_ids) if au_attention_mask is None else au_attention_mask
                parts |= self._align("au", read, regions, au_input_ids.flatten(0, 1), mask.flatten(0, 1))
        emotion_logits, au_logits = self.classifiers(emo_states, au_states)
        parts |= classification_losses(self.config, emotion_logits, emotion_labels, au_logits, au_labels)
        return MF2ForPreTrainingOutput(
            loss=weighted_sum(self.config, parts), emotion_logits=emotion_logits, au_logits=au_logits, **parts
        )


__all__ = ["MF2ForPreTraining"]
