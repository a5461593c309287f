"""Files that are whole or absent, private, and nothing of dead processes beside them."""

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mf2face import files
from mf2face.files import append_whole, check_room, is_disk_full, locked, remove_leftovers, whole_file, whole_folder


ROOT = Path(__file__).parent.parent
KILLED = """
import os, signal, sys, time
from mf2face.files import whole_file
with whole_file(sys.argv[1]) as part:
    part.write_text("half")
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_file_is_whole_and_private_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    with whole_file(path) as part:
        part.write_text("first")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("second")
        raise RuntimeError
    assert path.read_text() == "first" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    run = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    with subprocess.Popen([*run, "wait"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as alive:
        assert alive.stdout.readline() == "ready\n"
        (live,) = tmp_path.iterdir()
        subprocess.run([*run, "kill"], cwd=ROOT, check=False)
        (dead,) = set(tmp_path.iterdir()) - {live}
        # The same process id, started at another time: ids are given again.
        machine, pid, started, count = live.name.removeprefix(".part-").split("-")
        again = tmp_path / f".part-{machine}-{pid}-{int(started) - 1}-{count}"
        elsewhere = [tmp_path / f".part-{'0' * 8}-{pid}-{started}-{count}" for count in (0, 1)]
        again.mkdir()
        (again / "of a folder").touch()
        for path in (*elsewhere, tmp_path / ".part-mine"):
            path.touch()
        os.utime(elsewhere[0], (1, 1))
        assert sorted(remove_leftovers(tmp_path)) == sorted(path.name for path in (dead, again, elsewhere[0]))
        assert set(tmp_path.iterdir()) == {live, elsewhere[1], tmp_path / ".part-mine"}
        alive.send_signal(signal.SIGKILL)
    assert remove_leftovers(tmp_path) == [live.name]


def test_the_first_file_of_a_process_in_a_folder_removes_what_was_left_there(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out"), "kill"], cwd=ROOT, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    files._SWEPT.discard(str(tmp_path))
    with whole_file(tmp_path / "other"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_folder_is_the_old_or_the_new_one_wherever_it_is_interrupted(tmp_path: Path, monkeypatch) -> None:
    def save(text: str) -> None:
        with whole_folder(tmp_path / "rows") as part:
            (part / "text").write_text(text)

    rename = Path.rename
    save("old")
    for kill_at in range(2):
        renames = iter(range(10))

        def die(path: Path, target: Path, renames=renames, kill_at=kill_at) -> Path:
            if next(renames) >= kill_at:  # from then on nothing is renamed, as in a dead process
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(Path, "rename", die)
            save("new")
        with contextlib.suppress(ZeroDivisionError), whole_folder(tmp_path / "rows"):
            raise ZeroDivisionError
        assert [path.name for path in tmp_path.rglob("*")] == ["rows", "text"]
        assert (tmp_path / "rows" / "text").read_text() == "old"
    save("new")
    assert (tmp_path / "rows" / "text").read_text() == "new"


def test_a_lock_is_held_once_waited_for_and_leaves_no_file(tmp_path: Path) -> None:
    path, held = tmp_path / "lock", threading.Event()
    with locked(path):
        with pytest.raises(ValueError, match="in use"), locked(path, ValueError("in use")):
            pass
        waiting = threading.Thread(target=lambda: lock_now(path) and held.set())
        waiting.start()
        assert not held.wait(0.2)
    waiting.join()
    assert held.is_set() and list(tmp_path.iterdir()) == []


def lock_now(path: Path) -> bool:
    with locked(path):
        return path.exists()


def test_a_full_disk_is_recognised_and_cuts_no_line(tmp_path: Path, monkeypatch) -> None:
    file = os.open(tmp_path / "lines", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    size = append_whole(file, 0, b"one\n")
    write, calls = os.write, iter(range(9))

    def full(file: int, content: memoryview) -> int:
        if next(calls):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[:2])

    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(os, "write", full)
        append_whole(file, size, b"two\n")
    os.close(file)
    assert (tmp_path / "lines").read_bytes() == b"one\n" and is_disk_full(caught.value)
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
    with pytest.raises(OSError, match=r"the disk is full .*Make room") as caught:
        check_room(tmp_path, 10**18, "Make room")
    assert is_disk_full(caught.value)
