"""Files that are whole or not there, and that only their owner reads; leftovers of dead processes are removed."""

import contextlib
import functools
import hashlib
import itertools
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path


_PART = re.compile(r"\.part-([0-9a-f]{8})-(\d+)-(\d+)-\d+")
_FOREIGN_AGE = 24 * 3600
"""Seconds; a process of another machine, container or boot cannot be looked up, so its part goes when it is old."""

_COUNTER = itertools.count()
_SWEPT: set[str] = set()


def private(path: str, flags: int) -> int:
    """An `opener` for `open`: rows and pictures of people are made with mode 0600."""
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty temporary file in the same folder, which takes the place of `path` if nothing is raised.

    Its name does not contain that of `path`, which may be as long as the file system allows. The first call of a
    process for a folder removes what dead processes left there.
    """
    path = Path(path)
    folder = os.path.abspath(path.parent)
    if folder not in _SWEPT:
        _SWEPT.add(folder)
        remove_leftovers(folder)
    part = path.with_name(part_name())
    try:
        with open(part, "xb", opener=private):
            pass
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def part_name() -> str:
    """Says which process it belongs to: boot and container, process id, and when that process started."""
    pid = os.getpid()
    return f".part-{_machine()}-{pid}-{_started(pid) or 0}-{next(_COUNTER)}"


def remove_leftovers(folder: str | os.PathLike) -> list[str]:
    """Removes the parts of dead processes from a folder, and returns their names."""
    removed = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if (named := _PART.fullmatch(entry.name)) and _is_dead(entry, *named.groups()):
                with contextlib.suppress(OSError):
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
    told = [platform.node()]
    with contextlib.suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]


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


__all__ = ["part_name", "private", "remove_leftovers", "whole_file"]
