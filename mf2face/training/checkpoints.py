"""Checkpoints that are whole or skipped, agreed on by all processes, and not lost to a full disk or a second job."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from configuration_mf2.json_files import read_json
from mf2face.files import disk_full, is_disk_full, locked, remove_leftovers, write_whole


logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
BEGUN = "begun.json"


def from_first_process(value: object) -> object:
    """The first process's value, on all; all have to call."""
    return broadcast_object_list([value])[0]


def seal(folder: Path) -> None:
    """Writes the sizes of a checkpoint's files, last of all, so that one that was cut short is recognised.

    All processes call it, each after its own files."""
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        remove_leftovers(folder)  # a killed run's parts: swept later, they would count as lost
        sizes = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())  # a full network disk may report only now
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
        write_whole(folder / _COMPLETE, json.dumps(sizes))
    PartialState().wait_for_everyone()


def check_same_run(folder: Path, begun: Mapping[str, Any]) -> None:
    """Refuses a folder with the checkpoints of a run with other settings, and notes the settings of this one."""
    path = folder / BEGUN
    begun = json.loads(json.dumps(begun, default=str))
    if path.is_file() and any(folder.glob("checkpoint-*")):
        before = read_json(path)
        changed = [name for name in begun if name in before and before[name] != begun[name]]
        if changed:
            differences = ", ".join(f"{name} {before[name]!r}, now {begun[name]!r}" for name in changed)
            raise ValueError(
                f"output_dir: {folder} holds the checkpoints of another run ({differences}); give another folder, or "
                "remove this one to start anew"
            )
    PartialState().wait_for_everyone()
    if PartialState().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(begun, indent=1))


def unseal(folder: Path) -> None:
    """Marks a checkpoint that is about to be overwritten as incomplete."""
    if PartialState().is_main_process:
        (folder / _COMPLETE).unlink(missing_ok=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        sizes = read_json(folder / _COMPLETE)
    except (OSError, ValueError):
        return f"{_COMPLETE} is missing: it was not written to its end"
    for name, size in sizes.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if (actual := path.stat().st_size) != size:
            return f"{name} has {actual} bytes, {size} were written"
    return None


def whole_checkpoints(output_dir: str | Path) -> Iterator[Path]:
    """Newest first; damaged ones are logged and skipped."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: -int(path.name.split("-")[-1])):
        reason = damage(folder)
        if reason is None:
            yield folder
        else:
            logger.warning("%s is passed over: %s", folder, reason)


def last_good_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint; the first process decides for all."""
    newest = from_first_process(
        str(next(whole_checkpoints(output_dir), "")) if PartialState().is_main_process else None
    )
    if newest and not Path(newest).is_dir():
        raise FileNotFoundError(
            f"{newest}: the first process continues from this checkpoint, which is not visible here; --output_dir has "
            "to be on a file system that all machines share"
        )
    return newest or None


def stopped_early(checkpoint: str | None) -> int | None:
    """The step at which early stopping ended the run of a checkpoint, if it did."""
    if checkpoint is None:
        return None
    state = read_json(Path(checkpoint) / "trainer_state.json")
    saved = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    if not isinstance(saved, dict):
        return None
    waited = saved.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return state["global_step"] if waited >= saved["args"]["early_stopping_patience"] else None


@contextmanager
def disk_may_be_full(written: Callable[[], Path]) -> Iterator[None]:
    """Removes a checkpoint that does not fit on the disk, and raises an error that says what to do.

    written: gives the folder of the checkpoint that is being written when the error comes."""
    try:
        yield
    except Exception as error:
        folder = written()
        if not is_disk_full(error, folder.parent) or (folder.is_dir() and damage(folder) is None):
            raise
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
        shutil.rmtree(folder, ignore_errors=True)
        others = list(whole_checkpoints(folder.parent))
        if others:
            size = sum(read_json(others[0] / _COMPLETE).values())
        further = f"continues from {others[0].name}" if others else "starts anew, as there is no whole checkpoint yet"
        advice = (
            f"{folder.name} was not saved: free some space, or save less with --save_total_limit or --save_only_model; "
            f"the same command then {further}"
        )
        raise disk_full(folder.parent, advice, size) from error


_LOCK = ".in_use.lock"


@contextmanager
def sole_user(training: TrainingArguments) -> Iterator[None]:
    """The first process locks output_dir for all of its job; the system releases the lock of a process that dies."""
    path, refused = Path(training.output_dir) / _LOCK, None
    with ExitStack() as stack:
        if training.process_index == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            refused = BlockingIOError(
                f"output_dir: {path.parent} is in use by {_owner(path)}. Wait for it, stop it, or choose another "
                "--output_dir"
            )
            try:
                stack.enter_context(locked(path, refused))
                path.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}), encoding="utf-8")
                refused = None
            except BlockingIOError:
                pass
        if refused := from_first_process(refused):
            raise refused
        yield


def _owner(path: Path) -> str:
    try:
        owner = read_json(path)
        return f"process {owner['process']} on {owner['host']}"
    except (OSError, ValueError, KeyError):
        return "another job"


__all__ = [
    "check_same_run",
    "damage",
    "disk_may_be_full",
    "from_first_process",
    "last_good_checkpoint",
    "seal",
    "sole_user",
    "stopped_early",
    "unseal",
]
