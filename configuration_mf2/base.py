"""What the configurations of MF² and of the compared systems share: reading and checking fields, and the labels."""

import copy
import dataclasses
import difflib
import json
import math
import re
import warnings
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError, StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from .facs import check_action_units, fields_of_label_names, resolve_label_set
from .hub import SelfContainedMixin
from .version import FIELD, VERSION, check_version


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
