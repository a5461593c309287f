"""All systems side by side, by the protocol in docs/protocol.md; and the papers' tables on any data set.

    python examples/benchmark/tables.py --tower FOLDER [--quick] [--tables headline adapt] [--seeds 0 1 2]
        [--photos FOLDER --labels FILE.csv] [--json FILE] [--markdown FILE] [--dry_run] [any of train.py's arguments]
    python examples/benchmark/tables.py --dataset FOLDER --model_size base --tables II III (a built data set)

Each cell is one run: a system, or a stage of one, with one seed, in a folder of its own below --work_dir, which keeps
its scores of every report image. A run that serves several tables is made once, and a finished one is read: the same
command continues where it stopped. A run that fails or diverges is reported, and tried again by the next call.
--tower is a tower trained without AU or emotion labels (`train.py --task tower`), from which all systems start; one is
trained if none is named. tables_cells.py holds the systems, tables_report.py the figures.

<table>/<system>/<data>/<column>/mean, sd (seeds), low, high (95 %, people); `au_f1` is at thresholds tuned on choose
people, `au_f1_half` at 0.5; <flag> is 1 where a flag stands
mf2_minus_probe_style_au_f1/low ...    MF² less the best linear probe on the same frozen tower, unseen style
mf2_minus_best_baseline_style_au_f1    MF² with its tower trained, as theirs are, less the best compared system
language_worth_au_f1    MF² less the same without language after as many CPU-seconds, unseen style
unseen_au_auc           an AU that was never labelled, by its sentences
"""

import shlex
import sys
import time
import traceback
from argparse import Namespace
from pathlib import Path

import datasets
import numpy as np
from report import check_command, options, origin, read_json, write_json, write_text
from tables_cells import CELLS, cells_of, command_of, epochs_of, folder_of, grid_of, lacking, metrics_of, run_cell
from tables_report import TABLES, figures_of, markdown

from mf2face.data.build.own import build_own
from mf2face.data.cache import load_folder, save_whole
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.arguments import parse_arguments
from mf2face.training.build import load_splits, with_detected_landmarks
from mf2face.training.run import run
from processing_mf2.detection import missing_networks


USUAL = {"seeds": [0, 1, 2], "num_images": 1600, "epochs": 8, "work_dir": Path("outputs/tables")}
QUICK = {"seeds": [0], "num_images": 192, "epochs": 1, "work_dir": Path("outputs/tables-quick")}
# Split -> style, share of --num_images, seed of its people; the tower's people are of seed 1.
PEOPLE = {
    "train": ("seen", 1.0, 21),
    "validation": ("seen", 0.25, 22),
    "test": ("seen", 0.75, 23),
    "style": ("webcam", 0.75, 24),
    "adapt": ("webcam", 0.16, 25),
    "adapt_validation": ("webcam", 0.2, 26),
}
TAIL = 4  # lines of an error that are kept


def parse(argv: list[str] | None) -> Namespace:
    parser = options(__doc__, allow_abbrev=False, epilog=f"Defaults: {USUAL}; with --quick: {QUICK}.")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["headline"])
    parser.add_argument("--systems", nargs="+", choices=CELLS, help="only these; earlier stages run with them")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--dataset", default="synthetic", help="synthetic (rendered people), or a folder of MFA")
    parser.add_argument("--num_images", type=int, help="synthetic: of training; the other splits are shares of it")
    parser.add_argument("--style", default="studio+street", help="synthetic: seen in training; webcam is not")
    parser.add_argument("--tower", help="a folder of train.py --task tower")
    parser.add_argument("--photos", type=Path, help="photographs to measure on, the report half of their people")
    parser.add_argument("--labels", type=Path, help="their csv: image, emotion, subject")
    parser.add_argument("--label_set", default="mfa")
    parser.add_argument("--model_size", default="tiny", choices=("tiny", "base"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--grid_share", type=float, default=1 / 3, help="epochs of a run that chooses a rate")
    parser.add_argument("--no_grid", action="store_true", help="the grid's middle for all (default with --quick)")
    parser.add_argument("--language_images", type=int, default=96, help="for which sentences are written and scored")
    parser.add_argument("--quick", action="store_true", help="a quarter of an hour on two cores: shows that all works")
    parser.add_argument("--work_dir", type=Path, help="where the runs are kept")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--dry_run", action="store_true", help="only print the commands")
    parser.add_argument("--read_only", action="store_true", help="run nothing: the tables of what has ended")
    given, further = parser.parse_known_args(argv)  # the rest is train.py's
    usual = QUICK if given.quick else USUAL
    given = Namespace(**{name: usual.get(name) if value is None else value for name, value in vars(given).items()})
    if min(given.epochs, given.batch_size) < 1 or len(set(given.seeds)) < len(given.seeds):
        parser.error("epochs, batch_size, seeds: expected 1 or more, and each seed once")
    if given.dataset != "synthetic" and not Path(given.dataset).is_dir():
        parser.error(f"dataset: folder {given.dataset!r} does not exist; build one by examples/build_dataset.py")
    given.no_grid |= given.quick
    given.further, given.argv = further, list(sys.argv[1:] if argv is None else argv)
    return given


def load_data(given: Namespace) -> dict[str, datasets.Dataset]:
    """The protocol's splits; of a built data set its own three."""
    if given.dataset != "synthetic":
        splits = load_splits(parse_arguments(["--dataset", given.dataset, "--label_set", given.label_set]).arguments)
    else:
        folder, splits = given.work_dir / f"people-{given.num_images}-{given.style}-{given.label_set}", {}
        folder.mkdir(parents=True, exist_ok=True)
        for name, how in PEOPLE.items():
            if not (folder / name).is_dir():
                save_whole(render(given, *how), folder / name)
            splits[name] = load_folder(folder / name)
    if given.photos:
        from photographs import half_of

        reader = {"labels": str(given.labels)} if given.labels else {}
        rows = load_folder(build_own(given.photos, given.label_set, **reader))
        report = [half_of(subject) == "report" for subject in rows["subject"][:]]
        splits["photographs"] = rows.select(np.flatnonzero(np.array(report) & (np.array(rows["emotion"][:]) >= 0)))
    return splits


def render(given: Namespace, style: str, share: float, seed: int) -> datasets.Dataset:
    styles = given.style.split("+") if style == "seen" else [style]
    count = max(16, round(given.num_images * share / len(styles)))
    rows = datasets.concatenate_datasets([MFASynthetic(count, s, seed=seed, label_set=given.label_set) for s in styles])
    return rows if missing_networks() else with_detected_landmarks(rows)


def tower_of(given: Namespace) -> str | None:
    """The one that is named, or one that is trained, by no label of an AU or emotion, on other people."""
    if given.tower or given.model_size != "tiny" or given.dataset != "synthetic":
        return given.tower
    folder = given.work_dir / "tower"
    if not (folder / "metrics.json").is_file():
        count, epochs = (given.num_images, 1) if given.quick else (4 * given.num_images, 8)
        command = ["--task", "tower", "--style", given.style, "--num_images", str(count), "--people_seed", "1"]
        run(parse_arguments([*command, "--num_train_epochs", str(epochs), "--output_dir", str(folder), *given.further]))
    return str(folder)


def run_all(cells: list[str], given: Namespace, data: dict[str, datasets.Dataset]) -> None:
    """Runs what has not ended; failures are kept beside, and do not stop the others."""
    opened = given.work_dir / "opened.json"
    for seed in given.seeds:
        for name in cells:
            folder, start = folder_of(name, seed, given), time.process_time()
            if metrics_of(name, seed, given):
                continue
            write_json(folder / "command.json", {"command": budget(name, given)})
            try:
                run_cell(name, seed, given, data)
                (folder / "failed.txt").unlink(missing_ok=True)
                write_json(opened, {f"{name}-{seed}": origin(), **(read_json(opened) or {})})
                print(f"{name}-{seed}: {time.process_time() - start:.0f} CPU-s", flush=True)
            except Exception as error:  # of any system: the others go on
                lines = traceback.format_exception(error)
                write_text(folder / "failed.txt", "".join(lines))
                print(f"{name}-{seed} failed: {''.join(lines[-TAIL:])}", flush=True)


def budget(name: str, given: Namespace) -> list[str]:
    """What must not change between calls."""
    command = command_of(name, 0, 0.0, epochs_of(name, given), given)
    return [given.style, str(given.num_images), *command, str(grid_of(name, given))]


def main(argv: list[str] | None = None) -> dict[str, float]:
    given = parse(argv)
    datasets.disable_progress_bars()
    asked = dict.fromkeys(row for name in given.tables for row in TABLES[name].rows)
    lacked = {name: needs for name in asked if (needs := lacking(name, given.label_set))}
    wanted = given.systems or asked
    given.systems = [name for name in asked if name in wanted and name not in lacked]
    if not given.systems:
        raise ValueError(f"systems: got {wanted}, expected some of those that {given.tables} have")
    cells = cells_of(given.systems)
    if given.dry_run:
        for name, seed in [(name, seed) for seed in given.seeds for name in cells]:
            command = command_of(name, seed, grid_of(name, given)[-1], epochs_of(name, given), given)
            print(shlex.join(["train.py", *command]))
        return {}
    given.work_dir.mkdir(parents=True, exist_ok=True)
    given.tower = tower_of(given)
    for name, seed in [(name, seed) for seed in given.seeds for name in cells]:
        check_command(folder_of(name, seed, given), budget(name, given), "--work_dir")
    data = load_data(given)
    if not given.read_only:
        run_all(cells, given, data)
    figures = figures_of(given, data)
    text = markdown(given, figures, lacked)
    print(f"\n{text}")
    write_text(given.markdown or given.work_dir / "tables.md", text)
    write_json(given.json, {"seeds": len(given.seeds), "epochs": given.epochs, **figures})
    return figures


if __name__ == "__main__":
    sys.exit(1 if main().get("failed_runs") else 0)
