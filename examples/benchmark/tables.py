"""The papers' tables on any data set: MF²'s Tables II to V, VL-FAU's Table 4, Exp-BLIP's 2 and 6; all systems, several
seeds; and `all`, a table of all systems on both tasks.

    python examples/benchmark/tables.py [--quick] [--tables II III] [--dataset FOLDER] [--seeds 0 1 2]
        [--json FILE] [--markdown FILE] [--figure FILE] [--dry_run] [any of train.py's arguments, for all runs]

Each cell is one run of train.py: a system, or a stage of one, with one seed, in a folder of its own below --work_dir.
A run that serves several tables is made once. The same command continues where it stopped: a finished run is read, an
interrupted one goes on from its checkpoint, a failed one is tried again. When a run fails, the end of its log is shown
and the others go on. Every system has the same backbone, images and epochs; tables_cells.py holds the commands.
Figures: see `figures_of` in tables_report.py, and `failed_runs`, a count.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from argparse import SUPPRESS, Namespace
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from datasets import disable_progress_bars
from report import check_command, further_faces, options, read_json, write_json, write_text
from tables_cells import CELLS, TESTED, cells_of, command_of, folder_of, lacking, stages, test_command
from tables_report import TABLES, budget_text, draw, figures_of, report


# On the test split alone, a tenth of so few images, chance would decide the order of the systems.
USUAL = {"seeds": [0, 1, 2], "num_images": 3000, "epochs": 8, "test_images": 1600, "jobs": 1}
QUICK = {"seeds": [0], "num_images": 480, "epochs": 2, "test_images": 0, "jobs": 2}
USUAL["work_dir"], QUICK["work_dir"] = Path("outputs/tables"), Path("outputs/tables-quick")
SYSTEMS = list(dict.fromkeys(row for table in TABLES.values() for row in table.rows))
TAIL = 15  # lines of a failed run's log that are shown
INCOMPLETE = "the losses that need them are off"  # train.py's warning that the data set lacks something
_OF_TRAINING = ("cpu_seconds", "wall_seconds", "trainable_parameters", "train_images", "epoch_cpu_seconds")

_RUNNING: set[subprocess.Popen] = set()
_STOPPED = threading.Event()
_LOCK = threading.Lock()  # nothing may begin while all are being stopped


def parse(argv: list[str] | None) -> Namespace:
    parser = options(__doc__, allow_abbrev=False, epilog=f"Defaults: {USUAL}; with --quick: {QUICK}.")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, help="earlier stages run with them")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--dataset", default="synthetic", help="synthetic (rendered faces), or a folder of MFA")
    parser.add_argument("--num_images", type=int, help="synthetic only: how many are drawn")
    # Not train.py's own: the released tower, from which all start, was trained on those people.
    parser.add_argument("--people_seed", type=int, default=5, help="synthetic only: other people are drawn")
    parser.add_argument("--test_images", type=int, help="synthetic only: further faces to score on; 0: test split")
    parser.add_argument("--style", default="studio", help="synthetic only: as train.py")
    parser.add_argument("--label_set", default="mfa", help="the one that the data set was built with")
    parser.add_argument("--model_size", default="tiny", choices=("tiny", "base"))
    parser.add_argument("--epochs", type=int, help="of each system; of two stages, half each")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, help="one for all, in place of each system's own")
    parser.add_argument("--quick", action="store_true", help="a quarter of an hour on two cores: shows that all works")
    parser.add_argument("--jobs", type=int, help="runs side by side, which share the cores")
    parser.add_argument("--work_dir", type=Path, help="where the runs are kept")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--figure", type=Path, help="default: action_units.png in --work_dir")
    parser.add_argument("--dry_run", action="store_true", help="only print the commands")
    parser.add_argument("--train", type=Path, default=Path(__file__).resolve().parents[2] / "train.py", help=SUPPRESS)
    given, further = parser.parse_known_args(argv)  # the rest is train.py's
    usual = QUICK if given.quick else USUAL
    given = Namespace(**{name: usual.get(name) if value is None else value for name, value in vars(given).items()})
    if min(given.epochs, given.batch_size, given.jobs) < 1 or len(set(given.seeds)) < len(given.seeds):
        parser.error("epochs, batch_size, jobs, seeds: expected 1 or more, and each seed once")
    if given.dataset != "synthetic" and not Path(given.dataset).is_dir():
        parser.error(f"dataset: folder {given.dataset!r} does not exist; build one by examples/build_dataset.py")
    faces = given.work_dir / f"faces-{given.test_images}-{given.people_seed + 1}-{given.style}-{given.label_set}"
    given.test_rows = faces if given.dataset == "synthetic" and given.test_images else None
    given.figure, given.further = given.figure or given.work_dir / "action_units.png", further
    return given


def data_of(given: Namespace) -> str:
    if given.dataset != "synthetic":
        return str(given.dataset)
    drawn = f"{given.num_images} drawn, style {given.style}, people seed {given.people_seed}"
    return f"synthetic faces ({drawn}{'; scored on further ones, of other people' if given.test_rows else ''})"


def run_all(cells: Sequence[str], given: Namespace) -> dict[str, dict]:
    """Cell -> seed -> metrics, or why there are none. Stages of one system run in turn, others side by side."""
    runs: dict[str, dict] = {name: dict.fromkeys(given.seeds) for name in cells}
    chains = [[name for name in cells if stages(name)[0] == first] for first in cells if CELLS[first].after is None]

    def run_chain(chain: Sequence[str], seed: int) -> None:
        for name in chain:
            before = CELLS[name].after
            if before and isinstance(runs[before][seed], str):
                runs[name][seed] = f"{name}-{seed} was not run: it starts from {before}-{seed}, which failed"
                print(runs[name][seed], flush=True)
            else:
                runs[name][seed] = run_cell(name, seed, given)

    _STOPPED.clear()
    pool = ThreadPoolExecutor(given.jobs)
    try:
        for done in as_completed([pool.submit(run_chain, chain, seed) for seed in given.seeds for chain in chains]):
            done.result()
    finally:
        with _LOCK:
            _STOPPED.set()
            for process in list(_RUNNING):
                process.terminate()
        pool.shutdown(cancel_futures=True)
    return runs


def run_cell(name: str, seed: int, given: Namespace) -> dict[str, float] | str:
    """The metrics, or why there are none."""
    folder = folder_of(name, seed, given)
    trained = run(folder, folder.name, command_of(name, seed, given), given)
    if isinstance(trained, str) or given.test_rows is None or not CELLS[name].title or not CELLS[name].further:
        return trained
    tested = run(folder / TESTED, f"{folder.name} on further faces", test_command(name, seed, given), given)
    if isinstance(tested, str):
        return tested
    scores = {k: v for k, v in tested.items() if k not in _OF_TRAINING and not k.startswith("baseline/")}
    return scores | {key: trained[key] for key in _OF_TRAINING if key in trained}


def run(folder: Path, title: str, command: list[str], given: Namespace) -> dict[str, float] | str:
    """One process, unless this very command ended well before. train.py itself continues what was interrupted."""
    record, metrics = folder / "command.json", folder / "metrics.json"
    before = read_json(record) or {}
    if before.get("command") == command and not before.get("exit") and (found := read_json(metrics)) is not None:
        print(f"{title}: done before")
        return found
    metrics.unlink(missing_ok=True)  # what an earlier failure may have left
    write_json(record, {"command": command})
    whole = [sys.executable, str(given.train), *command, "--output_dir", str(folder)]
    log, start = folder / "log.txt", time.perf_counter()
    print(f"{title}: {shlex.join(whole[1:])}", flush=True)
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // given.jobs))} if given.jobs > 1 else {}
    with log.open("a", encoding="utf-8") as file:
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        with _LOCK:
            if _STOPPED.is_set():
                raise InterruptedError(f"{title}: stopped")
            # In a session of its own: a key at the terminal stops this process, which stops the run.
            process = subprocess.Popen(whole, env={**threads, **os.environ}, start_new_session=True, **streams)
            _RUNNING.add(process)
        code = process.wait()
    _RUNNING.discard(process)
    if _STOPPED.is_set():
        raise InterruptedError(f"{title}: stopped")
    found = read_json(metrics)
    if code == 0 and found is not None:
        print(f"{title}: {time.perf_counter() - start:.0f} s", flush=True)
        return found
    write_json(record, {"command": command, "exit": code or 1})
    why = f"ended with {code}" if code else "wrote no metrics.json that can be read"
    text = "\n".join([f"{title} {why}; the end of {log}:", *(f"    {line}" for line in log_of(folder)[-TAIL:])])
    print(text, flush=True)
    return text


def log_of(folder: Path) -> list[str]:
    log = folder / "log.txt"
    return log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []


def notes_of(runs: dict[str, dict], lacked: dict[str, list[str]], given: Namespace) -> list[str]:
    """Runs that failed, data sets that lacked something, systems that were not run."""
    notes = [run for seeds in runs.values() for run in seeds.values() if isinstance(run, str)]
    for name, seed in ((name, seed) for name in runs for seed in given.seeds):
        lines = dict.fromkeys(line.strip() for line in log_of(folder_of(name, seed, given)) if INCOMPLETE in line)
        notes += [f"{name}-{seed}: {line}" for line in lines]
    return notes + [f"{n} was not run: label set {given.label_set} has no {' and no '.join(lacked[n])}" for n in lacked]


def backbone_of(name: str, given: Namespace) -> str | None:
    """The backbone that a system's checkpoint names, if there is one."""
    config = read_json(folder_of(stages(name)[0], given.seeds[0], given) / "config.json") or {}
    return config.get("backbone") or config.get("vision_config", {}).get("backbone")


def main(argv: list[str] | None = None) -> dict[str, float]:
    given = parse(argv)
    disable_progress_bars()
    rows = dict.fromkeys(row for name in given.tables for row in TABLES[name].rows if row in given.systems)
    if not rows:
        raise ValueError(f"systems: got {given.systems}, expected some of those that {given.tables} have")
    lacked = {name: needs for name in rows if (needs := lacking(name, given.label_set))}
    systems = [name for name in rows if name not in lacked]
    cells, data = cells_of(systems), data_of(given)
    commands = {(name, seed): command_of(name, seed, given) for seed in given.seeds for name in cells}
    print(budget_text(given, data, systems, {}, {}) + "\n")
    if given.dry_run:
        for (name, seed), command in commands.items():
            folder = str(folder_of(name, seed, given))
            print(shlex.join([sys.executable, str(given.train), *command, "--output_dir", folder]))
        return {}
    for (name, seed), command in commands.items():
        check_command(folder_of(name, seed, given), command, "--work_dir")
    if given.test_rows:
        further_faces(given.test_rows, given.test_images, given.style, given.people_seed + 1, given.label_set)
    runs = run_all(cells, given)
    shown = {name: runs[name] for name in systems}
    failed = sum(isinstance(run, str) for seeds in runs.values() for run in seeds.values())
    figures = {**figures_of(given.tables, shown), "failed_runs": float(failed)}
    markdown = given.markdown or given.work_dir / "tables.md"
    drawn = draw(given.figure, given.tables, shown, data, len(given.seeds))
    picture = os.path.relpath(given.figure, markdown.parent) if drawn else None
    budget = budget_text(given, data, systems, runs, {name: backbone_of(name, given) for name in systems})
    text = report(given.tables, shown, budget, data, notes_of(runs, lacked, given), picture)
    print(f"\n{text}")
    write_text(markdown, text)
    write_json(given.json, figures)
    return figures


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stops the runs that are going on, too
    sys.exit(1 if main().get("failed_runs") else 0)
