"""Checkpoints that are whole or skipped, agreed on by all processes, and not lost to a full disk or a second job."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from configuration_mf2.json_files import read_json
from mf2face.files import disk_full, is_disk_full, locked, remove_leftovers, whole_file, write_whole


logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
BEGUN = "begun.json"
_METADATA = {"format": "pt"}


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
            changes = ", ".join(f"{name} {before[name]!r}, now {begun[name]!r}" for name in changed)
            advice = "give another folder, or remove this one to start anew"
            raise ValueError(f"output_dir: {folder} holds the checkpoints of another run ({changes}); {advice}")
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


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _checkpoints(output_dir: str | Path) -> list[Path]:
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [folder for folder in folders if folder.name.rpartition("-")[2].isdigit()]


def whole_checkpoints(output_dir: str | Path) -> Iterator[Path]:
    """Newest first; damaged ones are logged and skipped."""
    for folder in sorted(_checkpoints(output_dir), key=_step, reverse=True):
        reason = damage(folder)
        if reason is None:
            yield folder
        else:
            logger.warning("%s is passed over: %s", folder, reason)


def last_good_checkpoint(output_dir: str | Path) -> str | None:
    """The newest whole checkpoint; the first process decides for all."""
    newest = str(next(whole_checkpoints(output_dir), "")) if PartialState().is_main_process else None
    newest = from_first_process(newest)
    if newest and not Path(newest).is_dir():
        advice = "--output_dir has to be on a file system that all machines share"
        raise FileNotFoundError(f"{newest}: the first process continues from it, and it is not visible here; {advice}")
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
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder, ignore_errors=True)
        further = "starts anew, as there is no whole checkpoint yet"
        if other := next(whole_checkpoints(folder.parent), None):
            size = sum(read_json(other / _COMPLETE).values())
            further = f"continues from {other.name}"
        advice = (
            f"{folder.name} was not saved: free some space, or save less with --save_total_limit or --save_only_model; "
            f"the same command then {further}"
        )
        raise disk_full(folder.parent, advice, size) from error


_TRAINED = "model-trained.safetensors"


def add_frozen_weights(folder: Path, frozen: Mapping[str, torch.Tensor], digest: str) -> None:
    """Completes a checkpoint that holds trained weights alone: the frozen ones are one file on disk, named by their
    hash, to which every checkpoint of the run has a (hard) link. `from_pretrained` reads it as a sharded checkpoint."""
    file = folder / f"model-frozen-{digest}.safetensors"
    size = sum(tensor.nbytes for tensor in frozen.values())
    for other in folder.parent.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{file.name}"):
        if not file.exists() and other.stat().st_size > size:
            with suppress(OSError):  # a file system without links: another copy
                os.link(other, file)
    if not file.exists():
        with whole_file(file, shared=True) as part:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in frozen.items()}, part, _METADATA)
    (folder / SAFE_WEIGHTS_NAME).replace(folder / _TRAINED)
    with safe_open(folder / _TRAINED, framework="pt") as trained:
        places = dict.fromkeys(trained.keys(), _TRAINED) | dict.fromkeys(frozen, file.name)
    total = size + (folder / _TRAINED).stat().st_size
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_whole(folder / SAFE_WEIGHTS_INDEX_NAME, json.dumps(index, indent=1))


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


class SealedCheckpoints(TrainerCallback):
    """Seals each checkpoint after all of its files, then removes the ones beyond the limit."""

    write_beside: Callable[[Path], None] | None = None

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        for folder in _checkpoints(args.output_dir):
            if _step(folder) > state.global_step:
                unseal(folder)  # this run writes it again

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        folder = checkpoint_folder(args, state)
        if self.write_beside is not None and state.is_world_process_zero:
            self.write_beside(folder)
        seal(folder)
        if args.should_save:
            rotate_checkpoints(args.output_dir, self.limit, state.best_model_checkpoint, use_mtime=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Seals what --enable_jit_checkpoint saved at a SIGTERM, without `on_save`."""
        folder = checkpoint_folder(args, state)
        if from_first_process(args.enable_jit_checkpoint and folder.is_dir() and damage(folder) is not None):
            self.on_save(args, state)


_LOCK = ".in_use.lock"


@contextmanager
def sole_user(training: TrainingArguments) -> Iterator[None]:
    """The first process locks output_dir for all of its job; the system releases the lock of a process that dies."""
    path, refused = Path(training.output_dir) / _LOCK, None
    with ExitStack() as stack:
        if training.process_index == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            advice = "Wait for it, stop it, or choose another --output_dir"
            try:
                stack.enter_context(locked(path, BlockingIOError()))
                path.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}), encoding="utf-8")
            except BlockingIOError:
                refused = BlockingIOError(f"output_dir: {path.parent} is in use by {_owner(path)}. {advice}")
        if refused := from_first_process(refused):
            raise refused
        yield


def _owner(path: Path) -> str:
    try:
        owner = read_json(path)
        return f"process {owner['process']} on {owner['host']}"
    except (OSError, ValueError, KeyError):
        return "another job"
