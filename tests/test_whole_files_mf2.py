"""Files that are whole or absent, private, and nothing of dead processes beside them."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mf2face import files
from mf2face.files import remove_leftovers, whole_file


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
        for path in (again, *elsewhere, tmp_path / ".part-mine"):
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
