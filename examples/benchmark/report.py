"""What the benchmarks share: calls timed in turns, runs of train.py, means, and files."""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

Spent = TypeVar("Spent")


def options(doc: str, **more: object) -> argparse.ArgumentParser:
    """A parser with `--json`; its description is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **more)
    parser.add_argument("--json", type=Path, help="write the figures to this file, as one flat object")
    return parser


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: str | os.PathLike | None, figures: Mapping[str, object], part: str = "") -> None:
    """A file in `RESULTS`, or a part of it, is also noted in `SOURCES`: its command, commit, date and machine."""
    if path is None:
        return
    source = origin()  # before the file makes the tree differ from its commit
    write_text(Path(path), json.dumps(figures, indent=2) + "\n")
    if Path(path).resolve().parent == RESULTS:
        name = f"{Path(path).stem}: {part}" if part else Path(path).stem
        noted = {**(read_json(SOURCES) or {}), name: {**source, "machine": f"{os.cpu_count()} CPU cores"}}
        write_text(SOURCES, json.dumps(dict(sorted(noted.items())), indent=2) + "\n")


RESULTS = Path(__file__).resolve().parent / "results"
RUNS, SOURCES = RESULTS.parent / "run_where.json", RESULTS.parent / "sources.json"


def record_run(kept: os.PathLike | None, what: str, device: str, settings: str) -> None:
    """Notes in `RUNS`, the source of the table in docs/paper.md, that something ran; only beside a kept result."""
    if kept is None or Path(kept).resolve().parent != RESULTS:
        return
    runs, kind = read_json(RUNS) or {}, "cpu" if device == "cpu" else "cuda"
    machine = f"{os.cpu_count()} CPU cores"
    if kind == "cuda":
        import torch

        machine = torch.cuda.get_device_name()
    runs.setdefault(what, {})[kind] = {"settings": settings, "machine": machine, **origin()}
    write_json(RUNS, dict(sorted(runs.items())))


@cache
def origin() -> dict[str, str]:
    """Command, commit and date of a result, as they are when it is first asked for."""
    git = ["git", "-C", str(RESULTS), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    script = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {"command": shlex.join(script), "commit": commit, "date": time.strftime("%Y-%m-%d")}


def read_json(path: Path) -> dict | None:
    """None for a file that does not exist, or was cut short."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def show(figures: Mapping[str, float], line: str, path: Path | None) -> None:
    """Prints the figures, each by `line`, and writes them to `path`."""
    for name, value in figures.items():
        print(line.format(name, value))
    write_json(path, figures)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows))


def mean_sd(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[Callable[[], object]], Spent] = seconds
) -> list[dict[str, Spent]]:
    """The time of each call in each round, in turning order; the first round warms up and is left out."""
    names, measured = list(calls), []
    for number in range(rounds + 1):
        turned = names[number % len(names) :] + names[: number % len(names)]
        measured.append({name: clock(calls[name]) for name in turned})
    return measured[1:]


def check_command(folder: Path, command: Sequence[str], option: str = "--output_dir") -> None:
    """No folder may hold what another command wrote."""
    before = (read_json(folder / "command.json") or {}).get("command", command)
    if list(before) != list(command):
        raise ValueError(
            f"{folder}: was run with `{shlex.join(before)}`, expected `{shlex.join(command)}`; give another {option}, "
            "or remove that folder and those of the runs that start from it"
        )


def run_once(folder: Path, command: Sequence[str]) -> dict[str, float]:
    """The metrics of train.py with this command; a finished run is read, not repeated."""
    check_command(folder, command)
    if not (folder / "metrics.json").is_file():
        import train

        write_json(folder / "command.json", {"command": command})
        train.main([*command, "--output_dir", str(folder)])
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def further_faces(folder: Path, images: int, style: str, seed: int, label_set: str) -> Path:
    """Faces drawn for the scores alone; train.py asks for a train split, which repeats a few of them."""
    if not folder.is_dir():
        import datasets

        from mf2face.data.synthetic.faces import MFASynthetic

        rows, temporary = (
            MFASynthetic(images, style, seed=seed, label_set=label_set),
            folder.with_name(f"{folder.name}.tmp"),
        )
        few = rows.select(range(min(64, len(rows))))
        shutil.rmtree(temporary, ignore_errors=True)
        datasets.DatasetDict({"train": few, "validation": few, "test": rows}).save_to_disk(temporary)
        temporary.rename(folder)
    return folder


def save_figure(figure: object, path: Path) -> None:
    """A matplotlib figure, written whole and closed."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=150, format=path.suffix[1:] or "png")
    pyplot.close(figure)
    temporary.replace(path)
