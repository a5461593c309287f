"""The systems of `tables.py` as commands of train.py, and the running of one cell: a system's stage with one seed."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from report import write_json

from configuration_mf2.configuration_vl_fau import ABLATIONS


TRAIN = Path(__file__).resolve().parents[2] / "train.py"
TAIL = 15  # lines of a failed cell's log that are shown
TESTED = "tested"  # the folder, in a run's own, of its scores on further faces
_OF_TRAINING = ("cpu_seconds", "wall_seconds", "trainable_parameters", "train_images", "epoch_cpu_seconds")
# What train.py says of a dataset that lacks something: the run goes on, and is not what its name promises.
INCOMPLETE = "the losses that need them are off"


@dataclass(frozen=True)
class Cell:
    """One run of train.py. title: the system, if it ends here. after: the cell whose checkpoint it starts from.
    share: of the budget's epochs, so that two stages see as many images as one run. learning_rate: of the tiny size."""

    title: str
    arguments: tuple[str, ...]
    after: str | None = None
    share: float = 1.0
    learning_rate: float = 2e-3


def _options(**options: object) -> tuple[str, ...]:
    pairs = (f"{name}={json.dumps(value, separators=(',', ':'))}" for name, value in options.items())
    return ("--model_options", *pairs)


# Whole backbones are trained: what is good for MF²'s parts above a frozen tower is too much for them.
_BACKBONE_RATE = 1e-3
_DFN_RATE = 3e-3
_HALF = 0.5
_JUDGED_BY_AUS = ("--metric_for_best_model", "au_f1_macro")
_JUDGED_BY_EMOTION = ("--metric_for_best_model", "emotion_macro_f1")
_NO_EMOTION, _NO_AUS = _options(loss_weights={"emotion": 0}), _options(loss_weights={"au": 0})
_ABLATED = {1: "baseline", 2: "MARL", 3: "MARL, LLGA", 4: "MARL, GLGA"}

# The table to change: what every system is trained by. Stages that no table shows have no title.
CELLS: dict[str, Cell] = {
    "mf2": Cell("MF² (pre-train)", ("--task", "pretrain")),
    "mf2_dfn": Cell("MF² + DFN", ("--task", "dfn"), after="mf2", learning_rate=_DFN_RATE),
    "mf2_without_emo_vl": Cell("without Emo-VL", ("--task", "pretrain", "--branches", "au")),
    "mf2_without_au_vl": Cell("without AU-VL", ("--task", "pretrain", "--branches", "emo")),
    "exp_blip_stage1": Cell("", ("--model", "exp_blip", "--task", "pretrain", "--caption_set", "exp"), share=_HALF),
    "exp_blip": Cell(
        "Exp-BLIP (stage 1, fine-tuned)",
        ("--model", "exp_blip", "--task", "full", "--features", "qformer"),
        after="exp_blip_stage1",
        share=_HALF,
        learning_rate=_BACKBONE_RATE,
    ),
    "me_graph_au_stage1": Cell(
        "",
        ("--model", "me_graph_au", *_options(use_edges=False)),
        share=_HALF,
        learning_rate=_BACKBONE_RATE,
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
        )
        for number, parts in _ABLATED.items()
    },
    "vl_fau": Cell("VL-FAU", ("--model", "vl_fau"), learning_rate=_BACKBONE_RATE),
    # Table V: the first stage sees no emotion, neither as label nor in a caption; the second sees no AU.
    "mf2_au_stage1": Cell("", ("--task", "pretrain", "--branches", "au", *_NO_EMOTION, *_JUDGED_BY_AUS), share=_HALF),
    "mf2_au_to_emotion": Cell(
        "MF² (AU, then DFN on emotion)",
        ("--task", "dfn", *_NO_AUS, *_JUDGED_BY_EMOTION),
        after="mf2_au_stage1",
        share=_HALF,
        learning_rate=_DFN_RATE,
    ),
    "exp_blip_au_stage1": Cell("", ("--model", "exp_blip", "--task", "pretrain", "--caption_set", "au"), share=_HALF),
    "exp_blip_au_to_emotion": Cell(
        "Exp-BLIP (AU captions, then emotion)",
        ("--model", "exp_blip", "--task", "full", "--features", "qformer", *_NO_AUS, *_JUDGED_BY_EMOTION),
        after="exp_blip_au_stage1",
        share=_HALF,
        learning_rate=_BACKBONE_RATE,
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


def folder_of(work_dir: Path, name: str, seed: int) -> Path:
    return work_dir / f"{name}-{seed}"


def command_of(name: str, seed: int, budget: Budget, work_dir: Path) -> list[str]:
    cell = CELLS[name]
    base = ["--model_name_or_path", str(folder_of(work_dir, cell.after, seed))] if cell.after else []
    return [*cell.arguments, *base, *budget.arguments(cell), "--seed", str(seed)]


def whole_command(name: str, seed: int, budget: Budget, work_dir: Path, train: Path) -> list[str]:
    command = command_of(name, seed, budget, work_dir)
    return [sys.executable, str(train), *command, "--output_dir", str(folder_of(work_dir, name, seed))]


def read_json(path: Path) -> dict | None:
    """None for a file that is not there, or was cut short."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def finished(folder: Path, command: Sequence[str]) -> dict[str, float] | None:
    """The metrics of this very command, if it ended well."""
    record = read_json(folder / "command.json") or {}
    if record.get("command") != list(command) or record.get("exit"):
        return None
    return read_json(folder / "metrics.json")


def check_folders(wanted: Iterable[tuple[str, int]], budget: Budget, work_dir: Path) -> None:
    """Before anything runs: no folder may hold what another command wrote."""
    for name, seed in wanted:
        folder, command = folder_of(work_dir, name, seed), command_of(name, seed, budget, work_dir)
        before = read_json(folder / "command.json") or {}
        if before.get("command", command) != command:
            raise ValueError(
                f"{folder}: was run with `{shlex.join(before['command'])}`, expected `{shlex.join(command)}`; give "
                "another --work_dir, or remove that folder and those of the stages that start from it"
            )


def run_cell(name: str, seed: int, budget: Budget, work_dir: Path, train: Path) -> dict[str, float] | str:
    """The metrics, or why there are none. What was interrupted is continued by train.py itself."""
    folder, command = folder_of(work_dir, name, seed), command_of(name, seed, budget, work_dir)
    found = _run(folder, command, train)
    if isinstance(found, str) or budget.test_rows is None or not CELLS[name].title:
        return found
    tested = _run(folder / TESTED, test_command(name, folder, budget), train)
    if isinstance(tested, str):
        return tested
    return found | {k: v for k, v in tested.items() if k not in _OF_TRAINING and not k.startswith("baseline/")}


def test_command(name: str, folder: Path, budget: Budget) -> list[str]:
    own = CELLS[name].arguments
    model = list(own[: own.index("--model") + 2][-2:]) if "--model" in own else []
    rows = ["--dataset", str(budget.test_rows), "--captions_by_rule", str(name.startswith("vl_fau"))]
    rows += ["--use_captions", "False"]  # what MF²'s language is worth is no part of the tables, and takes long
    rows += ["--disable_tqdm", "True"]
    return [*model, "--task", "evaluate", "--model_name_or_path", str(folder), *rows, *budget.further]


def _run(folder: Path, command: list[str], train: Path) -> dict[str, float] | str:
    named = folder.name if folder.name != TESTED else f"{folder.parent.name} on further faces"
    if (found := finished(folder, command)) is not None:
        print(f"{named}: done before")
        return found
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").unlink(missing_ok=True)  # what an earlier failure may have left
    write_json(folder / "command.json", {"command": command})
    whole = [sys.executable, str(train), *command, "--output_dir", str(folder)]
    log, start = folder / "log.txt", time.perf_counter()
    print(f"{named}: {shlex.join(whole[1:])}", flush=True)
    with log.open("a", encoding="utf-8") as file:
        code = _wait(subprocess.Popen(whole, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL))
    found = read_json(folder / "metrics.json")
    if code == 0 and found is not None:
        print(f"{named}: {time.perf_counter() - start:.0f} s", flush=True)
        return found
    write_json(folder / "command.json", {"command": command, "exit": code or 1})
    why = f"ended with {code}" if code else "wrote no metrics.json that can be read"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:]
    text = "\n".join([f"{named} {why}; the end of {log}:", *(f"    {line}" for line in lines)])
    print(text, flush=True)
    return text


def _wait(process: subprocess.Popen) -> int:
    try:
        return process.wait()
    finally:
        if process.poll() is None:  # we are stopped: nothing may go on writing into the folder
            process.terminate()
            process.wait()


def incomplete(folder: Path) -> list[str]:
    """Warnings of a run that its dataset lacked something."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return list(dict.fromkeys(line.strip() for line in lines if INCOMPLETE in line))
