"""The pipelines: image-classification, zero-shot, captions, face-analysis. The model is handed in, never imported."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import transformers
from transformers import (
    AutoModelForPreTraining,
    Pipeline,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import cached_file, find_adapter_config_file

from configuration_mf2.facs_mf2 import ACTION_UNITS
from configuration_mf2.hub_mf2 import PIPELINES as HUB_PIPELINES
from configuration_mf2.loading_check_mf2 import check_finite, check_loading_info

from .pipeline_items_mf2 import MF2Pipeline
from .processing_mf2 import MF2Processor
from .results_mf2 import resolve_thresholds
from .zero_shot_mf2 import TEMPLATE, ZeroShotLabels, read_labels


Target = Literal["emotion", "action_units"]
CAPTIONS: dict[str, str] = {"emotion": "emo", "key_au": "emo", "au": "au"}
"""Kind of caption -> the branch that writes it."""


def _one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: got {value!r}, expected one of {list(choices)}{hint}")


class MF2ImageClassificationPipeline(MF2Pipeline):
    """Of an image's largest face the labels and their scores, best first; an empty list if `on_no_face="skip"`.

    target (`str`): `"emotion"` or `"action_units"`; the config's `classification_target` unless given.
    top_k (`int`): that many labels; 5 emotions or all AUs unless given.
    function_to_apply (`str`): `"softmax"` (usual for emotions), `"sigmoid"` (for AUs) or `"none"`.
    thresholds: of AUs, which then also say `active`: one for all, one each, or by name; the checkpoint's unless given.
    """

    forward_names = ("target",)
    postprocess_names = ("target", "top_k", "function_to_apply", "thresholds")

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        prepare, forward, post = super()._sanitize_parameters(**given)
        if "target" in given:
            _one_of("target", given["target"], Target.__args__)
            forward["target"] = post["target"] = given["target"]
        if given.get("function_to_apply") is not None:
            _one_of("function_to_apply", given["function_to_apply"], ("softmax", "sigmoid", "none"))
        top_k = given.get("top_k")
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise ValueError(f"top_k: got {top_k!r}, expected a whole number from 1")
        return prepare, forward, post

    def _forward(self, inputs: dict[str, torch.Tensor], target: Target | None = None) -> dict[str, torch.Tensor]:
        target = target or self.model.config.classification_target
        outputs = self.model(**inputs)
        logits = getattr(outputs, "emotion_logits" if target == "emotion" else "au_logits", None)
        if logits is None and target == self.model.config.classification_target:
            logits = getattr(outputs, "logits", None)
        if logits is None:
            raise ValueError(
                f"target: got {target!r}, but {type(self.model).__name__} answers only with "
                f"{self.model.config.classification_target!r} here; load the checkpoint with AutoModelForPreTraining, "
                "which answers with all labels that it has"
            )
        return {"logits": logits}

    def postprocess(
        self,
        rows: list[dict[str, Any]],
        target: Target | None = None,
        top_k: int | None = None,
        function_to_apply: str | None = None,
        thresholds: Any = None,
    ) -> list[dict[str, Any]]:
        if not rows:
            return []
        config = self.model.config
        of_units = (target or config.classification_target) == "action_units"
        apply = function_to_apply or ("sigmoid" if of_units else "softmax")
        logits = rows[0]["logits"].float()
        scores = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "none": logits}[apply].tolist()
        names = config.action_units if of_units else config.emotions
        answers = [{"label": name, "score": score} for name, score in zip(names, scores, strict=True)]
        if of_units:
            limits = resolve_thresholds(thresholds, names, self.processor.au_thresholds or config.au_thresholds)
            for answer, limit in zip(answers, limits, strict=True):
                answer["name"] = ACTION_UNITS[answer["label"]].noun
                if apply == "sigmoid":  # a threshold is a probability
                    answer |= {"threshold": limit, "active": answer["score"] >= limit}
        answers.sort(key=lambda answer: -answer["score"])
        return answers[: top_k or (None if of_units else 5)]


class MF2ZeroShotImageClassificationPipeline(MF2Pipeline):
    """Of an image's largest face how near each label's sentence is to it, nearest first.

    candidate_labels: see [`read_labels`]. Emotions and words of your own share the score 1 among them; of an AU the
        score is its active state's against its state at rest, whatever the other labels.
    branch (`str`): `"emo"` or `"au"`; told by the labels unless given.
    hypothesis_template (`str`): the sentence around a label that is no emotion's name.
    """

    forward_names = ("candidate_labels", "branch", "hypothesis_template")

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        prepare, forward, post = super()._sanitize_parameters(**given)
        if "candidate_labels" in forward:
            template = forward.pop("hypothesis_template", TEMPLATE)
            labels = read_labels(
                forward.pop("candidate_labels"), self.model.config.action_units, forward.pop("branch", None), template
            )
            self._check_words(labels)
            forward["labels"] = labels
        elif forward:
            raise ValueError(f"candidate_labels: got none, expected them together with {sorted(forward)}")
        return prepare, forward, post

    def _check_words(self, labels: ZeroShotLabels) -> None:
        unknown = self.processor.tokenizer.unk_token_id
        for sentence in (*labels.sentences, *labels.at_rest):
            ids = self.processor.tokenizer(sentence, add_special_tokens=False)["input_ids"]
            if not ids or unknown in ids:
                raise ValueError(
                    f"candidate_labels: got the sentence {sentence!r}, of which the tokenizer does not know every "
                    "word; write it in the language that the model was trained with"
                )

    def once_a_call(self, forward_params: dict) -> dict[str, Any]:
        if "labels" not in forward_params:
            raise ValueError("candidate_labels: got none, expected the labels to choose from: ['Happiness', 'Anger']")
        labels = forward_params["labels"]
        text = self.processor(text=[*labels.sentences, *labels.at_rest]).to(self.device)
        model = self.model.base_model
        features = model.get_text_features(text["input_ids"], text["attention_mask"], branch=labels.branch)
        return {"features": features}

    def _forward(
        self, inputs: dict[str, torch.Tensor], labels: ZeroShotLabels, features: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        model = self.model.base_model
        seen = model.get_image_features(**inputs, branch=labels.branch)
        if labels.branch == "emo":
            near = torch.einsum("bqd,ld->blq", seen, features)
        else:  # each sentence meets the queries of its own AU
            places = [model.config.action_units.index(unit) for unit in labels.action_units] * 2
            near = torch.einsum("blqd,ld->blq", seen[:, places], features)
        temperature = model.branch(labels.branch).temperature.clamp_min(1e-3)
        logits = (near.amax(dim=-1) / temperature).float()
        if labels.branch == "au":
            return {"scores": logits.unflatten(1, (2, -1)).softmax(dim=1)[:, 0], "labels": [labels] * len(logits)}
        return {"scores": logits.softmax(dim=-1), "labels": [labels] * len(logits)}

    def postprocess(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not rows:
            return []
        labels: ZeroShotLabels = rows[0]["labels"]
        found = zip(rows[0]["scores"].tolist(), labels.labels, labels.sentences, strict=True)
        answers = [{"score": score, "label": label, "sentence": sentence} for score, label, sentence in found]
        for answer, unit, rest in zip(answers, labels.action_units, labels.at_rest, strict=False):
            answer |= {"action_unit": unit, "name": ACTION_UNITS[unit].noun, "sentence_at_rest": rest}
        return sorted(answers, key=lambda answer: -answer["score"])


class _Writing(MF2Pipeline):
    """Pipelines that may write captions, by whichever model was handed in."""

    forward_names = ("captions", "max_new_tokens", "generate_kwargs")
    _writer: Any = None

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        prepare, forward, post = super()._sanitize_parameters(**given)
        wanted = forward.get("captions")
        if wanted is not None:
            config = self.model.config
            here = [kind for kind, branch in CAPTIONS.items() if getattr(config, f"use_{branch}_branch")]
            wanted = here if wanted is True else [] if wanted is False else wanted
            wanted = [wanted] if isinstance(wanted, str) else list(wanted)
            for kind in wanted:
                _one_of("captions", kind, here)
            forward["captions"] = wanted
        return prepare, forward, post

    def write(
        self,
        seen: dict[str, torch.Tensor],
        kinds: Sequence[str],
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Of each face a dict: kind -> text, or for "au" AU -> text."""
        settings = dict(generate_kwargs or {})
        if max_new_tokens is not None:
            settings["max_new_tokens"] = max_new_tokens
        if self._writer is None:
            self._writer = self.model.captioner()
        units, writer = self.model.config.action_units, self._writer
        told: list[dict[str, Any]] = [{} for _ in seen["landmarks"]]
        for kind in kinds:
            if kind == "key_au":
                settings["input_ids"] = self.processor.caption_prompt("key_au").to(self.device)
            texts = self.processor.decode_captions(writer.generate(**seen, branch=CAPTIONS[kind], **settings))
            settings.pop("input_ids", None)
            for face, text in zip(told, texts, strict=True):
                face[kind] = dict(zip(units, text, strict=True)) if kind == "au" else text
        return told

    def look(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tower is asked once for everything that is then read from it, unless an adapter looks into the tower."""
        model = self.model.base_model
        if any(model.branch(name).port.reads("vision") for name in model.branch_names):
            return inputs
        tokens = model.look(inputs["pixel_values"], None)
        return {"image_tokens": tokens, "landmarks": inputs["landmarks"]}


class MF2ImageToTextPipeline(_Writing):
    """Of an image's largest face what the model writes about it: a dict a text, with `generated_text` and `kind`.

    captions: `"emotion"` (usual), `"key_au"`, `"au"` (a text an AU), several of them, or True for all.
    max_new_tokens, generate_kwargs: for `generate`.
    """

    def _forward(
        self, inputs: dict[str, torch.Tensor], captions: Sequence[str] | None = None, **settings: Any
    ) -> dict[str, Any]:
        usual = ["emotion"] if self.model.config.use_emo_branch else ["au"]
        return {"captions": self.write(self.look(inputs), usual if captions is None else captions, **settings)}

    def postprocess(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answers = []
        for kind, text in (rows[0]["captions"] if rows else {}).items():
            if kind == "au":
                for unit, words in text.items():
                    name = ACTION_UNITS[unit].noun
                    answers.append({"generated_text": words, "kind": kind, "action_unit": unit, "name": name})
            else:
                answers.append({"generated_text": text, "kind": kind})
        return answers


class MF2FaceAnalysisPipeline(_Writing):
    """Every face of an image, a dict each: box, landmarks and their source, emotion, all AUs, captions if asked.

    captions: None (usual), or as in [`MF2ImageToTextPipeline`]; max_new_tokens, generate_kwargs: for them.
    thresholds: of AUs: one for all, one each, or by name; the checkpoint's unless given.
    on_many_faces (`str`): `"all"` (usual) or `"largest"`. Faces are looked for if `landmark_source="face_alignment"`;
        otherwise an image is one face.
    """

    postprocess_names = ("thresholds",)
    many_faces = "all"

    def _forward(
        self, inputs: dict[str, torch.Tensor], captions: Sequence[str] | None = None, **settings: Any
    ) -> dict[str, Any]:
        seen = self.look(inputs) if captions else inputs
        outputs = self.model(**seen)
        said = {name: getattr(outputs, name, None) for name in ("emotion_logits", "au_logits")}
        if all(logits is None for logits in said.values()):
            raise ValueError(
                f"model: got {type(self.model).__name__}, expected one that answers with emotions and action units: "
                "MF2ForFaceAnalysis or MF2ForPreTraining"
            )
        said = {name: logits for name, logits in said.items() if logits is not None}
        return {**said, "captions": self.write(seen, captions, **settings)} if captions else said

    def postprocess(self, rows: list[dict[str, Any]], thresholds: Any = None) -> list[dict[str, Any]]:
        if not rows:
            return []
        names = [name for name in ("emotion_logits", "au_logits") if name in rows[0]]
        outputs = {name: torch.stack([row[name] for row in rows]) for name in names}
        results = self.processor.post_process_face_analysis(outputs, thresholds)
        captions = [{"captions": row["captions"]} if "captions" in row else {} for row in rows]
        return [{**row["face"], **said, **text} for row, said, text in zip(rows, results, captions, strict=True)]


PIPELINES: dict[str, type[MF2Pipeline]] = {
    "image-classification": MF2ImageClassificationPipeline,
    "zero-shot-image-classification": MF2ZeroShotImageClassificationPipeline,
    "image-to-text": MF2ImageToTextPipeline,
    "image-text-to-text": MF2ImageToTextPipeline,
    "face-analysis": MF2FaceAnalysisPipeline,
}


def _adapter_s_processor(name: str, settings: Mapping[str, Any]) -> MF2Processor | None:
    """transformers would take the base's, which does not know the thresholds that were tuned for the adapter."""
    where = {key: settings[key] for key in ("token", "revision", "local_files_only") if settings.get(key) is not None}
    if find_adapter_config_file(name, **where) is None:
        return None
    try:
        cached_file(name, "processor_config.json", **where)
    except OSError:  # it has none
        return None
    return MF2Processor.from_pretrained(name, **where)


_LOADING = ("dtype", "torch_dtype", "device_map", "trust_remote_code", "revision", "token", "local_files_only")


def _checked_model(task: str, name: str, settings: dict[str, Any]) -> Any:
    """The model that transformers would load, refused if weights are missing or NaN; an adapter's name as it is."""
    where = {key: settings[key] for key in ("token", "revision", "local_files_only") if settings.get(key) is not None}
    if find_adapter_config_file(name, **where) is not None:
        return name
    given = {key: settings.pop(key) for key in _LOADING if key in settings} | settings.pop("model_kwargs", {})
    auto = getattr(transformers, HUB_PIPELINES[task][1])
    model, info = auto.from_pretrained(name, output_loading_info=True, **given)
    check_loading_info(info, name)
    check_finite(model, name)
    return model


def face_pipeline(task: str, model: Any, processor: Any = None, **kwargs: Any) -> Pipeline:
    """`transformers.pipeline` with the classes of this file, also for a model object; its processor is found if the
    model was loaded from somewhere. An adapter's folder or name will do for a model: it says which base it adapts.
    peft's wrapper around a model brings the base's processor: pass the adapter's own, if it has one."""
    _one_of("task", task, list(PIPELINES))
    if hasattr(model, "__fspath__"):
        model = str(model)
    if isinstance(model, str):
        processor = processor or _adapter_s_processor(model, kwargs)
        model = _checked_model(task, model, kwargs)
    if processor is None and not isinstance(model, str):
        if not model.name_or_path:
            raise ValueError(
                "processor: got none, and the model was not loaded from a checkpoint that has one; expected its "
                "processor, such as MF2Processor.for_model(model.config)"
            )
        processor = MF2Processor.from_pretrained(model.name_or_path)
    # transformers has given up the name, not the task.
    name = "image-text-to-text" if task == "image-to-text" else task
    return pipeline(name, model=model, processor=processor, pipeline_class=PIPELINES[task], **kwargs)


# Tasks that transformers has not got; a checkpoint's config names the classes for those that it has.
if "face-analysis" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline("face-analysis", MF2FaceAnalysisPipeline, AutoModelForPreTraining, type="image")

__all__ = [
    "MF2FaceAnalysisPipeline",
    "MF2ImageClassificationPipeline",
    "MF2ImageToTextPipeline",
    "MF2ZeroShotImageClassificationPipeline",
    "face_pipeline",
]
