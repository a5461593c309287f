"""Exp-BLIP's models, built, saved and loaded: stage 1, the captioner of stage 2, and the classifier on features.

`MF2Trainer` trains stage 1 and the classifier like any other model; `exp_blip_stage_two.train_captioner` the captioner.
"""

import logging
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from configuration_mf2.configuration_exp_blip import ExpBlipConfig
from modeling_mf2.convert_mf2 import load_bert_weights, load_blip2_weights, load_vision_weights
from modeling_mf2.exp_blip_captioner import (
    ExpBlipTowerCaptioner,
    load_from_captioner,
    to_blip2,
)
from modeling_mf2.modeling_exp_blip import ExpBlipForFaceAnalysis, ExpBlipForPreTraining
from modeling_mf2.weight_files_mf2 import read_weights
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


__all__ = [
    "build_captioner",
    "build_classifier",
    "build_stage_one",
    "load_captioner",
    "load_language_model",
    "random_language_model",
    "save_captioner",
]
