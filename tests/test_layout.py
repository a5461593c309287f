"""Who may import whom, no circle of files, and names that stay unique in a checkpoint's flat folder."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
C, P, M = "configuration_mf2", "processing_mf2", "modeling_mf2"
ALLOWED = {
    C: {C},
    P: {C, P},
    M: {C, M},
    "mf2face": {C, P, M, "mf2face"},
    "mf2face.inference": {C, P, M, "mf2face.inference", "mf2face.files"},
    "mf2face.data": {C, P, "mf2face.data", "mf2face.captions", "mf2face.files"},
    "mf2face.captions": {C, P, "mf2face.data", "mf2face.captions", "mf2face.files"},
    "mf2face.training": {C, P, M, "mf2face.data", "mf2face.captions", "mf2face.training", "mf2face.files"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for room in (C, P, M, "mf2face")
    for path in sorted((ROOT / room).rglob("*.py"))
}


def imports(module: str, path: Path) -> Iterator[str]:
    """Absolute name of every module that a file imports, also inside functions; of ours, the file is named."""
    package = module.removesuffix(".__init__") if path.stem == "__init__" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) + 1 - node.level] if node.level else []
            yield ".".join([*base, node.module] if node.module else base)


def room_of(module: str) -> str:
    return max((room for room in ALLOWED if f"{module}.".startswith(f"{room}.")), key=len, default="")


@pytest.mark.parametrize("module", FILES)
def test_imports_follow_the_arrows_and_name_files(module: str) -> None:
    for target in imports(module, FILES[module]):
        if target.partition(".")[0] in (C, P, M, "mf2face"):
            assert target in FILES, f"{module}: imports {target}; name the file"
            allowed = ALLOWED[room_of(module)]
            assert any(f"{target}.".startswith(f"{room}.") for room in allowed), f"{module} may not import {target}"
        assert target.partition(".")[0] not in {"train", "examples", "tests"}, f"{module}: {target}"


def test_no_circle_of_files() -> None:
    graph = {module: {t for t in imports(module, path) if t in FILES} for module, path in FILES.items()}
    while free := [module for module, targets in graph.items() if not targets & set(graph)]:
        for module in free:
            del graph[module]
    assert not graph, f"circle among {sorted(graph)}"


def test_configuration_imports_no_torch() -> None:
    for module, path in FILES.items():
        if module.startswith(f"{C}."):
            assert not {t.partition(".")[0] for t in imports(module, path)} & {"torch", "torchvision", "timm", "peft"}


def test_flat_names_are_unique() -> None:
    names = ["_".join(m.split(".")[1:]) for m in FILES if m.partition(".")[0] in (C, P, M) and "__init__" not in m]
    assert [name for name, count in Counter(names).items() if count > 1] == []
