"""The code that a checkpoint carries: what its public classes need of the three rooms, joined into a few files.

Top-level definitions that no public class needs are left out. This file itself stays behind: a model that was loaded
with a checkpoint's own code saves copies of that code.
"""

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

from .hub import BASELINES, ENTRY_MODULE, OPTIONAL_CLASSES, OPTIONAL_FILE, PUBLIC_CLASSES, ROOMS


Name = tuple[str, str]  # a module, and a name at its top level


@dataclass
class Block:
    """A top-level statement with the comments before it."""

    text: str
    binds: dict[str, str]
    """Name -> what it stands for: the statement that imports it, or the block's own text."""
    uses: set[str]
    is_definition: bool


@dataclass
class Module:
    name: str
    path: Path
    known: set[str]
    """Names of all modules that may travel."""
    ours: dict[str, Name] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    """Local name -> the statement that imports it from another library."""

    @cached_property
    def blocks(self) -> list[Block]:
        text = self.path.read_text(encoding="utf-8")
        lines, end, blocks = text.splitlines(keepends=True), 0, []
        for node in ast.parse(text).body:
            start, end = end, node.end_lineno
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
            elif is_text and blocks:  # describes the constant before it
                blocks[-1].text += "".join(lines[start:end])
            elif not is_text:
                block = self._block(node, "".join(lines[start:end]).strip("\n") + "\n")
                if "__all__" not in block.binds:
                    blocks.append(block)
        return blocks

    def _block(self, node: ast.stmt, text: str) -> Block:
        nested = [inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom)]
        if any(self._target(inner) for inner in nested if isinstance(inner, ast.ImportFrom)):
            raise ValueError(f"{self.path}:{node.lineno}: imports a file of ours inside a statement; import it on top")
        names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
        words = {inner.value for inner in ast.walk(node) if isinstance(inner, ast.Constant)}  # annotations
        uses = names | {word for word in words if isinstance(word, str) and word.isidentifier()}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return Block(text, {node.name: text}, uses, True)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = [part for target in targets for part in getattr(target, "elts", [target])]
            return Block(text, {part.id: text for part in parts if isinstance(part, ast.Name)}, uses, True)
        stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        binds = dict.fromkeys(stored, text)
        binds |= {alias.asname or alias.name: ast.unparse(n).split(" import ")[0] for n in nested for alias in n.names}
        return Block(text, binds, uses, False)

    def _target(self, node: ast.ImportFrom) -> str | None:
        """The module of ours that a statement imports from."""
        package = self.name.split(".")[: -node.level] if node.level else []
        target = ".".join([*package, *([node.module] if node.module else [])])
        if target in self.known:
            return target
        if node.level or target.partition(".")[0] in (*ROOMS, "mf2face"):
            raise ValueError(
                f"{self.path}:{node.lineno}: imports {target or '.'}, expected a file that travels with a checkpoint; "
                "name the file (`from modeling_mf2.losses import ...`), and nothing of mf2face"
            )
        return None

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        target = self._target(node) if isinstance(node, ast.ImportFrom) else None
        for alias in node.names:
            local = alias.asname or alias.name.partition(".")[0]
            renamed = f" as {alias.asname}" if alias.asname else ""
            if target:
                self.ours[local] = target, alias.name
            elif isinstance(node, ast.ImportFrom):
                self.others[local] = f"from {node.module} import {alias.name}{renamed}"
            else:
                if alias.name in self.known:
                    raise ValueError(
                        f"{self.path}:{node.lineno}: got `import {alias.name}`, expected `from ... import`"
                    )
                self.others[local] = f"import {alias.name}{renamed}"


class Library:
    """The modules of the three rooms, below one folder."""

    def __init__(self, folder: Path) -> None:
        paths = [path for room in ROOMS for path in sorted((folder / room).rglob("*.py")) if path.stem != "__init__"]
        named = {".".join(path.relative_to(folder).with_suffix("").parts): path for path in paths}
        self.modules = {name: Module(name, path, set(named)) for name, path in named.items()}

    def needed(self, roots: Iterable[Name]) -> dict[str, list[Block]]:
        """The blocks that the roots need, by module, each module after those that it imports."""
        kept: dict[str, list[Block]] = {}
        waiting, seen = list(roots), set()
        for module, name in waiting:
            bound = self.modules[module].blocks if module in self.modules else []
            if not any(name in block.binds for block in bound):
                raise FileNotFoundError(f"{module}: {name} not found; reinstall the package")
        while waiting:
            module, name = pair = waiting.pop()
            if pair in seen:
                continue
            seen.add(pair)
            source, first = self.modules[module], module not in kept
            for block in source.blocks:
                wanted = name in block.binds or (first and not block.is_definition)
                if wanted and block not in kept.setdefault(module, []):
                    kept[module].append(block)
                    waiting += [(module, used) for used in sorted(block.uses)]
            if name in source.ours:
                waiting.append(source.ours[name])
        ordered: dict[str, list[Block]] = {}
        for module in kept:
            self._order(module, kept, ordered)
        return ordered

    def _order(self, module: str, kept: dict[str, list[Block]], ordered: dict[str, list[Block]]) -> None:
        if module in ordered or module not in kept:
            return
        for target, _ in self.modules[module].ours.values():
            self._order(target, kept, ordered)
        ordered[module] = [block for block in self.modules[module].blocks if block in kept[module]]

    def join(self, needed: dict[str, list[Block]], file_of: dict[str, str], file: str) -> str:
        """One file of a checkpoint. Names of its modules share a scope: two of one name are an error."""
        names: dict[str, tuple[str, Path]] = {}  # -> what a name stands for, and where
        imports: set[str] = set()
        body: list[str] = []

        def take(name: str, meaning: str, path: Path) -> bool:
            before = names.setdefault(name, (meaning, path))
            if before[0] != meaning:
                raise ValueError(
                    f"{path}: {name!r} is another thing in {before[1]}; in {file}.py, which a checkpoint carries, both "
                    "would have one name: rename one of them"
                )
            return before[1] is path

        for module, blocks in needed.items():
            if file_of[module] != file:
                continue
            source, used = self.modules[module], {name for block in blocks for name in block.uses}
            body.append(f"# {'/'.join(module.split('.'))}.py\n")
            for local in sorted(used & set(source.others)):
                take(local, source.others[local], source.path)
                imports.add(source.others[local])
            for local in sorted(used & set(source.ours)):
                target, name = source.ours[local]
                renamed = f" as {local}" if local != name else ""
                if file_of[target] != file:
                    take(local, f"{target}.{name}", source.path)
                    imports.add(f"from .{file_of[target]} import {name}{renamed}")
                elif renamed and take(local, f"{target}.{name}", source.path):
                    body.append(f"{local} = {name}\n")
            for block in blocks:
                fresh = [take(*pair, source.path) for pair in block.binds.items()]
                if all(fresh) or not block.is_definition:
                    body.append(block.text)
        return "\n".join(sorted(imports)) + "\n\n\n" + "\n\n".join(body)


@cache
def flat_code(system: str = "mf2") -> dict[str, str]:
    """File name -> text; every save of a process writes the same."""
    library = Library(Path(__file__).resolve().parents[1])
    if system != "mf2":
        file, *classes = BASELINES[system]
        sources = ["configuration_mf2.baselines", *[f"modeling_mf2.{file.replace('_', '.', 1)}"] * 2]
        needed = library.needed(zip(sources, classes, strict=True))
        return {f"{file}.py": library.join(needed, dict.fromkeys(needed, file), file)}
    public, optional = (
        [(module, name) for module, names in classes.items() for name in names]
        for classes in (PUBLIC_CLASSES, OPTIONAL_CLASSES)
    )
    required, needed = library.needed(public), library.needed([*public, *optional])
    file_of = {name: name.partition(".")[0] if name in required else OPTIONAL_FILE for name in needed}
    texts = {file: library.join(needed, file_of, file) for file in sorted(set(file_of.values()))}
    texts[ENTRY_MODULE] = _entry()
    return {f"{file}.py": text for file, text in texts.items()}


def _entry() -> str:
    """The one module that every `auto_map` value of MF² names; a second one would load each class twice."""
    lines: list[str] = []
    for module, names in PUBLIC_CLASSES.items():
        lines += [f"from .{module.partition('.')[0]} import {name}" for name in names]
    public = sorted(name for names in PUBLIC_CLASSES.values() for name in names)
    optional = ", ".join(name for names in OPTIONAL_CLASSES.values() for name in names)
    lines += ["", "try:", f"    from .{OPTIONAL_FILE} import {optional}", "except ImportError:", "    pass", "", ""]
    return "\n".join([*lines, f"__all__ = {public}", ""])
