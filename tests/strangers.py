"""Processes of users; with `ALONE` first in their code, in one of them no package of this project can be imported."""

import os
import subprocess
import sys
from pathlib import Path


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


def run(code: str, *arguments: object, cwd: Path, **environment: object) -> str:
    """What the code prints; offline unless the environment says otherwise."""
    more = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **{name: str(value) for name, value in environment.items()}}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **more}, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
