"""Exp-BLIP's models, built, saved and loaded: stage 1, the captioner of stage 2, and the classifier on features.

`MF2Trainer` trains stage 1 and the classifier like any other model; `exp_blip_stage_two.train_captioner` the captioner.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
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
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from configuration_mf2.baselines import ExpBlipConfig
from mf2face.captions.scores import caption_scores, fact_scores
from mf2face.captions.styles import caption_column, check_captions, with_rule_captions
from mf2face.data.examples import MF2Collator, MF2Examples
from mf2face.training.arguments import MF2Arguments
from mf2face.training.cards import run_facts, write_card
from mf2face.training.checkpoints import check_same_run
from mf2face.training.evaluation import draw_curves, write_text
from mf2face.training.finetuning import trainable_parameters
from mf2face.training.language import CAPTION_FIGURES
from mf2face.training.options import read_options
from mf2face.training.publish import publish
from mf2face.training.splits import build_examples, load_splits, name_data
from mf2face.training.trainer import LAYER_DECAY, Cost, MF2Trainer, last_good_checkpoint, loss_names
from modeling_mf2.baselines.exp_blip import (
    ExpBlipForFaceAnalysis,
    ExpBlipForPreTraining,
    ExpBlipTowerCaptioner,
    generate_captions,
    load_from_captioner,
    to_blip2,
)
from modeling_mf2.convert import load_bert_weights, load_blip2_weights, load_vision_weights
from modeling_mf2.weights import read_weights
from processing_mf2.processing_mf2 import MF2Processor


logger = logging.getLogger(__name__)

_CAPTIONERS = {"blip-2": Blip2ForConditionalGeneration, "exp_blip_captioner": ExpBlipTowerCaptioner}
_WORDS = "language_tokenizer"  # the folder of a tokenizer that is not the processor's

Captioner = tuple[Blip2ForConditionalGeneration, MF2Processor, PreTrainedTokenizerBase]


def build_stage_one(
    size: str = "tiny",
    *,
    checkpoint: str | Path | None = None,
    label_set: str = "mfa",
    caption_set: str | None = None,
    train_tower: bool = False,
    tower: str | Path | None = None,
    bert: str | Path | None = None,
    blip2: str | Path | None = None,
    **fields: Any,
) -> tuple[ExpBlipForPreTraining, MF2Processor]:
    """A stage-1 model and its processor: as a checkpoint holds them, or new, with pretrained parts where some are named
    (the authors start from BLIP-2's own stage 1). Labels, tower and parts are chosen for a new one only. fields: more
    of `ExpBlipConfig`."""
    if checkpoint is not None:
        model = ExpBlipForPreTraining.from_pretrained(checkpoint, **fields)
        _check_caption_set(model.config, caption_set, checkpoint)
        return model, MF2Processor.from_pretrained(checkpoint)
    own = {"label_set": label_set, "caption_set": caption_set or "exp", **fields}
    own["vision_config"] = {**fields.get("vision_config", {}), "frozen": not train_tower}
    config = ExpBlipConfig.from_size(size, **own)
    processor = MF2Processor.for_model(config)
    model = ExpBlipForPreTraining(config)
    if tower is not None:
        logger.info("%s", load_vision_weights(model, tower))
    if bert is not None:
        logger.info("%s", load_bert_weights(model, bert))
    if blip2 is not None:
        logger.info("%s", load_blip2_weights(model, blip2, vision=tower is None))
    if tower is None and blip2 is None:
        logger.warning("the vision tower has random weights")
    return model, processor


def _check_caption_set(config: ExpBlipConfig, caption_set: str | None, source: object) -> None:
    if caption_set not in (None, config.caption_set):
        raise ValueError(
            f"caption_set: got {caption_set!r}, but {source} was trained with {config.caption_set!r}; name that, or "
            "train a stage 1 of the other captions"
        )


def _saved_config(source: str | Path) -> dict[str, Any]:
    content, _ = PreTrainedConfig.get_config_dict(str(source))
    return content


def build_classifier(
    source: str | Path, *, features: str = "qformer", linear_probe: bool = True, **fields: Any
) -> tuple[ExpBlipForFaceAnalysis, MF2Processor]:
    """The classifier on what stage 1 or stage 2 has learned, its heads fresh; or a trained classifier again.

    features: of the image encoder (`vision`) or of the Q-Former. linear_probe: without, all of it is fine-tuned.
    fields: more of `ExpBlipConfig`, such as `label_set` or `query_pooling`. The paper's rows are of stage 2.
    """
    own = {"features": features, "frozen_features": linear_probe, **fields}
    own["vision_config"] = {**fields.get("vision_config", {}), "frozen": linear_probe}
    saved = _saved_config(source)
    if saved.get("model_type") == ExpBlipConfig.model_type:
        model = ExpBlipForFaceAnalysis.from_pretrained(source, **own)
    elif saved.get("model_type") in _CAPTIONERS and saved.get("exp_blip"):
        model = ExpBlipForFaceAnalysis(ExpBlipConfig.from_dict(saved["exp_blip"], **own))
        load_from_captioner(model, read_weights(source), str(source))
    else:
        raise ValueError(
            f"{source}: is a checkpoint of {saved.get('model_type')!r}, expected one of Exp-BLIP: stage 1 or a "
            "classifier ('exp_blip'), or a captioner made of one"
        )
    if "ExpBlipForFaceAnalysis" not in (saved.get("architectures") or []):
        logger.info("the heads for %s are new, and the features those of %s", features, source)
    processor = MF2Processor.from_pretrained(source)
    processor.action_units, processor.emotions = list(model.config.action_units), list(model.config.emotions)
    processor.au_thresholds = model.config.au_thresholds
    return model.eval(), processor


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
        raise ValueError(
            f"language_model: {source} has no model.safetensors ({error}); pickled weights are not read: convert them "
            "once with safetensors, and name that folder"
        ) from error
    return model, AutoTokenizer.from_pretrained(source)


def build_captioner(
    stage_one: str | Path | ExpBlipForPreTraining,
    language_model: str | Path | None = None,
    *,
    caption_set: str | None = None,
    processor: MF2Processor | None = None,
    max_new_tokens: int | None = None,
) -> Captioner:
    """The captioner of a stage 1, not yet trained, its processor, and the tokenizer of its language model.

    language_model: an OPT's folder or name; None for a small random one, which speaks the processor's tokens.
    processor: that of the model, where `stage_one` is none that is saved.
    """
    model = stage_one
    if not isinstance(model, PreTrainedModel):
        model, processor = ExpBlipForPreTraining.from_pretrained(stage_one), MF2Processor.from_pretrained(stage_one)
    _check_caption_set(model.config, caption_set, "the model" if model is stage_one else stage_one)
    if language_model is None:
        tokenizer = processor.tokenizer
        words, end = random_language_model(tokenizer), tokenizer.sep_token_id
    else:
        words, tokenizer = load_language_model(language_model)
        *_, end = tokenizer("\n", add_special_tokens=False)["input_ids"]  # where BLIP-2's OPT stops
    length = max_new_tokens or (model.config.emotion_max_length if language_model is None else 200)
    captioner = to_blip2(
        model,
        words,
        **{"start_token_id": tokenizer.bos_token_id, "end_token_id": end, "pad_token_id": tokenizer.pad_token_id},
        image_token_id=len(tokenizer),
        max_new_tokens=length,
    )
    captioner.config.fresh_language_model = language_model is None
    return captioner, processor, tokenizer


def save_captioner(folder: str | Path, captioner: Blip2ForConditionalGeneration, *parts: Any) -> None:
    """parts: the processor and the language model's tokenizer, as `build_captioner` gives them."""
    processor, tokenizer = parts
    captioner.save_pretrained(folder)
    processor.save_pretrained(folder)
    if tokenizer is not processor.tokenizer:
        tokenizer.save_pretrained(Path(folder) / _WORDS)


def load_captioner(folder: str | Path) -> Captioner:
    saved = _saved_config(folder)
    kind = saved.get("model_type")
    if kind not in _CAPTIONERS or not saved.get("exp_blip"):
        raise ValueError(
            f"{folder}: is a checkpoint of {kind!r}, expected a captioner of Exp-BLIP, as --task caption saves it"
        )
    processor = MF2Processor.from_pretrained(folder)
    fresh = saved.get("fresh_language_model", True)  # it speaks the processor's tokens
    tokenizer = processor.tokenizer if fresh else AutoTokenizer.from_pretrained(folder, subfolder=_WORDS)
    return _CAPTIONERS[kind].from_pretrained(folder), processor, tokenizer


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


WRITTEN = "captions.jsonl"


def kind_of_checkpoint(source: str) -> str:
    """`stage one`, `captioner`, `classifier`, or the model type of another system."""
    saved, _ = PreTrainedConfig.get_config_dict(source)
    if saved.get("exp_blip"):
        return "captioner"
    if saved.get("model_type") != ExpBlipConfig.model_type:
        return str(saved.get("model_type"))
    return "stage one" if "ExpBlipForPreTraining" in (saved.get("architectures") or []) else "classifier"


def uses_caption_stage(arguments: MF2Arguments) -> bool:
    """Whether a run trains or measures what learns from captions, and not the classifier on its features."""
    if arguments.task != "evaluate":
        return arguments.task in ("pretrain", "caption")
    kind = kind_of_checkpoint(arguments.model_name_or_path) if arguments.model_name_or_path else "none"
    if kind == "stage one":
        raise ValueError(
            f"model_name_or_path: {arguments.model_name_or_path} is Exp-BLIP's stage 1, which answers nothing; "
            "expected a captioner (--task caption) or a classifier (--task linear_probe or full) made of it"
        )
    return kind == "captioner"


def run_captions(
    arguments: MF2Arguments, training: TrainingArguments, tower: str | None, cost: Cost, token: str | None
) -> dict[str, float]:
    """tower: where a new model's tower starts."""
    if arguments.task == "caption" and arguments.model_name_or_path is None:
        raise ValueError("model_name_or_path: got none with --task caption, expected the folder of Exp-BLIP's stage 1")
    wants_push, training.push_to_hub = training.push_to_hub, False
    folder = Path(training.output_dir)
    if arguments.task != "evaluate":
        check_same_run(folder, vars(arguments) | {"seed": training.seed})
    splits = load_splits(arguments)
    stage = _StageOne if arguments.task == "pretrain" else _StageTwo
    journey = stage(arguments, training, tower, splits)
    trainer = None if arguments.task == "evaluate" else journey.train(cost)
    scores = journey.measure(folder)
    figures = {
        "train_images": len(splits["train"]),
        "test_images": len(splits["test"]),
        "trainable_parameters": trainable_parameters(journey.model),
        **cost.figures(),
    }
    synthetic, data = name_data(arguments.dataset, splits["test"])
    if not training.should_save:  # another process writes
        return {**scores, **figures}
    if trainer is not None:
        journey.save(folder)
    # After the weights: who finds it takes the run for finished.
    write_text(folder / "metrics.json", json.dumps({**scores, **figures}, indent=2) + "\n")
    if trainer is not None:
        arguments.vision_name_or_path = journey.started_from
        draw_curves(folder, trainer.state.log_history, data, journey.losses)
        learned = [caption_column(journey.caption_set)]
        facts = run_facts(arguments, training, figures, synthetic=synthetic, captions=learned)
        write_card(folder, facts)
    print(f"\n{data}; captions {journey.caption_set}; cost {figures['cpu_seconds']:.0f} CPU-seconds")
    for name, words in CAPTION_FIGURES.items():
        if name in scores:
            print(f"{name:<22} {scores[name]:6.3f}  {words}")
    if wants_push:
        print(f"\npublished: {publish(folder, training, token)}")
    return {**scores, **figures}


class _StageOne:
    def __init__(
        self, arguments: MF2Arguments, training: TrainingArguments, tower: str | None, splits: dict[str, Dataset]
    ) -> None:
        fields = read_options("model_options", arguments.model_options, ExpBlipConfig)
        self.started_from = None if arguments.model_name_or_path else tower
        self.model, self.processor = build_stage_one(
            arguments.model_size,
            checkpoint=arguments.model_name_or_path,
            **({} if arguments.model_name_or_path else {"label_set": arguments.label_set}),
            caption_set=arguments.caption_set,
            tower=self.started_from,
            bert=arguments.text_name_or_path,
            blip2=arguments.qformer_name_or_path,
            train_tower=not fields.get("vision_config", {}).get("frozen", True),
            **fields,
        )
        self.caption_set, self.losses = self.model.config.caption_set, loss_names(self.model)
        splits = _captioned(arguments, training, splits, self.caption_set, self.model.config.label_set)
        self.training = training
        self.examples = build_examples(arguments, training, self.model, self.processor, {"train": splits["train"]})

    def train(self, cost: Cost) -> MF2Trainer:
        # No label is learned, so nothing says which epoch was the best.
        self.training.load_best_model_at_end, self.training.eval_strategy = False, "no"
        trainer = MF2Trainer(
            model=self.model,
            args=self.training,
            train_dataset=self.examples["train"],
            data_collator=MF2Collator(self.processor.tokenizer.pad_token_id),
        )
        trainer.layer_decay = LAYER_DECAY
        resumed = last_good_checkpoint(self.training.output_dir)
        cost.begin_training(trainer, resumed)
        trainer.train(resume_from_checkpoint=resumed)
        self.model = trainer.model  # FSDP's parts, put together
        return trainer

    def measure(self, folder: Path) -> dict[str, float]:
        return {}  # what alignment is worth is what its features are worth to a classifier, or to stage 2

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class _StageTwo:
    losses, started_from = (), None

    def __init__(
        self, arguments: MF2Arguments, training: TrainingArguments, tower: str | None, splits: dict[str, Dataset]
    ) -> None:
        source = arguments.model_name_or_path
        caption_scores([], [])  # a library that it needs is missed now, and not when all is trained
        if arguments.task == "evaluate":
            self.model, self.processor, self.tokenizer = load_captioner(source)
        else:
            self.model, self.processor, self.tokenizer = build_captioner(
                source, arguments.language_model_name_or_path, caption_set=arguments.caption_set
            )
        stage_one: dict[str, Any] = self.model.config.exp_blip
        self.caption_set, self.label_set = stage_one["caption_set"], stage_one["label_set"]
        self.splits = _captioned(arguments, training, splits, self.caption_set, self.label_set)
        self.training = training
        self.faces = {name: _faces(rows, self.processor) for name, rows in self.splits.items()}

    def train(self, cost: Cost) -> MF2Trainer:
        self.training.metric_for_best_model, self.training.greater_is_better = "loss", False
        captioned = {name: CaptionedFaces.of(faces, self.caption_set) for name, faces in self.faces.items()}
        splits = captioned["train"], captioned["validation"]
        trainer = train_captioner(self.model, self.tokenizer, self.training, *splits, begin=cost.begin_training)
        self.model = trainer.model
        return trainer

    @torch.no_grad()
    def measure(self, folder: Path) -> dict[str, float]:
        """Of captions written with five beams from test images alone, which are kept beside the labels' own."""
        rows = self.splits["test"]
        self.model.to(self.training.device).eval()
        written = write_captions(self.model, self.tokenizer, self.faces["test"])
        own = rows[caption_column(self.caption_set)][:]
        lines = [
            json.dumps({"written": text, "of_the_labels": label}) for text, label in zip(written, own, strict=True)
        ]
        if self.training.should_save:
            write_text(folder / WRITTEN, "\n".join(lines) + "\n")
        labels = [rows[name][:] if name in rows.column_names else None for name in ("au_labels", "emotion")]
        return caption_scores(written, own) | fact_scores(written, *labels, self.label_set)

    def save(self, folder: Path) -> None:
        save_captioner(folder, self.model, self.processor, self.tokenizer)


def _faces(rows: Dataset, processor: MF2Processor) -> MF2Examples:
    return MF2Examples(rows, processor, texts=False)


def _captioned(
    arguments: MF2Arguments, training: TrainingArguments, splits: dict[str, Dataset], caption_set: str, label_set: str
) -> dict[str, Dataset]:
    columns = [caption_column(caption_set)]
    if arguments.captions_by_rule:
        splits = {n: with_rule_captions(rows, columns, label_set, seed=training.seed) for n, rows in splits.items()}
    check_captions(splits["test" if arguments.task == "evaluate" else "train"], columns, "Exp-BLIP")
    return splits


__all__ = [
    "CaptionTrainer",
    "CaptionedFaces",
    "build_captioner",
    "build_classifier",
    "build_stage_one",
    "caption_inputs",
    "kind_of_checkpoint",
    "load_captioner",
    "load_language_model",
    "random_language_model",
    "run_captions",
    "save_captioner",
    "train_captioner",
    "uses_caption_stage",
    "write_captions",
]
