"""The four pipelines, zero-shot labels, and batches in which a bad item spoils no other."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import transformers
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForPreTraining, Pipeline, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import cached_file, find_adapter_config_file

from configuration_mf2.facs import ACTION_UNITS, EMOTIONS
from configuration_mf2.hub import PIPELINES as HUB_PIPELINES
from configuration_mf2.hub import check_finite_weights, check_loading_info

from .crops import check_choices
from .image_processing_mf2 import MF2ImageProcessorKwargs
from .processing_mf2 import MF2Processor
from .reliability import conformal_cuts
from .results import ANSWERS, check_finite
from .wording import EMOTION_SENTENCE, au_state_prompts, emotion_prompts


TEMPLATE = EMOTION_SENTENCE.replace("{emotion}", "{}")

_BY_NOUN = {unit.noun: name for name, unit in ACTION_UNITS.items()}
_BY_EMOTION = {name.lower(): name for name in EMOTIONS}


@dataclass(frozen=True)
class ZeroShotLabels:
    """branch "emo": sentences compete for the face. branch "au": each AU's own state against its state at rest."""

    branch: Literal["emo", "au"]
    labels: tuple[str, ...]
    sentences: tuple[str, ...]
    action_units: tuple[str, ...] = ()
    at_rest: tuple[str, ...] = ()


def read_labels(
    labels: Any, action_units: Sequence[str], branch: str | None = None, template: str = TEMPLATE
) -> ZeroShotLabels:
    """labels: emotions or words of the user's own; or AUs by code ("AU12") or noun ("lip corner puller").

    A mapping gives the sentences: one for a label, one or a pair (active, at rest) for an AU.
    """
    if branch is not None:
        _one_of("branch", branch, ("emo", "au"))
    names = list(labels) if isinstance(labels, Mapping | list | tuple) else []
    if not names or not all(isinstance(name, str) and name.strip() for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"candidate_labels: got {labels!r:.120}, expected a list of different labels, such as ['Happiness', "
            "'Anger'] or ['AU6', 'AU12'], or a mapping from labels to sentences"
        )
    units = [_action_unit(name) for name in names]
    own = labels if isinstance(labels, Mapping) else {}
    if branch == "emo" or (branch is None and not any(units)):
        sentences = tuple(_emotion_sentence(name, own.get(name), template) for name in names)
        return ZeroShotLabels("emo", tuple(names), sentences)
    wrong = [name for name, unit in zip(names, units, strict=True) if unit not in action_units]
    if wrong:
        raise ValueError(
            f"candidate_labels: got {wrong}, expected action units of this model: {list(action_units)}, by code or "
            f"noun{_hint(wrong[0].lower(), _BY_NOUN)}; emotions and your own words need a call of their own"
        )
    states = [_unit_sentences(unit, own.get(name)) for name, unit in zip(names, units, strict=True)]
    active, rest = zip(*states, strict=True)
    return ZeroShotLabels("au", tuple(names), active, tuple(units), rest)


def _action_unit(label: str) -> str | None:
    """'AU12', 'au 12', 'AU012' and 'Lip corner puller' are AU12; an AU that FACS does not have is kept as written."""
    words = label.strip().lower()
    digits = words.removeprefix("au").strip()
    return f"AU{int(digits)}" if words.startswith("au") and digits.isdigit() else _BY_NOUN.get(words)


def _unit_sentences(unit: str, own: Any) -> tuple[str, str]:
    own = (own,) if isinstance(own, str) else tuple(own or ())
    if len(own) > 2 or not all(isinstance(sentence, str) and sentence.strip() for sentence in own):
        raise ValueError(f"candidate_labels[{unit!r}]: got {own!r:.80}, expected one sentence, or two: active, at rest")
    return (*own, *au_state_prompts([unit])[unit][len(own) :])


def _emotion_sentence(label: str, own: Any, template: str) -> str:
    if own is not None:
        if not isinstance(own, str) or not own.strip():
            raise ValueError(f"candidate_labels[{label!r}]: got {own!r:.80}, expected a sentence")
        return own
    words = label.strip().lower()
    if words in _BY_EMOTION and template == TEMPLATE:
        return emotion_prompts([_BY_EMOTION[words]])[_BY_EMOTION[words]]
    near = difflib.get_close_matches(words, [*_BY_EMOTION, *_BY_NOUN], n=1, cutoff=0.85)
    if near and near[0] != words:
        raise ValueError(
            f"candidate_labels: got {label!r}, did you mean {_BY_EMOTION.get(near[0], near[0])!r}? If not, give its "
            "sentence: {label: sentence}"
        )
    if template.count("{}") != 1:
        raise ValueError(f"hypothesis_template: got {template!r}, expected a sentence with one {{}} for the label")
    return template.format(label)


def _hint(value: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {list(choices)}{_hint(str(value), choices)}")


# Faults of an item; any other exception is a defect of the program and is never skipped.
_ITEM_ERRORS = (ValueError, TypeError, OSError)
_ONE_IMAGE = (str, bytes, bytearray, Mapping, Image.Image)


class MF2Pipeline(Pipeline):
    """One image, or many: a list, a generator, a dataset. Answers are in the order of the images, one an image.

    An image is whatever the image processor reads, or a mapping with `image` (and `landmarks`, if known).
    on_error (`str`): `"raise"`, or `"skip"`: an image that cannot be read, or has no face where one is required, is
        answered by `{"error": {"index": ..., "type": ..., "message": ...}}`.
    Settings of the image processor, such as `on_no_face` or `landmark_source`, may be given to the pipeline or a call.
    """

    forward_names: ClassVar[tuple[str, ...]] = ()
    postprocess_names: ClassVar[tuple[str, ...]] = ()
    many_faces: ClassVar[str] = "largest"

    def __init__(
        self, model: Any, *args: Any, num_workers: int | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> None:
        if kwargs.get("processor") is None:
            raise ValueError(
                f"processor: got none, expected the model's: {type(self).__name__}(model, processor="
                "MF2Processor.from_pretrained(...)), or MF2Processor.for_model(model.config) if it has none yet"
            )
        adapted = hasattr(model, "get_base_model")  # peft's wrapper: its layers are inside the model
        super().__init__(model.get_base_model() if adapted else model, *args, **kwargs)
        self.num_workers, self.batch_size = num_workers or 0, batch_size or 1
        names = {name for step in self.setting_names() for name in step}
        self.settings = {name: kwargs[name] for name in names & kwargs.keys()}
        self.model.eval()  # dropout would make answers random
        if self.processor.au_thresholds is None:  # the processor owns thresholds; older ones lack those of the config
            self.processor.au_thresholds = self.model.config.au_thresholds

    def setting_names(self) -> tuple[Sequence[str], ...]:
        """Names of the settings that `preprocess`, `forward` and `postprocess` take."""
        own = {"return_landmark_source", "return_faces", *(["on_many_faces"] if self.many_faces == "largest" else [])}
        of_images = sorted(set(MF2ImageProcessorKwargs.__annotations__) - own)
        return ("on_error", *of_images), self.forward_names, self.postprocess_names

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        steps = self.setting_names()
        names = list(dict.fromkeys(name for step in steps for name in step))
        for name in given:
            if name not in names:
                hint = _hint(name, names)
                raise TypeError(f"{type(self).__name__}: got an unknown parameter {name!r}{hint} Parameters: {names}")
        _one_of("on_error", given.get("on_error", "raise"), ("raise", "skip"))
        choices = ("landmark_source", "on_no_face", "on_many_faces")
        check_choices({name: given[name] for name in choices if given.get(name) is not None})
        return tuple({name: given[name] for name in step if name in given} for step in steps)

    def __call__(
        self, inputs: Any = None, num_workers: int | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        for name in ("images", "image"):  # as transformers' own pipelines call them
            inputs = kwargs.pop(name, inputs)
        prepare, forward, post = self._sanitize_parameters(**{**self.settings, **kwargs})
        workers = self.num_workers if num_workers is None else num_workers
        size = self.batch_size if batch_size is None else batch_size
        if type(size) is not int or size < 1:
            raise ValueError(f"batch_size: got {size!r}, expected a whole number from 1")
        several = not isinstance(inputs, _ONE_IMAGE) and isinstance(inputs, Iterable | Dataset)
        if isinstance(inputs, np.ndarray | torch.Tensor):
            several = inputs.ndim == 4
        if not several:
            items = _Items(self, prepare, [inputs], numbered=False)
            return next(self._answers([[items[0]]], 1, forward, post, items))
        if hasattr(inputs, "__len__") and len(inputs) == 0:
            raise ValueError("inputs: got an empty list, expected at least one image")
        items = _Items(self, prepare, inputs)
        indexable = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
        if indexable and (workers or not isinstance(inputs, Iterable)):
            batches = DataLoader(items, size, num_workers=workers, collate_fn=list)
        else:
            ready = (items.ready(index, value) for index, value in enumerate(inputs))
            batches = iter(lambda: list(islice(ready, size)), [])
        answers = self._answers(batches, size, forward, post, items)
        return list(answers) if isinstance(inputs, list | tuple | np.ndarray | torch.Tensor) else answers

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Saves model and processor with their code, that of the pipelines included."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def preprocess(self, item: Any, on_error: str = "raise", **settings: Any) -> dict[str, Any]:
        """A row for every face to judge; none if `on_no_face="skip"` leaves the image out. An item that was prepared
        before, say in another thread, is taken as it is."""
        if isinstance(item, Mapping) and "pixel_values" in item:
            return dict(item)
        landmarks = None
        if isinstance(item, Mapping) and "image" in item:
            item, landmarks = item["image"], item.get("landmarks")
        settings = {"on_many_faces": self.many_faces, **settings, "return_faces": True}
        return dict(self.processor.image_processor(item, landmarks, return_tensors="pt", **settings))

    def _answers(
        self, batches: Iterable[list[dict]], batch_size: int, forward_params: dict, post_params: dict, items: "_Items"
    ) -> Iterator[Any]:
        with torch.no_grad():
            forward_params = {**forward_params, **self.once_a_call(forward_params)}
        index = -1
        for batch in batches:
            rows = self._rows([item for item in batch if "error" not in item], batch_size, forward_params)
            for item in batch:
                index += 1
                if "error" in item:
                    yield item
                    continue
                faces = [{"face": face, **next(rows)} for face in item["faces"]]
                try:
                    for name, values in (pair for face in faces for pair in face.items()):
                        if isinstance(values, torch.Tensor):
                            check_finite(values, name)
                    answer = self.postprocess(faces, **post_params) if faces else []
                except ValueError as error:
                    answer = items.failed(index, error)
                yield answer

    def _rows(self, items: list[dict], batch_size: int, forward_params: dict) -> Iterator[dict[str, Any]]:
        """The model's output for each face, `batch_size` faces at once, however many an image has."""
        if not any(item["faces"] for item in items):
            return
        pixels, landmarks = (torch.cat([item[name] for item in items]) for name in ("pixel_values", "landmarks"))
        for start in range(0, len(pixels), batch_size):
            part = slice(start, start + batch_size)
            # Landmarks stay float32: half precision would move them by up to a pixel.
            inputs = {"pixel_values": pixels[part].to(self.dtype), "landmarks": landmarks[part]}
            outputs = self.forward(inputs, **forward_params)
            for row in range(len(pixels[part])):
                yield {name: values[row] for name, values in outputs.items()}

    def once_a_call(self, forward_params: dict) -> dict[str, Any]:
        """More arguments of `_forward`, the same for all batches."""
        return {}


class _Items(Dataset):
    """Turns inputs into tensors, or into a named error."""

    def __init__(self, pipeline: MF2Pipeline, params: dict[str, Any], inputs: Any, numbered: bool = True) -> None:
        self.pipeline, self.params, self.inputs, self.numbered = pipeline, params, inputs, numbered

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.ready(index, self.inputs[index])

    def ready(self, index: int, value: Any) -> dict[str, Any]:
        try:
            return self.pipeline.preprocess(value, **self.params)
        except _ITEM_ERRORS as error:
            return self.failed(index, error)

    def failed(self, index: int, error: Exception) -> dict[str, Any]:
        message = f"inputs{f'[{index}]' if self.numbered else ''}: {str(error).removeprefix('images: ')}"
        if self.params.get("on_error") == "skip":
            return {"error": {"index": index, "type": type(error).__name__, "message": message}}
        kind = type(error) if type(error) in (*_ITEM_ERRORS, FileNotFoundError) else ValueError
        raise kind(message) from error


CAPTIONS: dict[str, str] = {"emotion": "emo", "key_au": "emo", "au": "au"}
"""Kind of caption -> the branch that writes it."""


class MF2ImageClassificationPipeline(MF2Pipeline):
    """Labels and scores of an image's largest face, best first; an empty list if `on_no_face="skip"`.

    target (`str`): `"emotion"` or `"action_units"`; the config's `classification_target` unless given.
    top_k (`int`): number of labels; 5 emotions or all AUs unless given.
    function_to_apply (`str`): `"softmax"` (default for emotions), `"sigmoid"` (for AUs) or `"none"`.
    thresholds: of AUs, which then also have `active`: one for all, one each, or by name; the checkpoint's unless given.
    """

    forward_names = ("target",)
    postprocess_names = ("target", "top_k", "function_to_apply", "thresholds")

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        choices = {"target": ("emotion", "action_units"), "function_to_apply": ("softmax", "sigmoid", "none")}
        for name in choices.keys() & given.keys():
            if given[name] is not None:
                _one_of(name, given[name], choices[name])
        top_k = given.get("top_k")
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise ValueError(f"top_k: got {top_k!r}, expected a whole number from 1")
        return super()._sanitize_parameters(**given)

    def _forward(self, inputs: dict[str, torch.Tensor], target: str | None = None) -> dict[str, torch.Tensor]:
        usual = self.model.config.classification_target
        target, outputs = target or usual, self.model(**inputs)
        logits = getattr(outputs, "emotion_logits" if target == "emotion" else "au_logits", None)
        if logits is None and target == usual:
            logits = getattr(outputs, "logits", None)
        if logits is None:
            raise ValueError(
                f"target: got {target!r}, but {type(self.model).__name__} answers only with {usual!r} here; load the "
                "checkpoint with AutoModelForPreTraining, which answers with all its labels"
            )
        return {"logits": logits}

    def postprocess(
        self,
        rows: list[dict[str, Any]],
        target: str | None = None,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        thresholds: Any = None,
    ) -> list[dict[str, Any]]:
        config = self.model.config
        of_units = (target or config.classification_target) == "action_units"
        apply = function_to_apply or ("sigmoid" if of_units else "softmax")
        logits = rows[0]["logits"].float()
        scores = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "none": logits}[apply].tolist()
        names = config.action_units if of_units else config.emotions
        answers = [{"label": name, "score": score} for name, score in zip(names, scores, strict=True)]
        if of_units:
            for answer, limit in zip(answers, self.processor.thresholds(thresholds), strict=True):
                answer["name"] = ACTION_UNITS[answer["label"]].noun
                if apply == "sigmoid":  # a threshold is a probability
                    answer |= {"threshold": limit, "active": answer["score"] >= limit}
        answers.sort(key=lambda answer: -answer["score"])
        return answers[: top_k or (None if of_units else 5)]


class MF2ZeroShotImageClassificationPipeline(MF2Pipeline):
    """How near each label's sentence is to an image's largest face, nearest first.

    candidate_labels: see [`read_labels`]. Emotions and your own words share a score of 1; an AU's score is its active
        state's against its state at rest, whatever the other labels.
    branch (`str`): `"emo"` or `"au"`; inferred from the labels unless given.
    hypothesis_template (`str`): the sentence around a label that is not the name of an emotion.
    """

    forward_names = ("candidate_labels", "branch", "hypothesis_template")

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        prepare, forward, post = super()._sanitize_parameters(**given)
        if not forward:
            return prepare, forward, post
        if "candidate_labels" not in forward:
            raise ValueError(f"candidate_labels: got none, expected them together with {sorted(forward)}")
        template, branch = forward.get("hypothesis_template", TEMPLATE), forward.get("branch")
        labels = read_labels(forward["candidate_labels"], self.model.config.action_units, branch, template)
        unknown = self.processor.tokenizer.unk_token_id
        for sentence in (*labels.sentences, *labels.at_rest):
            ids = self.processor.tokenizer(sentence, add_special_tokens=False)["input_ids"]
            if not ids or unknown in ids:
                raise ValueError(
                    f"candidate_labels: the tokenizer does not know every word of {sentence!r}; write it in the "
                    "language that the model was trained with"
                )
        return prepare, {"labels": labels}, post

    def once_a_call(self, forward_params: dict) -> dict[str, Any]:
        if "labels" not in forward_params:
            raise ValueError("candidate_labels: got none, expected the labels to choose from: ['Happiness', 'Anger']")
        labels = forward_params["labels"]
        text = self.processor(text=[*labels.sentences, *labels.at_rest]).to(self.device)
        model = self.model.base_model
        read = model.get_text_features(text["input_ids"], text["attention_mask"], labels.branch, return_dict=True)
        return {"features": read.pooler_output}

    def _forward(
        self, inputs: dict[str, torch.Tensor], labels: ZeroShotLabels, features: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        model = self.model.base_model
        seen = model.get_image_features(**inputs, branch=labels.branch, return_dict=True).pooler_output
        temperature = model.branch(labels.branch).temperature.clamp_min(1e-3)
        if labels.branch == "emo":
            near = torch.einsum("bqd,ld->blq", seen, features)
        else:  # each sentence meets the queries of its own AU
            places = [model.config.action_units.index(unit) for unit in labels.action_units] * 2
            near = torch.einsum("blqd,ld->blq", seen[:, places], features)
        logits = (near.amax(dim=-1) / temperature).float()
        scores = logits.softmax(-1) if labels.branch == "emo" else logits.unflatten(1, (2, -1)).softmax(1)[:, 0]
        return {"scores": scores, "labels": [labels] * len(scores)}

    def postprocess(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        labels: ZeroShotLabels = rows[0]["labels"]
        scored = zip(rows[0]["scores"].tolist(), labels.labels, labels.sentences, strict=True)
        answers = [{"score": score, "label": label, "sentence": sentence} for score, label, sentence in scored]
        for answer, unit, rest in zip(answers, labels.action_units, labels.at_rest, strict=False):
            answer |= {"action_unit": unit, "name": ACTION_UNITS[unit].noun, "sentence_at_rest": rest}
        return sorted(answers, key=lambda answer: -answer["score"])


class _Writing(MF2Pipeline):
    """Pipelines that may write captions, with any model class of the checkpoint."""

    forward_names = ("captions", "max_new_tokens", "generate_kwargs")
    _writer: Any = None

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        prepare, forward, post = super()._sanitize_parameters(**given)
        if (wanted := forward.get("captions")) is not None:
            config = self.model.config
            here = [kind for kind, branch in CAPTIONS.items() if getattr(config, f"use_{branch}_branch")]
            wanted = [wanted] if isinstance(wanted, str) else wanted
            forward["captions"] = list({True: here, False: []}[wanted] if isinstance(wanted, bool) else wanted)
            for kind in forward["captions"]:
                _one_of("captions", kind, here)
        return prepare, forward, post

    def write(
        self,
        seen: dict[str, torch.Tensor],
        kinds: Sequence[str],
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """A dict a face: kind -> text, or for "au" AU -> text."""
        settings = {**(generate_kwargs or {}), **({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})}
        self._writer = self._writer or self.model.captioner()
        units = self.model.config.action_units
        written: list[dict[str, Any]] = [{} for _ in seen["landmarks"]]
        for kind in kinds:
            more = {"input_ids": self.processor.caption_prompt(kind).to(self.device)} if kind == "key_au" else {}
            ids = self._writer.generate(**seen, branch=CAPTIONS[kind], **{**settings, **more})
            for face, text in zip(written, self.processor.decode_captions(ids), strict=True):
                face[kind] = dict(zip(units, text, strict=True)) if kind == "au" else text
        return written

    def look(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs the tower once for everything that reads it, unless an adapter reads the tower's own states."""
        model = self.model.base_model
        if any(model.branch(name).port.reads("vision") for name in model.branch_names):
            return inputs
        return {"image_tokens": model.look(inputs["pixel_values"], None), "landmarks": inputs["landmarks"]}


class MF2ImageToTextPipeline(_Writing):
    """Captions of an image's largest face, a dict each with `generated_text` and `kind`.

    captions: `"emotion"` (default), `"key_au"`, `"au"` (a text an AU), several of them, or True for all.
    max_new_tokens, generate_kwargs: for `generate`.
    """

    def _forward(
        self, inputs: dict[str, torch.Tensor], captions: Sequence[str] | None = None, **settings: Any
    ) -> dict[str, Any]:
        usual = ["emotion"] if self.model.config.use_emo_branch else ["au"]
        return {"captions": self.write(self.look(inputs), usual if captions is None else captions, **settings)}

    def postprocess(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers = []
        for kind, text in rows[0]["captions"].items():
            for unit, words in (text if kind == "au" else {None: text}).items():
                of_unit = {"action_unit": unit, "name": ACTION_UNITS[unit].noun} if unit else {}
                answers.append({"generated_text": words, "kind": kind, **of_unit})
        return answers


class MF2FaceAnalysisPipeline(_Writing):
    """Every face of an image, a dict each: box, landmarks and their source, emotion, all AUs, captions if asked for.

    captions: None (default), or as in [`MF2ImageToTextPipeline`]; max_new_tokens, generate_kwargs: for them.
    thresholds: of AUs: one for all, one each, or by name; the checkpoint's unless given.
    confidence: such as 0.9, for each AU's `state` (active, at rest, cannot tell) and `emotion_set`.
    on_many_faces (`str`): `"all"` (default) or `"largest"`. Faces are detected if `landmark_source="face_alignment"`;
        otherwise an image is one face.
    """

    postprocess_names = ("thresholds", "confidence")
    many_faces = "all"

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        conformal_cuts(given.get("confidence"), self.processor.conformal)  # an error before the first image
        return super()._sanitize_parameters(**given)

    def _forward(
        self, inputs: dict[str, torch.Tensor], captions: Sequence[str] | None = None, **settings: Any
    ) -> dict[str, Any]:
        seen = self.look(inputs) if captions else inputs
        outputs = self.model(**seen)
        logits = {name: getattr(outputs, name, None) for name in ANSWERS}
        logits = {name: values for name, values in logits.items() if values is not None}
        if not logits:
            raise ValueError(
                f"model: got {type(self.model).__name__}, expected one that answers with emotions and action units: "
                "MF2ForFaceAnalysis or MF2ForPreTraining"
            )
        return {**logits, "captions": self.write(seen, captions, **settings)} if captions else logits

    def postprocess(
        self, rows: list[dict[str, Any]], thresholds: Any = None, confidence: float | None = None
    ) -> list[dict[str, Any]]:
        names = [name for name in ANSWERS if name in rows[0]]
        outputs = {name: torch.stack([row[name] for row in rows]) for name in names}
        results = self.processor.post_process_face_analysis(outputs, thresholds, confidence=confidence)
        captions = [{"captions": row["captions"]} if "captions" in row else {} for row in rows]
        return [{**row["face"], **said, **text} for row, said, text in zip(rows, results, captions, strict=True)]


PIPELINES: dict[str, type[MF2Pipeline]] = {
    "image-classification": MF2ImageClassificationPipeline,
    "zero-shot-image-classification": MF2ZeroShotImageClassificationPipeline,
    "image-to-text": MF2ImageToTextPipeline,
    "image-text-to-text": MF2ImageToTextPipeline,
    "face-analysis": MF2FaceAnalysisPipeline,
}

_LOADING = ("dtype", "torch_dtype", "device_map", "trust_remote_code", "revision", "token", "local_files_only")


def _load(task: str, name: str, settings: dict[str, Any]) -> tuple[Any, MF2Processor | None]:
    """The model that transformers would load, refused if weights are missing or NaN; an adapter's name unchanged, with
    the adapter's own processor, whose thresholds were tuned for it."""
    where = {key: settings[key] for key in ("token", "revision", "local_files_only") if settings.get(key) is not None}
    if find_adapter_config_file(name, **where) is not None:
        try:
            cached_file(name, "processor_config.json", **where)
        except OSError:  # it has none: the base's
            return name, None
        return name, MF2Processor.from_pretrained(name, **where)
    given = {key: settings.pop(key) for key in _LOADING if key in settings} | settings.pop("model_kwargs", {})
    auto = getattr(transformers, HUB_PIPELINES[task][1])
    model, info = auto.from_pretrained(name, output_loading_info=True, **given)
    check_loading_info(info, name)
    check_finite_weights(model, name)
    return model, None


def face_pipeline(task: str, model: Any, processor: Any = None, **kwargs: Any) -> Pipeline:
    """`transformers.pipeline` with the classes of this file: for a model, or the folder or Hub name of a checkpoint or
    an adapter. The processor is found beside the checkpoint; for a peft model it is the base's unless given."""
    _one_of("task", task, list(PIPELINES))
    model = str(model) if hasattr(model, "__fspath__") else model
    if isinstance(model, str):
        model, own = _load(task, model, kwargs)
        processor = processor or own
    if processor is None and not isinstance(model, str):
        if not model.name_or_path:
            raise ValueError(
                "processor: got none, and the model was not loaded from a checkpoint that has one; expected its "
                "processor, such as MF2Processor.for_model(model.config)"
            )
        processor = MF2Processor.from_pretrained(model.name_or_path)
    name = "image-text-to-text" if task == "image-to-text" else task  # transformers has given up the name
    return pipeline(name, model=model, processor=processor, pipeline_class=PIPELINES[task], **kwargs)


# A task that transformers does not have; for the others a checkpoint's config names the classes.
if "face-analysis" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline("face-analysis", MF2FaceAnalysisPipeline, AutoModelForPreTraining, type="image")
