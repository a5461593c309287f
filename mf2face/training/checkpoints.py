"""Checkpoints that can be trusted: whole or passed over, agreed on by all processes, and not lost to a full disk."""

import errno
import functools
import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from filelock import FileLock, Timeout
from transformers import TrainingArguments

from configuration_mf2.json_files import read_json


logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
BEGUN = "begun.json"


def parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def from_first_process(value: object) -> object:
    """What the first process has, on all; they have to ask alike."""
    if not parallel():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def seal(folder: Path) -> None:
    """Writes, last of all, what a checkpoint consists of: one that was cut short is then known by its sizes.

    All processes call it, each after its own files."""
    if parallel():
        dist.barrier()
    if not parallel() or dist.get_rank() == 0:
        sizes = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            with open(path, "rb") as file:
                os.fsync(file.fileno())  # a full disk far away may be noticed only now
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
        temporary = folder / f"{_COMPLETE}.tmp"
        temporary.write_text(json.dumps(sizes))
        temporary.replace(folder / _COMPLETE)
    if parallel():
        dist.barrier()


def check_same_run(folder: Path, begun: Mapping[str, Any]) -> None:
    """What stands in a folder is continued by the run that wrote it, and by no other: its weights would pass for those
    of other settings."""
    path = folder / BEGUN
    begun = json.loads(json.dumps(begun, default=str))
    if path.is_file() and any(folder.glob("checkpoint-*")):
        before = read_json(path)
        other = [name for name in begun if name in before and before[name] != begun[name]]
        if other:
            differences = ", ".join(f"{name} {before[name]!r}, now {begun[name]!r}" for name in other)
            raise ValueError(
                f"output_dir: {folder} holds the checkpoints of another run ({differences}); give another folder, "
                "or remove this one to begin anew"
            )
    if parallel():
        dist.barrier()
    if not parallel() or dist.get_rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{BEGUN}.tmp"
        temporary.write_text(json.dumps(begun, indent=1), encoding="utf-8")
        temporary.replace(path)


def unseal(folder: Path) -> None:
    """A folder that is written again is not whole before its end."""
    if not parallel() or dist.get_rank() == 0:
        (folder / _COMPLETE).unlink(missing_ok=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    try:
        sizes = read_json(folder / _COMPLETE)
    except (OSError, ValueError):
        return f"{_COMPLETE} is missing: it was not written to its end"
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found != size:
            return f"{name} has {found} bytes, {size} were written" if found is not None else f"{name} is missing"
    return None


def whole_checkpoints(output_dir: str | Path) -> Iterator[Path]:
    """The newest first. Damaged ones are named, and passed over."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: -int(path.name.split("-")[-1])):
        reason = damage(folder)
        if reason is None:
            yield folder
        else:
            logger.warning("%s is passed over: %s", folder, reason)


def last_good_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint; the first process decides for all."""
    first = not parallel() or dist.get_rank() == 0
    found = from_first_process(str(next(whole_checkpoints(output_dir), "")) if first else None)
    if found and not Path(found).is_dir():
        raise FileNotFoundError(
            f"{found}: the first process continues from this checkpoint, and it cannot be seen here; --output_dir has "
            "to be on a file system that all machines share"
        )
    return found or None


def stopped_early(checkpoint: str | None) -> int | None:
    """After how many steps a run had stopped for want of progress, if it had: there is nothing left to train."""
    if checkpoint is None:
        return None
    state = read_json(Path(checkpoint) / "trainer_state.json")
    kept = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback")
    if not isinstance(kept, dict):
        return None
    waited = kept.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return state["global_step"] if waited >= kept["args"]["early_stopping_patience"] else None


@contextmanager
def disk_may_be_full(written: Callable[[], Path]) -> Iterator[None]:
    """A checkpoint that finds no room is removed, and the error says what to do.

    written: the folder of the checkpoint that is being written when the error comes."""
    try:
        yield
    except Exception as error:
        folder = written()
        if not _is_disk_full(error, folder) or (folder.is_dir() and damage(folder) is None):
            raise
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
        shutil.rmtree(folder, ignore_errors=True)
        others = list(whole_checkpoints(folder.parent))
        sizes = [sum(read_json(other / _COMPLETE).values()) for other in others]
        needed = f"about {sizes[0] / 1e6:.0f} MB" if sizes else f"more than {size / 1e6:.0f} MB"
        further = f"continues from {others[0].name}" if others else "starts anew, for there is no whole checkpoint yet"
        raise OSError(
            errno.ENOSPC,
            f"{folder.parent} is full: {folder.name} needs {needed}, {shutil.disk_usage(folder.parent).free / 1e6:.0f} "
            f"MB are free. Free some, or save less with --save_total_limit or --save_only_model; the same command then "
            f"{further}",
        ) from error


def _is_disk_full(error: BaseException | None, folder: Path) -> bool:
    """safetensors and torch.save wrap the system's error in their own, the latter without its reason."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left", "os error 28", "quota exceeded", "os error 122")):
            return True
        if "file write failed" in str(error) and shutil.disk_usage(folder.parent).free < 1e6:
            return True
        error = error.__cause__ or error.__context__
    return False


_LOCK = ".in_use.lock"


@contextmanager
def sole_user(training: TrainingArguments) -> Iterator[None]:
    """The first process holds a lock for all of its job; whatever ends the process, the system releases it."""
    folder = Path(training.output_dir)
    lock = FileLock(folder / _LOCK)
    refused = None
    if training.process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
            (folder / _LOCK).write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        except Timeout:
            refused = f"output_dir: {folder} is in use by {_owner(folder)}"
    if refused := from_first_process(refused):
        raise BlockingIOError(f"{refused}. Wait for it, stop it, or choose another --output_dir")
    try:
        yield
    finally:
        lock.release()


def _owner(folder: Path) -> str:
    try:
        owner = read_json(folder / _LOCK)
        return f"process {owner['process']} on {owner['host']}"
    except (OSError, ValueError, KeyError):
        return "another job"


def as_sole_user(run: Callable[..., Any]) -> Callable[..., Any]:
    """For a function of (arguments, training): runs it as the only user of `training.output_dir`."""

    @functools.wraps(run)
    def alone(arguments: Any, training: TrainingArguments) -> Any:
        with sole_user(training):
            return run(arguments, training)

    return alone


__all__ = [
    "as_sole_user",
    "damage",
    "disk_may_be_full",
    "from_first_process",
    "last_good_checkpoint",
    "parallel",
    "seal",
    "sole_user",
    "stopped_early",
    "unseal",
]
