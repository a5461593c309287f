"""Files and folders that are whole or absent, locks, full disks, checksums; what dead processes left is removed."""

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


_HERE = Path(__file__).resolve().parent
MODEL_CARDS = (_HERE if (_HERE / "model_cards").is_dir() else _HERE.parent) / "model_cards"
"""Inside the package in a wheel, beside it in a checkout."""
RELEASED = MODEL_CARDS / "mf2-tiny-rendered"
"""The checkpoint that comes along; `make checkpoint` trains it anew."""

_PART = re.compile(r"\.part-([0-9a-f]{8})-(\d+)-(\d+)-\d+(?:\.\w+)?")
_FOREIGN_AGE = 24 * 3600
"""Seconds; a process of another machine, container or boot cannot be looked up, so its part goes when it is old."""

_FULL_DISK_WORDS = ("No space left", "os error 28", "quota exceeded", "os error 122")
"""What safetensors writes in place of the system's error."""

_COUNTER = itertools.count()
_SWEPT: set[str] = set()


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: rows and pictures of people are made with mode 0600."""
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike, *, shared: bool = False, sync: bool = False, suffix: str = ""
) -> Iterator[Path]:
    """Yields an empty temporary file in the same folder, which replaces `path` if nothing is raised.

    shared: the mode is the user's default, not 0600. sync: the content is on the disk before the rename. suffix: the
    temporary name's.
    """
    path = Path(path)
    part = _part_beside(path, suffix)
    try:
        with open(part, "xb", opener=None if shared else private):
            pass
        yield part
        if sync:
            with open(part, "rb+") as file:
                os.fsync(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike, content: str | bytes, *, shared: bool = True) -> None:
    """Writes a small file at once; bytes of file names that are no UTF-8 are escaped."""
    with whole_file(path, shared=shared) as part:
        part.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path`, which replaces it if nothing is raised.

    A kill between the two renames leaves the old folder aside; the next call for `path` puts it back.
    """
    path = Path(path)
    part, old = _part_beside(path), path.with_name(f".{path.name}.old")
    _put_back(old, path)
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.rename(old)
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _put_back(old, path)


def _put_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _part_beside(path: Path, suffix: str = "") -> Path:
    """A name that does not contain that of `path`, which may be as long as the file system allows. The first one in a
    folder removes what dead processes left there."""
    folder = os.path.abspath(path.parent)
    if folder not in _SWEPT:
        _SWEPT.add(folder)
        remove_leftovers(folder)
    pid = os.getpid()
    return path.with_name(f".part-{_machine()}-{pid}-{_started(pid) or 0}-{next(_COUNTER)}{suffix}")


def remove_leftovers(folder: str | os.PathLike) -> list[str]:
    """Removes the parts of dead processes from a folder, and returns their names."""
    removed = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if (named := _PART.fullmatch(entry.name)) and _is_dead(entry, *named.groups()):
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
                    removed.append(entry.name)
    return removed


def _is_dead(entry: os.DirEntry, machine: str, pid: str, started: str) -> bool:
    if machine == _machine():
        return _started(int(pid)) not in (int(started), 0)
    return time.time() - entry.stat(follow_symlinks=False).st_mtime > _FOREIGN_AGE


@functools.cache
def _machine() -> str:
    """A process id means something only within one boot and one container."""
    facts = [platform.node()]
    with contextlib.suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; None if it is not running, 0 if that is not known."""
    if os.path.isdir("/proc/self"):
        try:
            # The second field is the program's name in parentheses, which may hold spaces.
            state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return None if state in (b"Z", b"X") else int(fields[18])
    if os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
    return 0


@contextlib.contextmanager
def locked(path: str | os.PathLike, busy: Exception | None = None) -> Iterator[None]:
    """Holds the lock file `path` and removes it at the end; the system releases the lock of a process that dies.

    busy: raised if another process holds it; without, the call waits.
    """
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=-1 if busy is None else 0)
    except Timeout:
        raise busy from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)  # while it is held: a waiting process notices, and takes the next
        lock.release()


def append_whole(file: int, size: int, content: bytes) -> int:
    """Appends to a file descriptor at its end, `size`; what a full disk cut short is removed. Returns the new size."""
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(file, size)
        raise
    return size + len(content)


def is_disk_full(error: BaseException | None, folder: str | os.PathLike | None = None) -> bool:
    """Whether an error, or one behind it, came from a full disk. folder: for torch.save, which gives no reason."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _FULL_DISK_WORDS):
            return True
        if folder is not None and "file write failed" in str(error) and shutil.disk_usage(folder).free < 1e6:
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(folder: str | os.PathLike, advice: str, bytes_needed: int = 0) -> OSError:
    needed = f", about {bytes_needed / 1e6:.0f} MB are needed" if bytes_needed else ""
    free = shutil.disk_usage(folder).free / 1e6
    return OSError(errno.ENOSPC, f"{folder}: the disk is full ({free:.0f} MB are free{needed}). {advice}")


def check_room(folder: str | os.PathLike, bytes_needed: int, advice: str) -> None:
    if shutil.disk_usage(folder).free < bytes_needed:
        raise disk_full(folder, advice, bytes_needed)


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept for a user, under one name for each use."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mf2" / name


def checksum(path: str | os.PathLike) -> int:
    """CRC-32 of a file's content."""
    total = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


__all__ = [
    "append_whole",
    "cache_folder",
    "check_room",
    "checksum",
    "disk_full",
    "is_disk_full",
    "locked",
    "private",
    "remove_leftovers",
    "whole_file",
    "whole_folder",
    "write_whole",
]
