"""The papers' tables anew, on any data set: MF²'s Tables II to V and VL-FAU's Table 4, all systems, several seeds;
and one table, `all`, of all systems on both tasks.

    python examples/benchmark/tables.py [--quick] [--tables II III] [--dataset FOLDER] [--seeds 0 1 2]
        [--json FILE] [--markdown FILE] [--figure FILE] [--dry_run] [any of train.py's arguments, for all runs]

Each cell is one run of train.py: a system, or a stage of one, with one seed, in a folder of its own below --work_dir.
A run that serves several tables is made once. The same command continues where it was stopped: what is done is read,
what was cut short goes on from its checkpoint, what failed is tried again. A failed run is told with the end of its
log, and the others go on. Every system has the same backbone, images and epochs; tables_cells.py holds the commands.

Figures: `<table>/<system>/<column>/mean` and `/sd`, scores as shares of 1 as metrics.json has them (markdown: in %);
`/no_positive`, `/not_finite` and `/fewer_seeds` are 1 where that is so; `failed_runs` counts.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

from datasets import disable_progress_bars


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from report import write_json
from tables_cells import TRAIN, Budget, cells_of, folder_of, lacking, stages, whole_command
from tables_chart import draw
from tables_report import TABLES, budget_text, figures_of, report
from tables_run import backbone_of, check_folders, draw_test_rows, incomplete, run_all


SEEDS, IMAGES, EPOCHS = (0, 1, 2), 3000, 8
TEST_IMAGES = 1600  # a tenth of so few images would leave the order of the systems to chance
QUICK = {"seeds": [0], "num_images": 480, "epochs": 2, "test_images": 0, "jobs": 2}
SYSTEMS = list(dict.fromkeys(row for table in TABLES.values() for row in table.rows))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="earlier stages run with them")
    parser.add_argument("--seeds", nargs="+", type=int, help=f"default {' '.join(map(str, SEEDS))}")
    parser.add_argument("--dataset", default="synthetic", help="synthetic (drawn faces), or a folder of MFA")
    parser.add_argument("--num_images", type=int, help=f"synthetic only: how many are drawn (default {IMAGES})")
    # Not train.py's own: the released tower, from which all start, was trained on those people.
    parser.add_argument("--people_seed", type=int, default=5, help="synthetic only: other people are drawn")
    parser.add_argument(
        "--test_images",
        type=int,
        help=f"""synthetic only: all are scored on so many further faces, of
        other people than any split's; 0: on the test split (default {TEST_IMAGES})""",
    )
    parser.add_argument("--style", default="paint", help="synthetic only: sketch, paint or grain")
    parser.add_argument("--label_set", default="mfa", help="the one that the data set was built with")
    parser.add_argument("--model_size", default="tiny", choices=("tiny", "base"))
    parser.add_argument("--epochs", type=int, help=f"of each system; of two stages, half each (default {EPOCHS})")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, help="one for all, in place of each system's own")
    parser.add_argument("--quick", action="store_true", help="a quarter of an hour on two cores; says that all works")
    parser.add_argument("--jobs", type=int, help="runs side by side, which share the cores; default 1, --quick 2")
    parser.add_argument("--work_dir", type=Path, help="where the runs are kept; default outputs/tables")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--figure", type=Path, help="default: action_units.png in --work_dir")
    parser.add_argument("--dry_run", action="store_true", help="only print the commands")
    parser.add_argument("--train", type=Path, default=TRAIN, help=argparse.SUPPRESS)
    arguments, arguments.further = parser.parse_known_args(argv)  # the rest is train.py's
    usual = {"seeds": list(SEEDS), "num_images": IMAGES, "epochs": EPOCHS, "test_images": TEST_IMAGES, "jobs": 1}
    for name, default in usual.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, QUICK[name] if arguments.quick else default)
    arguments.work_dir = arguments.work_dir or Path("outputs/tables-quick" if arguments.quick else "outputs/tables")
    arguments.figure = arguments.figure or arguments.work_dir / "action_units.png"
    least = min(arguments.epochs, arguments.batch_size, arguments.jobs)
    if least < 1 or len(set(arguments.seeds)) < len(arguments.seeds):
        parser.error("epochs, batch_size, jobs, seeds: expected 1 or more, and each seed once")
    if arguments.dataset != "synthetic" and not Path(arguments.dataset).is_dir():
        parser.error(f"dataset: there is no folder {arguments.dataset!r}; build one by examples/build_dataset.py")
    return arguments


def budget_of(arguments: argparse.Namespace) -> Budget:
    shared = ("dataset", "num_images", "people_seed", "style", "label_set", "model_size", "epochs", "batch_size")
    return Budget(
        **{name: getattr(arguments, name) for name in shared},
        learning_rate=arguments.learning_rate,
        further=tuple(arguments.further),
        test_rows=test_rows(arguments) if arguments.dataset == "synthetic" and arguments.test_images else None,
    )


def test_rows(arguments: argparse.Namespace) -> Path:
    drawn = (arguments.test_images, arguments.style, arguments.people_seed + 1, arguments.label_set)
    images, style, seed, label_set = drawn
    folder = arguments.work_dir / f"faces-{images}-{seed}-{style}-{label_set}"
    return folder if arguments.dry_run else draw_test_rows(folder, *drawn)


def data_of(budget: Budget) -> str:
    if budget.dataset != "synthetic":
        return str(budget.dataset)
    drawn = f"{budget.num_images} drawn, style {budget.style}, people seed {budget.people_seed}"
    if budget.test_rows is not None:
        drawn += "; scored on further ones, of other people"
    return f"synthetic faces ({drawn})"


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main(argv: list[str] | None = None) -> dict[str, float]:
    arguments = parse(argv)
    disable_progress_bars()
    budget, work_dir, seeds = budget_of(arguments), arguments.work_dir, arguments.seeds
    systems = [row for name in arguments.tables for row in TABLES[name].rows if row in arguments.systems]
    systems = list(dict.fromkeys(systems))
    if not systems:
        raise ValueError(f"systems: got {arguments.systems}, expected some of those that {arguments.tables} have")
    lacked = {name: found for name in systems if (found := lacking(name, arguments.label_set))}
    systems = [name for name in systems if name not in lacked]
    cells, data = cells_of(systems), data_of(budget)
    print(budget_text(budget, data, seeds, systems, {}) + "\n")
    if arguments.dry_run:
        for seed in seeds:
            for name in cells:
                print(shlex.join(whole_command(name, seed, budget, work_dir, arguments.train)))
        return {}
    check_folders([(name, seed) for name in cells for seed in seeds], budget, work_dir)
    runs = run_all(cells, seeds, budget, work_dir, arguments.train, arguments.jobs)
    failed = [run for found in runs.values() for run in found.values() if isinstance(run, str)]
    told = {f"{n}-{s}": incomplete(folder_of(work_dir, n, s)) for n in cells for s in seeds}
    notes = failed + [f"{name}: {line}" for name, lines in told.items() for line in lines]
    notes += [f"{n} was not run: label set {arguments.label_set} has no {' and no '.join(lacked[n])}" for n in lacked]
    shown = {name: runs[name] for name in systems}
    figures = {**figures_of(arguments.tables, shown), "failed_runs": float(len(failed))}
    drawn = draw(arguments.figure, arguments.tables, shown, data, len(seeds))
    place = arguments.markdown.parent if arguments.markdown else work_dir
    picture = os.path.relpath(arguments.figure, place) if drawn else None
    tables = [name for name in arguments.tables if set(TABLES[name].rows) & set(shown)]
    backbones = {name: backbone_of(folder_of(work_dir, stages(name)[0], seeds[0])) for name in systems}
    budgeted = budget_text(budget, data, seeds, systems, runs, backbones)
    text = report(tables, shown, budgeted, data, notes, picture)
    print(f"\n{text}")
    write_text(arguments.markdown or work_dir / "tables.md", text)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the run that is going on is stopped too
    sys.exit(1 if main().get("failed_runs") else 0)
