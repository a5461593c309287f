"""One job an output folder: a second one would mix its checkpoints with the first one's."""

import functools
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import TrainingArguments

from configuration_mf2.json_mf2 import read_json

from .checkpoints_mf2 import from_first_process


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


__all__ = ["as_sole_user", "sole_user"]
