"""Runs Python scripts in child processes that are killed: at their n-th file operation, or after a time.

    with KillServer(preload=["train"], under=[folder]) as server:
        undisturbed = server.run(["train.py", "--output_dir", str(folder)])
        for number in range(1, len(undisturbed.operations) + 1):
            server.run([...], kill_at=number)      # SIGKILL just before the operation
            server.run([...])                      # a restart
        server.run([...], kill_after=0.8)          # SIGKILL after 0.8 s

The server process imports `preload` once and forks for each run, so that a run takes as long as its own work. A file
operation is one that changes the folders of `under` and that Python audits (`sys.addaudithook`): open for writing,
rename, remove, mkdir, rmdir, truncate, link, symlink, sqlite3.connect. What compiled code writes by itself (Arrow,
safetensors, SQLite) and the bytes between two operations are not seen: that is what `kill_after` is for.
"""

import atexit
import contextlib
import gc
import importlib
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parent.parent
# Audit event -> the places of its path and of that path's dir_fd among the arguments.
_CHANGES = {
    **{"os.rename": (0, 2), "os.remove": (0, 1), "os.mkdir": (0, 2), "os.rmdir": (0, 1), "os.link": (1, 3)},
    **{"os.symlink": (1, 2), "os.truncate": (0, None), "sqlite3.connect": (0, None)},
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass
class Run:
    """How a run ended. operations: what it did below `under`, in its order. seconds: how long it took."""

    returncode: int
    printed: str
    errors: str
    seconds: float
    operations: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return self.printed + self.errors

    @property
    def killed(self) -> bool:
        return self.returncode == -signal.SIGKILL


class KillServer:
    """`under`: folders whose changes count. `environment`: variables of every run."""

    def __init__(
        self, preload: Sequence[str] = (), under: Sequence[str | os.PathLike] = (), **environment: str
    ) -> None:
        self.under, self.preload = [os.path.realpath(folder) for folder in under], list(preload)
        self.environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT), **environment,
        }  # fmt: skip

    def __enter__(self) -> "KillServer":
        command = [sys.executable, "-u", __file__, *self.preload]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.asked = 0
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, **pipes)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait()

    def run(
        self, argv: Sequence[str], *, kill_at: int = 0, kill_after: float = 0.0, timeout: float = 120.0, **place: Any
    ) -> Run:
        """Runs a script (a path, then its arguments) to its end, or until it is killed. place: `cwd`, and a whole
        `environment`, if they are not the server's."""
        with tempfile.TemporaryDirectory() as scratch:
            files = {name: f"{scratch}/{name}" for name in ("log", "printed", "errors")}
            for file in files.values():  # a kill may come before the child makes them
                Path(file).touch()
            asked = {"argv": list(argv), "kill_at": kill_at, "under": self.under, "timeout": kill_after or timeout}
            self.asked += 1
            self.process.stdin.write(json.dumps(asked | files | place | {"number": self.asked}) + "\n")
            self.process.stdin.flush()
            number = 0
            while number != self.asked:  # a test that was interrupted did not wait for its answer
                line = self.process.stdout.readline()
                assert line, "the server process ended"
                number, answer = json.loads(line)
            log, *said = (Path(file).read_text(errors="replace") for file in files.values())
            found = Run(**answer, printed=said[0], errors=said[1], operations=log.splitlines())
        assert kill_after or found.seconds < timeout, f"{argv}: not done after {timeout} s\n{found.output}"
        return found


def install(under: Sequence[str], log: str = "", kill_at: int = 0) -> None:
    """Writes the file operations of this process below `under` into `log`, and kills it at number `kill_at`."""
    numbers, busy = itertools.count(1), threading.local()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else -1
    prefixes = tuple(f"{folder}{os.sep}" for folder in under)

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        if (event != "open" and event not in _CHANGES) or getattr(busy, "now", False):
            return
        busy.now = True
        try:
            if event == "open":
                path, folder = (arguments[0], None) if (arguments[2] or 0) & _WRITING else (None, None)
            else:
                places = _CHANGES[event]
                path, folder = arguments[places[0]], arguments[places[1]] if places[1] is not None else None
            if (path := _absolute(path, folder)) is not None and f"{path}{os.sep}".startswith(prefixes):
                number = next(numbers)
                if number == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                if file >= 0:
                    os.write(file, f"{event} {path}\n".encode(errors="surrogateescape"))
        finally:
            busy.now = False

    sys.addaudithook(on_event)


def _absolute(path: Any, folder: int | None) -> str | None:
    if path is None or isinstance(path, int):  # an open file: its opening was seen
        return None
    path = os.fsdecode(path)
    if folder is not None and folder >= 0 and not os.path.isabs(path):
        with contextlib.suppress(OSError):
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.join(os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path))


def _serve() -> None:
    """Reads one request a line; answers how the run ended."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # a child that collects garbage would copy all pages
    for line in sys.stdin:
        asked, start = json.loads(line), time.monotonic()
        child = os.fork()
        if child == 0:
            return _run(asked)
        deadline = start + asked["timeout"]
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() >= deadline:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.002)
        code, seconds = os.waitstatus_to_exitcode(ended[1]), time.monotonic() - start
        with contextlib.suppress(ProcessLookupError):  # workers of a killed run
            os.killpg(child, signal.SIGKILL)
        answers.write(json.dumps([asked["number"], {"returncode": code, "seconds": seconds}]) + "\n")
    return None


def _run(asked: dict[str, Any]) -> None:
    """In the child: the script as `python SCRIPT ARGUMENTS` runs it."""
    os.setpgid(0, 0)
    for number, name in ((1, "printed"), (2, "errors")):
        os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT), number)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.chdir(asked.get("cwd", "."))
    if "environment" in asked:
        before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ.clear()
        os.environ.update(asked["environment"])
        sys.path[1:] = [*os.environ["PYTHONPATH"].split(os.pathsep), *(p for p in sys.path[1:] if p not in before)]
    sys.argv = asked["argv"]
    sys.path[:1] = [os.path.dirname(os.path.abspath(sys.argv[0])), str(ROOT / "tests")]
    install(asked["under"], asked["log"], asked["kill_at"])
    code: Any = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking all modules down takes seconds, in which nothing of the script is left to kill.
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve()
