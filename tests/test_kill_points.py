import signal

import pytest
from kill_points import KillServer


SCRIPT = """
import os, shutil, sys, time
folder = sys.argv[1]
os.mkdir(f"{folder}/a")
with open(f"{folder}/a/file.part", "w") as file:
    file.write("x")
open(f"{folder}/a/file.part").read()
os.replace(f"{folder}/a/file.part", f"{folder}/a/file")
open(f"{folder}/../elsewhere", "w").close()
shutil.rmtree(f"{folder}/a")
time.sleep(float(sys.argv[2]))
print("done")
"""
OPERATIONS = ["os.mkdir a", "open a/file.part", "os.rename a/file.part", "os.remove a/file", "os.rmdir a"]


@pytest.fixture
def case(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = tmp_path / "watched"
    folder.mkdir()
    with KillServer(under=[folder]) as server:
        yield lambda seconds=0, **kill: server.run([str(tmp_path / "script.py"), str(folder), str(seconds)], **kill)


def test_changes_of_watched_folders_are_listed(case, tmp_path):
    run = case()
    assert [line.replace(f"{tmp_path / 'watched'}/", "") for line in run.operations] == OPERATIONS
    assert (run.returncode, run.output) == (0, "done\n") and not run.killed


@pytest.mark.parametrize("number", range(1, 1 + len(OPERATIONS)))
def test_a_run_is_killed_just_before_an_operation(case, tmp_path, number):
    run = case(kill_at=number)
    assert run.killed and len(run.operations) == number - 1
    there = {path.name for path in (tmp_path / "watched").rglob("*")}
    assert there == [set(), {"a"}, {"a", "file.part"}, {"a", "file"}, {"a"}][number - 1]


def test_a_run_is_killed_after_a_time(case):
    run = case(30, kill_after=0.5)
    assert run.returncode == -signal.SIGKILL and "done" not in run.output
    assert 0.4 < run.seconds < 10
