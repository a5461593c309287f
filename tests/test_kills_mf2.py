"""`mf2` killed at each of its file operations: the same command continues, and nothing is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest


ROOT = Path(__file__).parent.parent
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def kill_everywhere(folder: Path, ending: str) -> None:
    """Into `killed-N` of the folder: the command killed at its N-th operation, and given again. In a process without
    threads, whose copies load nothing."""
    from analysis_media import embedded

    from analysis_mf2.command_mf2 import main

    model = embedded()

    def run(name: str, operation: int | None = None) -> int:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        left = operation

        def hook(event: str, given: tuple) -> None:
            nonlocal left
            writes = event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
            if left is not None and (writes or event in CHANGES) and str(given[0]).startswith(str(folder)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 99
        try:
            sys.addaudithook(hook)
            output = str(folder / name / f"rows.{ending}")
            code = main([str(folder / "in"), "--aligned", "--batch_size", "2", "--quiet", "-o", output], model=model)
        finally:
            os._exit(code)

    assert run("whole") == 0
    operation = 0
    while run(f"killed-{operation}", operation) == -signal.SIGKILL:
        assert run(f"killed-{operation}") == 0
        operation += 1
    assert run(f"killed-{operation}") == 0


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_kill_at_any_file_operation_loses_doubles_and_leaves_nothing(tmp_path: Path, ending: str) -> None:
    from analysis_media import write_faces, write_video

    write_faces(tmp_path / "in", 2)
    write_video(tmp_path / "in" / "v.avi", 3)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, __file__, str(tmp_path), ending]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=240)

    def rows_in(folder: Path) -> object:
        file = folder / f"rows.{ending}"
        return file.read_bytes() if ending == "csv" else str(pyarrow.parquet.read_table(file).to_pylist())

    killed = list(tmp_path.glob("killed-*"))
    assert len(killed) > 7
    for folder in killed:
        names = sorted(path.name for path in folder.iterdir())
        assert names == [f"rows.{ending}", f"rows.{ending}.about.json"], folder
        assert rows_in(folder) == rows_in(tmp_path / "whole"), folder


if __name__ == "__main__":
    kill_everywhere(Path(sys.argv[1]), sys.argv[2])
