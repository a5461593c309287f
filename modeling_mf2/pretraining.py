"""Pre-training: both branches aligned with their sentences, and the classifiers on top of them."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import UNKNOWN_LABEL

from .accumulation import BatchShare, BranchShare, count_of, rng_state, same_draws
from .losses import (
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
    meaning_keys,
    pad_as_others,
    world_size,
)
from .modeling_mf2 import (
    Branch,
    MF2Branch,
    MF2Classifiers,
    MF2Model,
    MF2PreTrainedModel,
    check_unused,
    kept_states,
    label_losses,
    weighted_sum,
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


_IMAGES = ("pixel_values", "image_tokens")


def _matched(rows: torch.Tensor) -> torch.Tensor:
    return torch.arange(3, device=rows.device).eq(0).long().repeat_interleave(len(rows))


def _learned(mask: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """Tokens that are to be written: a prompt is given."""
    learned = mask.clone()
    learned[:, 1 : 1 + prompt_length] = 0
    return learned


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

    def _align(
        self,
        name: Branch,
        read: MF2QFormerOutput,
        image: torch.Tensor,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        said: torch.Tensor,
        share: BatchShare | None,
    ) -> dict[str, torch.Tensor]:
        """The three alignment losses of one branch, a row being an image and its caption, or a region and its sentence.

        The image-only pass (`read`) and the text-only pass are each made once: ITC compares them, ITG lets text attend
        to the first, and ITM takes its image keys and values. said: the keys by which rows are known to say the same.
        """
        branch = self.mf2.branch(name)
        if share is not None:
            return self._align_share(name, read, input_ids, mask, share)
        input_ids, mask = pad_as_others(input_ids, mask)
        valid = mask.any(dim=1)
        image_features = branch.heads.image_features(read.query_states)
        text_features = self._text_features(name, input_ids, mask, said[:, 0])
        image_to_text = image_text_similarity(image_features, gather(text_features))
        text_to_image = image_text_similarity(gather(image_features), text_features).T
        negatives = allowed_negatives(said, gather(said), gather(valid))
        temperature = branch.positive_temperature()
        contrast = itc_loss(image_to_text, text_to_image, temperature, negatives, valid, gather_offset(len(valid)))

        rows = self._pair_rows(name, valid)
        picked = (negatives[rows], temperature, self.training)
        wrong_text, text_found = hard_negatives(image_to_text[rows], *picked)
        wrong_image, image_found = hard_negatives(text_to_image[rows], *picked)
        # The wrong image may be another process's: its keys and values are then computed here.
        others = None if world_size() == 1 else gather(image)[wrong_image]
        texts = (gather(input_ids)[wrong_text], gather(mask)[wrong_text])
        match_logits = self._match(name, read, others, input_ids, mask, rows, wrong_image, texts)
        match_valid = torch.cat([valid[rows], valid[rows] & image_found, valid[rows] & text_found])
        return {
            f"itc_{name}": contrast,
            f"itm_{name}": itm_loss(match_logits, _matched(rows), match_valid),
            f"itg_{name}": self._write(branch, read, input_ids, mask, rows),
        }

    def _align_share(
        self, name: Branch, read: MF2QFormerOutput, input_ids: torch.Tensor, mask: torch.Tensor, share: BatchShare
    ) -> dict[str, torch.Tensor]:
        """The same of one micro-batch: the others are known from the first pass."""
        branch, part, (all_ids, all_mask) = self.mf2.branch(name), share.branches[name], share.texts[name]
        image_features = branch.heads.image_features(read.query_states)
        with same_draws(part.draws[1], self.device):
            text_features = self._text_features(name, input_ids, mask, caption_keys(input_ids, mask))
        temperature = branch.positive_temperature()
        missing = (0, all_ids.shape[1] - input_ids.shape[1])
        ids, shown = nn.functional.pad(input_ids, missing), nn.functional.pad(mask, missing)
        texts = (all_ids[part.wrong_text], all_mask[part.wrong_text])
        others = self._other_images(name, share, part)
        match_logits = self._match(name, read, others, ids, shown, part.rows, part.wrong_image, texts)
        itm = itm_loss(match_logits, _matched(part.rows), part.match_valid, share.counts[f"itm_{name}"])
        return {
            f"itc_{name}": part.contrast(image_features, text_features, temperature),
            f"itm_{name}": itm,
            f"itg_{name}": self._write(branch, read, input_ids, mask, part.rows, count_of(share, f"itg_{name}")),
        }

    def _other_images(self, name: Branch, share: BatchShare, part: BranchShare) -> torch.Tensor:
        """The wrong images as the branch reads them, computed here, so that their gradients arise here."""
        units = 1 if name == "emo" else len(self.config.action_units)
        images, place = torch.unique(part.wrong_image // units, return_inverse=True)
        tokens = self.mf2.look(*(share.images[key][images] if key in share.images else None for key in _IMAGES))
        landmarks = share.images["landmarks"][images] if "landmarks" in share.images else None
        regions = self.mf2.branch_image(name, tokens, landmarks)
        return regions[place * units + part.wrong_image % units]

    def _text_features(
        self, name: Branch, input_ids: torch.Tensor, mask: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor:
        first, place = first_of_equals(keys)  # many AUs are at rest: equal sentences are read once
        return self.mf2.branch(name).text_features(input_ids[first], mask[first])[place]

    def _features(
        self, name: Branch, image: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor, said: torch.Tensor
    ) -> dict[str, object]:
        """The first pass over a micro-batch: what the others have to know of it."""
        branch = self.mf2.branch(name)
        before_read = rng_state(self.device)
        states = self.mf2.read(name, image).query_states
        before_text = rng_state(self.device)
        text = self._text_features(name, input_ids, mask, said[:, 0])
        return {
            **{"image": branch.heads.image_features(states), "text": text, "keys": said, "valid": mask.any(dim=1)},
            **{"ids": input_ids, "mask": mask, "temperature": branch.positive_temperature()},
            **{"rows": self._pair_rows(name, mask), "sample": self.training, "draws": (before_read, before_text)},
        }

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
        self,
        branch: MF2Branch,
        read: MF2QFormerOutput,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        rows: torch.Tensor,
        count: torch.Tensor | None = None,
        prompt_length: int = 0,
    ) -> torch.Tensor:
        """ITG: its queries see no text, so the image-only pass is what they do; text attends to that pass's keys."""
        started, mask = input_ids[rows], mask[rows]
        started[:, 0] = branch.qformer.config.bos_token_id
        seen = tuple((keys[rows], values[rows]) for keys, values in read.query_key_values)
        states = branch.qformer(input_ids=started, text_mask=mask, query_key_values=seen, mode="causal").text_states
        return itg_loss(branch.language_logits(states), started, _learned(mask, prompt_length), count)

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
        share: BatchShare | None = None,
        features_only: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: object,
    ) -> MF2ForPreTrainingOutput:
        r"""
        input_ids, attention_mask (`(batch, length)`): emotion captions; a row without any token has no caption.
        au_input_ids, au_attention_mask (`(batch, AU, length)`): a sentence an AU, active or at rest; likewise.
        key_au_input_ids, key_au_attention_mask (`(batch, length)`): key-AU captions, which Emo-VL learns to write.
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        share, features_only: how the Trainer makes one step of several micro-batches, see `accumulation_mf2`.
        """
        check_unused(self, kwargs)
        draws = rng_state(self.device) if features_only else share.draws if share is not None else None
        with same_draws(draws, self.device):
            image_tokens, vision = self.mf2.look_for_adapters(pixel_values, image_tokens, landmarks)
        given = {
            "emo": (input_ids, attention_mask),
            "key_au": (key_au_input_ids, key_au_attention_mask),
            "au": (au_input_ids, au_attention_mask),
        }
        texts = self._texts(image_tokens.shape[0], given, au_labels, emotion_labels)
        if features_only:
            return self._first_pass(image_tokens, landmarks, texts, draws)
        parts: dict[str, torch.Tensor] = {}
        emo_states = au_states = None
        kept, told = kept_states(self.config, output_hidden_states, output_attentions), {}
        if self.config.use_emo_branch:
            read = self._read("emo", image_tokens, share, vision.get("emo"), **kept)
            emo_states = read.query_states
            told |= {"emo_hidden_states": read.hidden_states, "emo_cross_attentions": read.cross_attentions}
            if "emo" in texts:
                parts |= self._align("emo", read, image_tokens, *texts["emo"], share)
            if "key_au" in texts:
                ids, mask, _ = texts["key_au"]
                rows = self._pair_rows("emo", mask) if share is None else share.key_au_rows
                length = self.config.key_au_prompt_length
                count = count_of(share, "itg_key_au")
                parts["itg_key_au"] = self._write(self.mf2.emo_vl, read, ids, mask, rows, count, length)
        if self.config.use_au_branch:
            regions = self.mf2.branch_image("au", image_tokens, landmarks)
            read = self._read("au", regions, share, vision.get("au"), **kept)
            count = len(self.config.action_units)
            au_states = read.query_states.unflatten(0, (-1, count))
            told |= {"au_hidden_states": read.hidden_states, "au_cross_attentions": read.cross_attentions}
            if "au" in texts:
                parts |= self._align("au", read, regions, *texts["au"], share)
        logits = self.classifiers(emo_states, au_states)
        parts |= label_losses(self, emo_states, au_states, logits, (emotion_labels, au_labels), share)
        return MF2ForPreTrainingOutput(
            loss=weighted_sum(self.config, parts), emotion_logits=logits[0], au_logits=logits[1], **parts, **told
        )

    def _read(
        self,
        name: Branch,
        image: torch.Tensor,
        share: BatchShare | None,
        vision: tuple[torch.Tensor, ...] | None = None,
        **kept: bool,
    ) -> MF2QFormerOutput:
        part = None if share is None else share.branches.get(name)
        with same_draws(None if part is None else part.draws[0], self.device):
            return self.mf2.read(name, image, vision, output_key_values=True, **kept)

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

    def _first_pass(
        self,
        image_tokens: torch.Tensor,
        landmarks: torch.Tensor | None,
        texts: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        draws: object,
    ) -> dict[str, object]:
        found: dict[str, object] = {"draws": draws}
        counts: dict[str, torch.Tensor] = {}
        if self.config.vision_config.frozen:
            found["image_tokens"] = image_tokens
        for name in ("emo", "au"):
            if name in texts:
                part = self._features(name, self.mf2.branch_image(name, image_tokens, landmarks), *texts[name])
                counts[f"itc_{name}"] = part["valid"].sum()
                counts[f"itg_{name}"] = part["mask"][part["rows"], 1:].bool().sum()
                found[name] = part
        if "key_au" in texts:
            mask = texts["key_au"][1]
            rows = found["key_au_rows"] = self._pair_rows("emo", mask)
            counts["itg_key_au"] = _learned(mask[rows], self.config.key_au_prompt_length)[:, 1:].bool().sum()
        return {**found, "counts": counts}


__all__ = ["MF2ForPreTraining"]
