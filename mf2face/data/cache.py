"""A data set kept on disk: built once whoever asks first, checked when read, whole or absent."""

import contextlib
import errno
import glob
import json
import logging
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from filelock import FileLock, Timeout

from configuration_mf2.json_files import read_json


logger = logging.getLogger(__name__)

_COMPLETE = "complete.json"


def load_or_build(folder: Path, build: Callable[[str], Dataset], bytes_needed: int) -> Dataset:
    """The data set in `folder`; if there is none, or a damaged one, `build(scratch folder)` makes it anew.

    Processes that ask at the same time wait for the first of them and then read what it built.
    """
    cached, lock = _load(folder), FileLock(folder.parent / f".{folder.name}.lock")
    if cached is not None:
        with contextlib.suppress(OSError, Timeout):  # whoever may only read leaves it as it is
            if any(_scratch_folders(folder)):
                with lock.acquire(timeout=0):
                    _remove_scratch(folder)
        return cached
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = (
            f"cache_dir: {folder.parent} cannot be made ({error.strerror}). Pass another cache_dir, or streaming=True"
        )
        raise OSError(error.errno, told) from error
    if folder.exists() and not folder.is_dir():
        told = f"cache_dir: {folder} is a file, expected a folder or nothing. Remove it, or pass another cache_dir"
        raise NotADirectoryError(errno.ENOTDIR, told)
    with lock:
        _remove_scratch(folder)
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
    if shutil.disk_usage(folder.parent).free < bytes_needed:
        raise _disk_full(folder.parent, bytes_needed)
    scratch = Path(tempfile.mkdtemp(prefix=_scratch_prefix(folder), dir=folder.parent))
    try:
        build(str(scratch / "built")).save_to_disk(scratch / "saved")
        (scratch / "saved" / _COMPLETE).write_text(json.dumps(_checksums(scratch / "saved")))
        # A rename within a file system is atomic: a process that dies before it leaves nothing in `folder`.
        (scratch / "saved").rename(folder)
    except Exception as error:
        if disk_full(error) is not None:
            raise _disk_full(folder.parent) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch_prefix(folder: Path) -> str:
    return f".part-{folder.name}-"


def _scratch_folders(folder: Path) -> Iterator[Path]:
    return folder.parent.glob(f"{glob.escape(_scratch_prefix(folder))}*")


def _remove_scratch(folder: Path) -> None:
    """Of processes that were killed: whoever holds the lock is the only one that builds."""
    for scratch in _scratch_folders(folder):
        shutil.rmtree(scratch, ignore_errors=True)


def load_folder(folder: str | Path) -> Dataset:
    """All splits of a folder that `build_mfa` or `save_to_disk` wrote, as one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset: there is no folder {str(folder)!r}; build one by examples/build_dataset.py")
    saved = any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
    try:
        found = load_from_disk(folder) if saved else load_dataset(str(folder))
    except (DatasetsError, ValueError, OSError, KeyError, TypeError) as error:
        raise ValueError(
            f"dataset: {folder} cannot be read ({error.__cause__ or error}), expected what build_dataset.py or "
            "save_to_disk wrote. Build it again"
        ) from error
    return found if isinstance(found, Dataset) else concatenate_datasets(list(found.values()))


def save_whole(rows: Dataset, folder: Path) -> None:
    """`rows.save_to_disk(folder)`, but `folder` is the old data set or the whole new one, whenever a kill comes; what a
    killed save left is removed by the next."""
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    if folder.exists() and not (folder / "dataset_info.json").is_file() and any(folder.iterdir()):
        raise FileExistsError(f"out: {folder} holds no data set, and is kept; name another folder, or remove it")
    rows.save_to_disk(part)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _load(folder: Path) -> Dataset | None:
    try:
        # `datasets` may have put files of its own beside them since.
        written = read_json(folder / _COMPLETE)
        if written == _checksums(folder, written):
            return load_from_disk(folder)
    except (OSError, ValueError, TypeError) as error:  # also of a list of checksums that is none
        logger.debug("%s is not read: %s", folder, error)
    return None


def _checksums(folder: Path, names: Iterable[str] | None = None) -> dict[str, int]:
    sums = {}
    for path in sorted(folder / name for name in names) if names is not None else sorted(folder.iterdir()):
        checksum = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                checksum = zlib.crc32(block, checksum)
        sums[path.name] = checksum
    return sums


def disk_full(error: BaseException | None) -> OSError | None:
    """What was raised because there is no room, itself or behind `error`."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None


def _disk_full(root: Path, bytes_needed: int = 0) -> OSError:
    free = shutil.disk_usage(root).free / 1e6
    wish = f", about {bytes_needed / 1e6:.0f} MB are needed" if bytes_needed else ""
    told = f"cache_dir: {root} is full ({free:.0f} MB free{wish}). Pass another cache_dir, or streaming=True"
    return OSError(errno.ENOSPC, told)
