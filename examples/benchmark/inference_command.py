"""The `mf2` command as a process of its own: what it costs, and what it holds. Used by inference.py."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from mf2face.data.synthetic.faces import draw_example


_ROOT = Path(__file__).resolve().parents[2]
_DRAWN = 64
_SIDE = 256
_FPS = 10
# Between this process and the command: Linux counts what a process held before it became another one's memory, too.
_SMALL_PARENT = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([code, time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def write_faces(folder: Path, count: int) -> list[Path]:
    """JPEG files; of many, some are copies."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for index in range(min(count, _DRAWN)):
        pixels, _ = draw_example(16 * index, seed=5, size=_SIDE)
        drawn.append(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes())
    paths = [folder / f"{index:06d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(drawn[index % len(drawn)])
    return paths


def write_video(path: Path, minutes: float) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), _FPS, (_SIDE, _SIDE))
    faces = [np.ascontiguousarray(draw_example(index, seed=5, size=_SIDE)[0][..., ::-1]) for index in range(16)]
    for index in range(round(minutes * 60 * _FPS)):
        writer.write(faces[index // _FPS % len(faces)])
    writer.release()
    return path


@torch.no_grad()
def bare_seconds(model: nn.Module, batch: tuple[torch.Tensor, ...], passes: int) -> dict[str, float]:
    """Of one face."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(passes):
        model(*batch)
    faces = passes * len(batch[0])
    return {"wall": (time.perf_counter() - wall) / faces, "cpu": (time.process_time() - cpu) / faces}


def spent_by(command: list[str]) -> dict[str, float]:
    started = [sys.executable, "-S", "-c", _SMALL_PARENT, *command]
    told = subprocess.run(started, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    code, wall, cpu, peak_mb = json.loads(told.splitlines()[-1])
    if code:
        raise RuntimeError(f"the command ended with {code}: {' '.join(command)}")
    return {"wall": wall, "cpu": cpu, "peak_mb": peak_mb}


def command_cost(inputs: Path, output: Path, *options: str) -> dict[str, float]:
    """Of the whole process; `peak_mb` is what it held at most."""
    command = [sys.executable, "-m", "mf2face.inference.cli", str(inputs), "--aligned", "--device", "cpu"]
    whole = [*command, "--quiet", "-o", str(output), *options]
    cost = spent_by(whole)
    about = json.loads(output.with_name(output.name + ".about.json").read_text())
    return {**cost, "batch_size": about["batch_size"], "faces": about["faces"]}


def memory_ratios(images: int, minutes: float) -> dict[str, float]:
    """With the embedded model, so that what is not its weights weighs most, and batches of 32, which a long run may
    find and a short one not; the video at two frames a second."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, few, many in (("folder", images, 10 * images), ("video", minutes / 10, minutes)):
            peaks = []
            for amount in (few, many):
                made = folder / f"{name}-{amount}"
                options: tuple[str, ...] = ("--batch_size", "32")
                if name == "folder":
                    write_faces(made, int(amount))
                else:
                    made, options = write_video(made.with_suffix(".mp4"), amount), (*options, "--fps", "2")
                cost = command_cost(made, folder / f"{name}-{amount}.csv", *options)
                peaks.append(cost["peak_mb"])
                unit = "images" if name == "folder" else "minutes"
                print(
                    f"memory: {amount} {unit}, {cost['faces']} faces, batches of {cost['batch_size']}: "
                    f"{cost['peak_mb']:.0f} MiB at most"
                )
            found[f"memory_{name}_mb"], found[f"memory_{name}_ratio"] = peaks[1], peaks[1] / peaks[0]
    return found
