"""Processes of users; with `ALONE` first in their code, in one of them no package of this project can be imported."""

import atexit
import os
import tempfile
from functools import cache
from pathlib import Path

from kill_points import ROOT, KillServer, Run


ALONE = """
import importlib.util, sys
rooms = ("configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face")
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in (getattr(f, "__module__", "") + str(f)).lower()]
for room in rooms:
    while (spec := importlib.util.find_spec(room)) is not None:
        sys.path.remove(str(__import__("pathlib").Path(list(spec.submodule_search_locations)[0]).parent))
        importlib.invalidate_caches()
        sys.path_importer_cache.clear()
"""
# What takes seconds to import and reads no variable of the environment.
_SLOW_IMPORTS = ("torchvision.transforms.v2", "scipy.stats", "sklearn.linear_model", "cv2", "pandas", "pyarrow")


@cache
def _server() -> KillServer:
    server = KillServer(_SLOW_IMPORTS)
    atexit.register(server.__exit__)
    return server.__enter__()


def start(script: str | Path, *arguments: object, cwd: Path, **environment: object) -> Run:
    """script: a file, or code. Offline unless the environment says otherwise."""
    more = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **{name: str(value) for name, value in environment.items()}}
    place = {"cwd": str(cwd), "environment": {**os.environ, "OMP_NUM_THREADS": "1", **more}}
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(script, str):
            (Path(folder) / "user.py").write_text(script)
            script = Path(folder) / "user.py"
        return _server().run([str(word) for word in (script, *arguments)], timeout=280, **place)


def run(script: str | Path, *arguments: object, cwd: Path, **environment: object) -> str:
    """What it prints."""
    done = start(script, *arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.output[-3000:]
    return done.printed
