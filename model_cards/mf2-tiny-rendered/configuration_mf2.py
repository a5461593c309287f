from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from huggingface_hub import hf_hub_download
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import HTTPError
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.errors import StrictDataclassFieldValidationError
from pathlib import Path
from transformers import PreTrainedConfig
from typing import Any
from typing import ClassVar
from typing import Literal
import copy
import dataclasses
import difflib
import importlib
import json
import math
import os
import re
import warnings


# configuration_mf2/facs.py


@dataclass(frozen=True)
class ActionUnit:
    noun: str
    verb: str
    """Imperative form, as in Exp-BLIP's supplement, Table 1."""


ACTION_UNITS: dict[str, ActionUnit] = {
    "AU1": ActionUnit("inner brow raiser", "raise inner eyebrow"),
    "AU2": ActionUnit("outer brow raiser", "raise outer eyebrow"),
    "AU4": ActionUnit("brow lowerer", "lower brow"),
    "AU5": ActionUnit("upper lid raiser", "raise upper lid"),
    "AU6": ActionUnit("cheek raiser", "raise cheek"),
    "AU7": ActionUnit("lid tightener", "tighten lids"),
    "AU8": ActionUnit("lips toward each other", "pull lips toward each other"),
    "AU9": ActionUnit("nose wrinkler", "wrinkle nose"),
    "AU10": ActionUnit("upper lip raiser", "raise upper lip"),
    "AU11": ActionUnit("nasolabial deepener", "deepen nasolabial"),
    "AU12": ActionUnit("lip corner puller", "pull lip corner"),
    "AU14": ActionUnit("dimpler", "tighten lip corner"),
    "AU15": ActionUnit("lip corner depressor", "depress lip corner"),
    "AU16": ActionUnit("lower lip depressor", "depress lower lip"),
    "AU17": ActionUnit("chin raiser", "raise chin"),
    "AU18": ActionUnit("lip pucker", "pucker lips"),
    "AU19": ActionUnit("tongue show", "stick tongue out"),
    "AU20": ActionUnit("lip stretch", "stretch lips"),
    "AU21": ActionUnit("neck tightener", "tighten neck"),
    "AU22": ActionUnit("lip funneler", "show lip funneler"),
    "AU23": ActionUnit("lip tightener", "tighten lips"),
    "AU24": ActionUnit("lip pressor", "press lips"),
    "AU25": ActionUnit("lips part", "separate lips"),
    "AU26": ActionUnit("jaw drop", "drop jaw"),
    "AU27": ActionUnit("mouth stretch", "stretch mouth"),
    "AU28": ActionUnit("lip suck", "suck lips"),
    "AU43": ActionUnit("eyes closed", "close eyes"),
}


EMOTIONS: tuple[str, ...] = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
"""Aff-Wild2's order, and MFA's."""


UNKNOWN_LABEL = -1
"""An AU or an emotion nobody labelled: masked out of every loss and metric, the frame is kept."""


@dataclass(frozen=True)
class LabelSet:
    action_units: tuple[str, ...] = ()
    emotions: tuple[str, ...] = ()


def _aus(*numbers: int) -> tuple[str, ...]:
    return tuple(f"AU{number}" for number in numbers)


_MFA = LabelSet(_aus(1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26), EMOTIONS)


LABEL_SETS: dict[str, LabelSet] = {
    "mfa": _MFA,
    "aff_wild2": _MFA,
    "bp4d": LabelSet(_aus(1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)),
    "disfa": LabelSet(_aus(1, 2, 4, 6, 9, 12, 25, 26)),
    "gft": LabelSet(_aus(1, 2, 4, 6, 10, 12, 14, 15, 23, 24)),
    # The 17 AUs that Exp-BLIP's supplement scores (its Table 3).
    "raf_au": LabelSet(_aus(1, 2, 4, 5, 6, 7, 9, 10, 12, 15, 16, 17, 22, 24, 25, 26, 27)),
    "emotionet": LabelSet(_aus(1, 2, 4, 5, 6, 9, 12, 17, 20, 25, 26)),
    "affectnet": LabelSet(
        emotions=("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt")
    ),
    "raf_db": LabelSet(emotions=("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")),
    "raf_db_compound": LabelSet(
        emotions=(
            "Happily Surprised",
            "Happily Disgusted",
            "Sadly Fearful",
            "Sadly Angry",
            "Sadly Surprised",
            "Sadly Disgusted",
            "Fearfully Angry",
            "Fearfully Surprised",
            "Angrily Surprised",
            "Angrily Disgusted",
            "Disgustedly Surprised",
        )
    ),
}


@dataclass(frozen=True)
class RegionRule:
    """Two centres of an AU: each the mean of some landmarks, moved down the face by `down` inner-ocular distances."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    down: float = 0.0

    @property
    def is_midline(self) -> bool:
        """A mirrored face keeps the order of midline centres and swaps the order of the others."""
        return set(self.first) == {LANDMARK_MIRROR[i] for i in self.first}


LANDMARK_MIRROR: tuple[int, ...] = (
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *(27, 28, 29, 30, 35, 34, 33, 32, 31),  # nose
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),  # outer lip
    *(64, 63, 62, 61, 60, 67, 66, 65),  # inner lip
)
"""Where each landmark goes when the image is flipped left to right."""


LEFT_INNER_EYE, RIGHT_INNER_EYE = 39, 42


LEFT_OUTER_EYE, RIGHT_OUTER_EYE = 36, 45


_EYES = (tuple(range(36, 42)), tuple(range(42, 48)))


REGION_RULES: dict[str, RegionRule] = {
    "AU1": RegionRule((21,), (22,), -1 / 2),
    "AU2": RegionRule((18,), (25,), -1 / 3),
    "AU4": RegionRule((19,), (24,), 1 / 3),
    "AU5": RegionRule((37, 38), (43, 44)),
    "AU6": RegionRule((41,), (46,), 1.0),
    "AU7": RegionRule(*_EYES),
    "AU8": RegionRule((51,), (57,)),
    "AU9": RegionRule((31,), (35,), -1 / 2),
    "AU10": RegionRule((50,), (52,)),
    "AU11": RegionRule((31, 48), (35, 54)),
    "AU12": RegionRule((48,), (54,)),
    "AU14": RegionRule((48,), (54,)),
    "AU15": RegionRule((48,), (54,)),
    "AU16": RegionRule((58,), (56,)),
    "AU17": RegionRule((58,), (56,), 1 / 2),
    "AU18": RegionRule((51,), (57,)),
    "AU19": RegionRule((62,), (66,)),
    "AU20": RegionRule((48,), (54,)),
    "AU22": RegionRule((51,), (57,)),
    "AU23": RegionRule((51,), (57,)),
    "AU24": RegionRule((51,), (57,)),
    "AU25": RegionRule((51,), (57,)),
    "AU26": RegionRule((58,), (56,), 1 / 2),
    "AU27": RegionRule((58,), (56,), 1 / 2),
    "AU28": RegionRule((51,), (57,)),
    "AU43": RegionRule(*_EYES),
}
"""AU21 (neck tightener) lies outside an aligned face and has no rule."""


_HALF_FACE: dict[int, tuple[float, float]] = {
    # The image's left half and the midline, as fractions of the aligned crop. Proportions of an average adult in a crop
    # 200 mm wide: 63 mm between the pupils, 32 mm between the inner corners of the eyes, 110 mm from pupil to chin.
    **{0: (0.150, 0.385), 1: (0.156, 0.470), 2: (0.168, 0.555), 3: (0.187, 0.640), 4: (0.220, 0.722)},
    **{5: (0.272, 0.797), 6: (0.338, 0.861), 7: (0.414, 0.907), 8: (0.500, 0.922)},
    **{17: (0.210, 0.310), 18: (0.250, 0.277), 19: (0.302, 0.266), 20: (0.356, 0.272), 21: (0.408, 0.288)},
    **{27: (0.500, 0.375), 28: (0.500, 0.430), 29: (0.500, 0.486), 30: (0.500, 0.542)},
    **{31: (0.432, 0.580), 32: (0.465, 0.592), 33: (0.500, 0.600)},
    **{36: (0.265, 0.384), 37: (0.308, 0.362), 38: (0.366, 0.363), 39: (0.420, 0.390), 40: (0.369, 0.402)},
    **{41: (0.309, 0.403)},
    **{48: (0.372, 0.722), 49: (0.420, 0.696), 50: (0.468, 0.682), 51: (0.500, 0.688)},
    **{57: (0.500, 0.780), 58: (0.466, 0.776), 59: (0.420, 0.757)},
    **{60: (0.392, 0.721), 61: (0.466, 0.716), 62: (0.500, 0.719), 66: (0.500, 0.733), 67: (0.466, 0.730)},
}


def _canonical_face() -> tuple[tuple[float, float], ...]:
    points = dict(_HALF_FACE)
    for index, (x, y) in _HALF_FACE.items():
        points[LANDMARK_MIRROR[index]] = (1.0 - x, y)
    return tuple(points[index] for index in range(68))


CANONICAL_FACE: tuple[tuple[float, float], ...] = _canonical_face()
"""The mean face that every aligned crop is brought to: 68 points as fractions of the crop's width and height."""


def resolve_label_set(name: str) -> LabelSet:
    if name not in LABEL_SETS:
        raise ValueError(f"label_set: got {name!r}, expected one of {sorted(LABEL_SETS)}")
    return LABEL_SETS[name]


def check_action_units(names: list[str] | tuple[str, ...], *, need_region: bool = False) -> tuple[str, ...]:
    """Returns the names as a tuple; an unknown or repeated AU, or one without a region rule, is an error."""
    unknown = [name for name in names if name not in ACTION_UNITS]
    if unknown:
        raise ValueError(f"action_units: got {unknown}, expected names among {list(ACTION_UNITS)}")
    if len(set(names)) != len(names):
        raise ValueError(f"action_units: got {list(names)}, in which a name stands twice; expected each once")
    without = [name for name in names if name not in REGION_RULES] if need_region else []
    if without:
        raise ValueError(
            f"action_units: {without} have no region rule, so the AU branch cannot look at them; expected names among "
            f"{list(REGION_RULES)}. Leave them out, or switch the AU branch off (use_au_branch=False)"
        )
    return tuple(names)


LABEL_ARGUMENTS = ("label_set", "action_units", "emotions", "id2label", "label2id", "num_labels", "problem_type")
"""By which a caller of `from_pretrained` chooses labels: our own fields and those of transformers."""


def fields_of_label_names(given: dict, num_labels: int | None, saved: dict) -> dict:
    """The label fields that transformers' `id2label`, `label2id` or `num_labels` ask for; they leave `given`.

    Names that all are action units ask for independent labels, others for one of several classes.
    """
    id2label, label2id = given.pop("id2label", None), given.pop("label2id", None)
    problem = given.pop("problem_type", None)
    if id2label is None and label2id is not None:
        id2label = {index: name for name, index in label2id.items()}
    if id2label is None:
        if num_labels is None:
            return {}
        counts = {len(saved.get(name) or ()) for name in ("emotions", "action_units")}
        if num_labels not in counts:
            raise ValueError(
                f"num_labels: got {num_labels}, but the checkpoint has {sorted(counts)} labels; name the new ones: "
                "id2label={0: 'first', ...}, or emotions=[...], or action_units=[...]"
            )
        return {}
    places = sorted(int(place) for place in id2label)
    if places != list(range(len(places))) or num_labels not in (None, len(places)):
        raise ValueError(
            f"id2label: got {id2label}, expected a name for each of 0 to {(num_labels or len(places)) - 1}"
        )
    names = [name for _, name in sorted(id2label.items(), key=lambda item: int(item[0]))]
    units = all(name in ACTION_UNITS for name in names)
    if problem == "regression" or (problem == "multi_label_classification" and not units):
        raise ValueError(
            f"problem_type: got {problem!r} with id2label {names}, expected 'single_label_classification', or "
            "independent labels that are action units, such as 'AU12'"
        )
    field = "action_units" if units and problem != "single_label_classification" else "emotions"
    target = "action_units" if field == "action_units" else "emotion"
    same = list(saved.get(field) or ()) == names
    unlearned = {} if same or field == "emotions" else {"au_thresholds": None, "au_class_weights": None}
    return {field: names, "classification_target": target, **unlearned}


# configuration_mf2/hub.py


ENTRY_MODULE = "mf2_hub_code"


ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2")


AUTO_CLASSES: dict[str, str | dict[str, str]] = {
    "AutoConfig": "MF2Config",
    "AutoImageProcessor": {"torchvision": "MF2ImageProcessor", "pil": "MF2ImageProcessorPil"},
    "AutoProcessor": "MF2Processor",
    "AutoModel": "MF2Model",
    "AutoModelForPreTraining": "MF2ForPreTraining",
    "AutoModelForImageClassification": "MF2ForImageClassification",
    "AutoModelForImageTextToText": "MF2ForCaptioning",
    "AutoModelForZeroShotImageClassification": "MF2ForZeroShotImageClassification",
}


# Task -> its class, and the Auto class that loads the model for it.
PIPELINES: dict[str, tuple[str, str]] = {
    "face-analysis": ("MF2FaceAnalysisPipeline", "AutoModelForPreTraining"),
    "image-classification": ("MF2ImageClassificationPipeline", "AutoModelForPreTraining"),
    "image-text-to-text": ("MF2ImageToTextPipeline", "AutoModelForImageTextToText"),
    "image-to-text": ("MF2ImageToTextPipeline", "AutoModelForImageTextToText"),
    "zero-shot-image-classification": ("MF2ZeroShotImageClassificationPipeline", "AutoModel"),
}


# The compared systems: the file that brings config and models, the config, the model, and the one to pre-train.
BASELINES: dict[str, tuple[str, str, str, str]] = {
    "vl_fau": ("baselines_vl_fau", "VLFAUConfig", "VLFAUForFaceAnalysis", "VLFAUForFaceAnalysis"),
    "me_graph_au": ("baselines_me_graph_au", "MEGraphAUConfig", "MEGraphAUForFaceAnalysis", "MEGraphAUForFaceAnalysis"),
    "hsemotion": ("baselines_hsemotion", "HSEmotionConfig", "HSEmotionForFaceAnalysis", "HSEmotionForFaceAnalysis"),
    "exp_blip": ("baselines_exp_blip", "ExpBlipConfig", "ExpBlipForFaceAnalysis", "ExpBlipForPreTraining"),
    "exp_blip_captioner": (
        "baselines_exp_blip",
        "ExpBlipCaptionerConfig",
        "ExpBlipTowerCaptioner",
        "ExpBlipTowerCaptioner",
    ),
}


def auto_map(*auto_classes: str, system: str = "mf2") -> dict[str, str | dict[str, str]]:
    if system == "mf2":
        return {name: _in_entry_module(AUTO_CLASSES[name]) for name in auto_classes or AUTO_CLASSES}
    module, config, model, pretraining = BASELINES[system]
    classes = {"AutoConfig": config, "AutoModelForPreTraining": pretraining}
    return {name: f"{module}.{classes.get(name, model)}" for name in auto_classes}


def _in_entry_module(classes: str | dict[str, str]) -> str | dict[str, str]:
    if isinstance(classes, dict):  # a class for each backend
        return {backend: f"{ENTRY_MODULE}.{name}" for backend, name in classes.items()}
    return f"{ENTRY_MODULE}.{classes}"


def custom_pipelines() -> dict[str, dict[str, Any]]:
    return {
        task: {"impl": f"{ENTRY_MODULE}.{name}", "pt": [auto_class], "type": "image"}
        for task, (name, auto_class) in PIPELINES.items()
    }


def flat_code(system: str = "mf2") -> dict[str, str]:
    """The code of a self-contained checkpoint: file name -> text."""
    folder = Path(__file__).parent
    if folder.name in ROOMS:
        return importlib.import_module("configuration_mf2.flatten").flat_code(system)
    files = [file for file in sorted(folder.glob("*.py")) if file.stem != "__init__"]
    return {file.name: file.read_text(encoding="utf-8") for file in files}  # a checkpoint's own code, as it is


def write_code(folder: str | os.PathLike, system: str = "mf2") -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in flat_code(system=system).items():
        target = folder / name
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        temporary = target.with_suffix(".py.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)


def _broken_connection(error: BaseException | None) -> HTTPError | None:
    """What an error of transformers comes from, if that is a connection and not an answer of the Hub."""
    while error is not None and not isinstance(error, HTTPError):
        error = error.__cause__ or error.__context__
    return None if isinstance(error, OSError) else error  # huggingface_hub's own errors are both


_PUSH_ARGUMENTS = {
    *("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags"),
}


_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


def _withheld(source: Any, error: Exception, settings: dict[str, Any]) -> str | None:
    """transformers takes a file that the Hub does not hand out for one that is not there. Asked again, the Hub says
    why; None where the file is not there indeed."""
    if "does not appear to have a file named" not in str(error) or settings.get("local_files_only"):
        return None
    adapter = settings.get("adapter_kwargs") or {}  # an Auto class has read its base already
    for name in _WEIGHTS:
        if name.startswith("adapter") and "_adapter_model_path" in adapter:
            source, settings = adapter["_adapter_model_path"], {**settings, "revision": None, **adapter}
        where = {key: settings[key] for key in ("revision", "token", "cache_dir") if settings.get(key) is not None}
        try:
            hf_hub_download(str(source), name, **where)
        except RemoteEntryNotFoundError:
            continue
        except (HfHubHTTPError, HTTPError, LocalEntryNotFoundError) as why:
            answer = why if isinstance(why, HfHubHTTPError) or why.__cause__ is None else why.__cause__
            status = getattr(getattr(answer, "response", None), "status_code", None)
            reason = str(answer).strip().partition("\n")[0]
            if status in (401, 403):
                return (
                    f"{source}: access to {name} was refused ({reason}); expected a token that may read it: ask its "
                    "owners for access, then pass token=... or log in with `hf auth login`"
                )
            return f"{source}: {name} could not be downloaded ({reason}); nothing broken is kept: call again"
    return None


class SelfContainedMixin:
    """First base of every class with a `save_pretrained`; `hub_auto_classes` are those that its own file answers to."""

    hub_auto_classes: ClassVar[tuple[str, ...]] = ()
    hub_system: ClassVar[str] = "mf2"

    @classmethod
    def register_for_auto_class(cls, auto_class: str | None = None) -> None:
        """Nothing to do. transformers calls this on every class that it loads from a checkpoint's code, and would then
        write an `auto_map` of its own, past the entry module."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        source = pretrained_model_name_or_path
        try:
            return super().from_pretrained(source, *args, **kwargs)
        except (HTTPError, OSError) as error:
            broken = _broken_connection(error)
            if broken is None:
                withheld = _withheld(source, error, kwargs)
                if withheld is None:
                    raise
                raise OSError(withheld) from error
            raise OSError(
                f"{source}: the connection to the Hub broke off ({broken}). What was complete is kept, nothing else: "
                "call again to go on, or pass local_files_only=True if you have downloaded it before"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        content.pop("auto_map", None)
        content.pop("custom_pipelines", None)
        if self.hub_auto_classes:
            content["auto_map"] = auto_map(*self.hub_auto_classes, system=self.hub_system)
        if "AutoConfig" in self.hub_auto_classes and self.hub_system == "mf2":
            content["custom_pipelines"] = custom_pipelines()
        return content

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> Any:
        hub = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS & set(kwargs)} if push_to_hub else {}
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        write_code(save_directory, self.hub_system)
        if push_to_hub:  # which saves once more, and uploads the code too
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)
        return saved


# configuration_mf2/json_files.py


def parse_json(text: str | bytes, name: object) -> Any:
    """name: the file, and where in it the text stands. Python itself names neither, and ends with another error at
    nesting that is too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).partition(";")[0]  # of a number that is too long: a setting of Python
        raise ValueError(f"{name}: got {reason}, expected JSON; copy the file again or remove it") from error


def read_json(file: str | os.PathLike) -> Any:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: got {error}, expected JSON in UTF-8; copy the file again or remove it") from error
    return parse_json(text, file)


# configuration_mf2/version.py


VERSION = "0.2.0"


FIELD = "mf2_version"


class NewerCheckpointWarning(UserWarning):
    """A checkpoint was written by a newer major version of this code than the one that reads it."""


def check_version(saved: str | None, source: str) -> None:
    """A newer major may mean by a field what this code does not: said, not refused, since it may well load."""
    if saved is None:
        return
    major = str(saved).partition(".")[0]
    if major.isdigit() and int(major) <= int(VERSION.partition(".")[0]):
        return
    warnings.warn(
        f"{source}: written by version {saved} of MF², this is {VERSION}; expected major version "
        f"{VERSION.partition('.')[0]} or older. Update the package, or load the checkpoint with the code that it "
        "carries (trust_remote_code=True); until then its answers may differ from what it was trained to give",
        NewerCheckpointWarning,
        stacklevel=2,
    )


# configuration_mf2/base.py


class UnknownFieldWarning(UserWarning):
    """A config.json has a field that its class does not know."""


# What transformers itself may hand to a config besides its fields; its Trainer writes a tokenizer's ids.
_TRANSFORMERS_FIELDS = {
    *("bos_token_id", "eos_token_id", "pad_token_id"),
    *("_attn_implementation", "_attn_implementation_internal", "_commit_hash", "_experts_implementation_internal"),
    *("_name_or_path", "attn_implementation", "auto_map", "custom_pipelines", "experts_implementation", "model_type"),
    *(
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "torch_dtype",
        "use_cache",
    ),
}


# Where a configuration is being read from; None while a caller builds one.
_READING: ContextVar[str | None] = ContextVar("reading", default=None)


def check_field_names(kind: type, names: Iterable[str]) -> None:
    """A caller's misspelt field would have no effect; one that belongs to a part neither."""
    fields = {field.name for field in dataclasses.fields(kind)}
    for name in sorted(set(names) - fields - _TRANSFORMERS_FIELDS):
        near = difflib.get_close_matches(name, fields, n=1)
        parts = [part for part, of in kind.sub_configs.items() if name in of.__dataclass_fields__]
        if near or parts:
            hint = f"did you mean {near[0]!r}? " if near else f"it is a field of {' and '.join(parts)}. "
            raise ValueError(f"{kind.__name__}: got an unknown field {name!r}; {hint}Valid fields: {sorted(fields)}")


_DTYPES = ("float32", "float16", "bfloat16", "float64")


def _explained(kind: type, content: dict[str, Any], error: BaseException) -> str:
    """What is wrong with the content of a config.json: field, got, expected."""
    for part, of in kind.sub_configs.items():
        if isinstance(content.get(part), dict) and isinstance(error, StrictDataclassError):
            try:
                of(**content[part])
            except StrictDataclassError as inner:
                return f"{part}.{_sentence(inner)}"
    return _sentence(error)


def _check_dtype(dtype: Any) -> None:
    """Of a file; transformers takes any other value for an attribute of torch."""
    is_name = isinstance(dtype, str) and dtype.removeprefix("torch.") in _DTYPES
    if isinstance(dtype, bool | int | float | str | list | dict) and not is_name:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {list(_DTYPES)}, or null")


def _sentence(error: BaseException) -> str:
    if not isinstance(error, StrictDataclassError):
        return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    cause = error.__cause__ or error
    if not isinstance(error, StrictDataclassFieldValidationError):
        return str(cause)
    return re.sub(r"^Field '(\w+)' (with value )?", r"\1: ", " ".join(str(cause).split()))


class KnownFieldsMixin:
    """Fields of configurations: a misspelt one is an error, a loaded one that is not known is kept with a warning, and
    what is wrong in a config.json is a `ValueError` that names it. Files carry the code's version."""

    # Largest value of a field: a damaged config.json must not build a model that fills the memory.
    bounds: ClassVar[dict[str, int]] = {}

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop(FIELD, None)
        for name in ("image_mean", "image_std"):
            if isinstance(level := getattr(self, name, None), float):
                setattr(self, name, [level] * 3)
        source = _READING.get()
        if source is None:
            check_field_names(type(self), kwargs)
        else:
            known = {field.name for field in dataclasses.fields(self)} | _TRANSFORMERS_FIELDS
            unknown = sorted(set(kwargs) - known)
            taken = [name for name in unknown if hasattr(type(self), name)]
            for name in taken:
                kwargs.pop(name)
            if unknown:
                dropped = f", but {taken} are dropped: the class uses these names" if taken else ""
                warnings.warn(
                    f"{source}: config.json has fields that {type(self).__name__} does not know: {unknown}; they are "
                    f"kept and have no effect{dropped}",
                    UnknownFieldWarning,
                    stacklevel=2,
                )
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        reading = _READING.set(str(pretrained_model_name_or_path))
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        finally:
            _READING.reset(reading)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        try:
            content, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
            if not isinstance(content, dict):
                raise TypeError(f"got {content!r}")
        except (TypeError, AttributeError, ValueError, RecursionError) as error:  # not an object, or too long or deep
            raise ValueError(
                f"{pretrained_model_name_or_path}: config.json cannot be read ({error}); expected one JSON object, as "
                "save_pretrained writes it"
            ) from error
        if not content:  # as transformers answers for a missing file; a model of default size would be built
            raise FileNotFoundError(
                f"{pretrained_model_name_or_path}: config.json is missing or empty; expected a folder, or a name on "
                "the Hub, of a model as save_pretrained writes it"
            )
        check_version(content.pop(FIELD, None), str(pretrained_model_name_or_path))
        model_type = content.get("model_type", cls.model_type)
        if model_type != cls.model_type and not cls.base_config_key:
            raise ValueError(
                f"{pretrained_model_name_or_path}: is a checkpoint of {model_type!r}, expected one of "
                f"{cls.model_type!r}; load it with its own class (AutoModel.from_pretrained finds it), or name another"
            )
        return content, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # AutoConfig reads the file itself, and hands over its name.
        source = _READING.get() or str(kwargs.get("name_or_path", cls.__name__))
        check_version(config_dict.get(FIELD), source)
        reading = _READING.set(source)
        try:
            _check_dtype(config_dict.get("dtype"))
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, TypeError, AttributeError, KeyError, ValueError) as error:
            reason = _explained(cls, config_dict, error)
            raise ValueError(f"{source}: config.json of {cls.model_type!r} cannot be used: {reason}") from error
        finally:
            _READING.reset(reading)

    def to_json_string(self, use_diff: bool = True) -> str:
        content = json.loads(super().to_json_string(use_diff))
        return json.dumps({**content, FIELD: VERSION}, indent=2, sort_keys=True) + "\n"

    def validate_bounds(self) -> None:
        for field, most in self.bounds.items():
            value = getattr(self, field)
            if value is not None and not value <= most:
                raise ValueError(f"{field}: got {value}, expected at most {most}")


def check_backbone_kwargs(arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        most = 1000 if name in ("depth", "num_blocks") else 100_000
        if isinstance(value, int) and value > most:
            raise ValueError(f"backbone_kwargs[{name!r}]: got {value}, expected at most {most}")


def check_normalisation(config: Any) -> None:
    for field, least in (("image_mean", -math.inf), ("image_std", 0)):
        values = getattr(config, field)
        if len(values) != 3 or not all(least < value < math.inf for value in values):
            raise ValueError(f"{field}: got {values}, expected three finite numbers{' above 0' if least == 0 else ''}")


# What a checkpoint's fields are derived from; a new label set brings new ones.
_LABEL_FIELDS = ("action_units", "emotions", "au_class_weights", "au_thresholds", "classification_target")


@strict
class FaceConfig(KnownFieldsMixin, SelfContainedMixin, PreTrainedConfig):
    r"""
    label_set (`str`): a name in `facs.LABEL_SETS`; `action_units` and `emotions` follow from it unless given.
    loss_weights (`dict`): the weight of each loss; a name left out has weight 1.
    au_class_weights (`list`): a factor for each AU's classification loss, against imbalance (VL-FAU, equation 8).
    au_thresholds (`list`): one for each AU, tuned on validation data; 0.5 unless given.
    """

    losses: ClassVar[tuple[str, ...]] = ("au", "emotion")
    sizes: ClassVar[dict[str, dict[str, Any]]] = {}
    # Field of an older file -> its name.
    renamed: ClassVar[dict[str, str]] = {}

    label_set: str = "mfa"
    action_units: list[str] | tuple[str, ...] | None = None
    emotions: list[str] | tuple[str, ...] | None = None
    loss_weights: dict[str, float | int] = dataclasses.field(default_factory=dict)
    au_class_weights: list[float] | tuple[float, ...] | None = None
    au_thresholds: list[float] | tuple[float, ...] | None = None

    def resolve_labels(self) -> None:
        labels = resolve_label_set(self.label_set)
        self.action_units = list(labels.action_units if self.action_units is None else self.action_units)
        self.emotions = list(labels.emotions if self.emotions is None else self.emotions)

    def name_outputs(self, names: list[str]) -> None:
        self.id2label = dict(enumerate(names))
        self.label2id = {name: index for index, name in enumerate(names)}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Fields given to `from_pretrained` replace saved ones before anything is derived from them."""
        config_dict = {cls.renamed.get(name, name): value for name, value in config_dict.items()}
        fields = {field.name for field in dataclasses.fields(cls)}
        given = {name: kwargs.pop(name) for name in (fields - {"dtype"}) & set(kwargs)}
        given |= fields_of_label_names(given, kwargs.pop("num_labels", None), config_dict)
        if "classification_target" not in fields:  # there are heads for both
            given.pop("classification_target", None)
        dropped = _LABEL_FIELDS if "label_set" in given else ()
        saved = {name: value for name, value in config_dict.items() if name not in dropped}
        for name in set(cls.sub_configs) & set(given):
            if isinstance(given[name], dict):
                check_field_names(cls.sub_configs[name], given[name])
                given[name] = {**saved.get(name, {}), **given[name]}
        return super().from_dict({**saved, **given}, **kwargs)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> Any:
        """`tiny` trains on two CPU cores, `small` in a night; `base` is the everyday or published size, `giant`
        the paper's. An override of a sub-config is a dict and changes only the fields that it names."""
        if size not in cls.sizes:
            raise ValueError(f"size: got {size!r}, expected one of {list(cls.sizes)}")
        fields = copy.deepcopy(cls.sizes[size])
        for name, value in overrides.items():
            fields[name] = {**fields[name], **value} if name in cls.sub_configs and name in fields else value
        return cls(**fields)

    @property
    def thresholds(self) -> list[float]:
        return list(self.au_thresholds) if self.au_thresholds is not None else [0.5] * len(self.action_units)

    def validate_labels(self) -> None:
        check_action_units(self.action_units)
        if len(set(self.emotions)) != len(self.emotions) or len(self.emotions) == 1:
            raise ValueError(f"emotions: got {self.emotions}, expected none, or at least two, each once")

    def validate_label_lists(self) -> None:
        for field, most in (("au_class_weights", math.inf), ("au_thresholds", 1)):
            values = getattr(self, field)
            if values is not None and len(values) != len(self.action_units):
                raise ValueError(
                    f"{field}: got {len(values)} values, expected {len(self.action_units)}, one for each of "
                    f"{self.action_units}"
                )
            check_numbers(field, values or (), most)

    def validate_loss_weights(self) -> None:
        check_numbers("loss_weights", self.loss_weights.values(), math.inf)
        if unknown := sorted(set(self.loss_weights) - set(self.losses)):
            raise ValueError(f"loss_weights: got {unknown}, expected names among {list(self.losses)}")


def check_numbers(field: str, values: Iterable[float], most: float) -> None:
    wrong = [value for value in values if not (0 <= value <= most and math.isfinite(value))]
    if wrong:
        raise ValueError(f"{field}: got {wrong[0]}, expected finite numbers from 0 to {most}")


def check_least(config: Any, least: dict[str, int]) -> None:
    for field, low in least.items():
        if getattr(config, field) < low:
            raise ValueError(f"{field}: got {getattr(config, field)}, expected at least {low}")


def check_tokenizer_size(tokenizer: Any, size: int, where: str = "") -> None:
    if len(tokenizer) > size:
        raise ValueError(
            f"vocab_size: the tokenizer has {len(tokenizer)} tokens, the model {size}; build the config with "
            f"vocab_size={len(tokenizer)}{where}"
        )


# configuration_mf2/configuration_mf2.py


# Those of transformers that BERT-type models are trained with; the table itself needs torch.
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")


@strict
class MF2VisionConfig(KnownFieldsMixin, SelfContainedMixin, PreTrainedConfig):
    r"""
    backbone (`str`): a timm model name, or `"conv"` for the small convolutional tower that two CPU cores can train.
    backbone_kwargs (`dict`): handed to `timm.create_model`, or to the convolutional tower.
    patch_size (`int`): pixels a side that one patch token stands for.
    num_prefix_tokens (`int`): class and register tokens that stand before the patch tokens.
    do_grayscale (`bool`), normalize_per_image (`bool`), alignment (`str`): how the processor prepares images; see
        [`MF2ImageProcessor`].
    label_taught (`bool`): whether the tower was trained with labels of action units and emotions.
    frozen (`bool`): no gradient enters the tower and it stays in evaluation mode.
    """

    model_type = "mf2_vision"
    base_config_key = "vision_config"

    backbone: str = "vit_base_patch16_224"
    backbone_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 768
    num_prefix_tokens: int = 1
    image_mean: float | list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: float | list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    do_grayscale: bool = False
    normalize_per_image: bool = False
    alignment: Literal["steady", "five_points"] = "steady"
    label_taught: bool = False
    frozen: bool = True

    bounds = {"image_size": 4096, "patch_size": 4096, "hidden_size": 16384, "num_prefix_tokens": 1024}

    def validate_backbone_kwargs(self) -> None:
        check_backbone_kwargs(self.backbone_kwargs)

    def validate_normalisation(self) -> None:
        check_normalisation(self)

    def validate_grid(self) -> None:
        if self.patch_size < 1 or self.image_size < 1 or self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: got {self.image_size}, expected a multiple of patch_size ({self.patch_size}), so that "
                "the patch tokens form a whole grid"
            )

    @property
    def grid_size(self) -> int:
        return self.image_size // self.patch_size


@strict
class MF2QFormerConfig(KnownFieldsMixin, SelfContainedMixin, PreTrainedConfig):
    r"""
    Defaults are BLIP-2's: BERT-base with cross-attention in every second block and 32 queries.

    encoder_hidden_size (`int`): width of the image tokens; the composed [`MF2Config`] sets it from its vision tower.
    projection_dim (`int`): width of the space in which images and sentences are compared.
    bos_token_id (`int`): `[DEC]`, which starts a sentence to be written; a sentence to be read starts with `[CLS]`.
    """

    model_type = "mf2_qformer"
    base_config_key = "emo_config"  # of a whole model this is Emo-VL's; AU-VL's is `MF2Config.au_config`

    vocab_size: int = 30523  # bert-base-uncased and [DEC]
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    cross_attention_frequency: int = 2
    encoder_hidden_size: int = 768
    num_query_tokens: int = 32
    projection_dim: int = 256
    pad_token_id: int = 0
    bos_token_id: int = 30522
    eos_token_id: int = 102

    bounds = {
        **{"vocab_size": 1_000_000, "hidden_size": 16384, "num_hidden_layers": 256, "num_attention_heads": 1024},
        **{"intermediate_size": 65536, "max_position_embeddings": 65536, "encoder_hidden_size": 16384},
        **{"num_query_tokens": 4096, "projection_dim": 16384},
    }

    def validate_counts(self) -> None:
        if not 0 <= self.layer_norm_eps < 1:
            raise ValueError(f"layer_norm_eps: got {self.layer_norm_eps}, expected 0 or more, less than 1")
        counts = ("num_query_tokens", "num_hidden_layers", "num_attention_heads", "cross_attention_frequency")
        check_least(self, dict.fromkeys(counts, 1))

    def validate_dropout_and_activation(self) -> None:
        for field in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected 0 or more, less than 1")
        if self.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"hidden_act: got {self.hidden_act!r}, expected one of {list(_ACTIVATIONS)}")

    def validate_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: got {self.hidden_size}, expected a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )


LOSSES = (
    *("itc_emo", "itm_emo", "itg_emo", "itg_key_au"),
    *("itc_au", "itm_au", "itg_au"),
    *("au", "emotion", "side", "intensity", "shape"),
)


_TINY_QFORMER = {
    **{"vocab_size": 2048, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"intermediate_size": 512, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    **{"max_position_embeddings": 192, "projection_dim": 64, "num_query_tokens": 8, "bos_token_id": 5},
    **{"eos_token_id": 3, "initializer_range": 0.05},  # a narrow net's signals die out at BERT's 0.02
}


_SMALL_QFORMER = {
    **_TINY_QFORMER,
    **{"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024},
    **{"projection_dim": 128, "initializer_range": 0.03},
}


# Grey, aligned on what expressions move least, by its own mean and deviation: then renders teach about photographs.
_CONV_TOWER = {
    **{"backbone": "conv", "patch_size": 8, "num_prefix_tokens": 0},
    **{"do_grayscale": True, "normalize_per_image": True, "alignment": "five_points"},
}


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision_config": {
            **{**_CONV_TOWER, "image_size": 112, "hidden_size": 128, "backbone_kwargs": {"in_channels": 1}},
        },
        "emo_config": _TINY_QFORMER,
        "au_config": {**_TINY_QFORMER, "num_query_tokens": 4},
        **{"emo_pair_share": 0.25, "au_pair_share": 0.0625, "initializer_range": 0.05},
        **{"au_only_loss_weight": 0.5, "geometry_token": True, "shape_weight": 2},
    },
    # The same, wider and deeper: 29 million parameters, for a GPU or a night.
    "small": {
        "vision_config": {
            **{**_CONV_TOWER, "image_size": 160, "hidden_size": 320},
            "backbone_kwargs": {"in_channels": 1, "num_blocks": 6},
        },
        "emo_config": _SMALL_QFORMER,
        "au_config": {**_SMALL_QFORMER, "num_query_tokens": 4},
        **{"emo_pair_share": 0.25, "au_pair_share": 0.0625, "initializer_range": 0.03},
        **{"au_only_loss_weight": 0.5, "geometry_token": True, "shape_weight": 2},
    },
    # Four queries an AU, not the paper's 32, which alone cost as much as the tower: see the curve of inference.py.
    "base": {
        "vision_config": {},
        "emo_config": {},
        "au_config": {"num_query_tokens": 4},
        "au_only_loss_weight": 0.5,
    },
    # BLIP-2's EVA ViT-g/14, the paper's size: without its last block, and its final norm is BLIP-2's `ln_vision`.
    "giant": {
        "vision_config": {
            "backbone": "eva_giant_patch14_224",
            "backbone_kwargs": {"depth": 39},
            **{"image_size": 224, "patch_size": 14, "hidden_size": 1408, "num_prefix_tokens": 1},
            **{"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD},
        },
        "emo_config": {},
        "au_config": {},
        "au_only_loss_weight": 0.5,
    },
}


@strict
class MF2Config(FaceConfig):
    r"""
    use_emo_branch, use_au_branch (`bool`): Emo-VL and AU-VL; at least one (the paper's Table IV leaves out either).
    region_grid (`int`): an AU's centre is read on a square grid of this many points a side; every AU has two centres.
    region_window (`float`): side of that grid, in inner-ocular distances.
    initial_temperature (`float`): of the contrastive loss (the paper's Table VI); learned from there.
    emo_pair_share, au_pair_share (`float`): share of a batch's pairs, drawn anew each step, that ITM and ITG take while
        training; ITC takes all.
    sides (`bool`): also whether each AU is active on the person's left and right side.
    intensities (`bool`): also how strong each AU is, from 0 to 5, by the one score that decides whether it is active.
    geometry_token (`bool`): each branch also reads a token made of the aligned inner landmarks.
    shape_weight (`float`): weight, beside 1 of what the branches see, of what the aligned inner landmarks alone say of
        AUs and emotions. Each learns by itself (the loss `shape`), answers are the mean. 0: there is no such head.
    contrast (`str`): what the contrastive loss takes for negatives: those of another `"meaning"` by their labels, or,
        the paper's equation 3 to the letter, of another `"wording"`.
    au_only_loss_weight (`float`): while training, the share of the label losses that is of what the AUs' states
        say alone. Without it the classifiers lean on what Emo-VL, with the whole face in view, learns by heart.
    emotion_max_length, au_max_length (`int`): tokens of an emotion caption, and of all AU sentences of an image.
    key_au_prompt_length (`int`): tokens with which every key-AU caption starts. They are asked for, not learned:
        without them Emo-VL writes an emotion caption.
    classification_target (`str`): what [`MF2ForImageClassification`] answers with: `"emotion"` where the label set has
        emotions, else `"action_units"`.
    """

    model_type = "mf2"
    losses: ClassVar[tuple[str, ...]] = LOSSES
    renamed: ClassVar[dict[str, str]] = {"units_alone_share": "au_only_loss_weight"}
    sizes: ClassVar[dict[str, dict[str, Any]]] = SIZES
    hub_auto_classes = tuple(AUTO_CLASSES)
    sub_configs_defaults = {
        "vision_config": MF2VisionConfig,
        "emo_config": MF2QFormerConfig,
        "au_config": MF2QFormerConfig,
    }

    vision_config: dict | PreTrainedConfig | None = None
    emo_config: dict | PreTrainedConfig | None = None
    au_config: dict | PreTrainedConfig | None = None
    use_emo_branch: bool = True
    use_au_branch: bool = True
    region_grid: int = 3
    region_window: float | int = 1.0
    sides: bool = False
    intensities: bool = False
    geometry_token: bool = False
    shape_weight: float | int = 0.0
    initial_temperature: float | int = 0.07
    contrast: Literal["meaning", "wording"] = "meaning"
    emo_pair_share: float | int = 1.0
    au_pair_share: float | int = 1.0
    au_only_loss_weight: float | int = 0.0
    emotion_max_length: int = 61
    au_max_length: int = 169
    key_au_prompt_length: int = 0
    classification_target: Literal["emotion", "action_units"] | None = None
    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = True

    bounds = {"region_grid": 64, "region_window": 1000}

    def __post_init__(self, **kwargs: Any) -> None:
        self.resolve_labels()
        num_labels = kwargs.pop("num_labels", None)
        if self.classification_target is None:
            self.classification_target = "emotion" if self.emotions else "action_units"
        names = self.emotions if self.classification_target == "emotion" else self.action_units
        if not names or len(self.emotions) == 1:
            raise ValueError(
                f"classification_target: got {self.classification_target!r}, but label_set {self.label_set!r} has here "
                f"action_units {self.action_units} and emotions {self.emotions}; expected at least one action unit, or "
                "two emotions, to choose from"
            )
        if num_labels not in (None, len(names)):
            raise ValueError(
                f"num_labels: got {num_labels}, expected {len(names)} as label_set {self.label_set!r} has it for "
                f"classification_target {self.classification_target!r}; leave it out"
            )
        self.name_outputs(names)
        self.problem_type = (
            "single_label_classification" if self.classification_target == "emotion" else "multi_label_classification"
        )
        super().__post_init__(**kwargs)
        for branch in (self.emo_config, self.au_config):
            branch.encoder_hidden_size = self.vision_config.hidden_size

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Takes over the ids of the tokens that start, end and pad a sentence."""
        for branch in (self.emo_config, self.au_config):
            check_tokenizer_size(tokenizer, branch.vocab_size, " in emo_config and au_config")
            branch.pad_token_id = tokenizer.pad_token_id
            branch.bos_token_id = tokenizer.bos_token_id
            branch.eos_token_id = tokenizer.sep_token_id

    @property
    def tokens_per_region(self) -> int:
        return 2 * self.region_grid**2

    @property
    def first_config(self) -> MF2QFormerConfig:
        """Of the branch whose states an output names `hidden_states`."""
        return self.emo_config if self.use_emo_branch else self.au_config

    @property
    def hidden_size(self) -> int:
        return self.first_config.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        return self.first_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        return self.first_config.num_attention_heads

    @property
    def vocab_size(self) -> int:
        return self.emo_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self.emo_config.vocab_size = self.au_config.vocab_size = size

    def validate_branches(self) -> None:
        if not (self.use_emo_branch or self.use_au_branch):
            raise ValueError("use_emo_branch, use_au_branch: got False twice, expected at least one branch")
        check_action_units(self.action_units, need_region=self.use_au_branch)
        if self.use_au_branch and not self.action_units:
            raise ValueError(
                f"use_au_branch: label_set {self.label_set!r} has no action units; name some in action_units, or "
                "switch the AU branch off (use_au_branch=False)"
            )
        if (self.sides or self.intensities) and not self.action_units:
            raise ValueError(
                f"sides, intensities: got {self.sides} and {self.intensities}, but label_set {self.label_set!r} has no "
                "action units, which they are of; expected False"
            )
        if self.emo_config.vocab_size != self.au_config.vocab_size:
            raise ValueError(
                f"au_config.vocab_size: got {self.au_config.vocab_size}, expected {self.emo_config.vocab_size} as in "
                "emo_config: both branches read the same tokenizer's ids"
            )

    def validate_regions(self) -> None:
        if self.region_grid < 1 or not self.region_window > 0:
            raise ValueError(
                f"region_grid, region_window: got {self.region_grid} and {self.region_window}, expected at least 1 "
                "point a side and a window larger than 0"
            )

    def validate_losses(self) -> None:
        for field in ("emo_pair_share", "au_pair_share"):
            if not 0 < getattr(self, field) <= 1:
                raise ValueError(f"{field}: got {getattr(self, field)}, expected a share above 0, at most 1")
        if not 0 <= self.au_only_loss_weight <= 1:
            raise ValueError(f"au_only_loss_weight: got {self.au_only_loss_weight}, expected a share from 0 to 1")
        if not 0 < self.initial_temperature < math.inf:
            raise ValueError(f"initial_temperature: got {self.initial_temperature}, expected a number above 0")

    def validate_lengths(self) -> None:
        longest = min(self.emo_config.max_position_embeddings, self.au_config.max_position_embeddings)
        for field in ("emotion_max_length", "au_max_length"):
            if not 3 <= getattr(self, field) <= longest:
                raise ValueError(
                    f"{field}: got {getattr(self, field)}, expected 3 to {longest} tokens (max_position_embeddings)"
                )
