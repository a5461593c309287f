"""The wheel: what it installs, and that it is enough."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from strangers import run


ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face"}
BUILD = "from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in (*TOP_LEVEL, "model_cards", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    (built,) = out.glob("mf2face-*.whl")
    return built


def test_a_wheel_has_the_checkpoint_and_no_top_level_package_of_its_own(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == TOP_LEVEL
    inside = {name.removeprefix("mf2face/") for name in names}
    released = [path for path in ROOT.glob("model_cards/*/*") if path.is_file()]
    expected = {f"model_cards/{path.relative_to(ROOT / 'model_cards')}" for path in released}
    assert expected and expected | {"model_cards/template.md"} <= inside
    sources = {str(path.relative_to(ROOT)) for room in TOP_LEVEL for path in (ROOT / room).rglob("*.*")}
    sources = {name for name in sources if "__pycache__" not in name}
    assert sources - set(names) == set()


def test_an_installed_wheel_analyses_a_face(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in (getattr(f, "__module__", "") + str(f)).lower()]
import mf2face
from mf2face.files import RELEASED
from mf2face.training.cards import TEMPLATE
row = mf2face.analyze(RELEASED / "face.png", aligned=True).rows[0]
print(mf2face.__file__, TEMPLATE.is_file(), row["AU12"])
"""
    printed = run(code, cwd=tmp_path, PYTHONPATH=tmp_path / "site", HF_HOME=tmp_path / "home").split()
    assert (
        printed[0] == str(tmp_path / "site" / "mf2face" / "__init__.py")
        and printed[1] == "True"
        and 0 < float(printed[2]) < 1
    )
