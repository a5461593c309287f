"""Exp-BLIP's stage 2: a language model learns to be told by queries what a face shows, and writes captions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Blip2ForConditionalGeneration, PreTrainedTokenizerBase, Trainer, TrainingArguments

from dataset_mf2.caption_columns_mf2 import caption_column
from dataset_mf2.examples_mf2 import MF2Examples
from modeling_mf2.exp_blip_captioner import ExpBlipTowerCaptioner, generate_captions

from .layer_decay_mf2 import LAYER_DECAY
from .trainer_mf2 import MF2Trainer, last_good_checkpoint


_UNCOUNTED = -100


def caption_inputs(
    captioner: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]
) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and `labels`: a place for each query, the start, the words, the end, padding. Only
    words and end are learned. The prompt is empty, as in the supplement's Table 12."""
    tokens = captioner.generation_config
    room = captioner.config.text_config.max_position_embeddings - captioner.config.num_query_tokens - 2
    words = tokenizer(list(captions), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    learned = [[*row[: min(room, tokens.max_new_tokens - 1)], tokens.eos_token_id] for row in words]
    given = [captioner.config.image_token_index] * captioner.config.num_query_tokens + [tokens.bos_token_id]
    longest = max(map(len, learned))

    def rows(start: Sequence[int], padding: int) -> torch.Tensor:
        return torch.tensor([[*start, *row, *[padding] * (longest - len(row))] for row in learned])

    labels = rows([_UNCOUNTED] * len(given), _UNCOUNTED)
    mask = torch.ones_like(labels)
    mask[:, len(given) :] = (labels[:, len(given) :] != _UNCOUNTED).long()
    return {"input_ids": rows(given, tokens.pad_token_id), "attention_mask": mask, "labels": labels}


class CaptionedFaces(Dataset):
    """Examples with their captions as text; rows whose labels tell nothing, and so have no caption, are left out."""

    def __init__(self, examples: MF2Examples, captions: Sequence[str]) -> None:
        if len(captions) != len(examples):
            raise ValueError(f"captions: got {len(captions)}, expected {len(examples)}, one for each image")
        self.examples, self.captions = examples, list(captions)
        self.rows = [index for index, caption in enumerate(self.captions) if caption]
        if not self.rows:
            raise ValueError("captions: got none but empty ones, expected some to learn from")

    @classmethod
    def of(cls, examples: MF2Examples, caption_set: str) -> "CaptionedFaces":
        """By the captions that stand in the examples' dataset."""
        column = caption_column(caption_set)
        if column not in examples.dataset.column_names:
            raise ValueError(
                f"caption_set: the dataset has no column {column!r}, expected one to learn {caption_set!r} captions "
                "from; write it with examples/write_captions.py --style exp_blip"
            )
        return cls(examples, examples.dataset[column][:])

    def set_epoch(self, epoch: int) -> None:
        self.examples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indexes: Sequence[int]) -> list[dict[str, Any]]:
        rows = [self.rows[index] for index in indexes]
        seen = self.examples.__getitems__(rows)
        return [
            {"pixel_values": example["pixel_values"], "caption": self.captions[row]}
            for row, example in zip(rows, seen, strict=True)
        ]


class _Inputs:
    """A loader's rows to stage 2's inputs."""

    def __init__(self, captioner: Blip2ForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
        self.captioner, self.tokenizer = captioner, tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        images = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": images, **caption_inputs(self.captioner, self.tokenizer, [r["caption"] for r in rows])}


class CaptionTrainer(MF2Trainer):
    """Of stage 2, whose loss is a mean over tokens: transformers itself makes micro-batches one step exactly."""

    def _with_share(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple:
        return Trainer.prediction_step(self, model, inputs, prediction_loss_only=True)


def train_captioner(
    captioner: Blip2ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingArguments,
    faces: CaptionedFaces,
    validation: CaptionedFaces | None = None,
    *,
    layer_decay: float = LAYER_DECAY,
    train_tower: bool = True,
    train_language_model: bool | None = None,
    callbacks: Sequence[Any] = (),
    begin: Callable[[MF2Trainer, str | None], None] | None = None,
) -> CaptionTrainer:
    """Stage 2: Q-Former and projection learn, and the tower with layer-wise decay; a pretrained language model stays
    as it is, and one that has read nothing learns too, unless told otherwise. Goes on from the last whole checkpoint.
    begin: is given the trainer and that checkpoint before it trains.
    """
    if train_language_model is None:
        train_language_model = bool(getattr(captioner.config, "fresh_language_model", False))
    captioner.requires_grad_(True)
    captioner.language_model.requires_grad_(train_language_model)
    captioner.vision_model.requires_grad_(train_tower)
    if isinstance(captioner, ExpBlipTowerCaptioner):
        captioner.vision_model.config.frozen = not train_tower  # its norms follow their batches else
    training.remove_unused_columns = False  # a caption is text until it is in a batch
    trainer = CaptionTrainer(
        model=captioner,
        args=training,
        train_dataset=faces,
        eval_dataset=validation,
        data_collator=_Inputs(captioner, tokenizer),
        callbacks=list(callbacks),
    )
    trainer.layer_decay = layer_decay
    resumed = last_good_checkpoint(training.output_dir)
    if begin is not None:
        begin(trainer, resumed)
    trainer.train(resume_from_checkpoint=resumed)
    return trainer


def write_captions(
    captioner: Blip2ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    examples: Dataset,
    *,
    batch_size: int = 16,
    **settings: Any,
) -> list[str]:
    """A caption for each example, in order; five beams, unless `settings` (of `generate`) say otherwise."""
    device, written = captioner.device, []
    for batch in DataLoader(examples, batch_size, collate_fn=_images):
        ids = generate_captions(captioner, batch.to(device), **settings)
        written += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return written


def _images(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    return torch.stack([row["pixel_values"] for row in rows])


__all__ = ["CaptionTrainer", "CaptionedFaces", "caption_inputs", "train_captioner", "write_captions"]
