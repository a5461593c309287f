"""Exp-BLIP: the captioner of its stage 2, built, trained and measured, and the classifier on its features."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from configuration_mf2.baselines import ExpBlipConfig
from configuration_mf2.facs import LabelSet
from mf2face.captions.scores import caption_scores, fact_scores
from mf2face.data.examples import MF2Examples
from mf2face.files import write_whole
from mf2face.training.arguments import Settings, read_options
from mf2face.training.build import LANGUAGE_TOKENIZER, Parts, build_from_config, check_caption_set
from mf2face.training.tasks import LAYER_DECAY
from mf2face.training.trainer import MF2Trainer
from modeling_mf2.baselines.exp_blip import (
    ExpBlipForFaceAnalysis,
    ExpBlipForPreTraining,
    ExpBlipTowerCaptioner,
    generate_captions,
    load_from_captioner,
    to_blip2,
)
from modeling_mf2.weights import read_weights
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

_CAPTIONERS = {"blip-2": Blip2ForConditionalGeneration, "exp_blip_captioner": ExpBlipTowerCaptioner}
WRITTEN = "captions.jsonl"


def stage_one_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config that names labels and caption set: a captioner keeps that of the stage 1 it was made of."""
    return ExpBlipConfig.from_dict(config.exp_blip) if getattr(config, "exp_blip", None) else config


def build_classifier_of(settings: Settings, train_rows: Dataset | None) -> Parts:
    """The builder of linear_probe and full."""
    if not settings.trains:
        return build_from_config(settings, train_rows)
    ours = settings.arguments
    if ours.model_name_or_path is None:  # an image encoder that no caption has touched
        own = ["features=vision", f"frozen_features={settings.task.trains == 'heads'}", *ours.model_options]
        return build_from_config(replace(settings, arguments=replace(ours, model_options=own)), train_rows)
    fields = read_options("model_options", ours.model_options, ExpBlipConfig)
    how = {"features": ours.features, "label_set": ours.label_set, "linear_probe": settings.task.trains == "heads"}
    return build_classifier(ours.model_name_or_path, **how | fields)


def build_classifier(
    source: str | Path,
    *,
    features: str = "qformer",
    label_set: str | None = None,
    linear_probe: bool = True,
    **fields: Any,
) -> Parts:
    """The classifier on what stage 1 or stage 2 has learned, with new heads; or a trained classifier again.

    features: of the image encoder (`vision`) or of the Q-Former. label_set: of new heads, by default the checkpoint's.
    linear_probe: without, all of it is fine-tuned. fields: more of `ExpBlipConfig`, such as `query_pooling`. The
    paper's rows are of stage 2.
    """
    own = {"features": features, "frozen_features": linear_probe, **fields}
    own["vision_config"] = {**fields.get("vision_config", {}), "frozen": linear_probe}
    saved, _ = PreTrainedConfig.get_config_dict(str(source))
    if "ExpBlipForFaceAnalysis" not in (saved.get("architectures") or []):
        own = own if label_set is None else {"label_set": label_set, **own}
        logger.info("the heads for %s are new, and the features those of %s", features, source)
    if saved.get("model_type") == ExpBlipConfig.model_type:
        model = ExpBlipForFaceAnalysis.from_pretrained(source, **own)
    elif saved.get("model_type") in _CAPTIONERS and saved.get("exp_blip"):
        model = ExpBlipForFaceAnalysis(ExpBlipConfig.from_dict(saved["exp_blip"], **own))
        load_from_captioner(model, read_weights(source), str(source))
    else:
        kind = f"is a checkpoint of {saved.get('model_type')!r}"
        raise ValueError(
            f"{source}: {kind}, expected one of Exp-BLIP: stage 1, a classifier, or a captioner made of one"
        )
    processor = MF2Processor.from_pretrained(source)
    processor.action_units, processor.emotions = list(model.config.action_units), list(model.config.emotions)
    processor.au_thresholds = model.config.au_thresholds
    return Parts(model.eval(), processor, processor.tokenizer)


def build_captioner_of(settings: Settings, train_rows: Dataset | None) -> Parts:
    """The builder of caption."""
    caption_scores([], [])  # raises now, not after training, if a library is missing
    ours = settings.arguments
    if not settings.trains:
        return load_captioner(ours.model_name_or_path)
    return build_captioner(ours.model_name_or_path, ours.language_model_name_or_path, caption_set=ours.caption_set)


def random_language_model(tokenizer: PreTrainedTokenizerBase, **fields: Any) -> OPTForCausalLM:
    """A small OPT that has read nothing yet, and so is trained too."""
    sizes = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 512, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "max_position_embeddings": 256, "dropout": 0.0, "init_std": 0.05}
    return OPTForCausalLM(OPTConfig(**{**sizes, **more, "vocab_size": len(tokenizer) + 1, **fields}))


def load_language_model(source: str | Path) -> tuple[OPTForCausalLM, PreTrainedTokenizerBase]:
    """A pretrained OPT and its tokenizer, from a folder or by its name; safetensors only."""
    kind = AutoConfig.from_pretrained(source).model_type
    if kind != "opt":
        raise ValueError(f"language_model: {source} is a {kind!r}, expected an OPT, such as facebook/opt-2.7b")
    try:
        model = OPTForCausalLM.from_pretrained(source, use_safetensors=True)
    except OSError as error:
        advice = "pickled weights are not read: convert them once with safetensors, and name that folder"
        raise ValueError(f"language_model: {source} has no model.safetensors ({error}); {advice}") from error
    return model, AutoTokenizer.from_pretrained(source)


def build_captioner(
    stage_one: str | Path, language_model: str | Path | None = None, *, caption_set: str | None = None
) -> Parts:
    """The captioner of a stage 1, not yet trained. language_model: an OPT's folder or name; None for a small random
    one, which uses the processor's tokens."""
    model, processor = ExpBlipForPreTraining.from_pretrained(stage_one), MF2Processor.from_pretrained(stage_one)
    check_caption_set(model.config, caption_set, stage_one)
    if language_model is None:
        tokenizer = processor.tokenizer
        words, end, length = random_language_model(tokenizer), tokenizer.sep_token_id, model.config.emotion_max_length
    else:
        words, tokenizer = load_language_model(language_model)
        *_, end = tokenizer("\n", add_special_tokens=False)["input_ids"]  # where BLIP-2's OPT stops
        length = 200
    tokens = {"start_token_id": tokenizer.bos_token_id, "end_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    captioner = to_blip2(model, words, **tokens, image_token_id=len(tokenizer), max_new_tokens=length)
    captioner.config.fresh_language_model = language_model is None
    return Parts(captioner, processor, tokenizer)


def load_captioner(folder: str | Path) -> Parts:
    saved, _ = PreTrainedConfig.get_config_dict(str(folder))
    kind = saved.get("model_type")
    if kind not in _CAPTIONERS or not saved.get("exp_blip"):
        raise ValueError(f"{folder}: is a checkpoint of {kind!r}, expected a captioner, as --task caption saves it")
    processor = MF2Processor.from_pretrained(folder)
    fresh = saved.get("fresh_language_model", True)  # it uses the processor's tokens
    tokenizer = processor.tokenizer if fresh else AutoTokenizer.from_pretrained(folder, subfolder=LANGUAGE_TOKENIZER)
    return Parts(_CAPTIONERS[kind].from_pretrained(folder), processor, tokenizer)


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


class CaptionedFaces(torch.utils.data.Dataset):
    """Examples with their captions as text, without the rows that have no caption."""

    def __init__(self, examples: MF2Examples, captions: Sequence[str]) -> None:
        if len(captions) != len(examples):
            raise ValueError(f"captions: got {len(captions)}, expected {len(examples)}, one for each image")
        self.examples, self.captions = examples, list(captions)
        self.rows = [index for index, caption in enumerate(self.captions) if caption]
        if not self.rows:
            raise ValueError("captions: got none but empty ones, expected some to learn from")

    def set_epoch(self, epoch: int) -> None:
        self.examples.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indexes: Sequence[int]) -> list[dict[str, Any]]:
        rows = [self.rows[index] for index in indexes]
        faces = zip(rows, self.examples.__getitems__(rows), strict=True)
        return [{"pixel_values": face["pixel_values"], "caption": self.captions[row]} for row, face in faces]


class CaptionTrainer(MF2Trainer):
    """The loss is a mean over tokens, which transformers itself accumulates exactly over micro-batches."""

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> tuple:
        return Trainer.prediction_step(self, model, inputs, prediction_loss_only=True)


def caption_trainer(
    parts: Parts, training: TrainingArguments, faces: CaptionedFaces, validation: CaptionedFaces | None = None
) -> CaptionTrainer:
    """Trains Q-Former, projection and tower, and the language model if it began untrained."""
    captioner, _, tokenizer = parts
    captioner.requires_grad_(True)
    captioner.language_model.requires_grad_(bool(getattr(captioner.config, "fresh_language_model", False)))

    def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        return _images(rows) | caption_inputs(captioner, tokenizer, [row["caption"] for row in rows])

    data = {"train_dataset": faces, "eval_dataset": validation, "data_collator": collate}
    trainer = CaptionTrainer(model=captioner, args=training, **data)
    trainer.layer_decay = LAYER_DECAY
    return trainer


def _images(rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}


@torch.no_grad()
def write_captions(parts: Parts, examples: torch.utils.data.Dataset, batch_size: int = 16) -> list[str]:
    """A caption for each example, in order, by five beams."""
    captioner, written = parts.model.eval(), []
    for batch in DataLoader(examples, batch_size, collate_fn=_images):
        ids = generate_captions(captioner, batch["pixel_values"].to(captioner.device))
        written += [text.strip() for text in parts.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return written


def measure_captions(settings: Settings, parts: Parts, examples: MF2Examples, column: str) -> dict[str, float]:
    """Scores captions written from test images alone; they are kept beside the labels' own in `captions.jsonl`."""
    rows, config = examples.dataset, stage_one_config(parts.model.config)
    parts.model.to(settings.training.device)
    written, own = write_captions(parts, examples), rows[column][:]
    lines = [json.dumps({"written": text, "of_the_labels": label}) for text, label in zip(written, own, strict=True)]
    if settings.training.should_save:
        write_whole(settings.folder / WRITTEN, "\n".join(lines) + "\n")
    labels = [rows[name][:] if name in rows.column_names else None for name in ("au_labels", "emotion")]
    names = LabelSet(tuple(config.action_units), tuple(config.emotions))
    return caption_scores(written, own) | fact_scores(written, *labels, names)
