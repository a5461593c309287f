"""The systems of `tables.py` as cells, and the cells as commands of train.py: a system's stage with one seed."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from configuration_mf2.baselines import ABLATIONS
from configuration_mf2.facs import resolve_label_set


TRAIN = Path(__file__).resolve().parents[2] / "train.py"
TESTED = "tested"  # the folder, in a run's own, of its scores on further faces


@dataclass(frozen=True)
class Cell:
    """One run of train.py. title: the system, if it ends here. after: the cell whose checkpoint it starts from.
    share: of the budget's epochs, so that two stages see as many images as one run. learning_rate: of the tiny size.
    further: whether it is scored on further faces, where there are some; to write captions for so many takes long.
    needs: what a label set must have for it, AUs or emotions."""

    title: str
    arguments: tuple[str, ...]
    after: str | None = None
    share: float = 1.0
    learning_rate: float = 2e-3
    further: bool = True
    needs: tuple[str, ...] = ()


def _options(**options: object) -> tuple[str, ...]:
    pairs = (f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in options.items())
    return ("--model_options", *pairs)


# Whole backbones are trained: what is good for MF²'s parts above a frozen tower is too much for them.
_BACKBONE_RATE = 1e-3
_DFN_RATE = 3e-3
_DFN_RATE_AT_HOME = 3e-4  # on the very images that its base has learned: a higher one learns them by heart
_PROBE_RATE = 2e-2  # two linear layers on features that stay as they are
_HALF = 0.5
_JUDGED_BY_AUS = ("--metric_for_best_model", "au_f1_macro")
_JUDGED_BY_EMOTION = ("--metric_for_best_model", "emotion_macro_f1")
_AUS, _BOTH = ("AUs",), ("AUs", "emotions")
_NO_EMOTION, _NO_AUS = _options(loss_weights={"emotion": 0}), _options(loss_weights={"au": 0})
EXP_BLIP = {"emot": "Emot", "au": "AU", "mix": "Mix", "cat": "Cat", "exp": "Exp"}  # caption sets, in the paper's order
_FEATURES = {"vision": "image encoder", "qformer": "Q-Former"}
_READ_BY = {"probe": "linear_probe", "tuned": "full"}
_ABLATED = {1: "baseline", 2: "MARL", 3: "MARL, LLGA", 4: "MARL, GLGA"}


def exp_blip(captions: str, features: str, read_by: str) -> str:
    """The cell of a variant; that which the other tables call Exp-BLIP is the last one."""
    variant = (captions, features, read_by)
    return "exp_blip" if variant == ("exp", "qformer", "tuned") else "_".join(("exp_blip", *variant))


def _exp_blip_cells() -> dict[str, Cell]:
    """Two stages on captions, and then as many epochs on labels as every system has."""
    cells, model = {}, ("--model", "exp_blip")
    for captions, title in EXP_BLIP.items():
        first, second = f"exp_blip_{captions}_stage1", f"exp_blip_{captions}_stage2"
        needs = {"au": _AUS, "emot": ("emotions",)}.get(captions, ())
        cells[first] = Cell("", (*model, "--task", "pretrain", "--caption_set", captions), share=_HALF, needs=needs)
        cells[second] = Cell(
            f"Exp-BLIP({title})", (*model, "--task", "caption"), after=first, share=_HALF, further=False
        )
        for features, place in _FEATURES.items():
            for read_by, task in _READ_BY.items():
                name = exp_blip(captions, features, read_by)
                cells[name] = Cell(
                    "Exp-BLIP" if name == "exp_blip" else f"Exp-BLIP({title}), {place}, {task}",
                    (*model, "--task", task, "--features", features),
                    after=second,
                    learning_rate=_BACKBONE_RATE if task == "full" else _PROBE_RATE,
                )
    return cells


# The table to change: what every system is trained by. Stages that no table shows have no title.
CELLS: dict[str, Cell] = {
    "mf2": Cell("MF² (pre-train)", ("--task", "pretrain")),
    "mf2_dfn": Cell("MF² + DFN", ("--task", "dfn"), after="mf2", learning_rate=_DFN_RATE_AT_HOME),
    "mf2_without_emo_vl": Cell("without Emo-VL", ("--task", "pretrain", "--branches", "au"), needs=_AUS),
    "mf2_without_au_vl": Cell("without AU-VL", ("--task", "pretrain", "--branches", "emo")),
    "me_graph_au_stage1": Cell(
        "",
        ("--model", "me_graph_au", *_options(use_edges=False)),
        share=_HALF,
        learning_rate=_BACKBONE_RATE,
        needs=_AUS,
    ),
    "me_graph_au": Cell(
        "ME-GraphAU",
        ("--model", "me_graph_au", *_options(use_edges=True)),
        after="me_graph_au_stage1",
        share=_HALF,
        learning_rate=_BACKBONE_RATE,
    ),
    "hsemotion": Cell("HSEmotion", ("--model", "hsemotion"), learning_rate=_BACKBONE_RATE),
    **{
        f"vl_fau_{number}": Cell(
            f"VL-FAU {'①②③④'[number - 1]} {parts}",
            ("--model", "vl_fau", *_options(**ABLATIONS[number])),
            learning_rate=_BACKBONE_RATE,
            needs=_AUS,
        )
        for number, parts in _ABLATED.items()
    },
    "vl_fau": Cell("VL-FAU", ("--model", "vl_fau"), learning_rate=_BACKBONE_RATE, needs=_AUS),
    **_exp_blip_cells(),
    # Table V: the first stage sees no emotion, neither as label nor in a caption; the second sees no AU.
    "mf2_au_stage1": Cell(
        "", ("--task", "pretrain", "--branches", "au", *_NO_EMOTION, *_JUDGED_BY_AUS), share=_HALF, needs=_BOTH
    ),
    "mf2_au_to_emotion": Cell(
        "MF² (AU, then DFN on emotion)",
        ("--task", "dfn", *_NO_AUS, *_JUDGED_BY_EMOTION),
        after="mf2_au_stage1",
        share=_HALF,
        learning_rate=_DFN_RATE,
    ),
    "exp_blip_au_to_emotion": Cell(
        "Exp-BLIP (AU captions, then emotion)",
        ("--model", "exp_blip", "--task", "full", "--features", "qformer", *_NO_AUS, *_JUDGED_BY_EMOTION),
        after="exp_blip_au_stage2",
        share=_HALF,
        learning_rate=_BACKBONE_RATE,
        needs=_BOTH,
    ),
}


@dataclass(frozen=True)
class Budget:
    """What all systems share; `further` are more of train.py's arguments, for all runs."""

    dataset: str
    num_images: int
    people_seed: int
    style: str
    label_set: str
    model_size: str
    epochs: int
    batch_size: int
    learning_rate: float | None
    further: tuple[str, ...]
    test_rows: Path | None = None  # further faces, of other people, on which all are scored instead of the test split

    def epochs_of(self, cell: Cell) -> int:
        return max(1, round(self.epochs * cell.share))

    def rate_of(self, cell: Cell) -> float:
        """Another size than tiny takes the paper's 1e-4, all systems alike."""
        return self.learning_rate or (cell.learning_rate if self.model_size == "tiny" else 1e-4)

    def arguments(self, cell: Cell) -> list[str]:
        drawn = ["--num_images", self.num_images, "--people_seed", self.people_seed, "--style", self.style]
        shared = ["--dataset", self.dataset, *(drawn if self.dataset == "synthetic" else [])]
        shared += ["--label_set", self.label_set, "--model_size", self.model_size, "--disable_tqdm", True]
        shared += ["--num_train_epochs", self.epochs_of(cell), "--warmup_steps", 0.1]
        shared += ["--per_device_train_batch_size", self.batch_size, "--learning_rate", format(self.rate_of(cell), "g")]
        return [*map(str, shared), *self.further]


def stages(name: str) -> list[str]:
    """The cells of a system, the first one first."""
    before = CELLS[name].after
    return [*(stages(before) if before else []), name]


def cells_of(systems: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(stage for name in systems for stage in stages(name)))


def lacking(name: str, label_set: str) -> list[str]:
    """What a system needs and the label set has not."""
    labels = resolve_label_set(label_set)
    has = {"AUs": bool(labels.action_units), "emotions": bool(labels.emotions)}
    return [need for need in has if not has[need] and any(need in CELLS[stage].needs for stage in stages(name))]


def folder_of(work_dir: Path, name: str, seed: int) -> Path:
    return work_dir / f"{name}-{seed}"


def command_of(name: str, seed: int, budget: Budget, work_dir: Path) -> list[str]:
    cell = CELLS[name]
    base = ["--model_name_or_path", str(folder_of(work_dir, cell.after, seed))] if cell.after else []
    return [*cell.arguments, *base, *budget.arguments(cell), "--seed", str(seed)]


def whole_command(name: str, seed: int, budget: Budget, work_dir: Path, train: Path) -> list[str]:
    command = command_of(name, seed, budget, work_dir)
    return [sys.executable, str(train), *command, "--output_dir", str(folder_of(work_dir, name, seed))]


def test_command(name: str, folder: Path, budget: Budget) -> list[str]:
    own = CELLS[name].arguments
    model = list(own[: own.index("--model") + 2][-2:]) if "--model" in own else []
    rows = ["--dataset", str(budget.test_rows), "--captions_by_rule", str(name.startswith("vl_fau"))]
    rows += ["--use_captions", "False"]  # what MF²'s language is worth is no part of the tables, and takes long
    rows += ["--disable_tqdm", "True"]
    return [*model, "--task", "evaluate", "--model_name_or_path", str(folder), *rows, *budget.further]
