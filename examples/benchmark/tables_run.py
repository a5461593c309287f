"""The running of `tables.py`'s cells: each in a process and a folder of its own, side by side where there is room."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from datasets import DatasetDict
from report import write_json
from tables_cells import CELLS, TESTED, Budget, command_of, folder_of, stages, test_command

from mf2face.data.synthetic.faces import MFASynthetic


TAIL = 15  # lines of a failed cell's log that are shown
_OF_TRAINING = ("cpu_seconds", "wall_seconds", "trainable_parameters", "train_images", "epoch_cpu_seconds")
# What train.py says of a dataset that lacks something: the run goes on, and is not what its name promises.
INCOMPLETE = "the losses that need them are off"

_RUNNING: set[subprocess.Popen] = set()
_STOPPED = threading.Event()
_LOCK = threading.Lock()  # nothing may begin while all are being stopped


Environment = Mapping[str, str] | None


def run_all(
    cells: Sequence[str], seeds: Sequence[int], budget: Budget, work_dir: Path, train: Path, jobs: int
) -> dict[str, dict]:
    """Cell -> seed -> metrics, or why there are none. What starts from each other takes turns; others run side by side,
    and share the cores."""
    runs: dict[str, dict] = {name: {} for name in cells}
    chains = [[name for name in cells if stages(name)[0] == first] for first in cells if CELLS[first].after is None]
    environment = None
    if jobs > 1:
        environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}

    def run_chain(chain: Sequence[str], seed: int) -> None:
        for name in chain:
            before = CELLS[name].after
            if before and isinstance(runs[before][seed], str):
                runs[name][seed] = f"{name}-{seed} was not run: it starts from {before}-{seed}, which failed"
                print(runs[name][seed], flush=True)
            else:
                runs[name][seed] = run_cell(name, seed, budget, work_dir, train, environment)

    _STOPPED.clear()
    pool = ThreadPoolExecutor(jobs)
    try:
        for done in as_completed([pool.submit(run_chain, chain, seed) for seed in seeds for chain in chains]):
            done.result()
    finally:
        with _LOCK:
            _STOPPED.set()
            for process in list(_RUNNING):
                process.terminate()
        pool.shutdown(cancel_futures=True)
    return {name: {seed: runs[name][seed] for seed in seeds} for name in cells}


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


def run_cell(
    name: str, seed: int, budget: Budget, work_dir: Path, train: Path, environment: Environment = None
) -> dict[str, float] | str:
    """The metrics, or why there are none. What was interrupted is continued by train.py itself."""
    folder, command = folder_of(work_dir, name, seed), command_of(name, seed, budget, work_dir)
    found = _run(folder, command, train, environment)
    if isinstance(found, str) or budget.test_rows is None or not CELLS[name].title or not CELLS[name].further:
        return found
    tested = _run(folder / TESTED, test_command(name, folder, budget), train, environment)
    if isinstance(tested, str):
        return tested
    scores = {k: v for k, v in tested.items() if k not in _OF_TRAINING and not k.startswith("baseline/")}
    return scores | {name: found[name] for name in _OF_TRAINING if name in found}


def draw_test_rows(folder: Path, images: int, style: str, seed: int, label_set: str) -> Path:
    """Faces drawn for the scores alone, in a folder for train.py, which asks for a train split and finds a stand-in."""
    if not folder.is_dir():
        rows = MFASynthetic(images, style, seed=seed, label_set=label_set)
        few = rows.select(range(min(64, len(rows))))
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        DatasetDict({"train": few, "validation": few, "test": rows}).save_to_disk(temporary)
        temporary.rename(folder)
    return folder


def _run(folder: Path, command: list[str], train: Path, environment: Environment) -> dict[str, float] | str:
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
        streams = {"stdout": file, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        with _LOCK:
            if _STOPPED.is_set():
                raise InterruptedError(f"{named}: stopped before it began")
            # In a session of its own: a key at the terminal stops us, and we stop it.
            process = subprocess.Popen(whole, env=environment, start_new_session=True, **streams)
            _RUNNING.add(process)
        code = process.wait()
    with _LOCK:
        _RUNNING.discard(process)
    if _STOPPED.is_set():
        raise InterruptedError(f"{named}: stopped")
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


def backbone_of(folder: Path) -> str | None:
    """Of what a run trained, as its checkpoint says; None where there is none."""
    config = read_json(folder / "config.json") or {}
    return config.get("backbone") or config.get("vision_config", {}).get("backbone")


def incomplete(folder: Path) -> list[str]:
    """Warnings of a run that its dataset lacked something."""
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return list(dict.fromkeys(line.strip() for line in lines if INCOMPLETE in line))
