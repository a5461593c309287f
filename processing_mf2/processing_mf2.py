"""`MF2Processor`: images and texts to model inputs, and logits to named results and thresholds."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.image_utils import ImageInput
from transformers.processing_utils import ProcessorMixin
from transformers.utils import TensorType, logging

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import UNKNOWN_LABEL, check_action_units, resolve_label_set

from .image_io import flatten_images
from .image_processing_mf2 import CheckedFilesMixin, MF2ImageProcessor
from .reliability import check_conformal, check_grades
from .results import FaceResults, resolve_thresholds
from .wording import KEY_AU_PROMPT


logger = logging.get_logger(__name__)

SHORTEST_SENTENCE = 3
"""Tokens: [CLS], one word, [SEP]."""

_NESTED = ("common_kwargs", "text_kwargs", "images_kwargs")


def split_call(given: Mapping[str, Any], usual: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(`padding`, `truncation`, `max_length` and `return_tensors`, settings of the image processor).

    given: as `processor(..., padding=..., text_kwargs={...}, images_kwargs={...}, common_kwargs={...}, **flat)`.
    usual: the tokenizer's own settings, of which `padding` and `max_length` are the defaults.
    """
    nested = {name: given.get(name) or {} for name in _NESTED}
    for name, values in nested.items():
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}: got {type(values).__name__}, expected a dict of settings")
    flat = {name: value for name, value in given.items() if name not in _NESTED}
    for owner in ("text_kwargs", "images_kwargs"):
        twice = sorted((flat.keys() & nested[owner].keys()) - {"return_tensors"})
        if twice:
            raise ValueError(f"{', '.join(twice)}: got it as a keyword and in {owner}, expected one of both")
    text = {"padding": True, "truncation": True, "max_length": None, "return_tensors": "pt"}
    text |= {name: usual[name] for name in ("padding", "max_length") if usual.get(name) is not None}
    both = {**nested["common_kwargs"], **flat}
    text |= {name: both[name] for name in text if both.get(name) is not None}
    unknown = sorted(nested["text_kwargs"].keys() - text.keys())
    if unknown:
        raise TypeError(f"text_kwargs: got {unknown}, expected names among {list(text)}")
    text |= {name: value for name, value in nested["text_kwargs"].items() if value is not None}
    images = {name: value for name, value in both.items() if name not in text} | dict(nested["images_kwargs"])
    images.pop("return_tensors", None)
    for name, allowed in {
        "padding": (True, "longest", "max_length"),
        "truncation": (True, "longest_first"),
        "return_tensors": ("pt", "np", TensorType.PYTORCH, TensorType.NUMPY),
    }.items():
        if text[name] not in allowed:
            raise ValueError(f"{name}: got {text[name]!r}, expected one of {list(allowed[:3])}: a batch is one tensor")
    longest = text["max_length"]
    if longest is not None and (type(longest) is not int or longest < SHORTEST_SENTENCE):
        raise ValueError(f"max_length: got {longest!r}, expected a whole number of tokens from {SHORTEST_SENTENCE}")
    return text, images


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    missing = [name for name in ("pad", "cls", "sep", "bos") if getattr(tokenizer, f"{name}_token_id", None) is None]
    if missing:
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} has no {', '.join(f'{name}_token' for name in missing)}, expected "
            "a BERT-type tokenizer with [DEC] as bos_token; use build_tokenizer() or load_bert_tokenizer(name_or_path)"
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes without a tokenizer.json
        raise ValueError(
            "tokenizer: got a vocabulary without a word; is there a tokenizer.json beside the other files?"
        )
    most = tokenizer.model_max_length
    if isinstance(most, bool) or not isinstance(most, int | float) or not most > 0:
        raise ValueError(f"tokenizer: got model_max_length {most!r:.80}, expected a number of tokens above 0")


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, name: str) -> list[list[int]]:
    """`[CLS] ... [SEP]` of each text, cut to `limit` tokens; an empty list for a text without a single known word, from
    which a model would learn to write [UNK]."""
    written = [text for text in texts if text.strip()]
    if not written:
        return [[] for _ in texts]
    encoded = iter(tokenizer(written, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"])
    rows = [next(encoded) if text.strip() else [] for text in texts]
    special = set(tokenizer.all_special_ids)
    unknown = [index for index, row in enumerate(rows) if row and special.issuperset(row)]
    if unknown:  # named without the text, or a foreign corpus would be warned about row by row
        logger.warning_once(
            f"{name}: the tokenizer knows no word of the text at index {unknown[0]}; such texts are taken as empty. "
            "Translate them, or take a tokenizer of their language: load_bert_tokenizer(name_or_path)."
        )
        rows = [[] if index in unknown else row for index, row in enumerate(rows)]
    if any(len(row) > limit for row in rows):
        logger.warning_once(f"{name}: a text is longer than {limit} tokens; such texts are cut off at the end.")
    return [_cut(row, limit) for row in rows]


def encode_sentences(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], budget: int, name: str
) -> list[list[int]]:
    """The sentences of one image, `budget` tokens together: the longest are cut to the largest common length that
    fits."""
    rows = encode_texts(tokenizer, sentences, budget, name)
    cap = max((len(row) for row in rows), default=0)
    if sum(map(len, rows)) > budget:
        logger.warning_once(f"{name}: the sentences of an image have more than {budget} tokens; the longest are cut.")
    while sum(min(len(row), cap) for row in rows) > budget:
        cap -= 1
    return [_cut(row, cap) for row in rows]


def _cut(row: list[int], limit: int) -> list[int]:
    return row if len(row) <= limit else [*row[: limit - 1], row[-1]]  # [SEP] stays


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, shortest: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (rows, length of the longest, at least `shortest`)."""
    length = max([shortest, *(len(row) for row in rows)])
    ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask


def _caption_tokenizer() -> PreTrainedTokenizerBase:
    """Imported by name: the captions it is made of do not travel with a checkpoint, which has its own tokenizer."""
    try:
        return importlib.import_module("processing_mf2.tokenizer").build_tokenizer()
    except ModuleNotFoundError as error:
        raise ValueError("tokenizer: got none, expected one: a checkpoint's code cannot build it; load it") from error


PREPARATION = ("alignment", "do_grayscale", "normalize_per_image")
"""Settings of images that a model's config has too."""


class MF2Processor(CheckedFilesMixin, FaceResults, ProcessorMixin):
    r"""
    action_units, emotions: the label set, MFA's unless given; au_thresholds: one an AU, 0.5 unless given.
    emotion_max_length: tokens of an emotion caption; au_max_length: of all AU sentences of an image together, and of a
        key-AU caption.
    grades: label -> `reliable`, `usable` or `experimental`. conformal: cuts by confidence level.
    """

    hub_auto_classes = ("AutoProcessor",)

    def __init__(
        self,
        image_processor: MF2ImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        action_units: Sequence[str] | None = None,
        emotions: Sequence[str] | None = None,
        au_thresholds: Sequence[float] | None = None,
        emotion_max_length: int = 61,
        au_max_length: int = 169,
        grades: Mapping[str, str] | None = None,
        conformal: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        labels = resolve_label_set("mfa")
        for name, given in {"action_units": action_units, "emotions": emotions}.items():
            if given is not None and not (isinstance(given, list | tuple) and _are_names(given)):
                raise ValueError(f"{name}: got {given!r:.80}, expected a list of different names")
        if chat_template is not None and not isinstance(chat_template, str | dict):
            raise ValueError(f"chat_template: got {type(chat_template).__name__}, expected text")
        self.action_units = list(check_action_units(labels.action_units if action_units is None else action_units))
        self.emotions = list(labels.emotions if emotions is None else emotions)
        if au_thresholds is not None:
            au_thresholds = resolve_thresholds(au_thresholds, self.action_units, name="au_thresholds")
        self.au_thresholds = au_thresholds
        self.grades = check_grades(grades, [*self.action_units, *self.emotions])
        self.conformal = check_conformal(conformal, self.action_units, self.emotions)
        self.emotion_max_length, self.au_max_length = emotion_max_length, au_max_length
        shortest = {"emotion_max_length": 1, "au_max_length": max(1, len(self.action_units))}
        for name, count in shortest.items():
            value, least = getattr(self, name), count * SHORTEST_SENTENCE
            if type(value) is not int or value < least:
                raise ValueError(f"{name}: got {value}, expected at least {least} tokens, a whole number")
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        check_tokenizer(tokenizer)

    @classmethod
    def for_model(
        cls, config: MF2Config, tokenizer: PreTrainedTokenizerBase | None = None, **image_processor_kwargs: Any
    ) -> "MF2Processor":
        """A processor that fits a model, whose config adopts its token ids; with our own tokenizer unless given one."""
        vision = config.vision_config
        settings = {"size": {"height": vision.image_size, "width": vision.image_size}}
        settings |= {"image_mean": list(vision.image_mean), "image_std": list(vision.image_std)}
        settings |= {name: getattr(vision, name) for name in PREPARATION}
        tokenizer = _caption_tokenizer() if tokenizer is None else tokenizer
        processor = cls(
            MF2ImageProcessor(**{**settings, **image_processor_kwargs}),
            tokenizer,
            **{"action_units": config.action_units, "emotions": config.emotions, "au_thresholds": config.au_thresholds},
            **{"emotion_max_length": config.emotion_max_length, "au_max_length": config.au_max_length},
        )
        config.adopt_tokenizer(tokenizer)
        if hasattr(config, "key_au_prompt_length"):  # the compared systems have no such captions
            config.key_au_prompt_length = processor.caption_prompt("key_au").shape[1] - 1
        return processor

    @property
    def model_input_names(self) -> list[str]:
        texts = [f"{prefix}{name}" for prefix in ("", "au_", "key_au_") for name in ("input_ids", "attention_mask")]
        return ["pixel_values", "landmarks", *texts]

    def __call__(
        self,
        images: ImageInput | None = None,
        text: str | Sequence[str] | None = None,
        *,
        au_sentences: Sequence[Sequence[str]] | Sequence[str] | None = None,
        key_au_captions: str | Sequence[str] | None = None,
        landmarks: Any = None,
        au_labels: Any = None,
        emotion_labels: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        r"""
        Everything is one an image. An empty caption or sentence, or one without a known word, becomes a row of padding
        with attention mask 0, which every loss leaves out. Texts are padded, and cut to their limit.

        text: emotion captions -> `input_ids`, `attention_mask` (batch, length).
        au_sentences: for each image a sentence an AU, "" if unknown -> `au_input_ids`, `au_attention_mask` (batch, AU,
            length).
        key_au_captions -> `key_au_input_ids`, `key_au_attention_mask` (batch, length).
        padding: to the longest, or "max_length"; max_length: of emotion and key-AU captions, if below their limit.
        landmarks, other keywords (or `images_kwargs`): see [`MF2ImageProcessor.preprocess`]. Texts and labels of an
            image that `on_no_face="skip"` leaves out are left out too; with `on_many_faces="all"` they are refused for
            an image of many faces.
        au_labels (batch, AU): 1, 0 or -1; emotion_labels (batch,): index or -1. Passed on as int64.
        """
        of_text, images_kwargs = split_call(kwargs, self.tokenizer.init_kwargs)
        companions = {
            "au_labels": _int_tensor(au_labels, (len(self.action_units),), ["at rest", "active"], "au_labels"),
            "emotion_labels": _int_tensor(emotion_labels, (), self.emotions, "emotion_labels"),
            "text": _strings(text, "text"),
            "key_au_captions": _strings(key_au_captions, "key_au_captions"),
            "au_sentences": self._sentences(au_sentences),
        }
        companions = {name: values for name, values in companions.items() if values is not None}
        data: dict[str, Any] = {}
        if images is not None:
            count = len(flatten_images(images))
        elif landmarks is not None or images_kwargs:
            raise ValueError(f"images: got none, but {['landmarks', *images_kwargs]} are about images")
        elif not companions:
            raise ValueError("got neither images nor text, expected at least one of them")
        else:
            count = len(next(iter(companions.values())))
        for name, values in companions.items():
            if len(values) != count:
                raise ValueError(f"{name}: got {len(values)}, expected {count}, one for each image")
        if images is not None:
            wanted = images_kwargs.pop("return_landmark_source", self.image_processor.return_landmark_source)
            settings = {**images_kwargs, "return_landmark_source": True, "return_tensors": "pt"}
            data.update(self.image_processor(images, landmarks, **settings))
            companions = _follow(data["image_index"].tolist(), companions, count)
            if not wanted:
                del data["image_index"], data["landmark_source"]
        data.update(self._encode(companions, of_text["max_length"], of_text["padding"] == "max_length"))
        if of_text["return_tensors"] in ("np", TensorType.NUMPY):
            data = {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in data.items()}
        return BatchFeature(data)

    def _encode(self, companions: dict[str, Any], max_length: int | None, fill: bool) -> dict[str, torch.Tensor]:
        pad_id, data = self.tokenizer.pad_token_id, {}
        limits = {"text": ("", self.emotion_max_length), "key_au_captions": ("key_au_", self.au_max_length)}
        for name, (prefix, limit) in limits.items():
            if name in companions:
                rows = encode_texts(self.tokenizer, companions[name], min(limit, max_length or limit), name)
                shortest = (max_length or limit) if fill else 1
                data[f"{prefix}input_ids"], data[f"{prefix}attention_mask"] = pad_rows(rows, pad_id, shortest)
        if "au_sentences" in companions:
            images = companions["au_sentences"]
            rows = [encode_sentences(self.tokenizer, image, self.au_max_length, "au_sentences") for image in images]
            ids, mask = pad_rows([row for image in rows for row in image], pad_id)
            shape = (len(images), len(self.action_units), -1) if images else (0, len(self.action_units), 1)
            data["au_input_ids"], data["au_attention_mask"] = ids.view(shape), mask.view(shape)
        return data | {name: companions[name] for name in ("au_labels", "emotion_labels") if name in companions}

    def _sentences(self, au_sentences: Any) -> list[list[str]] | None:
        if au_sentences is None:
            return None
        if au_sentences and all(isinstance(sentence, str) for sentence in au_sentences):
            au_sentences = [au_sentences]  # of one image
        images = [_strings(image, f"au_sentences[{index}]") for index, image in enumerate(au_sentences)]
        for index, image in enumerate(images):
            if image is None or len(image) != len(self.action_units):
                raise ValueError(
                    f"au_sentences[{index}]: got {image and len(image)} sentences, expected {len(self.action_units)}, "
                    f"one for each of {self.action_units} (an empty one where it is unknown)"
                )
        return images

    def caption_prompt(self, kind: Literal["emotion", "au", "key_au"] = "emotion") -> torch.Tensor:
        """(1, length): how a caption of this kind starts, for `MF2ForCaptioning.generate(input_ids=...)`."""
        if kind not in ("emotion", "au", "key_au"):
            raise ValueError(f"kind: got {kind!r}, expected 'emotion', 'au' or 'key_au'")
        words = self.tokenizer(KEY_AU_PROMPT, add_special_tokens=False)["input_ids"] if kind == "key_au" else []
        return torch.tensor([[self.tokenizer.bos_token_id, *words]])

    def decode_captions(self, token_ids: torch.Tensor) -> list[Any]:
        """Generated token ids (batch, ..., length) to texts, nested like them."""
        if token_ids.ndim > 2:
            return [self.decode_captions(row) for row in token_ids]
        return [text.strip() for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]


def _are_names(given: Sequence[Any]) -> bool:
    return all(isinstance(name, str) and name for name in given) and len(set(given)) == len(given)


def _strings(texts: Any, name: str) -> list[str] | None:
    """One or many texts as a list; `None` among them is an empty one."""
    if texts is None:
        return None
    texts = [texts] if isinstance(texts, str) else ["" if text is None else text for text in texts]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise TypeError(f"{name}: got {type(wrong[0]).__name__}, expected a string, or a list of them")
    return texts


def _int_tensor(labels: Any, row_shape: tuple[int, ...], meanings: Sequence[str], name: str) -> torch.Tensor | None:
    if labels is None:
        return None
    highest = len(meanings) - 1
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        listed = ", ".join(["-1 unknown", *(f"{index} {meaning}" for index, meaning in enumerate(meanings))])
        raise ValueError(f"{name}: got {labels!r:.80}, expected whole numbers: {listed}") from error
    if values.ndim == len(row_shape):
        values = values[None]  # of one image
    if values.ndim != len(row_shape) + 1 or tuple(values.shape[1:]) != row_shape:
        expected = ", ".join(["images", *map(str, row_shape)])
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, expected ({expected})")
    whole = values.to(torch.int64)
    wrong = values[(whole != values) | (whole < UNKNOWN_LABEL) | (whole > highest)]
    if wrong.numel():
        raise ValueError(f"{name}: got {wrong[0].item()}, expected whole numbers from -1 (unknown) to {highest}")
    return whole


def _follow(image_index: list[int], companions: dict[str, Any], count: int) -> dict[str, Any]:
    """Texts and labels of the rows' images: dropped with a skipped image, refused for one of several faces."""
    if not companions or image_index == list(range(count)):
        return companions
    crowded = [index for index in set(image_index) if image_index.count(index) > 1]
    if crowded:
        raise ValueError(
            f"{', '.join(companions)}: image {crowded[0]} shows {image_index.count(crowded[0])} faces, and it is "
            "unknown which of them texts and labels are about; expected on_many_faces='largest'"
        )
    return {
        name: values[image_index] if isinstance(values, torch.Tensor) else [values[index] for index in image_index]
        for name, values in companions.items()
    }
