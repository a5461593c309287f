"""The hidden folder of a build, from which an interrupted one goes on: its plan, finished shards and their notes."""

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from .label_files_mf2 import CorpusError
from .mfa_rows_mf2 import Problem


_ROW_GROUP = 100


@dataclass(frozen=True)
class Shard:
    split: str
    number: int
    of: int
    rows: np.ndarray

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:05d}-of-{self.of:05d}.parquet"


def plan_before(work: Path) -> str | None:
    try:
        return json.loads((work / "plan.json").read_text(encoding="utf-8"))["plan"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = f"Remove {work} to begin anew"
        raise CorpusError(work / "plan.json", str(error) or "damage", "the plan of a build", told) from error


def same_plan(work: Path, plan: dict[str, Any]) -> None:
    """The plan is written before any shard and removed after all: shards without it are of an unknown one."""
    file = work / "plan.json"
    if (before := plan_before(work)) is None:
        for name in ("result", "notes", "data"):
            shutil.rmtree(work / name, ignore_errors=True)
        (work / "near.json").unlink(missing_ok=True)
        write_whole(file, json.dumps(plan))
    elif before != plan["plan"]:
        options = json.loads(file.read_text(encoding="utf-8")).get("options", {})
        changed = [f"{k}: {v!r}" for k, v in options.items() if v != plan["options"].get(k)]
        raise ValueError(
            f"out: {work} holds an unfinished build of other options or labels ({', '.join(changed) or 'other rows'}). "
            "Start with those to go on with it, or remove that folder to begin anew"
        )
    (work / "result" / "data").mkdir(parents=True, exist_ok=True)
    (work / "notes").mkdir(exist_ok=True)


def remove_work(work: Path) -> None:
    """The plan goes last: a folder without it holds nothing to go on from."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "plan.json":
            path.unlink()
    (work / "plan.json").unlink(missing_ok=True)
    work.rmdir()


def write_table(file: Path, table: Any, features: Any) -> None:
    temporary = file.with_name(file.name + ".part")
    with open(temporary, "wb") as stream:
        whole = table.replace_schema_metadata(features.arrow_schema.metadata)
        pq.write_table(whole, stream, row_group_size=_ROW_GROUP)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def write_whole(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".part")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(file)


def write_notes(work: Path, shard: Shard, hashes: np.ndarray, kept: np.ndarray, problems: Sequence[Problem]) -> None:
    """What the end of the build has to know of a shard. It is written last: a shard without notes is built again."""
    told = {
        "rows": kept.tolist(),
        "hashes": np.ascontiguousarray(hashes).tobytes().hex(),
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }
    write_whole(work / "notes" / f"{shard.file}.json", json.dumps(told))


def read_notes(work: Path, shard: Shard) -> dict[str, Any] | None:
    """Of a finished shard whose file is whole."""
    try:
        notes = json.loads((work / "notes" / f"{shard.file}.json").read_text())
        return notes if pq.read_metadata(work / "result" / "data" / shard.file).num_rows == len(notes["rows"]) else None
    except (OSError, ValueError):  # absent, or cut off
        return None


__all__ = [
    "Shard",
    "plan_before",
    "read_notes",
    "remove_work",
    "same_plan",
    "write_notes",
    "write_table",
    "write_whole",
]
