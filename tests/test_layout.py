"""Who may import whom, read from the code itself."""

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
ALLOWED = {
    "configuration_mf2": set(),
    "processing_mf2": {"configuration_mf2"},
    "modeling_mf2": {"configuration_mf2"},
    "dataset_mf2": {"configuration_mf2", "processing_mf2"},
    "training_mf2": {"configuration_mf2", "processing_mf2", "modeling_mf2", "dataset_mf2"},
    "analysis_mf2": {"configuration_mf2", "processing_mf2", "modeling_mf2"},
}
FILES = [path for room in ALLOWED for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(leading dots, module) of every import in a file, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_the_rooms_it_may_enter(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for level, module in imports(path):
        target, _, file = module.partition(".")
        if level:
            assert level == 1 and module and "." not in module, f"{path}: {'.' * level}{module}"
            assert (path.parent / f"{module}.py").exists(), f"{path}: .{module} is no file of its room"
        elif target in ALLOWED:
            assert target != room, f"{path}: inside a room write `from .{file} import`"
            assert target in ALLOWED[room], f"{path}: {room} may not import {target}"
            assert (ROOT / target / f"{file}.py").exists(), f"{path}: name the file, not the room, in {module}"
        assert target not in {"train", "examples", "tests"}, f"{path}: {module}"


def test_configuration_needs_no_torch() -> None:
    for path in (ROOT / "configuration_mf2").glob("*.py"):
        assert not {module.split(".")[0] for _, module in imports(path)} & {"torch", "torchvision", "timm", "peft"}


def test_file_names_are_unique_across_rooms_so_that_they_fit_into_one_folder() -> None:
    names = [path.name for path in FILES if path.name != "__init__.py"]
    assert len(names) == len(set(names))


def test_rooms_are_flat_and_packaged() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(setup["options"]["packages"].split()) == {*ALLOWED, "model_cards"}, "model_cards brings its template"
    assert all(path.parent.parent == ROOT for path in FILES)


def test_every_file_has_its_test() -> None:
    tested = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    assert [path.name for path in FILES if path.name != "__init__.py" and f"test_{path.name}" not in tested] == []
