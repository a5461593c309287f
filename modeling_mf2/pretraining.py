"""Pre-training: both branches aligned with their sentences, and the classifiers on top of them."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import UNKNOWN_LABEL

from .loading import check_unused
from .losses import (
    Features,
    StepContext,
    caption_keys,
    compare,
    current_step,
    first_of_equals,
    gather,
    gather_offset,
    itg_loss,
    itm_loss,
    meaning_keys,
    pad_as_others,
    weighted_sum,
    world_size,
)
from .modeling_mf2 import (
    Branch,
    MF2Classifiers,
    MF2Model,
    MF2PreTrainedModel,
    kept_states,
    label_losses,
)
from .qformer import MF2QFormerOutput


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
    emo_hidden_states: tuple[torch.Tensor, ...] | None = None
    au_hidden_states: tuple[torch.Tensor, ...] | None = None
    emo_cross_attentions: tuple[torch.Tensor, ...] | None = None
    au_cross_attentions: tuple[torch.Tensor, ...] | None = None


def _matched(rows: torch.Tensor) -> torch.Tensor:
    return torch.arange(3, device=rows.device).eq(0).long().repeat_interleave(len(rows))


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

    def _features(
        self, name: Branch, read: MF2QFormerOutput, input_ids: torch.Tensor, mask: torch.Tensor, keys: torch.Tensor
    ) -> Features:
        """keys: equal where rows say the same."""
        branch = self.mf2.branch(name)
        return Features(
            image=branch.heads.image_features(read.query_states),
            text=self._text_features(name, input_ids, mask, keys[:, 0]),
            keys=keys,
            input_ids=input_ids,
            mask=mask,
            temperature=branch.positive_temperature(),
            rows=self._pair_rows(name, mask),
            valid=mask.any(dim=1),
        )

    def _align(
        self, name: Branch, read: MF2QFormerOutput, image: torch.Tensor, own: Features
    ) -> dict[str, torch.Tensor]:
        """The three alignment losses of one branch, a row being an image and its caption, or a region and its sentence.

        The image-only pass (`read`) and the text-only pass are each made once: ITC compares them, ITG lets text attend
        to the first, and ITM takes its image keys and values.
        """
        step, others = current_step(), None
        ids, mask = pad_as_others(own.input_ids, own.mask)
        if step is None:
            everyone = map(gather, (own.image, own.text, own.keys, own.valid))
            compared = compare(own, *everyone, gather_offset(len(ids)), self.training)
            contrast, texts = compared.contrast, (gather(ids), gather(mask))
            if world_size() > 1:  # the wrong image may be another process's: its keys and values are computed here
                others = gather(image)[compared.wrong_image]
        else:
            compared, texts = step.comparisons[name], step.texts[name]
            contrast = compared.surrogate(own)
            missing = (0, texts[0].shape[1] - ids.shape[1])
            ids, mask = nn.functional.pad(ids, missing), nn.functional.pad(mask, missing)
            others = self._other_images(name, step, compared.wrong_image)
        wrong_texts = tuple(tensor[compared.wrong_text] for tensor in texts)
        match_logits = self._match(name, read, others, ids, mask, own.rows, compared.wrong_image, wrong_texts)
        return {
            f"itc_{name}": contrast,
            f"itm_{name}": itm_loss(match_logits, _matched(own.rows), compared.match_valid, f"itm_{name}"),
            f"itg_{name}": self._write(name, read, own.input_ids, own.mask, own.rows),
        }

    def _other_images(self, name: Branch, step: StepContext, rows: torch.Tensor) -> torch.Tensor:
        """Wrong images of other micro-batches as the branch reads them, computed here so that gradients arise here."""
        units = 1 if name == "emo" else len(self.config.action_units)
        images, place = torch.unique(rows // units, return_inverse=True)
        seen = {key: tensor[images] for key, tensor in step.images.items()}
        tokens = self.mf2.look(seen.get("pixel_values"), seen.get("image_tokens"))
        return self.mf2.branch_image(name, tokens, seen.get("landmarks"))[place * units + rows % units]

    def _text_features(
        self, name: Branch, input_ids: torch.Tensor, mask: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        first, place = first_of_equals(keys)  # many AUs are at rest: equal sentences are read once
        return self.mf2.branch(name).text_features(input_ids[first], mask[first])[place]

    def _pair_rows(self, name: Branch, texts: torch.Tensor) -> torch.Tensor:
        """The pairs that ITM and ITG take this time; while training a share of them, drawn anew."""
        count, device = len(texts), texts.device  # the model's own device is not known where it is offloaded
        share = self.config.emo_pair_share if name == "emo" else self.config.au_pair_share
        if share == 1 or not self.training:
            return torch.arange(count, device=device)
        return torch.randperm(count, device=device)[: max(1, round(share * count))]

    def _match(
        self,
        name: Branch,
        read: MF2QFormerOutput,
        others: torch.Tensor | None,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        rows: torch.Tensor,
        wrong_image: torch.Tensor,
        wrong_texts: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Logits (3 * rows, queries, 2) of each pair, each text with a wrong image, each image with a wrong text.

        others: the wrong images; None if they are rows of `read`."""
        branch, queries = self.mf2.branch(name), self.mf2.branch_queries(name)
        images = torch.cat([rows, wrong_image, rows])
        if others is None:
            image_key_values = tuple((keys[images], values[images]) for keys, values in read.image_key_values)
        else:
            image_key_values = tuple(
                tuple(torch.cat([own[rows], other, own[rows]]) for own, other in zip(*pairs, strict=True))
                for pairs in zip(read.image_key_values, branch.qformer.image_key_values(others), strict=True)
            )
        states = branch.attend(
            "visual",
            queries=queries[images % len(queries)],
            input_ids=torch.cat([input_ids[rows], input_ids[rows], wrong_texts[0]]),
            text_mask=torch.cat([mask[rows], mask[rows], wrong_texts[1]]),
            image_key_values=image_key_values,
            mode="two_way",
        ).query_states
        return branch.heads.itm(states)

    def _write(
        self, name: str, read: MF2QFormerOutput, input_ids: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """ITG: its queries see no text, so the image-only pass is what they do; text attends to that pass's keys."""
        branch = self.mf2.branch("au" if name == "au" else "emo")
        started, mask = input_ids[rows], mask[rows]
        started[:, 0] = branch.qformer.config.bos_token_id
        seen = tuple((keys[rows], values[rows]) for keys, values in read.query_key_values)
        states = branch.qformer(input_ids=started, text_mask=mask, query_key_values=seen, mode="causal").text_states
        return itg_loss(branch.language_logits(states), started, self._learned(name, mask), f"itg_{name}")

    def _learned(self, name: str, mask: torch.Tensor) -> torch.Tensor:
        """Tokens that ITG learns to write: a prompt is given."""
        learned = mask.clone()
        learned[:, 1 : 1 + (self.config.key_au_prompt_length if name == "key_au" else 0)] = 0
        return learned

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
        **kwargs: object,
    ) -> MF2ForPreTrainingOutput:
        r"""
        input_ids, attention_mask (`(batch, length)`): emotion captions; a row without any token has no caption.
        au_input_ids, au_attention_mask (`(batch, AU, length)`): a sentence an AU, active or at rest; likewise.
        key_au_input_ids, key_au_attention_mask (`(batch, length)`): key-AU captions, which Emo-VL learns to write.
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        """
        check_unused(self, kwargs)
        image_tokens, vision = self.mf2.look_for_adapters(pixel_values, image_tokens, landmarks)
        given = {
            "emo": (input_ids, attention_mask),
            "key_au": (key_au_input_ids, key_au_attention_mask),
            "au": (au_input_ids, au_attention_mask),
        }
        texts = self._texts(image_tokens.shape[0], given, au_labels, emotion_labels)
        kept = kept_states(self.config, output_hidden_states, output_attentions)
        images, reads, features, returned = {}, {}, {}, {}
        # What is random here comes before all else that is, so that a first pass of micro-batches draws the same.
        for name in self.mf2.branch_names:
            images[name] = self.mf2.branch_image(name, image_tokens, landmarks)
            read = self.mf2.read(name, images[name], vision.get(name), output_key_values=True, **kept)
            reads[name] = read
            returned |= {f"{name}_hidden_states": read.hidden_states, f"{name}_cross_attentions": read.cross_attentions}
            if name in texts:
                features[name] = self._features(name, read, *texts[name])
        key_au_rows = self._pair_rows("emo", texts["key_au"][1]) if "key_au" in texts else None
        step = current_step()
        if step is not None and step.first_pass:
            self._remember(step, image_tokens, features, texts, key_au_rows)
            return MF2ForPreTrainingOutput()
        parts: dict[str, torch.Tensor] = {}
        for name, own in features.items():
            parts |= self._align(name, reads[name], images[name], own)
        if key_au_rows is not None:
            parts["itg_key_au"] = self._write("key_au", reads["emo"], *texts["key_au"][:2], key_au_rows)
        emo_states, au_states = (reads[name].query_states if name in reads else None for name in ("emo", "au"))
        if au_states is not None:
            au_states = au_states.unflatten(0, (-1, len(self.config.action_units)))
        logits = self.classifiers(emo_states, au_states)
        parts |= label_losses(self, emo_states, au_states, logits, (emotion_labels, au_labels))
        return MF2ForPreTrainingOutput(
            loss=weighted_sum(self.config, parts), emotion_logits=logits[0], au_logits=logits[1], **parts, **returned
        )

    def _remember(
        self,
        step: StepContext,
        image_tokens: torch.Tensor,
        features: dict[str, Features],
        texts: dict[str, tuple[torch.Tensor, ...]],
        key_au_rows: torch.Tensor | None,
    ) -> None:
        step.features, step.sample = features, self.training
        if self.config.vision_config.frozen:
            step.image_tokens = image_tokens
        masks = {name: own.mask[own.rows] for name, own in features.items()}
        if key_au_rows is not None:
            masks["key_au"] = texts["key_au"][1][key_au_rows]
        step.counts |= {f"itc_{name}": own.valid.sum() for name, own in features.items()}
        step.counts |= {f"itg_{name}": self._learned(name, m)[:, 1:].bool().sum() for name, m in masks.items()}

    def _texts(
        self,
        images: int,
        given: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]],
        au_labels: torch.Tensor | None,
        emotion_labels: torch.Tensor | None,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The captions that are of use, with their masks and the keys of what they say: a row for each image, or for
        each of its AUs."""
        texts, units = {}, len(self.config.action_units)
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
            texts[name] = (ids, mask, self._said(name, caption_keys(ids, mask), au_labels, emotion_labels))
        return texts

    def _said(
        self, name: str, text_keys: torch.Tensor, au_labels: torch.Tensor | None, emotion_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """A sentence means the state of its AU, a caption of the face its emotion."""
        labels = au_labels if name == "au" else emotion_labels
        if labels is None:
            return meaning_keys(text_keys, None, None)
        units = torch.arange(labels[:1].numel(), device=labels.device).repeat(len(labels))
        states = labels.flatten()
        return meaning_keys(text_keys, torch.stack([units, states], dim=1), states != UNKNOWN_LABEL)


__all__ = ["MF2ForPreTraining"]
