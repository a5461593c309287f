"""The command line of train.py: our options in groups, then transformers' own TrainingArguments."""

import argparse
import difflib
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

# TrainingArguments, which load torch, are imported where a run begins: --help is instant.
import transformers
from transformers import HfArgumentParser

from mf2face.training.tasks import MODELS, PAPER, PRESETS, TASKS, Preset, Task, tasks_of


logger = logging.getLogger(__name__)

_HUB_OR_TIMM_NAME = re.compile(r"[\w.:-]+(/[\w.-]+)?")
_WEIGHTS = re.compile(r"\.(safetensors|bin|pth?|ckpt)$")


def _option(default: Any, words: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": words, **more})


@dataclass(frozen=True)
class ModelArguments:
    _argument_group_name = "model and task"

    preset: str | None = _option(
        None,
        "settings that belong together: paper-giant and paper-base (the paper's, on one GPU of 48 GB or more), small, "
        "tiny; paper-dfn (the paper's DFN to the letter); paper-vl-fau. Options that it sets cannot be given beside "
        "it, TrainingArguments can",
        choices=tuple(PRESETS),
    )
    model: str = _option("mf2", "mf2, or a system that it is compared with", choices=MODELS)
    task: str | None = _option(
        None,
        "pretrain (mf2's default): alignment with language and classification. full (the others' default): "
        "classification, all branches trained. dfn, lora, ia3, linear_probe: classification, the model of "
        "--model_name_or_path frozen (tiny: the released one). tower: a vision tower from scratch. evaluate: only "
        "measure. exp_blip has pretrain (its stage 1), caption (stage 2), linear_probe and full",
        choices=tuple(dict.fromkeys(task for _, task in TASKS)),
    )
    model_size: str = _option("tiny", "tiny, small, base or giant; compared systems: tiny or base, hsemotion b2 too")
    model_options: list[str] = field(
        default_factory=list, metadata={"help": "NAME=VALUE of the model's config, such as use_llga=False"}
    )
    label_set: str = _option("mfa", "mfa, or a corpus's own, such as bp4d or affectnet")
    branches: Literal["both", "emo", "au"] = _option("both", "which branches mf2 has")
    model_name_or_path: str | None = _option(None, "start from this checkpoint")
    vision_name_or_path: str | None = _option(
        None,
        "pretrained tower: a timm name, a file, or a checkpoint's folder; without one the tiny size takes the released "
        "tower, unless this is none",
    )
    text_name_or_path: str | None = _option(None, "BERT, into all Q-Formers, and its tokenizer")
    qformer_name_or_path: str | None = _option(None, "BLIP-2, into all Q-Formers, and its tokenizer")
    tokenizer_name_or_path: str | None = _option(
        None, "BERT's tokenizer, where none lies beside those weights (default: bert-base-uncased)"
    )
    tower_dtype: Literal["float32", "bfloat16", "float16"] = _option(
        "float32", "precision of a frozen tower while training; it is saved in float32"
    )
    save_half: bool = _option(False, "save 16-bit weights, and measure them")


@dataclass(frozen=True)
class DataArguments:
    _argument_group_name = "data"

    dataset: str = _option(
        "synthetic",
        "synthetic (rendered faces); MFA's folder or name on the Hub; own:FOLDER, your pictures with a "
        "labels.csv, or in a folder an emotion; several of these as a+b",
    )
    divide_splits: bool = _option(
        True,
        "where a data set has no test split, half of its validation people are the test, and without validation a "
        "tenth of its training people; if False, the epoch is chosen on the reported images, and the card says so",
    )
    folds: int | None = _option(
        None, "cross-validation by people: a run a fold, scores averaged; 3 are DISFA's and BP4D's own folds"
    )
    fold: int | None = _option(None, "only this one of --folds, from 1")
    streaming: bool = _option(False, "read rows as they come, shuffled in a buffer; needs --max_steps")
    num_images: int = _option(9000, "synthetic: how many faces are drawn")
    style: str = _option(
        "studio",
        "synthetic: studio, street, webcam (rendered in 3D) or drawn (quick, for tests); studio+street: both, half of "
        "the images each",
    )
    # Not 0: design choices were made while looking at those people.
    people_seed: int = _option(1, "synthetic: which people are drawn")
    landmarks: Literal["dataset", "detector", "template"] = _option(
        "dataset", "detector: as MediaPipe finds them, so as on photographs; template: the mean face's for all faces"
    )
    augment: Literal["none", "light", "heavy"] | None = _option(
        None,
        "light: crop, rotate, flip, recolour and hide parts of the training crops. heavy: also grey, gamma, uneven "
        "light, blur and noise (tower's default)",
    )
    balance: bool = _option(False, "show training images of rarer emotions more often, up to eight times")
    views: int = _option(
        1, "fixed forms of each training image: itself and slightly turned, moved, mirrored ones; they can be stored"
    )
    use_captions: bool = _option(True, "without, the alignment losses are off")
    captions_by_rule: bool | None = _option(
        None, "compared systems: write missing captions from the labels (default for synthetic faces), else an error"
    )


@dataclass(frozen=True)
class AdapterArguments:
    _argument_group_name = "adapters: dfn, lora, ia3"

    adapter_options: list[str] = field(
        default_factory=list, metadata={"help": "NAME=VALUE of the method's own config, such as bottleneck=128 or r=8"}
    )
    dfn_states: Literal["all", "compact"] | None = _option(
        None,
        "dfn: which states it reads, and stores. all: every token of a region, 49 of the face, at 7 layers. compact: "
        "means at 3 layers, at giant 0.79 MB an image in place of 5.98 (default where the tower is wider than 1024)",
    )
    align: bool = _option(
        False, "the alignment losses too, by which the towers of both modalities learn; nothing is stored then"
    )


@dataclass(frozen=True)
class StoreArguments:
    _argument_group_name = "stores of frozen outputs"

    store_vision: bool | None = _option(
        None, "run the frozen tower once on each image; no augmentation then. The tiny size's default"
    )
    no_store: bool = _option(False, "dfn, linear_probe: run the frozen model in each epoch, not once")
    store_dtype: Literal["float16", "bfloat16", "float32"] = _option("float16", "precision of stored tokens and states")
    rebuild_store: bool = _option(False, "compute stored outputs anew, for example if a file is damaged")


@dataclass(frozen=True)
class ExpBlipArguments:
    _argument_group_name = "exp_blip"

    caption_set: Literal["au", "emot", "mix", "cat", "exp"] | None = _option(
        None, "captions of stage 1 (default: exp); later stages keep them"
    )
    features: Literal["vision", "qformer"] = _option("qformer", "what linear_probe and full classify")
    language_model_name_or_path: str | None = _option(None, "caption: an OPT (default: a small untrained one)")


@dataclass(frozen=True)
class DryRunArguments:
    _argument_group_name = "dry run"

    dry_run: bool = _option(
        False, "say what the run needs (parameters, memory, disk, hours) and whether it fits; nothing is kept"
    )


_GROUPS = (ModelArguments, DataArguments, AdapterArguments, StoreArguments, ExpBlipArguments, DryRunArguments)
_COMMON = {
    "task": "pretrain, full, dfn, lora, ia3, linear_probe, tower or evaluate, see below",
    "preset": "paper-giant, paper-base, small, tiny, paper-dfn or paper-vl-fau: settings that belong together",
    "model_size": "tiny, small, base or giant",
    "dataset": "synthetic, or MFA's folder or name on the Hub",
    "output_dir": "where the run is saved; the same command continues it",
    "model_name_or_path": "start from this checkpoint",
    "label_set": "mfa, or a corpus's own, such as bp4d or affectnet",
    "num_train_epochs": "passes over the training split",
    "max_steps": "steps, in place of epochs",
    "learning_rate": "the paper's, or the tiny size's, unless given",
    "per_device_train_batch_size": "images of a step on each device",
    "seed": "of weights, order and augmentation",
    "bf16": "True: half precision",
    "dry_run": "True: what the run needs, and whether it fits",
}
"""Options that most runs use, at the top of --help."""
_DESCRIPTION = "\n".join(
    ["Trains, evaluates and saves MF².", "", "used most:", *(f"  --{name:28} {text}" for name, text in _COMMON.items())]
)
_EPILOG = """All of transformers' TrainingArguments are options too: --gradient_accumulation_steps, --use_cpu,
--report_to, --push_to_hub and more, see https://huggingface.co/docs/transformers/main_classes/trainer"""


class _Form(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


class _Parser(HfArgumentParser):
    """Errors of one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def _check_known(rest: Sequence[str], known: Collection[str]) -> None:
    for word in rest:
        name = word.partition("=")[0]
        option = name[2:].replace("-", "_").removeprefix("no_")
        if name.startswith("--") and not any(one.startswith(option) for one in known):
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean --{near[0]}" if near else "see --help, and transformers' TrainingArguments"
            raise ValueError(f"{name}: there is no such option; {hint}")


@dataclass(frozen=True)
class MF2Arguments(DryRunArguments, ExpBlipArguments, StoreArguments, AdapterArguments, DataArguments, ModelArguments):
    """All of our options."""


@dataclass(frozen=True)
class Settings:
    """What a run does. The options are as given, with defaults in place of None where a default depends on others."""

    arguments: MF2Arguments
    task: Task
    training: "transformers.TrainingArguments"
    """Without push_to_hub and token: the Trainer would push unfinished weights, and pickles its arguments."""
    push_to_hub: bool = False
    hub_token: str | None = field(default=None, repr=False)
    given: Mapping[str, Any] = field(default_factory=dict)
    """TrainingArguments from the command line."""

    @property
    def deviations(self) -> str:
        """Hyper-parameters that were given and differ from the preset's."""
        preset = PRESETS.get(self.arguments.preset, Preset({}))
        expected = self.task.training_defaults(self.arguments.model_size) | preset.training | {"max_steps": -1}
        names = {*PAPER, *preset.training, "max_steps", "weight_decay", "lr_scheduler_type"} & set(self.given)
        changed = {name: self.given[name] for name in sorted(names) if self.given[name] != expected[name]}
        return ", ".join(
            f"{name}={value:g}" if type(value) is float else f"{name}={value}" for name, value in changed.items()
        )

    @property
    def trains(self) -> bool:
        return self.arguments.task != "evaluate"

    @property
    def folder(self) -> Path:
        return Path(self.training.output_dir)


def parse_arguments(argv: Sequence[str]) -> Settings:
    """Checks all that can be checked before anything is drawn or loaded."""
    words = {"usage": "train.py [--NAME VALUE ...]", "description": _DESCRIPTION, "epilog": _EPILOG}
    named, rest = _given(_Parser(_GROUPS, prog="train.py", formatter_class=_Form, **words), argv)
    preset = PRESETS.get(named.get("preset"), Preset({}))
    for name, value in preset.options.items():
        if named.get(name, value) != value:
            got = f"got {named[name]!r}, but --preset {named['preset']} means {value!r}"
            raise ValueError(f"{name}: {got}; leave out one of the two")
    ours = MF2Arguments(**(named | preset.options))
    ours = replace(ours, task=ours.task or tasks_of(ours.model)[0])
    task = _task_of(ours)
    _check_known(rest, [one.name for kind in (MF2Arguments, transformers.TrainingArguments) for one in fields(kind)])
    parser = _Parser(transformers.TrainingArguments, prog="train.py")
    given, unknown = _given(parser, rest)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    streaming = {"save_strategy": "steps", "eval_strategy": "steps"} if ours.streaming else {}  # it has no epochs
    values = task.training_defaults(ours.model_size) | preset.training | streaming | given | task.fixed
    known = transformers.utils
    if values.get("bf16") and not (known.is_torch_bf16_gpu_available() or known.is_torch_cuda_available()):
        values.setdefault("use_cpu", True)  # where transformers else refuses bf16
    push, token = values.pop("push_to_hub", False), values.pop("hub_token", None)
    given.pop("hub_token", None)
    (training,) = parser.parse_dict(values)
    arguments = _resolve(ours, task)
    _check(arguments, task)
    _check_training(arguments, training)
    settings = Settings(arguments, task, training, push, token, given)
    if ours.preset and settings.deviations:
        logger.warning("preset: %s, but %s", ours.preset, settings.deviations)
    return settings


def _given(parser: HfArgumentParser, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What the command line says, without defaults, and the words that the parser does not know."""
    known, rest = parser.parse_known_args(list(argv))
    parser.set_defaults(**dict.fromkeys(vars(known)))
    known, _ = parser.parse_known_args(list(argv))
    return {name: value for name, value in vars(known).items() if value is not None}, rest


def _task_of(given: MF2Arguments) -> Task:
    asked, known = f"--model {given.model} --task {given.task}", tasks_of(given.model)
    if given.task not in known:
        raise ValueError(f"task: got {given.task!r} with --model {given.model}, expected one of {', '.join(known)}")
    task, defaults = TASKS[given.model, given.task], MF2Arguments()
    for name in task.unused:
        value, default = getattr(given, name), getattr(defaults, name)
        if value not in (default, "none") and (value or default):
            raise ValueError(f"{name}: got {value!r}, which {asked} does not use; expected {default!r}")
    encoder = given.model == "exp_blip" and given.features == "vision"  # may be read before it has seen a caption
    suffices = (task.adapts_released and given.model_size == "tiny") or (encoder and task.learns == ("labels",))
    if task.needs and given.model_name_or_path is None and not (suffices and given.task != "evaluate"):
        raise ValueError(f"model_name_or_path: got none with {asked}, expected {task.needs}")
    return task


def _resolve(given: MF2Arguments, task: Task) -> MF2Arguments:
    """Decides what was left open."""
    augment = given.augment or ("heavy" if given.task == "tower" else "none")
    changes = given.streaming or augment != "none"  # images that change, or do not come again, are not stored
    stores = given.model_size == "tiny" and not changes and given.views == 1
    by_default = {
        "captions_by_rule": given.dataset == "synthetic",
        "store_vision": stores and "tokens" in task.stores and given.task != "evaluate",
    }
    decided = {name: value for name, value in by_default.items() if getattr(given, name) is None}
    no_store = given.no_store or changes or given.align or "states" not in task.stores
    return replace(given, **decided, no_store=no_store, augment=augment)


def _check(ours: MF2Arguments, task: Task) -> None:
    config_class = task.model_class.config_class
    sizes = getattr(config_class, "sizes", ("tiny", "small", "base", "giant"))
    if ours.model_size not in sizes:
        raise ValueError(f"model_size: got {ours.model_size!r}, expected one of {list(sizes)} for --model {ours.model}")
    read_options("model_options", ours.model_options, config_class)
    if ours.num_images < 1:
        raise ValueError(f"num_images: got {ours.num_images}, expected 1 or more")
    if ours.views < 1 or (
        ours.views > 1 and (ours.streaming or ours.augment != "none" or ours.align or ours.store_vision)
    ):
        raise ValueError(
            f"views: got {ours.views}, expected 1 or more, and 1 with --streaming, --augment, --align or --store_vision"
        )
    for name in ("text_name_or_path", "qformer_name_or_path", "tokenizer_name_or_path"):
        if ours.model_name_or_path and getattr(ours, name) is not None:
            raise ValueError(f"{name}, model_name_or_path: got both, expected one: a checkpoint has its own text")
    for name, source in vars(ours).items():
        if name.endswith("name_or_path") and source and not Path(source).exists():
            if _WEIGHTS.search(source) or not _HUB_OR_TIMM_NAME.fullmatch(source):
                raise ValueError(f"{name}: there is no folder or file {source}; expected one, or a name on the Hub")
    names = dataset_names(ours.dataset)
    for name in names:
        if not (Path(name.removeprefix("own:")).exists() or _HUB_OR_TIMM_NAME.fullmatch(name)):
            built = "synthetic, own:FOLDER, a folder that examples/build_dataset.py wrote, or a name on the Hub"
            raise ValueError(f"dataset: there is no folder {name}; expected {built}")
    if len(set(names)) < len(names) or (len(names) > 1 and ours.streaming):
        raise ValueError(f"dataset: got {ours.dataset}, expected different ones, and one alone with --streaming")
    folds, fold = 1 if ours.folds is None else ours.folds, 1 if ours.fold is None else ours.fold
    if folds < 1 + (ours.folds is not None) or not 1 <= fold <= folds or (folds > 1 and ours.streaming):
        got = f"{ours.folds} and {ours.fold}"
        raise ValueError(f"folds, fold: got {got}, expected 2 or more, one of them, and no --streaming")


def dataset_names(dataset: str) -> list[str]:
    return [dataset] if Path(dataset.removeprefix("own:")).exists() else dataset.split("+")


def _check_training(ours: MF2Arguments, training: "transformers.TrainingArguments") -> None:
    if "tensorboard" in (training.report_to or ()) and not transformers.integrations.is_tensorboard_available():
        raise ImportError("report_to: got tensorboard, which is not installed. Run `pip install tensorboard`")
    if ours.folds and ours.fold is None and training.push_to_hub:
        raise ValueError("push_to_hub: got True with --folds, expected one run: name its --fold")
    if not ours.streaming:
        return
    if ours.balance:
        raise ValueError("balance, streaming: got both, expected one: a stream does not know how rare an emotion is")
    if training.max_steps <= 0 and ours.task != "evaluate":
        raise ValueError("max_steps: got none, expected how many steps to train on a stream, which has no end")
    if ours.store_vision:
        raise ValueError("store_vision, streaming: got both, expected one: a stream is not stored")
    if "epoch" in (training.save_strategy, training.eval_strategy):
        raise ValueError("save_strategy, eval_strategy: got epoch, expected steps: a stream has no epochs")


_WORDS = {"True": "true", "False": "false", "None": "null"}


def read_options(
    argument: str, options: Sequence[str], config_class: type, hidden: Collection[str] = ()
) -> dict[str, Any]:
    """Reads NAME=VALUE, the names being fields of a config except `hidden` ones, the values JSON or plain words."""
    known = {field.name for field in fields(config_class)} - set(hidden)
    read: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in known or name in read:
            expected = f"NAME=VALUE, each name once, of {config_class.__name__}: {', '.join(sorted(known))}"
            raise ValueError(f"{argument}: got {option!r}, expected {expected}")
        try:
            read[name] = json.loads(_WORDS.get(value, value))
        except ValueError:
            read[name] = value
    return read
