"""Pre-training: both branches aligned with their sentences, and the classifiers on top of them."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import UNKNOWN_LABEL

from .heads import FaceLabels, MF2Classifiers, label_losses
from .loading import check_unused
from .losses import (
    Captions,
    Comparison,
    Features,
    caption_keys,
    current_step,
    first_of_equals,
    itg_loss,
    itm_loss,
    meaning_keys,
    weighted_sum,
)
from .modeling_mf2 import (
    Branch,
    MF2BranchStates,
    MF2Model,
    MF2PreTrainedModel,
    branch_states,
    kept_states,
)
from .qformer import MF2QFormerOutput


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


__all__ = ["MF2ForPreTraining"]
