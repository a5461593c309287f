"""The systems of `tables.py` as cells: what a run of each is, and how it is trained and answers."""

import copy
import json
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from report import read_json, write_json
from torch import nn
from transformers import set_seed

from configuration_mf2.baselines import ABLATIONS
from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet, resolve_label_set
from mf2face.data.examples import LABELS, MF2Examples
from mf2face.data.metrics import action_unit_scores, emotion_scores, tune_thresholds
from mf2face.training.arguments import Settings, parse_arguments
from mf2face.training.build import Parts, build_model, save_parts, store_options, store_root, with_sources
from mf2face.training.evaluation import probabilities
from mf2face.training.exp_blip import measure_captions
from mf2face.training.finetuning import trainable_parameters
from mf2face.training.language import language_scores, zero_shot_units
from mf2face.training.probe import LinearProbe, fit_probe
from mf2face.training.run import load_parts, make_trainer
from mf2face.training.stores import load_or_store
from modeling_mf2.losses import FaceAnalysisOutput, classification_losses, weighted_sum


GRID = (3e-4, 1e-3, 3e-3)
"""Learning rates of every system that the Trainer trains; a tenth of them at sizes other than tiny."""
DECAYS = (1.0, 10.0, 100.0)
"""The grid of a linear probe: its regularisation."""
UNSEEN = "AU12"
"""Never labelled in the cells that hide it: only sentences speak of it."""


SPEAKING = ("mf2", "mf2_equation3", "mf2_unseen")
"""Cells whose language is measured, which takes long."""


class Cell(NamedTuple):
    """One run.

    title: the system that ends here, if any. arguments: of train.py; of a probe those that build its tower. kind:
    "probe" and "linear" are made here, the others by train.py's parts. reads: what the answers are read from. after:
    the cell whose checkpoint it starts from. share: of the epochs. hides: labels of `UNSEEN`. as_long_as: it takes as
    many CPU-seconds as that cell. data: the split that it learns from. needs: what its label set must have.
    """

    title: str
    arguments: tuple[str, ...]
    reads: str = ""
    kind: str = "trained"
    after: str | None = None
    share: float = 1.0
    hides: bool = False
    as_long_as: str | None = None
    data: str = "train"
    needs: tuple[str, ...] = ()


def _options(**options: object) -> tuple[str, ...]:
    pairs = (f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in options.items())
    return ("--model_options", *pairs)


EXP_BLIP = {"emot": "Emot", "au": "AU", "mix": "Mix", "cat": "Cat", "exp": "Exp"}  # caption sets, in the paper's order
_AUS, _EMOTIONS, _BOTH = ("AUs",), ("emotions",), ("AUs", "emotions")
_MF2, _DFN, _LIGHT = ("--task", "pretrain"), ("--task", "dfn"), ("--augment", "light")
_PAPER_DFN = ("--preset", "paper-dfn")
_TRAINED_TOWER = (*_LIGHT, *_options(vision_config={"frozen": False}))
_EXP_BLIP, _VL_FAU, _ME_GRAPH_AU, _HSEMOTION = (
    ("--model", name) for name in ("exp_blip", "vl_fau", "me_graph_au", "hsemotion")
)
_NO_AUS = _options(loss_weights={"au": 0})
_SCRATCH = ("--vision_name_or_path", "none")
_PROBES = {"tokens": "all tokens", "pooled": "mean of tokens", "landmarks": "landmarks"}
_PROBES["tokens_landmarks"] = "all tokens and landmarks"
_PARTS = {1: "① baseline", 2: "② MARL", 3: "③ MARL, LLGA", 4: "④ MARL, GLGA"}
_ADAPTERS = {"mf2_dfn": ("DFN", _DFN), "mf2_dfn_paper": ("the paper's DFN", _PAPER_DFN)}
_ADAPTERS |= {f"mf2_{name}": (title, ("--task", name)) for name, title in {"lora": "LoRA", "ia3": "IA3"}.items()}


def exp_blip(captions: str, features: str, read_by: str) -> str:
    """The cell of a variant; the other tables call the last one Exp-BLIP."""
    variant = (captions, features, read_by)
    return "exp_blip" if variant == ("exp", "qformer", "tuned") else "_".join(("exp_blip", *variant))


def _exp_blip_cells() -> dict[str, Cell]:
    """Two stages on captions, then labels: by the mean of the tower's tokens or queries, or by all of them (local)."""
    cells = {}
    read_by = {"probe": "linear_probe", "tuned": "full"}
    vision = {name: (*_EXP_BLIP, "--task", task, "--features", "vision") for name, task in read_by.items()}
    for name, command in vision.items():
        cells[f"image_encoder_{name}"] = Cell(f"tower, untouched, {name}", command, "mean of tokens")
    for captions, title in EXP_BLIP.items():
        first, second = f"exp_blip_{captions}_stage1", f"exp_blip_{captions}_stage2"
        pretrain = (*_EXP_BLIP, "--task", "pretrain", "--caption_set", captions)
        needs = {"au": _AUS, "emot": _EMOTIONS}.get(captions, ())
        cells[first] = Cell("", pretrain, needs=needs)
        cells[second] = Cell(f"Exp-BLIP({title})", (*_EXP_BLIP, "--task", "caption"), kind="captions", after=first)
        for name, task in read_by.items():
            for features, reads in (("vision", "mean of tokens"), ("qformer", "mean of queries")):
                cell = exp_blip(captions, features, name)
                shown = "Exp-BLIP" if cell == "exp_blip" else f"Exp-BLIP({title}), {features}, {name}"
                cells[cell] = Cell(shown, (*_EXP_BLIP, "--task", task, "--features", features), reads, after=second)
        local = f"Exp-BLIP({title}), local readout of"
        concat = (*_EXP_BLIP, "--task", "linear_probe", "--features", "qformer", *_options(query_pooling="concat"))
        cells[f"exp_blip_{captions}_qformer_local"] = Cell(f"{local} queries", concat, "all queries", after=second)
        cells[f"exp_blip_{captions}_vision_local"] = Cell(
            f"{local} tokens", vision["probe"], "all tokens", kind="probe", after=second
        )
    # Equal meanings are no negatives; the paper's equation 3, which the other five cells have, knows wordings alone.
    by_meaning = (*_EXP_BLIP, "--task", "pretrain", "--caption_set", "exp", *_options(contrast="meaning"))
    cells["exp_blip_meaning_stage1"] = Cell("", by_meaning, needs=_BOTH)
    tuned = (*_EXP_BLIP, "--task", "full", "--features", "qformer")
    for name, title in {"exp": "wordings (equation 3)", "meaning": "meanings"}.items():
        cells[f"exp_blip_contrast_{name}"] = Cell(
            f"Exp-BLIP's stage 1, contrast of {title}", tuned, "mean of queries", after=f"exp_blip_{name}_stage1"
        )
    return cells


# The table to change: what every system is trained by. Stages that no table shows have no title.
CELLS: dict[str, Cell] = {
    **{f"probe_{n}": Cell(f"linear probe, {reads}", (*_MF2,), reads, kind="probe") for n, reads in _PROBES.items()},
    "full": Cell("full fine-tuning, linear head", ("--task", "full", *_TRAINED_TOWER), "all tokens", kind="linear"),
    "mf2": Cell("MF²", _MF2, "regions, all tokens"),
    "mf2_tower": Cell("MF², tower trained", (*_MF2, *_TRAINED_TOWER), "regions, all tokens"),
    "mf2_no_language": Cell("MF² without language, as many steps", (*_MF2, "--use_captions", "False")),
    "mf2_no_language_cpu": Cell(
        "MF² without language, as many CPU-seconds", (*_MF2, "--use_captions", "False"), as_long_as="mf2"
    ),
    "mf2_equation3": Cell("MF², contrast of wordings (equation 3)", (*_MF2, *_options(contrast="wording"))),
    "mf2_unseen": Cell(f"MF², no label of {UNSEEN}", _MF2, hides=True, needs=_AUS),
    "mf2_no_geometry": Cell("MF² without the landmarks' token", (*_MF2, *_options(geometry_token=False))),
    "mf2_no_shape": Cell("MF² without the shape's own answer", (*_MF2, *_options(shape_weight=0))),
    "mf2_template": Cell("MF² without landmarks", (*_MF2, "--landmarks", "template")),
    "mf2_without_emo_vl": Cell("MF² without Emo-VL", (*_MF2, "--branches", "au"), needs=_AUS),
    "mf2_without_au_vl": Cell("MF² without AU-VL", (*_MF2, "--branches", "emo")),
    **{name: Cell(f"MF² + {title}", task, after="mf2") for name, (title, task) in _ADAPTERS.items()},
    "vl_fau": Cell("VL-FAU", (*_VL_FAU, *_LIGHT), "a map an AU", needs=_AUS),
    **{
        f"vl_fau_{n}": Cell(f"VL-FAU {parts}", (*_VL_FAU, *_LIGHT, *_options(**ABLATIONS[n])), needs=_AUS)
        for n, parts in _PARTS.items()
    },
    "me_graph_au_stage1": Cell("", (*_ME_GRAPH_AU, *_LIGHT, *_options(use_edges=False)), needs=_AUS),
    "me_graph_au": Cell(
        "ME-GraphAU",
        (*_ME_GRAPH_AU, *_LIGHT, *_options(use_edges=True)),
        "mean of each AU's map",
        after="me_graph_au_stage1",
        share=0.25,  # fine-tuning of the first stage, and twenty times its cost
    ),
    "hsemotion": Cell("HSEmotion", (*_HSEMOTION, *_LIGHT), "mean of tokens"),
    **_exp_blip_cells(),
    # Table V: the first stage sees no emotion, neither as label nor in a caption; the second sees no AU.
    "mf2_au_stage1": Cell("", (*_MF2, "--branches", "au", *_options(loss_weights={"emotion": 0})), needs=_BOTH),
    "mf2_au_to_emotion": Cell("MF² (AU, then DFN on emotion)", (*_DFN, *_NO_AUS), after="mf2_au_stage1", needs=_BOTH),
    "exp_blip_au_to_emotion": Cell(
        "Exp-BLIP (AU captions, then emotion)",
        (*_EXP_BLIP, "--task", "full", "--features", "qformer", *_NO_AUS),
        after="exp_blip_au_stage2",
        needs=_BOTH,
    ),
    # To another style by few images: MF² as it is, then what learns from them.
    "adapt_probe": Cell("linear probe, all tokens", _MF2, "all tokens", kind="probe", data="adapt"),
    "adapt_full": Cell("MF², all of it trained", ("--task", "full", *_TRAINED_TOWER), after="mf2", data="adapt"),
    "adapt_heads": Cell("MF², its heads", ("--task", "linear_probe"), after="mf2", data="adapt"),
    **{
        name.replace("mf2", "adapt"): Cell(f"MF² + {title}", task, after="mf2", data="adapt")
        for name, (title, task) in _ADAPTERS.items()
    },
    # Each system's own backbone from random weights.
    "full_scratch": Cell(
        "full fine-tuning", ("--task", "full", *_TRAINED_TOWER, *_SCRATCH), "all tokens", kind="linear"
    ),
    "mf2_scratch": Cell("MF²", (*_MF2, *_TRAINED_TOWER, *_SCRATCH)),
    "vl_fau_scratch": Cell("VL-FAU", (*_VL_FAU, *_LIGHT, *_SCRATCH), needs=_AUS),
    "me_graph_au_scratch": Cell("ME-GraphAU, at once", (*_ME_GRAPH_AU, *_LIGHT, *_SCRATCH), needs=_AUS),
    "hsemotion_scratch": Cell("HSEmotion", (*_HSEMOTION, *_LIGHT, *_SCRATCH)),
}


def stages(name: str) -> list[str]:
    """The cells of a system, the first one first."""
    cell = CELLS[name]
    before = [cell.after] if cell.after else [cell.as_long_as, "mf2_no_language"] if cell.as_long_as else []
    return list(dict.fromkeys([*(stage for place in before for stage in stages(place)), name]))


def cells_of(systems: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(stage for name in systems for stage in stages(name)))


def lacking(name: str, label_set: str) -> list[str]:
    """What a system needs and the label set does not have."""
    labels = resolve_label_set(label_set)
    has = {"AUs": bool(labels.action_units), "emotions": bool(labels.emotions)}
    return [need for need in has if not has[need] and any(need in CELLS[stage].needs for stage in stages(name))]


def folder_of(name: str, seed: int, given: Namespace) -> Path:
    return given.work_dir / f"{name}-{seed}"


def grid_of(name: str, given: Namespace) -> tuple[float, ...]:
    cell = CELLS[name]
    if cell.kind == "probe":
        return DECAYS
    rates = GRID if given.model_size == "tiny" else tuple(rate / 10 for rate in GRID)
    by_captions = name.startswith("exp_blip") and "stage" in name  # nothing that choose people could tell
    return rates[1:2] if by_captions or given.no_grid else rates


def epochs_of(name: str, given: Namespace) -> int:
    return max(1, round(given.epochs * CELLS[name].share))


def command_of(name: str, seed: int, rate: float, epochs: int, given: Namespace) -> list[str]:
    """train.py's arguments, but for the data."""
    cell, starts = CELLS[name], []
    if cell.after:
        starts = ["--model_name_or_path", folder_of(cell.after, seed, given)]
    elif given.tower and "--vision_name_or_path" not in cell.arguments:
        starts = ["--vision_name_or_path", given.tower]
    shared = ["--dataset", given.dataset, "--label_set", given.label_set, "--model_size", given.model_size]
    shared += ["--num_train_epochs", epochs, "--learning_rate", rate, "--seed", seed]
    shared += ["--per_device_train_batch_size", given.batch_size, "--warmup_steps", 0.1]
    kept = "--save_strategy no --eval_strategy no --load_best_model_at_end False --logging_strategy epoch "
    return [*map(str, [*cell.arguments, *starts, *shared]), *f"{kept}--disable_tqdm True".split(), *given.further]


class LinearTower(nn.Module):
    """A tower and the linear probe of all its tokens, which fine-tuning starts from."""

    def __init__(self, config: Any, vision: nn.Module, head: LinearProbe) -> None:
        super().__init__()
        self.config, self.vision, self.head = config, vision, head
        self.vision.requires_grad_(True)

    def forward(
        self,
        pixel_values: torch.Tensor,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        **others: torch.Tensor,
    ) -> FaceAnalysisOutput:
        tokens = self.vision(pixel_values).flatten(1)
        with torch.autocast(tokens.device.type, enabled=False):  # sums over many tokens, of which a mean is taken off
            emotion, units = self.head(tokens)
        parts = classification_losses(self.config, emotion, emotion_labels, units, au_labels)
        return FaceAnalysisOutput(loss=weighted_sum(self.config, parts), emotion_logits=emotion, au_logits=units)


Splits = dict[str, Dataset]
CHOOSE = {"train": "validation", "adapt": "adapt_validation"}
MEASURED = ("validation", "test", "style", "photographs")
"""Choose people, report people, those of a style unseen in training, photographs."""


def probe(
    settings: Settings, parts: Parts, reads: str, rows: Dataset, decay: float, stores: Path
) -> tuple[LinearProbe, Callable]:
    """A linear probe, and what answers rows by it. Narrow features take a higher rate and less decay."""
    config, vision = parts.model.config, parts.model.base_model.vision

    def features(rows: Dataset) -> torch.Tensor:
        examples = MF2Examples(rows, parts.processor, texts=False, warned={*LABELS})
        store = load_or_store(vision, [examples], store_root("vision", stores), **store_options(settings))
        read = store.batch(range(len(rows)), torch.float16)
        tokens, points = read["image_tokens"], read["landmarks"].flatten(1) / vision.config.image_size
        tokens = tokens.float().mean(1).half() if "mean" in reads else tokens.flatten(1)
        return torch.cat([tokens] * ("tokens" in reads) + [points] * ("landmarks" in reads), 1)

    units = len(config.action_units)
    known = "au_labels" in rows.column_names and units
    labels = torch.tensor(rows["au_labels"][:]) if known else torch.full((len(rows), units), UNKNOWN_LABEL)
    read = (features(rows), labels, torch.tensor(rows["emotion"][:]))
    narrow = read[0].shape[1] < 1000
    shape = {"rate": 1e-2, "decay": decay / 100} if narrow else {"rate": 3e-4, "decay": decay}
    made = fit_probe(config, read, **shape, seed=settings.training.seed, epochs=60)
    return made, lambda rows: probabilities(made.answers(features(rows)))


def hide_labels(collate: Callable, config: Any) -> Callable:
    """Batches without the labels of `UNSEEN`, of which sentences speak all the same."""
    place = list(config.action_units).index(UNSEEN)

    def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        batch["au_labels"][:, place] = UNKNOWN_LABEL
        return batch

    return collated


class Fitted(NamedTuple):
    """answers: emotion and AU probabilities by split. save: the model into a folder."""

    answers: dict[str, tuple[np.ndarray, np.ndarray]]
    figures: dict[str, float]
    save: Callable[[Path], None] | None = None


def fit(
    name: str, seed: int, rate: float, epochs: int, given: Namespace, data: Splits, wanted: Iterable[str]
) -> Fitted:
    """One run; `wanted` splits are answered. Raises FloatingPointError where it diverges."""
    cell, start = CELLS[name], time.process_time()
    command = command_of(name, seed, GRID[1] if cell.kind == "probe" else rate, epochs, given)
    set_seed(seed)
    with tempfile.TemporaryDirectory(dir=given.work_dir) as scratch:
        settings = with_sources(parse_arguments([*command, "--output_dir", scratch]))
        other_tower = "states" in settings.task.stores or name.startswith("exp_blip") or name.endswith("scratch")
        stores = Path(scratch) if other_tower else given.work_dir / "stores"
        splits = {split: data[split] for split in wanted if split in data}
        splits |= {"train": data[cell.data], "validation": data[CHOOSE[cell.data]]}
        if cell.kind == "probe":
            parts = build_model(settings, splits["train"])
            _, answer = probe(settings, parts, cell.reads, splits["train"], rate, stores)
            answers = {split: answer(splits[split]) for split in wanted if split in splits}
            return Fitted(checked(answers), {"cpu_seconds": time.process_time() - start})
        captions = cell.kind == "captions"
        captioned = {split: splits[split] for split in splits if captions or split == "train"}
        parts, read, _, columns, _ = load_parts(settings, captioned)
        if cell.kind == "linear":
            head, _ = probe(settings, parts, cell.reads, splits["train"], DECAYS[1], stores)
            vision = copy.deepcopy(parts.model.base_model.vision)
            parts = parts._replace(model=LinearTower(parts.model.config, vision, head))
        trainer, examples = make_trainer(settings, parts, {**splits, **read}, columns, stores)
        if cell.hides:
            trainer.data_collator = hide_labels(trainer.data_collator, parts.model.config)
        trainer.train()
        figures = {"cpu_seconds": time.process_time() - start, "steps": trainer.state.global_step}
        figures["trainable_parameters"] = trainable_parameters(trainer.model)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        figures |= {"loss_first": losses[0], "loss_last": losses[-1], "loss_before": losses[-1 - len(losses) // 10]}
        parts, answers = parts._replace(model=trainer.model), {}
        if captions:
            figures |= measure_captions(settings, parts, examples["test"], *columns) if "test" in examples else {}
        elif settings.task.measures:
            asked = [split for split in wanted if split in examples]
            answers = {split: probabilities(trainer.predict(examples[split]).predictions) for split in asked}
        if name in SPEAKING and "test" in splits:
            figures |= worth_of_language(parts, splits, given.language_images)
    return Fitted(checked(answers), figures, lambda folder: save_parts(folder, parts))


def checked(answers: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    for split, parts in answers.items():
        if not all(np.isfinite(part).all() for part in parts):
            raise FloatingPointError(f"answers on {split}: got a number that is not finite, expected probabilities")
    return answers


# Wordings that no caption has; the rule's are in processing_mf2/wording.py.
NEW_WORDS = {
    "AU1": ("the brow is pulled up near the nose", "the middle of the brow is quiet"),
    "AU2": ("the tips of the brows go high", "the tips of the brows are quiet"),
    "AU4": ("the person frowns", "the person does not frown"),
    "AU6": ("the cheeks go up and press on the eyes", "the cheeks are quiet"),
    "AU7": ("the eyes are squeezed", "the eyes are not squeezed"),
    "AU10": ("the upper lip goes up", "the upper lip is quiet"),
    "AU12": ("the person is smiling", "there is no smile"),
    "AU15": ("the mouth is bent down", "the mouth is not bent down"),
    "AU23": ("the mouth is thin and hard", "the mouth is not hard"),
    "AU24": ("the mouth is pressed shut", "the mouth is not pressed shut"),
    "AU25": ("the mouth is open", "the mouth is shut"),
    "AU26": ("the chin falls down", "the chin does not fall"),
}


def worth_of_language(parts: Parts, splits: Splits, images: int) -> dict[str, float]:
    """`language/...`: retrieval, matching and written facts of some report images; zero-shot AUs of all of them, by the
    rule's sentences and by `NEW_WORDS`."""
    model, processor, rows = parts.model, parts.processor, splits["test"]
    few = [MF2Examples(splits[s].select(range(min(images, len(splits[s])))), processor) for s in ("test", "validation")]
    figures = language_scores(model, processor, *few) if few[0].captions else {}
    names, plain = list(model.config.action_units), MF2Examples(rows, processor, texts=False)
    if model.config.use_au_branch and "au_labels" in rows.column_names:
        for key, sentences in {"zero_shot_au": None, "new_words_au": NEW_WORDS}.items():
            if sentences and not {*names} <= {*sentences}:
                continue
            scores = zero_shot_units(model, processor, plain, sentences).double().sigmoid().numpy()
            found = action_unit_scores(scores, np.array(rows["au_labels"][:]), names)
            figures[f"{key}_auc"] = found["au_roc_auc_macro"]
            if f"au_roc_auc/{UNSEEN}" in found:
                figures[f"{key}_auc/{UNSEEN}"] = found[f"au_roc_auc/{UNSEEN}"]
    return {f"language/{key}": value for key, value in figures.items()}


def scores_of(
    answers: tuple[np.ndarray, np.ndarray], rows: Dataset, labels: LabelSet, thresholds: np.ndarray | None
) -> dict[str, float]:
    """Scores of one split, as train.py names them."""
    scores: dict[str, Any] = {}
    if "au_labels" in rows.column_names and labels.action_units:
        truth = np.array(rows["au_labels"][:])
        scores = action_unit_scores(answers[1], truth, labels.action_units, thresholds=thresholds)
    if labels.emotions:
        scores |= emotion_scores(answers[0], np.array(rows["emotion"][:]), labels.emotions)
    return {name: value for name, value in scores.items() if isinstance(value, float)}


def chosen(
    name: str, answers: tuple[np.ndarray, np.ndarray], data: Splits, labels: LabelSet
) -> tuple[np.ndarray | None, float]:
    """Thresholds from choose people, and the sum by which a rate is chosen."""
    rows = data[CHOOSE[CELLS[name].data]]
    cuts = tune_thresholds(answers[1], np.array(rows["au_labels"][:])) if labels.action_units else None
    scores = scores_of(answers, rows, labels, cuts)
    return cuts, scores.get("au_f1_tuned_macro", 0.0) + scores.get("emotion_macro_recall", 0.0)


def best_rate(name: str, epochs: int, given: Namespace, data: Splits, labels: LabelSet) -> float:
    """The grid is run once, with the first seed, and scored on choose people alone; the scores are kept in a file."""
    owner = "mf2_no_language" if CELLS[name].as_long_as else name
    grid, file = grid_of(name, given), given.work_dir / "rates" / f"{owner}.json"
    found = (read_json(file) or {}) if len(grid) > 1 else {str(grid[0]): 0.0}
    for rate in (rate for rate in grid if str(rate) not in found):
        try:
            fitted = fit(name, given.seeds[0], rate, epochs, given, data, ("validation",))
            found[str(rate)] = chosen(name, fitted.answers["validation"], data, labels)[1]
        except FloatingPointError:
            found[str(rate)] = -1.0  # diverged
        write_json(file, found)
    return max(grid, key=lambda rate: found[str(rate)])


def run_cell(name: str, seed: int, given: Namespace, data: Splits) -> None:
    """Trains with the best rate, and keeps scores.npz and metrics.json in the run's folder."""
    cell, folder, labels = CELLS[name], folder_of(name, seed, given), resolve_label_set(given.label_set)
    epochs = epochs_of(name, given)
    if cell.as_long_as:
        long, own = (metrics_of(n, given.seeds[0], given)["cpu_seconds"] for n in (cell.as_long_as, "mf2_no_language"))
        epochs = max(1, round(epochs * long / own))
    rate = best_rate(name, max(1, round(epochs * given.grid_share)), given, data, labels)
    fitted = fit(name, seed, rate, epochs, given, data, MEASURED)
    answers, scores, arrays = fitted.answers, {}, {}
    if answers:
        cuts, _ = chosen(name, answers["validation"], data, labels)
        scores = scores_of(answers["test"], data["test"], labels, cuts)
        arrays = {
            f"{split}/{part}": pair[k] for split, pair in answers.items() for k, part in enumerate(("emotion", "au"))
        }
        arrays |= {} if cuts is None else {"thresholds": cuts}
    if fitted.save and any(name == other.after for other in CELLS.values()):
        fitted.save(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "scores.npz", **arrays)
    more = {"rate": rate, "epochs": epochs, "train_images": len(data[cell.data]), "test_images": len(data["test"])}
    write_json(folder / "metrics.json", {**scores, **fitted.figures, **more})


def metrics_of(name: str, seed: int, given: Namespace) -> dict[str, float] | None:
    return read_json(folder_of(name, seed, given) / "metrics.json")
