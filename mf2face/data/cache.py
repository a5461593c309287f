"""Data sets on disk: built once for all processes that ask, checked when read, whole or absent."""

import contextlib
import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from configuration_mf2.json_files import read_json
from mf2face.files import check_room, checksum, disk_full, is_disk_full, locked, remove_leftovers, whole_folder


logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"
_ADVICE = "Pass another cache_dir, or streaming=True"


def load_or_build(folder: Path, build: Callable[[str], Dataset], bytes_needed: int) -> Dataset:
    """The data set in `folder`; if there is none, or a damaged one, `build(scratch folder)` makes it again.

    Processes that ask at the same time wait for the first of them and then read what it built.
    """
    cached, lock = _load(folder), folder.parent / f".{folder.name}.lock"
    if cached is not None:
        remove_leftovers(folder.parent)
        with contextlib.suppress(OSError):  # left by a killed process; a read-only folder stays as it is
            if lock.exists():
                with locked(lock, busy=BlockingIOError()):
                    pass
        return cached
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cache_dir: {folder.parent} cannot be made ({error.strerror}). {_ADVICE}"
        raise OSError(error.errno, message) from error
    if folder.exists() and not folder.is_dir():
        message = f"cache_dir: {folder} is a file, expected a folder or nothing. Remove it, or pass another cache_dir"
        raise NotADirectoryError(errno.ENOTDIR, message)
    with locked(lock):
        if (cached := _load(folder)) is None:
            if folder.is_dir():
                logger.warning("%s is damaged and is built again", folder)
                shutil.rmtree(folder)
            _build(folder, build, bytes_needed)
            cached = _load(folder)
    if cached is None:
        raise OSError(f"cache_dir: {folder} was written and cannot be read back. Check the disk or pass another one")
    return cached


def _build(folder: Path, build: Callable[[str], Dataset], bytes_needed: int) -> None:
    check_room(folder.parent, bytes_needed, _ADVICE)
    try:
        with whole_folder(folder) as part:
            build(str(part / "built")).save_to_disk(part)
            shutil.rmtree(part / "built")
            sums = {path.name: checksum(path) for path in sorted(part.iterdir())}
            (part / _COMPLETE).write_text(json.dumps(sums))
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(folder.parent, _ADVICE) from error
        raise


def _load(folder: Path) -> Dataset | None:
    try:
        # `datasets` may have put files of its own beside them since.
        if all(checksum(folder / name) == written for name, written in read_json(folder / _COMPLETE).items()):
            return load_from_disk(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:  # also checksums that are no dict of names
        logger.debug("%s is not read: %s", folder, error)
    return None


def load_folder(folder: str | Path) -> Dataset:
    """All splits of a folder that `build_mfa` or `save_to_disk` wrote, as one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset: there is no folder {str(folder)!r}; build one by examples/build_dataset.py")
    saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    try:
        rows = load_from_disk(folder) if saved else load_dataset(str(folder))
    except (DatasetsError, ValueError, OSError, KeyError, TypeError) as error:
        expected = "expected what build_dataset.py or save_to_disk wrote. Build it again"
        raise ValueError(f"dataset: {folder} cannot be read ({error.__cause__ or error}), {expected}") from error
    return rows if isinstance(rows, Dataset) else concatenate_datasets(list(rows.values()))


def save_whole(rows: Dataset, folder: Path) -> None:
    """`rows.save_to_disk(folder)`, but `folder` is the old data set or the whole new one, whenever a kill comes."""
    if folder.exists() and not (folder / "dataset_info.json").is_file() and any(folder.iterdir()):
        raise FileExistsError(f"out: {folder} holds no data set, and is kept; name another folder, or remove it")
    with whole_folder(folder) as part:
        rows.save_to_disk(part)


__all__ = ["load_folder", "load_or_build", "save_whole"]
